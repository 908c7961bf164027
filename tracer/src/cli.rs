//! The command line: flags, their help, and their conversion to a plain [`Config`]. The man page and the shell
//! completions come from the same definition.

use std::{ffi::OsString, io, path::PathBuf, time::Duration};

use clap::{ArgAction, Args, CommandFactory, Parser, Subcommand, ValueEnum, error::ErrorKind};

use crate::{
    config::{Config, GoHeapChoice, GoroutinesConfig, OutputSpec, Subject, TopConfig, Verbosity},
    exit, memory,
    probe::outcomes::Way,
    report::{By, Format, Value},
    select::{Invalid, Selection},
    top::ranking::Sort,
};

const ABOUT: &str = "Finds memory leaks in a running, unmodified service";

const LONG_ABOUT: &str = "\
Finds memory leaks in a running, unmodified service.

Traces every allocation and every free of a process with eBPF, without changing, restarting or stopping it, and reports \
which call stacks hold memory that nobody has freed.

  sudo tracer --pid 4711                       until Ctrl-C, then a report
  sudo tracer --pid 4711 --duration 60s -o leak.svg
  sudo tracer -- ./service --port 8080         launch and trace from the first instruction
  sudo tracer --comm 'php-fpm*' --user www-data  all that run now and fit
  sudo tracer goroutines --pid 4711            what the goroutines of a Go process wait for
  sudo tracer top                              which process grows?";

/// The command line of tracer.
#[derive(Parser, Debug)]
#[command(name = "tracer", version, about = ABOUT, long_about = LONG_ABOUT, after_help = exit::HELP)]
#[command(args_conflicts_with_subcommands = true)]
struct Cli {
    #[command(subcommand)]
    job: Option<Job>,

    /// Trace the running process PID; several by commas or spaces (--pid "$(pidof nginx)"), or by giving it several times
    #[arg(short, long, value_name = "PID", allow_hyphen_values = true, value_parser = pids)]
    pid: Vec<Pids>,

    #[command(flatten)]
    selection: SelectionCli,

    /// Launch CMD with its arguments, trace it from its first instruction and exit with its status
    #[arg(last = true, value_name = "CMD")]
    command: Vec<OsString>,

    /// Stop after this time (5s, 10m, 1h30m) [default: until Ctrl-C or until the target exits]
    #[arg(short, long, value_name = "TIME", allow_hyphen_values = true, value_parser = duration)]
    duration: Option<Duration>,

    /// Print a short report this often while tracing
    #[arg(short, long, value_name = "TIME", allow_hyphen_values = true, value_parser = interval)]
    interval: Option<Duration>,

    /// Report only blocks that have been held at least this long
    #[arg(long, value_name = "TIME", allow_hyphen_values = true, value_parser = duration)]
    min_age: Option<Duration>,

    /// Record only allocations of at least SIZE bytes (units: B, KiB, MiB, GiB)
    #[arg(long, value_name = "SIZE", allow_hyphen_values = true, value_parser = size)]
    min_size: Option<u64>,

    /// Record only allocations of at most SIZE bytes
    #[arg(long, value_name = "SIZE", allow_hyphen_values = true, value_parser = size)]
    max_size: Option<u64>,

    /// How the heap of a Go program is seen: by the profile that its runtime keeps, if it does (buckets); by sampled
    /// allocations (sample); by the runtime's profile, turned on for the time of the trace (enable: writes to the process);
    /// auto takes the first that is there
    #[arg(long, value_enum, value_name = "WAY", default_value_t = CliGoHeap::Auto)]
    go_heap: CliGoHeap,

    /// Mean number of bytes between two samples of a Go program's allocations
    #[arg(long, value_name = "SIZE", allow_hyphen_values = true, default_value = "32KiB", value_parser = size)]
    sample: u64,

    /// How many stacks a text report shows
    #[arg(short = 'n', long, value_name = "N", allow_hyphen_values = true, default_value_t = 10)]
    top: usize,

    /// What stacks are ordered by and flame graphs show: bytes, or the count of blocks
    #[arg(long, value_enum, default_value_t = CliValue::Bytes)]
    value: CliValue,

