//! The heap of one Go process, followed: a look at the runtime's own profile now and then, or after each cycle of the garbage
//! collector at what has become of sampled objects; and what is held.

use std::{
    collections::{BTreeMap, btree_map::Entry},
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use super::{super::process::reader, enabled::ProfileRate, own_stacks::OwnStacks};
use crate::{
    clock::monotonic,
    event::Pid,
    golang::{
        Runtime, Unreadable,
        heap::{self, Bucket, Buckets, Objects, Sample, Sampling},
        stack_bytes,
    },
    heap::{History, Series},
    profile::Values,
};

/// The way in which a heap is seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// By the profile that the runtime keeps, with a mean of this many bytes between samples.
    Buckets(u64),
    /// By sampled allocations.
    Sampled,
}

/// Least time between two looks at sampled objects, and at the runtime's own profile.
const OBJECTS_PAUSE: Duration = Duration::from_millis(2);
const BUCKETS_PAUSE: Duration = Duration::from_millis(250);
/// How many times as long as a look has taken the next one waits: what following may cost of a processor.
const OBJECTS_REST: u32 = 3;
const BUCKETS_REST: u32 = 50;
/// The same of how much the stacks of goroutines are.
const STACKS_PAUSE: Duration = Duration::from_millis(250);
const STACKS_REST: u32 = 100;
/// Longest time between looks that is for the sake of other heaps.
const LONGEST: Duration = Duration::from_secs(10);
/// How long the end of a trace waits for spans that have not been swept yet.
const LAST_LOOKS: Duration = Duration::from_millis(100);

/// The stack that holds something.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HeapStack {
    /// That of sampled objects: what [`StackIndex::raw`](crate::heap::StackIndex::raw) gives.
    Sampled(u32),
    /// Addresses of calls, leaf first, each of one function.
    Calls(Arc<[u64]>),
}

/// What one stack of a Go program holds.
#[derive(Clone, Debug, PartialEq)]
pub struct HeapUsage {
    /// The stack.
    pub stack: HeapStack,
    /// Estimated amounts.
    pub values: Values,
    /// Age of the oldest sampled object. `None` when it is not known.
    pub oldest: Option<Duration>,
    /// Bytes that it held in the course of time, each time after a collection. `None` when it is not followed.
    pub held: Option<Series>,
}

/// The garbage collections of a Go heap, counted since its process began.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Collections {
    /// Those at the first look and at the last one. `None` when that could not be read.
    pub seen: Option<(u64, u64)>,
    /// Whether the numbers are of a state that a collection has left; else some of it may be garbage.
    pub collected: bool,
}

/// What the heap of a Go process holds.
#[derive(Clone, Debug, Default)]
pub struct HeapSnapshot {
    /// By stack, in no order.
    pub stacks: Vec<HeapUsage>,
    /// Bytes that were allocated while it was followed, by all that is told here, whatever sizes are of interest; estimated. Of sampled
    /// objects only those of interest are known.
    pub allocated: u64,
    /// Bytes by which the stacks of goroutines were more than at the first look, at most.
    pub goroutine_stacks: u64,
    /// How good that is.
    pub sampling: Option<Sampling>,
    /// Its garbage collections.
    pub collections: Collections,
    /// Why it has not been followed to the end, if so.
    pub problem: Option<String>,
}

/// What is followed.
enum Followed {
    Objects(Box<Objects>, OwnStacks),
    Buckets { buckets: Buckets, rate: u64 },
}

/// Which objects are of interest.
#[derive(Clone, Copy, Debug)]
pub struct Wanted {
    /// Least age, nanoseconds.
    pub min_age: u64,
    /// Bytes, inclusive.
    pub sizes: (u64, u64),
}

/// Follows the heap of one process.
pub(super) struct Follower {
    runtime: Arc<Runtime>,
    pid: Pid,
    followed: Followed,
    wanted: Wanted,
    /// What was held after collections.
    history: History,
    began: u64,
    /// The last collection that is in the history.
    noted: u64,
    /// Garbage collections at the first look and at the last one.
    collections: Option<(u64, u64)>,
    /// Bytes of the stacks of goroutines at the first look, and the most that was seen.
    goroutine_stacks: (u64, u64),
    next_stacks: Instant,
    problem: Option<String>,
    /// The mean of bytes between the runtime's samples before and after it was set, while there were some.
    rate_changed: Option<(u64, u64)>,
    /// What the runtime is about to set to 0 as it starts, and is to be set again then.
    starting: Option<Arc<ProfileRate>>,
    is_broken: bool,
}

