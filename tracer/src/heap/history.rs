//! What each stack held in the course of the trace, in a bounded number of slots of time.
//!
//! All slots are equally long, and each keeps the mean of what was held at the looks that fell into it: means forget what
//! comes and goes faster. When the slots are used up, each two become one of twice the length, so that they always span the
//! whole time. Looks are at irregular times: at regular ones, what comes and goes at nearly the same pace would seem to move
//! slowly.

use std::sync::Arc;

use hashbrown::HashMap;

use super::trend::trend;
use crate::{
    cow::Chunks,
    event::Image,
    profile::{Growth, Trend},
};

/// Slots, and nanoseconds of one at first.
const SLOTS: usize = 32;
const FIRST_WIDTH: u64 = 1 << 24;
/// Looks in a slot, on average, when time allows; and least nanoseconds between two.
const LOOKS: u64 = 8;
const LEAST_PAUSE: u64 = 8_000_000;
/// How many times as long as it has taken the next look waits at least.
const REST: u64 = 200;
/// Most stacks that are followed at a time: 128 bytes each.
const MAX_ROWS: usize = 1 << 20;
/// Most processes whose unknown frees are.
const MAX_PROCESSES: usize = 1 << 12;
/// Stands for no row.
const NONE: u32 = u32::MAX;
/// How much ends elsewhere for what a stack grows by, from which on it may only replace that.
pub const REPLACED: f64 = 0.75;
/// Blocks that are expected to be young of what grows by blocks of an age, to say anything, and the share that must be there.
const YOUNG_BLOCKS: f64 = 3.0;
const YOUNG_SHARE: f64 = 0.25;

type Row = [f32; SLOTS];

/// What was held, by stack and slot of time. Times are nanoseconds.
pub struct History {
    began: u64,
    width: u64,
    slots: Vec<Slot>,
    rows: Chunks<Row>,
    /// Rows that are not used.
    free: Vec<u32>,
    /// Row of each stack, by its index.
    by_stack: Chunks<u32>,
    /// Frees of unknown blocks up to then.
    unknown_frees: HashMap<Image, Row>,
    next_look: u64,
    random: u64,
    /// When nothing was recorded: the end of each such time, and how long they were up to then.
    gaps: Vec<(u64, u64)>,
    /// Since when nothing is.
    away: Option<u64>,
}

/// The looks in one slot.
#[derive(Clone, Copy, Default)]
struct Slot {
    looks: u32,
    /// Mean of their times since the beginning.
    time: f64,
}

impl Slot {
    fn with(self, other: Self) -> Self {
        let looks = self.looks.saturating_add(other.looks);
        Self { looks, time: self.time + (other.time - self.time) * share(other.looks, looks) }
    }
}

impl History {
    /// Begins at `now`.
    pub fn new(now: u64) -> Self {
        Self {
            began: now,
            width: FIRST_WIDTH,
            slots: Vec::with_capacity(SLOTS),
            rows: Chunks::default(),
            free: Vec::new(),
            by_stack: Chunks::default(),
            unknown_frees: HashMap::new(),
            next_look: now,
            random: 0x9e37_79b9_7f4a_7c15,
            gaps: Vec::new(),
            away: None,
        }
    }

    /// All of it as it is now.
    pub fn share(&mut self) -> Self {
        let (rows, by_stack) = (self.rows.share(), self.by_stack.share());
        let (slots, free) = (self.slots.clone(), self.free.clone());
        let (unknown_frees, gaps) = (self.unknown_frees.clone(), self.gaps.clone());
        Self { slots, rows, free, by_stack, unknown_frees, gaps, ..*self }
    }

    /// Nothing is recorded from `now` on: its clock stands still, for what is held says nothing of how it grows.
    pub fn pause(&mut self, now: u64) {
        self.away.get_or_insert(now);
    }

    /// Recording goes on, since `now`.
    pub fn resume(&mut self, now: u64) {
        if let Some(away) = self.away.take() {
            let before = self.gaps.last().map_or(0, |(_, all)| *all);
            self.gaps.push((now, before.saturating_add(now.saturating_sub(away))));
        }
    }

    /// How long was recorded between two times.
    pub fn recorded_between(&self, from: u64, to: u64) -> u64 {
        self.recorded(to).saturating_sub(self.recorded(from))
    }

    /// How long was recorded from the beginning to `time`.
    fn recorded(&self, time: u64) -> u64 {
        let time = self.away.map_or(time, |away| time.min(away));
        let gap = self.gaps.partition_point(|(end, _)| *end <= time);
        let passed = |time: u64, away: u64| time.saturating_sub(self.began).saturating_sub(away);
        let before = gap.checked_sub(1).and_then(|gap| self.gaps.get(gap)).map_or(0, |(_, all)| *all);
        match self.gaps.get(gap) {
            // In the next one, it may be.
            Some((end, all)) => passed(time, before).min(passed(*end, *all)),
            None => passed(time, before),
        }
    }

