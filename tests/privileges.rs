//! Rights that are enough without root, as docs/privileges.md has them: tracer as a user who has these capabilities and no others.

use std::{fs, path::Path, process::Command};

use crate::harness::{
    NOBODY, Outcome, Report, Run, STOCK, Target, alone, check_functions, compiled, copy_for_all, copy_program,
    go_program, require_root, with_capabilities,
};

/// What a trace needs, and what it needs to see all of other users' processes.
const TRACE: [&str; 4] = ["bpf", "perfmon", "sys_ptrace", "checkpoint_restore"];
const READ: &str = "dac_read_search";

/// Those for a trace, and before Linux 6.13 the one for perf events.
fn for_traces(more: &[&'static str]) -> Vec<&'static str> {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    let old = tracer::bpf::kernel_version(&release) < Some((6, 13));
    TRACE.iter().chain(old.then_some(&"sys_admin")).chain(more).copied().collect()
}

fn run(capabilities: &[&str], tracer: &Path) -> Run {
    let arguments = with_capabilities(capabilities);
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    Run::through("setpriv", &arguments, tracer)
}

/// The report that a run has printed.
#[track_caller]
fn printed(outcome: &Outcome) -> Report {
    assert_eq!(outcome.code(), Some(0), "{}", outcome.stderr);
    Report::parse(&outcome.stdout)
}

#[test]
fn enough_for_a_trace_of_another_users_process() {
    require_root();
    let (_folder, copy) = copy_for_all(Run::tracer());
    let _turn = alone();
    let mut target = Target::start(&compiled("family"));
    let pid = target.pid().to_string();
    let tracer = run(&for_traces(&[]), &copy).args(["--pid", &pid, "-o", "-", "--format", "json"]).start();
    let truth = target.ask("begin");
    let report = printed(&tracer.stop());
    report.assert_nothing_lost("family");
    assert_eq!(report.outstanding(), truth.total());
    assert_eq!(report.json["quality"]["complete"], true, "{}", report.json["quality"]);
    check_functions("family", &report, &truth, None);
}

#[test]
fn enough_for_one_whose_executable_is_deleted() {
    require_root();
    let (folder, copy) = copy_for_all(Run::tracer());
    let program = folder.path().join("deleted");
    copy_program(&compiled("family"), &program);
    let _turn = alone();
    let mut target = Target::start(&program);
    fs::remove_file(&program).unwrap();
    let pid = target.pid().to_string();
    let tracer = run(&for_traces(&[READ]), &copy).args(["--pid", &pid, "-o", "-", "--format", "json"]).start();
    let truth = target.ask("begin");
    let report = printed(&tracer.stop());
    assert_eq!(report.outstanding(), truth.total());
    assert_eq!(report.json["quality"]["complete"], true, "{}", report.json["quality"]);
}

#[test]
fn enough_for_goroutines() {
    require_root();
    let (_folder, copy) = copy_for_all(Run::tracer());
    let mut target = Target::start_with(&go_program("goroutines", STOCK), &["5"], &[]);
    target.ask("collect");
    let pid = target.pid().to_string();
    let goroutines = |capabilities: &[&str]| run(capabilities, &copy).args(["goroutines", "--pid", &pid]).finish();
    let outcome = goroutines(&["sys_ptrace", READ]);
    assert_eq!(outcome.code(), Some(0), "{}", outcome.stderr);
    assert!(outcome.stdout.contains("quality      complete"), "{}", outcome.stdout);
    let outcome = goroutines(&["sys_ptrace"]);
    assert_eq!(outcome.code(), Some(1), "{}", outcome.stdout);
    assert!(outcome.stderr.contains("CAP_DAC_READ_SEARCH"), "{}", outcome.stderr);
}

/// The file has the capabilities, and whoever runs it has none.
#[test]
#[expect(clippy::print_stdout, reason = "a test that is skipped says why")]
fn by_file_capabilities() {
    require_root();
    let (_folder, copy) = copy_for_all(Run::tracer());
    let set: Vec<String> = for_traces(&[READ]).iter().map(|name| format!("cap_{name}")).collect();
    let mut setcap = Command::new("setcap");
    match setcap.arg(format!("{}=ep", set.join(","))).arg(&copy).output() {
        Ok(output) if output.status.success() => {}
        failed => return println!("skipped: no file capabilities here: {failed:?}"),
    }
    let _turn = alone();
    let mut target = Target::start(&compiled("family"));
    let pid = target.pid().to_string();
    let tracer = Run::through("setpriv", &NOBODY, &copy).args(["--pid", &pid, "-o", "-", "--format", "json"]).start();
    let truth = target.ask("begin");
    let report = printed(&tracer.stop());
    assert_eq!(report.outstanding(), truth.total());
    assert_eq!(report.json["quality"]["complete"], true, "{}", report.json["quality"]);
}

/// As root: what a trace does not need is given up, by each of its threads and by its helper, before anything of a process is read.
#[test]
fn what_is_not_needed_is_given_up() {
    /// Of include/uapi/linux/capability.h: to load modules, to change users, to look into processes.
    const MODULES: u64 = 1 << 16;
    const USERS: u64 = 1 << 7;
    const PTRACE: u64 = 1 << 19;
    require_root();
    let _turn = alone();
    let mut target = Target::start(&compiled("family"));
    let tracer = Run::pid(target.pid()).start();
    let permitted = |status: &Path| {
        // Some threads are there for a moment only.
        let text = fs::read_to_string(status).ok()?;
        let line = text.lines().find_map(|line| line.strip_prefix("CapPrm:")).unwrap();
        Some(u64::from_str_radix(line.trim(), 16).unwrap())
    };
    let own = permitted(Path::new("/proc/self/status")).unwrap();
    assert_ne!(own & (MODULES | USERS), 0, "the tests have one");
    let mut threads: Vec<std::path::PathBuf> =
        fs::read_dir(format!("/proc/{}/task", tracer.pid())).unwrap().map(|thread| thread.unwrap().path()).collect();
    let children: String =
        threads.iter().map(|thread| fs::read_to_string(thread.join("children")).unwrap_or_default()).collect();
    assert_ne!(children, "", "a helper");
    threads.extend(children.split_whitespace().map(|pid| format!("/proc/{pid}").into()));
    for thread in threads {
        let Some(has) = permitted(&thread.join("status")) else { continue };
        assert_eq!((has & (MODULES | USERS), has & PTRACE), (0, PTRACE), "{}: {has:x}", thread.display());
    }
    let truth = target.ask("begin");
    let report = tracer.stop().report(0);
    assert_eq!(report.outstanding(), truth.total());
}
