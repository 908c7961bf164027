//! Code that is not in memory as it is in its file: probes there would have a process run what it does not have.

use std::{thread, time::Duration};

use crate::harness::{Outcome, Run, Target, compiled, require_root, slowness};

/// That a trace was not complete, and says so in these words.
fn assert_told(outcome: &Outcome, words: &str) {
    let report = outcome.report(3);
    assert_eq!(report.json["quality"]["complete"], false, "{}", report.json["quality"]);
    let notes = report.json["quality"]["notes"].to_string();
    assert!(notes.contains(words), "no {words:?} in {notes}");
}

/// Hooks of allocators do that, before anybody traces.
#[test]
fn code_that_was_patched_before_is_not_probed() {
    require_root();
    let program = compiled("patches");
    for scope in ["process", "file"] {
        let mut target = Target::start_with(&program, &["before"], &[]);
        // Another one of the same file, whose code is as it was.
        let mut other = Target::start(&program);
        let tracer = Run::pid(other.pid()).args(["--pid", &target.pid().to_string(), "--scope", scope]).start();
        let (truth, others_truth) = (target.ask("begin"), other.ask("begin"));
        assert!(truth.fact("calls_of_others") >= 400, "{}", truth.fact("calls_of_others"));
        let outcome = tracer.stop();
        assert!(target.is_alive() && other.is_alive(), "{scope}: a probe in code of its own ends a process");
        assert_told(&outcome, "runs code of its own in the place of");
        let report = outcome.report(3);
        let held = report.by_caller(None).get("then_held").map_or(0, |held| held.bytes);
        let expected = if scope == "process" { others_truth.held["then_held"].bytes } else { 0 };
        assert_eq!(held, expected, "{scope}");
    }
}

/// Who is not traced is not harmed either, though the probes are in all that map the file.
#[test]
fn code_that_somebody_else_has_patched_is_not_probed() {
    require_root();
    let program = compiled("patches");
    let mut bystander = Target::start_with(&program, &["before"], &[]);
    let mut target = Target::start(&program);
    let tracer = Run::pid(target.pid()).args(["--scope", "file"]).start();
    target.ask("begin");
    let truth = bystander.ask("begin");
    assert!(truth.fact("calls_of_others") >= 400);
    let outcome = tracer.stop();
    assert!(bystander.is_alive() && target.is_alive());
    assert_told(&outcome, "--scope=process leaves others alone");
}

/// The probes are gone then, whatever is in their place.
#[test]
fn code_that_is_patched_while_it_is_traced_is_told() {
    require_root();
    let program = compiled("patches");
    let mut target = Target::start_with(&program, &["during"], &[]);
    let tracer = Run::pid(target.pid()).start();
    let truth = target.ask("begin");
    thread::sleep(Duration::from_secs(1) * slowness());
    let outcome = tracer.stop();
    assert!(target.is_alive());
    assert_eq!(truth.fact("calls_of_others"), 300);
    assert_told(&outcome, "has put code of its own in the place of");
    let report = outcome.report(3);
    assert_eq!(report.by_caller(None)["first_held"].bytes, 100_000, "what was before is known");
}

/// The loader changes such code after it was mapped, with probes in it.
#[test]
fn code_with_relocations_is_not_probed() {
    require_root();
    let (program, allocator) = (compiled("churn"), compiled("own allocator, text relocations"));
    let preload = ("LD_PRELOAD", allocator.to_str().unwrap());
    let mut target = Target::start_with(&program, &[], &[preload]);
    let tracer = Run::pid(target.pid()).start();
    target.ask("begin");
    let outcome = tracer.stop();
    assert!(target.is_alive());
    assert_told(&outcome, "text relocations");
}
