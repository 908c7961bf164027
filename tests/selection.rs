//! Selections on real processes: who is traced, and what is told of those that cannot be.

use std::{
    fs,
    io::Write as _,
    os::unix::{fs::PermissionsExt as _, process::CommandExt as _},
    path::PathBuf,
    process::{Command, Stdio},
    thread,
    time::Duration,
};

use tempfile::TempDir;

use crate::harness::{
    Cgroup, Held, Report, Run, Running, Target, compiled, copy_program, require_root, scratch, slowness,
};

const STEP: &str = "1000000";

/// A program under a name of its own.
struct Named {
    target: Target,
    path: PathBuf,
}

fn start(folder: &TempDir, name: &str) -> Named {
    let path = folder.path().join(name);
    copy_program(&compiled("swells"), &path);
    Named { target: Target::start(&path), path }
}

/// Has `all` allocate, ends the trace, and gives the ids that it was of.
fn traced(tracer: Running, all: &mut [&mut Named]) -> (Vec<u32>, Report) {
    traced_with(tracer, all, 0)
}

/// The same of a trace that ends with this status.
fn traced_with(tracer: Running, all: &mut [&mut Named], status: i32) -> (Vec<u32>, Report) {
    for named in all {
        named.target.ask(STEP);
    }
    let report = tracer.stop().report(status);
    let processes = report.json["processes"].as_array().unwrap();
    let mut pids: Vec<u32> = processes.iter().map(|process| process["pid"].as_u64().unwrap() as u32).collect();
    pids.sort_unstable();
    (pids, report)
}

fn sorted(all: &[&Named]) -> Vec<u32> {
    let mut pids: Vec<u32> = all.iter().map(|named| named.target.pid()).collect();
    pids.sort_unstable();
    pids
}

#[test]
fn names_and_executables() {
    require_root();
    let folder = scratch();
    let (mut one, mut two, mut other) =
        (start(&folder, "sel-one"), start(&folder, "sel-two"), start(&folder, "sel-not"));
    let by_path = format!("{}/sel-*", folder.path().display());
    let own_user = rustix::process::geteuid().as_raw().to_string();
    for options in [
        &["--exe", &*by_path, "--exclude-comm", "*-not"][..],
        &["--exe", &by_path, "--comm", "sel-o*", "--comm", "sel-two", "--user", &own_user],
    ] {
        let tracer = Run::bare().with_json().args(options).start();
        let (pids, report) = traced(tracer, &mut [&mut one, &mut two, &mut other]);
        assert_eq!(pids, sorted(&[&one, &two]), "{options:?}");
        for pid in pids {
            let held: u64 = report.of_process(pid).stacks.iter().map(|stack| stack.held.bytes).sum();
            assert_eq!(held, 1_000_000, "{options:?}");
        }
        report.assert_nothing_lost("a selection");
    }
    assert_eq!(one.path.file_name().unwrap(), "sel-one");
}

#[test]
#[expect(clippy::print_stdout, reason = "a test that is skipped says why")]
fn cgroups_and_containers() {
    require_root();
    let folder = scratch();
    let (mut inside, mut outside) = (start(&folder, "in-cgroup"), start(&folder, "out-of-it"));
    let id = format!("{:064x}", 0xabc_def0_0000_0000_u64 + u64::from(std::process::id()));
    let name = format!("libpod-5{}.scope", &id[1..]);
    let cgroup = match Cgroup::with(&name, 1 << 30, inside.target.pid()) {
        Ok(cgroup) => cgroup,
        Err(why) => return println!("skipped: {why}"),
    };
    let (path, in_file_system) = (format!("/{name}"), cgroup.path().display().to_string());
    let short = &name[7..47];
    for options in [["--cgroup", &*path], ["--cgroup", &in_file_system], ["--container", short]] {
        let tracer = Run::bare().with_json().args(options).start();
        let (pids, _) = traced(tracer, &mut [&mut inside, &mut outside]);
        assert_eq!(pids, sorted(&[&inside]), "{options:?}");
    }
    // What is over before anybody could look: it comes into the cgroup just before it becomes what it is.
    const TIMES: u64 = 30;
    let brief = folder.path().join("brief-inside");
    copy_program(&compiled("brief"), &brief);
    let script = format!("echo $$ >{}/cgroup.procs; exec {}", cgroup.path().display(), brief.display());
    let tracer = Run::bare().with_json().args(["--cgroup", &path, "--scope", "file"]).start();
    for nth in 0..2 * TIMES {
        // And as many elsewhere.
        let script = if nth % 2 == 0 { &*script } else { "true" };
        Command::new("sh").args(["-c", script]).status().unwrap();
    }
    let outcome = tracer.stop();
    // A shell may have been seen in the cgroup, and be told as found late.
    let status = outcome.code().unwrap();
    let report = outcome.report(status);
    let sizes = report.stacks.iter().map(|stack| stack.allocated.bytes).filter(|bytes| bytes % 4242 == 0);
    assert_eq!(sizes.sum::<u64>(), TIMES * 4242, "{}", report.json["quality"]);
    assert!(report.json["quality"].get("undecided_events").is_none(), "{}", report.json["quality"]);
    // What was there before, and comes to fit.
    let tracer = Run::bare().with_json().args(["--cgroup", &path]).start();
    fs::write(cgroup.path().join("cgroup.procs"), outside.target.pid().to_string()).unwrap();
    thread::sleep(Duration::from_secs(6) * slowness());
    let (pids, report) = traced_with(tracer, &mut [&mut inside, &mut outside], 3);
    assert_eq!(pids, sorted(&[&inside, &outside]));
    report.assert_gap("unseen_spans", 1);
    // The cgroup must be empty to be removed.
    inside.target.finish();
    outside.target.finish();
    drop(cgroup);
}

