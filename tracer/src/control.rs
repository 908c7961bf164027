//! One run of the tracer, from the checks before it to the exit status after it: the only module that knows all stages.
//!
//! One loop over one closed enum of inputs. What takes records in, reads files, names and writes has threads of its own, and so have
//! signals; the ends of processes come from a runtime on this one (`inputs.rs`).

mod attaching;
mod budget;
mod choosing;
mod doing;
mod ended;
mod ending;
mod go;
mod inputs;
mod joining;
pub mod known;
mod launching;
pub mod lifecycle;
mod lives;
mod mapping;
mod metering;
mod notes;
mod reporting;

use std::{
    collections::VecDeque,
    sync::mpsc,
    thread,
    time::{Duration, Instant, SystemTime},
};

use anyhow::{Context as _, Result, bail};

use self::{budget::Budget, ended::Ended, inputs::Inputs, known::KnownPrograms, notes::Notes};
use crate::{
    attach::{Attached, Lookers, Seen, probes::Probes},
    bpf::{self, GoMaps, Programs},
    collector::{self, Collector, Interest, Notice, Request, Requests},
    config::{Config, Subject, Verbosity},
    cost::Meter,
    coverage::{Coverage, Had},
    event::{Image, Pid},
    exit::Exit,
    files::opener,
    go::{
        heap::{Followers, GoHeap},
        process::Libraries,
        watch::GoWatches,
    },
    launch::{Launched, Launcher},
    memory::Memory,
    outputs::Outputs,
    preflight::Machine,
    present::GoTrace,
    probe::{asked, outcomes::Way},
    resolve::{Resolvers, Running},
    select::Selection,
    share::Share,
    signals::{Signals, Stage},
    unwinder::Unwinder,
    writer::Writer,
};

/// Everything that can happen while tracing.
enum Input {
    /// Ctrl-C and its like.
    Signal(i32),
    /// A process has ended.
    Exited(Pid),
    /// What the collector noticed.
    Notice(Notice),
    /// What a look at a process has shown.
    Seen(Box<Seen>),
    /// A short report is written; whether anybody reads them still.
    Written {
        /// It is so.
        read: bool,
    },
}

/// How often diagnostics from BPF are looked at, and allocators that moved are looked for.
const HEARTBEAT: Duration = Duration::from_millis(200);
/// What looking whether probes are still there takes of a processor in the long run, 1 part of so many, and at a time.
const SHARE_OF_LOOKS_AT_PROBES: u32 = 400;
const BURST_OF_LOOKS: Duration = Duration::from_millis(5);
/// How often processes are looked for.
const LOOK_AROUND: Duration = Duration::from_secs(1);
/// Inputs that are taken in before it is looked whether anything else is due.
const MOST_AT_ONCE: usize = 256;
/// Most notes for the reader of a report that are kept of each kind.
const MAX_NOTES: usize = 500;

