//! The thread between kernel and report: takes events in, keeps the heap, turns addresses into places while the process
//! lives, and hands out snapshots. It never waits for the presenting side.

mod requests;
mod tracked;

use std::{
    sync::{Arc, mpsc},
    time::Duration,
};

use hashbrown::{HashMap, HashSet};
use tracer_ebpf::{Loss, LostFree, Target};

pub use self::requests::{Request, Requested, Requests, channel};
use self::tracked::{Tracked, begin, end, place};
use crate::{
    bpf::Events,
    clock::monotonic,
    event::{self, Beginning, Event, GoSample, How, Image, Origin, Pid},
    go_heap,
    golang::heap::Sample,
    heap::{Counters, Heap, History, MAX_STACKS, Series, StackIndex, StackKind},
    memory::{self, Memory},
    process::address_space::{AddressSpace, Place},
    profile::{UnwindTable, Values},
    trails::{self, Sites, Trails},
    unwinder::Unwinder,
};

/// What the collector tells of its own accord.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Notice {
    /// An image began.
    Began(Image, Beginning),
    /// The first thread of a process has ended, and others go on.
    FirstThreadEnded(Image),
    /// A process has ended.
    Ended {
        /// Its image.
        image: Image,
        /// The number of the signal that ended it, if one did that is known.
        signal: Option<u8>,
    },
    /// A process that worked on the memory of this image has ended without becoming a program of its own.
    SharerEnded(Image),
    /// A return address of some process had to be left alone, and the outcome of a call was not seen for that.
    ReturnDeclined,
    /// Libraries of a process have come or gone.
    Mapped(Image),
    /// An image is recorded that was only followed before, from this time on: nanoseconds of CLOCK_MONOTONIC.
    Resumed(Image, u64),
}

/// What all stacks hold at one moment.
pub struct Snapshot {
    /// By stack, in no order.
    pub stacks: Vec<StackSnapshot>,
    /// Stacks of sampled objects of Go programs, in no order.
    pub go_stacks: Vec<GoStack>,
    /// What went through the heap.
    pub counters: Counters,
    /// What was lost.
    pub loss: Loss,
    /// Stacks whose addresses were forgotten: they are one in each process. How many hold nothing, and how many something.
    pub folded: (u64, u64),
    /// Records that made no sense.
    pub unknown_records: u64,
    /// What stacks were unwound by.
    pub unwind_tables: Vec<UnwindTable>,
}

/// The stack of sampled objects of a Go program; what they are is known elsewhere.
pub struct GoStack {
    /// The process.
    pub pid: Pid,
    /// Identifies the stack within this trace.
    pub stack: StackIndex,
    /// Its addresses.
    pub trail: Trail,
    /// One of [`tracer_ebpf::end`].
    pub end: u32,
}

/// What one stack holds.
pub struct StackSnapshot {
    /// The process.
    pub pid: Pid,
    /// Its image.
    pub image: Image,
    /// Identifies the stack within this trace.
    pub stack: StackIndex,
    /// Amounts.
    pub values: Values,
    /// Outstanding bytes that a lost free may have ended.
    pub uncertain_bytes: u64,
    /// Age of the oldest block.
    pub oldest: Option<Duration>,
    /// Bytes that it held in the course of time. `None` when it is not followed.
    pub held: Option<Series>,
    /// Its addresses.
    pub trail: Trail,
    /// One of [`tracer_ebpf::end`].
    pub end: u32,
}

impl StackSnapshot {
    /// Adds what another stack holds.
    pub fn absorb(&mut self, other: &Self) {
        self.values += other.values;
        self.uncertain_bytes = self.uncertain_bytes.saturating_add(other.uncertain_bytes);
        self.oldest = self.oldest.max(other.oldest);
        Series::absorb_into(&mut self.held, other.held.as_ref());
    }
}

/// The addresses of a stack, as far as they are known.
#[derive(Clone, Debug)]
pub enum Trail {
    /// Leaf first.
    Known(Sites),
    /// They were forgotten, for want of memory.
    Folded,
    /// The record was lost.
    Lost,
    /// There was no room for it.
    TableFull,
}

