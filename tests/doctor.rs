//! `tracer doctor` on this machine and on real processes: what it says is true, it names what is missing, and nothing of it stays.

use std::{
    fs,
    os::unix::fs::FileExt as _,
    process::{Command, Stdio},
    time::Duration,
};

use serde_json::Value;
use tracer::bpf::named_objects;

use crate::harness::{
    NOBODY, Outcome, Run, STOCK, Target, compiled, copy_for_all, copy_program, go_program, probed_bytes, program,
    require_root, scratch, wait_until, with_capabilities,
};

/// What objects of the kernel are called that trials make.
const NAME: &str = "tracer_doctor";

fn parsed(outcome: &Outcome) -> Value {
    serde_json::from_str(&outcome.stdout)
        .unwrap_or_else(|error| panic!("{error}: {}{}", outcome.stdout, outcome.stderr))
}

/// The check of this name.
#[track_caller]
fn check<'a>(checks: &'a Value, name: &str) -> &'a Value {
    let found = checks.as_array().unwrap().iter().find(|check| check["name"] == name);
    found.unwrap_or_else(|| panic!("no {name} in {checks:#}"))
}

/// Where traces work (other tests say so), it says that they will, and that what they rest on does.
#[test]
fn this_machine_can_be_traced() {
    require_root();
    let outcome = Run::bare().args(["doctor", "--json"]).finish();
    let report = parsed(&outcome);
    assert_eq!(outcome.code(), Some(0), "{report:#}");
    assert_eq!((report["format"].as_str(), report["version"].as_u64()), (Some("tracer-doctor"), Some(1)));
    assert_eq!(report["verdict"], "complete");
    assert!(report["process"].is_null());
    for name in
        ["CAP_BPF", "BPF maps", "BPF ring buffer", "bpf_loop", "BTF", "uprobes by perf events", "all BPF programs"]
    {
        assert_eq!(check(&report["machine"], name)["status"], "works", "{report:#}");
    }
    let multi = check(&report["machine"], "uprobes by multi links")["status"].as_str();
    let sessions = check(&report["machine"], "uprobe sessions")["status"].as_str();
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    let expected = if tracer::bpf::kernel_version(&release) >= Some((6, 13)) {
        [Some("works"); 2]
    } else {
        assert!(multi != Some("works") && sessions != Some("works"), "they are not used: {report:#}");
        [multi, Some("not needed")]
    };
    assert_eq!([multi, sessions], expected, "{report:#}");
    let recorded = check(&report["machine"], "recording of mmap")["status"] == "works";
    assert_eq!(recorded, tracer::bpf::kernel_version(&release) >= Some((6, 14)), "{report:#}");
    wait_until("its objects are gone", || named_objects(NAME).unwrap() == 0);
}

/// Whoever has no rights is told which are missing, by their names and what each is for.
#[test]
fn an_unprivileged_user_is_told_what_is_missing() {
    require_root();
    let (_folder, copy) = copy_for_all(Run::tracer());
    let outcome = Run::through("setpriv", &NOBODY, &copy).args(["doctor", "--json"]).finish();
    let report = parsed(&outcome);
    assert_eq!((outcome.code(), report["verdict"].as_str()), (Some(1), Some("nothing")), "{report:#}");
    for name in
        ["CAP_BPF", "CAP_PERFMON", "CAP_SYS_PTRACE", "CAP_CHECKPOINT_RESTORE", "BPF programs", "all BPF programs"]
    {
        let check = check(&report["machine"], name);
        assert_eq!(
            (check["status"].as_str(), check["effect"].as_str()),
            (Some("missing"), Some("nothing")),
            "{check:#}"
        );
        assert!(check["advice"].as_str().is_some_and(|advice| advice.contains("sudo")), "{check:#}");
    }
    assert_eq!(check(&report["machine"], "BTF")["status"], "works", "everybody may read it");
}

