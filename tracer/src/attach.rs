//! A traced process: finding its allocator, probing it, and following it through execs.

use std::{
    io,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, anyhow, bail};

use crate::{
    bpf::{Links, Order},
    event::{Image, Pid},
    limits,
    probe::{
        outcomes::Way,
        resolve::{self, Binding, Function},
    },
    probed_code::ProbedCode,
    probes::{Probes, Scope},
    process::{
        address_space::AddressSpace,
        link_map, maps,
        module::Module,
        opener, root, status,
        status::{NotTraceable, Status},
    },
    profile::{End, Heap, Language, Memory, Mode, Parent, Process, SeenHeap},
    report::visible,
    search::{Missed, Search},
    select::processes::place_of,
    symbolize,
};

/// The file that a process takes `malloc` from.
#[derive(Clone)]
pub struct Allocator {
    /// The file.
    pub module: Arc<Module>,
    /// Its functions that allocate and free.
    pub functions: Arc<[Function]>,
}

/// The allocator of a running process; `None` when it has none that is known.
///
/// # Errors
/// No right to look at the process, or it has ended.
pub fn allocator(pid: Pid) -> Result<Option<Allocator>> {
    find(pid, Phase::Running)
}

/// How often the probes are looked for in the code of the process.
const CHECKING: Duration = Duration::from_millis(200);
/// How long after a look that has not found them to look again.
pub const SUSPENSE: Duration = Duration::from_millis(50);

/// A process with probes on its allocator.
pub struct Attached {
    pid: Pid,
    image: Image,
    target: Process,
    /// None where only the heap of its Go runtime is followed.
    allocator: Option<Allocator>,
    links: Links,
    returns: Returns,
    /// The search for the allocator of the program that the process has become.
    search: Option<Search>,
    /// What is probed, as it was last looked at; `None` where that is not known, or not worth another look.
    probed: Option<ProbedCode>,
    /// When all probes were seen in force last.
    seen: Instant,
    /// When they are to be looked for again.
    next_check: Instant,
    /// Whether they were gone at the last look. It may have been at an exec of which nothing has been heard yet.
    suspect: bool,
    /// Whether it came while others were traced: it was started by one of them, or fits what was asked for.
    came_later: bool,
    /// When its image began, nanoseconds of CLOCK_MONOTONIC, where it has to have probes of its own before it is recorded.
    paused_since: Option<u64>,
    /// How long it was there before it was recorded.
    late: Option<Duration>,
    /// When its last thread ended, since tracing began: its id may be another process's.
    ended: Option<Duration>,
    /// Whether the probes are away for good.
    gave_up: bool,
    /// Whether it ended as a program whose allocator had not been looked for yet.
    unlooked: bool,
    /// The signal that ended it.
    killed_by: Option<u8>,
    notes: Vec<String>,
    unseen_spans: u64,
}

/// What a look at a process that is followed has come to.
pub enum Followed {
    /// Nothing has changed.
    AsBefore,
    /// Its allocator is probed: its mappings are these.
    Found(Box<AddressSpace>),
    /// It has the probes of the process that has forked it.
    Resumes,
}

/// How the outcomes of a process's calls are to be seen.
#[derive(Clone, Copy, Debug, Default)]
pub struct Returns {
    /// The way that was asked for by name.
    pub asked: Option<Way>,
    /// Whether other processes are traced as well.
    pub among_others: bool,
    /// Whether a return address had to be left alone: its threads change stacks inside of the allocator.
    pub declined: bool,
}

impl Returns {
    /// In the way that was asked for by name, if any was; `among_others`: other processes are traced as well.
    pub fn new(asked: Option<Way>, among_others: bool) -> Self {
        Self { asked, among_others, declined: false }
    }
}

