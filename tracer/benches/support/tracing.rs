//! A tracer that traces a process.

use std::{
    ffi::OsStr,
    io::{BufRead as _, BufReader},
    process::{Child, Command, ExitStatus, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

/// It ends with this.
pub(crate) struct Tracing {
    /// Its process.
    pub(crate) child: Child,
}

impl Tracing {
    /// Traces process `pid`, with further arguments; also the time from the start of the tracer until it traced.
    pub(crate) fn start<S: AsRef<OsStr>>(pid: u32, arguments: impl IntoIterator<Item = S>) -> Result<(Self, Duration)> {
        let begin = Instant::now();
        let mut command = Command::new(env!("CARGO_BIN_EXE_tracer"));
        command.args(["--pid", &pid.to_string()]).args(arguments).stdout(Stdio::null()).stderr(Stdio::piped());
        let mut child = command.spawn()?;
        let mut lines = BufReader::new(child.stderr.take().context("no output")?).lines();
        let traces = lines.by_ref().map_while(Result::ok).any(|line| line.starts_with("tracing"));
        let begun = begin.elapsed();
        thread::spawn(move || lines.for_each(drop));
        ensure!(traces, "tracer did not attach");
        Ok((Self { child }, begun))
    }

    /// Ends the trace, which must have been a good one.
    pub(crate) fn stop(self) -> Result<()> {
        let status = self.end()?;
        ensure!(status.success(), "tracing failed: {status}");
        Ok(())
    }

    /// Ends the trace, whatever has become of it.
    pub(crate) fn end(mut self) -> Result<ExitStatus> {
        kill(Pid::from_raw(self.child.id() as i32), Signal::SIGINT)?;
        Ok(self.child.wait()?)
    }
}

impl Drop for Tracing {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