/// One capability less, and that one is named; what does not need it is said to work.
#[test]
fn the_one_capability_that_is_missing_is_named() {
    require_root();
    let (_folder, copy) = copy_for_all(Run::tracer());
    const ALL: [(&str, &str); 4] = [
        ("bpf", "CAP_BPF"),
        ("perfmon", "CAP_PERFMON"),
        ("sys_ptrace", "CAP_SYS_PTRACE"),
        ("checkpoint_restore", "CAP_CHECKPOINT_RESTORE"),
    ];
    for (left_out, name) in ALL {
        let others: Vec<&str> = ALL.iter().map(|(other, _)| *other).filter(|other| *other != left_out).collect();
        let arguments = with_capabilities(&others);
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        let outcome = Run::through("setpriv", &arguments, &copy).args(["doctor", "--json"]).finish();
        let report = parsed(&outcome);
        assert_eq!(outcome.code(), Some(1), "{report:#}");
        let missing: Vec<&str> = report["machine"]
            .as_array()
            .unwrap()
            .iter()
            .filter(|check| check["section"] == "rights" && check["effect"] == "nothing")
            .filter_map(|check| check["name"].as_str())
            // Of older kernels.
            .filter(|name| *name != "CAP_SYS_ADMIN")
            .collect();
        assert_eq!(missing, [name], "{report:#}");
        let programs = check(&report["machine"], "BPF programs");
        let expected = if matches!(left_out, "bpf" | "perfmon") { "missing" } else { "works" };
        assert_eq!(programs["status"], expected, "without {name}: {programs:#}");
    }
}

/// What fails for want of rights points there.
#[test]
fn who_lacks_rights_is_sent_to_it() {
    require_root();
    let (_folder, copy) = copy_for_all(Run::tracer());
    let outcome = Run::through("setpriv", &NOBODY, &copy).args(["--pid", "1"]).finish();
    assert_eq!(outcome.code(), Some(1));
    assert!(outcome.stderr.contains("tracer doctor"), "{}", outcome.stderr);
}

/// What is said of a process, and how it ended.
#[track_caller]
fn of(pid: u32, code: i32) -> Value {
    let outcome = Run::bare().args(["doctor", "--json", "--pid", &pid.to_string()]).finish();
    let report = parsed(&outcome);
    assert_eq!(outcome.code(), Some(code), "{report:#}");
    let words = ["complete", "nothing", "", "incomplete"];
    assert_eq!(report["verdict"], words[code as usize]);
    report["process"].clone()
}

/// The byte that a process has in its memory where it has mapped this offset of the file at `path`.
#[track_caller]
fn byte_of(pid: u32, path: &str, offset: u64) -> u8 {
    let maps = fs::read_to_string(format!("/proc/{pid}/maps")).unwrap();
    let hex = |text: &str| u64::from_str_radix(text, 16).unwrap();
    let place = maps.lines().filter(|line| line.ends_with(path) && line.contains(" r-xp ")).find_map(|line| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let (start, end) = fields[0].split_once('-')?;
        let inside = offset.checked_sub(hex(fields[2])).filter(|inside| *inside < hex(end) - hex(start))?;
        Some(hex(start) + inside)
    });
    let mut byte = [0];
    let memory = fs::File::open(format!("/proc/{pid}/mem")).unwrap();
    memory.read_exact_at(&mut byte, place.unwrap_or_else(|| panic!("{offset:#x} of {path} in {maps}"))).unwrap();
    byte[0]
}

