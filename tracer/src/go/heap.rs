//! The heap of a traced Go process: which way it is seen, and a thread that follows it as long as the process lives.
//!
//! When the runtime keeps a profile of its heap (`MemProfileRate` is not 0), that is read from its memory: exact in what it
//! has, with everything since the program began, at no cost. Else allocations are sampled by probes, and whether an object
//! still lives is read from the runtime's own bits after each cycle of its garbage collector. Turning the runtime's own
//! profile on, which writes to the process, is done only when it is asked for, and undone at the end (`heap/enabled.rs`).

mod enabled;
mod follower;
mod own_stacks;
mod pool;

use std::{
    num::NonZeroU32,
    sync::{Arc, mpsc},
    time::Duration,
};

use anyhow::{Context as _, Result, anyhow};
use tracer_ebpf::{golang::cookie, span};

use enabled::Enabled;
use follower::Follower;
pub use follower::{Collections, HeapSnapshot, HeapStack, HeapUsage, Wanted, Way};
pub use pool::{Followers, Inbox, Input};

use super::process::{self, Libraries, reader};
use crate::{
    bpf::{GoMaps, Links, Programs, Site},
    config::GoHeapChoice,
    event::{Image, Pid},
    files::opener::reopen_path,
    golang::{self, Executable, Finding, Runtime, heap},
    report::visible,
};

/// What can be seen of the Go runtimes of a process, and how, or why not; empty when there is no Go in it.
pub fn diagnose(pid: Pid) -> Vec<Finding> {
    let mut findings = match GoProcess::open(pid) {
        Ok(process) => process.map(|process| process.diagnose()).unwrap_or_default(),
        Err(error) => vec![Finding::problem(format!("its Go runtime cannot be seen: {error}"))],
    };
    let found = Libraries::new(pid).look();
    for runtime in found.runtimes {
        let path = runtime.library().cloned().unwrap_or_default();
        let process = GoProcess::of(pid, runtime);
        findings.extend(process.diagnose().into_iter().map(|finding| finding.of(&path)));
    }
    for plugin in found.plugins {
        findings.push(
            Finding::good("a plugin for the Go runtime of the executable").of(plugin.library().map_or("", |path| path)),
        );
    }
    findings.extend(found.problems.into_iter().map(Finding::problem));
    findings
}

/// What is told where the profile is on that the program cannot have turned on.
const LEFT_BEHIND: &str = "MemProfileRate was set from outside, most likely by a tracer with --go-heap=enable that was \
                           killed: run one with --go-heap=enable once more, with the same --sample, to its end, which sets it back";

/// How a heap is to be followed.
#[derive(Clone, Copy, Debug)]
pub struct Wish {
    /// The way.
    pub choice: GoHeapChoice,
    /// Mean of bytes between samples.
    pub mean: u64,
    /// The objects whose growth is told.
    pub wanted: Wanted,
    /// Whether the first instruction of the program is yet to come.
    pub begins: bool,
}

/// What it takes to follow heaps.
pub struct Means<'a> {
    /// For probes.
    pub programs: &'a mut Programs,
    /// For what the programs are told of runtimes.
    pub maps: &'a mut GoMaps,
    /// Who follows them.
    pub followers: &'a Followers,
}

/// A Go process that is being looked at, not yet followed.
pub struct GoProcess {
    pid: Pid,
    runtime: Arc<Runtime>,
}

impl GoProcess {
    /// The Go runtime of a process; `None` when it is no Go program.
    ///
    /// # Errors
    /// It is one that cannot be understood, or there is no right to look into it.
    pub fn open(pid: Pid) -> Result<Option<Self>> {
        match process::open(pid) {
            Err(error) if process::is_not_go(&error) => Ok(None),
            runtime => Ok(Some(Self { pid, runtime: runtime? })),
        }
    }

    /// A runtime of a process that is known.
    pub fn of(pid: Pid, runtime: Arc<Runtime>) -> Self {
        Self { pid, runtime }
    }

    /// What can be seen of it, and how, or why not.
    pub fn diagnose(&self) -> Vec<Finding> {
        golang::diagnose(&self.runtime, &reader(self.pid))
    }

