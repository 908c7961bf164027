//! The outstanding blocks of one process, packed: 20 bytes a block and one byte of hash table, at most 48 bytes a block
//! at the tables' emptiest, as long as none is full of places where blocks have been.
//!
//! Many are in many tables, each of a bounded size (extendible hashing): they are never copied as a whole, neither to grow nor because somebody
//! looks at all of them meanwhile.

use std::{hash::BuildHasher as _, sync::Arc};

use hashbrown::{HashMap, HashTable, hash_table::Entry};

use super::StackIndex;
use crate::cow::Part;

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

/// Most blocks in one table: as many as 4,096 places of a table hold. In unit tests all but the smallest heaps have several.
const MOST: usize = if cfg!(test) { 8 } else { 3584 };
/// Least blocks for each table on average, when there is to be another one: tables stay, whatever becomes of their blocks.
const LEAST: usize = MOST / 8;
/// Most places of the directory for each table: where more would be needed hashes are alike on purpose, and blocks stay in one table.
const SPREAD: usize = 64;

/// Blocks by address.
pub(super) struct Blocks {
    /// Nobody outside knows which addresses hash alike.
    seed: u64,
    tables: Vec<Table>,
    /// Which of them has a block, by as many bits of its hash as make an index of this; none as long as there is no table.
    directory: Vec<u32>,
    /// Sizes that do not fit into 32 bits.
    large: Part<HashMap<u64, u64>>,
    len: usize,
    /// Time of the first block: ticks count from here.
    epoch: Option<u64>,
}

/// Those whose hashes are the same in so many bits.
struct Table {
    blocks: Part<HashTable<Packed>>,
    bits: u32,
}

/// What a process had at one moment.
pub(super) struct Shared {
    tables: Vec<Arc<HashTable<Packed>>>,
    large: Arc<HashMap<u64, u64>>,
    epoch: u64,
}

impl Shared {
    /// Calls `f` with every block. Those that were looked at are let go at once: whoever changes them has them alone again.
    pub(super) fn for_each(self, mut f: impl FnMut(Block)) {
        for table in self.tables {
            table.iter().for_each(|packed| f(packed.unpack(self.epoch, &self.large)));
        }
    }
}

impl Packed {
    #[inline]
    fn unpack(self, epoch: u64, large: &HashMap<u64, u64>) -> Block {
        let addr = self.addr;
        let size = if self.size == LARGE {
            large.get(&addr).copied().unwrap_or(u64::from(LARGE))
        } else {
            u64::from(self.size)
        };
        let time = (epoch + u64::from(self.tick)) * TICK;
        Block { addr, size, stack: StackIndex::from_raw(self.stack), time }
    }
}

impl Default for Blocks {
    fn default() -> Self {
        let seed = foldhash::fast::RandomState::default().hash_one(0u64);
        let (tables, directory, large) = (Vec::new(), Vec::new(), Part::default());
        Self { seed, tables, directory, large, len: 0, epoch: None }
    }
}

impl Blocks {
    /// Adds a block; returns the one that had its address, if any.
    #[inline]
    pub(super) fn insert(&mut self, block: Block) -> Option<Block> {
        let epoch = *self.epoch.get_or_insert(block.time / TICK);
        let tick = u32::try_from((block.time / TICK).saturating_sub(epoch)).unwrap_or(u32::MAX);
        let size = u32::try_from(block.size).unwrap_or(LARGE);
        let packed = Packed { addr: block.addr, size, stack: block.stack.raw(), tick };
        let (seed, hashed) = (self.seed, hash(self.seed, block.addr));
        let table = self.table_with_room(hashed);
        let previous = match table.entry(hashed, |other| other.addr == block.addr, |other| hash(seed, other.addr)) {
            Entry::Occupied(mut entry) => Some(std::mem::replace(entry.get_mut(), packed)),
            Entry::Vacant(entry) => {
                entry.insert(packed);
                None
            }
        };
        self.len += usize::from(previous.is_none());
        let previous = previous.map(|packed| self.unpack(packed));
        if previous.is_some_and(|previous| previous.size >= u64::from(LARGE)) {
            self.large.get_mut().remove(&block.addr);
        }
        if size == LARGE {
            self.large.get_mut().insert(block.addr, block.size);
        }
        previous
    }

