//! Sampled objects of a Go program: which of them are alive, and what all objects together are estimated to be.
//!
//! Whether an object is alive is asked after each cycle of the garbage collector ([`Question`]), and again where the answer is
//! not there yet. A cycle that nobody looked at may hide the end of an object whose place was given to another one before the
//! next: such cycles, in which something was sampled, are counted.
//!
//! Of what has been allocated since the last cycle nobody knows what is garbage already. It counts by the share of its stack's
//! earlier objects that survived their first cycle: all of what leaks, next to nothing of what churns.

use hashbrown::{HashMap, HashSet};

use super::{
    cycles::layout,
    liveness::{Answer, Question, is_since},
    sample::Sample,
};
use crate::{
    golang::{ReadMemory, Runtime, Unreadable, executable::HEAP, layout::Heap},
    process::memory::Span as Part,
    profile::Values,
};

/// States of the garbage collector that nobody looked at which are remembered.
const MAX_UNSEEN: usize = 1 << 10;

/// How good the numbers of sampled objects are.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Sampling {
    /// Mean of bytes between samples.
    pub mean_bytes: u64,
    /// Samples that are alive.
    pub samples: u64,
    /// One standard deviation of the estimated bytes that are held, as a share of them.
    pub relative_error: f64,
    /// Cycles of the garbage collector since the first look.
    pub cycles: u64,
    /// Cycles of the garbage collector after which something was sampled before all objects had been looked at.
    pub missed_cycles: u64,
    /// Objects of which the last look could not say whether they are alive.
    pub undecided: u64,
    /// Samples that made no sense.
    pub senseless: u64,
    /// Samples at whose place another object was put in the same cycle.
    pub misplaced: u64,
}

/// What all objects of one stack are estimated to be.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SampledUsage {
    /// The stack.
    pub stack: u32,
    /// Estimated amounts.
    pub values: Values,
    /// Estimated bytes that it holds besides, in objects that are younger than was asked for.
    pub younger_bytes: u64,
    /// Samples that are alive.
    pub samples: u64,
    /// Time of the oldest of these, nanoseconds of CLOCK_MONOTONIC.
    pub oldest: Option<u64>,
}

/// What was allocated by a stack, estimated.
#[derive(Clone, Copy, Debug, Default)]
struct Allocated {
    bytes: f64,
    blocks: f64,
    /// Samples that have been through a cycle of the garbage collector, and those of them that survived their first.
    met: u32,
    survived: u32,
}

impl Allocated {
    /// The share of objects that survive their first cycle, as far as is known: all, as long as none has met one.
    fn survival(&self) -> f64 {
        f64::from(self.survived + 1) / f64::from(self.met + 1)
    }
}

/// What a stack holds, estimated.
#[derive(Clone, Copy, Debug, Default)]
struct Held {
    /// Blocks of any age.
    alive: f64,
    /// Of those that are old enough.
    bytes: f64,
    blocks: f64,
    /// Of the others.
    younger_bytes: f64,
    samples: u64,
    oldest: Option<u64>,
}

/// A sampled object that may be alive.
#[derive(Clone, Copy, Debug)]
struct Tracked {
    sample: Sample,
    /// Whether it has survived a cycle of the garbage collector.
    proven: bool,
}

/// The sampled objects of one process.
pub struct Objects {
    mean: f64,
    /// Sizes that are of interest, bytes, inclusive.
    sizes: (u64, u64),
    /// By address.
    alive: HashMap<u64, Tracked>,
    /// By stack: their numbers are to be small.
    allocated: Vec<Allocated>,
    /// Addresses of objects of which the last look could not tell.
    undecided: Vec<u64>,
    /// Addresses of objects that have become known after the look at the cycle that came after them.
    late: Vec<u64>,
    /// `mheap_.sweepgen` at the last look; `None` before the first.
    sweepgen: Option<u32>,
    /// States of the garbage collector in which something was sampled, from that of the last look on.
    sampled: HashSet<u32>,
    /// Those that were over before all was looked at, and in which nothing is known to have been sampled.
    unseen: HashSet<u32>,
    /// Arenas that are known, by index.
    arenas: HashMap<u64, u64>,
    cycles: u64,
    missed_cycles: u64,
    senseless: u64,
    misplaced: u64,
}

impl Objects {
    /// None yet; they are sampled every `mean` bytes.
    pub fn new(mean: u64) -> Self {
        Self {
            mean: mean.max(1) as f64,
            sizes: (0, u64::MAX),
            alive: HashMap::new(),
            allocated: Vec::new(),
            undecided: Vec::new(),
            late: Vec::new(),
            sweepgen: None,
            sampled: HashSet::new(),
            unseen: HashSet::new(),
            arenas: HashMap::new(),
            cycles: 0,
            missed_cycles: 0,
            senseless: 0,
            misplaced: 0,
        }
    }

