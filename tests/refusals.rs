//! What cannot be traced or makes no sense: the documented exit status, and words that say what to do.

use std::{
    fs,
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use crate::harness::{NOBODY, Outcome, Run, Target, compiled, copy_for_all, require_root, scratch};

const FAILED: i32 = 1;
const USAGE: i32 = 2;

#[track_caller]
fn check(outcome: &Outcome, code: i32, words: &[&str]) {
    assert_eq!(outcome.code(), Some(code), "{}", outcome.stderr);
    for words in words {
        assert!(outcome.stderr.contains(words), "no {words:?} in: {}", outcome.stderr);
    }
    assert!(!outcome.stderr.contains("\ntracing ") && !outcome.stderr.starts_with("tracing "), "{}", outcome.stderr);
    assert!(!outcome.has_report(), "a report of nothing");
}

fn sleeper() -> Target {
    Target::start(&compiled("fork"))
}

#[test]
fn command_lines_that_make_no_sense() {
    let lines: &[(&[&str], &str)] = &[
        (&[], "--pid PID"),
        (&["--pid", "0"], "--pid"),
        (&["--pid", "-5"], "--pid"),
        (&["--pid", "4711x"], "4711x"),
        (&["--pid", "99999999999999"], "--pid"),
        (&["--pid", "1", "--", "true"], "give either"),
        (&["-p", "1", "-q", "-v"], "cannot be used with"),
        (&["-p", "1", "--min-size", "2KiB", "--max-size", "1KiB"], "larger than --max-size"),
        (&["-p", "1", "--min-size", "12 parsecs"], "64KiB"),
        (&["-p", "1", "--max-size", "-1"], "--max-size"),
        (&["-p", "1", "--max-size", "99999999999TiB"], "address space"),
        (&["-p", "1", "--duration", "5x"], "unit"),
        (&["-p", "1", "--duration", "soon"], "5s"),
        (&["-p", "1", "--duration", "0s"], "longer"),
        (&["-p", "1", "-d", "18446744073709551615s"], "ten years"),
        (&["-p", "1", "-d", "99999999999999999999s"], "unit"),
        (&["-p", "1", "--min-age", "18446744073709551615s"], "ten years"),
        (&["-p", "1", "--interval", "-1s"], "--interval"),
        (&["-p", "1", "--interval", "0"], "--interval"),
        (&["-p", "1", "--interval", "1us"], "100ms"),
        (&["-p", "1", "--min-age", "1 fortnight"], "unit"),
        (&["-p", "1", "--top", "many"], "--top"),
        (&["-p", "1", "--buffer-size", "1"], "4KiB"),
        (&["-p", "1", "--buffer-size", "1TiB"], "1GiB"),
        (&["-p", "1", "-o", "report.pdf"], ".pb.gz or .json"),
        (&["-p", "1", "-o", "report"], "--format"),
        (&["-p", "1", "--format", "json"], "-o -"),
        (&["-p", "1", "--format", "xml", "-o", "-"], "svg"),
        (&["-p", "1", "-o", "-", "-o", "-"], "only once"),
        (&["-p", "1", "--value", "weight"], "count"),
        (&["-p", "1", "--no-such-flag"], "--no-such-flag"),
        (&["4711"], "--"),
    ];
    for (line, words) in lines {
        check(&Run::bare().args(*line).finish(), USAGE, &[words]);
    }
}

#[test]
fn a_process_that_is_not_there() {
    require_root();
    let mut ended = Command::new("true").spawn().unwrap();
    ended.wait().unwrap();
    check(&Run::pid(ended.id()).finish(), FAILED, &[&format!("no process {}", ended.id()), "pgrep"]);
}

#[test]
fn a_kernel_thread() {
    require_root();
    let kernel_thread = fs::read_to_string("/proc/2/comm").is_ok_and(|comm| comm.starts_with("kthreadd"));
    assert!(kernel_thread, "process 2 is not the kernel's here: run the tests outside of a container");
    check(&Run::pid(2).finish(), FAILED, &["kernel thread", "kthreadd"]);
}

#[test]
fn a_zombie() {
    require_root();
    let mut zombie = Command::new("true").spawn().unwrap();
    thread::sleep(Duration::from_millis(300));
    let outcome = Run::pid(zombie.id()).finish();
    zombie.wait().unwrap();
    check(&outcome, FAILED, &["zombie", "already exited"]);
}

#[test]
fn a_thread_instead_of_its_process() {
    require_root();
    let target = Target::start_with(&compiled("churn"), &["1"], &[]);
    let threads = fs::read_dir(format!("/proc/{}/task", target.pid())).unwrap();
    let mut threads = threads.map(|entry| entry.unwrap().file_name().to_string_lossy().parse().unwrap());
    let thread: u32 = threads.find(|thread| *thread != target.pid()).unwrap();
    check(&Run::pid(thread).finish(), FAILED, &["is a thread", &format!("--pid {}", target.pid())]);
}

#[test]
fn a_32_bit_process() {
    require_root();
    let target = Target::start(&compiled("32 bits"));
    check(&Run::pid(target.pid()).finish(), FAILED, &["32-bit", "x86-64"]);
}

/// One that has no malloc at all.
#[test]
fn a_process_without_an_allocator() {
    require_root();
    let target = Target::start(&compiled("no allocator"));
    check(&Run::pid(target.pid()).finish(), FAILED, &["no malloc", "statically linked"]);
}

/// Root without capabilities, as in a container.
#[test]
fn no_rights_as_root() {
    require_root();
    let target = sleeper();
    let outcome = Run::through("setpriv", &["--bounding-set=-all", "--inh-caps=-all"], Run::tracer())
        .with_json()
        .args(["--pid", &target.pid().to_string()])
        .finish();
    check(&outcome, FAILED, &["CAP_BPF", "CAP_PERFMON", "CAP_SYS_PTRACE", "sudo"]);
}

#[test]
fn no_rights_as_a_user() {
    require_root();
    let target = sleeper();
    let (_folder, copy) = copy_for_all(Run::tracer());
    let outcome = Run::through("setpriv", &NOBODY, &copy).args(["--pid", &target.pid().to_string()]).finish();
    check(&outcome, FAILED, &["CAP_BPF", "sudo"]);
}

/// Outputs are opened before anything is traced; what was there stays.
#[test]
fn an_output_that_cannot_be_written() {
    require_root();
    let target = sleeper();
    let folder = scratch();
    let directory = folder.path().join("directory.svg");
    fs::create_dir(&directory).unwrap();
    for path in ["/nonexistent/out.svg", "/proc/out.json", directory.to_str().unwrap()] {
        let began = Instant::now();
        let outcome = Run::pid(target.pid()).args(["-o", path]).finish();
        check(&outcome, FAILED, &["cannot write", path, "-o"]);
        assert!(began.elapsed() < Duration::from_secs(5), "it should not trace first");
    }
    let kept = folder.path().join("kept.txt");
    fs::write(&kept, "the last report").unwrap();
    let outcome = Run::pid(target.pid()).args(["-o", kept.to_str().unwrap(), "-o", "/nonexistent/out.svg"]).finish();
    check(&outcome, FAILED, &["cannot write"]);
    assert_eq!(fs::read_to_string(&kept).unwrap(), "the last report");
}

/// Whatever the moment at which it ends, there is a status, a message, and an end.
#[test]
fn a_process_that_ends_while_it_is_attached_to() {
    require_root();
    for run in 0..16u64 {
        let milliseconds = run * 37 % 600;
        let seconds = format!("{}.{:03}", milliseconds / 1000, milliseconds % 1000);
        let mut target = Command::new("sleep").arg(seconds).stdout(Stdio::null()).spawn().unwrap();
        let running = Run::pid(target.id()).spawn();
        // Reaped at once, so that it is gone and no zombie.
        target.wait().unwrap();
        let outcome = running.outcome_within(Duration::from_secs(30));
        assert!(matches!(outcome.code(), Some(0 | 1 | 3)), "after {milliseconds} ms: {}", outcome.stderr);
        assert!(!outcome.stderr.is_empty(), "after {milliseconds} ms it says nothing");
        assert_eq!(outcome.has_report(), outcome.code() != Some(1), "after {milliseconds} ms: {}", outcome.stderr);
    }
}

/// However few descriptors there are: it works, or says what it lacks, and never that the process is to blame.
#[test]
fn too_few_descriptors() {
    require_root();
    let target = sleeper();
    let mut refused = 0;
    for limit in [6, 12, 18, 24, 30, 36, 42, 48, 54] {
        let limits = format!("--nofile={limit}:{limit}");
        let outcome = Run::through("prlimit", &[&limits], Run::tracer())
            .args(["--pid", &target.pid().to_string(), "-d", "100ms"])
            .finish();
        if outcome.code() == Some(FAILED) {
            refused += 1;
            assert!(outcome.stderr.contains("descriptors"), "{limit}: {}", outcome.stderr);
            for blame in ["no malloc", "ended while", "no process"] {
                assert!(!outcome.stderr.contains(blame), "{limit}: {}", outcome.stderr);
            }
        }
    }
    assert!(refused > 0, "descriptors never ran out: try smaller limits");
}

/// The capabilities that the README names are enough, or what is missing is named.
#[test]
fn probes_by_perf_events_without_the_right() {
    require_root();
    let target = sleeper();
    let (_folder, copy) = copy_for_all(Run::tracer());
    let documented = "-all,+bpf,+perfmon,+sys_ptrace,+checkpoint_restore";
    let (inheritable, ambient) = (format!("--inh-caps={documented}"), format!("--ambient-caps={documented}"));
    let user: Vec<&str> = NOBODY.into_iter().chain([&*inheritable, &*ambient]).collect();
    let pid = target.pid().to_string();
    let run = |further: &[&str]| {
        Run::through("setpriv", &user, &copy).args(["--pid", &pid, "-d", "100ms"]).args(further).finish()
    };
    let by_links = run(&[]);
    // It was traced, and allocated nothing.
    assert_eq!(by_links.code(), Some(3), "{}", by_links.stderr);
    let by_events = run(&["--perf-events"]);
    let told = ["perf_event_open", "CAP_SYS_ADMIN", "perf_event_paranoid"];
    assert!(
        by_events.code() == Some(3) || told.iter().all(|words| by_events.stderr.contains(words)),
        "{}",
        by_events.stderr
    );
}

/// The limit of `ulimit -f`: the kernel's way to tell of it would end tracer.
#[test]
fn files_that_may_not_be_as_large() {
    require_root();
    let target = Target::start(&compiled("fork"));
    let run = Run::through("sh", &["-c", "ulimit -f 0; exec \"$@\"", "sh"], Run::tracer());
    let outcome = run.with_json().args(["--duration", "300ms", "--pid", &target.pid().to_string()]).finish();
    assert_eq!(outcome.code(), Some(1), "{} {}", outcome.status, outcome.stderr);
    assert!(outcome.stderr.contains("File too large"), "{}", outcome.stderr);
}
