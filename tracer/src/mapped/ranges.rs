//! The ranges of one address space: mapped over, cut, moved and opened as the kernel does it.

use std::{collections::BTreeMap, ops::Range};

use super::{
    owner::Owner,
    spans::{Spans, beside},
};
use crate::profile::MappedKind;

/// Memory from one call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Mapping {
    pub(super) owner: Owner,
    /// When it was mapped, nanoseconds of CLOCK_MONOTONIC.
    pub(super) time: u64,
    /// Addresses that may not be used.
    pub(super) reserved: bool,
    /// Whether the addresses were reserved before anybody looked: there may have been memory behind them.
    pub(super) from_before: bool,
}

/// Most moves of memory from before that are kept until somebody asks.
const MOST_MOVES: usize = 1 << 8;

/// Memory from before that has moved.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Moves {
    /// In the order in which that happened: from where, to where, and when, nanoseconds of CLOCK_MONOTONIC.
    pub all: Vec<(Range<u64>, u64, u64)>,
    /// Whether there were more, of which nothing is known.
    pub is_short: bool,
}

/// By their first addresses; none overlaps another.
#[derive(Clone, Default)]
pub(super) struct Ranges {
    known: BTreeMap<u64, (u64, Mapping)>,
    /// Nobody's memory that was closed: opened again, it is still nobody's.
    closed: Spans,
    /// Nobody's addresses that were reserved before recording began, and still are. `None`: nobody has said; all may be.
    reserved: Option<Spans>,
    /// Where nobody's memory has moved since this was asked last.
    moves: Moves,
}

impl Ranges {
    /// How many there are, those that are nobody's included.
    pub(super) fn len(&self) -> usize {
        self.known.len() + self.closed.len() + self.reserved.as_ref().map_or(0, Spans::len)
    }

    /// What was reserved before recording began, as it was found a moment ago, at most so many ranges: nobody's memory that was reserved
    /// by then and is opened is new, and no other. Whether there are no more.
    pub(super) fn were_reserved(&mut self, ranges: &[Range<u64>], most: usize) -> bool {
        let mut reserved = Spans::default();
        for range in ranges {
            if reserved.len() >= most {
                return false;
            }
            reserved.add(range);
        }
        // What has happened meanwhile is known.
        for (range, _) in self.iter() {
            reserved.take(&range);
        }
        for range in self.closed.ranges() {
            reserved.take(&range);
        }
        self.reserved = Some(reserved);
        true
    }

    /// All of them, by address.
    pub(super) fn iter(&self) -> impl Iterator<Item = (Range<u64>, Mapping)> {
        self.known.iter().map(|(start, (end, mapping))| (*start..*end, *mapping))
    }

    /// Those that have addresses in `range`, by address.
    pub(super) fn within(&self, range: &Range<u64>) -> impl Iterator<Item = (Range<u64>, Mapping)> {
        let before = self.known.range(..=range.start).next_back().map_or(range.start, |(start, _)| *start);
        let all = self.known.range(before..range.end.max(before));
        let from = range.start;
        all.map(|(start, (end, mapping))| (*start..*end, *mapping)).filter(move |(range, _)| range.end > from)
    }

    /// There is memory, whatever was there before.
    pub(super) fn map(&mut self, range: &Range<u64>, mapping: Mapping) {
        self.forget_before(range);
        self.take(range);
        self.known.insert(range.start, (range.end, mapping));
    }

    /// There is none any more.
    pub(super) fn unmap(&mut self, range: &Range<u64>) {
        self.forget_before(range);
        self.take(range);
    }

    /// What is there is neither memory nor addresses from before any more.
    fn forget_before(&mut self, range: &Range<u64>) {
        self.closed.take(range);
        self.reserved.iter_mut().for_each(|reserved| drop(reserved.take(range)));
    }

    /// Memory has moved from `old` to `new`, and what there is more of it is that of `more`, of the kind that the rest is of. It is
    /// empty where it was, but there, if it was `left`. Whose the addition is, and how many bytes.
    pub(super) fn relocate(&mut self, old: &Range<u64>, new: &Range<u64>, left: bool, more: Mapping) -> (Owner, u64) {
        let length = old.end.saturating_sub(old.start);
        let moved = self.take(old);
        self.keep_moves(old, new, &moved, more.time);
        self.relocate_before(old, new, left);
        if left {
            self.put(&moved);
        }
        self.take(new);
        let kept: Vec<_> = moved
            .iter()
            .map(|(range, mapping)| {
                let at = |address: u64| new.start.saturating_add(address - old.start).min(new.end);
                (at(range.start)..at(range.end), *mapping)
            })
            .collect();
        self.put(&kept);
        let Some(added) = new.start.checked_add(length).map(|start| start..new.end).filter(|added| !added.is_empty())
        else {
            return (more.owner, 0);
        };
        let last = moved.last().map(|(_, mapping)| *mapping);
        let (kind, reserved) = last.map_or((more.owner.kind, false), |last| (last.owner.kind, last.reserved));
        let more = Mapping { owner: Owner { kind, ..more.owner }, reserved, ..more };
        let bytes = if reserved { 0 } else { added.end - added.start };
        self.known.insert(added.start, (added.end, more));
        (more.owner, bytes)
    }

