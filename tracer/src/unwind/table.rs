//! The rules of one file by address, and how they are put in order.

use std::ops::Range;

use tracer_ebpf::unwind::{fp, kind, rule};

use super::rule::{Reason, unsupported};

/// No rule.
const NONE: u64 = rule(kind::NONE, 0, 0, 0);
/// Gaps between functions that are shorter than this may be bridged, bytes.
const PADDING: u64 = 16;
/// Most rows of one function. The largest that compilers make have some thousands.
const MAX_FUNCTION_ROWS: usize = 1 << 16;
/// Most rows of one file: 128 MiB. A file of 150 MiB has about two million.
const MAX_ROWS: usize = 1 << 23;
/// Bytes of unwind information that a row takes, at least, in files of any size.
const BYTES_OF_ROW: usize = 5;

/// The rules of one file by address, as the file was linked.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Table {
    /// From which address on which rule holds. Addresses go up, neighbours differ, the last row says that there is none.
    rows: Vec<(u64, u64)>,
    /// What it is like.
    pub stats: Stats,
}

/// What a table is like.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Functions that are in it.
    pub functions: usize,
    /// Entries that could not be read.
    pub unreadable: usize,
    /// Entries for addresses at which the file has no code.
    pub outside: usize,
    /// Functions that reach into the next one and were cut there, or that start where another one does and were left out.
    pub overlapping: usize,
    /// Functions that were left out because the file has too many rows.
    pub dropped: usize,
    /// Bytes of code that the functions take.
    pub code_bytes: u64,
    /// Bytes of code whose rule is unsupported.
    pub unsupported_bytes: u64,
    /// Bytes of code whose rules come from the code itself.
    pub synthesized_bytes: u64,
    /// Bytes of unwind information that were not read: too many.
    pub unread_bytes: u64,
    /// Bytes of code without any that were not looked at: too many.
    pub unseen_bytes: u64,
    /// Rows by reason, in the order of [`Reason::ALL`].
    unsupported: [usize; Reason::ALL.len()],
}

impl Stats {
    /// What is left out, because the file is large or makes no sense, in words.
    pub fn problem(&self) -> Option<String> {
        let Self { outside, dropped, unread_bytes, unseen_bytes, .. } = *self;
        let problems = [
            (unread_bytes, "bytes of its unwind information are not read"),
            (dropped as u64, "functions of its unwind information are left out"),
            (unseen_bytes, "bytes of its code without unwind information are not looked at"),
        ];
        let told: Vec<String> =
            problems.iter().filter(|(count, _)| *count > 0).map(|(count, what)| format!("{count} {what}")).collect();
        let large = (!told.is_empty()).then(|| format!("it is too large: {}", told.join(", ")));
        let outside = (outside > 0)
            .then(|| format!("{outside} entries of its unwind information are for addresses where it has no code"));
        let all: Vec<String> = large.into_iter().chain(outside).collect();
        (!all.is_empty()).then(|| all.join("; "))
    }

    /// Rows whose rule is unsupported.
    pub fn unsupported_rows(&self) -> usize {
        self.unsupported.iter().sum()
    }

    /// How many rows are unsupported for which reason; reasons that there are none of are left out.
    pub fn unsupported(&self) -> impl Iterator<Item = (Reason, usize)> {
        Reason::ALL.into_iter().zip(self.unsupported).filter(|(_, rows)| *rows > 0)
    }
}

impl Table {
    /// A table that says to follow frame pointers, for code without unwind information whose compiler keeps them.
    pub fn frame_pointers(text: Range<u64>) -> Self {
        let mut table = Self::default();
        if !text.is_empty() {
            table.push(text.start, rule(kind::FRAME_POINTERS, fp::SAME, 0, 0));
            table.push(text.end, NONE);
            table.stats.code_bytes = text.end - text.start;
        }
        table
    }

    /// From which address on which rule ([`tracer_ebpf::unwind::rule`]) holds. Addresses go up.
    pub fn rows(&self) -> &[(u64, u64)] {
        &self.rows
    }

    /// The rule that holds at an address.
    pub fn rule_at(&self, address: u64) -> u64 {
        let after = self.rows.partition_point(|row| row.0 <= address);
        after.checked_sub(1).and_then(|at| self.rows.get(at)).map_or(NONE, |row| row.1)
    }

