//! One run of the tracer, from the checks before it to the exit status after it: the only module that knows all stages.
//!
//! One loop over one closed enum of inputs. The collector has a thread of its own; so do the things that only wait
//! (signals, the ends of processes).

use std::{
    sync::{Arc, mpsc},
    thread,
    time::{Duration, Instant, SystemTime},
};

use anyhow::{Context as _, Result, bail};
use hashbrown::HashMap;
use tracer_ebpf::golang::RUNTIMES;

use crate::{
    attach::{Attached, Returns, SUSPENSE},
    bpf::{self, GoMaps, Programs},
    clock::monotonic,
    collector::{Collector, Notice, Request, Snapshot},
    config::{Config, GoHeapChoice, Subject, Verbosity},
    coverage::Coverage,
    event::Pid,
    exit::Exit,
    go_heap::{GoHeap, GoProcess, Wanted, Way, Wish},
    go_process::Libraries,
    go_watch::GoWatches,
    golang::Runtime,
    memory::Memory,
    outputs::Outputs,
    preflight::Machine,
    present::{GoTrace, Presenter, Trace},
    process::{
        launch::{self, Launched, Launcher, Step},
        opener,
        status::{self, NotTraceable},
    },
    profile::{End, Profile, Target},
    report::Options,
    signals::{Signals, Stage},
    unwinder::Unwinder,
    watch,
};

/// Everything that can happen while tracing.
enum Input {
    /// Ctrl-C and its like.
    Signal(i32),
    /// A process has ended.
    Exited(Pid),
    /// What the collector noticed.
    Notice(Notice),
}

/// How often diagnostics from BPF are looked at, and allocators that moved are looked for.
const HEARTBEAT: Duration = Duration::from_millis(200);

/// How long a command may take to end after a second signal.
const LAST_PATIENCE: Duration = Duration::from_secs(5);

/// Traces as `config` says.
///
/// # Errors
/// When nothing could be traced or a report could not be written, with what to do about it.
pub fn run(config: Config) -> Result<Exit> {
    let (inputs, input) = mpsc::channel();
    // Before there is a thread, and before a signal is blocked.
    let launcher = match config.subject {
        Subject::Command(_) => Some(Launcher::prepare().context("cannot prepare to launch")?),
        Subject::Pids(_) => None,
    };
    let told = inputs.clone();
    let signals = Signals::start(launcher.is_some(), move |signal| drop(told.send(Input::Signal(signal))))
        .context("cannot watch for signals")?;
    let outputs = Outputs::open(&config.outputs, config.verbosity)?;
    let memory = Memory::within(config.max_memory, config.buffer_size);
    opener::start(memory.for_copies());
    let machine = Machine::this().context("cannot tell the rights of this process")?.check();
    if let Subject::Pids(pids) = &config.subject {
        for pid in pids {
            match status::check(*pid) {
                // The missing right itself says more.
                Err(NotTraceable::Forbidden { .. }) if machine.is_err() => break,
                checked => drop(checked?),
            }
        }
    }
    machine?;
    let mut programs = Programs::load(bpf::Config {
        buffer_size: config.buffer_size,
        sizes: config.sizes,
        diagnostics: config.verbosity >= Verbosity::Verbose,
        perf_events: config.perf_events,
        stack_copies: false,
    })?;
    let events = programs.events()?;
    let unwinder = Unwinder::new(programs.tables()?);
    let go_maps = programs.go_maps()?;
    if let Some(launcher) = &launcher {
        launcher.allow_stops(programs.exec_stops()?).context("cannot share a BPF map")?;
    }
    bpf::attach_lifecycle(&mut programs)?;

    let (requests, requested) = mpsc::channel();
    let notify = inputs.clone();
    let collector = Collector::new(
        events,
        unwinder,
        memory,
        (config.min_age, config.sizes == (0, u64::MAX)),
        requested,
        // The session may have ended already: nobody needs to know then.
        Box::new(move |notice| drop(notify.send(Input::Notice(notice)))),
    );
    let collector = thread::Builder::new().name("collector".to_owned()).spawn(move || collector.run())?;

    let mut session = Session {
        coverage: Coverage::new(requests.clone()),
        ended: HashMap::new(),
        unseen_heaps: Vec::new(),
        presenter: Presenter::within(memory.for_names()),
        config,
        programs,
        go_maps,
        attached: Vec::new(),
        go: Vec::new(),
        notes: Vec::new(),
        goroutines: GoWatches::default(),
        libraries: Vec::new(),
        requests,
        input,
        inputs,
        signals,
        launcher,
        launched: None,
        started: SystemTime::now(),
        clock: Instant::now(),
        interruptions: 0,
    };
    let result = session.trace(outputs);
    drop(session);
    if collector.join().is_err() {
        bail!("the collector ended with a bug; please report it, with the output of `tracer -v`");
    }
    result
}

