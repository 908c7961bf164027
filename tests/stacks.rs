//! Complete stacks: chains of every shape, by the names of their functions, on stock flags without frame pointers.

use crate::harness::{ForeignProbes, Report, Run, Target, check_functions, compiled, probed_bytes, require_root};

/// What every chain in the first thread begins with.
const MAIN: [&str; 4] = ["_start", "__libc_start_main_impl", "__libc_start_call_main", "main"];

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
    let below_main = |functions: &[&'static str]| [&MAIN[..], &["all_shapes"], functions].concat();
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
    // A coroutine's stack has another root, which is no thread's.
    assert!(chain(&report, "below_coroutine").ends_with(&["in_coroutine", "below_coroutine"]));
    assert_eq!(report.quality("truncated_stacks"), 0, "{what}: {}", report.json["quality"]);
}

/// Frames that are aligned at run time, whose callers are found by another register or by memory; and a stack that a program has made.
#[test]
fn frames_that_are_aligned_at_run_time() {
    require_root();
    let program = compiled("realigned");
    let mut target = Target::start(&program);
    let tracer = Run::pid(target.pid()).start();
    let truth = target.ask("begin");
    let report = tracer.stop().report(0);
    check_functions("realigned", &report, &truth, Some(&program));
    for (caller, through) in
        [("below_aligned", "aligned"), ("below_sized", "sized"), ("below_many_arguments", "many_arguments")]
    {
        assert_eq!(chain(&report, caller), [&MAIN[..], &[through, caller]].concat());
    }
    assert!(chain(&report, "in_context").ends_with(&["on_its_own", "in_context"]));
    report.assert_complete("realigned");
}

/// The function before it has no part in it.
#[test]
fn code_that_is_interrupted_at_the_begin_of_a_function() {
    require_root();
    let program = compiled("faults");
    let mut target = Target::start(&program);
    let tracer = Run::pid(target.pid()).start();
    let truth = target.ask("begin");
    let report = tracer.stop().report(0);
    check_functions("faults", &report, &truth, Some(&program));
    let chain = chain(&report, "below_fault");
    assert!(chain.starts_with(&[&MAIN[..], &["calls_fault", "fault"]].concat()), "{chain:?}");
    assert!(chain.ends_with(&["on_fault", "below_fault"]), "{chain:?}");
    report.assert_complete("faults");
}

#[test]
fn stacks_that_lie_above_those_of_their_callers() {
    require_root();
    let program = compiled("switches");
    let mut target = Target::start(&program);
    let tracer = Run::pid(target.pid()).start();
    let truth = target.ask("begin");
    let report = tracer.stop().report(0);
    check_functions("switches", &report, &truth, Some(&program));
    let expected = [&MAIN[..], &["on_stack", "on_first", "on_stack", "on_second"]].concat();
    assert_eq!(chain(&report, "on_second"), expected);
    report.assert_complete("switches");
}

/// Where its first function would return to is no frame.
#[test]
fn stacks_that_are_made_in_code_that_nobody_describes() {
    require_root();
    let program = compiled("made");
    let mut target = Target::start(&program);
    let tracer = Run::pid(target.pid()).start();
    let truth = target.ask("begin");
    let report = tracer.stop().report(0);
    check_functions("made", &report, &truth, Some(&program));
    assert_eq!(chain(&report, "in_made"), ["on_made", "in_made"]);
    report.assert_complete("made");
}

#[test]
fn every_shape_without_frame_pointers() {
    for program in ["shapes -O2", "shapes -O0", "shapes -Os", "shapes -O3"] {
        check(program);
    }
}

/// The same functions three times: without another tracer, with one, and without again.
#[test]
fn through_functions_whose_returns_another_tracer_probes() {
    require_root();
    let program = compiled("probed");
    let file = program.file_name().unwrap().to_str().unwrap();
    let mut target = Target::start(&program);
    let tracer = Run::pid(target.pid()).start();
    target.ask("begin");
    let other = ForeignProbes::start(target.pid(), &program, &["probed", "jumps"]);
    assert!(probed_bytes(target.pid(), file) > 0, "the other tracer's probes are there");
    target.ask("begin");
    drop(other);
    let truth = target.ask("begin");
    let report = tracer.stop().report(0);
    report.assert_complete("probed");
    report.assert_nothing_lost("probed");
    check_functions("probed", &report, &truth, Some(&program));
    check_probed(&report);
}