    /// What is nobody's has moved with the rest.
    fn relocate_before(&mut self, old: &Range<u64>, new: &Range<u64>, left: bool) {
        let closed = self.closed.take(old);
        let reserved = self.reserved.as_mut().map_or_else(Vec::new, |reserved| reserved.take(old));
        self.forget_before(new);
        let at = |address: u64| new.start.saturating_add(address - old.start).min(new.end);
        let moved = |part: &Range<u64>| at(part.start)..at(part.end);
        closed.iter().for_each(|part| self.closed.add(&moved(part)));
        if let Some(all) = &mut self.reserved {
            reserved.iter().for_each(|part| all.add(&moved(part)));
            reserved.iter().filter(|_| left).for_each(|part| all.add(part));
        }
    }

    /// Keeps what has moved beside the parts that are known.
    fn keep_moves(&mut self, old: &Range<u64>, new: &Range<u64>, known: &[(Range<u64>, Mapping)], time: u64) {
        let end = old.end.min(old.start.saturating_add(new.end.saturating_sub(new.start)));
        let mut at = old.start;
        let ends = known.iter().map(|(part, _)| part.clone()).chain(std::iter::once(end..end));
        for part in ends {
            let unknown = at..part.start.min(end);
            at = part.end;
            if unknown.is_empty() || old.start == new.start {
                continue;
            }
            if self.moves.all.len() < MOST_MOVES {
                let to = new.start.saturating_add(unknown.start - old.start);
                self.moves.all.push((unknown, to, time));
            } else {
                self.moves.is_short = true;
            }
        }
    }

    /// Whether there is something to [take](Self::take_moves).
    pub(super) fn has_moves(&self) -> bool {
        self.moves != Moves::default()
    }

    /// Where nobody's memory has moved since this was called last.
    pub(super) fn take_moves(&mut self) -> Moves {
        std::mem::take(&mut self.moves)
    }

    /// Memory has moved, and nobody knows which.
    pub(super) fn has_moved(&mut self) {
        self.moves.is_short = true;
    }

    /// What was reserved may be used from now on, and is whose call that was. How many bytes of which kind that is. `all`: so is what is not
    /// known, which was reserved before anybody looked.
    pub(super) fn open(&mut self, range: &Range<u64>, by: Mapping, all: bool) -> Vec<(Owner, u64)> {
        let mut opened = Vec::new();
        let mut known = self.take(range);
        if all {
            let reserved = Mapping { reserved: true, from_before: true, ..by };
            for unknown in beside(range, known.iter().map(|(part, _)| part.clone())) {
                // What was in use before is no memory that comes.
                let used = self.closed.take(&unknown);
                let new = match &mut self.reserved {
                    // Shared memory is not among those.
                    Some(reserved) if by.owner.kind != MappedKind::Shared => reserved.take(&unknown),
                    _ => beside(&unknown, used),
                };
                known.extend(new.into_iter().map(|part| (part, reserved)));
            }
        }
        let parts = known.into_iter().map(|(range, mapping)| {
            if !mapping.reserved {
                return (range, mapping);
            }
            let owner = Owner { kind: mapping.owner.kind, ..by.owner };
            opened.push((owner, range.end - range.start));
            (range, Mapping { owner, time: by.time, reserved: false, ..mapping })
        });
        let parts: Vec<_> = parts.collect();
        self.put(&parts);
        opened
    }

    /// What is there may not be used any more.
    pub(super) fn close(&mut self, range: &Range<u64>) {
        let known = self.take(range);
        for unknown in beside(range, known.iter().map(|(part, _)| part.clone())) {
            // What was reserved already had no memory.
            let reserved = self.reserved.as_ref().map_or_else(Vec::new, |reserved| reserved.within(&unknown));
            beside(&unknown, reserved).iter().for_each(|used| self.closed.add(used));
        }
        let closed: Vec<_> = known.into_iter().map(|(r, m)| (r, Mapping { reserved: true, ..m })).collect();
        self.put(&closed);
    }

    fn put(&mut self, parts: &[(Range<u64>, Mapping)]) {
        for (range, mapping) in parts.iter().filter(|(range, _)| !range.is_empty()) {
            self.known.insert(range.start, (range.end, *mapping));
        }
    }

    /// Takes out what is in a range, cutting those that reach beyond it.
    fn take(&mut self, range: &Range<u64>) -> Vec<(Range<u64>, Mapping)> {
        if range.is_empty() {
            return Vec::new();
        }
        let hit: Vec<_> = self.within(range).collect();
        let mut taken = Vec::with_capacity(hit.len());
        for (whole, mapping) in hit {
            self.known.remove(&whole.start);
            if whole.start < range.start {
                self.known.insert(whole.start, (range.start, mapping));
            }
            if range.end < whole.end {
                self.known.insert(range.end, (whole.end, mapping));
            }
            taken.push((whole.start.max(range.start)..whole.end.min(range.end), mapping));
        }
        taken
    }
}
