//! The thread between kernel and report: takes events in, keeps the heap, and hands out views of it. It opens no file, looks into
//! no process, and waits for nobody who does.

mod bounds;
mod ended;
mod handing;
mod images;
mod intake;
mod loss;
mod notice;
mod patience;
mod places;
mod requests;
mod snapshot;
mod view;

use std::{
    sync::{Arc, mpsc},
    time::{Duration, Instant},
};

use hashbrown::HashMap;
use tracer_ebpf::{Loss, Target};

use self::{
    images::Images,
    intake::{GoHeap, Intake},
    patience::Patience,
    places::Places,
};
pub use self::{
    notice::Notice,
    requests::{Interest, Merging, Request, Requested, Requests, channel},
    snapshot::{GoStack, MappedSnapshot, Snapshot, StackSnapshot, Trail},
    view::View,
};
use crate::{
    bpf::{Events, LostBeginnings},
    clock::monotonic,
    event::{self, Image, Pid},
    heap::{Counters, Heap, History, MAX_STACKS},
    mapped::Mapped,
    memory::{self, Memory},
    priority,
    profile::UnwindTable,
    resolve::{Resolved, Resolvers},
};

/// Records taken in before requests and losses are looked at.
const BATCH: usize = 1 << 13;
/// Batches that are taken in before a question is answered: about what the buffer holds by default.
const BACKLOG: usize = 256;
/// How long a view waits for places of stacks that are being looked up, and the last one.
const SETTLING: Duration = Duration::from_millis(500);
const LAST_SETTLING: Duration = Duration::from_secs(5);
/// Time for programs that were running when recording was turned off to end.
const GRACE: Duration = Duration::from_millis(5);
/// How long a record may take to be written that was begun by then: whoever writes it may be out of its turn on the processor.
const LAST_WRITES: Duration = Duration::from_millis(300);

/// A view that somebody waits for.
struct Asked {
    /// When this has been settled.
    number: u64,
    /// When it is made anyway.
    deadline: Instant,
    min_age: Duration,
    reply: mpsc::Sender<View>,
}

/// The collector's state. Belongs to its thread.
pub struct Collector {
    events: Events,
    heap: Heap,
    /// What processes map themselves, if that is recorded.
    mapped: Mapped,
    records_mapped: bool,
    huge_pages: bool,
    end_with_thread: bool,
    memory: Memory,
    history: History,
    /// Blocks younger than this are not of interest, nanoseconds.
    min_age: u64,
    /// Whether blocks of all sizes are recorded.
    all_sizes: bool,
    /// Mean of bytes between two that are recorded; `None`: all are.
    sample: Option<u64>,
    images: Images,
    lost_beginnings: LostBeginnings,
    recycle_next: Instant,
    keep_next: Instant,
    /// Images that began unheard, and for how long at most.
    late: (u64, Duration),
    /// Images that are to be told as one, and how many of those should have been heard of and were not.
    merging: Vec<Merging>,
    unheard: u64,
    /// Events of images that were dropped though they may have been wanted.
    undecided_events: u64,
    places: Places,
    /// What stacks are unwound by.
    unwind_tables: Vec<UnwindTable>,
    /// Views that wait until the places of stacks are known.
    asked: Vec<Asked>,
    /// How often the resolvers were asked to settle, and how often they have.
    settling: u64,
    settled: u64,
    loss: Loss,
    unknown_records: u64,
    /// When recording ended, nanoseconds of CLOCK_MONOTONIC.
    stopped: Option<u64>,
    /// By image, and the number of the runtime in it.
    go: HashMap<(Image, u8), GoHeap>,
    /// Counts the views that somebody has.
    looking: Arc<()>,
    requests: Requested,
    notify: Box<dyn Fn(Notice) + Send>,
}