struct Session {
    config: Config,
    programs: Programs,
    go_maps: GoMaps,
    attached: Vec<Attached>,
    /// Heaps of Go processes.
    go: Vec<GoHeap>,
    /// What the reader of a report should know.
    notes: Vec<String>,
    goroutines: GoWatches,
    coverage: Coverage,
    /// When processes ended, since recording began.
    ended: HashMap<Pid, Duration>,
    /// Go heaps that are not seen, or not in full: each in words.
    unseen_heaps: Vec<String>,
    /// Where Go runtimes of libraries are looked for.
    libraries: Vec<Libraries>,
    requests: mpsc::Sender<Request>,
    input: mpsc::Receiver<Input>,
    inputs: mpsc::Sender<Input>,
    signals: Signals,
    /// Until the command is launched.
    launcher: Option<Launcher>,
    launched: Option<Launched>,
    presenter: Presenter,
    started: SystemTime,
    clock: Instant,
    /// Times that probes had to be moved while tracing.
    interruptions: u64,
}

impl Session {
    fn trace(&mut self, mut outputs: Outputs) -> Result<Exit> {
        match self.config.subject.clone() {
            Subject::Pids(pids) => {
                for pid in pids {
                    self.attach(pid)?;
                }
            }
            Subject::Command(command) => self.launch(&command)?,
        }
        for attached in &self.attached {
            self.goroutines.watch(attached.pid(), self.runtime_of(attached.pid()));
        }
        self.started = SystemTime::now();
        self.clock = Instant::now();
        self.read_memory();
        self.signals.enter(Stage::Tracing);
        outputs.announce(&self.attached);
        if let Some(launched) = &mut self.launched {
            launched.release();
        }
        let signal = self.run_loop(&mut outputs)?;
        self.keep_probes_to_the_end()?;
        self.signals.enter(Stage::Ending);
        self.goroutines.finish();
        let go = &self.go;
        self.coverage.look(|pid| go.iter().any(|go| go.pid() == pid), true);
        let snapshot = self.ask(|reply| Request::Finish { min_age: self.config.min_age, reply })?;
        self.learn_of_ends();
        if let Some(launched) = &self.launched {
            launched.follow_no_more();
        }
        // After the collector has passed the last samples on.
        let go = self.go_traces(true);
        let profile = self.profile(snapshot, go);
        let written = outputs.write_final(&profile, &Options { top: self.config.top, value: self.config.value });
        drop(outputs);
        self.detach();
        let traced = match written {
            Ok(()) => self.verdict(&profile),
            Err(error) if self.launched.is_none() => return Err(error),
            // The command is waited for all the same.
            Err(error) => {
                tracing::error!("{error:#}");
                Exit::Failed
            }
        };
        Ok(self.exit_status(traced, signal))
    }

