//! The heap of a traced Go process: which way it is seen, and a thread that follows it as long as the process lives.
//!
//! When the runtime keeps a profile of its heap (`MemProfileRate` is not 0), that is read from its memory: exact in what it
//! has, with everything since the program began, at no cost. Else allocations are sampled by probes, and whether an object
//! still lives is read from the runtime's own bits after each cycle of its garbage collector. Turning the runtime's own
//! profile on, which writes to the process, is done only when it is asked for, and undone at the end.

use std::{
    collections::BTreeMap,
    num::NonZeroU32,
    os::fd::AsRawFd as _,
    path::PathBuf,
    sync::{Arc, mpsc},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, anyhow};
use rustix::process::setpriority_process;
use tracer_ebpf::span;

use crate::{
    bpf::{GoMaps, Links, Programs, Site},
    collector::monotonic,
    config::GoHeapChoice,
    event::Pid,
    go_process::{self, reader},
    golang::{
        self, Finding, Runtime, Unreadable,
        heap::{self, Buckets, Objects, Sample, Sampling},
    },
    heap::Growth,
    process::memory,
    profile::Values,
    report::visible,
};

/// Function of the runtime without which the linker turns its profile off.
const PROFILE: &str = "runtime.MemProfile";

/// Least time between two looks at sampled objects, and at the runtime's own profile.
const OBJECTS_PAUSE: Duration = Duration::from_millis(2);
const BUCKETS_PAUSE: Duration = Duration::from_secs(1);
/// How many times as long as a look has taken the next one waits: what following may cost of a processor.
const OBJECTS_REST: u32 = 3;
const BUCKETS_REST: u32 = 50;
/// Priority ("nice") of the thread that looks at sampled objects: on a busy machine it must not miss a garbage collection. It
/// uses a quarter of a processor at most.
const PRIORITY: i32 = -10;
/// How long the end of a trace waits for spans that have not been swept yet.
const LAST_LOOKS: Duration = Duration::from_millis(100);

/// What the thread that follows a heap is told.
pub enum Input {
    /// Objects were sampled.
    Samples(Vec<Sample>),
    /// Say what is held.
    Snapshot {
        /// By objects of at least this age.
        min_age: Duration,
        /// Of sizes within these, inclusive.
        sizes: (u64, u64),
        /// Whether it is the last: worth a moment to have it complete.
        last: bool,
        /// Where the answer goes.
        reply: mpsc::Sender<HeapSnapshot>,
    },
    /// Follow it no more.
    End,
}

/// The stack that holds something.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HeapStack {
    /// That of sampled objects: what [`StackIndex::raw`](crate::heap::StackIndex::raw) gives.
    Sampled(u32),
    /// Addresses of calls, leaf first, each of one function.
    Calls(Arc<[u64]>),
}

/// What one stack of a Go program holds.
#[derive(Clone, Debug, PartialEq)]
pub struct HeapUsage {
    /// The stack.
    pub stack: HeapStack,
    /// Estimated amounts.
    pub values: Values,
    /// Age of the oldest sampled object. `None` when it is not known.
    pub oldest: Option<Duration>,
    /// Bytes per second.
    pub growth: Option<f64>,
}

/// What the heap of a Go process holds.
#[derive(Clone, Debug, Default)]
pub struct HeapSnapshot {
    /// By stack, in no order.
    pub stacks: Vec<HeapUsage>,
    /// How good that is.
    pub sampling: Option<Sampling>,
    /// Why it has not been followed to the end, if so.
    pub problem: Option<String>,
}

/// The way in which a heap is seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// By the profile that the runtime keeps, with a mean of this many bytes between samples.
    Buckets(u64),
    /// By sampled allocations.
    Sampled,
}

