//! The life of one image, as a pure state machine: what is to be done about a process when something has become known of it, and
//! what its time without probes comes to in words. No process is looked at here, no clock is read.
//!
//! ```text
//!   Looking --allocator found--> Probing --in force--> Recorded --exec--> Looking (another image)
//!      |                            |                      |
//!      | none will come             | refused              | its last thread ended
//!      v                            v                      v
//!   Unrecordable                Unrecordable             Ended
//! ```

use std::time::{Duration, Instant};

use crate::event::Pid;

/// How long to look again after an allocator was found: the loader is not stopped for us, and another allocator may come to be
/// searched before it.
const SETTLING: Duration = Duration::from_millis(500);
/// How long a new program may take to load its allocator.
const LOADING: Duration = Duration::from_secs(10);
/// How long a program that is known runs before it is looked at: most are over by then.
const TRUST: Duration = Duration::from_millis(20);
/// Shortest and longest time between two looks.
const PAUSE: (Duration, Duration) = (Duration::from_millis(1), Duration::from_millis(100));

/// The present, by both clocks.
#[derive(Clone, Copy, Debug)]
pub struct Now {
    /// For what is due.
    pub instant: Instant,
    /// Nanoseconds of CLOCK_MONOTONIC, as the BPF side has it.
    pub clock: u64,
}

/// What has become known of a process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// Time has passed.
    Tick,
    /// It has become another program.
    Execed {
        /// When, nanoseconds of CLOCK_MONOTONIC.
        time: u64,
        /// Whether the probes went, with the thread that they were attached to.
        probes_lost: bool,
        /// Whether the same program was looked at before, and takes what it allocates from a file that is probed for everybody.
        known: bool,
    },
    /// It was looked at.
    Looked(Look),
    /// What came of putting probes there.
    Probed(Probing),
    /// It is recorded from this time on, nanoseconds of CLOCK_MONOTONIC, and was not before.
    Recorded(u64),
    /// Its last thread has ended, so long after tracing began.
    Exited(Duration),
}

/// What a look at a process has shown.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Look {
    /// It has ended, which is told elsewhere.
    Gone,
    /// It is a program that cannot be traced: what it is, in words.
    Foreign(String),
    /// Nothing to allocate with is there.
    Nothing {
        /// Whether its loader is done.
        loaded: bool,
        /// Whether the kernel alone loads it.
        is_static: bool,
    },
    /// It has no allocator that could be probed, but another heap that is followed.
    OtherHeap,
    /// Its allocator is there. `probed`: so are its probes.
    Allocator {
        /// Whether probes are in force already.
        probed: bool,
        /// Whether they are there for all that map the file, and so have been from its first instruction on.
        covered: bool,
        /// Memory of its own that it had, bytes.
        own_memory: Option<u64>,
    },
}

/// What came of putting probes to a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Probing {
    /// They are in force.
    InForce,
    /// The kernel refuses.
    Refused,
    /// The process has ended.
    Gone,
}

/// What is to be done about a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Look what it is, and what it allocates with.
    Look,
    /// Put probes to the allocator that was found, or that its parent has.
    Probe,
    /// Have it recorded, with the mappings that were found.
    Enable,
    /// Have it recorded: its mappings are those of its parent.
    Resume,
}

/// What was not recorded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Missed {
    /// For how long.
    pub span: Duration,
    /// Memory of its own that the process had by then, bytes: more than it can have allocated.
    pub at_most: Option<u64>,
}

/// The search for the allocator of a program that a process has become.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Search {
    begun: Instant,
    /// Nanoseconds of CLOCK_MONOTONIC at the exec, or the fork.
    from: u64,
    pause: Duration,
    next: Instant,
    /// When it was looked for, or is, for the last time.
    asked: Instant,
    /// Whether somebody looks.
    is_looking: bool,
    /// Whether the probes went, or never were there.
    probes_lost: bool,
    /// Whether the program is that of its parent, whose allocator is known.
    same_program: bool,
    found: bool,
    /// Whether the program is one that was looked at before.
    known: bool,
    /// Of the allocator that is being probed.
    covered: bool,
    own_memory: Option<u64>,
    missed: Option<Missed>,
}

