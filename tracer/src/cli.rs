//! The command line: flags, their help, and their conversion to a plain [`Config`]. The man page and the shell
//! completions come from the same definition.

mod definition;
mod values;

use std::{
    io,
    path::{Path, PathBuf},
};

use clap::{CommandFactory, Parser, ValueEnum, error::ErrorKind};

use self::{
    definition::{
        Cli, CliBy, CliFormat, CliGoHeap, CliMmap, CliReturns, CliScope, CliSort, CliValue, Generate, GoroutinesCli,
        Job, OutputCli, SelectionCli, TopCli,
    },
    values::{Pids, buffer_size, distinct, max_memory, sample, user_id},
};
use crate::{
    attach::probes::Scope,
    config::{
        Config, DoctorConfig, GoHeapChoice, GoroutinesConfig, MmapChoice, OutputSpec, Subject, TopConfig, Verbosity,
    },
    probe::outcomes::Way,
    report::{By, Format, Value},
    select::{Invalid, Selection},
    top::ranking::Sort,
};

/// What the command line asks for.
pub enum Request {
    /// To trace.
    Trace(Box<Config>),
    /// To look at goroutines.
    Goroutines(GoroutinesConfig),
    /// To show which processes grow.
    Top(TopConfig),
    /// To say what works.
    Doctor(DoctorConfig),
    /// To print a text that the command line itself gave: man page, completion.
    Print(Vec<u8>),
    /// To print help or the version, with emphasis where that is a terminal.
    Help(clap::Error),
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
        (None, Some(Job::Doctor(cli))) => {
            Ok(Request::Doctor(DoctorConfig { pid: cli.pid, json: cli.json, symbols: cli.symbol }))
        }
        (None, None) => config(Cli { job: None, ..cli }).map(|config| Request::Trace(Box::new(config))),
    });
    match checked {
        Ok(request) => request,
        Err(error) if !error.use_stderr() => Request::Help(error),
        Err(error) => Request::Refuse(error),
    }
}

fn usage(kind: ErrorKind, message: &str) -> clap::Error {
    Cli::command().error(kind, message)
}

/// Mean of bytes between samples of a Go program's allocations, unless it is said otherwise.
const GO_SAMPLE: u64 = 32 << 10;

fn invalid(message: &str) -> clap::Error {
    usage(ErrorKind::InvalidValue, message)
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
    if let (Some(age), Some(duration)) = (cli.min_age, cli.duration)
        && age >= duration
    {
        return conflict("--min-age is not shorter than --duration: no block could be held for so long");
    }
    let go_heap = cli.go_heap.unwrap_or(CliGoHeap::Auto);
    if let (Some(_), CliGoHeap::Buckets | CliGoHeap::Enable) = (cli.min_age, go_heap) {
        let way = go_heap.to_possible_value().map(|way| way.get_name().to_owned()).unwrap_or_default();
        return conflict(&format!(
            "--min-age cannot be used with --go-heap={way}: the profile that a Go runtime keeps does not tell the ages of \
             objects; take --go-heap=sample, or leave --go-heap away, which samples then"
        ));
    }
    let by_link = matches!(cli.returns, CliReturns::Link);
    if by_link && (cli.children || matches!(cli.scope, Some(CliScope::File))) {
        return conflict(
            "--returns=link cannot be used with --children or --scope=file: it would take the return addresses of processes that \
             nobody looked at",
        );
    }
    let children = cli.children || !cli.no_children && !by_link;
    let launches = matches!(subject, Subject::Command(_));
    let scope = match cli.scope {
        Some(CliScope::File) => Some(Scope::File),
        Some(CliScope::Process) => Some(Scope::Process),
        None if all || launches && children => Some(Scope::File),
        // As many as there may be, taking return addresses is for those that were looked at.
        None if launches || by_link => Some(Scope::Process),
        None => None,
    };
    if let (CliValue::Mapped, CliMmap::Off) = (cli.value, cli.mmap) {
        return conflict("--value mapped cannot be used with --mmap=off: it shows what that leaves out");
    }
    let mean = cli.sample.map(sample).transpose().map_err(invalid)?;
    // Where a way is named that samples nothing of Go, the size is that of C.
    let samples_go = matches!(cli.go_heap, Some(CliGoHeap::Auto | CliGoHeap::Sample | CliGoHeap::Enable));
    let verbosity = cli.output.verbosity();
    let outputs = cli.output.outputs()?;
    Ok(Config {
        subject,
        duration: cli.duration,
        interval: cli.interval,
        min_age: cli.min_age.unwrap_or_default(),
        sizes,
        go_heap: match go_heap {
            CliGoHeap::Auto => GoHeapChoice::Auto,
            CliGoHeap::Buckets => GoHeapChoice::Buckets,
            CliGoHeap::Sample => GoHeapChoice::Sample,
            CliGoHeap::Enable => GoHeapChoice::Enable,
            CliGoHeap::Off => GoHeapChoice::Off,
        },
        sample: mean.filter(|_| !samples_go),
        go_sample: mean.unwrap_or(GO_SAMPLE),
        max_overhead: cli.max_overhead,
        mmap: match cli.mmap {
            CliMmap::Auto => MmapChoice::Auto,
            CliMmap::Always => MmapChoice::Always,
            CliMmap::Off => MmapChoice::Off,
        },
        top: cli.top,
        value: match cli.value {
            CliValue::Bytes => Value::Bytes,
            CliValue::Count => Value::Count,
            CliValue::Mapped => Value::Mapped,
        },
        by: match cli.by {
            CliBy::Program => By::Program,
            CliBy::Process => By::Process,
            CliBy::Cgroup => By::Cgroup,
            CliBy::Container => By::Container,
        },
        outputs,
        buffer_size: buffer_size(cli.buffer_size).map_err(invalid)?,
        max_memory: max_memory(cli.max_memory).map_err(invalid)?,
        strict: cli.strict,
        returns: match cli.returns {
            CliReturns::Auto => None,
            CliReturns::Exits => Some(Way::Exits),
            CliReturns::Session => Some(Way::Session),
            CliReturns::Ret => Some(Way::Returns),
            CliReturns::Link => Some(Way::Link),
        },
        symbols: cli.symbol,
        children,
        scope,
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

/// What is the standard output.
const STANDARD_OUTPUT: [&str; 4] = ["-", "/dev/stdout", "/dev/fd/1", "/proc/self/fd/1"];

fn output(path: PathBuf, format: Option<CliFormat>) -> Result<OutputSpec, clap::Error> {
    let given = format.map(|format| match format {
        CliFormat::Text => Format::Text,
        CliFormat::Folded => Format::Folded,
        CliFormat::Svg => Format::Svg,
        CliFormat::Pprof => Format::Pprof,
        CliFormat::Json => Format::Json,
    });
    if STANDARD_OUTPUT.map(Path::new).contains(&&*path) {
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
mod tests;
