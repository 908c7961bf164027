//! Programs that print how long each of their rounds took, and what that is while something goes on.

use std::{
    io::{BufRead as _, BufReader},
    process::{Child, ChildStdout, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};

/// A program that runs; it ends with this.
pub(crate) struct Rounds {
    child: Child,
    /// What it prints.
    pub(crate) output: BufReader<ChildStdout>,
}

impl Rounds {
    /// Starts a program, and waits until it prints something.
    pub(crate) fn start(command: &mut Command) -> Result<Self> {
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn()?;
        let mut output = BufReader::new(child.stdout.take().context("no output")?);
        output.fill_buf()?;
        Ok(Self { child, output })
    }

    /// Its process id.
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Median of the rounds that begin from now on, for as long as `time`, ns.
    pub(crate) fn measure(&mut self, time: Duration) -> Result<f64> {
        let mut rounds = Vec::new();
        let start = Instant::now();
        while start.elapsed() < time {
            let mut line = String::new();
            ensure!(self.output.read_line(&mut line)? > 0, "the program has ended");
            // What waits in the pipe is from before.
            if start.elapsed() > time / 4 {
                rounds.push(line.trim().parse()?);
            }
        }
        ensure!(!rounds.is_empty(), "no round came to its end");
        Ok(crate::median::median(rounds))
    }
}

impl Drop for Rounds {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
