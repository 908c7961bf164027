//! The saved form (JSON) of a report, as far as tests look at it.

use std::{collections::BTreeMap, fmt, ops::Add, path::Path};

use serde_json::Value;

/// What something holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Held {
    pub(crate) bytes: u64,
    pub(crate) blocks: u64,
}

impl Add for Held {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self { bytes: self.bytes + other.bytes, blocks: self.blocks + other.blocks }
    }
}

impl fmt::Display for Held {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes in {} blocks", self.bytes, self.blocks)
    }
}

/// A parsed report.
#[derive(Clone, Debug)]
pub(crate) struct Report {
    pub(crate) json: Value,
    pub(crate) stacks: Vec<Stack>,
}

/// One stack of it.
#[derive(Clone, Debug)]
pub(crate) struct Stack {
    pub(crate) pid: u32,
    /// The process: an id may be used again.
    pub(crate) image: u32,
    /// Whose heap it is, where the report says so: `go` or `native`.
    pub(crate) heap: Option<String>,
    /// Names, root first; an address where there is none.
    pub(crate) functions: Vec<String>,
    /// `FILE:LINE` of each of them; nothing where that is not known.
    pub(crate) places: Vec<String>,
    /// File of the last frame, the caller of the allocator.
    pub(crate) module: Option<String>,
    pub(crate) held: Held,
    pub(crate) allocated: Held,
    pub(crate) uncertain_bytes: u64,
}

impl Report {
    /// Parses one and checks what holds for all: the format's head, and totals that are the sums over the stacks.
    pub(crate) fn parse(text: &str) -> Self {
        let json: Value = serde_json::from_str(text).unwrap_or_else(|error| panic!("no JSON ({error}): {text:.2000}"));
        assert_eq!((&json["format"], &json["version"]), (&"tracer-profile".into(), &1.into()));
        let stacks: Vec<Stack> = json["stacks"].as_array().unwrap().iter().map(Stack::parse).collect();
        let report = Self { json, stacks };
        let sum = |f: fn(&Stack) -> Held| report.stacks.iter().map(f).fold(Held::default(), Add::add);
        assert_eq!(report.outstanding(), sum(|stack| stack.held), "totals are not the sums over the stacks");
        assert_eq!(report.allocated(), sum(|stack| stack.allocated), "totals are not the sums over the stacks");
        report
    }

    /// The part of one process; its head stays that of the whole.
    pub(crate) fn of_process(&self, pid: u32) -> Self {
        let stacks = self.stacks.iter().filter(|stack| stack.pid == pid).cloned().collect();
        Self { json: self.json.clone(), stacks }
    }

    pub(crate) fn outstanding(&self) -> Held {
        let totals = &self.json["totals"];
        Held { bytes: number(totals, "outstanding_bytes"), blocks: number(totals, "outstanding_blocks") }
    }

    pub(crate) fn allocated(&self) -> Held {
        let totals = &self.json["totals"];
        Held { bytes: number(totals, "allocated_bytes"), blocks: number(totals, "allocated_blocks") }
    }

    /// A count of the quality section.
    pub(crate) fn quality(&self, name: &str) -> u64 {
        number(&self.json["quality"], name)
    }

    /// What is missing, by name.
    pub(crate) fn gaps(&self) -> Vec<String> {
        let gaps = self.json["quality"]["gaps"].as_array();
        gaps.unwrap().iter().map(|gap| gap["what"].as_str().unwrap().to_owned()).collect()
    }

    /// How much is missing of one kind; 0 where nothing is.
    pub(crate) fn gap(&self, what: &str) -> u64 {
        let gaps = self.json["quality"]["gaps"].as_array().unwrap();
        gaps.iter().find(|gap| gap["what"] == what).map_or(0, |gap| number(gap, "amount"))
    }

    /// Whether it says that nothing is missing.
    pub(crate) fn is_complete(&self) -> bool {
        self.json["quality"]["complete"].as_bool().unwrap()
    }

    /// What callers of the allocator hold, by name, those that hold something. With `program`, only those in that file.
    pub(crate) fn by_caller(&self, program: Option<&Path>) -> BTreeMap<String, Held> {
        let mut callers: BTreeMap<String, Held> = BTreeMap::new();
        for stack in &self.stacks {
            let wanted = program.is_none_or(|program| stack.module.as_deref() == program.to_str());
            if wanted && stack.held != Held::default() {
                let held = callers.entry(stack.caller().to_owned()).or_default();
                *held = *held + stack.held;
            }
        }
        callers
    }

