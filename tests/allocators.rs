//! Calls into the allocator that never return, and allocators whose functions call each other: what comes after is exact.

use std::path::PathBuf;

use crate::harness::{
    C, CXX, Run, Source, Target, Truth, WITH_FRAME_POINTERS, check_functions, check_holders, preloadable, require_root,
};

fn own_allocator() -> PathBuf {
    let flags = &["-fno-builtin", "-shared", "-fPIC"];
    Source { compiler: C, files: &["own_allocator.c"], flags }.build()
}

/// Threads that end or are cancelled inside malloc, jumps out of it, a hook that allocates, reallocs that are left halfway.
#[test]
fn calls_that_never_return_leave_no_trace() {
    require_root();
    let program = Source { compiler: C, files: &["dies.c"], flags: WITH_FRAME_POINTERS }.build();
    let allocator = own_allocator();
    for run in 1..=3 {
        let mut target = Target::start_with(&program, &[], &[("LD_PRELOAD", allocator.to_str().unwrap())]);
        let tracer = Run::pid(target.pid()).start();
        let truth = target.ask("begin");
        assert!(target.is_alive());
        let report = tracer.stop().report(0);
        let what = format!("run {run}");
        report.assert_nothing_lost(&what);
        check_functions(&what, &report, &truth, Some(&program));
    }
}

/// What a new-handler does while operator new runs. `orders` are the ways it ends.
fn check_new_handler(what: &str, preload: Option<&str>, orders: &[&str]) {
    require_root();
    let program = Source { compiler: CXX, files: &["new_handler.cpp"], flags: WITH_FRAME_POINTERS }.build();
    let environment: Vec<(&str, &str)> = preload.iter().map(|path| ("LD_PRELOAD", *path)).collect();
    let mut target = Target::start_with(&program, &[], &environment);
    let tracer = Run::pid(target.pid()).start();
    let mut truth = Truth::default();
    for order in orders {
        truth = target.ask(order);
    }
    let report = tracer.stop().report(0);
    report.assert_nothing_lost(what);
    check_holders(what, &report, &truth);
}

// Not with mimalloc: Debian's knows no new-handlers and aborts.
#[test]
fn new_handlers_that_jump() {
    for (what, preload) in [("glibc", None), ("jemalloc", Some("jemalloc")), ("tcmalloc", Some("tcmalloc"))] {
        check_new_handler(what, preload.map(preloadable).as_deref(), &["jump"]);
    }
}

/// The exception must find its way through a function that has a return probe.
#[test]
fn new_handlers_that_throw() {
    for (what, preload) in [("glibc", None), ("jemalloc", Some("jemalloc")), ("tcmalloc", Some("tcmalloc"))] {
        check_new_handler(what, preload.map(preloadable).as_deref(), &["throw", "none"]);
    }
}

#[test]
fn new_handlers_that_allocate() {
    for (what, preload) in [("glibc", None), ("jemalloc", Some("jemalloc")), ("tcmalloc", Some("tcmalloc"))] {
        check_new_handler(what, preload.map(preloadable).as_deref(), &["log"]);
    }
}