impl Attached {
    /// Attaches to a running process. Recording begins when the collector is told. `go`: it has another heap than that of an
    /// allocator, and may have no allocator at all.
    ///
    /// # Errors
    /// No allocator, no right, or the process has ended.
    pub fn attach(
        probes: &mut Probes,
        pid: Pid,
        image: Image,
        status: Status,
        go: bool,
        returns: Returns,
    ) -> Result<Self> {
        let found = find(pid, Phase::Running).map_err(|error| explain(pid, &status, error))?;
        if found.is_none() && go {
            return Ok(Self::without_allocator(pid, image, &status));
        }
        let allocator = found.ok_or_else(|| {
            match status::check(pid) {
                Ok(_) => {}
                Err(NotTraceable::Exhausted(exhausted)) => return anyhow!(exhausted),
                Err(gone) => {
                    return anyhow!(gone).context(format!("process {pid} ended while it was being attached to"));
                }
            }
            let unread = opener::notes();
            if !unread.is_empty() {
                return anyhow!(
                    "process {pid} ({}) has no malloc in what can be read of its executable and its libraries: {}",
                    status.comm,
                    unread.join("; ")
                );
            }
            anyhow!(
                "process {pid} ({}) has no malloc in its executable or its libraries: there is nothing to probe \
                 (statically linked and stripped, or an allocator of its own)",
                status.comm
            )
        })?;
        Self::with(probes, pid, image, status, allocator, returns)
    }

    /// Of a process with no allocator but that of its Go runtime.
    pub fn without_allocator(pid: Pid, image: Image, status: &Status) -> Self {
        Self::new(pid, image, describe(pid, status), None, Links::default(), Returns::default())
    }

    /// The same for a program that is being loaded: `None` when its allocator is not there yet.
    ///
    /// # Errors
    /// As [`Attached::attach`].
    pub fn attach_loading(
        probes: &mut Probes,
        pid: Pid,
        image: Image,
        status: Status,
        returns: Returns,
    ) -> Result<Option<Self>> {
        let found = find(pid, Phase::Loading).map_err(|error| explain(pid, &status, error))?;
        found.map(|allocator| Self::with(probes, pid, image, status, allocator, returns)).transpose()
    }

    fn with(
        probes: &mut Probes,
        pid: Pid,
        image: Image,
        status: Status,
        allocator: Allocator,
        returns: Returns,
    ) -> Result<Self> {
        let links = probes
            .attach(&allocator, pid, pid, returns, Order::AtOnce)
            .map_err(|error| explain(pid, &status, error))?;
        let target = describe(pid, &status);
        Ok(Self::new(pid, image, target, Some(allocator), links, returns))
    }

    fn new(
        pid: Pid,
        image: Image,
        target: Process,
        allocator: Option<Allocator>,
        links: Links,
        returns: Returns,
    ) -> Self {
        let now = Instant::now();
        Self {
            pid,
            image,
            target,
            allocator,
            links,
            returns,
            search: None,
            probed: None,
            seen: now,
            next_check: now,
            suspect: false,
            came_later: false,
            paused_since: None,
            late: None,
            ended: None,
            gave_up: false,
            unlooked: false,
            killed_by: None,
            notes: Vec::new(),
            unseen_spans: 0,
        }
    }

    /// A process that this one has forked at `time`, nanoseconds of CLOCK_MONOTONIC. In file scope it has the same probes; else it
    /// has none yet.
    pub fn forked(&self, pid: Pid, image: Image, time: u64, scope: Scope) -> Self {
        let parent = Some(Parent { pid: self.pid, image: self.image.0 });
        // Born where its parent is; it may have been moved.
        let place = place_of(pid).unwrap_or_else(|| self.target.place.clone());
        let (heaps, earlier_images) = (Vec::new(), Vec::new());
        let target = Process { pid, heaps, parent, earlier_images, place, ..self.target.clone() };
        let mut forked = Self::new(pid, image, target, self.allocator.clone(), Links::default(), self.returns);
        // What its parent's program is probed by may not be found yet.
        forked.search = self.search.as_ref().map(|search| search.again_for(pid));
        (forked.gave_up, forked.came_later) = (self.gave_up, true);
        if scope == Scope::Process && !self.gave_up {
            forked.paused_since = Some(time);
            forked.returns.among_others = true;
            match &mut forked.search {
                Some(search) => search.probes_lost = true,
                None => forked.search = Some(Search::of_fork(pid, time)),
            }
        }
        forked
    }

