//! Heap profiles as runtime/pprof writes them with debug=1, and the same stacks as a report has them.

use std::{
    collections::BTreeMap,
    ops::{Add, Sub},
};

use super::report::{Report, Stack};

/// Frames of a stack, leaf first, as `FUNCTION FILE:LINE`, as runtime/pprof shows them: without the runtime's at the leaf.
pub(crate) type Frames = Vec<String>;

/// What a stack holds and has allocated.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Usage {
    pub(crate) held_blocks: i64,
    pub(crate) held_bytes: i64,
    pub(crate) allocated_blocks: i64,
    pub(crate) allocated_bytes: i64,
    /// How many records it is the sum of.
    pub(crate) records: i64,
}

impl Add for Usage {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self {
            held_blocks: self.held_blocks + other.held_blocks,
            held_bytes: self.held_bytes + other.held_bytes,
            allocated_blocks: self.allocated_blocks + other.allocated_blocks,
            allocated_bytes: self.allocated_bytes + other.allocated_bytes,
            records: self.records + other.records,
        }
    }
}

impl Sub for Usage {
    type Output = Self;

    fn sub(self, other: Self) -> Self {
        Self {
            held_blocks: self.held_blocks - other.held_blocks,
            held_bytes: self.held_bytes - other.held_bytes,
            allocated_blocks: self.allocated_blocks - other.allocated_blocks,
            allocated_bytes: self.allocated_bytes - other.allocated_bytes,
            records: self.records + other.records,
        }
    }
}

/// All stacks of a profile.
pub(crate) type Usages = BTreeMap<Frames, Usage>;

/// Frames at the leaf that runtimes leave out, each version a bit differently.
pub(crate) fn is_runtimes(function: &str) -> bool {
    ["runtime.", "runtime/internal/", "internal/runtime/"].iter().any(|own| function.starts_with(own))
}

/// Reads a profile: `OBJECTS: BYTES [OBJECTS: BYTES] @ ADDRESS...`, what is held and what was allocated as sampled, then a
/// line `#<tab>ADDRESS<tab>FUNCTION+OFFSET<tab>FILE:LINE` for each frame.
#[track_caller]
pub(crate) fn read_heap_profile(text: &str) -> Usages {
    let head = text.lines().next().unwrap_or_default();
    // It says twice the rate, for tools that divide it by two.
    let rate = head.strip_prefix("heap profile: ").and_then(|head| head.rsplit_once("@ heap/")?.1.parse::<f64>().ok());
    let rate = rate.unwrap_or_else(|| panic!("no heap profile: {text:.1000}")) / 2.0;
    let mut usages = Usages::new();
    for record in text.split("\n\n").map(|record| record.trim_start_matches('\n')) {
        let mut lines = record.lines().skip_while(|line| !line.contains("] @") || line.starts_with("heap profile"));
        let Some(numbers) = lines.next().and_then(record_numbers) else { continue };
        let frames = lines.filter_map(|line| {
            let mut fields = line.split('\t').filter(|field| !field.is_empty()).skip(2);
            let (function, place) = (fields.next()?, fields.next()?);
            Some((function.trim_end().rsplit_once('+')?.0.to_owned(), place.to_owned()))
        });
        let [held_blocks, held_bytes, allocated_blocks, allocated_bytes] = numbers;
        let (held_blocks, held_bytes) = scaled(held_blocks, held_bytes, rate);
        let (allocated_blocks, allocated_bytes) = scaled(allocated_blocks, allocated_bytes, rate);
        let usage = Usage { held_blocks, held_bytes, allocated_blocks, allocated_bytes, records: 1 };
        add(&mut usages, shown(frames.collect()), usage);
    }
    usages
}

fn record_numbers(line: &str) -> Option<[i64; 4]> {
    let (numbers, _) = line.split_once("] @")?;
    let mut numbers = numbers.split([':', '[']).map(|number| number.trim().parse().ok());
    Some([numbers.next()??, numbers.next()??, numbers.next()??, numbers.next()??])
}

/// As runtime/pprof does it for its profiles in the other format.
fn scaled(blocks: i64, bytes: i64, rate: f64) -> (i64, i64) {
    if blocks == 0 || bytes == 0 || rate <= 1.0 {
        return (blocks, bytes);
    }
    let scale = 1.0 / (1.0 - (-(bytes as f64 / blocks as f64) / rate).exp());
    ((blocks as f64 * scale) as i64, (bytes as f64 * scale) as i64)
}

/// The same of a report.
pub(crate) fn reported_usages(report: &Report) -> Usages {
    let mut usages = Usages::new();
    for stack in report.stacks.iter().filter(|stack| stack.heap.as_deref() == Some("go")) {
        let usage = Usage {
            held_blocks: stack.held.blocks as i64,
            held_bytes: stack.held.bytes as i64,
            allocated_blocks: stack.allocated.blocks as i64,
            allocated_bytes: stack.allocated.bytes as i64,
            records: 0,
        };
        add(&mut usages, shown(leaf_first(stack)), usage);
    }
    usages
}

fn leaf_first(stack: &Stack) -> Vec<(String, String)> {
    stack.functions.iter().cloned().zip(stack.places.iter().cloned()).rev().collect()
}

/// Frames as runtime/pprof shows them: never what all goroutines return to, and the runtime's own at the leaf only where there
/// are no others.
fn shown(frames: Vec<(String, String)>) -> Frames {
    let own = frames.iter().position(|(function, _)| !is_runtimes(function)).unwrap_or(0);
    let frames = frames.into_iter().skip(own).filter(|(function, _)| function != "runtime.goexit");
    frames.map(|(function, place)| format!("{function} {place}")).collect()
}

fn add(usages: &mut Usages, frames: Frames, usage: Usage) {
    let sum = usages.entry(frames).or_default();
    *sum = *sum + usage;
}

/// The same by the function that allocated, as far as it is not the runtime's.
pub(crate) fn by_function(usages: &Usages) -> BTreeMap<String, Usage> {
    let mut functions: BTreeMap<String, Usage> = BTreeMap::new();
    for (frames, usage) in usages {
        let leaf = frames.first().map_or("", |frame| frame.rsplit_once(' ').map_or(&**frame, |(function, _)| function));
        let sum = functions.entry(leaf.to_owned()).or_default();
        *sum = *sum + *usage;
    }
    functions
}