    /// Attaches to a running process.
    fn attach(&mut self, pid: Pid) -> Result<()> {
        let watched = self.inputs.clone();
        watch::exit(pid, move || drop(watched.send(Input::Exited(pid))))
            .with_context(|| format!("cannot watch process {pid}"))?;
        // Looked at again: the watch began after the first check, and the id may belong to another process by now.
        let status = status::check(pid)?;
        let go = self.attach_go(pid, false);
        let found = matches!(go, Ok(true));
        let returns = self.returns();
        let attached = match (Attached::attach(&mut self.programs, pid, status, found, returns), go) {
            (Ok(attached), Err(problem)) if self.config.go_heap == GoHeapChoice::Auto => {
                let unseen = format!("the Go heap of process {pid} is not seen, only what is in C: {problem:#}");
                self.unseen_heaps.push(unseen);
                attached
            }
            // Nothing else is there, or it was asked for by name.
            (_, Err(problem)) => return Err(problem),
            (attached, Ok(_)) => attached?,
        };
        self.enable(attached)
    }

    /// How the outcomes of calls are to be seen.
    fn returns(&self) -> Returns {
        let among_others = matches!(&self.config.subject, Subject::Pids(pids) if pids.len() > 1);
        Returns::new(self.config.returns, among_others)
    }

    /// Begins to follow the Go heaps of a process. Whether it has one. `begins`: its first instruction is yet to come.
    fn attach_go(&mut self, pid: Pid, begins: bool) -> Result<bool> {
        let off = self.config.go_heap == GoHeapChoice::Off;
        let own = if off { Ok(None) } else { GoProcess::open(pid) };
        let own = own.and_then(|process| process.map(|process| self.follow_go(pid, process, begins)).transpose());
        let own = own.with_context(|| format!("the Go heap of process {pid} cannot be followed"));
        self.libraries.retain(|libraries| libraries.pid() != pid);
        self.libraries.push(Libraries::new(pid));
        let in_libraries = self.attach_go_libraries(pid);
        match own {
            Err(problem) if in_libraries => {
                self.unseen_heaps.push(format!("{problem:#}"));
                Ok(true)
            }
            own => Ok(own?.is_some() || in_libraries),
        }
    }

    /// Begins to follow the heap of a Go runtime.
    fn follow_go(&mut self, pid: Pid, process: GoProcess, begins: bool) -> Result<()> {
        let Config { go_heap: choice, sample: mean, min_age, sizes, .. } = self.config;
        let number = self.go.iter().filter(|go| go.pid() == pid).count();
        let number = u8::try_from(number).ok().filter(|number| u32::from(*number) < RUNTIMES);
        let number = number.with_context(|| format!("the process has more than {RUNTIMES} Go runtimes"))?;
        let wanted = Wanted { min_age: min_age.as_nanos().try_into().unwrap_or(u64::MAX), sizes };
        let wish = Wish { choice, mean, wanted, begins };
        let heap = process.follow(&mut self.programs, &mut self.go_maps, wish, number)?;
        self.know_go(pid, heap.runtime());
        self.notes.push(heap.note());
        self.send(Request::FollowGo { pid, number, samples: heap.samples() })?;
        self.go.push(heap);
        Ok(())
    }

    /// Names Go code of a process.
    fn know_go(&mut self, pid: Pid, runtime: Arc<Runtime>) {
        let exe = status::check(pid).map(|status| status.exe).unwrap_or_default();
        self.presenter.know_go(pid, runtime, &exe);
    }

    /// Begins to follow the Go runtimes of libraries that a process has loaded since the last look. Whether there is one whose
    /// heap is followed.
    fn attach_go_libraries(&mut self, pid: Pid) -> bool {
        let own = self.libraries.iter_mut().find(|libraries| libraries.pid() == pid);
        let Some(found) = own.map(Libraries::look) else { return false };
        let mut follows = false;
        for runtime in found.runtimes {
            self.goroutines.add_library(pid, Arc::clone(&runtime));
            if self.config.go_heap == GoHeapChoice::Off {
                continue;
            }
            let library = runtime.library().cloned().unwrap_or_default();
            match self.follow_go(pid, GoProcess::of(pid, runtime), false) {
                Ok(()) => follows = true,
                Err(problem) => {
                    let unseen = format!("the Go heap of {library} in process {pid} is not seen: {problem:#}");
                    self.unseen_heaps.push(unseen);
                }
            }
        }
        let sampled =
            self.go.iter().any(|go| go.pid() == pid && go.runtime().library().is_none() && go.way() == Way::Sampled);
        for plugin in found.plugins {
            if sampled {
                // It has a copy of the functions that allocate.
                self.unseen_heaps.push(format!(
                    "what the plugin {} allocates is not sampled: --go-heap=buckets sees it",
                    plugin.library().map_or("", |path| path)
                ));
            }
            self.know_go(pid, Arc::clone(&plugin));
            self.goroutines.add_plugin(pid, plugin);
        }
        self.notes.extend(found.problems);
        follows
    }

