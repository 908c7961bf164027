//! What tracing costs is told, and kept within what was asked for; what that leaves unseen is told, too.

use std::{thread, time::Duration};

use crate::harness::{Run, Target, alone, check_functions, compiled, probed_bytes, require_root, wait_until};

/// Threads that do nothing but allocate cost more than half of what they would use: probes go and come.
#[test]
fn what_costs_too_much_is_traced_in_windows() {
    require_root();
    let _turn = alone();
    // Which nobody else probes for all that map it.
    let (program, allocator) = (compiled("churn"), compiled("own allocator"));
    let mut target = Target::start_with(&program, &["2"], &[("LD_PRELOAD", allocator.to_str().unwrap())]);
    let tracer = Run::pid(target.pid()).args(["--max-overhead", "50"]).start();
    target.ask("keep");
    target.ask("start");
    let pid = target.pid();
    let file = allocator.file_name().unwrap().to_str().unwrap();
    let probes = move || probed_bytes(pid, file);
    wait_until("probes are away", || probes() == 0);
    let truth = target.ask("drop");
    wait_until("probes are there again", || probes() > 0);
    target.ask("rest");
    let outcome = tracer.stop();
    let report = outcome.report(3);
    assert!(target.is_alive());

    assert!(outcome.stdout.contains("to cost no more than 50%, probes were there for "), "{}", outcome.stdout);
    assert!(report.gaps().iter().any(|gap| gap == "unseen_spans"), "{:?}", report.gaps());
    let held = report.by_caller(Some(&program));
    let held = |function: &str| held.get(function).copied().unwrap_or_default();
    // Never freed, as far as it was seen before the first window ended: there, but who knows.
    let kept = held("keep_all_along").bytes;
    assert!(kept > 0 && kept <= truth.held["keep_all_along"].bytes, "{}", outcome.stdout);
    assert_eq!(report.uncertain_bytes("keep_all_along"), kept, "{}", outcome.stdout);
    // Freed while probes were away.
    let dropped = held("drop_in_the_storm").bytes;
    assert_eq!(dropped.saturating_sub(report.uncertain_bytes("drop_in_the_storm")), 0, "no leak is invented");
}

#[test]
fn what_costs_little_is_traced_all_the_time_and_told_with_its_cost() {
    require_root();
    let program = compiled("churn");
    let mut target = Target::start_with(&program, &["0"], &[]);
    let tracer = Run::pid(target.pid()).args(["--max-overhead", "1000%"]).start();
    target.ask("keep");
    thread::sleep(Duration::from_secs(1));
    let truth = target.ask("drop");
    let outcome = tracer.stop();
    let report = outcome.report(0);
    report.assert_complete("what costs little");
    check_functions("what costs little", &report, &truth, Some(&program));
    let cost = &report.json["cost"];
    // Each of 4,000 blocks is allocated, and half of them are freed; each way to see outcomes has at least a hit more.
    let hits = cost["probe_hits"].as_u64().unwrap();
    assert!((2 * 4000 + 2000..1_000_000).contains(&hits), "{cost}");
    let seconds = |name: &str| cost[name].as_f64().unwrap();
    assert!(seconds("probe_seconds") > 0.0 && seconds("tracer_seconds") > 0.0, "{cost}");
    assert!(outcome.stdout.contains(" probe hits took "), "{}", outcome.stdout);
}

/// Of processes that nobody has looked at before they ended, too.
#[test]
fn what_processes_have_used_that_ended_is_known() {
    require_root();
    let outcome = Run::launch(&[], [compiled("spends")]).finish();
    let report = outcome.report(0);
    let spent = outcome.stdout.lines().find_map(|line| line.strip_prefix("spent ")?.parse::<f64>().ok()).unwrap() / 1e6;
    let told = report.json["cost"]["process_seconds"].as_f64().unwrap();
    // Each lacks a tick, and what the kernel did for it when it was over.
    assert!(spent > 0.8 && (0.9..1.1).contains(&(told / spent)), "{told} s of {spent} s");
}