/// Some are gone or cannot be traced: that is told, and the others are traced.
#[test]
fn what_cannot_be_traced_is_told_and_the_others_are_traced() {
    require_root();
    let folder = scratch();
    let mut one = start(&folder, "goes-on");
    let untraceable = Target::start(&compiled("no allocator"));
    // Process ids end below 2^22.
    let pids = format!("4194304,{} {}", untraceable.pid(), one.target.pid());
    let tracer = Run::bare().with_json().args(["--pid", &pids]).start();
    let (traced, report) = traced(tracer, &mut [&mut one]);
    assert_eq!(traced, sorted(&[&one]));
    assert_eq!(report.outstanding().bytes, 1_000_000);
    let notes = report.json["quality"]["notes"].to_string();
    assert!(notes.contains("no process 4194304") && notes.contains("has no malloc"), "{notes}");
}

/// What begins while others are traced and fits is traced: from its first instruction, where probes are on files, else from when it
/// has its own; what does not fit is not.
#[test]
fn what_begins_later_and_fits_is_traced() {
    require_root();
    let folder = scratch();
    for (scope, status) in [("file", 0), ("process", 3)] {
        let mut first = start(&folder, "was-there");
        let by_path = format!("{}/was-*", folder.path().display());
        let tracer = Run::bare().with_json().args(["--exe", &*by_path, "--scope", scope]).start();
        let (mut later, mut other) = (start(&folder, "was-not"), start(&folder, "not-wanted"));
        if scope == "process" {
            // It has probes of its own within milliseconds, and this is as long as they take on a machine that has much to do.
            thread::sleep(Duration::from_secs(1));
        }
        let (pids, report) = traced_with(tracer, &mut [&mut first, &mut later, &mut other], status);
        assert_eq!(pids, sorted(&[&first, &later]), "{scope}");
        for pid in pids {
            let own = report.of_process(pid);
            let held: u64 = own.stacks.iter().map(|stack| stack.held.bytes).sum();
            // With what it took to begin, where that was recorded.
            assert!(held == 1_000_000 || scope == "file" && held > 1_000_000, "{scope}: {held}");
        }
        match scope {
            "file" => report.assert_nothing_lost("probes on files"),
            _ => report.assert_gap("unseen_spans", 1),
        }
    }
}

/// What comes to fit so late that nobody looks any more is told: here the trace ends in the same moment, as a rule.
#[test]
fn what_comes_to_fit_at_the_end_is_told() {
    require_root();
    let folder = scratch();
    let mut first = start(&folder, "fits-at-once");
    let mut late = Target::start(&compiled("renames"));
    let tracer = Run::bare().with_json().args(["--comm", "fits-at-*", "--scope", "file"]).start();
    late.ask("fits-at-last");
    let (_, report) = traced_with(tracer, &mut [&mut first], 3);
    report.assert_gap("unseen_spans", 1);
    let notes = report.json["quality"]["notes"].to_string();
    let told = format!("process {} (fits-at-last) fits the selection, but was found too late", late.pid());
    // Where it was looked at in that moment after all.
    assert!(notes.contains(&told) || notes.contains("1 process found to fit some time after the beginning"), "{notes}");
}

/// Within a second, with whatever else there is on the machine.
#[test]
fn what_comes_to_fit_is_found() {
    require_root();
    let folder = scratch();
    let mut first = start(&folder, "is-found-1");
    let mut late = Target::start(&compiled("renames"));
    let mut tracer = Run::bare().with_json().args(["--comm", "is-found-*", "-v"]).start();
    late.ask("is-found-2");
    tracer.wait_for_line("DEBUG a process that has come to fit is traced");
    let (pids, report) = traced_with(tracer, &mut [&mut first], 3);
    let mut expected = vec![first.target.pid(), late.pid()];
    expected.sort_unstable();
    assert_eq!(pids, expected);
    report.assert_gap("unseen_spans", 1);
}

