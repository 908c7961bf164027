//! A traced process: its allocator, the probes on it, and what has become of it.

pub mod altered;
mod begin;
mod chosen;
mod find;
mod guard;
mod last_look;
mod loaded;
mod look;
mod probed_code;
pub mod probes;
mod putting;
mod returns;

use std::time::{Duration, Instant};

use anyhow::{Result, anyhow};
use hashbrown::HashSet;
use tracer_ebpf::unwind::FileKey;

pub use self::{
    find::{Allocator, Allocators, OwnAllocator, allocators, file_name, is_libc, is_run_by},
    guard::SUSPENSE,
    look::{Lookers, Program, Seen, What},
    returns::Returns,
};
use self::{
    find::{Phase, code_files_in, describe, find, mappings},
    guard::Guard,
    loaded::Loaded,
    probes::{Own, Probes, Scope},
};
use crate::{
    clock::{age, monotonic},
    control::{
        known::Known,
        lifecycle::{Action, Event, Life, Look, Now, Probing},
    },
    event::{Beginning, Image, Pid},
    limits,
    process::status::{self, NotTraceable},
    profile::{End, Heap, Language, Memory, Mode, Parent, Process, SeenHeap},
    report::visible,
    select::processes::place_of,
    space::address_space::AddressSpace,
};

/// A program that a process has become.
pub struct NewProgram<'a> {
    /// How it began.
    pub beginning: &'a Beginning,
    /// What is known of it.
    pub known: Option<&'a Known>,
    /// Whether whoever runs it has probes from its first instruction on.
    pub is_covered: bool,
}

/// A process with probes on its allocator.
pub struct Attached {
    pid: Pid,
    image: Image,
    target: Process,
    life: Life,
    /// None where only the heap of its Go runtime is followed.
    allocators: Option<Allocators>,
    links: Own,
    guard: Guard,
    returns: Returns,
    /// What a look has found that is to be probed.
    found: Option<Allocators>,
    /// Whether a library of it has Go code in it.
    has_go_library: bool,
    /// Files that it had mapped as code when libraries had come last.
    code_files: HashSet<((u32, u32), u64)>,
    /// Files whose code it has mapped since it is traced.
    loaded: Loaded,
    /// Its mappings, until the collector is told.
    space: Option<Box<AddressSpace>>,
    /// What the kernel knows its program's file by, where that is known, and when it began: nanoseconds of CLOCK_MONOTONIC.
    program: Option<(FileKey, u64)>,
    /// Whether the probes are away for good.
    gave_up: bool,
    /// Whether its first thread, by which the kernel knows it, has ended, and others go on.
    goes_on_without_its_first_thread: bool,
    /// Whether it was said that all blocks of some heap have ended at once.
    has_ended_heaps: bool,
    /// The signal that ended it.
    killed_by: Option<u8>,
}

impl Attached {
    fn new(image: Image, target: Process, life: Life, allocators: Option<Allocators>, returns: Returns) -> Self {
        Self {
            pid: target.pid,
            image,
            target,
            life,
            allocators,
            links: Own::default(),
            guard: Guard::new(Instant::now()),
            returns,
            found: None,
            has_go_library: false,
            code_files: HashSet::new(),
            loaded: Loaded::default(),
            space: None,
            program: None,
            gave_up: false,
            goes_on_without_its_first_thread: false,
            has_ended_heaps: false,
            killed_by: None,
        }
    }

    /// A process that this one has forked at `time`, nanoseconds of CLOCK_MONOTONIC. In file scope it has the same probes; else it
    /// has none yet.
    pub fn forked(&self, pid: Pid, image: Image, time: u64, scope: Scope) -> Self {
        let parent = Some(Parent { pid: self.pid, image: self.image.0 });
        let (heaps, earlier_images) = (Vec::new(), Vec::new());
        // Born where its parent is.
        let target = Process { pid, heaps, parent, earlier_images, ..self.target.clone() };
        let paused = scope == Scope::Process;
        let life = self.life.forked(pid, time, paused, now());
        let returns = Returns { among_others: self.returns.among_others || paused, ..self.returns };
        let forked = Self::new(image, target, life, self.allocators.clone(), returns);
        Self { gave_up: self.gave_up, ..forked }
    }