    /// The same, of which those of such sizes only are of interest, bytes, inclusive.
    pub fn of_sizes(self, sizes: (u64, u64)) -> Self {
        Self { sizes, ..self }
    }

    /// How many are alive, as far as is known.
    pub fn len(&self) -> usize {
        self.alive.len()
    }

    /// Whether none is.
    pub fn is_empty(&self) -> bool {
        self.alive.is_empty()
    }

    /// Takes a sample in. One at the same address has ended, or never was there.
    pub fn add(&mut self, sample: Sample) {
        if !sample.makes_sense() {
            self.senseless += 1;
            return;
        }
        self.sampled.insert(sample.sweepgen);
        self.missed_cycles += u64::from(self.unseen.remove(&sample.sweepgen));
        if !(self.sizes.0..=self.sizes.1).contains(&sample.charge) {
            let before = self.alive.remove(&sample.addr);
            self.replaced(before, &sample);
            return;
        }
        let index = sample.stack as usize;
        if index >= self.allocated.len() {
            self.allocated.resize(index + 1, Allocated::default());
        }
        let weight = self.weight(&sample);
        self.allocated[index].bytes += weight * sample.size as f64;
        self.allocated[index].blocks += weight;
        if self.sweepgen.is_some_and(|looked_at| !is_since(sample.sweepgen, looked_at)) {
            self.late.push(sample.addr);
        }
        let before = self.alive.insert(sample.addr, Tracked { sample, proven: false });
        self.replaced(before, &sample);
    }

    /// Another object is where this one was.
    fn replaced(&mut self, before: Option<Tracked>, sample: &Sample) {
        match before {
            // Nothing ends between two cycles: it was not there.
            Some(before) if before.sample.sweepgen == sample.sweepgen => self.misplaced += 1,
            Some(before) if !before.proven => self.allocated[before.sample.stack as usize].met += 1,
            _ => {}
        }
    }

    /// How many objects a sample stands for: the inverse of the probability that it was taken.
    fn weight(&self, sample: &Sample) -> f64 {
        1.0 / -(-(sample.charge as f64) / self.mean).exp_m1()
    }

    /// Looks for what has ended since the last look, if a cycle of the garbage collector has. Whether there was anything to
    /// look at.
    ///
    /// # Errors
    /// Memory cannot be read.
    pub fn look(&mut self, runtime: &Runtime, memory: &ReadMemory<'_>) -> Result<bool, Unreadable> {
        self.look_at(layout(runtime)?, runtime.variable(HEAP)?, memory)
    }

    /// The same for a heap of this layout, with `mheap_` at this address.
    ///
    /// # Errors
    /// Memory cannot be read.
    pub fn look_at(&mut self, heap: &Heap, mheap: u64, memory: &ReadMemory<'_>) -> Result<bool, Unreadable> {
        let mut bytes = [0; 4];
        let at = mheap.wrapping_add(heap.mheap.0 as u64);
        if memory(&[Part { addr: at, len: 4 }], &mut bytes)? != [true] {
            return Err(Unreadable::Nonsense("the state of its garbage collector"));
        }
        let sweepgen = u32::from_le_bytes(bytes);
        let cycles = self.sweepgen.map_or(0, |before| u64::from(sweepgen.wrapping_sub(before) / 2));
        if self.sweepgen == Some(sweepgen) && self.undecided.is_empty() && self.late.is_empty() {
            return Ok(false);
        }
        let anew = self.sweepgen != Some(sweepgen);
        if anew {
            self.cycles += cycles;
            if let Some(before) = self.sweepgen.replace(sweepgen) {
                self.miss(before, sweepgen);
            }
        }
        let asked: Vec<Sample> = if anew {
            self.alive.values().map(|tracked| tracked.sample).collect()
        } else {
            self.undecided
                .iter()
                .chain(&self.late)
                .filter_map(|addr| self.alive.get(addr))
                .map(|tracked| tracked.sample)
                .collect()
        };
        let arenas = mheap.wrapping_add(heap.mheap.1 as u64);
        let mut question = Question { heap: *heap, memory, sweepgen, arenas, known: &mut self.arenas };
        let answers = question.ask(&asked)?;
        self.undecided.clear();
        self.late.clear();
        for (sample, answer) in asked.iter().zip(answers) {
            match answer {
                // Nothing has looked for it yet.
                Answer::Alive if is_since(sample.sweepgen, sweepgen) => {}
                Answer::Alive => self.meet(sample, true),
                Answer::Ended => {
                    self.meet(sample, false);
                    self.alive.remove(&sample.addr);
                }
                Answer::Undecided => self.undecided.push(sample.addr),
            }
        }
        Ok(true)
    }