    /// Whether equal stacks of all processes of a program are shown as one (text), or those of each process apart
    #[arg(long, value_enum, value_name = "WHAT", default_value_t = CliBy::Program)]
    by: CliBy,

    #[command(flatten)]
    output: OutputCli,

    /// Size of the buffer between kernel and tracer; rounded up to a power of two
    #[arg(long, value_name = "SIZE", allow_hyphen_values = true, default_value = "64MiB", value_parser = size)]
    buffer_size: u64,

    /// Memory that tracer may take, about: stacks that do not fit become one, which is told [default: an eighth of the
    /// machine's, or of the cgroup's limit]
    #[arg(long, value_name = "SIZE", allow_hyphen_values = true, value_parser = size)]
    max_memory: Option<u64>,

    /// Exit with status 3 on any loss, however small
    #[arg(long)]
    strict: bool,

    /// How the end of calls into the allocator is seen: at instructions that the kernel emulates (exits), by return probes that
    /// the entry decides about (session, from Linux 6.13 on), at return instructions (ret), by return probes (link: can end
    /// a process that changes stacks inside of its allocator); auto takes for each function the first that cannot do harm
    #[arg(long, value_enum, value_name = "WAY", default_value_t = CliReturns::Auto)]
    returns: CliReturns,

    /// Trace what the processes start, too, each from its first instruction; the default for a command. The probes are on files
    /// then: other processes that map them pay about a microsecond for each call into their allocator
    #[arg(long, overrides_with = "no_children")]
    children: bool,

    /// Trace the process alone; the default with --pid
    #[arg(long, overrides_with = "children")]
    no_children: bool,

    /// Attach by perf events, as on kernels before 6.13, even where the kernel has uprobe-multi links
    #[arg(long, hide = true)]
    perf_events: bool,

    /// Print the man page or a shell completion and exit
    #[arg(long, value_enum, value_name = "WHAT", hide = true)]
    generate: Option<Generate>,
}

/// What stands above the options that select processes.
const SELECTION: &str =
    "Selection: processes that run as the trace begins (later ones are not followed), and fit each kind that is given";

/// Which running processes are traced, besides by their ids.
#[derive(Args, Debug)]
struct SelectionCli {
    /// Trace all processes but tracer, with what they start from then on
    #[arg(long, help_heading = SELECTION)]
    all: bool,

    /// Trace processes with such a name (`redis*`, `php-fpm[78].?`); like the others, may be given several times: one has to fit
    #[arg(long, help_heading = SELECTION, value_name = "GLOB", allow_hyphen_values = true)]
    comm: Vec<String>,

    /// Trace processes with such an executable: its path (`/usr/lib/**/postgres`) or, without a slash, its file name
    #[arg(long, help_heading = SELECTION, value_name = "GLOB", allow_hyphen_values = true)]
    exe: Vec<String>,

    /// Trace processes in this cgroup, of version 1 or 2, and in all below it (`/system.slice/nginx.service`)
    #[arg(long, help_heading = SELECTION, value_name = "PATH", allow_hyphen_values = true)]
    cgroup: Vec<String>,

    /// Trace processes of the container with this id, its begin (6 digits or more), or name, or of this pod: of docker, containerd,
    /// CRI-O, podman, LXC, Kubernetes
    #[arg(long, help_heading = SELECTION, value_name = "ID|NAME", allow_hyphen_values = true)]
    container: Vec<String>,

    /// Trace processes whose effective user is this one
    #[arg(long, help_heading = SELECTION, value_name = "NAME|UID", allow_hyphen_values = true)]
    user: Vec<String>,

    /// Trace no process with such a name, whatever else fits
    #[arg(long, help_heading = SELECTION, value_name = "GLOB", allow_hyphen_values = true)]
    exclude_comm: Vec<String>,
}

/// Ids of processes that are given as one word.
#[derive(Clone, Debug)]
struct Pids(Vec<u32>);