impl Follower {
    /// Follows the heap of process `pid` in this way; `mean`: bytes between samples. Growth is that of what is `wanted`.
    pub(super) fn new(runtime: Arc<Runtime>, pid: Pid, way: Way, mean: u64, wanted: Wanted) -> Self {
        let followed = match way {
            Way::Sampled => {
                let objects = Objects::new(mean).of_sizes(wanted.sizes);
                Followed::Objects(Box::new(objects), OwnStacks::default())
            }
            Way::Buckets(rate) => Followed::Buckets { buckets: Buckets::default(), rate },
        };
        let began = monotonic();
        let history = History::new(began);
        let mut follower = Self {
            runtime,
            pid,
            followed,
            wanted,
            history,
            began,
            noted: 0,
            collections: None,
            goroutine_stacks: (0, 0),
            next_stacks: Instant::now(),
            problem: None,
            rate_changed: None,
            starting: None,
            is_broken: false,
        };
        if let Followed::Buckets { .. } = follower.followed {
            follower.look();
            follower.noted = follower.collections.map_or(0, |(_, last)| last);
        }
        if let Followed::Buckets { buckets, .. } = &mut follower.followed {
            buckets.mark();
        }
        // A program that has not begun has no goroutines.
        follower.look_at_stacks();
        follower.goroutine_stacks.0 = follower.goroutine_stacks.1;
        // What it holds already is where growth begins.
        follower.note(began);
        follower
    }

    /// Sets the mean of bytes between the runtime's samples again when the runtime has started.
    pub(super) fn starting(self, rate: Option<Arc<ProfileRate>>) -> Self {
        Self { starting: rate, ..self }
    }

    /// Brings what is known up to date: how long to rest then, if its thread looks at so many heaps.
    pub(super) fn look_and_rest(&mut self, heaps: u32) -> Duration {
        let begin = Instant::now();
        self.look();
        let taken = begin.elapsed();
        if begin >= self.next_stacks {
            self.look_at_stacks();
        }
        self.note_collection();
        let (pause, rest) = match self.followed {
            Followed::Objects(..) => (OBJECTS_PAUSE, OBJECTS_REST),
            // What is allocated until it is set again is not seen.
            Followed::Buckets { .. } if self.starting.is_some() => (OBJECTS_PAUSE, BUCKETS_REST),
            Followed::Buckets { .. } => (BUCKETS_PAUSE, BUCKETS_REST),
        };
        pause.max(taken * rest).max((taken * rest).saturating_mul(heaps).min(LONGEST))
    }

    /// Takes in sampled objects.
    pub(super) fn add(&mut self, samples: Vec<Sample>) {
        if let Followed::Objects(objects, stacks) = &mut self.followed {
            samples.into_iter().for_each(|sample| objects.add(Sample { stack: stacks.own(sample.stack), ..sample }));
        }
    }

    /// What is held now, by objects of at least this age. `last`: it is worth a moment to have it complete.
    pub(super) fn snapshot_now(&mut self, min_age: Duration, last: bool) -> HeapSnapshot {
        self.look_again(last);
        self.look_at_stacks();
        self.snapshot(min_age)
    }

    /// It has panicked.
    pub(super) fn breaks(&mut self) {
        self.is_broken = true;
    }

    /// Whether it has.
    pub(super) fn is_broken(&self) -> bool {
        self.is_broken
    }

    /// Brings what is known up to date. What was known before stays when the process has ended.
    fn look(&mut self) {
        if self.problem.is_some() {
            return;
        }
        let memory = reader(self.pid);
        if self.starting.as_ref().is_some_and(|rate| !rate.set_again()) {
            self.starting = None;
        }
        // Before the look: what is said of the state that the numbers are of is no later than that.
        if let Ok(now) = heap::collections(&self.runtime, &memory) {
            self.collections = Some((self.collections.map_or(now, |(first, _)| first), now));
        }
        if let Followed::Buckets { buckets, rate } = &mut self.followed
            && let Ok(now) = heap::profile_rate(&self.runtime, &memory)
            && now != *rate
            && (now != 0 || self.starting.is_none())
        {
            // A program may set it as it begins, and that is all there is to it.
            let has_samples = buckets.iter().any(|bucket| bucket.allocs > 0);
            if has_samples || now == 0 {
                self.rate_changed = Some((*rate, now));
            }
            *rate = if now == 0 { *rate } else { now };
        }
        let looked = match &mut self.followed {
            Followed::Objects(objects, _) => objects.look(&self.runtime, &memory).map(drop),
            Followed::Buckets { buckets, .. } => buckets.refresh(&self.runtime, &memory),
        };
        match looked {
            Ok(()) => {}
            Err(Unreadable::Memory(error)) => tracing::debug!("cannot look at the Go heap of {}: {error}", self.pid),
            Err(error) => self.problem = Some(error.to_string()),
        }
    }

    /// Looks how much the stacks of goroutines are now. They come and go: their memory stays, as that of blocks does.
    fn look_at_stacks(&mut self) {
        let begin = Instant::now();
        match stack_bytes(&self.runtime, &reader(self.pid)) {
            Ok(bytes) => self.goroutine_stacks.1 = self.goroutine_stacks.1.max(bytes),
            Err(error) => tracing::debug!("cannot see the goroutine stacks of {}: {error}", self.pid),
        }
        let end = Instant::now();
        self.next_stacks = end + STACKS_PAUSE.max((end - begin) * STACKS_REST);
    }

