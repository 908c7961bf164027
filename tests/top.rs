//! `tracer top` on real processes: the one that grows comes first, by as much as it says itself; limits of cgroups; terminals.

use std::{
    io::{BufRead as _, BufReader, Write as _},
    path::Path,
    process::{Command, Stdio},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::Value;

use crate::harness::{Cgroup, Run, Target, compiled, copy_program, wait_until, with_default_signals};

/// What counters of the kernel may be wrong by, and what a process takes beside, bytes: each processor keeps some to itself.
const ALLOWANCE: i64 = 4 << 20;

fn row(page: &Value, pid: u32) -> Option<&Value> {
    page["processes"].as_array().unwrap().iter().find(|row| row["pid"] == pid)
}

fn once(arguments: &[&str]) -> Value {
    let outcome = Run::bare().args(["top", "--once", "--json", "-i", "100ms", "-n", "100000"]).args(arguments).finish();
    assert_eq!(outcome.code(), Some(0), "{}", outcome.stderr);
    serde_json::from_str(&outcome.stdout).unwrap()
}

/// The bytes are those that the program says; the rate is those bytes in the time that is told with them.
#[test]
fn what_grows_comes_first_with_its_rate() {
    const STEP: i64 = 192 << 20;
    let mut target = Target::start(&compiled("swells"));
    let mut top = Command::new(Run::tracer());
    top.args(["top", "--json", "-i", "300ms", "-n", "100000"]).stdin(Stdio::null()).stdout(Stdio::piped());
    let mut top = with_default_signals(&mut top).spawn().unwrap();
    let mut lines = BufReader::new(top.stdout.take().unwrap()).lines();
    let mut page = || -> Value { serde_json::from_str(&lines.next().unwrap().unwrap()).unwrap() };
    let first = page();
    let waits = row(&first, target.pid()).unwrap()["grew"].as_i64().unwrap();
    assert!(waits.abs() <= ALLOWANCE, "it waits: {waits}");
    for _ in 0..2 {
        let said = target.ask(&STEP.to_string()).fact("grew") as i64;
        let mut grew = 0;
        while grew < said - ALLOWANCE {
            let page = page();
            let rows = page["processes"].as_array().unwrap();
            let place = rows.iter().position(|row| row["pid"] == target.pid()).unwrap();
            let bytes = rows[place]["grew"].as_i64().unwrap();
            let (seconds, rate) = (&rows[place]["seconds"], rows[place]["growth_per_second"].as_f64().unwrap());
            assert!((rate * seconds.as_f64().unwrap() - bytes as f64).abs() < 1.0, "{}", rows[place]);
            grew += bytes;
            // Other tests may have something that grows more.
            let rate_of = |row: &Value| row["growth_per_second"].as_f64().unwrap_or(0.0);
            let less = rows[..place].iter().filter(|row| rate_of(row) < rate).count();
            assert_eq!(less, 0, "others that have grown less are before it: {rows:?}");
        }
        assert!((grew - said).abs() <= ALLOWANCE, "it grew by {said} bytes, not {grew}");
    }
    kill(Pid::from_raw(top.id() as i32), Signal::SIGTERM).unwrap();
    assert_eq!(top.wait().unwrap().code(), Some(0));
}

#[test]
fn what_is_shown_of_a_process() {
    let target = Target::start(&compiled("swells"));
    let page = once(&[]);
    let row = row(&page, target.pid()).unwrap();
    assert_eq!((page["format"].as_str(), page["version"].as_u64()), (Some("tracer-top"), Some(1)));
    assert_eq!((row["language"].as_str(), row["allocator"].as_str()), (Some("C"), Some("glibc")), "{row}");
    assert_eq!(row["tracing"], "exact");
    assert_eq!(row["exe"].as_str().map(Path::new), Some(&*compiled("swells")));
    let (rss, anonymous) = (row["rss"].as_u64().unwrap(), row["anonymous"].as_u64().unwrap());
    assert!(rss > anonymous && anonymous > 0, "{row}");
    let static_program = Target::start(&compiled("no allocator"));
    assert_eq!(self::row(&once(&[]), static_program.pid()).unwrap()["tracing"], "no-allocator");
}

#[test]
#[expect(clippy::print_stdout, reason = "a test that is skipped says why")]
fn limits_of_cgroups_and_containers_are_told() {
    const LIMIT: u64 = 1 << 30;
    let name = format!("docker-{:064x}.scope", std::process::id());
    // Dropped before the cgroup: that must be empty.
    let mut target = Target::start(&compiled("swells"));
    let cgroup = match Cgroup::with(&name, LIMIT, target.pid()) {
        Ok(cgroup) => cgroup,
        Err(why) => return println!("skipped: {why}"),
    };
    let bytes = target.ask(&(64 << 20).to_string()).fact("grew");
    let page = once(&["--sort", "rss"]);
    let row = row(&page, target.pid()).unwrap();
    let limit = &row["limit"];
    assert_eq!((limit["bytes"].as_u64(), limit["cgroup"].as_str()), (Some(LIMIT), Some(&*format!("/{name}"))), "{row}");
    assert!(limit["used"].as_u64().unwrap() >= bytes, "{row}");
    // The kernel's counters of what has grown are a few pages behind at first.
    wait_until("it does not grow", || {
        self::row(&once(&[]), target.pid()).unwrap()["limit"]["reached_in_seconds"].is_null()
    });
    assert_eq!(row["container"]["runtime"], "docker");
    assert_eq!(row["container"]["id"].as_str(), Some(&name[7..71]));
    target.finish();
    drop(cgroup);
}

/// One table, where nobody looks at a terminal; hostile names in it are harmless.
#[test]
fn without_a_terminal_there_is_one_table() {
    let folder = tempfile::tempdir().unwrap();
    let program = folder.path().join("\u{1b}[2Jevil");
    copy_program(&compiled("swells"), &program);
    let _target = Target::start(&program);
    let outcome = Run::bare().args(["top", "-i", "100ms", "-n", "100000"]).finish();
    assert_eq!(outcome.code(), Some(0), "{}", outcome.stderr);
    assert!(outcome.stdout.contains(r"\u{1b}[2Jevil") && !outcome.stdout.contains('\u{1b}'), "{}", outcome.stdout);
    assert_eq!(outcome.stdout.matches("can be traced").count(), 1);
}

/// On a terminal it goes on until a key, and leaves the terminal as it was.
#[test]
fn a_terminal_is_drawn_on_and_left_as_it_was() {
    for ends in [&b"q"[..], b"\x03"] {
        // The shell that script(1) runs it with lives on: it is not to be ended by Ctrl-C.
        let command = format!("trap : INT; {} top -i 100ms; echo status $?; stty -a", Run::tracer().display());
        let mut script = Command::new("script");
        script.args(["-qec", &command, "/dev/null"]).stdin(Stdio::piped()).stdout(Stdio::piped());
        script.env("SHELL", "/bin/sh").env("TERM", "xterm");
        let mut script = with_default_signals(&mut script).spawn().unwrap();
        let mut lines = BufReader::new(script.stdout.take().unwrap()).lines().map(|line| line.unwrap());
        let mut keyboard = script.stdin.take().unwrap();
        let tables = lines.by_ref().filter(|line| line.contains("can be traced")).take(3).count();
        assert_eq!(tables, 3, "it goes on");
        keyboard.write_all(ends).unwrap();
        let after: Vec<String> = lines.collect();
        drop(keyboard);
        script.wait().unwrap();
        let after = after.join("\n");
        assert!(after.contains("status 0"), "{after}");
        assert!(after.contains(" icanon") && after.contains(" echo ") && after.contains("\u{1b}[?25h"), "{after}");
    }
}