    /// A process that this one has started (posix_spawn, vfork and exec), whose program is `comm`: hostile text.
    pub fn spawned(&self, pid: Pid, image: Image, comm: String, time: u64, scope: Scope) -> Self {
        let mut spawned = self.forked(pid, image, time, scope);
        spawned.has_execed(image, comm, time, false);
        spawned
    }

    /// A process that nobody who is traced has started, and that became the program `comm` (hostile text) at `time`, nanoseconds of
    /// CLOCK_MONOTONIC.
    pub fn newcomer(pid: Pid, image: Image, comm: String, time: u64, scope: Scope) -> Self {
        let target = Process::new(pid, String::new(), String::new(), Language::C);
        let returns = Returns { among_others: true, ..Returns::default() };
        let mut newcomer = Self::new(pid, image, target, None, Links::default(), returns);
        newcomer.came_later = true;
        newcomer.paused_since = (scope == Scope::Process).then_some(time);
        newcomer.has_execed(image, comm, time, false);
        newcomer
    }

    /// It was started so long after tracing began.
    pub fn was_started(&mut self, after: Duration) {
        self.target.started = Some(after);
    }

    /// Takes down what the process is now.
    fn describe_anew(&mut self, status: &Status) {
        let now = describe(self.pid, status);
        let before = std::mem::replace(&mut self.target, now);
        (self.target.parent, self.target.started) = (before.parent, before.started);
        self.target.earlier_images = before.earlier_images;
        if self.target.place.cgroup.is_none() {
            self.target.place = before.place;
        }
    }

    /// It is recorded from this time on, nanoseconds of CLOCK_MONOTONIC, and was not before.
    pub fn is_recorded_from(&mut self, time: u64) {
        if let Some(began) = self.paused_since.take() {
            self.late = Some(Duration::from_nanos(time.saturating_sub(began)));
        }
    }

    /// How long it was there before it was recorded, where it had to have probes of its own first.
    pub fn late(&self) -> Option<Duration> {
        self.late
    }

    /// The process.
    pub fn pid(&self) -> Pid {
        self.pid
    }

    /// Its image.
    pub fn image(&self) -> Image {
        self.image
    }

    /// Whether it came while others were traced: it was started by one of them, or fits what was asked for.
    pub fn came_later(&self) -> bool {
        self.came_later
    }

    /// Whether its program is written in Go.
    pub fn is_of_go(&self) -> bool {
        self.target.language == Language::Go
    }

    /// Whether it ended before its allocator was looked for: what was recorded is that of files that were probed already.
    pub fn was_not_looked_at(&self) -> bool {
        self.unlooked
    }

    /// Whether it has ended.
    pub fn is_over(&self) -> bool {
        self.ended.is_some()
    }

    /// As reports describe it.
    pub fn target(&self) -> Process {
        let mut target = self.target.clone();
        target.image = self.image.0;
        target.quality.unseen_spans = self.unseen_spans() + u64::from(self.late.is_some());
        target.ended = self.ended.map(|after| End { after, signal: self.killed_by });
        if self.allocator.is_some() {
            target.heaps = vec![SeenHeap { heap: Heap::Native, mode: Mode::Exact, sampling: None }];
        }
        target
    }

    /// Path of the file whose allocator is probed, as the process sees it: hostile text.
    pub fn probed(&self) -> Option<&str> {
        self.allocator.as_ref().map(|allocator| allocator.module.path())
    }

    /// What the reader of a report should know of it.
    pub fn notes(&self) -> Vec<String> {
        let missed = self.search.as_ref().and_then(Search::missed);
        self.notes.iter().cloned().chain(missed.map(|missed| self.tell(missed))).collect()
    }

    /// All mappings of the process as they are now.
    ///
    /// # Errors
    /// When the process has ended.
    pub fn address_space(&self) -> Result<AddressSpace> {
        let mut space = AddressSpace::new(self.pid);
        space.refresh().map_err(|error| match limits::exhausted(&error) {
            Some(exhausted) => anyhow!(exhausted),
            None => anyhow!(error).context(format!("process {} ended while it was being attached to", self.pid)),
        })?;
        Ok(space)
    }