/// The kernel's trampoline is then in the target's mappings from the beginning.
#[test]
fn through_functions_whose_returns_were_probed_before() {
    require_root();
    let program = compiled("probed");
    let mut target = Target::start(&program);
    let _other = ForeignProbes::start(target.pid(), &program, &["probed", "jumps"]);
    let before = target.ask("begin").total();
    let tracer = Run::pid(target.pid()).start();
    let after = target.ask("begin").total();
    let report = tracer.stop().report(0);
    report.assert_complete("probed");
    assert_eq!(report.below("main").blocks, after.blocks - before.blocks);
    check_probed(&report);
}

/// Each function has one stack, whether it was found with probes in its way or without.
#[track_caller]
fn check_probed(report: &Report) {
    for (caller, expected) in [
        ("below_probed", [&MAIN[..], &["calls_probed"], &["probed"; 4], &["below_probed"]].concat()),
        ("calls_jumps", [&MAIN[..], &["calls_jumps"]].concat()),
    ] {
        assert_eq!(chain(report, caller), expected);
        assert_eq!(report.stacks.iter().filter(|stack| stack.caller() == caller).count(), 1, "stacks of {caller}");
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

/// Starts the program that allocates below code without rules, and reports what it did by one order.
fn without_rules(order: &str) -> Report {
    require_root();
    let library = compiled("no rules");
    let folder = tempfile::tempdir().unwrap();
    let files = folder.path().join("code-");
    let mut target =
        Target::start_with(&compiled("no_rules"), &[library.to_str().unwrap(), files.to_str().unwrap()], &[]);
    let tracer = Run::pid(target.pid()).start();
    target.ask(order);
    tracer.stop().report(0)
}

/// Names of the functions of all stacks that hold something, root first.
fn held(report: &Report) -> Vec<Vec<&str>> {
    let held = report.stacks.iter().filter(|stack| stack.held.blocks > 0);
    held.map(|stack| stack.functions.iter().map(String::as_str).collect()).collect()
}

/// In assembler, which says by its instructions where its frame is, whatever it uses the frame pointer for.
#[test]
fn through_code_whose_instructions_prove_its_frame() {
    let report = without_rules("library");
    report.assert_complete("library");
    assert_eq!(report.outstanding().blocks, 200);
    // From two places in `main`.
    assert_eq!(
        held(&report),
        [[&MAIN[..], &["below", "through"]].concat(), [&MAIN[..], &["below", "through"]].concat()]
    );
}

/// In assembler whose functions take their arguments off the stack, below the return address.
#[test]
fn through_code_that_takes_arguments_off_the_stack() {
    let report = without_rules("arguments");
    report.assert_complete("arguments");
    assert_eq!(report.outstanding().blocks, 100);
    assert_eq!(held(&report), [[&MAIN[..], &["below", "argued", "taking"]].concat()]);
}

/// The direct caller is known, and nothing else: not from what lies where a frame would be.
#[test]
fn code_without_rules_has_no_invented_callers() {
    let report = without_rules("unproved");
    assert_eq!(report.outstanding().blocks, 200);
    assert_eq!(held(&report), [["beyond"]]);
    assert_eq!(report.json["quality"]["truncated_by_reason"]["no_rule"], 1, "{}", report.json["quality"]);
    let stacks = report.json["stacks"].as_array().unwrap();
    let holding = stacks.iter().filter(|stack| stack["outstanding_blocks"] != 0);
    assert_eq!(holding.map(|stack| stack["truncated"].as_str()).collect::<Vec<_>>(), [Some("no_rule")]);
}

/// A frame pointer of 0 is no root there, and a word is no return address because it points to code.
#[test]
fn generated_code_has_no_invented_callers() {
    for order in ["generated", "in a file"] {
        let report = without_rules(order);
        assert_eq!(report.outstanding().blocks, 200);
        for stack in held(&report) {
            assert_eq!(stack.len(), 1, "{order}: {stack:?}");
        }
        let cut = report.quality("truncated_stacks");
        let quality = &report.json["quality"];
        assert!(cut > 0 && quality["truncated_by_reason"]["no_rule"] == cut, "{order}: {quality}");
    }
}

/// Generated at run time, also if it is not there any more when somebody looks, or ahead: in a file that is no program.
#[test]
fn through_generated_code_that_keeps_frame_pointers() {
    for order in ["kept", "unmapped", "kept in a file"] {
        let report = without_rules(order);
        report.assert_complete(order);
        let stacks = held(&report);
        assert_eq!(stacks.len(), 1, "{order}: {stacks:?}");
        assert_eq!(stacks[0][..stacks[0].len() - 1], [&MAIN[..], &["below"]].concat(), "{order}");
    }
}
