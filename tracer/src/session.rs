//! One run of the tracer, from the checks before it to the exit status after it: the only module that knows all stages.
//!
//! One loop over one closed enum of inputs. The collector has a thread of its own; so do the things that only wait
//! (signals, the ends of processes).

mod choosing;
mod go;
mod launching;
mod lives;

use std::{
    sync::mpsc,
    thread,
    time::{Duration, Instant, SystemTime},
};

use anyhow::{Context as _, Result, bail};
use hashbrown::HashSet;

use crate::{
    attach::{Attached, Followed, Returns, SUSPENSE},
    bpf::{self, GoMaps, Programs},
    clock::monotonic,
    collector::{self, Collector, Notice, Request, Requests, Snapshot},
    config::{Config, GoHeapChoice, Subject, Verbosity},
    coverage::Coverage,
    event::{Image, Pid},
    exit::Exit,
    go_heap::GoHeap,
    go_process::Libraries,
    go_watch::GoWatches,
    memory::Memory,
    outputs::Outputs,
    preflight::Machine,
    present::{GoTrace, Presenter, Trace},
    probes::{Probes, Scope},
    process::{
        launch::{self, Launched, Launcher},
        opener, status,
    },
    profile::{Process, Profile},
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
pub fn run(mut config: Config) -> Result<Exit> {
    let (inputs, input) = mpsc::channel();
    // Before there is a thread, and before a signal is blocked.
    let launcher = match config.subject {
        Subject::Command(_) => Some(Launcher::prepare().context("cannot prepare to launch")?),
        Subject::Pids(_) | Subject::Selected(_) => None,
    };
    let told = inputs.clone();
    let signals = Signals::start(launcher.is_some(), move |signal| drop(told.send(Input::Signal(signal))))
        .context("cannot watch for signals")?;
    let outputs = Outputs::open(&config.outputs, config.verbosity)?;
    let memory = Memory::within(config.max_memory, config.buffer_size);
    opener::start(memory.for_copies());
    let machine = Machine::this().context("cannot tell the rights of this process")?.check();
    let mut notes = Vec::new();
    let selected = matches!(config.subject, Subject::Selected(_));
    let mut newcomers = None;
    if let Subject::Selected(selection) = &config.subject {
        let chosen = choosing::choose(selection, &machine)?;
        newcomers = chosen.newcomers;
        (config.subject, notes) = (Subject::Pids(chosen.pids), chosen.notes);
    }
    if let Subject::Pids(pids) = &config.subject {
        choosing::check(pids, machine.is_ok())?;
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
    let scope = config.scope;

    let (requests, requested) = collector::channel().context("cannot start the collector")?;
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
        unseen_heaps: Vec::new(),
        presenter: Presenter::within(memory.for_names()),
        config,
        probes: Probes::new(programs, scope),
        images: 0,
        selected,
        newcomers,
        found_late: 0,
        go_maps,
        attached: Vec::new(),
        over: Vec::new(),
        go: Vec::new(),
        notes,
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
        last_beat: Instant::now(),
        looked_around: Instant::now(),
        outlived: false,
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
    probes: Probes,
    /// Whether processes were chosen by what they are, so that some may have nothing to do.
    selected: bool,
    /// Who is traced of those that begin while others are, and are not started by them.
    newcomers: Option<choosing::Newcomers>,
    /// How many processes were found to fit only after they had begun.
    found_late: u64,
    /// How many images recording was turned on for.
    images: u32,
    go_maps: GoMaps,
    attached: Vec<Attached>,
    /// Processes that were started by traced ones and have ended.
    over: Vec<Attached>,
    /// Heaps of Go processes.
    go: Vec<GoHeap>,
    /// What the reader of a report should know.
    notes: Vec<String>,
    goroutines: GoWatches,
    coverage: Coverage,
    /// Go heaps that are not seen, or not in full: each in words.
    unseen_heaps: Vec<String>,
    /// Where Go runtimes of libraries are looked for.
    libraries: Vec<Libraries>,
    requests: Requests,
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
    /// When that was done last which comes round regularly.
    last_beat: Instant,
    /// When processes were looked for whose ends or beginnings may have been missed.
    looked_around: Instant,
    /// Whether it was said that the command has ended and others go on.
    outlived: bool,
}

impl Session {
    fn trace(&mut self, mut outputs: Outputs) -> Result<Exit> {
        match self.config.subject.clone() {
            Subject::Pids(pids) => self.attach_all(&pids)?,
            // Pids by now.
            Subject::Selected(_) => {}
            Subject::Command(command) => self.launch(&command)?,
        }
        for attached in &self.attached {
            self.goroutines.watch(attached.pid(), self.runtime_of(attached.pid()));
        }
        self.started = SystemTime::now();
        self.clock = Instant::now();
        self.read_memory();
        self.expect_newcomers()?;
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
        let Config { top, value, by, .. } = self.config;
        let written = outputs.write_final(&profile, &Options { top, value, by });
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
        let image = self.next_image();
        let go = self.attach_go(pid, image, false);
        let found = matches!(go, Ok(true));
        let returns = self.returns();
        let attached = match (Attached::attach(&mut self.probes, pid, image, status, found, returns), go) {
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
        let several = matches!(&self.config.subject, Subject::Pids(pids) if pids.len() > 1);
        let among_others = several || self.probes.scope() == Scope::File;
        Returns::new(self.config.returns, among_others)
    }

    fn enable(&mut self, attached: Attached) -> Result<()> {
        let pid = attached.pid();
        self.attached.push(attached);
        self.enable_again(pid)
    }

    /// Records a process from now on, with its mappings as they are now.
    fn enable_again(&mut self, pid: Pid) -> Result<()> {
        let live = |attached: &&Attached| attached.pid() == pid && !attached.is_over();
        let Some(attached) = self.attached.iter().find(live) else { return Ok(()) };
        let space = attached.address_space()?;
        let (image, flags) = (attached.image(), self.flags(attached));
        self.send(Request::Enable { pid, image, space: Box::new(space), flags })?;
        // The switch is the collector's to turn: ask for something to know that it has.
        self.ask(|reply| Request::Held { images: Vec::new(), reply }).map(drop)
    }

    /// Until it is over: the signal that ended it, if one did.
    fn run_loop(&mut self, outputs: &mut Outputs) -> Result<Option<i32>> {
        let end = self.config.duration.map(|duration| self.clock + duration);
        let mut report = self.config.interval.map(|interval| self.clock + interval);
        // With a selection, others may come.
        while self.newcomers.is_some() || self.attached.iter().any(|attached| !attached.is_over()) {
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
            self.look_around()?;
            self.keep_probes()?;
            let look = self.attached.iter().filter_map(Attached::next_look).min();
            let wake = [end, report, look]
                .into_iter()
                .flatten()
                .min()
                .map_or(HEARTBEAT, |at| at.saturating_duration_since(now));
            match self.input.recv_timeout(wake.min(HEARTBEAT)) {
                Ok(Input::Signal(signal)) => return Ok(Some(signal)),
                Ok(Input::Exited(pid)) => self.has_exited(pid)?,
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
            self.coverage.begin(attached.pid(), attached.image());
        }
    }

    /// Looks whether the probes are still where they were put.
    fn keep_probes(&mut self) -> Result<()> {
        for index in 0..self.attached.len() {
            if self.attached[index].keep_probes(&mut self.probes) {
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
                    Input::Exited(pid) => self.has_exited(pid)?,
                    Input::Notice(notice) => self.heed(notice)?,
                }
            }
            self.keep_probes()?;
        }
        Ok(())
    }

    /// What comes round regularly.
    fn heartbeat(&mut self) {
        self.probes.programs.pass_diagnostics();
        self.follow_programs();
        if self.last_beat.elapsed() < HEARTBEAT {
            return;
        }
        self.last_beat = Instant::now();
        self.goroutines.tick(Instant::now());
        let go = &self.go;
        self.coverage.tick(|pid| go.iter().any(|go| go.pid() == pid));
        self.look_at_libraries();
    }

    /// Follows processes that have become other programs, or need probes of their own, where a look is due.
    fn follow_programs(&mut self) {
        (0..self.attached.len()).for_each(|index| self.follow(index));
    }

    /// The same of one of them.
    fn follow(&mut self, index: usize) {
        let followed = self.attached[index].follow(&mut self.probes);
        let attached = &self.attached[index];
        let (pid, image, flags) = (attached.pid(), attached.image(), self.flags(attached));
        let request = match followed {
            Followed::AsBefore => return,
            Followed::Resumes => Request::Resume(image),
            Followed::Found(space) => {
                if attached.came_later() && attached.is_of_go() {
                    self.attach_go_of_child(pid, image);
                }
                Request::Enable { pid, image, space, flags }
            }
        };
        // The collector's end shows elsewhere.
        let _ = self.requests.send(request);
    }

    fn heed(&mut self, notice: Notice) -> Result<()> {
        match notice {
            Notice::Began(image, beginning) => self.has_begun(image, &beginning),
            Notice::Resumed(image, since) => {
                if let Some(attached) = self.find(image) {
                    attached.is_recorded_from(since);
                }
                Ok(())
            }
            Notice::Mapped(image) => {
                if let Some(attached) = self.attached.iter().find(|attached| attached.image() == image) {
                    let pid = attached.pid();
                    self.attach_go_libraries(pid, image);
                }
                Ok(())
            }
            Notice::Ended { image, signal } => {
                self.has_ended(image, signal);
                Ok(())
            }
            Notice::SharerEnded(image) => {
                let process_scope = self.probes.scope() == Scope::Process;
                if let Some(attached) = self.find(image).filter(|_| process_scope) {
                    attached.was_shared();
                }
                Ok(())
            }
            Notice::FirstThreadEnded(image) => {
                if let Some(attached) = self.attached.iter_mut().find(|attached| attached.image() == image)
                    && attached.move_to_another_thread(&mut self.probes)
                {
                    self.interruptions += 1;
                    self.send(Request::Interrupted(monotonic()))?;
                }
                Ok(())
            }
            // Of which process it was is not said: few use this way.
            Notice::ReturnDeclined => {
                self.attached.iter_mut().for_each(|attached| attached.leave_returns_alone(&mut self.probes));
                Ok(())
            }
        }
    }

    fn send(&self, request: Request) -> Result<()> {
        Ok(self.requests.send(request)?)
    }

    fn ask<T>(&self, request: impl FnOnce(mpsc::Sender<T>) -> Request) -> Result<T> {
        Ok(self.requests.ask(request)?)
    }

    /// All processes, those that have ended last.
    fn processes(&self) -> impl Iterator<Item = &Attached> {
        self.attached.iter().chain(&self.over)
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
        for attached in self.processes() {
            notes.extend(attached.notes());
        }
        let heard: HashSet<Image> = snapshot.stacks.iter().map(|stack| stack.image).collect();
        let unheard = |attached: &&Attached| attached.was_not_looked_at() && !heard.contains(&attached.image());
        let unheard = self.processes().filter(unheard).count() as u64;
        notes.extend(self.note_on_late_ones(unheard));
        notes.extend(self.unseen_heaps.iter().cloned());
        notes.extend(self.goroutines.notes());
        notes.extend(opener::notes());
        let mut processes: Vec<Process> = self.processes().map(Attached::target).collect();
        for (process, attached) in processes.iter_mut().zip(self.attached.iter().chain(&self.over)) {
            let go =
                go.iter().filter(|go| go.image == attached.image()).map(GoTrace::held).fold(0, u64::saturating_add);
            if !(attached.came_later() && attached.is_over()) {
                process.memory = self.coverage.memory(attached.image(), go, attached.probed());
            }
            if let Some(memory) = process.memory.as_mut().filter(|_| filtered) {
                // What is filtered out cannot be told from what is not seen.
                (memory.unexplained, memory.reasons) = (0, Vec::new());
            }
        }
        let trace = Trace {
            started: self.started,
            duration: self.clock.elapsed(),
            processes,
            selected: self.selected,
            filtered,
            unseen_spans: unheard
                + self.found_late
                + self
                    .processes()
                    .map(|attached| attached.unseen_spans() + u64::from(attached.late().is_some()))
                    .sum::<u64>(),
            unseen_heaps: self.unseen_heaps.len() as u64,
            notes,
        };
        Profile { goroutines: self.goroutines.groups(), ..self.presenter.profile(trace, snapshot, go) }
    }

    /// Takes the probes off. Only after the report has been written: it takes seconds.
    fn detach(&mut self) {
        for go in self.go.drain(..) {
            go.detach(&mut self.probes.programs);
        }
        for attached in self.attached.drain(..) {
            attached.detach(&mut self.probes);
        }
        self.probes.detach();
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