/// What can be seen of the Go runtime of a process, and how, or why not; empty when it is no Go program.
pub fn diagnose(pid: Pid) -> Vec<Finding> {
    match GoProcess::open(pid) {
        Ok(process) => process.map(|process| process.diagnose()).unwrap_or_default(),
        Err(error) => vec![Finding::problem(format!("its Go runtime cannot be seen: {error}"))],
    }
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
        match go_process::open(pid) {
            Err(error) if go_process::is_not_go(&error) => Ok(None),
            runtime => Ok(Some(Self { pid, runtime: runtime? })),
        }
    }

    /// What can be seen of it, and how, or why not.
    pub fn diagnose(&self) -> Vec<Finding> {
        golang::diagnose(&self.runtime, &reader(self.pid))
    }

    /// Begins to follow its heap. `begins`: its first instruction is yet to come. Samples that the collector takes in go to
    /// [`GoHeap::samples`].
    ///
    /// # Errors
    /// Its heap cannot be understood, or the kernel refuses the probes.
    pub fn follow(
        self,
        programs: &mut Programs,
        maps: &mut GoMaps,
        choice: GoHeapChoice,
        mean: u64,
        begins: bool,
    ) -> Result<GoHeap> {
        if tracing::enabled!(tracing::Level::DEBUG) {
            for finding in self.diagnose() {
                tracing::debug!("Go: {}", visible(&finding.to_string()));
            }
        }
        let Self { pid, runtime } = self;
        let memory = reader(pid);
        let rate = match heap::profile_rate(&runtime, &memory) {
            // It is set to 0 when the runtime starts, if nothing of the program can read the profile.
            Ok(_) if begins && runtime.executable.tables.function_named(PROFILE).is_none() => Ok(0),
            found => found,
        };
        let (way, why, enabled) = match (choice, rate) {
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
                let enabled = Enabled::new(&runtime, pid, mean)?;
                (Way::Buckets(mean), "MemProfileRate was set for the time of the trace", Some(enabled))
            }
            (GoHeapChoice::Off, _) => return Err(anyhow!("the Go heap was not asked for")),
        };
        let mut links = Links::default();
        if way == Way::Sampled
            && let Err(error) =
                maps.set_mean(mean).map_err(Into::into).and_then(|()| probe(programs, maps, &runtime, pid, &mut links))
        {
            links.detach(programs);
            return Err(error);
        }
        let (inputs, input) = mpsc::channel();
        let follower = Follower::new(Arc::clone(&runtime), pid, way, mean);
        let follower = thread::Builder::new().name("go heap".to_owned()).spawn(move || follower.run(&input))?;
        Ok(GoHeap { pid, runtime, way, why, links, inputs, follower, enabled })
    }
}

/// The heap of a Go process that is being followed.
pub struct GoHeap {
    pid: Pid,
    runtime: Arc<Runtime>,
    way: Way,
    why: &'static str,
    links: Links,
    inputs: mpsc::Sender<Input>,
    follower: thread::JoinHandle<()>,
    enabled: Option<Enabled>,
}