/// Traces as `config` says.
///
/// # Errors
/// When nothing could be traced or a report could not be written, with what to do about it.
pub fn run(mut config: Config) -> Result<Exit> {
    // Before there is a thread, and before a signal is blocked.
    let launcher = match config.subject {
        Subject::Command(_) => Some(Launcher::prepare().context("cannot prepare to launch")?),
        Subject::Pids(_) | Subject::Selected(_) => None,
    };
    let inputs = Inputs::new().context("cannot wait for anything")?;
    let inbox = inputs.inbox();
    let signals = Signals::start(launcher.is_some(), move |signal| inbox(Input::Signal(signal)))
        .context("cannot watch for signals")?;
    let outputs = Outputs::open(&config.outputs, config.verbosity)?;
    asked::ask(std::mem::take(&mut config.symbols));
    let memory = Memory::within(config.max_memory, config.buffer_size);
    opener::start(memory.for_copies());
    let machine = Machine::this().context("cannot tell the rights of this process")?.check();
    let mut notes = Notes::most(MAX_NOTES);
    let selected = matches!(config.subject, Subject::Selected(_));
    let (mut newcomers, mut selection) = (None, Selection::default());
    if let Subject::Selected(given) = config.subject {
        let chosen = choosing::choose(&given, &machine)?;
        (newcomers, selection) = (chosen.newcomers, *given);
        config.subject = Subject::Pids(chosen.pids);
        notes.extend(chosen.notes);
    }
    if config.returns == Some(Way::Link) {
        notes.extend(["--returns=link: what the processes start is not traced".to_owned()]);
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
        rests: memory.for_rests(),
        threads: memory.threads(),
        samples: config.sample.map(|mean| bpf::Samples { mean, room: memory.samples() }),
    })?;
    let events = (programs.events()?, programs.lost_beginnings()?);
    let (tables, changes) = programs.tables()?;
    let go_maps = programs.go_maps()?;
    let end_with_thread = !programs.has_sessions();
    let meter = Meter::start(programs.costs()?, end_with_thread);
    if let Some(launcher) = &launcher {
        launcher.allow_stops(programs.exec_stops()?).context("cannot share a BPF map")?;
    }
    bpf::attach_lifecycle(&mut programs)?;
    let records_mapped = mapping::record(&mut programs, &config, &mut notes)?;
    let huge_pages = crate::space::memory_map::huge_pages_come_unasked();
    let scope = config.scope.unwrap_or_else(|| choosing::scope(&config.subject));

    let (requests, requested) = collector::channel().context("cannot start the collector")?;
    let inbox = inputs.inbox();
    let resolved = requests.clone();
    // The collector may have ended already.
    let tell = move |what| {
        let _ = resolved.send(Request::Resolved(what));
    };
    let (resolvers, running) =
        Resolvers::start(Unwinder::new(tables), changes, tell).context("cannot open files aside")?;
    // What is read ahead is of use for what is started only, and costs: a process that runs may never start anything.
    if config.children && config.max_overhead.is_none() {
        resolvers.learn_machine(selected || launcher.is_some());
    }
    let collector = Collector::new(
        events,
        resolvers.clone(),
        memory,
        Interest {
            min_age: config.min_age,
            all_sizes: config.sizes == (0, u64::MAX),
            sample: config.sample,
            mapped: records_mapped,
            huge_pages,
            end_with_thread,
        },
        requested,
        Box::new(move |notice| inbox(Input::Notice(notice))),
    );
    let collector = thread::Builder::new().name("collector".to_owned()).spawn(move || collector.run())?;

    let inbox = inputs.inbox();
    let writer = Writer::start(outputs, memory.for_names(), &config, move |read| inbox(Input::Written { read }))?;
    let inbox = inputs.inbox();
    let lookers = Lookers::start(move |seen| inbox(Input::Seen(Box::new(seen)))).context("cannot look at processes")?;
    let mut session = Session {
        coverage: Coverage::new(requests.clone(), records_mapped && !huge_pages),
        new: VecDeque::new(),
        unseen_heaps: Notes::most(MAX_NOTES),
        writer: Some(writer),
        is_writing: false,
        is_read: true,
        config,
        probes: Probes::new(programs, scope),
        images: 0,
        selected,
        selection,
        newcomers,
        found_late: 0,
        over_too_soon: 0,
        missed: Vec::new(),
        go_maps,
        known: KnownPrograms::default(),
        attached: Vec::new(),
        ended: Ended::default(),
        go: Vec::new(),
        followers: Followers::default(),
        go_over: Vec::new(),
        forgets_go: false,
        notes,
        goroutines: GoWatches::default(),
        libraries: Vec::new(),
        requests,
        resolvers,
        _running: running,
        inputs,
        lookers,
        signals,
        launcher,
        launched: None,
        started: SystemTime::now(),
        clock: Instant::now(),
        interruptions: 0,
        last_beat: Instant::now(),
        look_around: Instant::now() + LOOK_AROUND,
        looks_at_probes: Share::new(SHARE_OF_LOOKS_AT_PROBES, BURST_OF_LOOKS, Instant::now()),
        kept: 0,
        outlived: false,
        meter,
        meter_next: Instant::now(),
        budget: None,
    };
    let result = session.trace();
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
    /// By what, where they were.
    selection: Selection,
    /// Who is traced of those that begin while others are, and are not started by them.
    newcomers: Option<choosing::Newcomers>,
    /// How many processes were found to fit only after they had begun.
    found_late: u64,
    /// How many were over before it could be seen whether they fit.
    over_too_soon: u64,
    /// Those that fitted as the trace ended and were not traced.
    missed: Vec<choosing::Untraced>,
    /// How many images recording was turned on for.
    images: u32,
    go_maps: GoMaps,
    /// Programs that were looked at.
    known: KnownPrograms,
    attached: Vec<Attached>,
    /// Processes that were started by traced ones and have ended.
    ended: Ended,
    /// Heaps of Go processes, who follows them, and what those held that have ended.
    go: Vec<GoHeap>,
    followers: Followers,
    go_over: Vec<GoTrace>,
    /// Whether there was no room for more of those.
    forgets_go: bool,
    /// What the reader of a report should know.
    notes: Notes,
    goroutines: GoWatches,
    coverage: Coverage,
    /// Images that have begun since when, whose memory and place are to be read.
    new: VecDeque<(Instant, Image, Had)>,
    /// Go heaps that are not seen, or not in full: each in words.
    unseen_heaps: Notes,
    /// Where Go runtimes of libraries are looked for.
    libraries: Vec<Libraries>,
    requests: Requests,
    resolvers: Resolvers,
    _running: Running,
    inputs: Inputs<Input>,
    lookers: Lookers,
    signals: Signals,
    /// Until the command is launched.
    launcher: Option<Launcher>,
    launched: Option<Launched>,
    writer: Option<Writer>,
    /// Whether a short report is being written, and whether anybody reads them.
    is_writing: bool,
    is_read: bool,
    started: SystemTime,
    clock: Instant,
    /// Times that probes had to be moved while tracing.
    interruptions: u64,
    /// When that was done last which comes round regularly.
    last_beat: Instant,
    /// When processes are to be looked for whose beginnings may have been missed.
    look_around: Instant,
    /// What looks at probes may take, and at whose it was looked last.
    looks_at_probes: Share,
    kept: usize,
    /// Whether it was said that the command has ended and others go on.
    outlived: bool,
    /// What all this costs.
    meter: Meter,
    /// When it is looked next at what processes have used.
    meter_next: Instant,
    /// What it may cost, where that is bounded.
    budget: Option<Budget>,
}