/// What tracer does besides tracing.
#[derive(Subcommand, Debug)]
enum Job {
    /// Show what the goroutines of a running Go process do, by stack; reads its memory, without probes
    Goroutines(GoroutinesCli),
    /// Show which processes grow, with their limits and whether they can be traced; reads /proc only, without probes
    Top(TopCli),
}

#[derive(Args, Debug)]
#[command(after_help = exit::GOROUTINES_HELP)]
struct GoroutinesCli {
    /// The process, whose executable may be stripped
    #[arg(short, long, value_name = "PID", allow_hyphen_values = true, value_parser = clap::value_parser!(u32).range(1..))]
    pid: u32,

    /// How many groups of goroutines a text report shows
    #[arg(short = 'n', long, value_name = "N", allow_hyphen_values = true, default_value_t = 10)]
    top: usize,

    #[command(flatten)]
    output: OutputCli,
}

#[derive(Args, Debug)]
#[command(after_help = exit::TOP_HELP)]
struct TopCli {
    /// How often processes are looked at
    #[arg(short, long, value_name = "TIME", allow_hyphen_values = true, default_value = "2s", value_parser = interval)]
    interval: Duration,

    /// Print one table after one interval and end; so it is where the standard output is no terminal, too
    #[arg(long)]
    once: bool,

    /// Print one JSON object a line at each interval (with --once: one)
    #[arg(long)]
    json: bool,

    /// What comes first: growth of anonymous memory, or resident memory (rss)
    #[arg(long, value_enum, default_value_t = CliSort::Growth)]
    sort: CliSort,

    /// How many processes are shown; on a terminal, as many of them as it has lines for
    #[arg(short = 'n', long, value_name = "N", allow_hyphen_values = true, default_value_t = 20)]
    top: usize,
}

/// Where reports go, and how much is said besides.
#[derive(Args, Debug)]
struct OutputCli {
    /// Write a report to FILE (`-` for the standard output); the suffix tells the format: .txt .folded .svg .json, or
    /// .pb.gz for pprof. May be given several times
    #[arg(short, long, value_name = "FILE")]
    output: Vec<PathBuf>,

    /// Format of reports whose FILE has no suffix that tells it, such as `-`
    #[arg(long, value_enum, value_name = "FORMAT")]
    format: Option<CliFormat>,

    /// Say more on the standard error; twice for everything
    #[arg(short, long, action = ArgAction::Count, conflicts_with = "quiet")]
    verbose: u8,