impl Search {
    fn new(now: Now, from: u64, probes_lost: bool) -> Self {
        Self {
            begun: now.instant,
            from,
            pause: PAUSE.0,
            next: now.instant,
            asked: now.instant,
            is_looking: false,
            probes_lost,
            same_program: false,
            found: false,
            known: false,
            covered: false,
            own_memory: None,
            missed: None,
        }
    }

    /// That of a program which was looked at before.
    fn known(self, known: bool) -> Self {
        let next = if known { self.begun + TRUST } else { self.next };
        Self { known, next, ..self }
    }

    fn rest(&mut self, now: Now) {
        self.is_looking = false;
        self.next = now.instant + if self.found { PAUSE.1 } else { self.pause };
        self.pause = (self.pause * 5 / 4).min(PAUSE.1);
    }

    fn age(&self, now: Now) -> Duration {
        now.instant.saturating_duration_since(self.begun)
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Stage {
    /// Its allocator is looked for, or looked at again.
    Looking(Search),
    /// There is nothing to be done.
    Recorded,
    /// It is a program that cannot be probed.
    Unrecordable,
    Ended(Duration),
}

/// The life of a process and what is to be told of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Life {
    pid: Pid,
    stage: Stage,
    /// Whether it came while others were traced: it was started by one of them, or fits what was asked for.
    came_later: bool,
    /// When its image began, nanoseconds of CLOCK_MONOTONIC, where it has to have probes of its own before it is recorded.
    paused_since: Option<u64>,
    /// How long it was there before it was recorded.
    late: Option<Duration>,
    /// Whether it ended as a program whose allocator had not been looked for yet.
    unlooked: bool,
    notes: Vec<String>,
    /// How many of them were told as they came.
    told: usize,
    unseen_spans: u64,
}

impl Life {
    /// Of a process that is recorded.
    pub fn recorded(pid: Pid) -> Self {
        Self {
            pid,
            stage: Stage::Recorded,
            came_later: false,
            paused_since: None,
            late: None,
            unlooked: false,
            notes: Vec::new(),
            told: 0,
            unseen_spans: 0,
        }
    }

    /// Of a process that this one has forked at `time`, nanoseconds of CLOCK_MONOTONIC. `paused`: it has to have probes of its own
    /// before it is recorded, else it has the same.
    pub fn forked(&self, pid: Pid, time: u64, paused: bool, now: Now) -> Self {
        let stage = match &self.stage {
            // What its parent's program is probed by may not be found yet.
            Stage::Looking(search) => {
                let probes_lost = search.probes_lost || paused;
                let again = Search::new(now, search.from, probes_lost);
                Stage::Looking(Search { begun: search.begun, ..again })
            }
            Stage::Unrecordable => Stage::Unrecordable,
            _ if paused => Stage::Looking(Search { same_program: true, ..Search::new(now, time, true) }),
            _ => Stage::Recorded,
        };
        Self { stage, came_later: true, paused_since: paused.then_some(time), ..Self::recorded(pid) }
    }

    /// Of a process that became a program at `time`, nanoseconds of CLOCK_MONOTONIC, and that nobody had seen before. `known`: the
    /// program is, as in [`Event::Execed`].
    pub fn newcomer(pid: Pid, time: u64, paused: bool, known: bool, now: Now) -> Self {
        let stage = Stage::Looking(Search::new(now, time, paused).known(known && !paused));
        Self { stage, came_later: true, paused_since: paused.then_some(time), ..Self::recorded(pid) }
    }

