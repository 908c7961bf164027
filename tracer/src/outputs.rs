//! Where reports go. All files are opened before tracing starts, so that no trace is lost to a name that cannot be
//! written.

use std::{
    fmt::Display,
    io::{self, Write as _},
    os::fd::AsFd,
    path::Path,
};

use anyhow::{Error, Result, anyhow};
use rustix::fs::{FileType, fstat, stat};

use crate::{
    attach::Attached,
    config::{OutputSpec, Verbosity},
    profile::Profile,
    replacement::Replacement,
    report::{self, Format, Options, visible},
};

/// The opened outputs of a run.
pub struct Outputs {
    files: Vec<OutputFile>,
    /// Format for the standard output, if a report goes there.
    standard: Option<Format>,
    verbosity: Verbosity,
    /// Why a short report could not be printed.
    interval_failure: Option<Error>,
}

struct OutputFile {
    /// Path as it may be printed.
    name: String,
    file: Replacement,
    format: Format,
}

/// Stacks in a report that is printed every interval.
const INTERVAL_STACKS: usize = 3;

impl Outputs {
    /// Opens everything that is named. Existing files keep their contents until there is a report.
    ///
    /// # Errors
    /// Files that cannot be written.
    pub fn open(outputs: &[OutputSpec], verbosity: Verbosity) -> Result<Self> {
        let (mut files, mut failures) = (Vec::new(), Failures::default());
        let mut standard = None;
        for OutputSpec { path, format } in outputs {
            match path.as_deref().filter(|path| !is_standard_output(path)) {
                None if standard.is_some() => {
                    failures.0.push(anyhow!("only one report can go to the standard output: choose another -o FILE"));
                }
                None => standard = Some(*format),
                Some(path) => match OutputFile::open(path, *format) {
                    Ok(file) => files.push(file),
                    Err(error) => {
                        let name = visible(&path.display().to_string()).into_owned();
                        failures.push(error, format!("cannot write {name}: choose another -o FILE"));
                    }
                },
            }
        }
        if standard.is_none() && (files.is_empty() || verbosity > Verbosity::Quiet) {
            standard = Some(Format::Text);
        }
        failures.result().map(|()| Self { files, standard, verbosity, interval_failure: None })
    }

    /// Says that the probes are live: a line for each process, which scripts wait for, or one for many.
    pub fn announce(attached: &[Attached], verbosity: Verbosity) {
        let mut err = io::stderr().lock();
        if attached.len() > report::LISTED {
            let hint = if verbosity > Verbosity::Quiet { ", Ctrl-C ends with the report" } else { "" };
            let _ = writeln!(err, "tracing {} processes{hint}", attached.len());
            return;
        }
        for (index, attached) in attached.iter().enumerate() {
            let target = attached.target();
            let name = visible(&target.comm);
            let hint = if index == 0 && verbosity > Verbosity::Quiet { ", Ctrl-C ends with the report" } else { "" };
            // Nobody to tell when even the standard error is closed.
            let _ = writeln!(err, "tracing {} ({name}){hint}", target.pid);
        }
    }

    /// Prints a short report while tracing goes on, if somebody is to see it. Whether anybody still reads: not when the standard output
    /// was closed. Other failures are told, and do not keep the trace from going on.
    pub fn write_interval(&mut self, profile: &Profile, options: &Options) -> bool {
        let options = Options { top: options.top.min(INTERVAL_STACKS), ..*options };
        let (result, ends) = match self.standard {
            Some(Format::Folded | Format::Svg | Format::Pprof | Format::Json) | None
                if self.verbosity == Verbosity::Quiet =>
            {
                return true;
            }
            // A machine reads the standard output. What else is written does not go there.
            Some(Format::Folded | Format::Svg | Format::Pprof | Format::Json) | None => {
                (report::write_interval(profile, &options, &mut io::stderr().lock()), false)
            }
            Some(Format::Text) => (report::write_interval(profile, &options, &mut io::stdout().lock()), true),
        };
        let reads = unless_closed(result).unwrap_or_else(|error| {
            if self.interval_failure.is_none() {
                tracing::warn!("cannot print a short report: {error}; the trace goes on");
            }
            self.interval_failure = Some(Error::new(error).context("cannot print a short report"));
            true
        });
        if ends && !reads {
            self.standard = None;
        }
        reads || !ends
    }

    /// Writes the final report everywhere; a failure in one place does not keep it from the others.
    ///
    /// # Errors
    /// All failures, those of short reports too.
    pub fn write_final(&mut self, profile: &Profile, options: &Options) -> Result<()> {
        let mut failures = Failures::default();
        for OutputFile { name, file, format } in &mut self.files {
            match file.write(|out| report::write(*format, profile, options, out)) {
                Ok(()) if self.verbosity > Verbosity::Quiet => {
                    let _ = writeln!(io::stderr(), "wrote {name}");
                }
                Ok(()) => {}
                Err(error) => failures.push(error, format!("cannot write {name}")),
            }
        }
        // What was measured is not lost with the only place that it was to go to.
        let nowhere = !self.files.is_empty() && failures.0.len() == self.files.len();
        if let Some(format) = self.standard.or(nowhere.then_some(Format::Text)) {
            let result = report::write(format, profile, options, &mut io::stdout().lock());
            if let Err(error) = unless_closed(result) {
                failures.push(error, "cannot write to the standard output");
            }
        }
        failures.0.extend(self.interval_failure.take());
        failures.result()
    }
}

impl OutputFile {
    fn open(path: &Path, format: Format) -> io::Result<Self> {
        Ok(Self { name: visible(&path.display().to_string()).into_owned(), file: Replacement::open(path)?, format })
    }
}

/// Whether a path leads to the file that the standard output is (`> FILE`): opened anew, that would be written to in two places at a time.
fn is_standard_output(path: &Path) -> bool {
    let (Ok(found), Ok(own)) = (stat(path), fstat(io::stdout())) else { return false };
    (found.st_dev, found.st_ino) == (own.st_dev, own.st_ino) && FileType::from_raw_mode(own.st_mode).is_file()
}

/// What could not be written.
#[derive(Default)]
struct Failures(Vec<Error>);

impl Failures {
    fn push(&mut self, error: io::Error, what: impl Display + Send + Sync + 'static) {
        self.0.push(Error::new(error).context(what));
    }

    /// One error that names all of them.
    fn result(self) -> Result<()> {
        let mut failures = self.0.into_iter();
        match (failures.next(), failures.len()) {
            (None, _) => Ok(()),
            (Some(only), 0) => Err(only),
            (Some(first), _) => {
                let all: Vec<String> = [first].into_iter().chain(failures).map(|error| format!("{error:#}")).collect();
                Err(anyhow!("{}", all.join("; ")))
            }
        }
    }
}

/// Whether it was written: not to a pipe without readers, or to a terminal that is closed. That is no failure
/// (`tracer ... | head`).
fn unless_closed(result: io::Result<()>) -> io::Result<bool> {
    match result {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(false),
        // Of a file it would be a bad disk.
        Err(error) if error.raw_os_error() == Some(libc::EIO) && is_device(io::stdout()) => Ok(false),
        Err(error) => Err(error),
    }
}

fn is_device(stream: impl AsFd) -> bool {
    fstat(stream).is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode) == FileType::CharacterDevice)
}