    /// What was allocated in or below a function and is held.
    pub(crate) fn below(&self, function: &str) -> Held {
        self.stacks.iter().filter(|stack| stack.has(function)).fold(Held::default(), |sum, stack| sum + stack.held)
    }

    /// Bytes of a caller of the allocator that a lost free may have ended.
    pub(crate) fn uncertain_bytes(&self, caller: &str) -> u64 {
        self.stacks.iter().filter(|stack| stack.caller() == caller).map(|stack| stack.uncertain_bytes).sum()
    }

    /// That every stack reaches the root.
    #[track_caller]
    pub(crate) fn assert_complete(&self, what: &str) {
        assert_eq!(
            self.quality("truncated_stacks"),
            0,
            "{what}: stacks that do not reach the root: {}",
            self.json["quality"]
        );
    }

    /// That the report is not complete, and how much of what is missing.
    #[track_caller]
    pub(crate) fn assert_gap(&self, what: &str, amount: u64) {
        let quality = &self.json["quality"];
        let gaps = quality["gaps"].as_array().unwrap();
        assert!(
            gaps.iter().any(|gap| gap["what"] == what && gap["amount"] == amount),
            "no {what} of {amount}: {quality}"
        );
        assert_eq!(quality["complete"], false);
    }

    /// That nothing was lost and all is certain. Stacks may end early: unwinding has tests of its own.
    #[track_caller]
    pub(crate) fn assert_nothing_lost(&self, what: &str) {
        for name in ["lost_allocs", "lost_frees", "uncertain_bytes"] {
            assert_eq!(self.quality(name), 0, "{what}: {name} in {}", self.json["quality"]);
        }
        let gaps = self.gaps();
        assert!(
            !gaps.iter().any(|gap| ["missed_frees", "untracked_calls"].contains(&gap.as_str())),
            "{what}: {gaps:?}"
        );
    }
}

impl Stack {
    fn parse(json: &Value) -> Self {
        let frames = json["frames"].as_array().unwrap();
        let heap = json["heap"].as_str().map(str::to_owned);
        let name = |frame: &Value| match frame["function"].as_str() {
            // Parentheses belong to a name in Go: main.(*list).add
            Some(name) if heap.as_deref() == Some("go") => name.to_owned(),
            Some(name) => bare(name).to_owned(),
            None => format!("0x{:x}", number(frame, "offset")),
        };
        let place = |frame: &Value| match frame["file"].as_str() {
            Some(file) => format!("{file}:{}", frame["line"]),
            None => String::new(),
        };
        let last = frames.last().unwrap_or_else(|| panic!("a stack without frames: {json}"));
        Self {
            pid: number(json, "pid") as u32,
            image: number(json, "image") as u32,
            functions: frames.iter().map(name).collect(),
            places: frames.iter().map(place).collect(),
            module: last["module"].as_str().map(str::to_owned),
            heap,
            held: Held { bytes: number(json, "outstanding_bytes"), blocks: number(json, "outstanding_blocks") },
            allocated: Held { bytes: number(json, "allocated_bytes"), blocks: number(json, "allocated_blocks") },
            uncertain_bytes: number(json, "uncertain_bytes"),
        }
    }

    /// The function that called the allocator.
    pub(crate) fn caller(&self) -> &str {
        self.functions.last().map_or("", String::as_str)
    }

    pub(crate) fn has(&self, function: &str) -> bool {
        self.functions.iter().any(|name| name == function)
    }
}

fn number(json: &Value, name: &str) -> u64 {
    json[name].as_u64().unwrap_or_else(|| panic!("no number {name} in {json}"))
}

/// A name without C++ parameters and without the crate of a Rust path: as programs tell the truth.
fn bare(name: &str) -> &str {
    let name = if name.starts_with('<') { name } else { name.split('(').next().unwrap_or(name) };
    match name.split_once("::") {
        Some((first, rest)) if !name.starts_with('<') && !first.contains(' ') && !rest.contains("::") => rest,
        _ => name,
    }
}
