//! `tracer doctor` on this machine and on real processes: what it says is true, it names what is missing, and nothing of it stays.

use std::{fs, os::unix::fs::PermissionsExt as _};

use serde_json::Value;
use tracer::bpf::named_objects;

use crate::harness::{Outcome, Run, copy_program, require_root, scratch, wait_until};

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

/// A copy of the tracer that every user may run.
fn copy_for_all() -> (tempfile::TempDir, std::path::PathBuf) {
    let folder = scratch();
    let copy = folder.path().join("tracer");
    copy_program(Run::tracer(), &copy);
    fs::set_permissions(&copy, fs::Permissions::from_mode(0o755)).unwrap();
    (folder, copy)
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
    wait_until("its objects are gone", || named_objects(NAME).unwrap() == 0);
}

/// Whoever has no rights is told which are missing, by their names and what each is for.
#[test]
fn an_unprivileged_user_is_told_what_is_missing() {
    require_root();
    let (_folder, copy) = copy_for_all();
    let outcome = Run::through("setpriv", &["--reuid=65534", "--regid=65534", "--clear-groups"], &copy)
        .args(["doctor", "--json"])
        .finish();
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
    let (_folder, copy) = copy_for_all();
    const ALL: [(&str, &str); 4] = [
        ("bpf", "CAP_BPF"),
        ("perfmon", "CAP_PERFMON"),
        ("sys_ptrace", "CAP_SYS_PTRACE"),
        ("checkpoint_restore", "CAP_CHECKPOINT_RESTORE"),
    ];
    for (left_out, name) in ALL {
        let others: Vec<String> =
            ALL.iter().filter(|(other, _)| *other != left_out).map(|(other, _)| format!("+{other}")).collect();
        let set = format!("-all,{}", others.join(","));
        let sets = ["--bounding-set=", "--inh-caps=", "--ambient-caps="].map(|option| format!("{option}{set}"));
        let user = ["--reuid=65534", "--regid=65534", "--clear-groups"];
        let arguments: Vec<&str> = user.into_iter().chain(sets.iter().map(String::as_str)).collect();
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
    let (_folder, copy) = copy_for_all();
    let outcome = Run::through("setpriv", &["--reuid=65534", "--regid=65534", "--clear-groups"], &copy)
        .args(["--pid", "1"])
        .finish();
    assert_eq!(outcome.code(), Some(1));
    assert!(outcome.stderr.contains("tracer doctor"), "{}", outcome.stderr);
}
