//! A running ground-truth program and the talk with it.

use std::{
    io::{BufRead as _, BufReader, Write as _},
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    sync::mpsc,
    thread,
    time::Duration,
};

use super::{machine::slowness, truth::Truth};

/// Longest time between two lines of a program.
const PATIENCE: Duration = Duration::from_secs(120);

/// A program that was started and waits to be told.
pub(crate) struct Target {
    program: PathBuf,
    child: Child,
    lines: mpsc::Receiver<String>,
}

impl Target {
    /// Starts a program and waits until it waits.
    pub(crate) fn start(program: &Path) -> Self {
        Self::start_with(program, &[], &[])
    }

    /// The same with arguments and environment.
    pub(crate) fn start_with(program: &Path, arguments: &[&str], environment: &[(&str, &str)]) -> Self {
        let mut command = Command::new(program);
        command.args(arguments).envs(environment.iter().copied());
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap_or_else(|error| panic!("cannot start {}: {error}", program.display()));
        let output = BufReader::new(child.stdout.take().unwrap());
        let (send, lines) = mpsc::channel();
        thread::spawn(move || output.lines().map_while(Result::ok).try_for_each(|line| send.send(line)));
        let mut target = Self { program: program.to_owned(), child, lines };
        target.until("waiting");
        target
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Tells it one line.
    pub(crate) fn say(&mut self, line: &str) {
        let input = self.child.stdin.as_mut().unwrap();
        writeln!(input, "{line}").unwrap_or_else(|error| panic!("{}: {error}", self.program.display()));
    }

    /// Tells it one line and reads what it says until it is ready.
    pub(crate) fn ask(&mut self, line: &str) -> Truth {
        self.say(line);
        self.until("ready")
    }

    /// Reads what it says until it says `word`.
    pub(crate) fn until(&mut self, word: &str) -> Truth {
        let mut truth = Truth::default();
        loop {
            match self.lines.recv_timeout(PATIENCE * slowness()) {
                Ok(line) if line == word => return truth,
                Ok(line) => truth.read(&line),
                Err(error) => {
                    let ended = self.child.try_wait();
                    panic!("{} did not say {word:?}: {error} ({ended:?})", self.program.display());
                }
            }
        }
    }

    pub(crate) fn is_alive(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }

    /// Ends its input and waits for its end.
    pub(crate) fn finish(mut self) -> ExitStatus {
        drop(self.child.stdin.take());
        self.child.wait().unwrap()
    }
}

impl Drop for Target {
    fn drop(&mut self) {
        // It may have ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
