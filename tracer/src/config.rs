//! What the user wants, as plain values: the command line's outcome, and all that the session is told.

use std::{ffi::OsString, path::PathBuf, time::Duration};

use crate::{
    attach::probes::Scope,
    probe::{asked::Asked, outcomes::Way},
    report::{By, Format, Value},
    select::Selection,
    top::ranking::Sort,
};

/// A run of the tracer.
#[derive(Clone, Debug)]
pub struct Config {
    /// What to trace.
    pub subject: Subject,
    /// When to stop; `None`: when interrupted, or when the target exits.
    pub duration: Option<Duration>,
    /// How often to print a short report while tracing.
    pub interval: Option<Duration>,
    /// Blocks must be this old to be reported.
    pub min_age: Duration,
    /// Smallest and largest allocation of interest, bytes, inclusive.
    pub sizes: (u64, u64),
    /// How the heap of Go programs is seen.
    pub go_heap: GoHeapChoice,
    /// Whether what processes map themselves is recorded.
    pub mmap: MmapChoice,
    /// Mean of bytes between samples of allocations of C, C++ and Rust; `None`: all are recorded.
    pub sample: Option<u64>,
    /// The same of Go programs, where their heaps are sampled.
    pub go_sample: u64,
    /// Most that tracing may cost, as a share of what the processes would use without; `None`: whatever it does.
    pub max_overhead: Option<f64>,
    /// How many stacks a text report shows.
    pub top: usize,
    /// What stacks are ordered by, and what flame graphs show.
    pub value: Value,
    /// What the text report tells stacks apart by.
    pub by: By,
    /// Where reports go; none: text to the standard output.
    pub outputs: Vec<OutputSpec>,
    /// Size of the ring buffer, bytes, a power of two.
    pub buffer_size: u32,
    /// How much memory tracer may take, about, bytes.
    pub max_memory: u64,
    /// Whether any loss makes the exit status 3.
    pub strict: bool,
    /// How the outcomes of calls are seen, where it was asked for by name.
    pub returns: Option<Way>,
    /// Functions that are to be probed besides those that are known.
    pub symbols: Vec<Asked>,
    /// Whether what the traced processes start is traced as well.
    pub children: bool,
    /// For whom probes are there; `None`: as the number of processes has it.
    pub scope: Option<Scope>,
    /// Whether to attach by perf events even where the kernel has uprobe-multi links.
    pub perf_events: bool,
    /// How much to say on the standard error.
    pub verbosity: Verbosity,
}

/// A look at the goroutines of a process.
#[derive(Clone, Debug)]
pub struct GoroutinesConfig {
    /// The process.
    pub pid: u32,
    /// How many groups a text report shows.
    pub top: usize,
    /// Where reports go; none: text to the standard output.
    pub outputs: Vec<OutputSpec>,
    /// How much to say on the standard error.
    pub verbosity: Verbosity,
}

/// A look at which processes grow.
#[derive(Clone, Debug)]
pub struct TopConfig {
    /// How often processes are looked at.
    pub interval: Duration,
    /// Whether to end after one table.
    pub once: bool,
    /// Whether to write JSON.
    pub json: bool,
    /// What processes are ordered by.
    pub sort: Sort,
    /// Most processes that are shown.
    pub top: usize,
}

/// A look at what works.
#[derive(Clone, Debug)]
pub struct DoctorConfig {
    /// The process that is looked at, too.
    pub pid: Option<u32>,
    /// Whether to write JSON.
    pub json: bool,
    /// Functions that would be probed besides those that are known.
    pub symbols: Vec<Asked>,
}

/// How the heap of Go programs is to be seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GoHeapChoice {
    /// By the profile that the runtime keeps, if it does, else by sampling.
    Auto,
    /// By the profile that the runtime keeps.
    Buckets,
    /// By sampled allocations.
    Sample,
    /// By the profile that the runtime keeps, which is turned on for the time of the trace: writes to the process.
    Enable,
    /// Not at all.
    Off,
}

/// Whether what processes map themselves is recorded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MmapChoice {
    /// Where it costs other processes nothing.
    Auto,
    /// Wherever it is possible.
    Always,
    /// Not at all.
    Off,
}

/// What to trace.
#[derive(Clone, Debug)]
pub enum Subject {
    /// Running processes.
    Pids(Vec<u32>),
    /// Processes that run as the trace begins, and fit.
    Selected(Box<Selection>),
    /// A command to launch.
    Command(Vec<OsString>),
}

/// Where a report goes, and as what.
#[derive(Clone, Debug)]
pub struct OutputSpec {
    /// The file; `None` for the standard output.
    pub path: Option<PathBuf>,
    /// Its format.
    pub format: Format,
}

/// How much to say on the standard error.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Verbosity {
    /// Errors, and the line that says that tracing has begun.
    Quiet,
    /// What a user wants to know.
    Normal,
    /// What a developer wants to know.
    Verbose,
    /// Everything.
    Debug,
}