impl Session {
    fn trace(&mut self) -> Result<Exit> {
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
        self.begin_meter();
        self.read_memory();
        self.expect_newcomers()?;
        self.signals.enter(Stage::Tracing);
        Outputs::announce(&self.attached, self.config.verbosity);
        if let Some(launched) = &mut self.launched {
            launched.release();
        }
        let signal = self.run_loop()?;
        self.keep_probes_to_the_end()?;
        self.signals.enter(Stage::Ending);
        let material = self.last()?;
        if let Some(launched) = &self.launched {
            launched.follow_no_more();
        }
        self.detach();
        let written = self.writer.take().context("nobody writes")?.finish(material);
        self.probes.finish();
        let traced = match written {
            Ok(quality) => self.verdict(&quality),
            Err(error) if self.launched.is_none() => return Err(error),
            // The command is waited for all the same.
            Err(error) => {
                tracing::error!("{error:#}");
                Exit::Failed
            }
        };
        Ok(self.exit_status(traced, signal))
    }

    /// Until it is over: the signal that ended it, if one did.
    fn run_loop(&mut self) -> Result<Option<i32>> {
        let end = self.config.duration.map(|duration| self.clock + duration);
        let mut report = self.config.interval.map(|interval| self.clock + interval);
        // With a selection, others may come. When nobody reads the short reports any more, the files get the last one.
        while self.is_read && (self.newcomers.is_some() || self.attached.iter().any(|attached| !attached.is_over())) {
            let now = Instant::now();
            if end.is_some_and(|end| now >= end) {
                break;
            }
            if let (Some(at), Some(interval)) = (report, self.config.interval)
                && now >= at
                && !self.is_writing
            {
                let material = self.interval()?;
                self.writer.as_ref().context("nobody writes")?.write_interval(material);
                self.is_writing = true;
                // Inputs come in between, however long a report takes.
                report = Some((at + interval).max(Instant::now() + HEARTBEAT / 2));
            }
            if !self.heartbeat()? {
                break;
            }
            self.keep_probes()?;
            let look = self.attached.iter().filter_map(Attached::next_look).min();
            // One that is being written has to be over first.
            let report = report.filter(|_| !self.is_writing);
            let wake = [end, report, look].into_iter().flatten().min();
            let beat = Instant::now() + HEARTBEAT;
            let mut first = self.inputs.next(wake.map_or(beat, |wake| wake.min(beat)));
            for at in 0..MOST_AT_ONCE {
                let input = if at == 0 { first.take() } else { self.inputs.next_of_those_there() };
                match input {
                    Some(Input::Signal(signal)) => return Ok(Some(signal)),
                    Some(input) => self.take_in(input)?,
                    None => break,
                }
            }
            self.read_new(!self.inputs.are_there());
        }
        Ok(None)
    }

    fn send(&self, request: Request) -> Result<()> {
        Ok(self.requests.send(request)?)
    }

    fn ask<T>(&self, request: impl FnOnce(mpsc::Sender<T>) -> Request) -> Result<T> {
        Ok(self.requests.ask(request)?)
    }

    /// All processes, those that have ended last.
    fn processes(&self) -> impl Iterator<Item = &Attached> {
        self.attached.iter().chain(self.ended.apart())
    }
}