    /// How often it ran without its probes, or as a program that cannot be probed; notes tell of that.
    pub fn unseen_spans(&self) -> u64 {
        self.unseen_spans + u64::from(self.search.as_ref().is_some_and(|search| search.missed().is_some()))
    }

    /// The process has become another program, `comm` (hostile text), at `time`, nanoseconds of CLOCK_MONOTONIC, and has another
    /// image: its allocator must be looked for anew. `probes_lost`: the thread that they were attached to is no more.
    pub fn has_execed(&mut self, image: Image, comm: String, time: u64, probes_lost: bool) {
        self.target.earlier_images.push(self.image.0);
        self.image = image;
        // It may be gone before anybody can look.
        let exe = std::fs::read_link(format!("/proc/{}/exe", self.pid)).unwrap_or_default();
        (self.target.comm, self.target.exe) = (comm, exe.to_string_lossy().into_owned());
        let lost_before = self.search.take().is_some_and(|search| self.end_search(&search));
        (self.probed, self.gave_up, self.suspect) = (None, false, false);
        self.search = Some(Search::begin(self.pid, time, probes_lost || lost_before || self.paused_since.is_some()));
    }

    /// Whether the program that the process has become can be traced at all; what is against it is told.
    pub fn can_be_followed(&mut self) -> bool {
        match status::check(self.pid) {
            Err(NotTraceable::Not64Bit(_, comm)) => {
                self.cannot_follow(&format!("a 32-bit program ({})", visible(&comm)));
                false
            }
            _ => true,
        }
    }

    /// Lets go of all that a process takes which has ended and will only be reported. `memory`: what is known of its memory.
    pub fn let_go(&mut self, memory: Option<Memory>, probes: &mut Probes) {
        self.target = Process { memory, ..self.target() };
        (self.allocator, self.probed) = (None, None);
        std::mem::take(&mut self.links).detach_aside(&mut probes.programs);
    }

    /// The process has ended, so long after tracing began.
    pub fn has_ended(&mut self, after: Duration) {
        self.ended = Some(after);
        if let Some(search) = self.search.take() {
            self.unlooked = !search.found;
            self.end_search(&search);
        }
        if self.paused_since.is_some() {
            self.unlooked = true;
        }
    }

    /// Some of what the process did was not recorded; `note` tells why.
    fn was_unseen(&mut self, note: String) {
        tracing::warn!("{note}");
        self.notes.push(note);
        self.unseen_spans += 1;
    }

    /// A signal has ended the process.
    pub fn was_killed(&mut self, signal: u8) {
        self.killed_by = Some(signal);
        if i32::from(signal) == libc::SIGTRAP && self.allocator.is_some() {
            // That of a breakpoint that belongs to nobody where it was met.
            self.was_unseen(format!(
                "process {} was ended by SIGTRAP: it may have run a copy that it had made of its own code, with the probes in \
                 it (see the limits in README)",
                self.pid
            ));
        }
    }

    /// A process that worked on this one's memory (vfork, CLONE_VM) has ended, and was not recorded.
    pub fn was_shared(&mut self) {
        self.was_unseen(format!(
            "a process that worked on the memory of process {} has ended: what it allocated and freed there is not recorded \
             (a command that tracer launches is followed with all that it starts)",
            self.pid
        ));
    }

    /// When the next look at the process is due, if it is soon.
    pub fn next_look(&self) -> Option<Instant> {
        self.search.as_ref().map(Search::next).or(self.is_suspect().then_some(self.next_check))
    }

