//! `tracer goroutines`: what the goroutines of a running Go process do, read from its memory. No probes, nothing is stopped
//! or written to.

use std::{
    collections::BTreeMap,
    io, thread,
    time::{Duration, Instant, SystemTime},
};

use anyhow::{Context as _, Result, bail};
use rustix::time::{ClockId, clock_gettime};

use crate::{
    config::GoroutinesConfig,
    exit::Exit,
    golang::{self, Executable, Goroutines, Group, Runtime, State, Symbols, Unreadable},
    outputs::Outputs,
    process::{
        link_map::Auxv,
        memory,
        root::ProcessDirectory,
        status::{self, NotTraceable, Status},
    },
    profile::{GoroutineGroup, Kind, Language, Mode, Profile, Target},
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
    let directory = ProcessDirectory::open(pid).map_err(|_| NotTraceable::NoSuchProcess(pid))?;
    let forbidden = |what: &str, error: io::Error| match error.raw_os_error() {
        Some(libc::ESRCH | libc::ENOENT) => NotTraceable::NoSuchProcess(pid),
        _ => NotTraceable::Forbidden { pid, what: what.to_owned(), error: error.to_string() },
    };
    let file = directory.target("exe").map_err(|error| forbidden("its executable", error))?;
    let unreadable = |error: Unreadable| match error {
        Unreadable::Memory(error) => anyhow::Error::new(forbidden("its memory", error)),
        other => anyhow::Error::new(other),
    };
    let process = || format!("the goroutines of process {pid} ({}) cannot be read", visible(&status.comm));
    let executable = Executable::open(file).map_err(unreadable).with_context(process)?;
    let entry = Auxv::read(pid).map_err(|error| forbidden("its auxiliary vector", error))?.entry();
    let Some(entry) = entry else { bail!(NotTraceable::NoSuchProcess(pid)) };
    let opened = clock.elapsed();

    let read = |spans: &[memory::Span], buffer: &mut [u8]| memory::read_spans(pid, spans, buffer);
    let found = Runtime::attach(executable, entry, &read).and_then(|runtime| {
        let goroutines = golang::read_goroutines(&runtime, &read, &|| thread::sleep(PAUSE))?;
        Ok((runtime, goroutines))
    });
    // What was read is of this process only if it still is the same one.
    if status::check(pid).map(|now| now.start_time) != Ok(status.start_time) {
        bail!("process {pid} ({}) has exited while its goroutines were read", visible(&status.comm));
    }
    let (runtime, goroutines) = found.map_err(unreadable).with_context(process)?;
    let duration = clock.elapsed();
    tracing::debug!(
        version = visible(&runtime.executable.version.text).as_ref(),
        system = goroutines.system,
        "executable read in {opened:?}, goroutines in {:?}",
        duration - opened
    );
    let module = Symbols::new(&runtime, &status.exe).described();
    let target = Target { pid, comm: status.comm.clone(), exe: status.exe.clone(), language: Language::Go };
    Ok(Profile {
        kind: Kind::Goroutines,
        started,
        duration,
        mode: Mode::Snapshot,
        quality: quality(&goroutines),
        goroutines: named(&runtime, &target, &goroutines.groups),
        targets: vec![target],
        stacks: Vec::new(),
        unwind_tables: Vec::new(),
        modules: vec![module],
    })
}

fn named(runtime: &Runtime, target: &Target, groups: &[Group]) -> Vec<GoroutineGroup> {
    let mut symbols = Symbols::new(runtime, &target.exe);
    let now = clock_gettime(ClockId::Monotonic);
    let now = u64::try_from(now.tv_sec).unwrap_or(0) * 1_000_000_000 + u64::try_from(now.tv_nsec).unwrap_or(0);
    let groups = groups.iter().map(|group| {
        let (state, reason) = match group.state {
            State::Waiting(reason) => ("waiting", Some(reason)),
            State::Leaked(reason) => ("leaked", Some(reason)),
            State::Runnable => ("runnable", None),
            State::Running => ("running", None),
            State::Syscall => ("syscall", None),
            State::Preempted => ("preempted", None),
        };
        let reason = reason.map(|reason| runtime.executable.layout.wait_reason(reason).to_owned());
        GoroutineGroup {
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
