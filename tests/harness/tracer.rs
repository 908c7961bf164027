//! Runs of the tracer: started, waited for, stopped, and what they left behind.

use std::{
    ffi::OsStr,
    fs,
    io::{BufRead as _, BufReader, Read as _},
    os::unix::process::CommandExt as _,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

use nix::{
    sys::signal::{SigHandler, Signal, kill, signal},
    unistd::Pid,
};
use tempfile::TempDir;

use super::{machine::slowness, report::Report};

const TRACER: &str = env!("CARGO_BIN_EXE_tracer");

/// Longest time that a run may take to begin, and to end after it was told to. Taking probes off takes seconds.
const PATIENCE: Duration = Duration::from_secs(60);

/// A run to be started. It always writes `out.json` in a folder of its own.
pub(crate) struct Run {
    command: Command,
    folder: TempDir,
    input: Stdio,
}

/// What a finished run left.
pub(crate) struct Outcome {
    pub(crate) status: ExitStatus,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
    json: Option<String>,
    folder: TempDir,
}

impl Run {
    /// Traces a process that runs.
    pub(crate) fn pid(pid: u32) -> Self {
        Self::bare().with_json().args(["--pid", &pid.to_string()])
    }

    /// Launches a command.
    pub(crate) fn launch<S: AsRef<OsStr>>(options: &[&str], command: impl IntoIterator<Item = S>) -> Self {
        Self::bare().with_json().args(options).args(["--"]).args(command)
    }

    /// Only what the test says.
    pub(crate) fn bare() -> Self {
        Self::by(Command::new(TRACER))
    }

    /// The tracer as started by another program, which gets its path as the last argument so far.
    pub(crate) fn through(program: &str, arguments: &[&str], tracer: &Path) -> Self {
        let mut command = Command::new(program);
        command.args(arguments).arg(tracer);
        Self::by(command)
    }

    fn by(command: Command) -> Self {
        Self { command, folder: tempfile::tempdir().unwrap(), input: Stdio::null() }
    }

    /// Path of the tracer.
    pub(crate) fn tracer() -> &'static Path {
        Path::new(TRACER)
    }

    /// Asks for a report that the outcome can parse.
    pub(crate) fn with_json(self) -> Self {
        let json = self.folder.path().join("out.json");
        self.args([OsStr::new("-o"), json.as_os_str()])
    }

    /// Folder of the run's files, removed with the outcome.
    pub(crate) fn folder(&self) -> &Path {
        self.folder.path()
    }

    pub(crate) fn args<S: AsRef<OsStr>>(mut self, arguments: impl IntoIterator<Item = S>) -> Self {
        self.command.args(arguments);
        self
    }

    pub(crate) fn env(mut self, name: &str, value: &str) -> Self {
        self.command.env(name, value);
        self
    }

    /// What it, and the command that it launches, read from the standard input.
    pub(crate) fn input(mut self, input: impl Into<Stdio>) -> Self {
        self.input = input.into();
        self
    }

    /// Puts it into a process group of its own, as shells do that can stop it.
    pub(crate) fn job(mut self) -> Self {
        self.command.process_group(0);
        self
    }

    /// Starts it and returns as soon as its probes are live.
    pub(crate) fn start(self) -> Running {
        let mut running = self.spawn();
        running.wait_for_line("tracing ");
        running
    }

    /// Runs it to its own end.
    pub(crate) fn finish(self) -> Outcome {
        self.spawn().outcome()
    }

    /// Starts it and does not wait for anything.
    pub(crate) fn spawn(mut self) -> Running {
        self.command.stdin(self.input).stdout(Stdio::piped()).stderr(Stdio::piped());
        with_default_signals(&mut self.command);
        let mut child = self.command.spawn().unwrap_or_else(|error| panic!("{:?}: {error}", self.command));
        let stderr = BufReader::new(child.stderr.take().unwrap());
        let (send, lines) = mpsc::channel();
        // Lossy: what the tracer prints must be text, but a test that looks for garbage must see it.
        thread::spawn(move || stderr.split(b'\n').map_while(Result::ok).try_for_each(|line| send.send(lossy(&line))));
        let mut stdout = child.stdout.take().unwrap();
        let printed = thread::spawn(move || {
            let mut text = Vec::new();
            // What was read before an error counts.
            let _ = stdout.read_to_end(&mut text);
            lossy(&text)
        });
        Running { child, lines, seen: Vec::new(), printed: Some(printed), folder: Some(self.folder) }
    }
}