/// How long to wait for records before looking for requests.
const PATIENCE: Duration = Duration::from_millis(10);
/// Records taken in before requests and losses are looked at.
const BATCH: usize = 1 << 17;
/// Batches that are taken in before a question is answered: about what the buffer holds by default.
const BACKLOG: usize = 16;
/// Longest time without a look.
const REFRESH_PERIOD: Duration = Duration::from_millis(250);
/// Time for programs that were running when recording was turned off to end.
const GRACE: Duration = Duration::from_millis(5);

/// A Go runtime whose sampled objects are passed on.
struct GoHeap {
    samples: go_heap::Inbox,
    /// Those that have come since the last were passed on.
    batch: Vec<Sample>,
    stacks: HashSet<StackIndex>,
}

impl GoHeap {
    fn pass_on(&mut self) {
        if !self.batch.is_empty() {
            // Whoever follows it may have given up.
            let _ = self.samples.tell(go_heap::Input::Samples(std::mem::take(&mut self.batch)));
        }
    }
}

/// The collector's state. Belongs to its thread.
pub struct Collector {
    events: Events,
    heap: Heap,
    memory: Memory,
    history: History,
    /// Blocks younger than this are not of interest, nanoseconds.
    min_age: u64,
    /// Whether blocks of all sizes are recorded.
    all_sizes: bool,
    images: HashMap<Image, Tracked>,
    /// Images that have ended: of which process, and since when they were recorded.
    ended: HashMap<Image, (Pid, u64)>,
    /// Those of processes that others have started, whose blocks are still kept, and when they ended.
    leaving: Vec<(Image, u64)>,
    unwinder: Unwinder,
    trails: Trails,
    loss: Loss,
    unknown_records: u64,
    /// By image, and the number of the runtime in it.
    go: HashMap<(Image, u8), GoHeap>,
    requests: Requested,
    notify: Box<dyn Fn(Notice) + Send>,
}

impl Collector {
    /// A collector that reads `events`, obeys `requests` and calls `notify`, within `memory`. The growth that it tells of is that
    /// of blocks of at least `min_age`. `all_sizes`: no block is left out for its size.
    pub fn new(
        events: Events,
        unwinder: Unwinder,
        memory: Memory,
        (min_age, all_sizes): (Duration, bool),
        requests: Requested,
        notify: Box<dyn Fn(Notice) + Send>,
    ) -> Self {
        let min_age = nanoseconds(min_age);
        Self {
            events,
            heap: Heap::with_room(memory.stacks(MAX_STACKS), memory.blocks(block(min_age))).with_min_age(min_age),
            memory,
            history: History::new(monotonic()),
            min_age,
            all_sizes,
            images: HashMap::new(),
            ended: HashMap::new(),
            leaving: Vec::new(),
            unwinder,
            trails: Trails::default(),
            loss: Loss::default(),
            unknown_records: 0,
            go: HashMap::new(),
            requests,
            notify,
        }
    }

    /// Runs until it is told to finish, or until nobody can ask any more.
    pub fn run(mut self) {
        loop {
            if self.take_in(BATCH) < BATCH {
                self.events.wait(self.requests.bell(), PATIENCE);
                self.requests.heard();
            }
            self.account_for_loss();
            self.let_go();
            self.keep_within_memory();
            self.look_for_new_mappings();
            self.look_at_what_is_held();
            loop {
                match self.requests.next() {
                    Ok(Request::Finish { min_age, reply }) => return self.finish(min_age, &reply),
                    Ok(request) => self.obey(request),
                    Err(mpsc::TryRecvError::Empty) => break,
                    Err(mpsc::TryRecvError::Disconnected) => return,
                }
            }
        }
    }

    /// A look for the history, when one is due.
    fn look_at_what_is_held(&mut self) {
        let now = monotonic();
        if self.history.is_due(now) {
            self.heap.look(now, &mut self.history);
            let end = monotonic();
            self.history.rest(end, end.saturating_sub(now));
        }
    }