    /// Say nothing on the standard error but errors and the line `tracing PID`
    #[arg(short, long)]
    quiet: bool,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum CliValue {
    Bytes,
    Count,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum CliBy {
    Program,
    Process,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum CliSort {
    Growth,
    Rss,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum CliGoHeap {
    Auto,
    Buckets,
    Sample,
    Enable,
    Off,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum CliReturns {
    Auto,
    Exits,
    Session,
    Ret,
    Link,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum CliFormat {
    Text,
    Folded,
    Svg,
    Pprof,
    Json,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Generate {
    Man,
    CompleteBash,
    CompleteZsh,
    CompleteFish,
}

/// What the command line asks for.
pub enum Request {
    /// To trace.
    Trace(Box<Config>),
    /// To look at goroutines.
    Goroutines(GoroutinesConfig),
    /// To show which processes grow.
    Top(TopConfig),
    /// To print a text that the command line itself gave: help, version, man page, completion.
    Print(Vec<u8>),
    /// Nothing that makes sense: this is what to say.
    Refuse(clap::Error),
}

/// Reads the command line of this process.
pub fn parse() -> Request {
    request(Cli::try_parse())
}

fn request(parsed: Result<Cli, clap::Error>) -> Request {
    let checked = parsed.and_then(|cli| match (cli.generate, cli.job) {
        (Some(what), _) => generate(what).map(Request::Print).map_err(|error| usage(ErrorKind::Io, &error.to_string())),
        (None, Some(Job::Goroutines(cli))) => goroutines(cli).map(Request::Goroutines),
        (None, Some(Job::Top(cli))) => Ok(Request::Top(top(&cli))),
        (None, None) => config(Cli { job: None, ..cli }).map(|config| Request::Trace(Box::new(config))),
    });
    match checked {
        Ok(request) => request,
        Err(error) if !error.use_stderr() => Request::Print(error.render().ansi().to_string().into_bytes()),
        Err(error) => Request::Refuse(error),
    }
}

fn usage(kind: ErrorKind, message: &str) -> clap::Error {
    Cli::command().error(kind, message)
}

fn conflict<T>(message: &str) -> Result<T, clap::Error> {
    Err(usage(ErrorKind::ArgumentConflict, message))
}

fn config(cli: Cli) -> Result<Config, clap::Error> {
    let pids: Vec<u32> = cli.pid.into_iter().flat_map(|Pids(pids)| pids).collect();
    let selection = selection(distinct(pids.clone()), &cli.selection)?;
    let all = cli.selection.all;
    if all && !pids.is_empty() {
        return conflict("--all traces every process: leave --pid away, or --all");
    }
    if all && matches!(cli.returns, CliReturns::Link) {
        return conflict("--returns=link cannot be used with --all: it can end processes");
    }
    let selects = all || selection.is_more_than_pids();
    let subject = match (pids.is_empty() && !selects, cli.command.is_empty()) {
        (false, false) => {
            return conflict("--pid and selections trace running processes and `-- CMD` launches one: give either");
        }
        (true, true) => {
            return Err(usage(
                ErrorKind::MissingRequiredArgument,
                "say what to trace: --pid PID, --comm GLOB or its like, --all, or `-- CMD` to launch one; `tracer top` shows which \
                 process grows",
            ));
        }
        (true, false) => Subject::Command(cli.command),
        (false, true) if selects => Subject::Selected(Box::new(selection)),
        (false, true) => Subject::Pids(selection.pids),
    };
    let sizes = (cli.min_size.unwrap_or(0), cli.max_size.unwrap_or(u64::MAX));
    if sizes.0 > sizes.1 {
        return conflict("--min-size is larger than --max-size: no allocation would be recorded");
    }
    if let (Some(_), CliGoHeap::Buckets | CliGoHeap::Enable) = (cli.min_age, cli.go_heap) {
        let way = cli.go_heap.to_possible_value().map(|way| way.get_name().to_owned()).unwrap_or_default();
        return conflict(&format!(
            "--min-age cannot be used with --go-heap={way}: the profile that a Go runtime keeps does not tell the ages of \
             objects; take --go-heap=sample, or leave --go-heap away, which samples then"
        ));
    }
    if let (true, CliReturns::Link) = (cli.children, cli.returns) {
        return conflict(
            "--returns=link cannot be used with --children: it would take the return addresses of processes that are not traced",
        );
    }
    let follows = (all || matches!(subject, Subject::Command(_))) && !matches!(cli.returns, CliReturns::Link);
    let verbosity = cli.output.verbosity();
    let outputs = cli.output.outputs()?;
    Ok(Config {
        subject,
        duration: cli.duration,
        interval: cli.interval,
        min_age: cli.min_age.unwrap_or_default(),
        sizes,
        go_heap: match cli.go_heap {
            CliGoHeap::Auto => GoHeapChoice::Auto,
            CliGoHeap::Buckets => GoHeapChoice::Buckets,
            CliGoHeap::Sample => GoHeapChoice::Sample,
            CliGoHeap::Enable => GoHeapChoice::Enable,
            CliGoHeap::Off => GoHeapChoice::Off,
        },
        sample: sample(cli.sample)?,
        top: cli.top,
        value: match cli.value {
            CliValue::Bytes => Value::Bytes,
            CliValue::Count => Value::Count,
        },
        by: match cli.by {
            CliBy::Program => By::Program,
            CliBy::Process => By::Process,
        },
        outputs,
        buffer_size: buffer_size(cli.buffer_size)?,
        max_memory: max_memory(cli.max_memory)?,
        strict: cli.strict,
        returns: match cli.returns {
            CliReturns::Auto => None,
            CliReturns::Exits => Some(Way::Exits),
            CliReturns::Session => Some(Way::Session),
            CliReturns::Ret => Some(Way::Returns),
            CliReturns::Link => Some(Way::Link),
        },
        children: cli.children || follows && !cli.no_children,
        perf_events: cli.perf_events,
        verbosity,
    })
}

fn selection(pids: Vec<u32>, cli: &SelectionCli) -> Result<Selection, clap::Error> {
    type Add = fn(&mut Selection, &str) -> Result<(), Invalid>;
    let mut selection = Selection::default();
    selection.pids = pids;
    let kinds: [(&str, &[String], Add); 6] = [
        ("--comm", &cli.comm, Selection::add_comm),
        ("--exe", &cli.exe, Selection::add_exe),
        ("--cgroup", &cli.cgroup, Selection::add_cgroup),
        ("--container", &cli.container, Selection::add_container),
        ("--user", &cli.user, |selection, user| user_id(user).map(|user| selection.add_user(user))),
        ("--exclude-comm", &cli.exclude_comm, Selection::exclude_comm),
    ];
    for (option, values, add) in kinds {
        for value in values {
            let invalid = |error: Invalid| usage(ErrorKind::InvalidValue, &format!("{option}: {error}"));
            add(&mut selection, value).map_err(invalid)?;
        }
    }
    if !cli.all && selection.only_excludes() && selection.is_more_than_pids() {
        return conflict("--exclude-comm only leaves processes out: say which to trace, such as --all");
    }
    Ok(selection)
}

/// The number of a user that is given by number or name.
fn user_id(text: &str) -> Result<u32, Invalid> {
    if let Ok(number) = text.parse() {
        return Ok(number);
    }
    let found = nix::unistd::User::from_name(text).ok().flatten();
    found.map(|user| user.uid.as_raw()).ok_or_else(|| Invalid::User(text.to_owned()))
}

/// Ids with commas or spaces between them.
fn pids(text: &str) -> Result<Pids, String> {
    let words = text.split(|c: char| c == ',' || c.is_ascii_whitespace()).filter(|word| !word.is_empty());
    let pid = |word: &str| word.parse().ok().filter(|pid| *pid > 0 && !word.starts_with('+'));
    let pids: Option<Vec<u32>> = words.map(pid).collect();
    pids.filter(|pids| !pids.is_empty())
        .map(Pids)
        .ok_or_else(|| "write ids of processes, such as 4711 or 4711,4712".to_owned())
}

fn goroutines(cli: GoroutinesCli) -> Result<GoroutinesConfig, clap::Error> {
    let verbosity = cli.output.verbosity();
    Ok(GoroutinesConfig { pid: cli.pid, top: cli.top, outputs: cli.output.outputs()?, verbosity })
}

fn top(cli: &TopCli) -> TopConfig {
    let sort = match cli.sort {
        CliSort::Growth => Sort::Growth,
        CliSort::Rss => Sort::Resident,
    };
    TopConfig { interval: cli.interval, once: cli.once, json: cli.json, sort, top: cli.top }
}

impl OutputCli {
    fn outputs(self) -> Result<Vec<OutputSpec>, clap::Error> {
        if self.format.is_some() && self.output.is_empty() {
            return conflict("--format needs an output: `-o -` writes to the standard output");
        }
        let outputs =
            self.output.into_iter().map(|path| output(path, self.format)).collect::<Result<Vec<_>, clap::Error>>()?;
        if outputs.iter().filter(|output| output.path.is_none()).count() > 1 {
            return conflict("`-o -` may be given only once");
        }
        Ok(outputs)
    }

    fn verbosity(&self) -> Verbosity {
        match (self.quiet, self.verbose) {
            (true, _) => Verbosity::Quiet,
            (_, 0) => Verbosity::Normal,
            (_, 1) => Verbosity::Verbose,
            _ => Verbosity::Debug,
        }
    }
}

fn distinct(mut pids: Vec<u32>) -> Vec<u32> {
    let mut seen = Vec::new();
    pids.retain(|pid| {
        !seen.contains(pid) && {
            seen.push(*pid);
            true
        }
    });
    pids
}

fn output(path: PathBuf, format: Option<CliFormat>) -> Result<OutputSpec, clap::Error> {
    let given = format.map(|format| match format {
        CliFormat::Text => Format::Text,
        CliFormat::Folded => Format::Folded,
        CliFormat::Svg => Format::Svg,
        CliFormat::Pprof => Format::Pprof,
        CliFormat::Json => Format::Json,
    });
    if path.as_os_str() == "-" {
        return Ok(OutputSpec { path: None, format: given.unwrap_or(Format::Text) });
    }
    let format = Format::from_path(&path).or(given).ok_or_else(|| {
        let message = format!(
            "the format of {} is unknown: end its name with .txt, .folded, .svg, .pb.gz or .json, or add --format",
            path.display()
        );
        usage(ErrorKind::InvalidValue, &message)
    })?;
    Ok(OutputSpec { path: Some(path), format })
}

/// Smallest and largest ring buffer, bytes.
const BUFFER_SIZES: (u64, u64) = (4096, 1 << 30);

fn buffer_size(wanted: u64) -> Result<u32, clap::Error> {
    if !(BUFFER_SIZES.0..=BUFFER_SIZES.1).contains(&wanted) {
        return Err(usage(ErrorKind::InvalidValue, "--buffer-size must be from 4KiB to 1GiB"));
    }
    Ok(wanted.next_power_of_two() as u32)
}

/// Most memory that any machine has, bytes.
const MOST_MEMORY: u64 = 1 << 52;

fn max_memory(wanted: Option<u64>) -> Result<u64, clap::Error> {
    let bound = wanted.unwrap_or_else(memory::default_bound);
    if !(memory::LEAST..=MOST_MEMORY).contains(&bound) {
        return Err(usage(ErrorKind::InvalidValue, "--max-memory must be from 128MiB to 4096TiB"));
    }
    Ok(bound)
}

/// Smallest and largest mean of bytes between samples.
const SAMPLES: (u64, u64) = (1, 1 << 30);

fn sample(mean: u64) -> Result<u64, clap::Error> {
    if !(SAMPLES.0..=SAMPLES.1).contains(&mean) {
        return Err(usage(ErrorKind::InvalidValue, "--sample must be from 1B to 1GiB"));
    }
    Ok(mean)
}

/// No time is as long: clocks can be added to it, and its nanoseconds counted.
const LONGEST: Duration = Duration::from_secs(10 * 365 * 24 * 60 * 60);
/// Shortest time between two reports. Each looks at every stack.
const SHORTEST_INTERVAL: Duration = Duration::from_millis(100);

fn duration(text: &str) -> Result<Duration, String> {
    let duration = humantime::parse_duration(text)
        .map_err(|error| format!("{error}; write a time with its unit, such as 500ms, 5s, 10m or 1h30m"))?;
    if duration.is_zero() {
        return Err("must be longer than nothing".to_owned());
    }
    if duration > LONGEST { Err("must be shorter than ten years".to_owned()) } else { Ok(duration) }
}

fn interval(text: &str) -> Result<Duration, String> {
    duration(text).and_then(|interval| {
        if interval < SHORTEST_INTERVAL { Err("must be 100ms or longer".to_owned()) } else { Ok(interval) }
    })
}

fn size(text: &str) -> Result<u64, String> {
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let shift = match unit.trim().to_ascii_lowercase().as_str() {
        "" | "b" => 0,
        "k" | "kb" | "kib" => 10,
        "m" | "mb" | "mib" => 20,
        "g" | "gb" | "gib" => 30,
        "t" | "tb" | "tib" => 40,
        _ => return Err("write a whole number of bytes with an optional unit, such as 4096, 64KiB or 16MiB".to_owned()),
    };
    let number: u64 = number.parse().map_err(|_| "write a whole number of bytes, such as 4096 or 64KiB".to_owned())?;
    number.checked_mul(1 << shift).ok_or_else(|| "is more than any address space holds".to_owned())
}

fn generate(what: Generate) -> io::Result<Vec<u8>> {
    let mut command = Cli::command();
    let mut out = Vec::new();
    let shell = match what {
        Generate::Man => {
            clap_mangen::Man::new(command).render(&mut out)?;
            return Ok(out);
        }
        Generate::CompleteBash => clap_complete::Shell::Bash,
        Generate::CompleteZsh => clap_complete::Shell::Zsh,
        Generate::CompleteFish => clap_complete::Shell::Fish,
    };
    clap_complete::generate(shell, &mut command, "tracer", &mut out);
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Request {
        request(Cli::try_parse_from(std::iter::once("tracer").chain(line.split_whitespace())))
    }

    fn config(line: &str) -> Config {
        match parse(line) {
            Request::Trace(config) => *config,
            Request::Goroutines(_) | Request::Top(_) | Request::Print(_) => panic!("{line}: does not trace"),
            Request::Refuse(error) => panic!("{line}: {error}"),
        }
    }

    fn refusal(line: &str) -> String {
        match parse(line) {
            Request::Refuse(error) => {
                assert_eq!(error.exit_code(), 2, "{line}");
                error.to_string()
            }
            _ => panic!("{line}: accepted"),
        }
    }

    #[test]
    fn the_definition_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn units_are_understood() {
        let config =
            config("-p 7 --pid 8 -p 7 -d 1m --interval 500ms --min-size 4KiB --max-size 1G --buffer-size 100000");
        assert!(matches!(config.subject, Subject::Pids(pids) if pids == [7, 8]));
        assert_eq!(config.duration, Some(Duration::from_secs(60)));
        assert_eq!(config.interval, Some(Duration::from_millis(500)));
        assert_eq!(config.sizes, (4096, 1 << 30));
        assert_eq!(config.buffer_size, 131_072);
    }

    #[test]
    fn processes_are_selected_by_ids_and_more() {
        assert!(matches!(config("--pid 5,6 -p 6,7,").subject, Subject::Pids(pids) if pids == [5, 6, 7]));
        let separated = Cli::try_parse_from(["tracer", "--pid", "8 9\n"]);
        let Request::Trace(traced) = request(separated) else { panic!() };
        assert!(matches!(traced.subject, Subject::Pids(pids) if pids == [8, 9]));
        let Subject::Selected(selection) = config("--comm redis* --user 0 --user root --pid 5").subject else {
            panic!()
        };
        assert_eq!(selection.pids, [5]);
        let all = config("--all --exclude-comm x");
        assert!(matches!(&all.subject, Subject::Selected(_)) && all.children);
        assert!(!config("--all --no-children").children);
        assert!(matches!(config("--exclude-comm x --exe /usr/bin/*").subject, Subject::Selected(_)));
    }

    #[test]
    fn goroutines_are_a_command_of_their_own() {
        let Request::Goroutines(config) = parse("goroutines --pid 7 -n 3 -o a.svg -o - --format json -q") else {
            panic!()
        };
        assert_eq!((config.pid, config.top, config.verbosity), (7, 3, Verbosity::Quiet));
        let formats: Vec<Format> = config.outputs.iter().map(|output| output.format).collect();
        assert_eq!(formats, [Format::Svg, Format::Json]);
        for (line, hint) in [
            ("goroutines", "--pid"),
            ("goroutines --pid 5 --pid 6", "--pid"),
            ("goroutines --pid 5 --duration 5s", "--duration"),
            ("goroutines --pid 5 --format json", "-o -"),
        ] {
            let message = refusal(line);
            assert!(message.contains(hint), "{line}: {message}");
        }
        // One that is to be traced has its name behind the dashes.
        assert!(matches!(self::config("-- goroutines --pid 5").subject, Subject::Command(_)));
    }

    #[test]
    fn top_is_a_command_of_its_own() {
        let Request::Top(config) = parse("top --json --once -i 500ms --sort rss -n 3") else { panic!() };
        assert_eq!((config.interval, config.top, config.sort), (Duration::from_millis(500), 3, Sort::Resident));
        assert!(config.json && config.once);
    }

    #[test]
    fn a_suffix_tells_the_format_or_else_the_flag() {
        let formats = |line: &str| -> Vec<Format> { config(line).outputs.iter().map(|output| output.format).collect() };
        assert_eq!(formats("-p 7 -o a.pb.gz -o a.txt -o -"), [Format::Pprof, Format::Text, Format::Text]);
        assert_eq!(formats("-p 7 --format pprof -o a.svg -o a.gz -o -"), [Format::Svg, Format::Pprof, Format::Pprof]);
    }

    #[test]
    fn a_command_keeps_its_own_flags() {
        let config = config("-q -- ls --pid 5 -v");
        assert!(matches!(config.subject, Subject::Command(command) if command == ["ls", "--pid", "5", "-v"]));
        assert_eq!(config.verbosity, Verbosity::Quiet);
    }

    #[test]
    fn what_makes_no_sense_says_what_to_do() {
        for (line, hint) in [
            ("", "--pid PID"),
            ("", "tracer top"),
            ("top --pid 5", "--pid"),
            ("top --interval 0s", "longer"),
            ("top --sort pid", "growth"),
            ("--pid 0", "--pid"),
            ("--pid 5 -- ls", "give either"),
            ("--all --pid 5", "leave --pid away"),
            ("--all --returns link", "--all"),
            ("--all -- ls", "give either"),
            ("--pid x", "--pid"),
            ("--pid 5,x", "4711,4712"),
            ("--pid 5,0", "4711,4712"),
            ("--pid ,", "4711,4712"),
            ("--pid +5", "4711,4712"),
            ("--comm a[", "--comm"),
            ("--exe bin/x", "whole path"),
            ("--cgroup x", "/proc/PID/cgroup"),
            ("--user nobody-of-this-name", "no user"),
            ("--exclude-comm x", "--all"),
            ("--comm x -- ls", "give either"),
            ("-p 5 -q -v", "cannot be used with"),
            ("-p 5 --min-size 2K --max-size 1K", "larger than --max-size"),
            ("-p 5 -o out.xyz", ".pb.gz or .json"),
            ("-p 5 -o out.svg.gz", ".pb.gz or .json"),
            ("-p 5 --format json", "-o -"),
            ("-p 5 -o - -o -", "only once"),
            ("-p 5 --duration 5", "unit"),
            ("-p 5 --duration 0s", "longer"),
            ("-p 5 -d 18446744073709551615s", "ten years"),
            ("-p 5 -d 18446744073709551616s", "too large"),
            ("-p 5 -i 584542y", "ten years"),
            ("-p 5 --min-age 11y", "ten years"),
            ("-p 5 --interval 1ns", "100ms"),
            ("-p 5 --top 18446744073709551616", "--top"),
            ("-p 5 --min-size 5X", "64KiB"),
            ("-p 5 --max-size 99999999999T", "address space"),
            ("-p 5 --buffer-size 1", "4KiB"),
            ("-p 5 --max-memory 1MiB", "128MiB"),
            ("-p 5 --max-memory 10000TiB", "4096TiB"),
            ("-p 5 --value weight", "bytes"),
            ("-p 5 --go-heap none", "sample"),
            ("-p 5 --min-age 5s --go-heap buckets", "--min-age cannot be used with --go-heap=buckets: "),
            ("-p 5 --min-age 5s --go-heap enable", "--min-age cannot be used with --go-heap=enable: "),
            ("-p 5 --sample 0", "1GiB"),
        ] {
            let message = refusal(line);
            assert!(message.contains(hint), "{line}: {message}");
        }
    }

    #[test]
    fn help_man_and_completions_come_from_one_definition() {
        for line in ["--help", "--version", "--generate man", "--generate complete-bash", "--generate complete-fish"] {
            assert!(matches!(parse(line), Request::Print(text) if !text.is_empty()), "{line}");
        }
        let Request::Print(help) = parse("--help") else { panic!() };
        assert!(String::from_utf8_lossy(&help).contains("Exit status"));
    }
}