    /// A process that this one has started (posix_spawn, vfork and exec). What is to be done.
    pub fn spawned(&self, image: Image, program: &NewProgram<'_>, scope: Scope) -> (Self, Vec<Action>) {
        let Beginning { pid, time, .. } = *program.beginning;
        let mut spawned = self.forked(pid, image, time, scope);
        let actions = spawned.has_execed(image, program, false);
        (spawned, actions)
    }

    /// A process that nobody who is traced has started, and that became a program.
    pub fn newcomer(image: Image, program: &NewProgram<'_>, scope: Scope) -> Self {
        let Beginning { pid, time, .. } = *program.beginning;
        let target = Process::new(pid, String::new(), String::new(), Language::C);
        let returns = Returns { among_others: true, ..Returns::default() };
        let life = Life::newcomer(pid, time, scope == Scope::Process, program.is_covered, now());
        let mut newcomer = Self::new(image, target, life, None, returns);
        newcomer.has_become(program);
        newcomer
    }

    /// Takes down which program it is.
    fn has_become(&mut self, program: &NewProgram<'_>) {
        self.program = program.beginning.program.map(|file| (file, program.beginning.time));
        self.target.comm = program.beginning.comm();
        // It may be gone before anybody can look, and its id another's.
        let found = if self.may_be_there() { status::executable(self.pid) } else { None };
        let found = found.filter(|_| self.may_be_there());
        let known = || program.known.map(|known| known.exe.clone());
        self.target.exe = found.or_else(known).unwrap_or_default();
        if let Some(known) = program.known {
            self.target.language = known.language;
        }
    }

    /// Whether what has its id may be it: not if that is known to run another program.
    fn may_be_there(&self) -> bool {
        self.program.is_none_or(|(file, _)| is_run_by(&file, self.pid) != Some(false))
    }

    /// Its name: hostile text.
    pub fn comm(&self) -> &str {
        &self.target.comm
    }

    /// What the kernel knows its program's file by, where that is known, and when it began: nanoseconds of CLOCK_MONOTONIC.
    pub fn program(&self) -> Option<(FileKey, u64)> {
        self.program
    }

    /// Looks where it is: it may have been moved since it began.
    pub fn look_where(&mut self) {
        if let Some(place) = place_of(self.pid).filter(|_| self.may_be_there()) {
            self.target.place = place;
        }
    }

    /// It was started so long after tracing began.
    pub fn was_started(&mut self, after: Duration) {
        self.target.started = Some(after);
    }

    /// Takes down when it was started, if that was since tracing began, so long ago.
    pub fn began_during(&mut self, trace: Duration) {
        let age = status::used(self.pid).map(|(start, _)| age(start));
        if let Some(after) = age.and_then(|age| trace.checked_sub(age)) {
            self.was_started(after);
        }
    }

    /// Takes down what the process is now.
    fn is_now(&mut self, now: Process) {
        let before = std::mem::replace(&mut self.target, now);
        (self.target.parent, self.target.started) = (before.parent, before.started);
        self.target.earlier_images = before.earlier_images;
        if self.target.place.cgroup.is_none() {
            self.target.place = before.place;
        }
    }

    /// What is known of its life.
    pub fn life(&self) -> &Life {
        &self.life
    }

    /// Takes in what has become known of it: what is to be done.
    pub fn handle(&mut self, event: Event) -> Vec<Action> {
        let actions = self.life.handle(event, now());
        self.tell();
        actions
    }

    /// Tells what has come to be missing.
    fn tell(&mut self) {
        self.life.news().iter().for_each(|note| tracing::warn!("{note}"));
    }

    /// The process.
    pub fn pid(&self) -> Pid {
        self.pid
    }

    /// Its image.
    pub fn image(&self) -> Image {
        self.image
    }

    /// Whether its program is written in Go.
    pub fn is_of_go(&self) -> bool {
        self.target.language == Language::Go
    }

