//! Allocations of which only samples are recorded: estimates lie as near to the truth as they say, and what is freed is gone.

use std::{collections::BTreeMap, path::Path};

use serde_json::Value;

use crate::harness::{Report, Run, Target, Truth, compiled, preloadable, require_root, taking_returns};

/// Mean number of bytes between samples.
const MEAN: &str = "16KiB";
/// How many of its standard errors an estimate may be off: of a million estimates not one is.
const ERRORS: f64 = 6.0;

/// What a function holds by estimate: bytes, and their variance.
type Estimates = BTreeMap<String, (f64, f64)>;

/// By the innermost function that the truth names.
fn estimates(report: &Report, truth: &Truth) -> Estimates {
    let mut estimates = Estimates::new();
    for (stack, json) in report.stacks.iter().zip(report.json["stacks"].as_array().unwrap()) {
        let error = json["standard_error_bytes"].as_f64().unwrap();
        assert_eq!(json["samples"] == 0, stack.held.bytes == 0, "{json}");
        if let Some(holder) = stack.functions.iter().rev().find(|function| truth.held.contains_key(*function)) {
            let (bytes, variance) = estimates.entry(holder.clone()).or_default();
            *bytes += stack.held.bytes as f64;
            *variance += error * error;
        }
    }
    estimates
}

/// Compares what each function is said to hold with what it does.
#[track_caller]
fn check(what: &str, report: &Report, truth: &Truth) {
    assert_eq!(report.json["mode"], "sampled", "{what}");
    let quality = &report.json["quality"];
    assert!(report.is_complete(), "{what}: {quality}");
    assert_eq!(quality["sampling"]["mean_bytes"], 16 << 10, "{what}: {quality}");
    let estimates = estimates(report, truth);
    for (function, held) in &truth.held {
        let (bytes, variance) = estimates.get(function).copied().unwrap_or_default();
        let error = variance.sqrt();
        let off = bytes - held.bytes as f64;
        assert!(off.abs() <= ERRORS * error, "{what}: {function} holds {held}, not {bytes} +- {error}");
        // What is counted twice is off by as much as there is.
        assert!(
            held.bytes == 0 || ERRORS * error < 0.7 * held.bytes as f64,
            "{what}: {function}: {error} says nothing"
        );
    }
    let (all, held) = (&quality["sampling"], truth.total().bytes as f64);
    let error = all["relative_error"].as_f64().unwrap() * held;
    let off = report.outstanding().bytes as f64 - held;
    // The program's libraries hold some, too.
    assert!(off.abs() <= ERRORS * error + f64::from(1 << 17), "{what}: off by {off}, error {error}");
}

/// Has the program hold everything while it is traced, and then free it, with these options.
fn check_process(what: &str, preload: Option<&Path>, args: &[&str]) -> Value {
    require_root();
    let environment: Vec<_> = preload.iter().map(|library| ("LD_PRELOAD", library.to_str().unwrap())).collect();
    let mut target = Target::start_with(&compiled("sampled"), &[], &environment);
    let tracer = Run::pid(target.pid()).args(["--sample", MEAN]).args(args).start();
    let truth = target.ask("hold");
    let held = tracer.stop();
    check(what, &held.report(0), &truth);
    assert!(held.stdout.contains("  mode         sampled: "), "{}", held.stdout);
    // What was held before is unknown, and so are its frees.
    let tracer = Run::pid(target.pid()).args(["--sample", MEAN]).args(args).start();
    target.ask("free");
    target.ask("hold");
    target.ask("free");
    let report = tracer.stop().report(0);
    assert_eq!(report.outstanding().bytes, 0, "{what}: {}", report.json["stacks"]);
    assert!(report.allocated().bytes > 0);
    assert!(target.is_alive());
    report.json["quality"].clone()
}

#[test]
fn estimates_are_within_their_error_in_every_way_to_see_outcomes() {
    let _turn = taking_returns();
    for way in ["auto", "exits", "session", "link"] {
        let quality = check_process(way, None, &["--returns", way]);
        assert_eq!(quality["unmatched_frees"], 0, "nobody looks for frees of what was not taken: {quality}");
    }
}

/// Functions that call each other or jump to each other have one chance each together.
#[test]
fn parts_of_a_call_have_one_chance_together() {
    let _turn = taking_returns();
    let allocator = compiled("own allocator");
    for way in ["auto", "link"] {
        check_process(&format!("own allocator, {way}"), Some(&allocator), &["--returns", way]);
    }
    check_process("interposer", Some(&compiled("interposer")), &[]);
    check_process("jemalloc", Some(Path::new(&preloadable("jemalloc"))), &[]);
}

#[test]
fn a_command_and_its_children_are_sampled_from_their_first_instruction() {
    require_root();
    let program = compiled("sampled");
    let outcome = Run::launch(&["--sample", MEAN], [program.to_str().unwrap(), "hold"]).with_json().finish();
    let mut truth = Truth::default();
    outcome.stdout.lines().for_each(|line| truth.read(line));
    check("launched", &outcome.report(0), &truth);
}

/// Each block is a sample, for its size is many times the distance: it is recorded, or told as what there was no room for.
#[test]
fn samples_that_there_is_no_room_for_are_told_as_such() {
    require_root();
    let mut target = Target::start(&compiled("many"));
    let tracer = Run::pid(target.pid()).args(["--sample", "1", "--max-memory", "128MiB"]).start();
    let truth = target.ask("begin");
    let outcome = tracer.stop();
    let report = outcome.report(3);
    assert_eq!(report.quality("lost_allocs"), 0, "the ring buffer was not full: {}", report.json["quality"]);
    let refused = report.gap("refused_samples");
    assert!(refused > 0, "there is room for a hundred thousand: {}", report.json["quality"]);
    assert_eq!(report.outstanding().blocks + refused, truth.total().blocks);
    let lost = format!("{refused} samples were lost, which stand for about {}KiB of allocations", refused * 64 / 1024);
    assert!(report.json["quality"]["notes"].to_string().contains(&lost), "{lost}: {}", report.json["quality"]);
    assert!(outcome.stdout.contains("a larger --sample makes them fewer"), "{}", outcome.stdout);
}

/// Where `--go-heap` is given, that is what is sampled.
#[test]
fn the_size_beside_a_way_to_see_go_heaps_is_theirs() {
    require_root();
    let mut target = Target::start(&compiled("sampled"));
    let tracer = Run::pid(target.pid()).args(["--sample", MEAN, "--go-heap", "sample"]).start();
    let truth = target.ask("hold");
    let report = tracer.stop().report(0);
    assert_eq!((&report.json["mode"], report.outstanding()), (&"exact".into(), truth.total()));
}