    /// A look for a report; the last one gives the runtime a moment to sweep what it has not swept.
    fn look_again(&mut self, last: bool) {
        let begin = Instant::now();
        self.look();
        while let Followed::Objects(objects, _) = &self.followed
            && last
            && objects.is_undecided()
            && begin.elapsed() < LAST_LOOKS
            && self.problem.is_none()
        {
            thread::sleep(OBJECTS_PAUSE);
            self.look();
        }
    }

    /// Takes what a collection has left into the history, if there has been one since the last time.
    fn note_collection(&mut self) {
        let now = monotonic();
        let collections = match &self.followed {
            Followed::Objects(objects, _) if objects.is_undecided() => return,
            Followed::Objects(objects, _) => objects.cycles(),
            // What has come since is not in the profile before the next one.
            Followed::Buckets { .. } => self.collections.map_or(self.noted + 1, |(_, last)| last),
        };
        if collections != self.noted && self.history.is_due(now) {
            self.noted = collections;
            self.note(now);
            let end = monotonic();
            self.history.rest(end, end.saturating_sub(now));
        }
    }

    fn note(&mut self, now: u64) {
        let held = match &self.followed {
            Followed::Objects(objects, _) => objects.survivors(now.saturating_sub(self.wanted.min_age)),
            Followed::Buckets { buckets, rate } => buckets.iter().map(|bucket| bucket.estimate(*rate)[1].1).collect(),
        };
        self.history.look(now, held.into_iter(), std::iter::empty());
    }

    fn snapshot(&self, min_age: Duration) -> HeapSnapshot {
        let now = monotonic();
        let changed = self.rate_changed.map(|(before, now)| {
            format!(
                "MemProfileRate was set from {before} to {now} meanwhile, and nobody knows which samples are of which"
            )
        });
        let problem = self.problem.clone().or(changed);
        let seen = self.collections;
        let times = self.history.times();
        let since = self.began.saturating_add(self.wanted.min_age);
        let mean = match &self.followed {
            Followed::Objects(objects, _) => objects.mean(),
            Followed::Buckets { rate, .. } => *rate,
        };
        let goroutine_stacks = self.goroutine_stacks.1.saturating_sub(self.goroutine_stacks.0);
        let held = |stack, samples: u64, bytes: u64| {
            self.history.series(stack, &times, since).map(|series| series.of_samples(samples, bytes, mean))
        };
        match &self.followed {
            Followed::Objects(objects, own) => {
                let age = u64::try_from(min_age.as_nanos()).unwrap_or(u64::MAX);
                let until = now.saturating_sub(age);
                let usages = objects.usage(until);
                let allocated = usages.iter().map(|usage| usage.values.allocated_bytes).fold(0, u64::saturating_add);
                let stacks = usages.into_iter().filter_map(|usage| {
                    let bytes = usage.values.outstanding_bytes;
                    Some(HeapUsage {
                        stack: HeapStack::Sampled(own.of_trace(usage.stack)?),
                        values: usage.values,
                        oldest: usage.oldest.map(|oldest| Duration::from_nanos(now.saturating_sub(oldest))),
                        held: held(usage.stack as usize, usage.samples, bytes)
                            .map(|held| held.aged(usage.younger_bytes, age)),
                    })
                });
                let sampling = objects.sampling(until);
                let collections = Collections { seen, collected: sampling.cycles > 0 || objects.is_empty() };
                let (stacks, sampling) = (stacks.collect(), Some(sampling));
                HeapSnapshot { stacks, allocated, goroutine_stacks, sampling, collections, problem }
            }
            Followed::Buckets { buckets, rate } => {
                let mut stacks: BTreeMap<Arc<[u64]>, HeapUsage> = BTreeMap::new();
                let (least, most) = self.wanted.sizes;
                let is_wanted = |bucket: &Bucket| (least..=most).contains(&bucket.size);
                for (index, bucket) in buckets.iter().enumerate().filter(|(_, bucket)| is_wanted(bucket)) {
                    let [(allocated_blocks, allocated_bytes), (blocks, bytes)] = bucket.estimate(*rate);
                    let values = Values {
                        outstanding_bytes: bytes,
                        outstanding_blocks: blocks,
                        allocated_bytes,
                        allocated_blocks,
                        freed_blocks: allocated_blocks.saturating_sub(blocks),
                    };
                    let held = held(index, bucket.allocs.saturating_sub(bucket.frees), bytes);
                    match stacks.entry(Arc::clone(&bucket.calls)) {
                        Entry::Vacant(entry) => {
                            let stack = HeapStack::Calls(bucket.calls);
                            entry.insert(HeapUsage { stack, values, oldest: None, held });
                        }
                        Entry::Occupied(mut entry) => {
                            let usage = entry.get_mut();
                            usage.values += values;
                            Series::absorb_into(&mut usage.held, held.as_ref());
                        }
                    }
                }
                let sampling = Some(heap::sampling_of(buckets.iter().filter(is_wanted), *rate));
                let collections = Collections { seen, collected: buckets.is_published() || stacks.is_empty() };
                let (stacks, allocated) = (stacks.into_values().collect(), buckets.since_mark(*rate));
                HeapSnapshot { stacks, allocated, goroutine_stacks, sampling, collections, problem }
            }
        }
    }
}