impl GoHeap {
    /// The process.
    pub fn pid(&self) -> Pid {
        self.pid
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
    pub fn samples(&self) -> mpsc::Sender<Input> {
        self.inputs.clone()
    }

    /// What it holds now.
    pub fn snapshot(&self, min_age: Duration, sizes: (u64, u64), last: bool) -> HeapSnapshot {
        let (reply, answer) = mpsc::channel();
        let asked = self.inputs.send(Input::Snapshot { min_age, sizes, last, reply });
        let gone =
            || HeapSnapshot { problem: Some("its follower has ended with a bug".to_owned()), ..Default::default() };
        asked.ok().and_then(|()| answer.recv().ok()).unwrap_or_else(gone)
    }

    /// How it was seen and why, in a sentence.
    pub fn note(&self) -> String {
        let Self { pid, why, .. } = self;
        match self.way {
            Way::Sampled => format!(
                "the Go heap of process {pid} is sampled ({why}): what was allocated before is not in it; what is younger \
                 than its last garbage collection counts by how much of the same stack survives one"
            ),
            Way::Buckets(rate) if self.enabled.is_some() => {
                format!("the Go heap of process {pid} is its own profile, a sample every {rate} bytes ({why})")
            }
            Way::Buckets(rate) => format!(
                "the Go heap of process {pid} is its own profile since it began, a sample every {rate} bytes ({why})"
            ),
        }
    }

    /// Takes the probes off, and undoes what was changed in the process.
    pub fn detach(self, programs: &mut Programs) {
        let Self { links, inputs, follower, enabled, .. } = self;
        drop(enabled);
        // The collector may hold another sender. A follower that is gone needs not be told.
        let _ = inputs.send(Input::End);
        links.detach(programs);
        if follower.join().is_err() {
            tracing::error!("the follower of a Go heap ended with a bug; please report it");
        }
    }
}

/// `MemProfileRate` of a process, as long as it is not 0 as it was.
struct Enabled {
    pid: Pid,
    addr: u64,
}

impl Enabled {
    fn new(runtime: &Runtime, pid: Pid, rate: u64) -> Result<Self> {
        let addr = heap::profile_rate_address(runtime)?;
        memory::write_word(pid, addr, rate).context("cannot write to its memory")?;
        Ok(Self { pid, addr })
    }
}

impl Drop for Enabled {
    fn drop(&mut self) {
        if let Err(error) = memory::write_word(self.pid, self.addr, 0) {
            // Most likely it has ended.
            tracing::debug!("cannot set MemProfileRate of process {} back: {error}", self.pid);
        }
    }
}

/// Probes the allocations of a process.
fn probe(programs: &mut Programs, maps: &mut GoMaps, runtime: &Runtime, pid: Pid, links: &mut Links) -> Result<()> {
    let sites = heap::probe_sites(runtime)?;
    maps.set_runtime(pid, heap::runtime_value(runtime, &sites)?)?;
    // The very file, whatever its path leads to by now.
    let file = PathBuf::from(format!("/proc/self/fd/{}", runtime.executable.file().as_raw_fd()));
    let task = NonZeroU32::new(pid).context("process id 0")?;
    for (program, offsets, cookie) in [
        ("go_new_span", &sites.new_span, span::RESULT),
        ("go_new_span", &sites.refilled, span::CACHED),
        ("go_after_assist", &sites.after_assist, 0),
        ("go_allocate", &sites.allocate, 0),
    ] {
        if offsets.is_empty() {
            continue;
        }
        let sites = offsets.iter().map(|offset| Site { offset: *offset, cookie });
        links.attach(programs, program, &file, sites, task).context("cannot probe its allocations")?;
    }
    tracing::debug!(?sites, "probes on the Go runtime attached");
    Ok(())
}

/// What is followed.
enum Followed {
    Objects(Box<Objects>),
    Buckets { buckets: Buckets, rate: u64 },
}

/// Follows the heap of one process. Belongs to its thread.
struct Follower {
    runtime: Arc<Runtime>,
    pid: Pid,
    followed: Followed,
    growth: Growth,
    problem: Option<String>,
}

impl Follower {
    fn new(runtime: Arc<Runtime>, pid: Pid, way: Way, mean: u64) -> Self {
        let followed = match way {
            Way::Sampled => Followed::Objects(Box::new(Objects::new(mean))),
            Way::Buckets(rate) => Followed::Buckets { buckets: Buckets::default(), rate },
        };
        let mut follower = Self { runtime, pid, followed, growth: Growth::new(monotonic()), problem: None };
        if let Followed::Buckets { .. } = follower.followed {
            // What it holds already is where growth begins.
            follower.look();
            let held = follower.outstanding();
            follower.growth = Growth::since(monotonic(), held);
        }
        follower
    }

    fn run(mut self, input: &mpsc::Receiver<Input>) {
        if let Followed::Objects(_) = self.followed
            && let Err(error) = setpriority_process(None, PRIORITY)
        {
            tracing::debug!("cannot raise the priority of the thread that follows the Go heap: {error}");
        }
        let mut next_look = Instant::now();
        loop {
            let now = Instant::now();
            if now >= next_look {
                self.look();
                let taken = now.elapsed();
                let now = monotonic();
                if self.growth.is_due(now) {
                    let held = self.outstanding();
                    self.growth.tick(now, || held.into_iter());
                }
                let (pause, rest) = match self.followed {
                    Followed::Objects(_) => (OBJECTS_PAUSE, OBJECTS_REST),
                    Followed::Buckets { .. } => (BUCKETS_PAUSE, BUCKETS_REST),
                };
                next_look = Instant::now() + pause.max(taken * rest);
            }
            match input.recv_timeout(next_look.saturating_duration_since(Instant::now())) {
                Ok(Input::Samples(samples)) => {
                    if let Followed::Objects(objects) = &mut self.followed {
                        samples.into_iter().for_each(|sample| objects.add(sample));
                    }
                }
                Ok(Input::Snapshot { min_age, sizes, last, reply }) => {
                    self.look_again(last);
                    // Nobody waits any more: nothing to do.
                    let _ = reply.send(self.snapshot(min_age, sizes));
                }
                Err(mpsc::RecvTimeoutError::Timeout) => {}
                Ok(Input::End) | Err(mpsc::RecvTimeoutError::Disconnected) => return,
            }
        }
    }

