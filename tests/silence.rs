//! Targets whose files lie on a file system that stops answering: tracer does not wait for it, says so, and leaves nothing
//! behind that does.

use std::{
    fs,
    path::Path,
    thread,
    time::{Duration, Instant},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use crate::harness::{Run, Target, compiled, require_root, scratch, slowness};

/// A program whose executable is all that is on a file system of its own.
struct Served {
    server: Pid,
    // Ends after the server: what it waits for has failed then.
    target: Target,
    _folder: tempfile::TempDir,
}

impl Served {
    fn start(program: &str) -> Self {
        require_root();
        let folder = scratch();
        let path = folder.path().to_str().unwrap();
        let script = "mkdir \"$2/mounted\"; \"$0\" \"$2/mounted\" \"$1\" >\"$2/out\" & echo $! >\"$2/server\"; \
                      while ! grep -q mounted \"$2/out\"; do sleep 0.05; done; exec \"$2/mounted/file\"";
        let (server, program) = (compiled("silent files"), compiled(program));
        let arguments = ["-m", "sh", "-c", script, server.to_str().unwrap(), program.to_str().unwrap(), path];
        let target = Target::start_with(Path::new("unshare"), &arguments, &[]);
        let server = fs::read_to_string(folder.path().join("server")).unwrap().trim().parse().unwrap();
        Self { server: Pid::from_raw(server), target, _folder: folder }
    }

    /// From now on whoever asks for the file waits for ever.
    fn fall_silent(&self) {
        kill(self.server, Signal::SIGUSR1).unwrap();
        thread::sleep(Duration::from_millis(200) * slowness());
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        // It may have ended.
        let _ = kill(self.server, Signal::SIGKILL);
    }
}

/// Helpers of the tracer `parent`, or of none.
fn helpers(parent: u32) -> Vec<u32> {
    let mut helpers = Vec::new();
    for entry in fs::read_dir("/proc").unwrap().flatten() {
        let Ok(pid) = entry.file_name().to_string_lossy().parse::<u32>() else { continue };
        let read = |name: &str| fs::read_to_string(entry.path().join(name)).unwrap_or_default();
        let status = read("status");
        let of = status.lines().find_map(|line| line.strip_prefix("PPid:")?.trim().parse::<u32>().ok());
        if read("cmdline").starts_with("tracer: files") && of == Some(parent) {
            helpers.push(pid);
        }
    }
    helpers
}

/// As long as it answers, nothing is missing but the callers of what comes first: only then it is known which file is meant. What
/// has been read stays known.
#[test]
fn a_file_system_that_falls_silent_in_the_middle() {
    let mut served = Served::start("deep");
    let tracer = Run::pid(served.target.pid()).start();
    served.fall_silent();
    let truth = served.target.ask("begin");
    let report = tracer.stop().report(0);
    report.assert_nothing_lost("deep");
    assert_eq!(report.outstanding(), truth.total());
    let named = report.stacks.iter().filter(|stack| ["left", "right"].contains(&stack.caller()));
    assert_eq!(named.count(), report.stacks.len(), "names of what was copied");
    assert!(report.stacks.iter().any(|stack| stack.has("main")), "and tables");
    let cut = report.quality("truncated_stacks");
    let unknown = report.json["quality"]["truncated_by_reason"]["unknown_file"].as_u64().unwrap_or(0);
    assert_eq!(cut, unknown, "{}", report.json["quality"]);
}

/// The C library is elsewhere, and so it is traced: but nothing is known of the program itself.
#[test]
fn a_file_system_that_is_silent_from_the_start() {
    let mut served = Served::start("deep");
    served.fall_silent();
    let running = Run::pid(served.target.pid()).start();
    let (tracer, truth) = (running.pid(), served.target.ask("begin"));
    let outcome = running.stop();
    // It may be a program in Go.
    let report = outcome.report(3);
    assert_eq!(report.outstanding(), truth.total());
    let notes = report.json["quality"]["notes"].to_string();
    assert!(notes.contains("could not be read") && notes.contains("did not answer"), "{notes}");
    assert_eq!(report.json["quality"]["complete"], false);
    assert!(served.target.is_alive());
    // What still waits belongs to nobody, and goes with the file system.
    assert_eq!(helpers(tracer), [0; 0]);
    let waiting = helpers(1);
    drop(served);
    let deadline = Instant::now() + Duration::from_secs(60) * slowness();
    while waiting.iter().any(|pid| helpers(1).contains(pid)) {
        assert!(Instant::now() < deadline, "{waiting:?}");
        thread::sleep(Duration::from_millis(50));
    }
}

/// Also while it waits for such a file at its start.
#[test]
fn a_signal_ends_a_tracer_that_waits_for_a_file() {
    let served = Served::start("deep");
    served.fall_silent();
    let running = Run::pid(served.target.pid()).spawn();
    let deadline = Instant::now() + Duration::from_secs(60) * slowness();
    while helpers(running.pid()).is_empty() {
        assert!(Instant::now() < deadline, "no helper");
        thread::sleep(Duration::from_millis(10));
    }
    let outcome = running.stop();
    assert_eq!(outcome.code(), None, "{}", outcome.stderr);
}

/// The allocator itself is what cannot be read: nothing is found in its place that would be called complete.
#[test]
fn an_allocator_on_a_silent_file_system() {
    let served = Served::start("family, own allocator");
    served.fall_silent();
    let outcome = Run::pid(served.target.pid()).args(["--duration", "1s"]).finish();
    let report = outcome.report(3);
    let notes = report.json["quality"]["notes"].to_string();
    assert!(notes.contains("could not be read"), "{notes}");
    assert_eq!(report.json["quality"]["complete"], false);
}

/// The doctor says what it could not read, and comes to an end.
#[test]
fn a_doctor_does_not_wait_for_a_silent_file_system() {
    let served = Served::start("deep");
    served.fall_silent();
    let outcome = Run::bare().args(["doctor", "--pid", &served.target.pid().to_string()]).finish();
    assert_eq!(outcome.code(), Some(3), "{}", outcome.stdout);
    assert!(
        outcome.stdout.contains("cannot be opened") && outcome.stdout.contains("did not answer"),
        "{}",
        outcome.stdout
    );
}
