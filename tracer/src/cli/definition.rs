//! The flags and commands, with their help.

use std::{ffi::OsString, path::PathBuf, time::Duration};

use clap::{ArgAction, Args, Parser, Subcommand, ValueEnum};

use super::values::{Pids, duration, interval, percent, pid, pids, size};
use crate::{exit, probe::asked::Asked};

pub(super) const ABOUT: &str = "Finds memory leaks in a running, unmodified service";

pub(super) const LONG_ABOUT: &str = "\
Finds memory leaks in a running, unmodified service.

Traces every allocation and every free of a process with eBPF, without changing, restarting or stopping it, and reports \
which call stacks hold memory that nobody has freed.

  sudo tracer --pid 4711                       until Ctrl-C, then a report
  sudo tracer --pid 4711 --duration 60s -o leak.svg
  sudo tracer -- ./service --port 8080         launch and trace from the first instruction
  sudo tracer --comm 'php-fpm*' --user www-data  all that run now and fit
  sudo tracer goroutines --pid 4711            what the goroutines of a Go process wait for
  sudo tracer top                              which process grows?
  sudo tracer doctor                           what works on this machine, and what is missing?";

/// The command line of tracer.
#[derive(Parser, Debug)]
#[command(name = "tracer", version, about = ABOUT, long_about = LONG_ABOUT, after_help = exit::help())]
#[command(args_conflicts_with_subcommands = true)]
pub(super) struct Cli {
    #[command(subcommand)]
    pub(super) job: Option<Job>,

    /// Trace the running process PID; several by commas or spaces (--pid "$(pidof nginx)"), or by giving it several times
    #[arg(short, long, value_name = "PID", allow_hyphen_values = true, value_parser = pids)]
    pub(super) pid: Vec<Pids>,

    #[command(flatten)]
    pub(super) selection: SelectionCli,

    /// Launch CMD with its arguments, trace it from its first instruction and exit with its status
    #[arg(last = true, value_name = "CMD")]
    pub(super) command: Vec<OsString>,

    /// Stop after this time (5s, 10m, 1h30m; a plain number is seconds) [default: until Ctrl-C or until the target exits]
    #[arg(short, long, value_name = "TIME", allow_hyphen_values = true, value_parser = duration)]
    pub(super) duration: Option<Duration>,

    /// Print a short report this often while tracing
    #[arg(short, long, value_name = "TIME", allow_hyphen_values = true, value_parser = interval)]
    pub(super) interval: Option<Duration>,

    /// Report only blocks that have been held at least this long
    #[arg(long, value_name = "TIME", allow_hyphen_values = true, value_parser = duration)]
    pub(super) min_age: Option<Duration>,

    /// Record only allocations of at least SIZE bytes (units: B, KiB, MiB, GiB)
    #[arg(long, value_name = "SIZE", allow_hyphen_values = true, value_parser = size)]
    pub(super) min_size: Option<u64>,

    /// Record only allocations of at most SIZE bytes
    #[arg(long, value_name = "SIZE", allow_hyphen_values = true, value_parser = size)]
    pub(super) max_size: Option<u64>,

    /// How the heap of a Go program is seen: by the profile that its runtime keeps, if it does (buckets); by sampled
    /// allocations (sample); by the runtime's profile, turned on for the time of the trace (enable: writes to the process);
    /// auto, the default, takes the first that is there
    #[arg(long, value_enum, value_name = "WAY")]
    pub(super) go_heap: Option<CliGoHeap>,

    /// Whether memory that programs map themselves (mmap, brk, shmat) is recorded, beside what they have from an allocator: auto does it
    /// where it costs other processes next to nothing (from Linux 6.14 on)
    #[arg(long, value_enum, value_name = "WHEN", default_value_t = CliMmap::Auto)]
    pub(super) mmap: CliMmap,

    /// Record samples only, one for every SIZE bytes that are allocated on average, and estimate the rest: costs less. Beside
    /// --go-heap=auto, sample or enable, of Go heaps only, which are sampled by 32KiB unless this says otherwise
    #[arg(long, value_name = "SIZE", allow_hyphen_values = true, value_parser = size)]
    pub(super) sample: Option<u64>,

    /// Keep what tracing costs below PERCENT of what the processes would use without, such as 5%: where it costs more, probes are there in
    /// windows of time only, so far apart as need be
    #[arg(long, value_name = "PERCENT", allow_hyphen_values = true, value_parser = percent)]
    pub(super) max_overhead: Option<f64>,

    /// How many stacks a text report shows
    #[arg(short = 'n', long, value_name = "N", allow_hyphen_values = true, default_value_t = 10)]
    pub(super) top: usize,

