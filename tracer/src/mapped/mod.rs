//! What processes have mapped themselves, beside what they have from an allocator: which addresses, by which stack.
//!
//! Plain values: no I/O, no clock, no thread. Memory that was there before recording began, or that a forked process has from its
//! parent, is nobody's here, unless it was reserved only and is made usable now.

mod owner;
mod ranges;
mod spans;

use std::ops::Range;

use hashbrown::HashMap;

use self::ranges::{Mapping, Ranges};
pub use self::{owner::Owner, ranges::Moves};
use crate::{
    cow::Part,
    event::{Change, Image, Remapping},
    heap::StackIndex,
    profile::MappedValues,
};

/// Memory that one stack has mapped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MappedUsage {
    /// Whose it is.
    pub image: Image,
    /// By whom.
    pub owner: Owner,
    /// How much.
    pub values: MappedValues,
    /// When the oldest of it was mapped, nanoseconds of CLOCK_MONOTONIC; `None` when nothing of it is left.
    pub oldest: Option<u64>,
}

/// What an image has mapped.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct OwnMemory {
    /// By address.
    pub parts: Vec<OwnPart>,
    /// Where memory that is nobody's has moved, since this was asked last.
    pub moves: Moves,
}

/// A part of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OwnPart {
    /// Its addresses.
    pub range: Range<u64>,
    /// Whose it is.
    pub owner: Owner,
    /// Whether it may not be used.
    pub reserved: bool,
    /// Whether nothing was there before recording began: else it was reserved then.
    pub is_new: bool,
}

/// Most ranges that one change adds, but for what stays where it was moved from: it cuts two, and what is moved may come in pieces.
const MOST_AT_ONCE: usize = 4;
/// Most ranges that one change of those that keep them may be about: a process could have each of its calls cost as many as it has.
const MOST_CHANGED: usize = 1 << 14;
/// The part of the room, as 1 of so many, that there is for what ended images had mapped.
const FOR_ENDED: usize = 4;

/// All that is mapped.
pub struct Mapped {
    images: HashMap<Image, Part<ImageRanges>>,
    /// What images have mapped that have ended.
    ended: HashMap<Image, Part<ByOwner>>,
    /// Ranges and owners of images that have not, and owners of those that have.
    taken: usize,
    kept: usize,
    /// Most ranges and owners of all processes, each of which may have 65,530 mappings (`vm.max_map_count`), and more ranges.
    most: usize,
    changes: u64,
    refused: u64,
}

/// Amounts, and when the oldest of it was mapped; `u64::MAX` when nothing is left.
type ByOwner = HashMap<Owner, (MappedValues, u64)>;

#[derive(Clone, Default)]
struct ImageRanges {
    ranges: Ranges,
    /// What was mapped so far, unmapped or not: bytes and ranges.
    ever: HashMap<Owner, (u64, u64)>,
}

impl ImageRanges {
    fn taken(&self) -> usize {
        self.ranges.len() + self.ever.len()
    }

    fn by_owner(&self) -> ByOwner {
        let mut by_owner = ByOwner::new();
        for (owner, &(bytes, count)) in &self.ever {
            let (values, _) = by_owner.entry(*owner).or_insert((MappedValues::default(), u64::MAX));
            (values.mapped_bytes, values.mapped_ranges) = (bytes, count);
        }
        for (range, mapping) in self.ranges.iter() {
            let (values, oldest) = by_owner.entry(mapping.owner).or_insert((MappedValues::default(), u64::MAX));
            let bytes = range.end - range.start;
            if mapping.reserved {
                values.reserved_bytes += bytes;
            } else {
                values.bytes += bytes;
                values.ranges += 1;
                *oldest = (*oldest).min(mapping.time);
            }
        }
        by_owner
    }
}

impl Mapped {
    /// Nothing yet, with room for so many ranges, and stacks that have mapped some. What is mapped beyond them is counted.
    pub fn with_room(most: usize) -> Self {
        Self { images: HashMap::new(), ended: HashMap::new(), taken: 0, kept: 0, most, changes: 0, refused: 0 }
    }

    /// A process has changed what it has mapped, by the stack `stack`.
    pub fn apply(&mut self, image: Image, remapping: &Remapping, stack: StackIndex) {
        let Remapping { change, range, old, kind, by_allocator, reserved, time, .. } = *remapping;
        let (range, old) = (&(range.0..range.1), &(old.0..old.1));
        self.changes += 1;
        if range.start >= range.end {
            return;
        }
        let this = self.images.entry(image).or_default().get_mut();
        let before = this.taken();
        let ImageRanges { ranges, ever } = this;
        let changed = match change {
            Change::Mapped | Change::Unmapped => 0,
            Change::Moved { .. } => ranges.within(old).take(MOST_CHANGED + 1).count(),
            Change::Opened { .. } | Change::Closed => ranges.within(range).take(MOST_CHANGED + 1).count(),
        };
        let more = match change {
            Change::Moved { left: true } => changed,
            // Between them there may be others, of which nothing is known.
            Change::Opened { of_file: false } | Change::Closed => changed + 1,
            _ => 0,
        };
        let is_full = self.taken + more + MOST_AT_ONCE > self.most;
        if is_full && !matches!(change, Change::Unmapped) || changed > MOST_CHANGED {
            // What is there now is not known; it is no memory of who had it before.
            ranges.unmap(range);
            if matches!(change, Change::Moved { left: false }) {
                ranges.unmap(old);
            }
            if matches!(change, Change::Moved { .. }) {
                ranges.has_moved();
            }
            self.refused += 1;
        } else {
            let owner = Owner { stack, kind, by_allocator };
            let new = Mapping { owner, time, reserved, from_before: false };
            let mut add = |owner: Owner, bytes: u64| {
                if bytes > 0 {
                    let ever = ever.entry(owner).or_default();
                    *ever = (ever.0.saturating_add(bytes), ever.1 + 1);
                }
            };
            match change {
                Change::Mapped => {
                    ranges.map(range, new);
                    if !reserved {
                        add(owner, range.end - range.start);
                    }
                }
                Change::Unmapped => ranges.unmap(range),
                Change::Moved { left } => {
                    let (owner, bytes) = ranges.relocate(old, range, left, new);
                    add(owner, bytes);
                }
                Change::Opened { of_file } => {
                    ranges.open(range, new, !of_file).into_iter().for_each(|(owner, bytes)| add(owner, bytes));
                }
                Change::Closed => ranges.close(range),
            }
        }
        self.taken = self.taken + this.taken() - before;
    }