    fn obey(&mut self, request: Request) {
        match request {
            Request::Enable { pid, image, space, flags } => self.enable(pid, image, *space, flags),
            Request::FollowGo { image, number, samples } => {
                self.go.insert((image, number), GoHeap { samples, batch: Vec::new(), stacks: HashSet::new() });
            }
            Request::Resume(image) => self.resume(image),
            Request::Drop(image) => self.drop_image(image),
            Request::Interrupted(until) => self.heap.frees_lost_without_trace(until),
            Request::Ended(image) => {
                self.take_in_all();
                // Unless its own record has told.
                if let Some(tracked) = self.images.get(&image) {
                    if let Err(error) = self.events.disable(tracked.pid, image) {
                        tracing::warn!("cannot stop recording process {}: {error}", tracked.pid);
                    }
                    self.has_ended(image);
                    (self.notify)(Notice::Ended { image, signal: None });
                }
            }
            // Nobody may wait any more for what follows: nothing to do then.
            Request::Held { images, reply } => {
                let _ = reply.send(images.into_iter().map(|image| self.heap.held(image)).collect());
            }
            Request::Covered { image, ranges, reply } => {
                // What there is now, not all that will come meanwhile.
                for _ in 0..BACKLOG {
                    if self.take_in(BATCH) < BATCH {
                        break;
                    }
                }
                let _ = reply.send(self.heap.covered(image, &ranges));
            }
            Request::Snapshot { min_age, reply } | Request::Finish { min_age, reply } => {
                // Nobody waits any more: nothing to do.
                let _ = reply.send(self.snapshot(min_age));
            }
        }
    }

    /// Records an image from now on; of one that is recorded already, its mappings have been looked at.
    fn enable(&mut self, pid: Pid, image: Image, space: AddressSpace, flags: u32) {
        self.unwinder.follow(&space);
        if let Some(tracked) = self.images.get_mut(&image) {
            tracked.space = space;
            tracked.place_the_rest(&mut self.heap, &self.unwinder, &mut self.trails);
            return self.resume(image);
        }
        if self.ended.contains_key(&image) {
            // Or has become yet another program.
            return;
        }
        if self.images.is_empty() && self.ended.is_empty() {
            // Nothing has been recorded before.
            self.history = History::new(monotonic());
        }
        self.images.insert(image, Tracked::new(pid, space, false));
        // Only once: from here on the BPF side may give the process another image at any time.
        if let Err(error) = self.events.enable(pid, Target { image: image.0, flags }) {
            tracing::error!("cannot record process {pid}: {error}");
        }
    }

    /// Has an image recorded that was not until now, if so it is.
    fn resume(&mut self, image: Image) {
        let Some(tracked) = self.images.get_mut(&image) else { return };
        if self.events.resume(image) {
            tracked.since = monotonic();
            (self.notify)(Notice::Resumed(image, tracked.since));
        }
    }

    /// Takes an image for one that never was.
    fn drop_image(&mut self, image: Image) {
        let Some(tracked) = self.images.remove(&image) else { return };
        if let Err(error) = self.events.disable(tracked.pid, image) {
            tracing::warn!("cannot stop recording process {}: {error}", tracked.pid);
        }
        // It may be paused, and has no need to be any more.
        self.events.resume(image);
        self.heap.forget(image);
    }

    fn finish(mut self, min_age: Duration, reply: &mpsc::Sender<Snapshot>) {
        for (image, Tracked { pid, .. }) in &self.images {
            if let Err(error) = self.events.disable(*pid, *image) {
                tracing::warn!("cannot stop recording process {pid}: {error}");
            }
        }
        std::thread::sleep(GRACE);
        self.take_in_all();
        self.account_for_loss();
        let _ = reply.send(self.snapshot(min_age));
    }

    /// Takes in all records that are there, but not for ever: at most what the largest ring buffer holds.
    fn take_in_all(&mut self) {
        for _ in 0..(1 << 30) / (BATCH * 16) {
            if self.take_in(BATCH) < BATCH {
                break;
            }
        }
    }