impl Collector {
    /// A collector that reads `events`, obeys `requests` and calls `notify`, within `memory`. The growth that it tells of is that
    /// of blocks that are of interest.
    pub fn new(
        (events, lost_beginnings): (Events, LostBeginnings),
        resolvers: Resolvers,
        memory: Memory,
        Interest { min_age, all_sizes, sample, mapped: records_mapped, huge_pages, end_with_thread }: Interest,
        requests: Requested,
        notify: Box<dyn Fn(Notice) + Send>,
    ) -> Self {
        let min_age = nanoseconds(min_age);
        let heap = Heap::with_room(memory.stacks(MAX_STACKS), memory.blocks(block(min_age)));
        Self {
            events,
            heap: heap.with_min_age(min_age).with_samples(sample),
            mapped: Mapped::with_room(memory.ranges()),
            records_mapped,
            huge_pages,
            end_with_thread,
            memory,
            history: History::new(monotonic()),
            min_age,
            all_sizes,
            sample,
            images: Images::default(),
            lost_beginnings,
            recycle_next: Instant::now(),
            keep_next: Instant::now(),
            late: (0, Duration::ZERO),
            merging: Vec::new(),
            unheard: 0,
            undecided_events: 0,
            places: Places::new(resolvers),
            unwind_tables: Vec::new(),
            asked: Vec::new(),
            settling: 0,
            settled: 0,
            loss: Loss::default(),
            unknown_records: 0,
            stopped: None,
            go: HashMap::new(),
            looking: Arc::default(),
            requests,
            notify,
        }
    }

    /// Runs until it is told to finish, or until nobody can ask any more.
    pub fn run(mut self) {
        priority::set_own(priority::URGENT);
        let mut patience = Patience::new(self.events.room_lasts(), Instant::now());
        loop {
            let taken = self.take_in(BATCH);
            // A garbage collection is to be looked at before what it has freed is used again; probes that have ended with a thread are to be
            // put on another one.
            let timeout = patience.next(taken > 0 || !self.go.is_empty() || self.end_with_thread, Instant::now());
            if taken < BATCH {
                self.events.wait(self.requests.bell(), timeout);
                self.requests.heard();
            }
            self.let_go();
            self.merge();
            self.recycle_stacks();
            self.keep_within_memory();
            self.look_at_what_is_held();
            loop {
                match self.requests.next() {
                    Ok(Request::Finish { min_age, reply }) => return self.finish(min_age, &reply),
                    Ok(request) => self.obey(request),
                    Err(mpsc::TryRecvError::Empty) => break,
                    Err(mpsc::TryRecvError::Disconnected) => return,
                }
            }
            self.answer();
        }
    }

    /// A look for the history, when one is due.
    fn look_at_what_is_held(&mut self) {
        let now = monotonic();
        if !self.history.is_due(now) {
            return;
        }
        // What somebody looks at would have to be copied: another time, and not as soon as nobody does.
        if Arc::strong_count(&self.looking) > 1 {
            return self.history.rest(now, 0);
        }
        self.heap.look(now, &mut self.history);
        let end = monotonic();
        self.history.rest(end, end.saturating_sub(now));
    }

    fn obey(&mut self, request: Request) {
        match request {
            Request::Enable { pid, image, flags } => self.enable(pid, image, flags),
            Request::Resolved(resolved) => self.learn(resolved),
            Request::FollowGo { image, number, samples } => {
                self.go.insert((image, number), GoHeap::new(samples));
            }
            Request::Resume(image) => self.resume(image),
            Request::Stop { reply } => {
                self.stop();
                let _ = reply.send(());
            }
            Request::Keep(image) => self.images.keep(image),
            Request::Drop { image, in_doubt } => self.drop_image(image, in_doubt),
            Request::Merge(merging) => self.merging.extend(merging),
            Request::Unseen(image, until) => self.heap.frees_of_lost_without_trace(image, until),
            Request::Away => {
                self.heap.frees_are_unseen();
                self.history.pause(monotonic());
            }
            Request::Back(since) => {
                self.heap.frees_are_seen(since);
                self.history.resume(since);
            }
            Request::Ended(image) => {
                self.take_in_all();
                // Unless its own record has told.
                if let Some(tracked) = self.images.get(image) {
                    if let Err(error) = self.events.disable(tracked.pid, image) {
                        tracing::warn!("cannot stop recording process {}: {error}", tracked.pid);
                    }
                    self.images.end(image);
                    self.places.resolvers().ended(image);
                    (self.notify)(Notice::Ended { image, signal: None, ran: Duration::ZERO });
                }
            }
            // Nobody may wait any more for what follows: nothing to do then.
            Request::IsStill { pid, image, reply } => {
                let _ = reply.send(self.events.target(pid, image).is_some());
            }
            Request::Held { images, reply } => {
                let _ = reply.send(images.into_iter().map(|image| self.heap.held(image)).collect());
            }
            Request::Covered { image, ranges, reply } => {
                self.catch_up(BACKLOG);
                let _ = reply.send(self.heap.covered(image, &ranges, self.huge_pages));
            }
            Request::Mapped { image, reply } => {
                self.catch_up(BACKLOG);
                let _ = reply.send(self.mapped.memory_of(image));
            }
            // Of one that has ended nobody would forget it.
            Request::Reserved { image, ranges } if self.records_mapped && self.images.get(image).is_some() => {
                self.mapped.were_reserved(image, &ranges);
            }
            Request::Reserved { .. } => {}
            Request::View { min_age, reply } | Request::Finish { min_age, reply } => {
                self.places.ask();
                let (number, deadline) = (self.have_settled(false), Instant::now() + SETTLING);
                self.asked.push(Asked { number, deadline, min_age, reply });
            }
        }
    }

