//! C++ and Rust: objects and containers, by the function that holds them, on every allocator.

use std::path::Path;

use crate::harness::{ALLOCATORS, ForeignProbes, Run, Target, check_holders, compiled, preloadable, require_root};

fn check(what: &str, program: &Path, preload: Option<&str>) {
    require_root();
    let environment: Vec<(&str, &str)> = preload.iter().map(|path| ("LD_PRELOAD", *path)).collect();
    let mut target = Target::start_with(program, &[], &environment);
    let tracer = Run::pid(target.pid()).start();
    let truth = target.ask("begin");
    let report = tracer.stop().report(0);
    report.assert_nothing_lost(what);
    check_holders(what, &report, &truth);
}

#[test]
fn cpp_on_the_c_library() {
    check("glibc", &compiled("cpp"), None);
}

/// operator new is then a function of the allocator itself.
#[test]
fn cpp_on_allocators_with_their_own_new() {
    let program = compiled("cpp");
    for allocator in ALLOCATORS {
        check(allocator.file, &program, Some(&preloadable(allocator.file)));
    }
}

/// Both probe the first instruction of mimalloc's: the return slot changes between tracer's look at it and the return.
#[test]
fn cpp_whose_operator_new_another_tracer_probes() {
    require_root();
    let allocator = preloadable("mimalloc");
    let mut target = Target::start_with(&compiled("cpp"), &[], &[("LD_PRELOAD", &allocator)]);
    let _other = ForeignProbes::start(target.pid(), Path::new(&allocator), &["_Znwm", "malloc"]);
    let tracer = Run::pid(target.pid()).start();
    let truth = target.ask("begin");
    let report = tracer.stop().report(0);
    report.assert_nothing_lost("cpp");
    report.assert_complete("cpp");
    check_holders("cpp", &report, &truth);
}

#[test]
fn rust_service() {
    check("rust", &compiled("rust_service"), None);
}
