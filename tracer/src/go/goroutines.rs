//! `tracer goroutines`: what the goroutines of a running Go process do, read from its memory. No probes, nothing is stopped
//! or written to.

use std::{
    cmp::Reverse,
    sync::Arc,
    thread,
    time::{Duration, Instant, SystemTime},
};

use anyhow::{Context as _, Result, bail};
use rustix::time::{ClockId, clock_gettime};

use super::process::{self, Libraries, explained, reader};
use crate::{
    config::GoroutinesConfig,
    exit::Exit,
    files::opener,
    golang::{self, Goroutines, Group, Home, Runtime, State, Symbols, Trend, suspected_leak},
    memory::{Memory, default_bound},
    outputs::Outputs,
    process::status::{self, Status},
    profile::{Filters, GoroutineGroup, GoroutineGrowth, Kind, Language, Mode, Process, Profile, quality::Quality},
    report::{By, Options, Value, visible},
};

/// Time that goroutines are left to themselves which moved while they were read.
const PAUSE: Duration = Duration::from_millis(2);

/// Reads and reports the goroutines that `config` names.
///
/// # Errors
/// When they cannot be read, or a report cannot be written, with what to do about it.
pub fn run(config: &GoroutinesConfig) -> Result<Exit> {
    let mut outputs = Outputs::open(&config.outputs, config.verbosity)?;
    opener::start(Memory::within(default_bound(), 0).for_copies());
    let status = status::check(config.pid)?;
    let profile = profile(config.pid, &status)?;
    outputs.write_final(&profile, &Options { top: config.top, value: Value::Count, by: By::Process })?;
    Ok(Exit::Complete)
}

/// The goroutines of process `pid`, which was found to be `status`.
fn profile(pid: u32, status: &Status) -> Result<Profile> {
    let (started, clock) = (SystemTime::now(), Instant::now());
    let own = open(pid, status);
    let libraries = Libraries::new(pid).look_at_all(|| thread::sleep(PAUSE));
    let runtimes = match own {
        Err(error) if libraries.runtimes.is_empty() => {
            return Err(libraries.problems.into_iter().fold(error, |error, problem| error.context(problem)));
        }
        own => own.into_iter().chain(libraries.runtimes),
    };
    let process = Process::new(pid, status.comm.clone(), status.exe.clone(), Language::Go);
    let mut quality = Quality { notes: libraries.problems, ..Quality::default() };
    let (mut groups, mut modules) = (Vec::new(), Vec::new());
    for runtime in runtimes {
        let plugins = if runtime.home == Home::Executable { &libraries.plugins[..] } else { &[] };
        let goroutines = match read(pid, status, &runtime, plugins) {
            Ok(goroutines) => goroutines,
            // A library that has just been loaded has none yet.
            Err(error) if runtime.home != Home::Executable => {
                quality.notes.push(format!("{}: {error:#}", runtime.library().map_or("", |path| path)));
                continue;
            }
            Err(error) => return Err(error),
        };
        tracing::debug!(
            version = visible(&runtime.executable.version.text).as_ref(),
            system = goroutines.system,
            "goroutines read, {:?} after the begin",
            clock.elapsed()
        );
        modules.extend(symbols(&runtime, plugins, &status.exe).described());
        add_quality(&mut quality, &goroutines);
        groups.extend(named(&runtime, plugins, (pid, &*process.exe), &goroutines.groups, |_| None));
    }
    groups.sort_by_key(|group| Reverse(group.count));
    Ok(Profile {
        kind: Kind::Goroutines,
        started,
        duration: clock.elapsed(),
        mode: Mode::Snapshot,
        filters: Filters::default(),
        quality,
        mappings: None,
        goroutines: groups,
        goroutine_growth: None,
        processes: vec![process],
        stacks: Vec::new(),
        cost: None,
        unwind_tables: Vec::new(),
        modules,
    })
}

/// What names the code of a runtime, and of plugins that run in it, in a process with this executable.
fn symbols<'a>(runtime: &'a Runtime, plugins: &'a [Arc<Runtime>], exe: &str) -> Symbols<&'a Runtime> {
    let mut symbols = Symbols::new(runtime, runtime.library().map_or(exe, |path| path));
    for plugin in plugins {
        symbols.add(plugin, plugin.library().map_or(exe, |path| path));
    }
    symbols
}

