//! What the kernel says of a process's memory beside what was recorded: growth that allocations do not explain is told, with its
//! size and what it may be, and growth that they explain is not. Ended processes hold and grow nothing.

use std::{fs, io::Write as _, thread, time::Duration};

use serde_json::Value;

use crate::harness::{Report, Run, Target, compiled, require_root, slowness};

/// What the program fills, bytes.
const SIZE: f64 = 48.0 * 1024.0 * 1024.0;

/// Traces the program while it does each of `commands`; the report, which ends with status `code`, and its text.
fn trace(commands: &[&str], code: i32) -> (Report, String) {
    require_root();
    let mut target = Target::start(&compiled("memory"));
    let tracer = Run::pid(target.pid()).start();
    for command in commands {
        target.ask(command);
    }
    let outcome = tracer.stop();
    (outcome.report(code), outcome.stdout)
}

fn memory(report: &Report) -> &Value {
    &report.json["processes"][0]["memory"]
}

#[track_caller]
fn assert_is_nearly(memory: &Value, field: &str, bytes: f64) {
    let value = memory[field].as_f64().unwrap();
    assert!((value / bytes - 1.0).abs() < 0.1, "{field} is {value}, not {bytes}: {memory}");
}

#[test]
fn memory_that_the_program_maps_itself_is_no_allocation_and_has_an_owner() {
    let (report, text) = trace(&["leak", "map"], 3);
    let totals = &report.json["mappings"]["totals"];
    assert_eq!((&totals["bytes"], &totals["ranges"]), (&(48 << 20).into(), &1.into()), "{totals}");
    assert_is_nearly(totals, "resident_bytes", SIZE);
    assert!(text.contains("  mapped       48.0 MiB (50,331,648 bytes) in 1 range by the program itself"), "{text}");
    let memory = memory(&report);
    assert_is_nearly(memory, "grew", 2.0 * SIZE);
    assert_is_nearly(memory, "recorded", SIZE);
    assert_is_nearly(memory, "unexplained", SIZE);
    assert_is_nearly(memory, "mapped_by_stacks", SIZE);
    assert_eq!((&memory["reasons"][0]["kind"], &memory["explained"]), (&"mmap".into(), &false.into()), "{memory}");
    assert!(text.contains(" of it in what stacks of the program have mapped (M1 and on)"), "{text}");
    assert_eq!(report.gaps(), ["unexplained_bytes"]);
    assert_eq!(report.json["quality"]["complete"], false);
    assert!(text.contains("  quality      INCOMPLETE\n") && text.contains("mapped by the process itself"), "{text}");
}

#[test]
fn a_leak_explains_how_memory_grew() {
    let (report, text) = trace(&["leak"], 0);
    let memory = memory(&report);
    assert_is_nearly(memory, "grew", SIZE);
    assert_is_nearly(memory, "recorded", SIZE);
    assert_eq!((&memory["explained"], report.gaps().len()), (&true.into(), 0), "{memory}");
    assert!(text.contains("  memory       anonymous memory 48."), "{text}");
}

/// The C library keeps what is freed in the arenas of threads.
#[test]
fn memory_that_is_freed_and_kept_is_explained() {
    let (report, text) = trace(&["churn"], 0);
    let memory = memory(&report);
    assert_is_nearly(memory, "grew", SIZE);
    assert!(memory["recorded"].as_f64() < Some(SIZE / 10.0), "{memory}");
    assert_eq!((&memory["explained"], report.gaps().len()), (&true.into(), 0), "{memory}");
    assert!(text.contains("quality      complete"), "{text}");
}

/// Mappings that are cut, or move, have no more memory for that, and what comes to another part of one is new.
#[test]
fn memory_from_before_is_known_by_where_it_was() {
    require_root();
    let huge_pages = fs::read_to_string("/sys/kernel/mm/transparent_hugepage/enabled");
    if huge_pages.is_ok_and(|enabled| enabled.contains("[always]")) {
        let name = "memory_from_before_is_known_by_where_it_was";
        return writeln!(std::io::stderr(), "{name}: NOT RUN, huge pages come unasked, so nobody looks").unwrap();
    }
    for (command, unexplained) in [("protect", 0.0), ("guard", 0.0), ("move", 0.0), ("next", SIZE / 2.0)] {
        let mut target = Target::start(&compiled("moves"));
        let tracer = Run::pid(target.pid()).args(["--mmap=always"]).start();
        target.ask(command);
        let report = tracer.stop().report(if unexplained > 0.0 { 3 } else { 0 });
        let memory = memory(&report);
        let told = memory["unexplained"].as_f64().unwrap();
        assert!((told - unexplained).abs() < SIZE / 50.0, "{command}: {memory}");
        assert_eq!(memory["explained"], unexplained == 0.0, "{command}: {memory}");
    }
}