/// The instructions that it names are those that a trace probes, and it probes none itself.
#[test]
fn what_would_be_probed_is_what_is_probed() {
    const BREAKPOINT: u8 = 0xcc;
    require_root();
    let mut target = Target::start(&compiled("deep"));
    let (pid, opened) = (target.pid(), || fs::read_dir(format!("/proc/{}/fd", target.pid())).unwrap().count());
    let before = (opened(), fs::read_to_string(format!("/proc/{pid}/maps")).unwrap());
    let process = of(pid, 0);
    assert_eq!(before, (opened(), fs::read_to_string(format!("/proc/{pid}/maps")).unwrap()), "it is as it was");
    // Commands of other tests may be traced meanwhile with everybody who maps their C library.
    wait_until("its probes are gone", || probed_bytes(pid, "libc.so.6") == 0);
    wait_until("its objects are gone", || named_objects(NAME).unwrap() == 0);
    let functions = process["functions"].as_array().unwrap();
    let place =
        |function: &Value| byte_of(pid, function["file"].as_str().unwrap(), function["offset"].as_u64().unwrap());
    for name in ["malloc", "calloc", "realloc", "free", "posix_memalign"] {
        let function = functions.iter().find(|function| function["function"] == name).unwrap();
        assert!(function["instruction"].as_str().is_some_and(|text| text.len() > 2), "{function}");
        assert_eq!(function["cheap"], true, "{function}");
        assert_eq!(function["outcome"].is_null(), name == "free", "{function}");
        wait_until("nobody probes it", || place(function) != BREAKPOINT);
    }
    let tracer = Run::pid(pid).start();
    for function in functions {
        assert_eq!(place(function), BREAKPOINT, "{function}");
    }
    target.ask("begin");
    tracer.stop().report(0);
}

/// A program of this machine's that has no names but exported ones, an allocator in a library, and complete unwind information.
#[test]
fn of_redis() {
    require_root();
    let folder = scratch();
    let mut command = Command::new(program("redis-server", "redis-server"));
    command.args(["--save", "", "--appendonly", "no", "--port", "0", "--unixsocket"]);
    command.arg(folder.path().join("socket")).stdin(Stdio::null()).stdout(Stdio::null());
    let mut redis = command.spawn().unwrap();
    wait_until("redis answers", || folder.path().join("socket").exists());
    let process = of(redis.id(), 0);
    redis.kill().unwrap();
    redis.wait().unwrap();
    let functions = process["functions"].as_array().unwrap();
    let of_jemalloc = |function: &&Value| function["file"].as_str().is_some_and(|file| file.contains("libjemalloc"));
    for name in ["malloc", "free", "mallocx", "sdallocx"] {
        let function = functions.iter().filter(of_jemalloc).find(|function| function["function"] == name);
        assert!(function.is_some_and(|function| function["instruction"] != ""), "{name} in {functions:#?}");
    }
    let files = process["files"].as_array().unwrap();
    let own = files
        .iter()
        .find(|file| file["path"] == "/usr/bin/redis-check-rdb" || file["path"].as_str().unwrap().contains("redis"));
    let own = own.unwrap_or_else(|| panic!("{files:#?}"));
    assert!(own["code_bytes"].as_u64().unwrap() > 500_000 && own["problem"].is_null(), "{own}");
    assert!(own["uncovered_bytes"].as_u64().unwrap() < 10_000, "{own}");
    assert_eq!((own["symbols"].as_bool(), own["debug_information"].as_bool()), (Some(false), Some(false)), "{own}");
    assert_eq!(check(&process["checks"], "names")["status"], "degraded");
    assert!(process["memory"]["anonymous"].as_u64().unwrap() > 1 << 20);
}

/// No library at all: the allocator is in the executable, which also says how to unwind itself only by its code.
#[test]
fn of_a_static_musl_program() {
    require_root();
    let target = Target::start(&compiled("no tables, static musl"));
    let process = of(target.pid(), 0);
    let path = compiled("no tables, static musl");
    let functions = process["functions"].as_array().unwrap();
    let malloc = functions.iter().find(|function| function["function"] == "malloc").unwrap();
    assert_eq!(malloc["file"].as_str(), path.to_str());
    let files = process["files"].as_array().unwrap();
    assert_eq!(files.len(), 1, "{files:#?}");
    assert!(files[0]["synthesized_bytes"].as_u64().unwrap() > 1000, "{files:#?}");
    assert_eq!(files[0]["symbols"], true);
}

