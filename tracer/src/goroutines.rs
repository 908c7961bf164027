//! `tracer goroutines`: what the goroutines of a running Go process do, read from its memory. No probes, nothing is stopped
//! or written to.

use std::{
    collections::BTreeMap,
    sync::Arc,
    thread,
    time::{Duration, Instant, SystemTime},
};

use anyhow::{Context as _, Result, bail};
use rustix::time::{ClockId, clock_gettime};

use crate::{
    config::GoroutinesConfig,
    exit::Exit,
    go_process::{self, explained, reader},
    golang::{self, Goroutines, Group, Runtime, State, Symbols, Trend, suspected_leak},
    outputs::Outputs,
    process::status::{self, Status},
    profile::{GoroutineGroup, GoroutineGrowth, Kind, Language, Mode, Profile, Target},
    quality::{Quality, Truncation},
    report::{Options, Value, visible},
};

/// Time that goroutines are left to themselves which moved while they were read.
const PAUSE: Duration = Duration::from_millis(2);

/// Reads and reports the goroutines that `config` names.
///
/// # Errors
/// When they cannot be read, or a report cannot be written, with what to do about it.
pub fn run(config: &GoroutinesConfig) -> Result<Exit> {
    let mut outputs = Outputs::open(&config.outputs, config.verbosity)?;
    let status = status::check(config.pid)?;
    let profile = profile(config.pid, &status)?;
    outputs.write_final(&profile, &Options { top: config.top, value: Value::Count })?;
    Ok(Exit::Complete)
}

/// The goroutines of process `pid`, which was found to be `status`.
fn profile(pid: u32, status: &Status) -> Result<Profile> {
    let (started, clock) = (SystemTime::now(), Instant::now());
    let runtime = open(pid, status)?;
    let opened = clock.elapsed();
    let goroutines = read(pid, status, &runtime)?;
    let duration = clock.elapsed();
    tracing::debug!(
        version = visible(&runtime.executable.version.text).as_ref(),
        system = goroutines.system,
        "runtime found in {opened:?}, goroutines read in {:?}",
        duration - opened
    );
    let module = Symbols::new(&*runtime, &status.exe).described();
    let target = Target {
        pid,
        comm: status.comm.clone(),
        exe: status.exe.clone(),
        language: Language::Go,
        heaps: Vec::new(),
        memory: None,
        ended: None,
    };
    Ok(Profile {
        kind: Kind::Goroutines,
        started,
        duration,
        mode: Mode::Snapshot,
        quality: quality(&goroutines),
        goroutines: named(&runtime, &target, &goroutines.groups, |_| None),
        targets: vec![target],
        stacks: Vec::new(),
        unwind_tables: Vec::new(),
        modules: vec![module],
    })
}

/// Finds the Go runtime of process `pid`, which was found to be `status`.
///
/// # Errors
/// When there is none, or it cannot be read, with what to do about it.
pub(crate) fn open(pid: u32, status: &Status) -> Result<Arc<Runtime>> {
    of_the_same(pid, status, go_process::open(pid))
}

/// Reads the goroutines of process `pid`, which was found to be `status` and to have `runtime`.
///
/// # Errors
/// As for [`open`].
pub(crate) fn read(pid: u32, status: &Status, runtime: &Runtime) -> Result<Goroutines> {
    let goroutines = golang::read_goroutines(runtime, &reader(pid), &|| thread::sleep(PAUSE));
    of_the_same(pid, status, goroutines.map_err(|error| explained(pid, error)))
}

/// What was read is of this process only if it still is the same one.
fn of_the_same<T>(pid: u32, status: &Status, found: Result<T>) -> Result<T> {
    if status::check(pid).map(|now| now.start_time) != Ok(status.start_time) {
        bail!("process {pid} ({}) has exited while its goroutines were read", visible(&status.comm));
    }
    found.with_context(|| format!("the goroutines of process {pid} ({}) cannot be read", visible(&status.comm)))
}

/// The groups with their names, and with how each has grown, as far as `trend` knows.
pub(crate) fn named<'a>(
    runtime: &Runtime,
    target: &Target,
    groups: impl IntoIterator<Item = &'a Group>,
    trend: impl Fn(&Group) -> Option<Trend>,
) -> Vec<GoroutineGroup> {
    let mut symbols = Symbols::new(runtime, &target.exe);
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
            pid: target.pid,
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

fn quality(goroutines: &Goroutines) -> Quality {
    let mut truncated: BTreeMap<Truncation, u64> = BTreeMap::new();
    for reason in goroutines.groups.iter().filter_map(|group| group.truncation) {
        *truncated.entry(reason).or_default() += 1;
    }
    let reasons = truncated.iter().map(|(reason, count)| (*count, format!("of the cut stacks: {}", reason.words())));
    let counts = [
        (goroutines.running, "goroutines ran whenever they were looked at: of those only the first function is known"),
        (goroutines.unreadable, "entries in the list of goroutines could not be read"),
        (goroutines.too_many, "goroutines are shown without their stacks: too many of those differ"),
    ];
    let counts = counts.into_iter().map(|(count, words)| (count, words.to_owned()));
    let notes = counts.chain(reasons).filter(|(count, _)| *count > 0);
    let notes = notes.map(|(count, words)| format!("{count} {words}")).collect();
    Quality { truncated, notes, ..Quality::default() }
}