    /// Follows a process that has become another program, or needs probes of its own. The probes of a file that the new program
    /// maps too are in force from its first instruction, unless another thread than the first one called exec; others are
    /// attached as soon as there is something to attach to.
    pub fn follow(&mut self, probes: &mut Probes) -> Followed {
        if !self.search.as_mut().is_some_and(Search::is_due) {
            return Followed::AsBefore;
        }
        if !self.can_be_followed() {
            return Followed::AsBefore;
        }
        // Its end is told elsewhere.
        let Ok(status) = status::check(self.pid) else { return Followed::AsBefore };
        let Some(mut search) = self.search.take() else { return Followed::AsBefore };
        if let (true, Some(allocator)) = (search.same_program, self.allocator.clone()) {
            if self.reattach(probes, allocator, self.pid) {
                return Followed::Resumes;
            }
            if status::is_alive(self.pid) {
                self.was_unseen(format!("process {} could not be probed: nothing of it is recorded", self.pid));
            }
            return Followed::AsBefore;
        }
        // Asked for first: what the loader does after the look is not for the look to have seen.
        let is_last = search.is_last_look();
        let mut told = Followed::AsBefore;
        if let Ok(Some(allocator)) = find(self.pid, Phase::Running) {
            let covered = probes.covers(&allocator.module);
            let moves = search.probes_lost || !self.is_on(&allocator);
            if moves && self.reattach(probes, allocator, self.pid) {
                if covered || self.paused_since.is_some() {
                    search.probes_lost = false;
                } else {
                    search.attached();
                }
            }
            if moves || !search.found {
                search.found = true;
                self.describe_anew(&status);
                told = self.address_space().map_or(Followed::AsBefore, |space| Followed::Found(Box::new(space)));
            }
        }
        if search.is_settled() {
            self.end_search(&search);
        } else if is_last && !search.found {
            self.has_no_allocator();
        } else {
            self.search = Some(search);
        }
        told
    }