    /// Takes in up to `limit` records; returns how many.
    fn take_in(&mut self, limit: usize) -> usize {
        let Self { events, heap, images, ended, leaving, unwinder, trails, unknown_records, go, notify, .. } = self;
        let mut notices: Vec<Notice> = Vec::new();
        let mut last = None;
        let taken = events.drain(limit, |record| match event::parse(record) {
            Ok((Origin { image, tid, slot }, event)) => {
                // Records come in runs of one image.
                let known = last == Some(image) || images.contains_key(&image);
                if let Event::Began(beginning) = event {
                    last = None;
                    begin(image, beginning, images, ended, heap, unwinder, trails);
                    if matches!(beginning.how, How::Exec | How::ExecByOtherThread) {
                        go.retain(|(of, _), _| *of != beginning.parent);
                        // The first thread has ended for this.
                        notices.retain(|notice| *notice != Notice::FirstThreadEnded(beginning.parent));
                    }
                    notices.push(Notice::Began(image, beginning));
                    return;
                }
                if !known {
                    // A process may outlive the owner of the memory that it shares. What others depend on is taken in.
                    match event {
                        Event::Stack { id, frames, end } => heap.define(image, id, frames, end),
                        Event::UnknownFile(unknown) => unwinder.retry(unknown.number),
                        _ => {}
                    }
                    return;
                }
                last = Some(image);
                heap.apply(Origin { image, tid, slot }, event);
                match event {
                    Event::Stack { id, .. } => {
                        if let (Some(stack), Some(tracked)) = (heap.stacks().find(id), images.get_mut(&image)) {
                            place(heap, tracked, unwinder, trails, stack);
                        }
                    }
                    Event::GoSample(GoSample { addr, size, charge, stack, time, sweepgen, class }) => {
                        let stack = heap.intern(image, stack);
                        if let Some(process) = go.get_mut(&(image, slot)) {
                            process.stacks.insert(stack);
                            let stack = stack.raw();
                            process.batch.push(Sample { addr, size, charge, time, sweepgen, class, stack });
                        }
                    }
                    Event::UnknownFile(unknown) => {
                        images.entry(image).and_modify(|tracked| tracked.unknown.push(unknown));
                    }
                    Event::Ended { signal } => {
                        last = None;
                        end(image, images, ended, leaving, heap, unwinder, trails);
                        notices.retain(|notice| *notice != Notice::FirstThreadEnded(image));
                        notices.push(Notice::Ended { image, signal });
                    }
                    Event::ThreadExit if images.get(&image).is_some_and(|tracked| tracked.pid == tid) => {
                        notices.push(Notice::FirstThreadEnded(image));
                    }
                    Event::SharerEnded => notices.push(Notice::SharerEnded(image)),
                    _ => {}
                }
            }
            Err(event::Unintelligible) => *unknown_records += 1,
        });
        for tracked in images.values_mut().filter(|tracked| !tracked.unknown.is_empty()) {
            tracked.refresh(heap, unwinder, trails);
        }
        notices.into_iter().for_each(notify);
        go.values_mut().for_each(GoHeap::pass_on);
        taken
    }

    /// Takes an image for ended.
    fn has_ended(&mut self, image: Image) {
        let Self { heap, images, ended, leaving, unwinder, trails, .. } = self;
        end(image, images, ended, leaving, heap, unwinder, trails);
    }

    /// Lets go of the blocks of processes that have ended. Only here: what was lost of their frees is applied by now.
    fn let_go(&mut self) {
        for (image, time) in self.leaving.drain(..) {
            self.heap.end(image, time, self.min_age);
        }
    }

    /// Reads the loss counters; when frees were lost, ends the blocks that they would have ended.
    fn account_for_loss(&mut self) {
        let loss = match self.events.loss() {
            Ok(loss) => loss,
            Err(error) => return tracing::error!("cannot read the loss counters: {error}"),
        };
        if loss == self.loss {
            return;
        }
        let frees_lost = loss.frees != self.loss.frees;
        if loss.frees_unrecorded != self.loss.frees_unrecorded {
            self.heap.frees_lost_without_trace(loss.frees_unrecorded_time);
        }
        tracing::debug!(?loss, "events were lost");
        if loss.returns_declined != self.loss.returns_declined {
            (self.notify)(Notice::ReturnDeclined);
        }
        self.loss = loss;
        if frees_lost {
            self.end_lost_frees();
        }
    }

