//! The truth as a program tells it, and its comparison with what was reported.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
    path::Path,
};

use super::{
    report::{Held, Report},
    site::Site,
};

/// What a program says of itself.
#[derive(Clone, Debug, Default)]
pub(crate) struct Truth {
    /// What each function holds; those that hold nothing are there too.
    pub(crate) held: BTreeMap<String, Held>,
    /// Numbers of other kinds.
    pub(crate) facts: BTreeMap<String, u64>,
    /// Allocation sites of a Go program, by the function that each of them is.
    pub(crate) sites: BTreeMap<String, Site>,
}

impl Truth {
    /// Reads one line of a program; lines of other kinds are none of its business.
    pub(crate) fn read(&mut self, line: &str) {
        if line.starts_with('{') {
            let (name, site) = Site::read(line);
            self.sites.insert(name, site);
            return;
        }
        let words: Vec<&str> = line.split(' ').collect();
        let number = |word: &str| word.parse().unwrap_or_else(|_| panic!("not a number in {line:?}"));
        match *words {
            ["truth", function, bytes, blocks] => {
                let held = Held { bytes: number(bytes), blocks: number(blocks) };
                self.held.insert(function.to_owned(), held);
            }
            ["fact", name, value] => {
                self.facts.insert(name.to_owned(), number(value));
            }
            _ => {}
        }
    }

    /// A number that the program gave.
    pub(crate) fn fact(&self, name: &str) -> u64 {
        *self.facts.get(name).unwrap_or_else(|| panic!("the program tells no fact {name}: {self:?}"))
    }

    /// What all functions hold together.
    pub(crate) fn total(&self) -> Held {
        self.held.values().fold(Held::default(), |sum, held| sum + *held)
    }
}

/// Compares every function that calls the allocator, by what it holds. With `program`, only functions of that file
/// count: libraries may allocate for themselves.
pub(crate) fn check_functions(what: &str, report: &Report, truth: &Truth, program: Option<&Path>) {
    compare(what, report, &report.by_caller(program), &truth.held);
}

/// Compares what was allocated in or below each function that the truth names; the innermost of them counts.
pub(crate) fn check_holders(what: &str, report: &Report, truth: &Truth) {
    let mut reported: BTreeMap<String, Held> = BTreeMap::new();
    for stack in &report.stacks {
        if let Some(holder) = stack.functions.iter().rev().find(|function| truth.held.contains_key(*function)) {
            let held = reported.entry(holder.clone()).or_default();
            *held = *held + stack.held;
        }
    }
    compare(what, report, &reported, &truth.held);
}

fn compare(what: &str, report: &Report, reported: &BTreeMap<String, Held>, truth: &BTreeMap<String, Held>) {
    let mut differences = String::new();
    for function in reported.keys().chain(truth.keys()).collect::<BTreeSet<_>>() {
        let reported = reported.get(function).copied().unwrap_or_default();
        let truth = truth.get(function).copied().unwrap_or_default();
        if reported != truth {
            let (bytes, blocks) =
                (reported.bytes as i64 - truth.bytes as i64, reported.blocks as i64 - truth.blocks as i64);
            let _ = writeln!(
                differences,
                "  {function}: reported {reported}, in truth {truth}: off by {bytes:+} bytes, {blocks:+} blocks"
            );
        }
    }
    assert!(
        differences.is_empty(),
        "{what}: what functions hold is not the truth\n{differences}the report, in all {}, says of itself: {}",
        report.outstanding(),
        report.json["quality"]
    );
}