    /// Removes the block at `addr`.
    #[inline]
    pub(super) fn remove(&mut self, addr: u64) -> Option<Block> {
        let hashed = hash(self.seed, addr);
        let at = self.place(hashed)?;
        let blocks = self.tables[at].blocks.get_mut();
        let entry = blocks.find_entry(hashed, |block| block.addr == addr).ok()?;
        let (packed, _) = entry.remove();
        self.len -= 1;
        let block = self.unpack(packed);
        if packed.size == LARGE {
            self.large.get_mut().remove(&addr);
        }
        Some(block)
    }

    pub(super) fn get(&self, addr: u64) -> Option<Block> {
        let hashed = hash(self.seed, addr);
        let blocks = self.tables[self.place(hashed)?].blocks.get();
        blocks.find(hashed, |block| block.addr == addr).map(|packed| self.unpack(*packed))
    }

    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// All that there are now.
    pub(super) fn share(&mut self) -> Shared {
        let tables = self.tables.iter_mut().map(|table| table.blocks.share()).collect();
        Shared { tables, large: self.large.share(), epoch: self.epoch.unwrap_or(0) }
    }

    #[inline]
    fn unpack(&self, packed: Packed) -> Block {
        packed.unpack(self.epoch.unwrap_or(0), self.large.get())
    }

    /// The table that has what hashes so.
    #[inline]
    fn place(&self, hash: u64) -> Option<usize> {
        let at = bits_for_tables(hash) & self.directory.len().wrapping_sub(1);
        self.directory.get(at).map(|table| *table as usize)
    }

    /// The same, with room for one more.
    #[inline]
    fn table_with_room(&mut self, hash: u64) -> &mut HashTable<Packed> {
        if self.tables.is_empty() {
            self.tables.push(Table { blocks: Part::default(), bits: 0 });
            self.directory.push(0);
        }
        loop {
            let at = self.place(hash).unwrap_or(0);
            if self.tables[at].blocks.get().len() < MOST || !self.may_split(at) {
                return self.tables[at].blocks.get_mut();
            }
            self.split(at);
        }
    }

    #[cold]
    fn may_split(&self, at: usize) -> bool {
        let has_place =
            1 << self.tables[at].bits < self.directory.len() || self.directory.len() < SPREAD * self.tables.len();
        has_place && LEAST * self.tables.len() <= self.len
    }

    /// Makes two of one table, by one more bit.
    #[cold]
    fn split(&mut self, at: usize) {
        let (new, seed) = (self.tables.len(), self.seed);
        let table = &mut self.tables[at];
        let bit = 1 << table.bits;
        table.bits += 1;
        let bits = table.bits;
        let halves = [(); 2].map(|()| HashTable::with_capacity(MOST / 2));
        let [mut zeros, mut ones] = halves;
        let mut own = bit;
        for packed in table.blocks.get().iter() {
            let hashed = hash(seed, packed.addr);
            own = bits_for_tables(hashed) & (bit - 1) | bit;
            let half = if bits_for_tables(hashed) & bit == 0 { &mut zeros } else { &mut ones };
            half.insert_unique(hashed, *packed, |other| hash(seed, other.addr));
        }
        table.blocks = Part::from(zeros);
        self.tables.push(Table { blocks: Part::from(ones), bits });
        if self.directory.len() == bit {
            self.directory.extend_from_within(..);
        }
        for place in self.directory.iter_mut().skip(own).step_by(2 * bit) {
            *place = new as u32;
        }
    }
}

/// The bits of a hash that tell which table it is in: others than tell places in a table.
#[inline]
fn bits_for_tables(hash: u64) -> usize {
    (hash >> 32) as usize
}