    /// Says that `code`, which begins where the kernel starts the program, has no caller, unless something is said of it already: the first
    /// instructions of loaders are assembler without unwind information.
    pub fn mark_entry(&mut self, code: Range<u64>) {
        // What is described behind it is something else, and so is what follows that.
        let own = self.gaps(code.clone()).into_iter().next().filter(|gap| gap.start == code.start);
        if let Some(own) = own {
            self.fill(&[(own.start, rule(kind::STOP, fp::SAME, 0, 0)), (own.end, NONE)]);
        }
    }

    /// Says that all code of `text` of which nothing is said so far is Go's, which keeps frame pointers and has no unwind
    /// information that is needed.
    pub fn fill_with_go(&mut self, text: Range<u64>) {
        let rows = std::mem::take(&mut self.rows);
        let go = rule(kind::GO, fp::SAME, 0, 0);
        let boundaries = rows.iter().copied().chain([(u64::MAX, NONE)]);
        let mut before = (0, NONE);
        for next in boundaries {
            let (from, to) = (before.0, next.0);
            let gap = from.max(text.start)..to.min(text.end);
            if before.1 != NONE || gap.is_empty() {
                self.push(from, before.1);
            } else {
                self.push(from, NONE);
                self.push(gap.start, go);
                self.push(gap.end, NONE);
                self.stats.code_bytes += gap.end - gap.start;
            }
            before = next;
        }
    }

    /// Says that another rule holds for a part of the code.
    pub fn replace(&mut self, code: Range<u64>, rule: u64) {
        if code.is_empty() {
            return;
        }
        let behind = self.rule_at(code.end);
        let from = self.rows.partition_point(|row| row.0 < code.start);
        let to = self.rows.partition_point(|row| row.0 <= code.end);
        let rows = std::mem::take(&mut self.rows);
        self.rows.extend_from_slice(&rows[..from]);
        self.push(code.start, rule);
        self.push(code.end, behind);
        for &(address, rule) in &rows[to..] {
            self.push(address, rule);
        }
    }

    /// Takes rows for what nothing is said of so far. Their addresses go up, and the last one says that there is no rule.
    pub fn fill(&mut self, given: &[(u64, u64)]) {
        let Some(&(first, _)) = given.first() else { return };
        let (mut kept, mut own) = self.make_room(first, given.len());
        let (end, mut next, mut other) = (self.rows.len(), 0, NONE);
        let mut rule = kept.checked_sub(1).map_or(NONE, |before| self.rows[before].1);
        while next < given.len() || own < end {
            let address = given.get(next).map_or(u64::MAX, |row| row.0);
            if other == NONE {
                // What lies before the next one that is given stays as it is.
                let run = own + self.rows[own..end].partition_point(|row| row.0 < address);
                if let Some(last) = self.rows[own..run].last() {
                    rule = last.1;
                    kept = self.keep_all(kept, own..run);
                    own = run;
                    continue;
                }
            }
            let address = self.rows[own..end].first().map_or(address, |row| row.0.min(address));
            while let Some(row) = self.rows[own..end].first().filter(|row| row.0 == address) {
                (rule, own) = (row.1, own + 1);
            }
            while let Some(row) = given.get(next).filter(|row| row.0 <= address) {
                (other, next) = (row.1, next + 1);
            }
            kept = self.keep(kept, (address, if rule == NONE { other } else { rule }));
        }
        self.rows.truncate(kept);
    }

    /// Takes another table for what nothing is said of so far.
    pub(super) fn join(&mut self, other: &Self) {
        self.fill(&other.rows);
        let Stats { functions, unreadable, outside, overlapping, dropped, code_bytes, .. } = other.stats;
        let stats = &mut self.stats;
        stats.functions += functions;
        stats.unreadable += unreadable;
        stats.outside += outside;
        stats.overlapping += overlapping;
        stats.dropped += dropped;
        stats.code_bytes = stats.code_bytes.saturating_add(code_bytes);
        (stats.unsupported, stats.unsupported_bytes) = Default::default();
        self.count_unsupported();
    }

    /// Has the rule go on that holds before a short gap between functions, where `is_padding`: that saves two rows for most of them. It is
    /// asked for one gap after the other.
    pub fn bridge(&mut self, mut is_padding: impl FnMut(Range<u64>) -> bool) {
        let mut kept = 0;
        for index in 0..self.rows.len() {
            let (address, rule) = self.rows[index];
            let is_bridged = rule == NONE
                && index > 0
                && self
                    .rows
                    .get(index + 1)
                    .is_some_and(|next| next.0 - address < PADDING && is_padding(address..next.0));
            if !is_bridged {
                kept = self.keep(kept, (address, rule));
            }
        }
        self.rows.truncate(kept);
    }