    /// Notes the states of the garbage collector that are over without all having been looked at: those between the two, and
    /// the one before if it has left something undecided.
    fn miss(&mut self, before: u32, now: u32) {
        let first = u32::from(self.undecided.is_empty());
        let over = (first..now.wrapping_sub(before) / 2).rev().take(MAX_UNSEEN);
        for state in over.map(|nth| before.wrapping_add(2 * nth)) {
            if self.sampled.contains(&state) {
                self.missed_cycles += 1;
            } else {
                self.unseen.insert(state);
            }
        }
        self.sampled.retain(|state| is_since(*state, now));
        if self.unseen.len() > MAX_UNSEEN {
            self.unseen.retain(|state| now.wrapping_sub(*state) / 2 <= MAX_UNSEEN as u32);
        }
    }

    /// Bytes between samples, on average.
    pub fn mean(&self) -> u64 {
        self.mean as u64
    }

    /// An object has been through a cycle of the garbage collector.
    fn meet(&mut self, sample: &Sample, survived: bool) {
        let Some(tracked) = self.alive.get_mut(&sample.addr).filter(|tracked| !tracked.proven) else { return };
        tracked.proven = true;
        let allocated = &mut self.allocated[sample.stack as usize];
        allocated.met += 1;
        allocated.survived += u32::from(survived);
    }

    /// How many objects that are alive a sample stands for.
    fn weight_alive(&self, tracked: &Tracked) -> f64 {
        let survival = if tracked.proven { 1.0 } else { self.allocated[tracked.sample.stack as usize].survival() };
        self.weight(&tracked.sample) * survival
    }

    /// Whether the last look has left something undecided.
    pub fn is_undecided(&self) -> bool {
        !self.undecided.is_empty()
    }

    /// What every stack has allocated, and holds by objects that were allocated at `until` or before; in no order. Younger ones are
    /// not held in that sense, and have not ended either.
    pub fn usage(&self, until: u64) -> Vec<SampledUsage> {
        let mut held = vec![Held::default(); self.allocated.len()];
        for tracked in self.alive.values() {
            let sample = &tracked.sample;
            let held = &mut held[sample.stack as usize];
            let weight = self.weight_alive(tracked);
            held.alive += weight;
            if sample.time > until {
                held.younger_bytes += weight * sample.size as f64;
                continue;
            }
            held.bytes += weight * sample.size as f64;
            held.blocks += weight;
            held.samples += 1;
            held.oldest = Some(held.oldest.map_or(sample.time, |oldest| oldest.min(sample.time)));
        }
        let usage = held.into_iter().zip(&self.allocated).enumerate().filter(|(_, (_, all))| all.blocks > 0.0);
        usage
            .map(|(index, (Held { alive, bytes, blocks, younger_bytes, samples, oldest }, all))| {
                let (allocated_blocks, outstanding_blocks) = (all.blocks.round() as u64, blocks.round() as u64);
                let values = Values {
                    outstanding_bytes: bytes.round() as u64,
                    outstanding_blocks,
                    allocated_bytes: all.bytes.round() as u64,
                    allocated_blocks,
                    freed_blocks: allocated_blocks.saturating_sub(alive.round() as u64),
                };
                let younger_bytes = younger_bytes.round() as u64;
                SampledUsage { stack: index as u32, values, younger_bytes, samples, oldest }
            })
            .collect()
    }

    /// Cycles of the garbage collector since the first look.
    pub fn cycles(&self) -> u64 {
        self.cycles
    }

    /// Estimated bytes that each stack holds, by its index, in objects that the last cycle has left; of those that were
    /// allocated at `until` or before. What is younger than that cycle is not in it, so that the numbers of different
    /// cycles can be compared.
    pub fn survivors(&self, until: u64) -> Vec<u64> {
        let mut held = vec![0.0; self.allocated.len()];
        let is_younger = |sample: &Sample| self.sweepgen.is_some_and(|last| is_since(sample.sweepgen, last));
        for tracked in self.chosen(until).filter(|tracked| !is_younger(&tracked.sample)) {
            held[tracked.sample.stack as usize] += self.weight(&tracked.sample) * tracked.sample.size as f64;
        }
        held.into_iter().map(|bytes| bytes as u64).collect()
    }

    /// How good the numbers of [`usage`](Self::usage) are.
    pub fn sampling(&self, until: u64) -> Sampling {
        let (mut sum, mut variance, mut samples) = (0.0, 0.0, 0);
        for tracked in self.chosen(until) {
            let bytes = self.weight_alive(tracked) * tracked.sample.size as f64;
            sum += bytes;
            variance += bytes * bytes * (1.0 - 1.0 / self.weight(&tracked.sample));
            samples += 1;
        }
        Sampling {
            mean_bytes: self.mean(),
            samples,
            relative_error: if sum > 0.0 { variance.sqrt() / sum } else { 0.0 },
            cycles: self.cycles,
            missed_cycles: self.missed_cycles,
            undecided: self.undecided.len() as u64,
            senseless: self.senseless,
            misplaced: self.misplaced,
        }
    }

    fn chosen(&self, until: u64) -> impl Iterator<Item = &Tracked> {
        self.alive.values().filter(move |tracked| tracked.sample.time <= until)
    }
}

#[cfg(test)]
mod tests;
