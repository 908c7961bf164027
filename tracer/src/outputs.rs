//! Where reports go. All files are opened before tracing starts, so that no trace is lost to a name that cannot be
//! written.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Seek as _, Write},
    os::fd::AsFd,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, anyhow};
use rustix::fs::{FileType, fstat};

use crate::{
    attach::Attached,
    config::{Config, OutputSpec, Verbosity},
    last_will::Clause,
    profile::Profile,
    report::{self, Format, Options, visible},
};

/// The opened outputs of a run.
pub struct Outputs {
    files: Vec<OutputFile>,
    /// Format for the standard output, if a report goes there.
    standard: Option<Format>,
    verbosity: Verbosity,
}

struct OutputFile {
    path: PathBuf,
    file: File,
    format: Format,
    /// Made by this run, and still without a report.
    fresh: bool,
    _removed_in_haste: Option<Clause>,
}

/// Stacks in a report that is printed every interval.
const INTERVAL_STACKS: usize = 3;

impl Outputs {
    /// Opens everything that is named. Existing files keep their contents until there is a report.
    ///
    /// # Errors
    /// A file that cannot be written.
    pub fn open(outputs: &[OutputSpec], verbosity: Verbosity) -> Result<Self> {
        let mut files = Vec::new();
        let mut standard = None;
        for OutputSpec { path, format } in outputs {
            match path {
                None => standard = Some(*format),
                Some(path) => files.push(OutputFile::open(path, *format).with_context(|| {
                    format!("cannot write {}: choose another -o FILE", visible(&path.display().to_string()))
                })?),
            }
        }
        if standard.is_none() && (files.is_empty() || verbosity > Verbosity::Quiet) {
            standard = Some(Format::Text);
        }
        Ok(Self { files, standard, verbosity })
    }

    /// Says that the probes are live: one line, which scripts wait for.
    pub fn announce(&self, attached: &[Attached]) {
        let mut err = io::stderr().lock();
        for (index, attached) in attached.iter().enumerate() {
            let target = attached.target();
            let name = visible(&target.comm);
            let hint =
                if index == 0 && self.verbosity > Verbosity::Quiet { ", Ctrl-C ends with the report" } else { "" };
            // Nobody to tell when even the standard error is closed.
            let _ = writeln!(err, "tracing {} ({name}){hint}", target.pid);
        }
    }

    /// Prints a short report while tracing goes on. Whether anybody still reads: not when the standard output was closed.
    ///
    /// # Errors
    /// When the standard output cannot be written.
    pub fn write_interval(&mut self, profile: &Profile, config: &Config) -> Result<bool> {
        let options = Options { top: config.top.min(INTERVAL_STACKS), value: config.value };
        let result = match self.standard {
            // A machine reads the standard output.
            Some(Format::Folded | Format::Svg | Format::Pprof | Format::Json) | None => {
                let result = report::write_interval(profile, &options, &mut io::stderr().lock());
                // What else is written does not go there.
                return unless_closed(result).map(|_| true).context("cannot print the report");
            }
            Some(Format::Text) => report::write_interval(profile, &options, &mut io::stdout().lock()),
        };
        let reads = unless_closed(result).context("cannot print the report")?;
        if !reads {
            self.standard = None;
        }
        Ok(reads)
    }

    /// Writes the final report everywhere; a failure in one place does not keep it from the others.
    ///
    /// # Errors
    /// The first failure.
    pub fn write_final(&mut self, profile: &Profile, options: &Options) -> Result<()> {
        let mut failure = None;
        for output in &mut self.files {
            let path = visible(&output.path.display().to_string()).into_owned();
            match output.write(profile, options) {
                Ok(()) if self.verbosity > Verbosity::Quiet => {
                    let _ = writeln!(io::stderr(), "wrote {path}");
                }
                Ok(()) => {}
                Err(error) => drop(failure.get_or_insert(anyhow!(error).context(format!("cannot write {path}")))),
            }
        }
        if let Some(format) = self.standard {
            let result = report::write(format, profile, options, &mut io::stdout().lock());
            if let Err(error) = unless_closed(result) {
                failure.get_or_insert(anyhow!(error).context("cannot write to the standard output"));
            }
        }
        failure.map_or(Ok(()), Err)
    }
}

impl OutputFile {
    fn open(path: &Path, format: Format) -> io::Result<Self> {
        let fresh = !path.exists();
        let file = OpenOptions::new().write(true).create(true).truncate(false).open(path)?;
        let name = path.to_owned();
        let remove = move || {
            if fs::metadata(&name).is_ok_and(|metadata| metadata.is_file() && metadata.len() == 0) {
                // Best effort.
                let _ = fs::remove_file(&name);
            }
        };
        let removed = fresh.then(|| Clause::new(remove));
        Ok(Self { path: path.to_owned(), file, format, fresh, _removed_in_haste: removed })
    }

    fn write(&mut self, profile: &Profile, options: &Options) -> io::Result<()> {
        self.fresh = false;
        if self.file.metadata()?.is_file() {
            self.file.set_len(0)?;
            self.file.rewind()?;
        }
        report::write(self.format, profile, options, &mut self.file)
    }
}

impl Drop for OutputFile {
    fn drop(&mut self) {
        if self.fresh {
            // An empty file would look like an empty report. Best effort.
            let _ = fs::remove_file(&self.path);
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
