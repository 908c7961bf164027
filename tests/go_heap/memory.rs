//! How much of the memory of Go programs is explained, and by what: allocations that are told, stacks of goroutines.

use super::{PROFILED, run};
use crate::harness::{STOCK, Target, go_program};

/// What has come since the runtime's own profile was published is not in it: the report says that so much is not explained, though
/// a collection has come while it was traced.
#[test]
fn buckets_leave_out_what_has_come_since_a_collection() {
    let environment = [("HEAP_PROFILE_RATE", "4096"), ("GOGC", "off")];
    let mut target = Target::start_with(&go_program("heap", PROFILED), &[], &environment);
    let tracer = run(target.pid(), "buckets").start();
    target.ask("collect");
    target.ask("litter");
    let report = tracer.stop().report(3);
    assert_eq!(report.gaps(), ["unexplained_bytes"]);
    assert_eq!(report.below("main.litter").bytes, 0);
    let memory = &report.json["processes"][0]["memory"];
    assert!(memory["unexplained"].as_u64() >= Some(60 << 20), "{memory}");
    assert_eq!(memory["reasons"][0]["kind"], "go_untold", "{memory}");
    // What a collection has left free, and is used again, is nothing new.
    let tracer = run(target.pid(), "buckets").start();
    target.ask("collect");
    target.ask("litter");
    target.ask("collect");
    tracer.stop().report(0);
}

/// Stacks of goroutines are no blocks: their memory is told as what it is.
#[test]
fn stacks_of_goroutines_are_named() {
    let mut target = Target::start_with(&go_program("heap", STOCK), &[], &[("GOGC", "off")]);
    let tracer = run(target.pid(), "sample").start();
    target.ask("deepen");
    target.ask("litter");
    target.ask("collect");
    let outcome = tracer.stop();
    let report = outcome.report(0);
    let memory = &report.json["processes"][0]["memory"];
    assert!(memory["goroutine_stacks"].as_u64() >= Some(100 << 20), "{memory}");
    assert!(outcome.stdout.contains("; stacks of goroutines: "), "{}", outcome.stdout);
}

/// What the program maps beside its Go heap is not taken for the books of its runtime, nor for that heap, where it looks like it.
#[test]
fn memory_that_a_go_program_maps_itself_is_not_explained() {
    for map in ["map", "shaped"] {
        let mut target = Target::start_with(&go_program("heap", STOCK), &[], &[("GOGC", "off")]);
        // Leaves enough free for what is allocated while it is traced: nothing but the mapping is new.
        target.ask("litter");
        target.ask("collect");
        let tracer = run(target.pid(), "sample").start();
        target.ask("litter");
        target.ask("collect");
        target.ask(map);
        let report = tracer.stop().report(3);
        assert_eq!(report.gaps(), ["unexplained_bytes"], "{map}");
        let memory = &report.json["processes"][0]["memory"];
        assert!(memory["unexplained"].as_u64() >= Some(16 << 20), "{map}: {memory}");
        assert_eq!(memory["reasons"][0]["kind"], "mmap", "{map}: {memory}");
    }
}