/// Folded multiply: addresses differ in few, regular bits, and the table wants the top and the bottom ones mixed.
#[inline]
fn hash(seed: u64, addr: u64) -> u64 {
    let product = u128::from(addr ^ seed) * 0x9e37_79b9_7f4a_7c15_u128;
    (product >> 64) as u64 ^ product as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    fn block(addr: u64, size: u64, time: u64) -> Block {
        Block { addr, size, stack: StackIndex::new(7), time }
    }

    fn sum(blocks: &mut Blocks) -> u64 {
        let mut sum = 0;
        blocks.share().for_each(|block| sum += block.size);
        sum
    }

    #[test]
    fn thousands_are_in_tables_of_a_bounded_size_and_none_is_lost() {
        let mut blocks = Blocks::default();
        let addr = |nth: u64| 0x7f00_0000_0000 + nth * 32;
        for nth in 0..100_000 {
            assert_eq!(blocks.insert(block(addr(nth), 1, 0)), None);
        }
        assert_eq!((blocks.len(), sum(&mut blocks)), (100_000, 100_000));
        assert!(blocks.tables.iter().all(|table| table.blocks.get().len() <= MOST));
        assert!(blocks.tables.len() < 100_000 / (MOST / 4), "{}", blocks.tables.len());
        let shared = blocks.share();
        for nth in (0..100_000).step_by(2) {
            assert_eq!(blocks.insert(block(addr(nth), 5, 0)), Some(block(addr(nth), 1, 0)));
            assert_eq!(blocks.remove(addr(nth + 1)), Some(block(addr(nth + 1), 1, 0)));
        }
        let mut before = 0;
        shared.for_each(|block| before += block.size);
        assert_eq!((before, blocks.len(), sum(&mut blocks)), (100_000, 50_000, 250_000));
        assert!((0..100_000).all(|nth| blocks.get(addr(nth)).is_some() == (nth % 2 == 0)));
    }

    /// What hashes alike in its last twelve of the bits that tell which table it is in.
    fn alike(seed: u64, bits: usize) -> impl Iterator<Item = u64> {
        (0u64..).map(|nth| nth * 16).filter(move |addr| bits_for_tables(hash(seed, *addr)) & 0xfff == bits)
    }

    #[test]
    fn addresses_that_hash_alike_do_not_take_ever_more_tables() {
        let mut blocks = Blocks::default();
        let alike = alike(blocks.seed, 0x123).take(100 * MOST);
        alike.for_each(|addr| assert_eq!(blocks.insert(block(addr, 1, 0)), None));
        assert_eq!((blocks.len(), sum(&mut blocks)), (100 * MOST, 100 * MOST as u64));
        assert!(blocks.directory.len() <= 2 * SPREAD * blocks.tables.len(), "{}", blocks.directory.len());
    }

    #[test]
    fn blocks_that_come_and_go_elsewhere_do_not_take_ever_more_tables() {
        let mut blocks = Blocks::default();
        for bits in 0..0x200 {
            let addresses: Vec<u64> = alike(blocks.seed, bits).take(2 * MOST).collect();
            addresses.iter().for_each(|addr| assert_eq!(blocks.insert(block(*addr, 1, 0)), None));
            addresses.iter().for_each(|addr| assert_eq!(blocks.remove(*addr), Some(block(*addr, 1, 0))));
        }
        assert!(blocks.tables.len() <= 2 * MOST / LEAST + 1, "{}", blocks.tables.len());
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
        assert_eq!(sum(&mut blocks), 1 + u64::from(LARGE) + (1 << 40));
        assert_eq!(blocks.insert(block(64, 3, 9 * TICK)), Some(block(64, 1 << 40, 8 * TICK)));
        assert_eq!(blocks.remove(64), Some(block(64, 3, 9 * TICK)));
        assert_eq!(blocks.remove(64), None);
        assert_eq!(blocks.remove(48), Some(block(48, u64::from(LARGE), 7 * TICK)));
        assert!(blocks.large.get().is_empty());
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