    /// Whether a library was seen in it that has Go code in it.
    pub fn has_go_library(&self) -> bool {
        self.has_go_library
    }

    /// Whether it has ended.
    pub fn is_over(&self) -> bool {
        self.life.is_over()
    }

    /// As reports describe it.
    pub fn target(&self) -> Process {
        let mut target = self.target.clone();
        target.image = self.image.0;
        target.quality.unseen_spans = self.life.unseen_spans() + u64::from(self.life.late(monotonic()).is_some());
        target.ended = self.life.ended().map(|after| End { after, signal: self.killed_by });
        if self.allocators.is_some() {
            target.heaps = vec![SeenHeap { heap: Heap::Native, mode: Mode::Exact, sampling: None }];
        }
        target
    }

    /// Paths of the files whose allocators are probed, as the process sees them: hostile text.
    pub fn probed(&self) -> Vec<&str> {
        self.allocators.iter().flat_map(Allocators::paths).collect()
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

    /// The process has become another program and has another image: its allocator must be looked for anew. `probes_lost`: the thread
    /// that they were attached to is no more.
    pub fn has_execed(&mut self, image: Image, program: &NewProgram<'_>, probes_lost: bool) -> Vec<Action> {
        self.target.earlier_images.push(self.image.0);
        self.image = image;
        self.has_become(program);
        (self.gave_up, self.found, self.space, self.has_go_library) = (false, None, None, false);
        self.goes_on_without_its_first_thread = false;
        self.code_files.clear();
        self.loaded = Loaded::default();
        self.guard.forget();
        self.handle(Event::Execed { time: program.beginning.time, probes_lost, known: program.is_covered })
    }

    /// Whether the program that the process has become can be traced at all; what is against it is told.
    pub fn can_be_followed(&mut self) -> bool {
        match status::check(self.pid) {
            Err(NotTraceable::Not64Bit(_, comm)) => {
                self.handle(Event::Looked(Look::Foreign(format!("a 32-bit program ({})", visible(&comm)))));
                false
            }
            _ => true,
        }
    }

    /// Takes in what a look at the process has shown.
    pub fn was_seen(&mut self, what: What, probes: &Probes) -> Vec<Action> {
        let look = match what {
            What::Gone => Look::Gone,
            What::Foreign(what) => Look::Foreign(what),
            What::Program(program) => self.is_program(*program, probes),
        };
        let actions = self.handle(Event::Looked(look));
        self.forget_space_unless(&actions);
        actions
    }

    /// Mappings hold their files open: none are kept that nobody will be told of.
    fn forget_space_unless(&mut self, actions: &[Action]) {
        if !actions.iter().any(|action| matches!(action, Action::Probe | Action::Enable)) {
            self.space = None;
        }
    }

    fn is_program(&mut self, program: Program, probes: &Probes) -> Look {
        let Program { process, allocators, has_go, loaded, is_static, own_memory, space } = program;
        self.has_go_library |= allocators.as_ref().is_some_and(Allocators::has_go_library);
        let look = match &allocators {
            None if has_go => {
                self.tell_of_c(&space);
                Look::OtherHeap
            }
            None => return Look::Nothing { loaded, is_static },
            Some(allocators) => {
                let covered = allocators.files().iter().all(|allocator| probes.covers(&allocator.module));
                Look::Allocator { probed: self.is_on(allocators), covered, own_memory }
            }
        };
        self.is_now(process);
        self.code_files = code_files_in(&space);
        (self.found, self.space) = (allocators, Some(Box::new(space)));
        look
    }

    /// Puts probes to the allocator that was found, or that of its parent. What is to be done then.
    pub fn probe(&mut self, probes: &mut Probes) -> Vec<Action> {
        let Some(allocators) = self.found.take().or_else(|| self.allocators.clone()) else { return Vec::new() };
        let probing = match self.reattach(probes, allocators, self.task()) {
            true => Probing::InForce,
            false if status::is_alive(self.pid) => Probing::Refused,
            false => Probing::Gone,
        };
        let actions = self.handle(Event::Probed(probing));
        self.forget_space_unless(&actions);
        actions
    }

    /// Its mappings, as they were found.
    pub fn take_space(&mut self) -> Option<Box<AddressSpace>> {
        self.space.take()
    }

    /// Lets go of all that a process takes which has ended and will only be reported. `memory`: what is known of its memory.
    pub fn let_go(&mut self, memory: Option<Memory>, probes: &mut Probes) {
        self.target = Process { memory, ..self.target() };
        self.loaded.keep_what_was_probed(self.allocators.as_ref());
        (self.allocators, self.found, self.space) = (None, None, None);
        self.guard.forget();
        std::mem::take(&mut self.links).detach_aside(&mut probes.programs);
    }

    /// The process has ended, so long after tracing began.
    pub fn has_ended(&mut self, after: Duration) {
        self.handle(Event::Exited(after));
    }

    /// Some of what the process did was not recorded; `note` tells why.
    fn was_unseen(&mut self, note: String) {
        self.life.was_unseen(note);
        self.tell();
    }

    /// A signal has ended the process.
    pub fn was_killed(&mut self, signal: u8) {
        self.killed_by = Some(signal);
        if i32::from(signal) == libc::SIGTRAP && self.allocators.is_some() {
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
            "a process that worked on the memory of process {} has ended, or become another program: what it allocated and freed there is \
             not recorded (a command that tracer launches is followed with all that it starts)",
            self.pid
        ));
    }