    /// Brings what is known up to date. What was known before stays when the process has ended.
    fn look(&mut self) {
        if self.problem.is_some() {
            return;
        }
        let memory = reader(self.pid);
        let looked = match &mut self.followed {
            Followed::Objects(objects) => objects.look(&self.runtime, &memory).map(drop),
            Followed::Buckets { buckets, .. } => buckets.refresh(&self.runtime, &memory),
        };
        match looked {
            Ok(()) => {}
            Err(Unreadable::Memory(error)) => tracing::debug!("cannot look at the Go heap of {}: {error}", self.pid),
            Err(error) => self.problem = Some(error.to_string()),
        }
    }

    /// A look for a report; the last one gives the runtime a moment to sweep what it has not swept.
    fn look_again(&mut self, last: bool) {
        let begin = Instant::now();
        self.look();
        while let Followed::Objects(objects) = &self.followed
            && last
            && objects.is_undecided()
            && begin.elapsed() < LAST_LOOKS
            && self.problem.is_none()
        {
            thread::sleep(OBJECTS_PAUSE);
            self.look();
        }
    }

    /// Bytes held by stack, in the order that growth knows them by.
    fn outstanding(&self) -> Vec<u64> {
        match &self.followed {
            Followed::Objects(objects) => objects.outstanding(),
            Followed::Buckets { buckets, rate } => buckets.iter().map(|bucket| bucket.estimate(*rate)[1].1).collect(),
        }
    }

    fn snapshot(&self, min_age: Duration, sizes: (u64, u64)) -> HeapSnapshot {
        let now = monotonic();
        let problem = self.problem.clone();
        match &self.followed {
            Followed::Objects(objects) => {
                let until = now.saturating_sub(u64::try_from(min_age.as_nanos()).unwrap_or(u64::MAX));
                let stacks = objects.usage(until, sizes).into_iter().map(|usage| HeapUsage {
                    stack: HeapStack::Sampled(usage.stack),
                    values: usage.values,
                    oldest: usage.oldest.map(|oldest| Duration::from_nanos(now.saturating_sub(oldest))),
                    growth: self.growth.rate(usage.stack as usize, usage.values.outstanding_bytes, now),
                });
                HeapSnapshot { stacks: stacks.collect(), sampling: Some(objects.sampling(until, sizes)), problem }
            }
            Followed::Buckets { buckets, rate } => {
                let mut stacks: BTreeMap<Arc<[u64]>, HeapUsage> = BTreeMap::new();
                let wanted = buckets.iter().enumerate().filter(|(_, b)| (sizes.0..=sizes.1).contains(&b.size));
                for (index, bucket) in wanted {
                    let [(allocated_blocks, allocated_bytes), (blocks, bytes)] = bucket.estimate(*rate);
                    let values = Values {
                        outstanding_bytes: bytes,
                        outstanding_blocks: blocks,
                        allocated_bytes,
                        allocated_blocks,
                        freed_blocks: allocated_blocks.saturating_sub(blocks),
                    };
                    let growth = self.growth.rate(index, bytes, now);
                    let usage = stacks.entry(Arc::clone(&bucket.calls)).or_insert_with(|| HeapUsage {
                        stack: HeapStack::Calls(bucket.calls),
                        values: Values::default(),
                        oldest: None,
                        growth: growth.map(|_| 0.0),
                    });
                    usage.values += values;
                    usage.growth = usage.growth.map(|sum| sum + growth.unwrap_or(0.0));
                }
                let sampling = Some(heap::sampling_of(buckets.iter(), *rate));
                HeapSnapshot { stacks: stacks.into_values().collect(), sampling, problem }
            }
        }
    }
}