    fn end_lost_frees(&mut self) {
        let mut frees: Vec<(LostFree, u64)> = Vec::new();
        if let Err(error) = self.events.take_lost_frees(&mut frees) {
            tracing::error!("cannot read the set of lost frees: {error}; all blocks up to now are uncertain");
            self.heap.frees_lost_without_trace(monotonic());
        }
        // Whatever was recorded before those frees is in the ring buffer by now.
        self.take_in_all();
        frees.sort_unstable_by_key(|(_, time)| *time);
        for (free, time) in frees {
            self.heap.apply_lost_free(Image(free.image), free.addr, time);
        }
    }

    /// Forgets the addresses of stacks when they take too much memory: of those that hold nothing first, then of those that hold
    /// the least.
    fn keep_within_memory(&mut self) {
        let blocks = self.heap.blocks() * block(self.min_age);
        let room = self.memory.for_books().saturating_sub(blocks);
        let stacks = self.heap.stacks().len() as u64 * memory::STACK;
        let (frames, places) = self.trails.size();
        let used = stacks + frames as u64 * memory::FRAME + places as u64 * memory::PLACE;
        if used <= room {
            return;
        }
        let of_go: HashSet<StackIndex> = self.go.values().flat_map(|process| &process.stacks).copied().collect();
        let of_go: HashSet<StackIndex> = of_go.into_iter().map(|stack| self.heap.stacks().first(stack)).collect();
        let mut known: Vec<(StackIndex, usize)> =
            self.trails.lengths().filter(|(stack, _)| !of_go.contains(stack)).collect();
        // What all processes hold by them.
        let mut values: HashMap<StackIndex, Values> = HashMap::new();
        for (index, first) in self.heap.stacks().firsts().enumerate() {
            *values.entry(first).or_default() += self.heap.values(StackIndex::from_raw(index as u32));
        }
        known.sort_by_cached_key(|(stack, _)| {
            let Values { outstanding_bytes, outstanding_blocks, allocated_bytes, .. } =
                values.get(stack).copied().unwrap_or_default();
            (outstanding_blocks > 0, outstanding_bytes, allocated_bytes)
        });
        // By a quarter less than there is room for, so that this is not done at once again.
        let mut excess = used - room / 4 * 3;
        let folded: Vec<StackIndex> = known
            .into_iter()
            .take_while(|(_, frames)| {
                let more = excess > 0;
                excess = excess.saturating_sub(*frames as u64 * memory::FRAME);
                more
            })
            .map(|(stack, _)| stack)
            .collect();
        if folded.is_empty() {
            return;
        }
        tracing::debug!(used, room, folded = folded.len(), "stacks take too much memory");
        self.trails.forget(&folded);
        folded.iter().for_each(|stack| self.heap.fold(*stack));
        self.events.forget_stacks(self.heap.stacks().ids(&folded.into_iter().collect()));
    }

    /// Looks at the mappings when they have changed, or now and then where nobody tells: libraries come and go without a stack
    /// that tells. Unwinding does not depend on it: what has to be probed besides does.
    fn look_for_new_mappings(&mut self) {
        for (image, tracked) in &mut self.images {
            let changes = self.unwinder.changes_of(tracked.pid);
            let unchanged = changes.is_some() && changes == tracked.changes;
            if tracked.refreshed.elapsed() >= REFRESH_PERIOD && !unchanged {
                tracked.refresh(&mut self.heap, &mut self.unwinder, &mut self.trails);
            }
            if std::mem::take(&mut tracked.is_changed) {
                (self.notify)(Notice::Mapped(*image));
            }
        }
    }

