//! What a process had when recording of it began, and what is known of that later.

use std::{io, ops::Range};

use super::{before::Before, resident};
use crate::{
    clock::monotonic,
    files::root::ProcessDirectory,
    mapped::OwnMemory,
    space::memory_map::{self, Usage},
};

/// What a process had when recording of it began.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Had {
    /// What it has now.
    All,
    /// What it has from its parent: it is recorded since that forked it.
    Parents,
    /// Nothing: it is recorded since its program began.
    Nothing,
}

/// Memory when recording began.
pub(super) struct Begin {
    pub(super) had: Had,
    pub(super) usage: Usage,
    /// `None` when the mappings could not be read one by one.
    pub(super) before: Option<Before>,
    /// When they had been read, nanoseconds of CLOCK_MONOTONIC.
    read: u64,
    /// Whether memory from before has moved, and it is not known where.
    pub(super) has_strayed: bool,
    /// Moves that are not taken into account yet: from where, to where, and when.
    moves: Vec<(Range<u64>, u64, u64)>,
}

impl Begin {
    /// Of a process that has this memory now. `by_page`: where in its mappings it lies is looked at, too.
    ///
    /// # Errors
    /// The mappings cannot be read one by one; what is known then.
    pub(super) fn new(
        had: Had,
        usage: Usage,
        directory: &ProcessDirectory,
        by_page: bool,
    ) -> Result<Self, (Self, io::Error)> {
        if had == Had::Nothing {
            let usage = Usage { anonymous: 0, ..usage };
            return Ok(Self { before: Some(Before::new(Vec::new())), ..Self::unread(had, usage) });
        }
        match memory_before(directory, by_page) {
            Ok(before) => Ok(Self { before: Some(before), read: monotonic(), ..Self::unread(had, usage) }),
            Err(error) => Err((Self::unread(had, usage), error)),
        }
    }

    /// Of a process whose mappings could not be read.
    pub(super) fn unread(had: Had, usage: Usage) -> Self {
        Self { had, usage, before: None, read: 0, has_strayed: false, moves: Vec::new() }
    }

    /// Takes into account what has been mapped since, and what had moved until `until`, nanoseconds of CLOCK_MONOTONIC. How many bytes of
    /// what was there when it was read are known to be new.
    pub(super) fn learn(&mut self, own: &OwnMemory, until: u64) -> u64 {
        self.has_strayed |= own.moves.is_short;
        let Some(before) = &mut self.before else { return 0 };
        self.moves.extend_from_slice(&own.moves.all);
        for (old, to, time) in self.moves.extract_if(.., |(.., time)| *time <= until) {
            // What had moved when it was read was found where it was.
            if time > self.read {
                before.relocate(&old, to);
            }
        }
        let new: Vec<_> = own.parts.iter().filter(|part| part.is_new).map(|part| part.range.clone()).collect();
        before.cut(&new)
    }

    /// Takes into account what a forked process has mapped by now: that it does not have from its parent.
    pub(super) fn leave_out(&mut self, own: &OwnMemory) {
        let new = self.learn(own, self.read);
        self.usage.anonymous = self.usage.anonymous.saturating_sub(new);
    }
}

/// Where a process has memory now.
fn memory_before(directory: &ProcessDirectory, by_page: bool) -> io::Result<Before> {
    let mut before = Before::new(memory_map::regions(directory)?);
    if by_page && let Ok(pagemap) = directory.file("pagemap") {
        before.refine(|range| resident::parts(&pagemap, range));
    }
    Ok(before)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        heap::StackIndex,
        mapped::{Moves, OwnPart, Owner},
        profile::MappedKind,
        space::memory_map::Region,
    };

    fn begin(had: Had, regions: &[(Range<u64>, u64)]) -> Begin {
        let region = |(range, anonymous): &(Range<u64>, u64)| Region {
            range: range.clone(),
            name: String::new(),
            anonymous: *anonymous,
            usable: true,
        };
        let anonymous = regions.iter().map(|(_, anonymous)| anonymous).sum();
        let before = Some(Before::new(regions.iter().map(region).collect()));
        Begin { before, read: 10, ..Begin::unread(had, Usage { anonymous, file: 0, shared: 0 }) }
    }

    fn own(parts: &[(Range<u64>, bool)], moves: &[(Range<u64>, u64, u64)]) -> OwnMemory {
        let owner = Owner { stack: StackIndex::from_raw(1), kind: MappedKind::Anonymous, by_allocator: false };
        let part = |(range, is_new): &(Range<u64>, bool)| OwnPart {
            range: range.clone(),
            owner,
            reserved: false,
            is_new: *is_new,
        };
        let moves = Moves { all: moves.to_vec(), is_short: false };
        OwnMemory { parts: parts.iter().map(part).collect(), moves }
    }

    fn left(begin: &Begin) -> Vec<(Range<u64>, u64)> {
        let regions = begin.before.as_ref().unwrap().regions().iter();
        regions.map(|region| (region.range.clone(), region.anonymous)).collect()
    }

    #[test]
    fn what_a_child_has_mapped_it_does_not_have_from_its_parent() {
        let mut begin = begin(Had::Parents, &[(0..100, 100), (200..300, 100), (400..500, 20)]);
        // What was reserved before may have had memory behind it.
        begin.leave_out(&own(&[(200..300, true), (400..450, true), (0..50, false)], &[]));
        assert_eq!((begin.usage.anonymous, left(&begin)), (120, vec![(0..100, 100), (450..500, 20)]));
    }

    #[test]
    fn what_has_moved_is_where_it_is_now() {
        let mut begin = begin(Had::All, &[(0..100, 100)]);
        let moves = [(0..10, 1000, 10), (10..20, 2000, 11), (20..30, 3000, 21)];
        begin.learn(&own(&[], &moves), 20);
        assert_eq!(
            left(&begin),
            [(0..10, 10), (20..100, 80), (2000..2010, 10)],
            "of those after it was read, until then"
        );
        begin.learn(&own(&[], &[]), 30);
        assert_eq!(left(&begin), [(0..10, 10), (30..100, 70), (2000..2010, 10), (3000..3010, 10)]);
        assert!(!begin.has_strayed);
        begin.learn(&OwnMemory { moves: Moves { is_short: true, ..Moves::default() }, ..own(&[], &[]) }, 30);
        assert!(begin.has_strayed);
    }
}