    /// Begins to follow its heap, that of the runtime of this number in the process, whose image this is. Samples that the collector
    /// takes in go to [`GoHeap::samples`].
    ///
    /// # Errors
    /// Its heap cannot be understood, or the kernel refuses the probes.
    pub fn follow(
        self,
        Means { programs, maps, followers }: Means<'_>,
        wish: Wish,
        (image, number): (Image, u8),
    ) -> Result<GoHeap> {
        let Wish { choice, mean, wanted, begins } = wish;
        // The profile that a runtime keeps does not have ages.
        let ages = wanted.min_age > 0;
        if tracing::enabled!(tracing::Level::DEBUG) {
            for finding in self.diagnose() {
                tracing::debug!("Go: {}", visible(&finding.to_string()));
            }
        }
        let Self { pid, runtime } = self;
        let memory = reader(pid);
        let rate = match heap::profile_rate(&runtime, &memory) {
            // It is set to 0 when the runtime starts, if nothing of the program can read the profile.
            Ok(_) if begins && heap::is_turned_off(&runtime) => Ok(0),
            found => found,
        };
        let left_behind = rate.as_ref().is_ok_and(|rate| heap::is_left_behind(&runtime, *rate));
        let (way, why, enabled) = match (choice, rate) {
            // A program may set the number itself: only what this very command would have set is taken for a tracer's.
            (GoHeapChoice::Enable, Ok(rate)) if left_behind && rate == mean => {
                let enabled = Enabled::taken_over(&runtime, pid, mean)?;
                (
                    Way::Buckets(rate),
                    "a tracer that was killed had set MemProfileRate; it is set back at the end",
                    Some(enabled),
                )
            }
            (GoHeapChoice::Auto | GoHeapChoice::Buckets, Ok(rate @ 1..)) if left_behind && !ages => {
                (Way::Buckets(rate), LEFT_BEHIND, None)
            }
            (GoHeapChoice::Auto, Ok(1..)) if ages => {
                (Way::Sampled, "the profile that the runtime keeps has no ages, which --min-age asks for", None)
            }
            (GoHeapChoice::Auto, Ok(rate @ 1..)) => {
                (Way::Buckets(rate), "the runtime keeps a profile of its heap (MemProfileRate is not 0)", None)
            }
            (GoHeapChoice::Auto, Ok(0)) => {
                (Way::Sampled, "the runtime keeps no profile of its heap (MemProfileRate is 0)", None)
            }
            (GoHeapChoice::Auto, Err(_)) => {
                (Way::Sampled, "whether the runtime keeps a profile of its heap cannot be seen", None)
            }
            (GoHeapChoice::Sample, _) => (Way::Sampled, "asked for", None),
            (GoHeapChoice::Buckets, Ok(0)) => {
                return Err(anyhow!(
                    "the runtime keeps no profile of its heap (MemProfileRate is 0): take --go-heap=sample, or \
                     --go-heap=enable, which writes to the process"
                ));
            }
            (GoHeapChoice::Buckets, rate) => (Way::Buckets(rate?), "asked for", None),
            (GoHeapChoice::Enable, Ok(rate @ 1..)) => {
                (Way::Buckets(rate), "the runtime keeps a profile of its heap already", None)
            }
            (GoHeapChoice::Enable, rate) => {
                rate?;
                if begins {
                    let enabled = Enabled::before_start(&runtime, pid, mean)?;
                    let why = "MemProfileRate was set for the time of the trace, from when the runtime had started on: what it \
                               and the program allocated within the milliseconds until that was seen is not in it";
                    (Way::Buckets(mean), why, Some(enabled))
                } else {
                    let enabled = Enabled::new(&runtime, pid, mean)?;
                    (Way::Buckets(mean), "MemProfileRate was set for the time of the trace", Some(enabled))
                }
            }
            (GoHeapChoice::Off, _) => return Err(anyhow!("the Go heap was not asked for")),
        };
        let mut links = Links::default();
        if way == Way::Sampled
            && let Err(error) = maps
                .set_mean(mean)
                .map_err(Into::into)
                .and_then(|()| probe(programs, maps, &runtime, (pid, number), &mut links))
        {
            links.detach_aside(programs);
            return Err(error);
        }
        let starting = enabled.as_ref().filter(|_| begins).map(Enabled::rate);
        let follower = Follower::new(Arc::clone(&runtime), pid, way, mean, wanted).starting(starting);
        let inbox = followers.follow(follower)?;
        Ok(GoHeap { pid, image, number, runtime, way, why, links, followers: followers.clone(), inbox, enabled })
    }
}