    /// Looks at the libraries of a process that has loaded some, and again at those whose Go runtime was not ready.
    fn look_at_libraries(&mut self) {
        let waiting: Vec<Pid> =
            self.libraries.iter().filter(|libraries| libraries.is_waiting()).map(Libraries::pid).collect();
        for pid in waiting {
            self.attach_go_libraries(pid);
        }
    }

    fn enable(&mut self, attached: Attached) -> Result<()> {
        let pid = attached.pid();
        self.attached.push(attached);
        self.enable_again(pid)
    }

    /// Records a process from now on, with its mappings as they are now.
    fn enable_again(&mut self, pid: Pid) -> Result<()> {
        let Some(attached) = self.attached.iter().find(|attached| attached.pid() == pid) else { return Ok(()) };
        let (text, space) = attached.address_space()?;
        let stop_at_exec = matches!(self.config.subject, Subject::Command(_));
        self.send(Request::Enable { pid, text, space: Box::new(space), stop_at_exec })?;
        // The switch is the collector's to turn: ask for something to know that it has.
        self.ask(|reply| Request::Snapshot { min_age: Duration::ZERO, reply }).map(drop)
    }

    /// Launches a command and attaches to it before it has allocated anything.
    fn launch(&mut self, command: &[std::ffi::OsString]) -> Result<()> {
        let name = command.first().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        let launcher = self.launcher.take().context("launched already")?;
        let mut launched = launcher
            .start(command)
            .with_context(|| format!("cannot launch {name:?}: give the path of an executable file"))?;
        self.signals.know(launched.process());
        let pid = launched.pid();
        let watched = self.inputs.clone();
        watch::exit(pid, move || drop(watched.send(Input::Exited(pid))))
            .with_context(|| format!("cannot watch process {pid}"))?;
        if !self.load(&mut launched).with_context(|| format!("cannot follow the start of {name:?}"))? {
            bail!(
                "{name:?} has no malloc in its executable or its libraries: there is nothing to trace \
                 (statically linked and stripped, or an allocator of its own)"
            );
        }
        self.launched = Some(launched);
        Ok(())
    }

    /// Lets a command that is held run to its entry, attaching to its allocator on the way. At the entry all its libraries
    /// are mapped, so that their names are known even if it ends at once. Whether there is an allocator.
    fn load(&mut self, launched: &mut Launched) -> Result<bool> {
        let pid = launched.pid();
        let mut step = Step::Mapped;
        let mut found = false;
        while step != Step::Exited {
            if !found && self.load_allocator(pid)? {
                self.enable_again(pid)?;
                found = true;
            }
            if step == Step::Entry {
                if self.attach_go(pid, true)? && !found {
                    if !self.attached.iter().any(|attached| attached.pid() == pid) {
                        self.attached.push(Attached::without_allocator(pid, &status::check(pid)?));
                    }
                    found = true;
                }
                if found {
                    self.enable_again(pid)?;
                }
                return Ok(found);
            }
            step = launched.step()?;
        }
        Ok(true)
    }

    /// Attaches to the allocator of a process that is being loaded. Whether it is there.
    fn load_allocator(&mut self, pid: Pid) -> Result<bool> {
        if let Some(attached) = self.attached.iter_mut().find(|attached| attached.pid() == pid) {
            return attached.load(&mut self.programs);
        }
        let returns = self.returns();
        let attached = Attached::attach_loading(&mut self.programs, pid, status::check(pid)?, returns)?;
        let found = attached.is_some();
        self.attached.extend(attached);
        Ok(found)
    }

