//! The reading end of the queue of records, which is memory that is shared with the BPF programs; and the long records, which
//! have but their places in it.

use std::{
    collections::VecDeque,
    io,
    os::fd::BorrowedFd,
    sync::atomic::{AtomicU64, Ordering},
};

use tracer_ebpf::{Header, Positions, kind};

use super::shared_array::SharedArray;

/// A slot, which others write.
type Slot = [AtomicU64; 2];
const _: () = assert!(size_of::<Slot>() == size_of::<tracer_ebpf::Slot>());
/// Bytes of a slot.
pub(super) const SLOT: u32 = size_of::<Slot>() as u32;
/// Free slots are given back so many at a time: those who write look at how many there are, on other processors.
const GIVEN_BACK: u64 = 256;

/// Belongs to one thread.
pub(super) struct Queue {
    slots: SharedArray<Slot>,
    positions: SharedArray<Positions>,
    /// Number of the next slot, of all that there have been.
    next: u64,
    /// Up to where they were given back.
    free: u64,
}

/// What is at the head of the queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Record {
    /// Its first word.
    pub(super) header: Header,
    /// Those behind it; those that it has not are 0.
    pub(super) words: [u64; 3],
    slots: u64,
}

impl Record {
    /// How many words it has.
    pub(super) fn length(&self) -> usize {
        match self.header.kind() {
            kind::PART => 3,
            _ => 2 * self.slots as usize,
        }
    }
}

impl Queue {
    /// Of the maps QUEUE, which has `count` slots, a power of two, and POSITIONS.
    pub(super) fn map(slots: BorrowedFd<'_>, count: u32, positions: BorrowedFd<'_>) -> io::Result<Self> {
        Ok(Self {
            slots: SharedArray::map(slots, count as usize)?,
            positions: SharedArray::map(positions, 1)?,
            next: 0,
            free: 0,
        })
    }

    /// How large it is, bytes.
    pub(super) fn bytes(&self) -> u64 {
        self.slots.count() as u64 * u64::from(SLOT)
    }

    /// The oldest record, if there is one: it stays.
    pub(super) fn head(&self) -> Option<Record> {
        let [first, second] = self.slot(self.next);
        // Written last.
        let header = Header(first.load(Ordering::Acquire));
        if header.0 == 0 {
            return None;
        }
        let long = matches!(header.kind(), kind::ALLOC | kind::REALLOC_DONE | kind::PART);
        let mut words = [second.load(Ordering::Relaxed), 0, 0];
        if long {
            for (word, shared) in words[1..].iter_mut().zip(self.slot(self.next + 1)) {
                *word = shared.load(Ordering::Relaxed);
            }
        }
        Some(Record { header, words, slots: if long { 2 } else { 1 } })
    }

    /// The oldest record is done with.
    pub(super) fn advance(&mut self, record: &Record) {
        for number in self.next..self.next + record.slots {
            self.slot(number)[0].store(0, Ordering::Relaxed);
        }
        self.next += record.slots;
        // Of a small queue it would be all.
        if self.next - self.free >= GIVEN_BACK.min(self.slots.count() as u64 / 8) {
            self.give_back();
        }
    }

    /// Gives back the slots of all records that are done with.
    pub(super) fn give_back(&mut self) {
        if self.free == self.next {
            return;
        }
        self.free = self.next;
        // SAFETY: mapped as long as `self` is, and aligned. Nobody else writes this word.
        let begin = unsafe { AtomicU64::from_ptr(&raw mut (*self.positions.start().as_ptr()).begin) };
        begin.store(self.free, Ordering::Release);
    }

    /// How many slots were claimed of which the first one is not filled yet: it is being written.
    pub(super) fn unfinished(&self) -> u64 {
        if self.head().is_some() {
            return 0;
        }
        // SAFETY: as in `give_back`; this word is only read.
        let end = unsafe { AtomicU64::from_ptr(&raw mut (*self.positions.start().as_ptr()).end) };
        end.load(Ordering::Acquire) - self.next
    }

    fn slot(&self, number: u64) -> &Slot {
        let index = number as usize & (self.slots.count() - 1);
        // SAFETY: there are so many, a power of two.
        unsafe { self.slots.start().add(index).as_ref() }
    }
}

/// Records from the ring buffer, which have their turn when the queue says so.
#[derive(Default)]
pub(super) struct LongRecords {
    /// Those that were met before it.
    early: VecDeque<Vec<u8>>,
}

impl LongRecords {
    /// The record that has this header: the oldest, as those of one thread are in the same order in the queue and in the ring buffer, of
    /// which `next` gives the next one. `None` while one that is still being written is before it.
    pub(super) fn take(&mut self, header: u64, mut next: impl FnMut() -> Option<Vec<u8>>) -> Option<Vec<u8>> {
        let header = header.to_ne_bytes();
        if let Some(at) = self.early.iter().position(|record| record.starts_with(&header)) {
            return self.early.remove(at);
        }
        loop {
            let record = next()?;
            if record.starts_with(&header) {
                return Some(record);
            }
            self.keep(record);
        }
    }