    /// What an image had reserved before recording of it began, in order: what it opens of its memory from before is new if it is in that. It
    /// may have opened, closed or unmapped some since, as far as that was told.
    pub fn were_reserved(&mut self, image: Image, ranges: &[Range<u64>]) {
        let this = self.images.entry(image).or_default().get_mut();
        let before = this.taken();
        let room = self.most.saturating_sub(self.taken + MOST_AT_ONCE);
        if !this.ranges.were_reserved(ranges, room) {
            self.refused += 1;
        }
        self.taken = self.taken + this.taken() - before;
    }

    /// An image is of no interest any more.
    pub fn forget(&mut self, image: Image) {
        if let Some(gone) = self.images.remove(&image) {
            self.taken -= gone.get().taken();
        }
        self.take_ended(image);
    }

    /// An image has ended: what it had mapped is kept by stack, its ranges are not. `stand_in`: its stack that stands for others, where
    /// there is no room for all.
    pub fn end(&mut self, image: Image, mut stand_in: impl FnMut() -> StackIndex) {
        let Some(gone) = self.images.remove(&image) else { return };
        let gone = gone.get();
        self.taken -= gone.taken();
        gone.by_owner().into_iter().for_each(|(owner, held)| self.keep(image, owner, held, &mut stand_in));
    }

    /// What an ended image had mapped is told of another one, or by other stacks: `other` says by which, or by which where there is no
    /// room for all.
    pub fn merge(&mut self, from: Image, into: Image, mut other: impl FnMut(Option<StackIndex>) -> StackIndex) {
        for (owner, held) in self.take_ended(from) {
            let owner = Owner { stack: other(Some(owner.stack)), ..owner };
            self.keep(into, owner, held, || other(None));
        }
    }

    fn take_ended(&mut self, image: Image) -> ByOwner {
        let ended = self.ended.remove(&image).unwrap_or_default().into_inner();
        self.kept -= ended.len();
        ended
    }

    fn keep(
        &mut self,
        image: Image,
        mut owner: Owner,
        (values, oldest): (MappedValues, u64),
        stand_in: impl FnOnce() -> StackIndex,
    ) {
        let kept = self.ended.entry(image).or_default().get_mut();
        if self.kept >= self.most / FOR_ENDED && !kept.contains_key(&owner) {
            owner.stack = stand_in();
        }
        self.kept -= kept.len();
        let known = kept.entry(owner).or_insert((MappedValues::default(), u64::MAX));
        known.0 += values;
        known.1 = known.1.min(oldest);
        self.kept += kept.len();
    }

    /// Changes that were taken in, those included that there was no room for.
    pub fn changes(&self) -> u64 {
        self.changes
    }

    /// Changes that there was no room for.
    pub fn refused(&self) -> u64 {
        self.refused
    }

    /// All of it as it is now.
    pub fn share(&mut self) -> Self {
        let images = self.images.iter_mut().map(|(image, ranges)| (*image, ranges.share().into())).collect();
        let ended = self.ended.iter_mut().map(|(image, by_owner)| (*image, by_owner.share().into())).collect();
        Self { images, ended, ..*self }
    }

    /// What every stack has mapped, in no order.
    pub fn usage(&self) -> Vec<MappedUsage> {
        let live = self.images.iter().map(|(image, ranges)| (*image, ranges.get().by_owner()));
        let ended = self.ended.iter().map(|(image, by_owner)| (*image, by_owner.get().clone()));
        let of_image = |(image, by_owner): (Image, ByOwner)| {
            by_owner.into_iter().map(move |(owner, (values, oldest))| {
                let oldest = Some(oldest).filter(|oldest| *oldest != u64::MAX);
                MappedUsage { image, owner, values, oldest }
            })
        };
        live.chain(ended).flat_map(of_image).collect()
    }

    /// What an image has mapped, and what has moved since this was asked last.
    pub fn memory_of(&mut self, image: Image) -> OwnMemory {
        let Some(image) = self.images.get_mut(&image) else { return OwnMemory::default() };
        let part = |(range, mapping): (Range<u64>, Mapping)| {
            let Mapping { owner, reserved, from_before, .. } = mapping;
            OwnPart { range, owner, reserved, is_new: !from_before }
        };
        let parts = image.get().ranges.iter().map(part).collect();
        let moves = if image.get().ranges.has_moves() { image.get_mut().ranges.take_moves() } else { Moves::default() };
        OwnMemory { parts, moves }
    }
}

#[cfg(test)]
mod tests;
