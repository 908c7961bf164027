//! Every function's bytes and blocks, off by 0: four threads over the whole malloc family, on each allocator.

use crate::harness::{self, Held, Run, Target, alone, check_functions, compiled, preloadable, slowness};

const RUNS: u32 = 4;

/// Runs a family program under the tracer and compares every function, several times over.
fn check(what: &str, program: &str, preload: Option<&str>) {
    check_runs(RUNS, what, program, preload, &[]);
}

fn check_runs(runs: u32, what: &str, program: &str, preload: Option<&str>, options: &[&str]) {
    harness::require_root();
    let program = compiled(program);
    let environment: Vec<(&str, &str)> = preload.iter().map(|path| ("LD_PRELOAD", *path)).collect();
    let runs = (runs / slowness()).max(1);
    let _turn = alone();
    for run in 1..=runs {
        let what = format!("{what}, run {run} of {runs}");
        let mut target = Target::start_with(&program, &[], &environment);
        let tracer = Run::pid(target.pid()).args(options).start();
        let truth = target.ask("begin");
        let report = tracer.stop().report(0);
        report.assert_nothing_lost(&what);
        check_functions(&what, &report, &truth, None);
        assert_eq!(report.outstanding(), truth.total(), "{what}");
        let allocated = Held { bytes: truth.fact("allocated_bytes"), blocks: truth.fact("allocated_blocks") };
        assert_eq!(report.allocated(), allocated, "{what}: every allocation counts once");
        assert_eq!(report.quality("unmatched_frees"), truth.fact("unmatched_frees"), "{what}: frees from before");
    }
}

#[test]
fn family_on_the_c_library_with_frame_pointers() {
    check("glibc, frame pointers", "family, frame pointers", None);
}

#[test]
fn family_on_the_c_library_without_frame_pointers() {
    check("glibc, no frame pointers", "family", None);
}

/// As on kernels that have no uprobe-multi links, or not the right ones.
#[test]
fn family_on_the_c_library_by_perf_events() {
    check_runs(2, "glibc, perf events", "family", None, &["--perf-events"]);
}

#[test]
fn family_on_jemalloc() {
    check("jemalloc", "family", Some(&preloadable("jemalloc")));
}

#[test]
fn family_on_tcmalloc() {
    check("tcmalloc", "family", Some(&preloadable("tcmalloc")));
}

#[test]
fn family_on_mimalloc() {
    check("mimalloc", "family", Some(&preloadable("mimalloc")));
}

/// An executable that exports an allocator of its own, in which calls are nested: each is counted once.
#[test]
fn family_on_an_allocator_of_its_own() {
    check("own allocator", "family, own allocator", None);
}