/// Finds the Go runtime of process `pid`, which was found to be `status`.
///
/// # Errors
/// When there is none, or it cannot be read, with what to do about it.
pub(crate) fn open(pid: u32, status: &Status) -> Result<Arc<Runtime>> {
    of_the_same(pid, status, process::open(pid))
}

/// Reads the goroutines of process `pid`, which was found to be `status` and to have `runtime`, with these plugins.
///
/// # Errors
/// As for [`open`].
pub(crate) fn read(pid: u32, status: &Status, runtime: &Runtime, plugins: &[Arc<Runtime>]) -> Result<Goroutines> {
    let goroutines = golang::read_goroutines_with(runtime, plugins, &reader(pid), &|| thread::sleep(PAUSE));
    of_the_same(pid, status, goroutines.map_err(|error| explained(pid, error)))
}

/// What was read is of this process only if it still is the same one.
fn of_the_same<T>(pid: u32, status: &Status, found: Result<T>) -> Result<T> {
    if status::look(pid).map(|now| now.start_time) != Ok(status.start_time) {
        bail!("process {pid} ({}) has exited while its goroutines were read", visible(&status.comm));
    }
    found.with_context(|| format!("the goroutines of process {pid} ({}) cannot be read", visible(&status.comm)))
}

/// The groups of a process, whose executable is known to it as `exe`, with their names, and with how each has grown, as far as `trend` knows.
pub(crate) fn named<'a>(
    runtime: &Runtime,
    plugins: &[Arc<Runtime>],
    (pid, exe): (u32, &str),
    groups: impl IntoIterator<Item = &'a Group>,
    trend: impl Fn(&Group) -> Option<Trend>,
) -> Vec<GoroutineGroup> {
    let mut symbols = symbols(runtime, plugins, exe);
    let now = clock_gettime(ClockId::Monotonic);
    let now = u64::try_from(now.tv_sec).unwrap_or(0) * 1_000_000_000 + u64::try_from(now.tv_nsec).unwrap_or(0);
    let groups = groups.into_iter().map(|group| {
        let (state, reason) = match group.state {
            State::Waiting(reason) => ("waiting", Some(reason)),
            State::Leaked(reason) => ("leaked", Some(reason)),
            State::Runnable => ("runnable", None),
            State::Running => ("running", None),
            State::Syscall => ("syscall", None),
            State::Preempted => ("preempted", None),
        };
        let reason = reason.map(|reason| runtime.executable.layout.wait_reason(reason).to_owned());
        let trend = trend(group);
        GoroutineGroup {
            waits_on: group.waits_on,
            suspected_leak: group.count > 0
                && suspected_leak(group.state, reason.as_deref().unwrap_or_default(), trend.as_ref()),
            growth: trend.map(|Trend { first, per_second, only_grows, .. }| GoroutineGrowth {
                first,
                per_second,
                only_grows,
            }),
            truncated: group.truncation,
            pid,
            library: runtime.library().cloned(),
            frames: symbols.stack(&group.calls),
            count: group.count,
            state,
            wait_reason: reason.filter(|reason| !reason.is_empty()),
            longest_wait: group.waiting_since.and_then(|since| now.checked_sub(since)).map(Duration::from_nanos),
            created_by: Some(group.created).filter(|created| *created != 0).and_then(|at| symbols.innermost(at)),
        }
    });
    groups.collect()
}

/// Adds what is not known of the goroutines of one runtime.
fn add_quality(quality: &mut Quality, goroutines: &Goroutines) {
    let counts = [
        (goroutines.running, "goroutines ran whenever they were looked at: of those only the first function is known"),
        (goroutines.unreadable, "entries in the list of goroutines could not be read"),
        (goroutines.too_many, "goroutines are shown without their stacks: too many of those differ"),
    ];
    let notes = counts.into_iter().filter(|(count, _)| *count > 0);
    quality.notes.extend(notes.map(|(count, words)| format!("{count} {words}")));
    quality.add_truncated(goroutines.groups.iter().filter_map(|group| group.truncation), "cut stacks");
}