    /// Answers those who wait for a view.
    fn answer(&mut self) {
        let is_due = |asked: &mut Asked| asked.number <= self.settled || Instant::now() >= asked.deadline;
        let due: Vec<Asked> = self.asked.extract_if(.., is_due).collect();
        if !due.is_empty() {
            // Whoever asked knows already who is told as one.
            self.let_go();
            self.merge();
        }
        for Asked { min_age, reply, .. } in due {
            // Nobody may wait any more: nothing to do then.
            let _ = reply.send(self.view(min_age));
        }
    }

    /// Has the resolvers settle, if some stack waits for them: the number of the last time that they are to. `is_last`: nothing more is
    /// recorded.
    fn have_settled(&mut self, is_last: bool) -> u64 {
        if !self.places.pending().is_empty() {
            self.settling += 1;
            self.places.resolvers().settle(self.settling, is_last);
        }
        self.settling
    }

    fn learn(&mut self, resolved: Resolved) {
        match resolved {
            Resolved::Known { number, module, table } => {
                self.places.known(&mut self.heap, number, module);
                self.unwind_tables.extend(table);
            }
            Resolved::Forgotten(numbers) => self.places.forgotten(numbers),
            Resolved::Located(stacks) => {
                stacks.into_iter().for_each(|located| self.places.located(&mut self.heap, located));
            }
            Resolved::Unwound { stack, places, end } => self.places.unwound(&mut self.heap, stack, &places, end),
            Resolved::Mapped(image) => (self.notify)(Notice::Mapped(image)),
            Resolved::Settled(number) => self.settled = number,
        }
    }

    /// Records an image from now on.
    fn enable(&mut self, pid: Pid, image: Image, flags: u32) {
        if self.images.get(image).is_some() {
            return self.resume(image);
        }
        let is_first = self.images.is_empty();
        // Only once: from here on the BPF side may give the process another image at any time. It may have become yet another
        // program.
        if !self.images.add(image, pid) {
            return;
        }
        if is_first {
            self.history = History::new(monotonic());
        }
        self.places.resolvers().began(image, pid, None);
        if let Err(error) = self.events.enable(pid, Target { image: image.0, flags }) {
            tracing::error!("cannot record process {pid}: {error}");
        }
    }

    /// Has an image recorded that was not until now, if so it is.
    fn resume(&mut self, image: Image) {
        if self.images.get(image).is_some() && self.events.resume(image) {
            let since = monotonic();
            self.images.is_recorded_since(image, since);
            (self.notify)(Notice::Resumed(image, since));
        }
    }

    /// Takes an image for one that never was. `in_doubt`: it may have been wanted.
    fn drop_image(&mut self, image: Image, in_doubt: bool) {
        if let Some(pid) = self.images.drop(image)
            && let Err(error) = self.events.disable(pid, image)
        {
            tracing::warn!("cannot stop recording process {pid}: {error}");
        }
        // It may be paused, and has no need to be any more.
        self.events.resume(image);
        self.events.disregard(image);
        let Counters { events, .. } = self.heap.remove(image);
        self.undecided_events += if in_doubt { events } else { 0 };
        self.mapped.forget(image);
        self.places.resolvers().ended(image);
    }

