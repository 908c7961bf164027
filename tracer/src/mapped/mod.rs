//! What processes have mapped themselves, beside what they have from an allocator: which addresses, by which stack.
//!
//! Plain values: no I/O, no clock, no thread. Memory that was there before recording began, or that a forked process has from its
//! parent, is nobody's here.

mod owner;
mod ranges;

use std::ops::Range;

use hashbrown::HashMap;

pub use self::owner::Owner;
use self::ranges::{Mapping, Ranges};
use crate::{
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

/// Most ranges that one change adds: it cuts two, and what is moved may come in pieces.
const MOST_AT_ONCE: usize = 4;

/// All that is mapped.
pub struct Mapped {
    images: HashMap<Image, ImageRanges>,
    ranges: usize,
    /// Most ranges of all processes, each of which may have 65,530 (`vm.max_map_count`).
    most: usize,
    refused: u64,
}

#[derive(Default)]
struct ImageRanges {
    ranges: Ranges,
    /// What was mapped so far, unmapped or not: bytes and ranges.
    ever: HashMap<Owner, (u64, u64)>,
}

impl Mapped {
    /// Nothing yet, with room for so many ranges. What is mapped beyond them is counted.
    pub fn with_room(most: usize) -> Self {
        Self { images: HashMap::new(), ranges: 0, most, refused: 0 }
    }

    /// A process has changed what it has mapped, by the stack `stack`.
    pub fn apply(&mut self, image: Image, remapping: &Remapping, stack: StackIndex) {
        let Remapping { change, range, old, kind, by_allocator, reserved, time, .. } = *remapping;
        let (range, old) = (&(range.0..range.1), &(old.0..old.1));
        if range.start >= range.end {
            return;
        }
        let ImageRanges { ranges, ever } = self.images.entry(image).or_default();
        let before = ranges.len();
        if self.ranges + MOST_AT_ONCE > self.most && !matches!(change, Change::Unmapped) {
            // What is there now is not known; it is no memory of who had it before.
            ranges.unmap(range);
            self.refused += 1;
        } else {
            let owner = Owner { stack, kind, by_allocator };
            let new = Mapping { owner, time, reserved };
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
                Change::Opened => ranges.open(range, new).into_iter().for_each(|(owner, bytes)| add(owner, bytes)),
                Change::Closed => ranges.close(range),
            }
        }
        self.ranges = self.ranges + ranges.len() - before;
    }

    /// An image is of no interest any more.
    pub fn forget(&mut self, image: Image) {
        if let Some(gone) = self.images.remove(&image) {
            self.ranges -= gone.ranges.len();
        }
    }

    /// Changes that there was no room for.
    pub fn refused(&self) -> u64 {
        self.refused
    }

    /// What every stack has mapped, in no order.
    pub fn usage(&self) -> Vec<MappedUsage> {
        let mut all = Vec::new();
        for (image, ImageRanges { ranges, ever }) in &self.images {
            let mut by_owner: HashMap<Owner, (MappedValues, u64)> = HashMap::new();
            for (owner, &(bytes, count)) in ever {
                let (values, _) = by_owner.entry(*owner).or_insert((MappedValues::default(), u64::MAX));
                (values.mapped_bytes, values.mapped_ranges) = (bytes, count);
            }
            for (range, mapping) in ranges.iter() {
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
            all.extend(by_owner.into_iter().map(|(owner, (values, oldest))| MappedUsage {
                image: *image,
                owner,
                values,
                oldest: Some(oldest).filter(|oldest| *oldest != u64::MAX),
            }));
        }
        all
    }

    /// The memory of an image that it has mapped and may use, by address, and whose it is.
    pub fn memory_of(&self, image: Image) -> Vec<(Range<u64>, Owner)> {
        let ranges = self.images.get(&image).into_iter().flat_map(|image| image.ranges.iter());
        ranges.filter(|(_, mapping)| !mapping.reserved).map(|(range, mapping)| (range, mapping.owner)).collect()
    }
}

#[cfg(test)]
mod tests;
