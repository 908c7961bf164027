//! An allocation site of a Go program, and what it holds in truth.

use serde_json::Value;

/// A function that allocates, and what it says of itself.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Site {
    pub(crate) held: Amount,
    pub(crate) allocated: Amount,
    /// Its objects are smaller than 16 bytes and share blocks: what was asked for is the least that it can be said to hold.
    pub(crate) is_tiny: bool,
    /// All its objects are of one size: their bytes tell how many they are.
    pub(crate) is_even: bool,
}

/// Objects of a site.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Amount {
    pub(crate) blocks: u64,
    /// As asked for.
    pub(crate) requested: u64,
    /// As the runtime accounts for them.
    pub(crate) bytes: u64,
}

impl Site {
    /// Reads what a program says of one: a line of JSON.
    pub(crate) fn read(line: &str) -> (String, Self) {
        let json: Value = serde_json::from_str(line).unwrap_or_else(|error| panic!("no JSON ({error}): {line}"));
        let amount = |name: &str| {
            let number =
                |what: &str| json[name][what].as_u64().unwrap_or_else(|| panic!("no number {name}.{what}: {line}"));
            Amount { blocks: number("blocks"), requested: number("requested"), bytes: number("bytes") }
        };
        let says = |what: &str| json[what].as_bool().unwrap_or_else(|| panic!("not said whether {what}: {line}"));
        let (is_tiny, is_even) = (says("tiny"), says("even"));
        let site = Self { held: amount("held"), allocated: amount("allocated"), is_tiny, is_even };
        (json["site"].as_str().unwrap_or_else(|| panic!("a site without a name: {line}")).to_owned(), site)
    }

    /// The least and the most that can be reported of an amount, if all of it were seen.
    pub(crate) fn bounds(self, amount: Amount) -> (f64, f64) {
        let least = if self.is_tiny { amount.requested } else { amount.bytes };
        (least as f64, amount.bytes as f64)
    }
}