    /// Records nothing any more. What has been recorded is taken in.
    fn stop(&mut self) {
        for (image, tracked) in self.images.live() {
            if let Err(error) = self.events.disable(tracked.pid, image) {
                tracing::warn!("cannot stop recording process {}: {error}", tracked.pid);
            }
        }
        self.stopped = Some(monotonic());
        std::thread::sleep(GRACE);
        self.take_in_all();
        let deadline = Instant::now() + LAST_WRITES;
        while self.events.unfinished() > 0 && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(1));
            self.take_in_all();
        }
        self.unknown_records += self.events.unfinished();
        // What the last of these lost may be counted by now and be told later.
        self.end_lost_frees();
        self.let_go();
    }

    fn finish(mut self, min_age: Duration, reply: &mpsc::Sender<View>) {
        self.let_go();
        // Without what turned out to be none of the trace.
        self.account_for_loss();
        self.merge();
        let (mut number, deadline) = (self.have_settled(true), Instant::now() + LAST_SETTLING);
        while self.settled < number
            && let Ok(request) = self.requests.wait(deadline.saturating_duration_since(Instant::now()))
        {
            if let Request::Resolved(resolved) = request {
                self.learn(resolved);
                // What was waiting for a file may have addresses, too.
                if self.places.ask() {
                    number = self.have_settled(true);
                }
            }
        }
        let _ = reply.send(self.view(min_age));
    }

    /// Takes in all records that are there, but not for ever: at most what the largest ring buffer holds.
    fn take_in_all(&mut self) {
        self.catch_up((1 << 30) / (BATCH * 16));
    }

    /// Takes in what records there are now, at most so many batches: not all that will come meanwhile.
    fn catch_up(&mut self, batches: usize) {
        for _ in 0..batches {
            if self.take_in(BATCH) < BATCH {
                break;
            }
        }
    }

    /// Takes in up to `limit` records; returns how many.
    fn take_in(&mut self, limit: usize) -> usize {
        let (events, mut intake, unknown_records) = self.intake();
        let taken = events.drain(limit, |record| match event::parse(record) {
            Ok((origin, event)) => intake.take(origin, event),
            Err(event::Unintelligible) => *unknown_records += 1,
        });
        let notices = intake.notices;
        self.places.ask();
        // Before an end is told: whoever hears of it takes stock.
        self.go.values_mut().for_each(GoHeap::pass_on);
        notices.into_iter().for_each(&self.notify);
        taken
    }

    /// What takes records in, and what they come from; and the count of those that make no sense.
    fn intake(&mut self) -> (&mut Events, Intake<'_>, &mut u64) {
        let Self { events, heap, mapped, images, lost_beginnings, late, places, unknown_records, go, .. } = self;
        let intake =
            Intake { heap, mapped, images, lost_beginnings, late, places, go, notices: Vec::new(), last: None };
        (events, intake, unknown_records)
    }

    /// Accounts for what was lost, and lets go of the blocks of processes that have ended. Of those that had ended before: what was lost of
    /// their frees is applied then, and what is taken in meanwhile may tell of other ends.
    fn let_go(&mut self) {
        let leaving = self.images.leaving();
        self.account_for_loss();
        for (image, time) in leaving {
            self.heap.end(image, time, self.min_age);
            self.mapped.end(image, || self.heap.stand_in(image));
            self.history.forget_image(image);
            self.events.forget_unseen(image);
        }
        for (image, is_wanted) in self.images.take_replaced() {
            if is_wanted {
                self.events.forget_unseen(image);
            } else {
                self.events.disregard(image);
            }
        }
        self.events.forget_blocks(self.heap.take_gone());
    }
}

/// What a block takes at most, bytes, where growth is that of blocks of such an age.
fn block(min_age: u64) -> u64 {
    memory::BLOCK + if min_age > 0 { memory::YOUNG } else { 0 }
}

fn nanoseconds(duration: Duration) -> u64 {
    duration.as_nanos().try_into().unwrap_or(u64::MAX)
}