    /// A launched command has become another program, and was stopped for us to follow it.
    fn follow_launched(&mut self, mut launched: Launched) -> Result<()> {
        let pid = launched.pid();
        let attached = self.attached.iter_mut().find(|attached| attached.pid() == pid);
        let follows = attached.is_none_or(Attached::can_be_followed);
        let loaded = match launched.hold_again() {
            Ok(true) if follows => self.load(&mut launched),
            // Nothing is to be loaded, or it is an exec that was followed already, while the command was held.
            Ok(_) => Ok(true),
            Err(error) => Err(error.into()),
        };
        launched.release();
        if let Some(attached) = self.attached.iter_mut().find(|attached| attached.pid() == pid) {
            match loaded {
                Ok(true) => {}
                Ok(false) => attached.has_no_allocator(),
                // It is searched as it runs.
                Err(error) => tracing::debug!("cannot hold the command at its exec: {error:#}"),
            }
        }
        self.launched = Some(launched);
        Ok(())
    }

    /// Until it is over: the signal that ended it, if one did.
    fn run_loop(&mut self, outputs: &mut Outputs) -> Result<Option<i32>> {
        let end = self.config.duration.map(|duration| self.clock + duration);
        let mut report = self.config.interval.map(|interval| self.clock + interval);
        let mut alive: Vec<Pid> = self.attached.iter().map(Attached::pid).collect();
        while !alive.is_empty() {
            let now = Instant::now();
            if end.is_some_and(|end| now >= end) {
                break;
            }
            if let (Some(at), Some(interval)) = (report, self.config.interval)
                && now >= at
            {
                // Before the collector is asked, so that it knows the stacks of all samples.
                let go = &self.go;
                self.coverage.look(|pid| go.iter().any(|go| go.pid() == pid), false);
                let go = self.go_traces(false);
                let snapshot = self.ask(|reply| Request::Snapshot { min_age: self.config.min_age, reply })?;
                let profile = self.profile(snapshot, go);
                if !outputs.write_interval(&profile, &self.config) {
                    // The files get the last report.
                    break;
                }
                // Inputs come in between, however long a report takes.
                report = Some((at + interval).max(Instant::now() + HEARTBEAT / 2));
            }
            self.heartbeat();
            self.keep_probes()?;
            let look = self.attached.iter().filter_map(Attached::next_look).min();
            let wake = [end, report, look]
                .into_iter()
                .flatten()
                .min()
                .map_or(HEARTBEAT, |at| at.saturating_duration_since(now));
            match self.input.recv_timeout(wake.min(HEARTBEAT)) {
                Ok(Input::Signal(signal)) => return Ok(Some(signal)),
                Ok(Input::Exited(pid)) => {
                    alive.retain(|other| *other != pid);
                    self.has_ended(pid)?;
                }
                Ok(Input::Notice(notice)) => self.heed(notice)?,
                Err(mpsc::RecvTimeoutError::Timeout) => {}
                Err(mpsc::RecvTimeoutError::Disconnected) => bail!("the collector has ended early"),
            }
        }
        Ok(None)
    }

    /// Reads what memory all processes have as recording begins.
    fn read_memory(&mut self) {
        for attached in &self.attached {
            self.coverage.begin(attached.pid());
        }
    }

    /// Looks whether the probes are still where they were put.
    fn keep_probes(&mut self) -> Result<()> {
        for index in 0..self.attached.len() {
            if self.attached[index].keep_probes(&mut self.programs) {
                self.send(Request::Interrupted(monotonic()))?;
            }
        }
        Ok(())
    }

    /// The same for the last time: what seems to be gone may be so because of an exec, which is heard of in a moment.
    fn keep_probes_to_the_end(&mut self) -> Result<()> {
        self.attached.iter_mut().for_each(Attached::look_now);
        self.keep_probes()?;
        if self.attached.iter().any(Attached::is_suspect) {
            thread::sleep(2 * SUSPENSE);
            while let Ok(input) = self.input.try_recv() {
                match input {
                    Input::Signal(_) => {}
                    Input::Exited(pid) => self.has_ended(pid)?,
                    Input::Notice(notice) => self.heed(notice)?,
                }
            }
            self.keep_probes()?;
        }
        Ok(())
    }

