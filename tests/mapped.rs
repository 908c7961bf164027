//! Memory that programs map themselves: to the page, by the function that has mapped it, apart from the heap.

use std::collections::BTreeMap;

use serde_json::Value;

use crate::harness::{Held, Report, Run, Target, Truth, compiled, require_root};

/// Bytes that may be used, and bytes that are only reserved.
type Mapped = (u64, u64);

/// What the functions that the truth names have mapped: of the frames of each stack the innermost of them counts.
fn by_function(report: &Report, truth: &Truth, by_allocator: bool) -> BTreeMap<String, Mapped> {
    let mut mapped: BTreeMap<String, Mapped> = BTreeMap::new();
    for stack in stacks(report).iter().filter(|stack| stack["by_allocator"] == by_allocator) {
        let frames = stack["frames"].as_array().unwrap().iter().rev();
        let names: Vec<&str> = frames.filter_map(|frame| frame["function"].as_str()).collect();
        if let Some(name) = names.iter().find(|name| truth.held.contains_key(**name)) {
            let sum = mapped.entry((*name).to_owned()).or_default();
            sum.0 += number(stack, "bytes");
            sum.1 += number(stack, "reserved_bytes");
        }
    }
    mapped.retain(|_, mapped| *mapped != (0, 0));
    mapped
}

fn stacks(report: &Report) -> &[Value] {
    report.json["mappings"]["stacks"].as_array().unwrap()
}

fn number(value: &Value, name: &str) -> u64 {
    value[name].as_u64().unwrap_or_else(|| panic!("no number {name} in {value}"))
}

/// Checks that what was mapped is the truth, and that no total of the heap has any of it.
#[track_caller]
fn check(report: &Report, truth: &Truth) {
    let expected: BTreeMap<String, Mapped> =
        truth.held.iter().map(|(name, Held { bytes, blocks })| (name.clone(), (*bytes, *blocks))).collect();
    let expected: BTreeMap<_, _> = expected.into_iter().filter(|(_, mapped)| *mapped != (0, 0)).collect();
    assert_eq!(by_function(report, truth, false), expected, "{:?}", report.gaps());
    assert_eq!(report.gap("lost_remappings"), 0);
    for (name, by_allocator) in [("totals", false), ("by_allocators", true)] {
        let own = stacks(report).iter().filter(|stack| stack["by_allocator"] == by_allocator);
        let sum: u64 = own.map(|stack| number(stack, "bytes")).sum();
        assert_eq!(number(&report.json["mappings"][name], "bytes"), sum);
    }
    assert_eq!(report.below("allocates"), Held { bytes: 1 << 20, blocks: 1 });
    let by_allocators = by_function(report, truth, true);
    assert_eq!(by_allocators.keys().collect::<Vec<_>>(), ["allocates"], "a block of its own mapping");
    assert!(by_allocators["allocates"].0 >= 1 << 20, "{by_allocators:?}");
}

#[test]
fn every_kind_of_change_is_exact_to_the_page() {
    require_root();
    let mut target = Target::start(&compiled("mapped"));
    let tracer = Run::pid(target.pid()).args(["--scope=file"]).start();
    let truth = target.ask("go");
    let outcome = tracer.stop();
    check(&outcome.report(0), &truth);
    assert!(outcome.stdout.contains("\nMapped by the program itself (mmap), no part of the heap above:\n"));
}

/// From its first instruction, and with what is left of it when it ends.
#[test]
fn what_a_command_maps_is_exact_to_the_page() {
    require_root();
    let program = compiled("mapped");
    let running = Run::launch(&[], [program.as_os_str(), "alone".as_ref()]).start();
    let outcome = running.outcome();
    let lines = outcome.stdout.lines().filter(|line| line.starts_with("truth "));
    let mut truth = Truth::default();
    lines.for_each(|line| truth.read(line));
    check(&outcome.report(0), &truth);
}

#[test]
fn what_is_touched_is_resident_and_nothing_else() {
    require_root();
    let mut target = Target::start(&compiled("mapped"));
    let tracer = Run::pid(target.pid()).args(["--scope=file"]).start();
    let truth = target.ask("go");
    let report = tracer.stop().report(0);
    let resident = |function: &str| -> u64 {
        let has = |stack: &&Value| {
            stack["frames"].as_array().unwrap().iter().any(|frame| frame["function"].as_str() == Some(function))
        };
        stacks(&report).iter().filter(has).map(|stack| number(stack, "resident_bytes")).sum()
    };
    assert!(truth.held["maps"].bytes > 3 * 4096);
    assert_eq!((resident("maps"), resident("maps_at_hint")), (3 * 4096, 0));
}

/// What the stacks of one function have after one command: bytes, reserved ones, and resident ones.
fn of_moves(command: &str, function: &str, code: i32) -> ((u64, u64, u64), String) {
    require_root();
    let mut target = Target::start(&compiled("moves"));
    let tracer = Run::pid(target.pid()).args(["--mmap=always", "--scope=file"]).start();
    target.ask(command);
    let outcome = tracer.stop();
    let report = outcome.report(code);
    let has = |stack: &&Value| {
        stack["frames"].as_array().unwrap().iter().any(|frame| frame["function"].as_str() == Some(function))
    };
    let sum = |name| stacks(&report).iter().filter(has).map(|stack| number(stack, name)).sum();
    ((sum("bytes"), sum("reserved_bytes"), sum("resident_bytes")), outcome.stdout)
}

/// One call over what was in use before, and what was only reserved.
#[test]
fn only_what_was_reserved_before_becomes_new_memory() {
    let (opened, _) = of_moves("open", "opens", 0);
    assert_eq!(opened, (20 << 20, 0, 0));
}

#[test]
fn memory_that_may_not_be_used_any_more_has_an_owner() {
    let (closed, text) = of_moves("close", "closes", 3);
    assert_eq!(closed, (0, 48 << 20, 48 << 20));
    assert!(
        text.contains("48.0 MiB more only reserved, 48.0 MiB of that resident") && text.contains("\nM1  "),
        "{text}"
    );
}

#[test]
fn memory_that_is_only_read_is_not_resident() {
    let (read, _) = of_moves("read", "reads", 0);
    assert_eq!(read, (48 << 20, 0, 0));
}

#[test]
fn nothing_is_recorded_without() {
    require_root();
    let mut target = Target::start(&compiled("mapped"));
    let tracer = Run::pid(target.pid()).args(["--mmap=off", "--scope=file"]).start();
    target.ask("go");
    let outcome = tracer.stop();
    let report = outcome.report(0);
    let text = &outcome.stdout;
    assert!(
        report.json["mappings"].is_null() && !text.contains("\n  mapped ") && !text.contains("\nMapped by"),
        "{text}"
    );
    assert_eq!(report.below("allocates"), Held { bytes: 1 << 20, blocks: 1 });
}