    /// Whether it is time for a look.
    pub fn is_due(&self, now: u64) -> bool {
        now >= self.next_look && self.away.is_none()
    }

    /// Takes a look at `now`: what each stack holds, by its index, and how many frees of unknown blocks each process has
    /// made so far.
    pub fn look(
        &mut self,
        now: u64,
        held: impl Iterator<Item = u64>,
        unknown_frees: impl Iterator<Item = (Image, u64)>,
    ) {
        let passed = self.recorded(now);
        while passed / self.width >= SLOTS as u64 {
            self.make_room();
        }
        let at = (passed / self.width) as usize;
        if at >= self.slots.len() {
            self.slots.resize(at + 1, Slot::default());
        }
        let slot = &mut self.slots[at];
        *slot = slot.with(Slot { looks: 1, time: passed as f64 });
        let looks = slot.looks as f32;
        for (stack, held) in held.enumerate() {
            let row = match self.by_stack.get(stack) {
                Some(row) if *row != NONE => *row,
                _ if held == 0 => continue,
                _ => self.new_row(stack),
            };
            if let Some(row) = self.rows.get_mut(row as usize) {
                row[at] += (held as f32 - row[at]) / looks;
            }
        }
        for (image, frees) in unknown_frees {
            if self.unknown_frees.len() < MAX_PROCESSES || self.unknown_frees.contains_key(&image) {
                let row = self.unknown_frees.entry(image).or_default();
                row[at] += (frees as f32 - row[at]) / looks;
            }
        }
    }

    /// Says when the next look is due; the last one ended at `now` and has taken `took` nanoseconds.
    pub fn rest(&mut self, now: u64, took: u64) {
        // Xorshift, by Marsaglia.
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        let pause = (self.width / LOOKS).max(LEAST_PAUSE);
        // Between half of it and one and a half.
        let pause = pause / 2 + self.random % pause;
        self.next_look = now.saturating_add(pause.max(took.saturating_mul(REST)));
    }

    /// When the looks were, for [`series`](Self::series).
    pub fn times(&self) -> Arc<[f64]> {
        self.seen().map(|(_, slot)| slot.time / 1e9).collect()
    }

    /// How many frees of unknown blocks a process had made at these times, for [`Series::replacing`].
    pub fn unknown_frees(&self, image: Image) -> Option<Arc<[f32]>> {
        let row = self.unknown_frees.get(&image)?;
        Some(self.seen().map(|(at, _)| row[at]).collect())
    }

    /// What the stack with this index held at these times, from `since` on. `None` when it is not followed.
    pub fn series(&self, stack: usize, times: &Arc<[f64]>, since: u64) -> Option<Series> {
        let row = self.by_stack.get(stack).and_then(|row| self.rows.get(*row as usize));
        // What was never seen to hold anything has no row, and neither has what came when there was no room.
        if row.is_none() && self.rows.len() - self.free.len() >= MAX_ROWS {
            return None;
        }
        let values = self.seen().map(|(at, _)| row.map_or(0.0, |row| row[at])).collect();
        let since = self.recorded(since) as f64 / 1e9;
        Some(Series { times: Arc::clone(times), since, grain: 0.0, unknown_frees: None, young: None, values })
    }

    /// Forgets what these stacks held, by their indexes: they are others from now on.
    pub fn forget(&mut self, stacks: impl Iterator<Item = usize>) {
        for stack in stacks {
            let row = self.by_stack.get_mut(stack).map_or(NONE, |row| std::mem::replace(row, NONE));
            if let Some(held) = self.rows.get_mut(row as usize) {
                *held = Row::default();
                self.free.push(row);
            }
        }
    }

    /// Forgets the frees of unknown blocks of an image that has ended: what it held grows no more.
    pub fn forget_image(&mut self, image: Image) {
        self.unknown_frees.remove(&image);
    }

    /// Slots with looks in them.
    fn seen(&self) -> impl Iterator<Item = (usize, &Slot)> {
        self.slots.iter().enumerate().filter(|(_, slot)| slot.looks > 0)
    }

    fn new_row(&mut self, stack: usize) -> u32 {
        let row = match self.free.pop() {
            Some(row) => row,
            None if self.rows.len() < MAX_ROWS => {
                self.rows.push(Row::default());
                self.rows.len() as u32 - 1
            }
            None => return NONE,
        };
        while self.by_stack.len() <= stack {
            self.by_stack.push(NONE);
        }
        self.by_stack[stack] = row;
        row
    }