    /// What comes round regularly.
    fn heartbeat(&mut self) {
        self.programs.pass_diagnostics();
        self.goroutines.tick(Instant::now());
        let go = &self.go;
        self.coverage.tick(|pid| go.iter().any(|go| go.pid() == pid));
        self.look_at_libraries();
        let stop_at_exec = matches!(self.config.subject, Subject::Command(_));
        let Self { attached, programs, requests, .. } = self;
        for attached in attached {
            if let Some((text, space)) = attached.follow(programs) {
                let request = Request::Enable { pid: attached.pid(), text, space: Box::new(space), stop_at_exec };
                // The collector's end shows elsewhere.
                let _ = requests.send(request);
            }
        }
    }

    fn heed(&mut self, notice: Notice) -> Result<()> {
        match notice {
            Notice::Exec { pid, by_other_thread, time } => self.has_execed(pid, time, by_other_thread),
            Notice::Mapped(pid) => {
                self.attach_go_libraries(pid);
                Ok(())
            }
            Notice::Killed { pid, signal } => {
                self.was_killed(pid, signal);
                Ok(())
            }
            Notice::FirstThreadEnded(pid) => {
                if let Some(attached) = self.attached.iter_mut().find(|attached| attached.pid() == pid)
                    && attached.move_to_another_thread(&mut self.programs)
                {
                    self.interruptions += 1;
                    self.send(Request::Interrupted(monotonic()))?;
                }
                Ok(())
            }
            // Of which process it was is not said: few use this way.
            Notice::ReturnDeclined => {
                self.attached.iter_mut().for_each(|attached| attached.leave_returns_alone(&mut self.programs));
                Ok(())
            }
        }
    }

    /// How processes have ended is in the last records. There is nothing to do about the rest of them any more.
    fn learn_of_ends(&mut self) {
        while let Ok(input) = self.input.try_recv() {
            if let Input::Notice(Notice::Killed { pid, signal }) = input {
                self.was_killed(pid, signal);
            }
        }
    }

    fn was_killed(&mut self, pid: Pid, signal: u8) {
        if let Some(attached) = self.attached.iter_mut().find(|attached| attached.pid() == pid) {
            attached.was_killed(signal);
        }
    }

    /// A process has become another program.
    fn has_execed(&mut self, pid: Pid, time: u64, by_other_thread: bool) -> Result<()> {
        self.forget_go(pid);
        let Some(attached) = self.attached.iter_mut().find(|attached| attached.pid() == pid) else { return Ok(()) };
        attached.has_execed(time, by_other_thread);
        self.goroutines.watch(pid, self.runtime_of(pid));
        self.coverage.begin(pid);
        match self.launched.take_if(|launched| launched.pid() == pid) {
            Some(launched) => self.follow_launched(launched),
            None => Ok(()),
        }
    }

    /// A process has ended: nothing is done by its id any more, which may become another's.
    fn has_ended(&mut self, pid: Pid) -> Result<()> {
        self.ended.insert(pid, self.clock.elapsed());
        if let Some(attached) = self.attached.iter_mut().find(|attached| attached.pid() == pid) {
            attached.has_ended();
        }
        self.send(Request::Ended(pid))
    }

    /// The Go runtime of a process whose heap is followed.
    fn runtime_of(&self, pid: Pid) -> Option<Arc<Runtime>> {
        let own = |go: &&GoHeap| go.pid() == pid && go.runtime().library().is_none();
        self.go.iter().find(own).map(GoHeap::runtime)
    }

    /// A process has become another program: its Go heap is gone.
    fn forget_go(&mut self, pid: Pid) {
        self.goroutines.forget(pid);
        self.libraries.retain(|libraries| libraries.pid() != pid);
        self.libraries.push(Libraries::new(pid));
        while let Some(index) = self.go.iter().position(|go| go.pid() == pid) {
            self.notes.push(format!("process {pid} became another program; its Go heap until then is not shown"));
            self.go.remove(index).detach(&mut self.programs);
        }
    }