    /// All blocks of some heap have ended at once.
    pub fn heap_ended(&mut self) {
        if !std::mem::replace(&mut self.has_ended_heaps, true) {
            self.was_unseen(format!(
                "process {} ended all blocks of a heap at once (an arena that was reset, a heap or a pool that was destroyed), or may \
                 have, by a call whose name could not be read: which they were is not known, so none from before is certain to be held",
                self.pid
            ));
        }
    }

    /// When something is due about the process, if it is soon.
    pub fn next_look(&self) -> Option<Instant> {
        self.life.next().or(self.is_suspect().then_some(self.guard.next()))
    }

    /// Looks for the allocators of a program that is being loaded in place of the one before, and moves the probes to those that are there
    /// by now. `first`: none were found before. Whether there are any.
    ///
    /// # Errors
    /// The process has ended, or its files cannot be read.
    pub fn load(&mut self, probes: &mut Probes, first: bool) -> Result<bool> {
        let space = mappings(self.pid)?;
        let Some(allocators) = find(self.pid, &space, Phase::Loading)? else { return Ok(false) };
        self.has_go_library |= allocators.has_go_library();
        if !first {
            self.attach_others(probes, allocators);
        } else if self.life.has_lost_probes() || !self.is_on(&allocators) {
            // It is held: nothing is missed in between, and no call is seen by old and new ones.
            self.links.close_multi();
            self.reattach(probes, allocators, self.pid);
        }
        self.life.was_held();
        self.is_now(describe(self.pid, &status::check(self.pid)?, &space));
        Ok(true)
    }

    /// The program that the process has become has no malloc.
    pub fn has_no_allocator(&mut self) {
        self.life.has_no_allocator();
        self.tell();
    }

    /// Whether the probes are on all of these allocators.
    fn is_on(&self, allocators: &Allocators) -> bool {
        allocators.files().iter().all(|allocator| self.has(allocator))
    }

    /// Whether an allocator is one of those that it was found to have.
    fn has(&self, allocator: &Allocator) -> bool {
        let mut own = self.allocators.iter().flat_map(Allocators::files);
        own.any(|own| own.module.is_same(&allocator.module))
    }

    /// Has the probes looked for the next time that somebody asks.
    pub fn look_now(&mut self) {
        self.guard.look_now();
    }

    /// Whether probes seem to be gone.
    pub fn is_suspect(&self) -> bool {
        self.guard.is_suspect() && !self.gave_up && self.life.is_settled()
    }

    /// Takes the probes off.
    pub fn detach(self, probes: &mut Probes) {
        self.links.detach_aside(&mut probes.programs);
    }
}

fn now() -> Now {
    Now { instant: Instant::now(), clock: monotonic() }
}
