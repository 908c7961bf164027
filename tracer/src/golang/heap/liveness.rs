//! Whether objects of a Go program are alive, by the runtime's own bits: after each cycle of the garbage collector a span says
//! by a bit of each object whether the sweep left it (mheap.go, mgcsweep.go and mbitmap.go in the runtime). A span that has not
//! been swept yet says nothing.

use hashbrown::{HashMap, HashSet};

use super::sample::{PAGE_SHIFT, Sample};
use crate::{
    golang::{
        ReadMemory, Unreadable,
        bytes::{u32_at, u64_at},
        layout::Heap,
    },
    process::memory::Span as Part,
};

/// Bytes of an arena (`heapArenaBytes`), and what is added to addresses before they are cut into arenas (`arenaBaseOffset`), on
/// 64-bit Linux.
pub(super) const ARENA_SHIFT: u32 = 26;
pub(super) const ARENA_BASE: u64 = 0x8000_0000_0000;
const PAGES_PER_ARENA: u64 = 1 << (ARENA_SHIFT - PAGE_SHIFT);
/// Arenas that there can be.
const MAX_ARENAS: u64 = 1 << (48 - ARENA_SHIFT);
/// `mSpanInUse`.
pub(super) const IN_USE: u8 = 1;

/// Of one object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Answer {
    Alive,
    Ended,
    Undecided,
}

/// Whether one state of the garbage collector is another one, or comes after it; both wrap around.
pub(super) fn is_since(sweepgen: u32, other: u32) -> bool {
    sweepgen.wrapping_sub(other) < 1 << 31
}

/// One look at the bits of many objects.
pub(super) struct Question<'a> {
    pub(super) heap: Heap,
    pub(super) memory: &'a ReadMemory<'a>,
    /// `mheap_.sweepgen`.
    pub(super) sweepgen: u32,
    /// Address of `mheap_.arenas`.
    pub(super) arenas: u64,
    /// Arenas that are known, by index; more are added.
    pub(super) known: &'a mut HashMap<u64, u64>,
}