/// The heap of a Go process that is being followed.
pub struct GoHeap {
    pid: Pid,
    image: Image,
    /// Which of the process's runtimes it is.
    number: u8,
    runtime: Arc<Runtime>,
    way: Way,
    why: &'static str,
    links: Links,
    followers: Followers,
    inbox: Inbox,
    enabled: Option<Enabled>,
}

impl GoHeap {
    /// The process.
    pub fn pid(&self) -> Pid {
        self.pid
    }

    /// The image of the process.
    pub fn image(&self) -> Image {
        self.image
    }

    /// Which of its process's runtimes it is.
    pub fn number(&self) -> u8 {
        self.number
    }

    /// Its runtime, which names addresses.
    pub fn runtime(&self) -> Arc<Runtime> {
        Arc::clone(&self.runtime)
    }

    /// How it is seen.
    pub fn way(&self) -> Way {
        self.way
    }

    /// Where its sampled objects are to go.
    pub fn samples(&self) -> Inbox {
        self.inbox.clone()
    }

    /// What it holds now.
    pub fn snapshot(&self, min_age: Duration, last: bool) -> HeapSnapshot {
        let (reply, answer) = mpsc::channel();
        self.inbox.tell(Input::Snapshot { min_age, last, reply });
        let gone =
            |_| HeapSnapshot { problem: Some("its follower has ended with a bug".to_owned()), ..Default::default() };
        answer.recv().unwrap_or_else(gone)
    }

    /// What it is called in a sentence: hostile text.
    pub fn name(&self) -> String {
        match self.runtime.library() {
            Some(library) => format!("the Go heap of {library} in process {}", self.pid),
            None => format!("the Go heap of process {}", self.pid),
        }
    }

    /// How it was seen and why, in a sentence. The mean of bytes between the runtime's own samples is that of the snapshot: a program may
    /// have set it as it began.
    pub fn note(&self, snapshot: &HeapSnapshot) -> String {
        let Self { why, .. } = self;
        let heap = self.name();
        let mean = |attached| match snapshot.sampling.as_ref().map_or(attached, |sampling| sampling.mean_bytes) {
            1 => "1 byte".to_owned(),
            mean => format!("{mean} bytes"),
        };
        match self.way {
            Way::Sampled => format!(
                "{heap} is sampled ({why}): what was allocated before is not in it; what is younger \
                 than its last garbage collection counts by how much of the same stack survives one"
            ),
            Way::Buckets(rate) if self.enabled.is_some() || self.why == LEFT_BEHIND => {
                format!("{heap} is its own profile, a sample every {} ({why})", mean(rate))
            }
            Way::Buckets(rate) => {
                format!("{heap} is its own profile since it began, a sample every {} ({why})", mean(rate))
            }
        }
    }

    /// Takes the probes off, without waiting for that, and undoes what was changed in the process.
    pub fn detach(self, programs: &mut Programs) {
        let Self { links, followers, inbox, enabled, .. } = self;
        drop(enabled);
        followers.end(&inbox);
        links.detach_aside(programs);
    }
}

/// Probes the allocations of a runtime, by the process and its number there.
fn probe(
    programs: &mut Programs,
    maps: &mut GoMaps,
    runtime: &Runtime,
    (pid, number): (Pid, u8),
    links: &mut Links,
) -> Result<()> {
    let number = u32::from(number);
    let sites = heap::probe_sites(runtime)?;
    maps.set_runtime(pid, heap::runtime_value(runtime, &sites, number)?)?;
    // The very file, whatever its path leads to by now.
    let Executable { original, .. } = &runtime.executable;
    let file = original.as_ref().map_or_else(|| reopen_path(runtime.executable.file()), reopen_path);
    let task = NonZeroU32::new(pid).context("process id 0")?;
    for (program, offsets, told) in [
        ("go_new_span", &sites.new_span, span::RESULT),
        ("go_new_span", &sites.refilled, span::CACHED),
        ("go_after_assist", &sites.after_assist, 0),
        ("go_allocate", &sites.allocate, 0),
    ] {
        if offsets.is_empty() {
            continue;
        }
        let sites = offsets.iter().map(|offset| Site { offset: *offset, cookie: cookie::pack(told, number) });
        links.attach(programs, program, &file, sites, task).context("cannot probe its allocations")?;
    }
    tracing::debug!(?sites, "probes on the Go runtime attached");
    Ok(())
}
