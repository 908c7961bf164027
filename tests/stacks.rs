//! Complete stacks: chains of every shape, by the names of their functions, on stock flags without frame pointers.

use crate::harness::{Report, Run, Target, check_functions, compiled, require_root};

/// The functions above a caller of the allocator, from `main` or where its thread begins, without inlined parts of libraries.
fn chain<'a>(report: &'a Report, caller: &str) -> Vec<&'a str> {
    let found: Vec<_> =
        report.stacks.iter().filter(|stack| stack.caller() == caller && stack.held.blocks > 0).collect();
    let stack = found.first().unwrap_or_else(|| panic!("no stack of {caller}"));
    let names = stack.functions.iter().map(String::as_str);
    names.filter(|name| !name.contains("std::") && !name.contains("__gnu_cxx")).collect()
}

fn check(what: &str) {
    require_root();
    let program = compiled(what);
    let mut target = Target::start(&program);
    let tracer = Run::pid(target.pid()).start();
    let truth = target.ask("begin");
    let report = tracer.stop().report(0);
    check_functions(what, &report, &truth, Some(&program));
    let main = ["_start", "__libc_start_main_impl", "__libc_start_call_main", "main", "all_shapes"];
    let below_main = |functions: &[&'static str]| [&main[..], functions].concat();
    let recursion = [&["recurse"; 61][..], &["below_recursion"]].concat();
    for (caller, expected) in [
        ("below_alloca", below_main(&["with_alloca", "below_alloca"])),
        ("below_array", below_main(&["with_array", "below_array"])),
        ("below_registers", below_main(&["with_registers", "below_registers"])),
        ("below_sort", below_main(&["with_sort", "compare_and_allocate", "below_sort"])),
        ("below_catch", below_main(&["with_catch", "below_catch"])),
        ("below_recursion", below_main(&recursion)),
        ("below_unaligned", below_main(&["with_alignment", "below_unaligned"])),
        ("below_thread", vec!["__clone3", "start_thread", "in_thread", "below_thread"]),
    ] {
        let mut chain = chain(&report, caller);
        // glibc calls it clone3 or __clone3, by the symbol that is chosen.
        if chain.first() == Some(&"clone3") {
            chain[0] = "__clone3";
        }
        assert_eq!(chain, expected, "{what}: {caller}");
    }
    // A lambda has several names, and so does what the C library calls on the way to a signal.
    for (caller, through) in [
        ("below_function", &["all_shapes", "with_function"][..]),
        ("below_destructor", &["all_shapes", "with_destructor", "guarded", "~Guard"]),
        ("below_signal", &["_start", "all_shapes", "with_signal", "on_signal"]),
        ("below_other_stack", &["_start", "all_shapes", "with_other_stack", "on_signal_elsewhere"]),
    ] {
        let chain = chain(&report, caller);
        let mut rest = chain.iter();
        assert!(through.iter().all(|name| rest.any(|other| other == name)), "{what}: {caller}: {chain:?}");
    }
    // A coroutine's stack has another root, which is no thread's: it ends there, and is counted.
    assert!(chain(&report, "below_coroutine").ends_with(&["in_coroutine", "below_coroutine"]));
    assert_eq!(report.quality("truncated_stacks"), 1, "{what}: {}", report.json["quality"]);
}

#[test]
fn every_shape_without_frame_pointers() {
    for program in ["shapes -O2", "shapes -O0", "shapes -Os", "shapes -O3"] {
        check(program);
    }
}

#[test]
fn one_frame_more_or_less_in_the_same_place() {
    require_root();
    let mut target = Target::start(&compiled("same_place"));
    let tracer = Run::pid(target.pid()).start();
    let truth = target.ask("begin");
    let report = tracer.stop().report(0);
    report.assert_complete("same_place");
    let (through, direct) = (truth.fact("through_another"), truth.fact("direct"));
    assert!(through > 0 && direct > 0);
    assert_eq!(report.below("through_another").blocks, through);
    assert_eq!(report.below("with_room").blocks, through + direct);
}