/// A program that becomes another one at once (`env`, the shell's `exec`) may do so before anybody has looked at it.
#[test]
fn what_becomes_another_program_at_once_is_traced_as_that() {
    require_root();
    let folder = scratch();
    let mut first = start(&folder, "at-once");
    let brief = folder.path().join("at-once-too");
    copy_program(&compiled("brief"), &brief);
    let tracer = Run::bare().with_json().args(["--comm", "at-once*", "--scope", "file"]).start();
    const TIMES: u64 = 60;
    for _ in 0..TIMES {
        Command::new("env").arg(&brief).output().unwrap();
    }
    let (pids, report) = traced(tracer, &mut [&mut first]);
    let stacks = report.stacks.iter().filter(|stack| stack.pid != first.target.pid());
    let allocated: u64 =
        stacks.filter(|stack| stack.allocated.bytes % 4242 == 0).map(|stack| stack.allocated.bytes).sum();
    assert_eq!((pids.len() as u64, allocated), (TIMES + 1, TIMES * 4242));
}

/// What is over before anybody could look at it is known by what the kernel told of it as it began.
#[test]
fn brief_programs_of_a_user_are_all_there() {
    require_root();
    const NOBODY: u32 = 65_534;
    const TIMES: u64 = 60;
    let folder = scratch();
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let brief = folder.path().join("nobodys");
    copy_program(&compiled("brief"), &brief);
    let mut first = Command::new("sleep").arg("1000").uid(NOBODY).spawn().unwrap();
    let user = NOBODY.to_string();
    let tracer = Run::bare().with_json().args(["--user", &*user, "--scope", "file"]).start();
    for nth in 0..2 * TIMES {
        // And as many of another one.
        Command::new(&brief).uid(if nth % 2 == 0 { NOBODY } else { 0 }).status().unwrap();
    }
    let report = tracer.stop().report(0);
    first.kill().unwrap();
    first.wait().unwrap();
    let allocated: u64 =
        report.stacks.iter().map(|stack| stack.allocated.bytes).filter(|bytes| bytes % 4242 == 0).sum();
    let processes = report.json["processes"].as_array().unwrap();
    assert_eq!((processes.len() as u64, allocated), (TIMES + 1, TIMES * 4242));
}

/// Also what a traced process starts.
#[test]
fn what_is_excluded_is_not_traced_whoever_starts_it() {
    require_root();
    let folder = scratch();
    let programs = ["left-out", "taken-in"].map(|name| {
        let path = folder.path().join(name);
        copy_program(&compiled("brief"), &path);
        path
    });
    // The one lives for long enough for its file to be read.
    let script = format!("read a; {}; {} stay; read b", programs[0].display(), programs[1].display());
    let mut shell =
        Command::new("sh").args(["-c", &script]).stdin(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
    let tracer = Run::pid(shell.id()).args(["--exclude-comm", "left-*", "--scope", "file"]).start();
    shell.stdin.as_mut().unwrap().write_all(b"\n").unwrap();
    thread::sleep(Duration::from_secs(1) * slowness());
    let report = tracer.stop().report(0);
    shell.kill().unwrap();
    shell.wait().unwrap();
    let processes = report.json["processes"].as_array().unwrap();
    let named = |name: &str| processes.iter().filter(|process| process["comm"] == name).count();
    assert_eq!((named("left-out"), named("taken-in")), (0, 1), "{processes:?}");
    // What has ended holds nothing any more.
    let stacks = report.stacks.iter().filter(|stack| stack.has("forget_quickly"));
    let allocated: Vec<Held> = stacks.map(|stack| stack.allocated).collect();
    assert_eq!(allocated, [Held { bytes: 4242, blocks: 1 }], "{:?}", report.stacks);
}

/// What does not fit is recorded until somebody says so; nothing of it is in the report, also when it was over by then.
#[test]
fn what_does_not_fit_leaves_nothing() {
    require_root();
    let folder = scratch();
    let mut one = start(&folder, "fits");
    let by_path = format!("{}/fits", folder.path().display());
    let tracer = Run::bare().with_json().args(["--exe", &*by_path, "--scope", "file"]).start();
    for _ in 0..50 {
        Command::new("ls").arg("/").output().unwrap();
    }
    let (pids, report) = traced(tracer, &mut [&mut one]);
    assert_eq!(pids, sorted(&[&one]));
    assert_eq!(report.outstanding().bytes, 1_000_000);
    assert!(report.stacks.iter().all(|stack| stack.pid == pids[0]));
    report.assert_complete("what does not fit");
}

#[test]
fn nothing_that_fits_is_an_error() {
    require_root();
    for options in
        [["--comm", "no-such-name-anywhere"], ["--cgroup", "/no/such/cgroup"], ["--container", "no-such-name"]]
    {
        let outcome = Run::bare().args(options).finish();
        assert_eq!(outcome.code(), Some(1), "{options:?}");
        assert!(outcome.stderr.contains("no running process fits"), "{}", outcome.stderr);
    }
    let outcome = Run::bare().args(["--pid", "4194304,4194303"]).finish();
    assert_eq!(outcome.code(), Some(1));
    assert!(outcome.stderr.contains("there is no process 4194304"), "{}", outcome.stderr);
}