impl Question<'_> {
    /// An answer for each object.
    ///
    /// # Errors
    /// Memory cannot be read.
    pub(super) fn ask(&mut self, samples: &[Sample]) -> Result<Vec<Answer>, Unreadable> {
        let spans = self.spans_of(samples)?;
        let distinct: Vec<u64> =
            spans.iter().copied().filter(|span| *span != 0).collect::<HashSet<_>>().into_iter().collect();
        let size = self.heap.span.size;
        let read = self.read(&distinct, size)?;
        let content: HashMap<u64, &[u8]> =
            distinct.iter().zip(read.chunks_exact(size)).map(|(span, bytes)| (*span, bytes)).collect();
        let mut answers = Vec::with_capacity(samples.len());
        // Of those that only their bit can tell: which, the address of the byte that it is in, and its place there.
        let mut bits: Vec<(usize, u64, u32)> = Vec::new();
        for (nth, (sample, span)) in samples.iter().zip(&spans).enumerate() {
            let answer = match content.get(span) {
                Some(content) => self.without_bits(sample, content),
                None => Ok(Answer::Ended),
            };
            answers.push(*answer.as_ref().unwrap_or(&Answer::Undecided));
            if let Err((byte, bit)) = answer {
                bits.push((nth, byte, bit));
            }
        }
        let places: Vec<u64> = bits.iter().map(|(_, byte, _)| *byte).collect();
        let bytes = self.read(&places, 1)?;
        // The bits are those that were meant only if the span has not been swept meanwhile.
        let again = self.read(&distinct, size)?;
        let unchanged: HashMap<u64, bool> = distinct
            .iter()
            .zip(again.chunks_exact(size))
            .map(|(span, bytes)| {
                let same = |at: usize, len: usize| {
                    content.get(span).and_then(|content| content.get(at..at + len)) == bytes.get(at..at + len)
                };
                (*span, same(self.heap.span.bits, 8) && same(self.heap.span.sweepgen, 4))
            })
            .collect();
        for ((nth, _, bit), byte) in bits.iter().zip(bytes) {
            let stays = unchanged.get(&spans[*nth]).copied().unwrap_or(false);
            answers[*nth] = match (stays, byte >> bit & 1) {
                (false, _) => Answer::Undecided,
                (true, 0) => Answer::Ended,
                (true, _) => Answer::Alive,
            };
        }
        Ok(answers)
    }

    /// What a span says of an object without its bit, or where that bit is: address of the byte, and place in it.
    fn without_bits(&self, sample: &Sample, content: &[u8]) -> Result<Answer, (u64, u32)> {
        let span = &self.heap.span;
        let word = |at| u64_at(content, at).unwrap_or(0);
        let (start, size) = (word(span.start), word(span.element_size));
        let state = content.get(span.state).copied().unwrap_or(0);
        let class = content.get(span.class).copied();
        let Some(inside) = sample.addr.checked_sub(start) else { return Ok(Answer::Ended) };
        if state != IN_USE || class != Some(sample.class) || size != sample.size || size == 0 {
            return Ok(Answer::Ended);
        }
        // What is known of a page that was given back stays, and what described its span may describe another one by now.
        let elements = word(span.elements) & if span.wide { u64::MAX } else { 0xffff };
        if inside / size >= elements || !inside.is_multiple_of(size) {
            return Ok(Answer::Ended);
        }
        let sweepgen = u32_at(content, span.sweepgen).unwrap_or(0);
        let swept = sweepgen == self.sweepgen || sweepgen == self.sweepgen.wrapping_add(3);
        if !swept {
            return Ok(Answer::Undecided);
        }
        // Allocated after the last cycle, or in it, when what is new counts as alive.
        if is_since(sample.sweepgen, self.sweepgen) {
            return Ok(Answer::Alive);
        }
        let index = inside / size;
        Err((word(span.bits).wrapping_add(index / 8), (index % 8) as u32))
    }

    /// The span that each object lies in; 0: none.
    fn spans_of(&mut self, samples: &[Sample]) -> Result<Vec<u64>, Unreadable> {
        let arena = |addr: u64| addr.wrapping_add(ARENA_BASE) >> ARENA_SHIFT;
        let new: HashSet<u64> = samples
            .iter()
            .map(|sample| arena(sample.addr))
            .filter(|arena| *arena < MAX_ARENAS && !self.known.contains_key(arena))
            .collect();
        if !new.is_empty() {
            let list = self.words(&[self.arenas])?[0];
            let new: Vec<u64> = new.into_iter().collect();
            let places: Vec<u64> = new.iter().map(|arena| list.wrapping_add(8 * arena)).collect();
            let found = self.words(&places)?;
            // Once there, an arena stays.
            self.known.extend(new.into_iter().zip(found).filter(|(_, found)| *found != 0));
        }
        let pages: HashSet<u64> = samples.iter().map(|sample| sample.addr >> PAGE_SHIFT).collect();
        let pages: Vec<u64> = pages.into_iter().collect();
        let entry = |page: &u64| {
            let arena = self.known.get(&arena(page << PAGE_SHIFT)).copied().unwrap_or(0);
            if arena == 0 {
                return 0;
            }
            arena.wrapping_add(self.heap.arena_spans as u64).wrapping_add(8 * (page % PAGES_PER_ARENA))
        };
        let entries: Vec<u64> = pages.iter().map(entry).collect();
        let spans = self.words(&entries)?;
        let by_page: HashMap<u64, u64> = pages.into_iter().zip(spans).collect();
        Ok(samples.iter().map(|sample| by_page.get(&(sample.addr >> PAGE_SHIFT)).copied().unwrap_or(0)).collect())
    }

    /// The words at the addresses; 0 where they cannot be read.
    fn words(&self, addresses: &[u64]) -> Result<Vec<u64>, Unreadable> {
        let bytes = self.read(addresses, 8)?;
        Ok(bytes.chunks_exact(8).map(|word| u64_at(word, 0).unwrap_or(0)).collect())
    }

    /// `len` bytes at each address, one behind the other; zeros where they cannot be read.
    fn read(&self, addresses: &[u64], len: usize) -> Result<Vec<u8>, Unreadable> {
        let parts: Vec<Part> = addresses.iter().map(|addr| Part { addr: *addr, len }).collect();
        let mut bytes = vec![0; len * parts.len()];
        let readable = (self.memory)(&parts, &mut bytes)?;
        for (chunk, _) in bytes.chunks_exact_mut(len).zip(readable).filter(|(_, readable)| !readable) {
            chunk.fill(0);
        }
        Ok(bytes)
    }
}