    /// Notes what was missed until an allocator was found. Whether the probes are lost.
    fn end_search(&mut self, search: &Search) -> bool {
        if let Some(missed) = search.missed() {
            self.was_unseen(self.tell(missed));
        }
        search.probes_lost
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

    /// Looks for the allocator of a program that is being loaded in place of the one before, and moves the probes to it.
    /// Whether it is there.
    ///
    /// # Errors
    /// The process has ended, or its files cannot be read.
    pub fn load(&mut self, probes: &mut Probes) -> Result<bool> {
        let Some(allocator) = find(self.pid, Phase::Loading)? else { return Ok(false) };
        let probes_lost = self.search.as_ref().is_some_and(|search| search.probes_lost);
        if probes_lost || !self.is_on(&allocator) {
            // It is held: nothing is missed in between, and no call is seen by old and new ones.
            self.links.close_multi();
            self.reattach(probes, allocator, self.pid);
        }
        self.search = None;
        self.describe_anew(&status::check(self.pid)?);
        Ok(true)
    }

    /// The program that the process has become has no malloc.
    pub fn has_no_allocator(&mut self) {
        self.cannot_follow("a program without a malloc that can be probed (statically linked and stripped?)");
    }

    /// The program that the process has become cannot be probed.
    fn cannot_follow(&mut self, what: &str) {
        self.search = None;
        self.gave_up = true;
        self.was_unseen(format!("process {} became {what}: nothing of that is recorded", self.pid));
    }

    /// Moves the probes to another thread of the process when its first one has ended: the kernel keeps them for the
    /// life of one thread. Whether there was another.
    pub fn move_to_another_thread(&mut self, probes: &mut Probes) -> bool {
        if self.is_over() || !self.links.end_with_thread() {
            return false;
        }
        let Some(thread) = status::other_threads(self.pid).first().copied() else { return false };
        let Some(allocator) = self.allocator.clone() else { return false };
        self.reattach(probes, allocator, thread)
    }

    /// Sees outcomes at instructions from now on, where that can be: a return address had to be left alone.
    pub fn leave_returns_alone(&mut self, probes: &mut Probes) {
        // In file scope they are.
        if self.is_over()
            || probes.scope() == Scope::File
            || self.returns.asked.is_some()
            || std::mem::replace(&mut self.returns.declined, true)
        {
            return;
        }
        if let Some(allocator) = self.allocator.clone() {
            self.reattach(probes, allocator, self.pid);
        }
    }

    /// Whether the probes are on this allocator.
    fn is_on(&self, allocator: &Allocator) -> bool {
        self.allocator.as_ref().is_some_and(|own| own.module.identity() == allocator.module.identity())
    }

    fn reattach(&mut self, probes: &mut Probes, allocator: Allocator, task: u32) -> bool {
        // What is not recorded yet has no calls that could be seen by halves.
        let order = if self.paused_since.is_some() { Order::AtOnce } else { Order::InTurn };
        match probes.attach(&allocator, self.pid, task, self.returns, order) {
            Ok(links) => {
                (self.allocator, self.probed, self.gave_up) = (Some(allocator), None, false);
                std::mem::replace(&mut self.links, links).detach_aside(&mut probes.programs);
                true
            }
            // What it did until then is all there is.
            Err(_) if !status::is_alive(self.pid) => false,
            Err(error) => {
                tracing::warn!("cannot move the probes of process {}: {error:#}", self.pid);
                false
            }
        }
    }

    /// Looks now and then whether the probes are still in the code that the process runs, and puts them there again where they
    /// are not. Whether they were away.
    pub fn keep_probes(&mut self, probes: &mut Probes) -> bool {
        let now = Instant::now();
        let nothing = self.is_over() || self.gave_up || self.came_later || self.allocator.is_none();
        if nothing || self.search.is_some() || now < self.next_check {
            return false;
        }
        self.next_check = now + CHECKING;
        let seen = |missing: Option<usize>| missing.filter(|missing| *missing == 0);
        let known = seen(self.probed.as_ref().map(ProbedCode::missing));
        // Not looked at yet, or mapped elsewhere.
        let Some(missing) = known.or_else(|| self.look_for_probes(probes)) else { return false };
        if missing == 0 {
            (self.seen, self.suspect) = (now, false);
            return false;
        }
        if !std::mem::replace(&mut self.suspect, true) {
            self.next_check = now + SUSPENSE;
            return false;
        }
        let Some(allocator) = self.allocator.clone() else { return false };
        probes.forget(&allocator.module);
        let again = self.reattach(probes, allocator, self.pid) && self.look_for_probes(probes) == Some(0);
        let away = self.seen.elapsed();
        (self.gave_up, self.suspect, self.seen) = (!again, false, Instant::now());
        self.was_unseen(self.probes_were_away(missing, away, again));
        true
    }

    /// Has the probes looked for the next time that somebody asks.
    pub fn look_now(&mut self) {
        self.next_check = Instant::now();
    }

    /// Whether probes seem to be gone.
    pub fn is_suspect(&self) -> bool {
        self.suspect && !self.is_over() && !self.gave_up && self.search.is_none()
    }

    /// How many probes are not in the code of the process, as it is mapped now. `None` when it has ended.
    fn look_for_probes(&mut self, probes: &Probes) -> Option<usize> {
        let Allocator { module, .. } = self.allocator.as_ref()?;
        let mut probed = ProbedCode::new(self.pid, module, probes.offsets(module, &self.links));
        let mut space = AddressSpace::new(self.pid);
        space.refresh().ok()?;
        probed.locate(module, &space);
        Some(self.probed.insert(probed).missing())
    }

    fn probes_were_away(&self, missing: usize, away: Duration, again: bool) -> String {
        let what = format!(
            "{missing} of {} probes went from the code of process {}, which has dropped, moved or replaced it",
            self.probed.as_ref().map_or(missing, ProbedCode::instructions),
            self.pid
        );
        let away = away.as_millis();
        if again {
            format!("{what}; they are there again, and at most {away} ms were not recorded")
        } else {
            format!("{what}; what it did since then, or up to {away} ms before, is not recorded")
        }
    }

    /// Takes the probes off.
    pub fn detach(self, probes: &mut Probes) {
        self.links.detach_aside(&mut probes.programs);
    }
}

/// Where a program is in its life.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// The loader is at work: objects appear in the order in which they will be searched.
    Loading,
    /// The loader's list is there.
    Running,
}