    /// What stacks are ordered by and flame graphs show: bytes, or the count of blocks; mapped shows what programs have mapped
    /// themselves
    #[arg(long, value_enum, default_value_t = CliValue::Bytes)]
    pub(super) value: CliValue,

    /// What processes are put together by, in text, folded stacks, flame graphs and the groups of JSON; equal stacks of equal
    /// programs are one in text, but for process
    #[arg(long, value_enum, value_name = "WHAT", default_value_t = CliBy::Program)]
    pub(super) by: CliBy,

    #[command(flatten)]
    pub(super) output: OutputCli,

    /// Size of the buffer between kernel and tracer; rounded up to a power of two
    #[arg(long, value_name = "SIZE", allow_hyphen_values = true, default_value = "64MiB", value_parser = size)]
    pub(super) buffer_size: u64,

    /// Memory that tracer may take, about: stacks that do not fit become one, which is told [default: an eighth of the
    /// machine's, or of the cgroup's limit]
    #[arg(long, value_name = "SIZE", allow_hyphen_values = true, value_parser = size)]
    pub(super) max_memory: Option<u64>,

    /// Exit with status 3 on any loss, however small
    #[arg(long)]
    pub(super) strict: bool,

    /// How the end of calls into the allocator is seen: at instructions that the kernel emulates (exits), by return probes that
    /// the entry decides about (session, from Linux 6.13 on), at return instructions (ret), by return probes (link: can end
    /// a process that changes stacks inside of its allocator); auto takes for each function the first that cannot do harm
    #[arg(long, value_enum, value_name = "WAY", default_value_t = CliReturns::Auto)]
    pub(super) returns: CliReturns,

    /// Record calls of a function that has no name, or none that is known, of a file that is mapped (its path as the process sees it, or
    /// file name): SHAPE is the function of the C library that it takes its arguments like (malloc, calloc, realloc, posix_memalign,
    /// free, ..., or heap_malloc, ... where a heap comes first), OFFSET that of its first instruction in the file. May be given
    /// several times
    #[arg(long, value_name = "SHAPE=FILE:NAME|0xOFFSET", allow_hyphen_values = true)]
    pub(super) symbol: Vec<Asked>,

    /// Trace what the processes start, too: the default
    #[arg(long, overrides_with = "no_children")]
    pub(super) children: bool,

    /// Trace the processes alone
    #[arg(long, overrides_with = "children")]
    pub(super) no_children: bool,

    /// For whom probes are there. process: for each traced process alone, which costs others nothing; what begins later is
    /// recorded some milliseconds after it has, which is told. file: for all that map the files, so that what begins later is
    /// recorded from its first instruction; others that map them pay about a microsecond for each pair of calls into their
    /// allocator [default: file with a command, with --all, and for more than 32 processes; else process]
    #[arg(long, value_enum, value_name = "FOR")]
    pub(super) scope: Option<CliScope>,

    /// Attach by perf events, as on kernels before 6.13, even where the kernel has uprobe-multi links
    #[arg(long, hide = true)]
    pub(super) perf_events: bool,

    /// Print the man page or a shell completion and exit
    #[arg(long, value_enum, value_name = "WHAT", hide = true)]
    pub(super) generate: Option<Generate>,
}

/// What stands above the options that select processes.
pub(super) const SELECTION: &str =
    "Selection: processes that run as the trace begins, or begin while it runs, and fit each kind that is given";

/// Which running processes are traced, besides by their ids.
#[derive(Args, Debug)]
pub(super) struct SelectionCli {
    /// Trace all processes but tracer, with what they start from then on
    #[arg(long, help_heading = SELECTION)]
    pub(super) all: bool,

    /// Trace processes with such a name (`redis*`, `php-fpm[78].?`); like the others, may be given several times: one has to fit
    #[arg(long, help_heading = SELECTION, value_name = "GLOB", allow_hyphen_values = true)]
    pub(super) comm: Vec<String>,

    /// Trace processes with such an executable: its path (`/usr/lib/**/postgres`) or, without a slash, its file name
    #[arg(long, help_heading = SELECTION, value_name = "GLOB", allow_hyphen_values = true)]
    pub(super) exe: Vec<String>,

    /// Trace processes in this cgroup, of version 1 or 2, and in all below it (`/system.slice/nginx.service`)
    #[arg(long, help_heading = SELECTION, value_name = "PATH", allow_hyphen_values = true)]
    pub(super) cgroup: Vec<String>,

    /// Trace processes of the container with this id, its begin (6 digits or more), or name, or of this pod: of docker, containerd,
    /// CRI-O, podman, LXC, Kubernetes
    #[arg(long, help_heading = SELECTION, value_name = "ID|NAME", allow_hyphen_values = true)]
    pub(super) container: Vec<String>,

