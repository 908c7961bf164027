//! Calls into the allocator that never return, and allocators whose functions call each other: what comes after is exact.

use std::path::Path;

use crate::harness::{
    Run, Target, Truth, check_functions, check_holders, compiled, preloadable, require_root, taking_returns,
};

/// Does to an allocator in a library what `order` says and compares what every function of the program holds.
fn check_hook(order: &str) {
    require_root();
    let allocator = compiled("own allocator");
    check_order(order, &compiled("dies"), &[("LD_PRELOAD", allocator.to_str().unwrap())]);
}

/// The same where the allocator is in the executable: then its callers are in the allocator's own file.
fn check_hook_in_executable(order: &str) {
    require_root();
    check_order(order, &compiled("dies, own allocator"), &[]);
}

fn check_order(order: &str, program: &Path, environment: &[(&str, &str)]) {
    check_way(order, program, environment, &["--returns", "link"], 0);
    // A call that was left by a jump is not seen to its end at instructions, and it cannot be known that it had none.
    // Of a realloc that is left there are two: itself, and the malloc that it has called.
    let jumps = [("jump", 20), ("jump often", 11), ("abandon", 4)];
    let most = jumps.iter().find(|(known, _)| *known == order).map_or(0, |(_, jumps)| *jumps);
    check_way(order, program, environment, &["--returns", "auto"], most);
}

/// The same with such options, where the outcomes of at most `unseen` calls are not seen.
fn check_way(order: &str, program: &Path, environment: &[(&str, &str)], options: &[&str], unseen: u64) {
    let _turn = options.contains(&"link").then(taking_returns);
    let what = format!("{order}, by {options:?}");
    let mut target = Target::start_with(program, &[], environment);
    let tracer = Run::pid(target.pid()).args(options).start();
    let truth = target.ask(order);
    assert!(target.is_alive());
    let outcome = tracer.stop();
    let report = outcome.report(if outcome.code() == Some(3) && unseen > 0 { 3 } else { 0 });
    assert!(report.gap("untracked_calls") <= unseen, "{what}: {:?}", report.gaps());
    assert!(report.gaps().iter().all(|gap| gap == "untracked_calls"), "{what}: {:?}", report.gaps());
    check_functions(&what, &report, &truth, Some(program));
}

/// By pthread_exit and by cancellation, inside malloc.
#[test]
fn threads_that_die_inside_an_allocation() {
    check_hook("die");
    check_hook_in_executable("die");
}

/// Out of malloc by longjmp; then again at the same depth, deeper, higher up, and on another thread.
#[test]
fn jumps_out_of_an_allocation() {
    check_hook("jump");
    check_hook_in_executable("jump");
}

#[test]
fn many_jumps_out_of_ever_deeper_allocations() {
    check_hook("jump often");
}

#[test]
fn an_allocation_inside_an_allocation() {
    check_hook("log");
}

/// A realloc that was left before it did anything has not ended its block; a free has.
#[test]
fn jumps_out_of_a_realloc() {
    check_hook("abandon");
}

/// Whose block is one of the samples still: here all are, but for those of a few bytes.
#[test]
fn jumps_out_of_a_realloc_of_a_sample() {
    require_root();
    let (allocator, program) = (compiled("own allocator"), compiled("dies"));
    let environment = [("LD_PRELOAD", allocator.to_str().unwrap())];
    for way in ["link", "auto"] {
        check_way("abandon", &program, &environment, &["--returns", way, "--sample", "1B"], 4);
    }
}

/// What a new-handler does while operator new runs. `orders` are the ways it ends.
fn check_new_handler(what: &str, preload: Option<&str>, orders: &[&str]) {
    require_root();
    let program = compiled("new_handler");
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

/// An allocator that gives a block where it is asked for more than there can be: nobody knows how large that is.
#[test]
fn sizes_that_cannot_be() {
    require_root();
    let program = compiled("wraps");
    let mut target = Target::start_with(&program, &[], &[]);
    let tracer = Run::pid(target.pid()).start();
    let truth = target.ask("begin");
    let report = tracer.stop().report(3);
    assert_eq!(report.gap("untracked_calls"), 8, "{:?}", report.gaps());
    check_functions("sizes that cannot be", &report, &truth, Some(&program));
}