    /// A record that has no turn yet, unless it never has.
    pub(super) fn keep(&mut self, record: Vec<u8>) {
        let is_bell = |head: &[u8; 8]| Header(u64::from_ne_bytes(*head)).kind() == kind::BELL;
        if !record.first_chunk().is_some_and(is_bell) {
            self.early.push_back(record);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::{AsFd as _, OwnedFd};

    use rustix::fs::{MemfdFlags, ftruncate, memfd_create};

    use super::*;

    const COUNT: u32 = 32;

    /// Memory in the place of a map's, and a view of it as the programs have it.
    fn memory<T>(count: usize) -> (OwnedFd, SharedArray<T>) {
        let file = memfd_create("map", MemfdFlags::CLOEXEC).unwrap();
        ftruncate(&file, (size_of::<T>() * count) as u64).unwrap();
        let shared = SharedArray::map(file.as_fd(), count).unwrap();
        (file, shared)
    }

    /// The queue, and who writes into it.
    fn queue() -> (Queue, Writer) {
        let ((slots, own_slots), (positions, own_positions)) = (memory(COUNT as usize), memory(1));
        let queue = Queue::map(slots.as_fd(), COUNT, positions.as_fd()).unwrap();
        (queue, Writer { slots: own_slots, positions: own_positions })
    }

    struct Writer {
        slots: SharedArray<Slot>,
        positions: SharedArray<Positions>,
    }

    impl Writer {
        fn write(&self, number: u64, words: [u64; 2]) {
            let index = number as usize % COUNT as usize;
            // SAFETY: there are so many.
            let slot = unsafe { self.slots.start().add(index).as_ref() };
            slot[1].store(words[1], Ordering::Relaxed);
            slot[0].store(words[0], Ordering::Release);
        }

        fn begin(&self) -> u64 {
            // SAFETY: mapped, and aligned.
            unsafe { AtomicU64::from_ptr(&raw mut (*self.positions.start().as_ptr()).begin) }.load(Ordering::Acquire)
        }
    }

    fn header(kind: u8) -> Header {
        Header::new(kind, 3, 0, 4)
    }

    #[test]
    fn records_come_in_order_and_round_the_end_of_the_memory() {
        let (mut queue, writer) = queue();
        assert_eq!(queue.head(), None);
        for round in 0..20 {
            let number = 3 * round;
            writer.write(number, [header(kind::FREE).0, round]);
            // Its second slot looks like the beginning of a record.
            writer.write(number + 2, [header(kind::FREE).0, 5]);
            writer.write(number + 1, [header(kind::ALLOC).0, 7]);
            let free = queue.head().unwrap();
            assert_eq!((free.header, free.words[0], free.length()), (header(kind::FREE), round, 2));
            queue.advance(&free);
            let block = queue.head().unwrap();
            assert_eq!((block.header, block.length()), (header(kind::ALLOC), 4));
            assert_eq!(block.words, [7, header(kind::FREE).0, 5]);
            queue.advance(&block);
            assert_eq!(queue.head(), None, "what was read is there again");
        }
    }

    #[test]
    fn what_was_claimed_is_waited_for() {
        let (queue, writer) = queue();
        assert_eq!(queue.unfinished(), 0);
        // SAFETY: mapped, and aligned.
        let end = unsafe { AtomicU64::from_ptr(&raw mut (*writer.positions.start().as_ptr()).end) };
        end.store(2, Ordering::Release);
        assert_eq!(queue.unfinished(), 2);
        writer.write(0, [header(kind::FREE).0, 1]);
        assert_eq!(queue.unfinished(), 0, "the first one can be read");
    }

    #[test]
    fn slots_are_given_back_empty() {
        let (mut queue, writer) = queue();
        writer.write(0, [header(kind::PART).0, 1]);
        writer.write(1, [header(kind::FREE).0, 2]);
        let part = queue.head().unwrap();
        assert_eq!((part.words, part.length()), ([1, header(kind::FREE).0, 2], 3));
        queue.advance(&part);
        assert_eq!(writer.begin(), 0);
        queue.give_back();
        assert_eq!(writer.begin(), 2);
        // SAFETY: there are so many.
        let used = |number: usize| unsafe { writer.slots.start().add(number).as_ref() }[0].load(Ordering::Acquire);
        assert_eq!((used(0), used(1)), (0, 0));
    }

    #[test]
    fn long_records_wait_for_their_turn() {
        let long = |kind, n: u8| [&header(kind).0.to_ne_bytes()[..], &[n]].concat();
        let bell = Header::new(kind::BELL, 0, 0, 0).0.to_ne_bytes().to_vec();
        let mut ring = VecDeque::from([long(kind::STACK, 1), bell, long(kind::BEGAN, 2), long(kind::STACK, 3)]);
        let mut records = LongRecords::default();
        let mut take = |kind| records.take(header(kind).0, || ring.pop_front());
        assert_eq!(take(kind::BEGAN), Some(long(kind::BEGAN, 2)));
        assert_eq!(take(kind::STACK), Some(long(kind::STACK, 1)));
        assert_eq!(take(kind::STACK), Some(long(kind::STACK, 3)));
        assert_eq!(take(kind::BEGAN), None, "it is still being written");
        assert!(records.early.is_empty(), "nothing waits that has no turn");
    }
}
