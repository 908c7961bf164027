//! Profiles of pprof's format, as `go tool pprof` reads them.

use std::{collections::BTreeMap, path::Path};

use serde_json::Value;

use super::go::go;

/// What pprof prints of a profile; fails when it has anything to complain about.
#[track_caller]
pub(crate) fn pprof(arguments: &[&str], profile: &Path) -> String {
    let mut pprof = go();
    // Separate programs would be searched there.
    pprof.args(["tool", "pprof"]).args(arguments).arg(profile).env("PPROF_BINARY_PATH", "/nonexistent");
    let output = pprof.output().unwrap_or_else(|error| {
        panic!("cannot run go ({error}): `cargo xtask setup --tests` installs it");
    });
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && said.is_empty(), "{pprof:?}: {}, {said}", output.status);
    String::from_utf8(output.stdout).unwrap()
}

/// A profile that was read back by `go tool pprof -raw`.
pub(crate) struct Pprof {
    /// `TYPE/UNIT` of each value; the one that is shown by default ends with `[dflt]`.
    pub(crate) types: Vec<String>,
    pub(crate) samples: Vec<Sample>,
    /// Files of the mappings.
    pub(crate) files: Vec<String>,
    /// `FUNCTION FILE:LINE` of each location, innermost first; the address of one without functions.
    locations: BTreeMap<u64, Vec<String>>,
}

/// One sample of it.
pub(crate) struct Sample {
    pub(crate) values: Vec<u64>,
    /// `KEY:[VALUE]`, all in one line.
    pub(crate) labels: String,
    locations: Vec<u64>,
}

impl Pprof {
    /// Reads a profile.
    #[track_caller]
    pub(crate) fn read(profile: &Path) -> Self {
        let raw = pprof(&["-raw"], profile);
        let (head, rest) = raw.split_once("Samples:\n").unwrap_or_else(|| panic!("no samples in {raw}"));
        assert!(head.contains("PeriodType: ") && head.contains("Period: 1\n"), "{head}");
        let (samples, rest) = rest.split_once("Locations\n").unwrap();
        let (locations, mappings) = rest.split_once("Mappings\n").unwrap();
        let (types, samples) = samples.split_once('\n').unwrap();
        let mut read = Self {
            types: types.split_whitespace().map(str::to_owned).collect(),
            samples: Vec::new(),
            files: mappings.lines().filter_map(|line| Some(line.split(' ').nth(2)?.to_owned())).collect(),
            locations: BTreeMap::new(),
        };
        for line in samples.lines() {
            match line
                .split_once(": ")
                .filter(|(values, _)| values.trim_start().starts_with(|c: char| c.is_ascii_digit()))
            {
                Some((values, locations)) => read.samples.push(Sample {
                    values: numbers(values),
                    labels: String::new(),
                    locations: numbers(locations),
                }),
                None => {
                    let sample = read.samples.last_mut().unwrap_or_else(|| panic!("labels of nothing: {line}"));
                    sample.labels.push_str(line);
                }
            }
        }
        // `ID: ADDRESS M=MAPPING FUNCTION FILE:LINE:COLUMN s=LINE`; further functions on lines of their own.
        let mut last = 0;
        for line in locations.lines() {
            let first = line.trim_start().split_once(": 0x").and_then(|(id, rest)| Some((id.parse().ok()?, rest)));
            let function = match first {
                Some((id, rest)) => {
                    last = id;
                    read.locations.insert(id, Vec::new());
                    let (address, rest) = rest.split_once(' ').unwrap();
                    let rest = rest.trim_start();
                    let function = match rest.strip_prefix("M=") {
                        Some(rest) => rest.split_once(' ').unwrap().1.trim(),
                        None => rest,
                    };
                    if function.is_empty() { format!("0x{address}") } else { without_column(function) }
                }
                None => without_column(line.trim()),
            };
            read.locations.get_mut(&last).unwrap().push(function);
        }
        read
    }

    /// Sums of the values over all samples.
    pub(crate) fn totals(&self) -> Vec<u64> {
        (0..self.types.len()).map(|index| self.samples.iter().map(|sample| sample.values[index]).sum()).collect()
    }

    /// The stacks of samples with such labels, leaf first, with one of their values; those with the value 0 left out.
    pub(crate) fn stacks(&self, value: usize, labels: impl Fn(&str) -> bool) -> BTreeMap<Vec<String>, u64> {
        let mut stacks: BTreeMap<Vec<String>, u64> = BTreeMap::new();
        for sample in self.samples.iter().filter(|sample| labels(&sample.labels) && sample.values[value] > 0) {
            let functions = sample.locations.iter().flat_map(|id| &self.locations[id]);
            *stacks.entry(functions.map(|function| known(function)).collect()).or_default() += sample.values[value];
        }
        stacks
    }

    /// A frame of a saved report as frames of [`stacks`](Self::stacks) are.
    pub(crate) fn saved_frame(frame: &Value) -> String {
        match frame["function"].as_str() {
            Some(function) => {
                let line = frame["line"].as_u64().unwrap_or(0);
                format!("{function} {}:{line}", frame["file"].as_str().unwrap_or_default())
            }
            None => known("0x0"),
        }
    }
}

/// Addresses are not those of a saved report.
fn known(function: &str) -> String {
    if function.starts_with("0x") { "[no name]".to_owned() } else { function.to_owned() }
}

fn numbers(text: &str) -> Vec<u64> {
    text.split_whitespace().map(|number| number.parse().unwrap_or_else(|_| panic!("no number: {text}"))).collect()
}

/// `FUNCTION FILE:LINE` of `FUNCTION FILE:LINE:COLUMN s=LINE`; versions of Go before 1.22 print no columns.
fn without_column(function: &str) -> String {
    let function = function.rsplit_once(" s=").unwrap_or_else(|| panic!("no function: {function}")).0;
    let number = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
    match function.rsplit_once(':') {
        Some((rest, column)) if number(column) && rest.rsplit_once(':').is_some_and(|(_, line)| number(line)) => {
            rest.to_owned()
        }
        _ => function.to_owned(),
    }
}