/// The file that the process takes `malloc` from, as its dynamic loader decides: the first in its search order that
/// defines it.
fn find(pid: Pid, phase: Phase) -> Result<Option<Allocator>> {
    let mut space = AddressSpace::new(pid);
    space.refresh().context("cannot read its mappings")?;
    let modules = candidates(pid, &space, phase);
    // Nothing but itself is mapped: a static executable.
    let alone = modules.len() == 1;
    for module in modules {
        let binding = if alone { Binding::Static } else { Binding::Dynamic };
        if let Some(exhausted) = module.exhausted() {
            bail!("{exhausted}");
        }
        let Some(path) = module.open_path() else { continue };
        // Opened anew: the position of an open file is shared, and others read this one too.
        let file = std::fs::File::open(path).context("cannot open its files")?;
        match resolve::allocator(file, binding) {
            Ok(Some(functions)) => {
                tracing::debug!(file = module.path(), ?functions, "allocator");
                return Ok(Some(Allocator { module, functions: functions.into() }));
            }
            Ok(None) => {}
            Err(error) => tracing::warn!("{}: {error}; it is left out", visible(module.path())),
        }
    }
    Ok(None)
}

/// Mapped files in the order in which the loader looks symbols up.
fn candidates(pid: Pid, space: &AddressSpace, phase: Phase) -> Vec<Arc<Module>> {
    let mut modules: Vec<Arc<Module>> = Vec::new();
    for (module, _) in space.executable_files() {
        if !modules.iter().any(|known| known.identity() == module.identity()) {
            modules.push(module);
        }
    }
    let executable = root::executable(pid).ok();
    let is_executable = |module: &Module| executable.as_ref().is_some_and(|file| module.is_file(file));
    let listed = if phase == Phase::Running { search_ranks(pid) } else { None };
    modules.sort_by_key(|module| {
        let rank = match &listed {
            Some(ranks) => ranks.iter().position(|(path, _)| path == module.path()).unwrap_or(usize::MAX),
            None => usize::from(is_libc(module.path())),
        };
        (!is_executable(module), rank)
    });
    // glibc's loader exports a malloc of its own in old versions, for itself.
    modules.retain(|module| is_executable(module) || !file_name(module.path()).starts_with("ld-linux"));
    modules
}

/// Paths of the objects in the loader's list, in its order.
fn search_ranks(pid: Pid) -> Option<Vec<(String, u64)>> {
    let order = link_map::search_order(pid).ok()??;
    let text = std::fs::read(format!("/proc/{pid}/maps")).ok()?;
    let mappings = maps::parse(&text);
    let path = |addr: u64| {
        let mapping = mappings.iter().find(|mapping| (mapping.start..mapping.end).contains(&addr))?;
        Some((mapping.path.clone(), addr))
    };
    Some(order.into_iter().filter_map(path).collect())
}

pub(crate) fn file_name(path: &str) -> &str {
    path.rsplit('/').next().unwrap_or(path)
}

pub(crate) fn is_libc(path: &str) -> bool {
    let name = file_name(path);
    ["libc.so", "libc-", "ld-musl", "libc.musl"].iter().any(|start| name.starts_with(start))
}

fn describe(pid: Pid, status: &Status) -> Process {
    let mut space = AddressSpace::new(pid);
    let executable = root::executable(pid).ok();
    let module = space.refresh().ok().and_then(|_| {
        let executable = executable?;
        space.executable_files().map(|(module, _)| module).find(|module| module.is_file(&executable))
    });
    let language = module.map_or(Language::C, |module| symbolize::language(&module));
    let place = place_of(pid).unwrap_or_default();
    Process { place, ..Process::new(pid, status.comm.clone(), status.exe.clone(), language) }
}

/// Puts a failure down to the end of the process where that is what it is.
fn explain(pid: Pid, status: &Status, error: anyhow::Error) -> anyhow::Error {
    match status::check(pid) {
        Ok(now) if now.start_time == status.start_time => error,
        Err(NotTraceable::Exhausted(exhausted)) => anyhow!(exhausted),
        _ => anyhow!("process {pid} ended while it was being attached to: trace the process that replaces it"),
    }
}

/// For errors of files that belong to others.
impl From<resolve::ResolveError> for io::Error {
    fn from(error: resolve::ResolveError) -> Self {
        Self::new(io::ErrorKind::InvalidData, error)
    }
}
