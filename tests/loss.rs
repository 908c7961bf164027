//! Full load: nothing lost with the default buffer; and when events are lost, the loss is told and no leak is invented.

use std::{thread, time::Duration};

use nix::sys::signal::Signal;

use crate::harness::{Run, Target, alone, check_functions, compiled, require_root};

/// Two threads at full speed for seconds, with leaks before, within and after.
#[test]
fn nothing_is_lost_at_full_speed() {
    require_root();
    let _turn = alone();
    let program = compiled("churn");
    let mut target = Target::start_with(&program, &["2"], &[]);
    let tracer = Run::pid(target.pid()).start();
    for order in ["keep", "leak", "start"] {
        target.ask(order);
    }
    thread::sleep(Duration::from_secs(2));
    target.ask("leak");
    target.ask("drop");
    thread::sleep(Duration::from_secs(2));
    target.ask("rest");
    let truth = target.ask("leak");
    let report = tracer.stop().report(0);
    report.assert_nothing_lost("full speed");
    check_functions("full speed", &report, &truth, Some(&program));
    let allocations = truth.fact("operations");
    assert!(allocations > 100_000, "not much of a load: {allocations} allocations");
    assert_eq!(report.allocated().blocks, allocations + 4000 + 300, "every allocation was seen");
}

/// The tracer cannot read for two seconds, and its buffer is tiny.
#[test]
fn a_loss_is_told_and_makes_no_leak() {
    require_root();
    let _turn = alone();
    let program = compiled("churn");
    let mut target = Target::start_with(&program, &["2"], &[]);
    let tracer = Run::pid(target.pid()).args(["--buffer-size", "64KiB"]).start();
    target.ask("keep");
    thread::sleep(Duration::from_millis(500));
    tracer.signal(Signal::SIGSTOP);
    target.ask("start");
    thread::sleep(Duration::from_secs(1));
    target.ask("drop");
    thread::sleep(Duration::from_secs(1));
    target.ask("rest");
    tracer.signal(Signal::SIGCONT);
    thread::sleep(Duration::from_millis(500));
    let truth = target.ask("leak");
    let outcome = tracer.stop();
    let report = outcome.report(3);
    assert!(report.quality("lost_allocs") > 0 && report.quality("lost_frees") > 0, "{}", report.json["quality"]);
    assert_eq!(report.json["quality"]["complete"], false);
    assert!(["lost_allocs", "lost_frees"].iter().all(|gap| report.gaps().iter().any(|known| known == gap)));
    assert!(!outcome.stdout.contains("every allocation was recorded"), "{}", outcome.stdout);
    assert!(outcome.stdout.contains("lost"), "the text tells the loss: {}", outcome.stdout);

    let held = report.by_caller(Some(&program));
    let held = |function: &str| held.get(function).copied().unwrap_or_default();
    let truth = |function: &str| truth.held[function];
    // Never freed, allocated when nothing was lost.
    assert_eq!(held("keep_all_along"), truth("keep_all_along"), "what was kept before the loss");
    assert_eq!(held("leak_now_and_then"), truth("leak_now_and_then"), "what was leaked after the loss");
    // Freed while frees were lost: at most uncertain.
    for function in ["drop_in_the_storm", "churn"] {
        let uncertain = report.uncertain_bytes(function);
        let certain = held(function).bytes.saturating_sub(uncertain);
        assert!(
            certain <= truth(function).bytes,
            "{function}: {certain} bytes are called held with certainty (and {uncertain} uncertain)"
        );
    }
}