    /// Says where code goes by a frame pointer and has moved the stack pointer to another stack: in each of its parts from where `find` says.
    pub fn mark_switches(&mut self, mut find: impl FnMut(Range<u64>) -> Option<u64>) {
        let parts = self.rows.windows(2).filter(|pair| pair[0].1 as u8 == kind::FP);
        let switches: Vec<(u64, u64)> = parts
            .filter_map(|pair| {
                let part = pair[0].0..pair[1].0;
                let from = find(part.clone()).filter(|from| part.contains(from))?;
                Some((from, pair[0].1 & !0xff | u64::from(kind::SWITCHED)))
            })
            .collect();
        // Most files have none, or a few.
        let Some(&(first, _)) = switches.first() else { return };
        let (mut kept, mut own) = self.make_room(first, switches.len());
        let end = self.rows.len();
        for switch in switches {
            let run = own + self.rows[own..end].partition_point(|row| row.0 <= switch.0);
            kept = self.keep_all(kept, own..run);
            kept = self.keep(kept, switch);
            own = run;
        }
        kept = self.keep_all(kept, own..end);
        self.rows.truncate(kept);
    }

    /// The parts of some code that nothing is said of.
    pub fn gaps(&self, code: Range<u64>) -> Vec<Range<u64>> {
        let inside = |row: &(u64, u64)| row.0 < code.end;
        let (before, after) = self.rows.split_at(self.rows.partition_point(|row| row.0 <= code.start));
        let (mut at, mut rule) = (code.start, before.last().map_or(NONE, |row| row.1));
        let mut gaps = Vec::new();
        after[..after.partition_point(inside)].iter().chain([&(code.end, NONE)]).for_each(|&(next, from_there)| {
            if rule == NONE && at < next {
                gaps.push(at..next);
            }
            (at, rule) = (next, from_there);
        });
        gaps
    }

    /// Moves rows from an address on up by so many places: how many rows stay, and where the others are. What is written between them
    /// does not come to those that are still to be read.
    fn make_room(&mut self, from: u64, places: usize) -> (usize, usize) {
        let (start, end) = (self.rows.partition_point(|row| row.0 < from), self.rows.len());
        self.rows.resize(end + places, (0, NONE));
        self.rows.copy_within(start..end, start + places);
        (start, start + places)
    }

    /// Puts a row behind the first `kept` ones, or in the place of the last of them: how many these are then.
    fn keep(&mut self, kept: usize, row: (u64, u64)) -> usize {
        let kept = kept - usize::from(kept > 0 && self.rows[kept - 1].0 == row.0);
        if kept.checked_sub(1).map_or(NONE, |last| self.rows[last].1) == row.1 {
            return kept;
        }
        self.rows[kept] = row;
        kept + 1
    }

    /// The same of rows of its own, neighbours of which differ.
    fn keep_all(&mut self, kept: usize, rows: Range<usize>) -> usize {
        let Some(&first) = self.rows[rows.clone()].first() else { return kept };
        let kept = self.keep(kept, first);
        self.rows.copy_within(rows.start + 1..rows.end, kept);
        kept + rows.len() - 1
    }

    /// Adds a row above all others, or in the place of the last one.
    fn push(&mut self, address: u64, rule: u64) {
        self.rows.pop_if(|last| last.0 == address);
        if self.rows.last().map_or(NONE, |row| row.1) != rule {
            self.rows.push((address, rule));
        }
    }

    /// How many of `size` bytes of code from `start` on have a rule that says who called.
    pub fn covered_bytes(&self, start: u64, size: u64) -> u64 {
        let end = start.saturating_add(size);
        let last = self.rows.last().map(|row| (u64::MAX, row.1));
        let ends = self.rows.iter().copied().skip(1).chain(last);
        self.rows
            .iter()
            .zip(ends)
            .filter(|((_, rule), _)| *rule != NONE && Reason::of(*rule).is_none())
            .map(|((from, _), (to, _))| to.min(end).saturating_sub((*from).max(start)))
            .sum()
    }

