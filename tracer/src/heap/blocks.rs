//! The outstanding blocks of one process, packed: 20 bytes a block and one byte of hash table, at most 48 bytes a block
//! at the table's emptiest.

use hashbrown::{HashMap, HashTable, hash_table::Entry};

use super::StackIndex;

/// A block that was allocated and not freed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Block {
    pub(super) addr: u64,
    /// Bytes.
    pub(super) size: u64,
    pub(super) stack: StackIndex,
    /// Nanoseconds of CLOCK_MONOTONIC, rounded down to a multiple of [`TICK`] once stored.
    pub(super) time: u64,
}

/// Resolution of a stored block's time, nanoseconds: about a millisecond. 32 bits of it last for 52 days of uptime of
/// the trace; later blocks keep the last tick.
pub(super) const TICK: u64 = 1 << 20;

/// Size that stands for "look into `large`".
const LARGE: u32 = u32::MAX;

#[derive(Clone, Copy)]
#[repr(C, packed(4))]
struct Packed {
    addr: u64,
    size: u32,
    stack: u32,
    tick: u32,
}

const _: () = assert!(size_of::<Packed>() == 20);

/// Blocks by address.
#[derive(Default)]
pub(super) struct Blocks {
    table: HashTable<Packed>,
    /// Sizes that do not fit into 32 bits.
    large: HashMap<u64, u64>,
    /// Time of the first block: ticks count from here.
    epoch: Option<u64>,
}

impl Blocks {
    /// Adds a block; returns the one that had its address, if any.
    #[inline]
    pub(super) fn insert(&mut self, block: Block) -> Option<Block> {
        let epoch = *self.epoch.get_or_insert(block.time / TICK);
        let tick = u32::try_from((block.time / TICK).saturating_sub(epoch)).unwrap_or(u32::MAX);
        let size = u32::try_from(block.size).unwrap_or(LARGE);
        let packed = Packed { addr: block.addr, size, stack: block.stack.raw(), tick };
        let entry = self.table.entry(hash(block.addr), |other| other.addr == block.addr, |other| hash(other.addr));
        let previous = match entry {
            Entry::Occupied(mut entry) => Some(std::mem::replace(entry.get_mut(), packed)),
            Entry::Vacant(entry) => {
                entry.insert(packed);
                None
            }
        };
        let previous = previous.map(|packed| self.unpack(packed));
        if previous.is_some_and(|previous| previous.size >= u64::from(LARGE)) {
            self.large.remove(&block.addr);
        }
        if size == LARGE {
            self.large.insert(block.addr, block.size);
        }
        previous
    }

    /// Removes the block at `addr`.
    #[inline]
    pub(super) fn remove(&mut self, addr: u64) -> Option<Block> {
        let entry = self.table.find_entry(hash(addr), |block| block.addr == addr).ok()?;
        let (packed, _) = entry.remove();
        let block = self.unpack(packed);
        if packed.size == LARGE {
            self.large.remove(&addr);
        }
        Some(block)
    }

    pub(super) fn get(&self, addr: u64) -> Option<Block> {
        self.table.find(hash(addr), |block| block.addr == addr).map(|packed| self.unpack(*packed))
    }

    pub(super) fn len(&self) -> usize {
        self.table.len()
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = Block> {
        self.table.iter().map(|packed| self.unpack(*packed))
    }

    #[inline]
    fn unpack(&self, packed: Packed) -> Block {
        let addr = packed.addr;
        let size = if packed.size == LARGE {
            self.large.get(&addr).copied().unwrap_or(u64::from(LARGE))
        } else {
            u64::from(packed.size)
        };
        let time = (self.epoch.unwrap_or(0) + u64::from(packed.tick)) * TICK;
        Block { addr, size, stack: StackIndex::from_raw(packed.stack), time }
    }
}

/// Folded multiply: addresses differ in few, regular bits, and the table wants the top and the bottom ones mixed.
#[inline]
fn hash(addr: u64) -> u64 {
    let product = u128::from(addr) * 0x9e37_79b9_7f4a_7c15_u128;
    (product >> 64) as u64 ^ product as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    fn block(addr: u64, size: u64, time: u64) -> Block {
        Block { addr, size, stack: StackIndex::new(7), time }
    }

    #[test]
    fn blocks_come_back_as_they_went_in() {
        let mut blocks = Blocks::default();
        for b in [
            block(16, 0, 5 * TICK),
            block(32, 1, 6 * TICK),
            block(48, u64::from(LARGE), 7 * TICK),
            block(64, 1 << 40, 8 * TICK),
        ] {
            assert_eq!(blocks.insert(b), None);
            assert_eq!(blocks.get(b.addr), Some(b));
        }
        assert_eq!(blocks.iter().map(|b| b.size).sum::<u64>(), 1 + u64::from(LARGE) + (1 << 40));
        assert_eq!(blocks.insert(block(64, 3, 9 * TICK)), Some(block(64, 1 << 40, 8 * TICK)));
        assert_eq!(blocks.remove(64), Some(block(64, 3, 9 * TICK)));
        assert_eq!(blocks.remove(64), None);
        assert_eq!(blocks.remove(48), Some(block(48, u64::from(LARGE), 7 * TICK)));
        assert!(blocks.large.is_empty());
    }

    #[test]
    fn times_are_rounded_down_and_end_at_the_last_tick() {
        let mut blocks = Blocks::default();
        blocks.insert(block(1, 1, 10 * TICK + 5));
        assert_eq!(blocks.get(1).unwrap().time, 10 * TICK);
        blocks.insert(block(2, 1, u64::MAX));
        assert_eq!(blocks.get(2).unwrap().time, (10 + u64::from(u32::MAX)) * TICK);
        // Before the first block: not representable, the first tick is the nearest.
        blocks.insert(block(3, 1, 0));
        assert_eq!(blocks.get(3).unwrap().time, 10 * TICK);
    }
}