    /// Trace processes whose effective user is this one
    #[arg(long, help_heading = SELECTION, value_name = "NAME|UID", allow_hyphen_values = true)]
    pub(super) user: Vec<String>,

    /// Trace no process with such a name, whatever else fits
    #[arg(long, help_heading = SELECTION, value_name = "GLOB", allow_hyphen_values = true)]
    pub(super) exclude_comm: Vec<String>,
}

/// What tracer does besides tracing.
#[derive(Subcommand, Debug)]
pub(super) enum Job {
    /// Show what the goroutines of a running Go process do, by stack; reads its memory, without probes
    Goroutines(GoroutinesCli),
    /// Show which processes grow, with their limits and whether they can be traced; reads /proc only, without probes
    Top(TopCli),
    /// Try what works on this machine and what is missing, and what can be seen of a process; changes nothing
    Doctor(DoctorCli),
}

#[derive(Args, Debug)]
#[command(after_help = exit::DOCTOR_HELP)]
pub(super) struct DoctorCli {
    /// Look at this process, too: what would be probed, which stacks and names there will be, what is not seen
    #[arg(short, long, value_name = "PID", allow_hyphen_values = true, value_parser = pid)]
    pub(super) pid: Option<u32>,

    /// Print one JSON object
    #[arg(long)]
    pub(super) json: bool,

    /// The same as for a trace: a function that is to be probed
    #[arg(long, value_name = "SHAPE=FILE:NAME|0xOFFSET", allow_hyphen_values = true)]
    pub(super) symbol: Vec<Asked>,
}

#[derive(Args, Debug)]
#[command(after_help = exit::GOROUTINES_HELP)]
pub(super) struct GoroutinesCli {
    /// The process, whose executable may be stripped
    #[arg(short, long, value_name = "PID", allow_hyphen_values = true, value_parser = pid)]
    pub(super) pid: u32,

    /// How many groups of goroutines a text report shows
    #[arg(short = 'n', long, value_name = "N", allow_hyphen_values = true, default_value_t = 10)]
    pub(super) top: usize,

    #[command(flatten)]
    pub(super) output: OutputCli,
}

#[derive(Args, Debug)]
#[command(after_help = exit::TOP_HELP)]
pub(super) struct TopCli {
    /// How often processes are looked at
    #[arg(short, long, value_name = "TIME", allow_hyphen_values = true, default_value = "2s", value_parser = interval)]
    pub(super) interval: Duration,

    /// Print one table after one interval and end; so it is where the standard output is no terminal, too
    #[arg(long)]
    pub(super) once: bool,

    /// Print one JSON object a line at each interval (with --once: one)
    #[arg(long)]
    pub(super) json: bool,

    /// What comes first: growth of anonymous memory, or resident memory (rss)
    #[arg(long, value_enum, default_value_t = CliSort::Growth)]
    pub(super) sort: CliSort,

    /// How many processes are shown; on a terminal, as many of them as it has lines for
    #[arg(short = 'n', long, value_name = "N", allow_hyphen_values = true, default_value_t = 20)]
    pub(super) top: usize,
}

/// Where reports go, and how much is said besides.
#[derive(Args, Debug)]
pub(super) struct OutputCli {
    /// Write a report to FILE (`-` for the standard output); the suffix tells the format: .txt .folded .svg .json, or
    /// .pb.gz for pprof. May be given several times
    #[arg(short, long, value_name = "FILE")]
    pub(super) output: Vec<PathBuf>,

    /// Format of reports whose FILE has no suffix that tells it, such as `-`
    #[arg(long, value_enum, value_name = "FORMAT")]
    pub(super) format: Option<CliFormat>,

    /// Say more on the standard error; twice for everything
    #[arg(short, long, action = ArgAction::Count, conflicts_with = "quiet")]
    pub(super) verbose: u8,

    /// Say nothing on the standard error but errors and the line `tracing PID`
    #[arg(short, long)]
    pub(super) quiet: bool,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
pub(super) enum CliValue {
    Bytes,
    Count,
    Mapped,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
pub(super) enum CliBy {
    Program,
    Process,
    Cgroup,
    Container,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
pub(super) enum CliSort {
    Growth,
    Rss,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
pub(super) enum CliGoHeap {
    Auto,
    Buckets,
    Sample,
    Enable,
    Off,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
pub(super) enum CliMmap {
    Auto,
    Always,
    Off,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
pub(super) enum CliReturns {
    Auto,
    Exits,
    Session,
    Ret,
    Link,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
pub(super) enum CliScope {
    Process,
    File,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
pub(super) enum CliFormat {
    Text,
    Folded,
    Svg,
    Pprof,
    Json,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
pub(super) enum Generate {
    Man,
    CompleteBash,
    CompleteZsh,
    CompleteFish,
}