    fn snapshot(&mut self, min_age: Duration) -> Snapshot {
        let now = monotonic();
        for tracked in self.images.values_mut().filter(|tracked| !tracked.unplaced.is_empty()) {
            tracked.refresh(&mut self.heap, &mut self.unwinder, &mut self.trails);
        }
        self.keep_within_memory();
        let usage = self.heap.usage(now, nanoseconds(min_age));
        let times = self.history.times();
        let mut unknown_frees: HashMap<Image, Option<Arc<[f32]>>> = HashMap::new();
        let mut stacks: Vec<StackSnapshot> = Vec::new();
        let mut others: HashMap<Image, usize> = HashMap::new();
        let mut folded = (0, 0);
        for usage in usage {
            let image = self.heap.stacks().image(usage.stack);
            let (pid, since) = self.of_image(image);
            let unknown = unknown_frees.entry(image).or_insert_with(|| self.unknown_frees(image));
            let young = self.heap.values(usage.stack).outstanding_bytes.saturating_sub(usage.values.outstanding_bytes);
            let held = self.held(since, usage.stack, &times);
            let stack = StackSnapshot {
                pid,
                image,
                stack: usage.stack,
                values: usage.values,
                uncertain_bytes: usage.uncertain_bytes,
                oldest: usage.oldest.map(|oldest| Duration::from_nanos(now.saturating_sub(oldest))),
                held: held.map(|held| held.replacing(unknown.clone()).aged(young, self.min_age)),
                trail: self.trail(usage.stack),
                end: self.end(usage.stack),
            };
            if !matches!(stack.trail, Trail::Folded) {
                stacks.push(stack);
                continue;
            }
            let count = if stack.values.outstanding_blocks == 0 { &mut folded.0 } else { &mut folded.1 };
            *count += 1;
            match others.get(&stack.image) {
                Some(one) => stacks[*one].absorb(&stack),
                None => {
                    others.insert(stack.image, stacks.len());
                    stacks.push(stack);
                }
            }
        }
        let this = &*self;
        let go_stacks = this.go.iter().flat_map(|((image, _), process)| {
            let (pid, _) = this.of_image(*image);
            process.stacks.iter().map(move |stack| {
                let (trail, end) = (this.trail(*stack), this.end(*stack));
                GoStack { pid, stack: *stack, trail, end }
            })
        });
        Snapshot {
            stacks,
            go_stacks: go_stacks.collect(),
            counters: self.heap.counters(),
            folded,
            loss: self.loss,
            unknown_records: self.unknown_records,
            unwind_tables: self.unwinder.described().to_vec(),
        }
    }

    fn end(&self, stack: StackIndex) -> u32 {
        self.trails.end(self.heap.stacks().first(stack), self.heap.stacks().end(stack))
    }

    /// The process of an image, and since when it is recorded: nanoseconds of CLOCK_MONOTONIC.
    fn of_image(&self, image: Image) -> (Pid, u64) {
        let live = self.images.get(&image).map(|tracked| (tracked.pid, tracked.since));
        live.or_else(|| self.ended.get(&image).copied()).unwrap_or_default()
    }

    /// What a stack held by blocks of the age that is of interest, from when there could be such: `since` is when its image began
    /// to be recorded.
    fn held(&self, since: u64, stack: StackIndex, times: &Arc<[f64]>) -> Option<Series> {
        self.history.series(stack.index(), times, since.saturating_add(self.min_age))
    }

    /// Frees of blocks from before: with a filter by size, they are mostly of blocks that were left out.
    fn unknown_frees(&self, image: Image) -> Option<Arc<[f32]>> {
        self.history.unknown_frees(image).filter(|_| self.all_sizes)
    }

    fn trail(&self, stack: StackIndex) -> Trail {
        match (self.heap.stacks().kind(stack), self.trails.get(self.heap.stacks().first(stack))) {
            (StackKind::TableFull, _) => Trail::TableFull,
            (StackKind::Recorded(_) | StackKind::Placed, Some(sites)) => Trail::Known(Arc::clone(sites)),
            (StackKind::Recorded(places), None) => {
                let site = |place: &u64| Arc::new(trails::site(*place, self.unwinder.files(), |_| Place::Unknown));
                Trail::Known(places.iter().map(site).collect())
            }
            (StackKind::Folded, _) => Trail::Folded,
            (StackKind::Unknown | StackKind::Placed, _) => Trail::Lost,
        }
    }
}

/// What a block takes at most, bytes, where growth is that of blocks of such an age.
fn block(min_age: u64) -> u64 {
    memory::BLOCK + if min_age > 0 { memory::YOUNG } else { 0 }
}

fn nanoseconds(duration: Duration) -> u64 {
    duration.as_nanos().try_into().unwrap_or(u64::MAX)
}
