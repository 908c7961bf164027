//! What is said to grow, and how fast, of programs that know what does.

use std::collections::BTreeMap;

use serde_json::Value;

use crate::harness::{Report, Run, Target, compiled, require_root};

mod varied;

/// Bytes per second that `leak` leaks.
const LEAK: f64 = 1_000_000.0;

/// The stacks of a report by the function that called the allocator.
fn by_function(report: &Report) -> BTreeMap<&str, &Value> {
    let stacks = report.json["stacks"].as_array().unwrap();
    let names = report.stacks.iter().map(|stack| stack.caller());
    names.zip(stacks).collect()
}

/// Traces the program with these options, from before it begins or when it is at it.
fn trace(argument: &str, options: &[&str]) -> Report {
    require_root();
    let program = compiled("grows");
    let mut target = Target::start_with(&program, &[argument], &[]);
    let mut running = Run::pid(target.pid()).args(options).spawn();
    running.wait_for_line("tracing ");
    target.ask("start");
    let outcome = running.outcome();
    assert_eq!(outcome.code(), Some(0), "{}", outcome.stderr);
    outcome.report(0)
}

/// That the leak is told at its rate and nothing else is said to grow. Four errors: one run of a million may be beyond.
#[track_caller]
fn check(report: &Report, held: &[&str]) {
    let stacks = by_function(report);
    let leak = stacks["leak"];
    assert_eq!(leak["trend"], "growing", "{leak}");
    let number = |name: &str| leak[name].as_f64().unwrap();
    let (rate, error) = (number("growth_bytes_per_second"), number("growth_error"));
    assert!((rate - LEAK).abs() <= 4.0 * error && error < LEAK / 4.0, "{rate} ± {error}");
    for name in held {
        assert!(stacks.contains_key(name), "{name} holds nothing");
    }
    for (name, stack) in stacks.iter().filter(|(name, _)| **name != "leak") {
        assert!(stack["trend"] != "growing", "{name}: {stack}");
    }
}

#[test]
fn a_leak_grows_and_nothing_else_does() {
    check(&trace("all", &["--duration", "3s"]), &["keep", "fill", "cycle"]);
}

/// All that is old enough has been so only for a second; what is held was not held before.
#[test]
fn blocks_of_an_age_grow_as_fast_as_all() {
    check(&trace("all", &["--duration", "3s", "--min-age", "2s"]), &["keep", "fill"]);
}

/// A cache that was full before, and holds new blocks in the place of old ones: to the tracer it looks like a leak.
#[test]
fn what_replaces_blocks_from_before_does_not_grow() {
    let report = trace("ring", &["--duration", "2s"]);
    let stacks = by_function(&report);
    assert_eq!(stacks["replace"]["trend"], "too-early", "{}", stacks["replace"]);
    assert!(stacks["replace"]["outstanding_blocks"].as_u64() > Some(100), "{}", stacks["replace"]);
}