/// A Go program: its version, and how its heap is seen.
#[test]
fn of_a_go_program() {
    require_root();
    let target = Target::start_with(&go_program("goroutines", STOCK), &["5"], &[]);
    let process = of(target.pid(), 0);
    let checks = process["checks"].as_array().unwrap();
    let go: Vec<&str> =
        checks.iter().filter(|check| check["section"] == "Go").filter_map(|check| check["found"].as_str()).collect();
    for words in ["built with go1.", "allocations can be sampled", "MemProfileRate"] {
        assert!(go.iter().any(|found| found.contains(words)), "{words:?} in {go:#?}");
    }
    assert!(go.iter().any(|found| found.contains("goroutines can be read")), "{go:#?}");
    assert_eq!(process["files"][0]["go_table"], true);
}

/// What cannot be traced, in the words that a trace has for it.
#[test]
fn of_what_cannot_be_traced() {
    require_root();
    let nothing = |pid: u32, words: &str| {
        let process = of(pid, 1);
        let found = process["checks"].to_string();
        assert!(found.contains(words), "{words:?} in {found}");
    };
    let mut ended = Command::new("true").spawn().unwrap();
    let status = || fs::read_to_string(format!("/proc/{}/stat", ended.id())).unwrap();
    wait_until("it is a zombie", || status().contains(") Z "));
    nothing(ended.id(), "zombie");
    let pid = ended.id();
    ended.wait().unwrap();
    nothing(pid, "no process");
    nothing(Target::start(&compiled("32 bits")).pid(), "32-bit");
    nothing(Target::start(&compiled("no allocator")).pid(), "no malloc");
    nothing(2, "kernel thread");
}

/// A process that ends while it is looked at is told as that, or as one that is not there, at whatever moment.
#[test]
fn of_a_process_that_ends_meanwhile() {
    require_root();
    for run in 0..8 {
        let mut target = Command::new("sleep").arg("100").stdout(Stdio::null()).spawn().unwrap();
        let running = Run::bare().args(["doctor", "--pid", &target.id().to_string()]).spawn();
        std::thread::sleep(Duration::from_millis(run * 97 % 700));
        target.kill().unwrap();
        target.wait().unwrap();
        let outcome = running.outcome();
        assert!(matches!(outcome.code(), Some(0 | 1)), "{}{}", outcome.stdout, outcome.stderr);
        let told = ["ended", "exited", "no process"].iter().any(|words| outcome.stdout.contains(words));
        assert_eq!(told, outcome.code() == Some(1), "{}", outcome.stdout);
    }
}

/// Of another user's process it says which right is missing to look at it.
#[test]
fn of_a_process_of_another_user() {
    require_root();
    let target = Target::start(&compiled("deep"));
    let (_folder, copy) = copy_for_all(Run::tracer());
    let outcome = Run::through("setpriv", &NOBODY, &copy).args(["doctor", "--pid", &target.pid().to_string()]).finish();
    assert_eq!(outcome.code(), Some(1), "{}", outcome.stdout);
    let line = outcome.stdout.lines().find(|line| line.contains("process: cannot look at process"));
    assert!(line.is_some_and(|line| line.contains("CAP_SYS_PTRACE")), "{}", outcome.stdout);
}

/// Names that processes and files choose do not reach the terminal as they are.
#[test]
fn hostile_names_are_harmless() {
    require_root();
    let folder = scratch();
    let program = folder.path().join("\u{1b}[2Jevil");
    copy_program(&compiled("deep"), &program);
    let target = Target::start(&program);
    let outcome = Run::bare().args(["doctor", "--pid", &target.pid().to_string()]).finish();
    assert_eq!(outcome.code(), Some(0), "{}", outcome.stdout);
    assert!(outcome.stdout.contains(r"\u{1b}[2Jevil") && !outcome.stdout.contains('\u{1b}'), "{}", outcome.stdout);
}