    fn count_unsupported(&mut self) {
        for pair in self.rows.windows(2) {
            let [(address, rule), (end, _)] = *pair else { continue };
            let Some(reason) = Reason::of(rule) else { continue };
            self.stats.unsupported[reason as usize] += 1;
            self.stats.unsupported_bytes += end - address;
        }
    }

    /// A table of given rows, which go up.
    #[cfg(test)]
    pub(super) fn of(rows: Vec<(u64, u64)>) -> Self {
        Self { rows, stats: Stats::default() }
    }
}

/// One function: its addresses and which of the collected rows are its own.
#[derive(Clone, Copy, Debug)]
struct Function {
    start: u64,
    end: u64,
    first_row: u32,
    rows: u32,
}

/// Takes in functions in any order; linkers leave them nearly sorted, but for hot and cold parts.
#[derive(Default)]
pub(super) struct Collector {
    functions: Vec<Function>,
    rows: Vec<(u64, u64)>,
    unreadable: usize,
    outside: usize,
    dropped: usize,
}

/// Takes in the rows of one function, whose addresses go up.
pub(super) struct Rows<'a> {
    function: &'a mut Function,
    rows: &'a mut Vec<(u64, u64)>,
}

impl Rows<'_> {
    pub(super) fn push(&mut self, address: u64, rule: u64) {
        let count = self.function.rows as usize;
        if count > MAX_FUNCTION_ROWS || (count > 0 && self.rows.last().is_some_and(|row| row.1 == rule)) {
            return;
        }
        let rule = if count == MAX_FUNCTION_ROWS { unsupported(Reason::TooLong) } else { rule };
        self.rows.push((address, rule));
        self.function.rows += 1;
    }
}

impl Collector {
    /// One for what so many bytes describe.
    pub(super) fn of(bytes: usize) -> Self {
        Self { rows: Vec::with_capacity((bytes / BYTES_OF_ROW).min(MAX_ROWS)), ..Self::default() }
    }

    /// Whether there is no function yet.
    pub(super) fn is_empty(&self) -> bool {
        self.functions.is_empty()
    }

    /// Entries that could not be read.
    pub(super) fn unreadable(&self) -> usize {
        self.unreadable
    }

    /// Entries for addresses where there is no code.
    pub(super) fn outside(&self) -> usize {
        self.outside
    }

    pub(super) fn count_unreadable(&mut self) {
        self.unreadable += 1;
    }

    pub(super) fn count_outside(&mut self) {
        self.outside += 1;
    }

    /// Begins a function, which is not empty; `None` when there are too many rows already.
    pub(super) fn function(&mut self, start: u64, end: u64) -> Option<Rows<'_>> {
        let first_row = u32::try_from(self.rows.len()).ok().filter(|_| self.rows.len() < MAX_ROWS);
        let Some(first_row) = first_row else {
            self.dropped += 1;
            return None;
        };
        self.functions.push(Function { start, end, first_row, rows: 0 });
        Some(Rows { function: self.functions.last_mut()?, rows: &mut self.rows })
    }

    /// All functions in order. Where they overlap the one that starts later holds, as it does for the C++ runtime, which
    /// searches a sorted list of starts; of those with the same start, the first one.
    pub(super) fn finish(mut self) -> Table {
        let collected = self.functions.len();
        self.functions.sort_by_key(|function| function.start);
        self.functions.dedup_by_key(|function| function.start);
        let mut table =
            Table { rows: Vec::with_capacity(self.rows.len() + self.functions.len()), stats: Stats::default() };
        let mut overlapping = collected - self.functions.len();
        let mut before: Option<u64> = None;
        for (index, function) in self.functions.iter().enumerate() {
            let next = self.functions.get(index + 1).map_or(u64::MAX, |next| next.start);
            let end = function.end.min(next);
            overlapping += usize::from(end < function.end);
            if let Some(before) = before {
                table.push(before, NONE);
            }
            let rows = self.rows.iter().skip(function.first_row as usize).take(function.rows as usize);
            for &(address, rule) in rows.take_while(|row| row.0 < end) {
                table.push(address, rule);
            }
            table.stats.code_bytes += end - function.start;
            before = Some(end);
        }
        if let Some(end) = before {
            table.push(end, NONE);
        }
        table.stats.functions = self.functions.len();
        table.stats.overlapping = overlapping;
        let stats = &mut table.stats;
        (stats.unreadable, stats.outside, stats.dropped) = (self.unreadable, self.outside, self.dropped);
        table.count_unsupported();
        table
    }
}

#[cfg(test)]
mod tests;