    /// Takes in what has become known: what is to be done.
    pub fn handle(&mut self, event: Event, now: Now) -> Vec<Action> {
        if self.is_over() {
            return Vec::new();
        }
        match event {
            Event::Tick => self.tick(now),
            Event::Execed { time, probes_lost, known } => self.execed(time, probes_lost, known, now),
            Event::Looked(look) => self.looked(look, now),
            Event::Probed(probing) => self.probed(probing, now),
            Event::Recorded(since) => {
                if let Some(began) = self.paused_since.take() {
                    self.late = Some(Duration::from_nanos(since.saturating_sub(began)));
                }
                Vec::new()
            }
            Event::Exited(after) => {
                let stage = std::mem::replace(&mut self.stage, Stage::Ended(after));
                if let Stage::Looking(search) = stage {
                    self.unlooked = !search.found && !search.known;
                    self.end_search(&search);
                }
                self.unlooked |= self.paused_since.is_some();
                Vec::new()
            }
        }
    }

    fn tick(&mut self, now: Now) -> Vec<Action> {
        let Stage::Looking(search) = &mut self.stage else { return Vec::new() };
        if search.is_looking || now.instant < search.next {
            return Vec::new();
        }
        (search.is_looking, search.asked) = (true, now.instant);
        vec![if search.same_program { Action::Probe } else { Action::Look }]
    }

    fn execed(&mut self, time: u64, probes_lost: bool, known: bool, now: Now) -> Vec<Action> {
        let before = std::mem::replace(&mut self.stage, Stage::Recorded);
        let lost_before = match before {
            Stage::Looking(search) => {
                self.end_search(&search);
                search.probes_lost
            }
            _ => false,
        };
        let probes_lost = probes_lost || lost_before || self.paused_since.is_some();
        self.stage = Stage::Looking(Search::new(now, time, probes_lost).known(known && !probes_lost));
        self.tick(now)
    }

    fn looked(&mut self, look: Look, now: Now) -> Vec<Action> {
        let paused = self.paused_since.is_some();
        let Stage::Looking(search) = &mut self.stage else { return Vec::new() };
        search.rest(now);
        // As old as it was then: a look at a large program takes its time.
        let age = search.asked.saturating_duration_since(search.begun);
        match look {
            Look::Gone => {}
            Look::Foreign(what) => self.cannot_be_recorded(&what),
            Look::Nothing { loaded, is_static }
                if !search.found && (is_static || loaded && age >= SETTLING || age >= LOADING) =>
            {
                self.has_no_allocator();
            }
            Look::Nothing { .. } => {}
            Look::Allocator { probed, covered, own_memory } => {
                let moves = search.probes_lost || !probed;
                if moves {
                    (search.is_looking, search.covered, search.own_memory) = (true, covered || paused, own_memory);
                    return vec![Action::Probe];
                }
                return self.found(age);
            }
            Look::OtherHeap => return self.found(age),
        }
        Vec::new()
    }

    fn probed(&mut self, probing: Probing, now: Now) -> Vec<Action> {
        let Stage::Looking(search) = &mut self.stage else { return Vec::new() };
        search.rest(now);
        match (probing, search.same_program) {
            (Probing::Gone, _) => Vec::new(),
            (Probing::Refused, true) => {
                self.stage = Stage::Unrecordable;
                self.was_unseen(format!("process {} could not be probed: nothing of it is recorded", self.pid));
                Vec::new()
            }
            (Probing::Refused, false) => {
                if search.age(now) >= SETTLING {
                    self.cannot_be_recorded("a program whose allocator could not be probed");
                }
                Vec::new()
            }
            (Probing::InForce, true) => {
                self.stage = Stage::Recorded;
                vec![Action::Resume]
            }
            (Probing::InForce, false) => {
                search.probes_lost = false;
                search.found = true;
                if !search.covered {
                    let span = Duration::from_nanos(now.clock.saturating_sub(search.from));
                    search.missed = Some(Missed { span, at_most: search.own_memory });
                }
                let age = search.age(now);
                self.settle(age);
                vec![Action::Enable]
            }
        }
    }

    /// What it has is recorded, or can be.
    fn found(&mut self, age: Duration) -> Vec<Action> {
        let Stage::Looking(search) = &mut self.stage else { return Vec::new() };
        let first = !std::mem::replace(&mut search.found, true);
        self.settle(age);
        if first { vec![Action::Enable] } else { Vec::new() }
    }