/// Starts a program as a terminal does, also where the tests run in the background or under nohup: with no signal ignored.
pub(crate) fn with_default_signals(command: &mut Command) -> &mut Command {
    let reset = || {
        for kind in [Signal::SIGHUP, Signal::SIGINT, Signal::SIGQUIT, Signal::SIGTERM, Signal::SIGTSTP] {
            // SAFETY: no handler is set.
            unsafe { signal(kind, SigHandler::SigDfl)? };
        }
        Ok(())
    };
    // SAFETY: bare system calls.
    unsafe { command.pre_exec(reset) }
}

fn lossy(text: &[u8]) -> String {
    String::from_utf8_lossy(text).into_owned()
}

/// A run that has been started.
pub(crate) struct Running {
    child: Child,
    lines: mpsc::Receiver<String>,
    seen: Vec<String>,
    printed: Option<thread::JoinHandle<String>>,
    folder: Option<TempDir>,
}

impl Running {
    /// Waits until it has printed a line on the standard error that starts so.
    pub(crate) fn wait_for_line(&mut self, start: &str) {
        let deadline = Instant::now() + PATIENCE * slowness();
        loop {
            match self.lines.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok(line) => {
                    self.seen.push(line);
                    if self.seen.last().is_some_and(|line| line.starts_with(start)) {
                        return;
                    }
                }
                Err(error) => panic!("the tracer did not say {start:?} ({error}), but: {}", self.seen.join("\n")),
            }
        }
    }

    /// Process id of the tracer.
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Process id of what it traces, once it has said so.
    pub(crate) fn traced(&self) -> u32 {
        let told = self.seen.iter().find_map(|line| line.strip_prefix("tracing ")?.split(' ').next()?.parse().ok());
        told.unwrap_or_else(|| panic!("nothing is traced: {}", self.seen.join("\n")))
    }

    pub(crate) fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.child.id() as i32), signal).unwrap();
    }

    /// Ends it as Ctrl-C does.
    pub(crate) fn stop(self) -> Outcome {
        self.signal(Signal::SIGINT);
        self.outcome()
    }

    /// Waits for its end; one that hangs is killed and fails the test.
    pub(crate) fn outcome(self) -> Outcome {
        self.outcome_within(PATIENCE)
    }

    pub(crate) fn outcome_within(mut self, patience: Duration) -> Outcome {
        let deadline = Instant::now() + patience * slowness();
        let status = loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                break status;
            }
            assert!(Instant::now() < deadline, "the tracer does not end; it said: {}", self.remaining());
            thread::sleep(Duration::from_millis(10));
        };
        let stderr = self.remaining();
        let stdout = self.printed.take().unwrap().join().unwrap();
        let folder = self.folder.take().unwrap();
        let json = fs::read_to_string(folder.path().join("out.json")).ok();
        let outcome = Outcome { status, stdout, stderr, json, folder };
        outcome.assert_sane();
        outcome
    }

    fn remaining(&mut self) -> String {
        // The reader ends with the tracer; give it a moment for what is under way.
        while let Ok(line) = self.lines.recv_timeout(Duration::from_millis(500)) {
            self.seen.push(line);
        }
        self.seen.join("\n")
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Outcome {
    /// Exit status; `None` when a signal ended it.
    pub(crate) fn code(&self) -> Option<i32> {
        self.status.code()
    }

    /// The report, after a run that ended with `code`.
    #[track_caller]
    pub(crate) fn report(&self, code: i32) -> Report {
        let quality = self.json.as_deref().and_then(|json| serde_json::from_str::<serde_json::Value>(json).ok());
        let quality =
            quality.map(|json| format!("{} {}", json["processes"][0]["memory"], json["quality"])).unwrap_or_default();
        assert_eq!(self.code(), Some(code), "exit status; the tracer said: {} and {quality}", self.stderr);
        Report::parse(self.json.as_deref().unwrap_or_else(|| panic!("no report; the tracer said: {}", self.stderr)))
    }

    /// The saved report, if there is one.
    pub(crate) fn has_report(&self) -> bool {
        self.json.is_some()
    }

    /// A file that the run wrote into its folder.
    #[track_caller]
    pub(crate) fn file(&self, name: &str) -> String {
        fs::read_to_string(self.path(name))
            .unwrap_or_else(|error| panic!("{name}: {error}; the tracer said: {}", self.stderr))
    }

    /// Path of such a file.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Whatever happens, it does not panic, and prints nothing that a terminal would obey.
    fn assert_sane(&self) {
        assert!(!self.stderr.contains("panicked"), "{}", self.stderr);
        let obeyed = |c: char| c.is_control() && c != '\n' && c != '\t';
        assert!(!self.stderr.contains(obeyed), "control characters on the standard error: {:?}", self.stderr);
    }
}
