//! The search for the allocator of a process that has become another program: when to look, and what has been missed until
//! it is found.
//!
//! The loader of the new program is at work meanwhile and is not stopped for it. So the first allocator that is there is
//! probed at once, and looked at again until the loader must be done: another one may come to be searched before it.

use std::{
    fs,
    time::{Duration, Instant},
};

use crate::{
    clock::monotonic,
    event::Pid,
    process::{elf::Bytes, elf::Elf, link_map, root::ProcessDirectory},
};

/// How long to look again after an allocator was found.
const SETTLING: Duration = Duration::from_millis(500);
/// How long a new program may take to load its allocator.
const LOADING: Duration = Duration::from_secs(10);
/// Shortest and longest time between two looks.
const PAUSE: (Duration, Duration) = (Duration::from_millis(1), Duration::from_millis(100));

/// A search that is under way.
pub struct Search {
    pid: Pid,
    begun: Instant,
    /// Nanoseconds of CLOCK_MONOTONIC at the exec.
    exec: u64,
    pause: Duration,
    next: Instant,
    /// Whether the probes went with the thread that they were attached to.
    pub probes_lost: bool,
    /// Whether an allocator was found.
    pub found: bool,
    /// Whether the program is the one that its parent has: a fork.
    pub same_program: bool,
    missed: Option<Missed>,
}

/// What was not recorded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Missed {
    /// For how long.
    pub span: Duration,
    /// Memory of its own that the process had by then, bytes: more than it can have allocated.
    pub at_most: Option<u64>,
}

impl Search {
    /// That of a process that became another program at `exec`, nanoseconds of CLOCK_MONOTONIC.
    pub fn begin(pid: Pid, exec: u64, probes_lost: bool) -> Self {
        let begun = Instant::now();
        Self {
            pid,
            begun,
            exec,
            pause: PAUSE.0,
            next: begun,
            probes_lost,
            found: false,
            same_program: false,
            missed: None,
        }
    }

    /// The same for a process that runs the same program: the one that this is of has forked it.
    pub fn again_for(&self, pid: Pid) -> Self {
        Self { begun: self.begun, ..Self::begin(pid, self.exec, self.probes_lost) }
    }

    /// That of a process that was forked, and has no probes of its own yet.
    pub fn of_fork(pid: Pid, fork: u64) -> Self {
        Self { same_program: true, ..Self::begin(pid, fork, true) }
    }

    /// Whether it is time to look; if so, sets the time of the next look.
    pub fn is_due(&mut self) -> bool {
        let now = Instant::now();
        if now < self.next {
            return false;
        }
        self.next = now + self.pause;
        self.pause = (self.pause * 5 / 4).min(PAUSE.1);
        true
    }

    /// When the next look is due.
    pub fn next(&self) -> Instant {
        self.next
    }

    /// Probes have come to be in force at this moment.
    pub fn attached(&mut self) {
        (self.found, self.probes_lost) = (true, false);
        let span = Duration::from_nanos(monotonic().saturating_sub(self.exec));
        self.missed = Some(Missed { span, at_most: own_memory(self.pid) });
    }

    /// What was missed, if anything.
    pub fn missed(&self) -> Option<Missed> {
        self.missed
    }

    /// Whether no allocator will come any more that a look from now on does not find.
    pub fn is_last_look(&self) -> bool {
        let elapsed = self.begun.elapsed();
        elapsed >= LOADING || is_static(self.pid) || elapsed >= SETTLING && has_loader_list(self.pid)
    }

    /// Whether the allocator that was found has been there for so long that the loader must be done.
    pub fn is_settled(&self) -> bool {
        self.found && self.begun.elapsed() >= SETTLING
    }
}

/// Whether the process's program is loaded by the kernel alone.
fn is_static(pid: Pid) -> bool {
    let Ok(executable) = ProcessDirectory::open(pid).and_then(|process| process.executable(pid)) else { return false };
    Elf::parse(&Bytes::new(&executable.file)).is_ok_and(|elf| !elf.has_interpreter())
}

fn has_loader_list(pid: Pid) -> bool {
    link_map::search_order(pid).is_ok_and(|order| order.is_some())
}

/// Anonymous memory of a process, resident or swapped out, bytes (proc_pid_status(5)).
fn own_memory(pid: Pid) -> Option<u64> {
    let status = fs::read(format!("/proc/{pid}/status")).ok()?;
    let status = String::from_utf8_lossy(&status).into_owned();
    let kilobytes = |name: &str| -> Option<u64> {
        let line = status.lines().find_map(|line| line.strip_prefix(name))?;
        line.split_whitespace().next()?.parse().ok()
    };
    Some((kilobytes("RssAnon:")? + kilobytes("VmSwap:")?) << 10)
}