    /// Ends the search when what was found has been there for so long that the loader must be done.
    fn settle(&mut self, age: Duration) {
        let Stage::Looking(search) = &self.stage else { return };
        if age >= SETTLING {
            let search = search.clone();
            self.end_search(&search);
            self.stage = Stage::Recorded;
        }
    }

    /// It was followed to its allocator, or has none and needs none, while it was held.
    pub fn was_held(&mut self) {
        self.stage = Stage::Recorded;
    }

    /// The program that the process has become has no malloc.
    pub fn has_no_allocator(&mut self) {
        self.cannot_be_recorded("a program without a malloc that can be probed (statically linked and stripped?)");
    }

    fn cannot_be_recorded(&mut self, what: &str) {
        self.stage = Stage::Unrecordable;
        self.was_unseen(format!("process {} became {what}: nothing of that is recorded", self.pid));
    }

    /// Notes what was missed until an allocator was found.
    fn end_search(&mut self, search: &Search) {
        if let Some(missed) = search.missed {
            self.was_unseen(self.tell(missed));
        }
    }

    /// Some of what the process did was not recorded; `note` tells why.
    pub fn was_unseen(&mut self, note: String) {
        self.notes.push(note);
        self.unseen_spans += 1;
    }

    fn tell(&self, Missed { span, at_most }: Missed) -> String {
        let most = at_most
            .map_or_else(String::new, |bytes| format!("; it had {} KiB of memory of its own by then", bytes >> 10));
        let pid = self.pid;
        format!(
            "process {pid} became another program; the first {} ms of that were not recorded{most}",
            span.as_millis()
        )
    }

    fn missed(&self) -> Option<Missed> {
        match &self.stage {
            Stage::Looking(search) => search.missed,
            _ => None,
        }
    }

    /// Notes that have come since this was asked last.
    pub fn news(&mut self) -> &[String] {
        let told = std::mem::replace(&mut self.told, self.notes.len());
        self.notes.get(told..).unwrap_or_default()
    }

    /// What the reader of a report should know of it.
    pub fn notes(&self) -> impl Iterator<Item = String> {
        self.notes.iter().cloned().chain(self.missed().map(|missed| self.tell(missed)))
    }

    /// How often it ran without its probes, or as a program that cannot be probed; notes tell of that.
    pub fn unseen_spans(&self) -> u64 {
        self.unseen_spans + u64::from(self.missed().is_some())
    }

    /// How long it was there before it was recorded, where it had to have probes of its own first: so far, if it is not recorded at `clock`,
    /// nanoseconds of CLOCK_MONOTONIC.
    pub fn late(&self, clock: u64) -> Option<Duration> {
        let waits = self.paused_since.filter(|_| matches!(self.stage, Stage::Looking(_) | Stage::Recorded));
        self.late.or_else(|| Some(Duration::from_nanos(clock.saturating_sub(waits?))))
    }

    /// Whether it came while others were traced.
    pub fn came_later(&self) -> bool {
        self.came_later
    }

    /// Whether it is not recorded yet, for it has no probes of its own.
    pub fn is_paused(&self) -> bool {
        self.paused_since.is_some()
    }

    /// Whether it ended before its allocator was looked for: what was recorded is that of files that were probed already.
    pub fn was_not_looked_at(&self) -> bool {
        self.unlooked
    }

    /// Whether its probes went with the thread that they were attached to.
    pub fn has_lost_probes(&self) -> bool {
        matches!(&self.stage, Stage::Looking(search) if search.probes_lost)
    }

    /// Whether nothing has to be found out of it.
    pub fn is_settled(&self) -> bool {
        self.stage == Stage::Recorded
    }

    /// When it ended, since tracing began.
    pub fn ended(&self) -> Option<Duration> {
        match self.stage {
            Stage::Ended(after) => Some(after),
            _ => None,
        }
    }

    /// Whether it has ended.
    pub fn is_over(&self) -> bool {
        self.ended().is_some()
    }

    /// When something is due, if nothing else happens before.
    pub fn next(&self) -> Option<Instant> {
        match &self.stage {
            Stage::Looking(search) if !search.is_looking => Some(search.next),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests;