    /// Makes one of each two slots.
    fn make_room(&mut self) {
        self.slots.resize(SLOTS, Slot::default());
        let pairs: Vec<(Slot, Slot)> = self.slots.chunks_exact(2).map(|pair| (pair[0], pair[1])).collect();
        for row in self.rows.iter_mut().chain(self.unknown_frees.values_mut()) {
            for (nth, (first, second)) in pairs.iter().enumerate() {
                let share = share(second.looks, first.looks.saturating_add(second.looks)) as f32;
                row[nth] = row[2 * nth] + (row[2 * nth + 1] - row[2 * nth]) * share;
            }
            row[SLOTS / 2..].fill(0.0);
        }
        self.slots = pairs.into_iter().map(|(first, second)| first.with(second)).collect();
        self.width *= 2;
        for row in self.by_stack.iter_mut().filter(|row| **row != NONE) {
            if self.rows[*row as usize].iter().all(|held| *held == 0.0) {
                self.free.push(std::mem::replace(row, NONE));
            }
        }
    }
}

fn share(part: u32, whole: u32) -> f64 {
    f64::from(part) / f64::from(whole.max(1))
}

/// What something held in the course of time.
#[derive(Clone, Debug, PartialEq)]
pub struct Series {
    /// Seconds, rising.
    times: Arc<[f64]>,
    /// Looks before this say nothing of it, seconds.
    since: f64,
    /// What one sample stands for, 0 where everything is recorded.
    grain: f64,
    unknown_frees: Option<Arc<[f32]>>,
    /// What is held by blocks that are too young to be among the values, if some may be: bytes, and the age in seconds.
    young: Option<(f64, f64)>,
    values: Box<[f32]>,
}

impl Series {
    /// The same of so many samples, which stand for `bytes` together and are `mean` bytes apart.
    pub fn of_samples(self, samples: u64, bytes: u64, mean: u64) -> Self {
        // No sample stands for less.
        self.sampled((bytes as f64 / samples.max(1) as f64).max(mean as f64))
    }

    /// The same of samples each of which stands for `grain` bytes.
    fn sampled(self, grain: f64) -> Self {
        Self { grain, ..self }
    }

    /// The same in a process that has freed so many blocks that were not known: what grows may only take their place.
    pub fn replacing(self, unknown_frees: Option<Arc<[f32]>>) -> Self {
        Self { unknown_frees, ..self }
    }

    /// The same of blocks of an age within which `age` nanoseconds were recorded (0: of any); so many bytes are held by younger ones, which
    /// will come of age.
    pub fn aged(self, young: u64, age: u64) -> Self {
        Self { young: (age > 0).then_some((young as f64, age as f64 / 1e9)), ..self }
    }

    /// Adds what another one held at the same times; what is not followed makes the sum unknown.
    pub fn absorb_into(sum: &mut Option<Self>, other: Option<&Self>) {
        match (sum.as_mut(), other) {
            (Some(held), Some(other)) => held.absorb(other),
            _ => *sum = None,
        }
    }

    /// The bytes.
    pub fn values(&self) -> &[f32] {
        &self.values
    }

    fn absorb(&mut self, other: &Self) {
        self.grain = self.grain.max(other.grain);
        if let (Some((young, _)), Some((other, _))) = (&mut self.young, other.young) {
            *young += other;
        }
        for (value, other) in self.values.iter_mut().zip(&other.values) {
            *value += other;
        }
    }

    /// How it grows, if its blocks are of `block` bytes on average.
    pub fn growth(&self, block: f64) -> Growth {
        let first = self.times.partition_point(|time| *time < self.since);
        let times = &self.times[first..];
        let values: Vec<f64> = self.values.iter().skip(first).map(|value| f64::from(*value)).collect();
        let mut growth = trend(times, &values, self.grain);
        if growth.trend == Trend::Growing
            && let (Some((young, age)), Some(rate)) = (self.young, growth.rate)
            && rate.per_second * age >= YOUNG_BLOCKS * block
            && young < YOUNG_SHARE * rate.per_second * age
        {
            // Nothing has come for a while: what grows is only yet to be of that age.
            growth.trend = Trend::Steady;
        }
        if growth.trend == Trend::Growing
            && let (Some(frees), Some(rate)) = (&self.unknown_frees, growth.rate)
            && let Some(frees) = per_second(times, &frees[first..])
            && frees >= REPLACED * rate.per_second / block
        {
            growth.trend = Trend::TooEarly;
        }
        growth
    }
}

/// How fast a count has risen over the second half of the time.
fn per_second(times: &[f64], counts: &[f32]) -> Option<f64> {
    let from = times.len() / 2;
    let passed = times.last()? - times.get(from)?;
    let counted = counts.last()? - counts.get(from)?;
    (passed > 0.0).then(|| f64::from(counted) / passed)
}

#[cfg(test)]
mod tests;