    /// What the heaps of Go processes hold now.
    fn go_traces(&self, last: bool) -> Vec<GoTrace> {
        let Config { min_age, sizes, .. } = self.config;
        let trace = |go: &GoHeap| GoTrace {
            pid: go.pid(),
            library: go.runtime().library().cloned(),
            way: go.way(),
            heap: go.snapshot(min_age, sizes, last),
        };
        self.go.iter().map(trace).collect()
    }

    fn send(&self, request: Request) -> Result<()> {
        self.requests.send(request).ok().context("the collector has ended early")
    }

    fn ask(&self, request: impl FnOnce(mpsc::Sender<Snapshot>) -> Request) -> Result<Snapshot> {
        let (reply, answer) = mpsc::channel();
        self.send(request(reply))?;
        answer.recv().context("the collector has ended early")
    }

    fn profile(&mut self, snapshot: Snapshot, go: Vec<GoTrace>) -> Profile {
        let mut notes = self.notes.clone();
        if self.interruptions > 0 {
            notes.push(
                "the first thread of the process ended while it was traced; the probes were moved to another thread, \
                 and frees of that moment may be missing"
                    .to_owned(),
            );
        }
        let filtered = self.config.sizes != (0, u64::MAX);
        if filtered {
            notes.push(
                "a size filter is on: frees of blocks outside it count as unmatched, and whether growth of memory is \
                 explained is not known"
                    .to_owned(),
            );
        }
        for attached in &self.attached {
            notes.extend(attached.notes());
        }
        notes.extend(self.unseen_heaps.iter().cloned());
        notes.extend(self.goroutines.notes());
        notes.extend(opener::notes());
        let mut targets: Vec<Target> = self.attached.iter().map(Attached::target).collect();
        for (target, attached) in targets.iter_mut().zip(&self.attached) {
            let go = go.iter().filter(|go| go.pid == target.pid).map(GoTrace::held).fold(0, u64::saturating_add);
            target.memory = self.coverage.memory(target.pid, go, attached.probed());
            if let Some(memory) = target.memory.as_mut().filter(|_| filtered) {
                // What is filtered out cannot be told from what is not seen.
                (memory.unexplained, memory.reasons) = (0, Vec::new());
            }
            target.ended = self.ended.get(&target.pid).map(|after| End { after: *after, signal: attached.killed_by() });
        }
        let trace = Trace {
            started: self.started,
            duration: self.clock.elapsed(),
            targets,
            filtered: self.config.sizes != (0, u64::MAX),
            unseen_spans: self.attached.iter().map(Attached::unseen_spans).sum(),
            unseen_heaps: self.unseen_heaps.len() as u64,
            notes,
        };
        Profile { goroutines: self.goroutines.groups(), ..self.presenter.profile(trace, snapshot, go) }
    }

    /// Takes the probes off. Only after the report has been written: it takes seconds.
    fn detach(&mut self) {
        for go in self.go.drain(..) {
            go.detach(&mut self.programs);
        }
        for attached in self.attached.drain(..) {
            attached.detach(&mut self.programs);
        }
    }

    fn verdict(&self, profile: &Profile) -> Exit {
        let quality = &profile.quality;
        let incomplete = quality.is_beyond_threshold() || (self.config.strict && !quality.complete());
        if incomplete { Exit::Incomplete } else { Exit::Complete }
    }

    /// With a command, its own status; it is waited for, even when tracing ended first. Only a signal that ended tracing
    /// while the command lives on (`signal`) ends that, too.
    fn exit_status(&mut self, traced: Exit, signal: Option<i32>) -> Exit {
        let Some(launched) = &mut self.launched else { return traced };
        match (launched.wait(signal.map(|_| LAST_PATIENCE)), signal) {
            (Ok(Some(status)), _) => match launch::status(status) {
                0 => traced,
                status => Exit::Child(status),
            },
            (Ok(None), Some(signal)) => {
                let signal = u8::try_from(signal).unwrap_or(0);
                tracing::warn!("process {} runs on, untraced", launched.pid());
                Exit::Child(128 + signal)
            }
            _ => Exit::Failed,
        }
    }
}