/// However late a child is looked at first, it does not have from its parent what it has mapped itself.
#[test]
fn what_children_map_before_they_are_looked_at_is_new() {
    require_root();
    let mut target = Target::start(&compiled("moves"));
    let tracer = Run::pid(target.pid()).args(["--mmap=always", "--scope=file"]).start();
    target.ask("fork");
    // It is read a moment after it began.
    thread::sleep(Duration::from_secs(1) * slowness());
    let report = tracer.stop().report(3);
    let processes = report.json["processes"].as_array().unwrap();
    let child = processes.iter().find(|process| process["parent_pid"] == target.pid()).unwrap();
    let memory = &child["memory"];
    assert_is_nearly(memory, "grew", SIZE);
    assert_is_nearly(memory, "unexplained", SIZE);
    assert_eq!((&memory["reasons"][0]["kind"], &memory["explained"]), (&"mmap".into(), &false.into()), "{memory}");
    let parent = processes.iter().find(|process| process["pid"] == target.pid()).unwrap();
    assert_eq!(parent["memory"]["explained"], true, "{parent}");
}

#[test]
fn a_process_that_allocates_nothing_is_never_complete() {
    let (report, text) = trace(&[], 3);
    assert_eq!(report.gaps(), ["silent_targets"]);
    assert_eq!(report.json["quality"]["complete"], false);
    assert!(text.contains("- no allocation was seen") && !text.contains("every allocation"), "{text}");
}

/// It is looked at while it runs, and what was seen last counts.
#[test]
fn memory_of_a_command_that_has_ended_is_known() {
    require_root();
    let program = compiled("memory");
    let outcome = Run::launch(&[], [program.as_os_str(), "map".as_ref()]).finish();
    let report = outcome.report(3);
    let memory = memory(&report);
    assert_is_nearly(memory, "unexplained", SIZE);
    assert!(memory["as_of_seconds"].as_f64() > Some(0.0), "{memory}");
    assert!(report.json["processes"][0]["ended_after_seconds"].as_f64() > Some(0.0), "{}", report.json["processes"]);
    assert!(report.gaps().contains(&"unexplained_bytes".to_owned()), "{:?}", report.gaps());
}

#[test]
fn ended_processes_hold_and_grow_nothing() {
    require_root();
    let program = compiled("memory");
    let (mut ends, mut stays) = (Target::start(&program), Target::start(&program));
    let (ended, stayed) = (ends.pid(), stays.pid());
    let tracer = Run::pid(ended).args(["--pid", &stayed.to_string()]).start();
    let [held, _] = [ends.ask("leak"), stays.ask("leak")].map(|truth| truth.held["leaks"]);
    ends.finish();
    thread::sleep(Duration::from_secs(1) * slowness());
    let outcome = tracer.stop();
    let report = outcome.report(0);
    assert_eq!((report.of_process(ended).below("main").bytes, report.outstanding()), (0, held), "{:?}", report.json);
    let target = |pid: u32| {
        let processes = report.json["processes"].as_array().unwrap();
        processes.iter().find(|process| process["pid"] == pid).unwrap()
    };
    assert!(target(stayed)["ended_after_seconds"].is_null() && target(ended)["ended_after_seconds"].is_f64());
    let stacks = report.json["stacks"].as_array().unwrap();
    let at_end: u64 = stacks.iter().filter_map(|stack| stack["at_end_bytes"].as_u64()).sum();
    assert_eq!(at_end, held.bytes, "what it held when it ended");
    let text = &outcome.stdout;
    let head = text.lines().find(|line| line.contains(&format!("(pid {ended})"))).unwrap();
    assert!(head.starts_with("  process ") && head.contains(", ended after "), "{text}");
    assert!(text.contains(" were held by processes when they ended: not outstanding\n"), "{text}");
    let listed = |line: &str| line.starts_with("    process ") && line.ends_with(&format!("(pid {ended})"));
    assert!(!text.lines().any(listed), "its stacks are listed: {text}");
}

/// Nobody is left to hold anything: what was not freed is what is asked for, and does not grow.
#[test]
fn what_the_only_process_did_not_free_by_its_end_is_shown() {
    require_root();
    let mut target = Target::start(&compiled("memory"));
    let tracer = Run::pid(target.pid()).start();
    let held = target.ask("leak").held["leaks"];
    thread::sleep(Duration::from_secs(2) * slowness());
    target.finish();
    let outcome = tracer.outcome();
    assert_eq!(outcome.report(0).outstanding(), held);
    let text = &outcome.stdout;
    assert!(text.contains(", not freed by its end\n") && !text.contains("growing"), "{text}");
}

/// What children do that a process had before it was traced is not seen; that it has some is said.
#[test]
fn a_process_that_leaves_the_work_to_its_children_says_so() {
    require_root();
    let mut shell = std::process::Command::new("sh").args(["-c", "sleep 60 & wait"]).spawn().unwrap();
    let tracer = Run::pid(shell.id()).start();
    let outcome = tracer.stop();
    let children = fs::read_to_string(format!("/proc/{0}/task/{0}/children", shell.id())).unwrap();
    for child in children.split_whitespace() {
        let child = nix::unistd::Pid::from_raw(child.parse().unwrap());
        nix::sys::signal::kill(child, nix::sys::signal::Signal::SIGKILL).unwrap();
    }
    shell.wait().unwrap();
    let report = outcome.report(3);
    let memory = memory(&report);
    assert_eq!(memory["reasons"][0]["kind"], "children", "{memory}");
    assert!(outcome.stdout.contains("what its child allocated is not seen"), "{}", outcome.stdout);
}
