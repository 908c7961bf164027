//! Allocators that are not the first file to export `malloc`: in the executable under names of their own, several in one process,
//! and interposers that pass calls on. Each block is seen, once.

use std::{ffi::OsStr, path::Path, process::Command};

use crate::harness::{
    Held, Report, Run, Target, Truth, check_functions, check_holders, compiled, preloadable, require_root, rust_on,
    scratch,
};

/// Has a program do what it does, and compares every function with its truth.
#[track_caller]
fn check(what: &str, program: &Path, preload: &[&str], functions: Option<&Path>) -> Truth {
    require_root();
    let preload = preload.join(":");
    let environment = [("LD_PRELOAD", &*preload)];
    let environment = if preload.is_empty() { &environment[..0] } else { &environment };
    let mut target = Target::start_with(program, &[], environment);
    let tracer = Run::pid(target.pid()).start();
    let truth = target.ask("begin");
    let report = tracer.stop().report(0);
    report.assert_nothing_lost(what);
    report.assert_complete(what);
    check_functions(what, &report, &truth, functions);
    if functions.is_none() && truth.facts.contains_key("unmatched_frees") {
        let allocated = Held { bytes: truth.fact("allocated_bytes"), blocks: truth.fact("allocated_blocks") };
        assert_eq!(report.allocated(), allocated, "{what}: every allocation counts once");
        assert_eq!(report.quality("unmatched_frees"), truth.fact("unmatched_frees"), "{what}: frees count once");
    }
    truth
}

/// Has a program do what it does, and compares what each function holds with its truth.
#[track_caller]
fn check_held(what: &str, program: &Path) {
    let (report, truth) = held(what, program);
    check_holders(what, &report, &truth);
}

/// What was reported of a program, complete, and the truth.
#[track_caller]
fn held(what: &str, program: &Path) -> (Report, Truth) {
    require_root();
    let mut target = Target::start_with(program, &[], &[]);
    let tracer = Run::pid(target.pid()).start();
    let truth = target.ask("begin");
    let report = tracer.stop().report(0);
    report.assert_nothing_lost(what);
    report.assert_complete(what);
    (report, truth)
}

/// Names that jemalloc has when it is linked into an executable with a prefix: they are in its own table of symbols only.
#[test]
fn family_by_names_with_a_prefix() {
    check("je_", &compiled("family, prefixed allocator"), &[], None);
}

#[test]
fn family_by_names_of_mimalloc() {
    let _ = preloadable("mimalloc");
    check("mi_", &compiled("family, names of mimalloc"), &[], None);
}

/// Each way in which its functions take their arguments.
#[test]
fn shapes_of_mimalloc() {
    let _ = preloadable("mimalloc");
    check("shapes of mimalloc", &compiled("mimalloc_shapes"), &[], None);
}

/// They are as large as they were asked to be, or stay as they were.
#[test]
fn blocks_that_change_their_size_where_they_are() {
    let _ = preloadable("jemalloc");
    let truth = check("in place", &compiled("in_place"), &[], None);
    assert!(truth.fact("changed") > 100, "{truth:?}");
}

/// What takes the place of the C library's allocator may copy strings to blocks that it takes in the same way as its malloc, not by it.
#[test]
fn copies_of_strings() {
    let program = compiled("copies");
    check("copies", &program, &[], Some(&program));
}

/// One name proves nothing: whoever has few of them means something else by it.
#[test]
fn names_that_are_a_programs_own() {
    let program = compiled("alike");
    check("names alike", &program, &[], Some(&program));
}

#[test]
fn three_at_once() {
    let program = compiled("several");
    // The loader makes threads with memory of the C library's.
    check("three at once", &program, &[], Some(&program));
}

/// Names that only an executable's own table of symbols has: nobody else asks for them.
#[test]
fn operators_of_a_static_allocator() {
    for program in ["cpp, static jemalloc", "cpp, static tcmalloc"] {
        check_held(program, &compiled(program));
    }
}

/// What a new-handler allocates that is in the allocator's own file, and what an operator new does for itself: a block is a part of
/// another one only if that lies in it.
#[test]
fn what_is_allocated_inside_of_an_allocation_in_the_same_file() {
    check_held("a new-handler", &compiled("notes, static"));
    let what = "an operator that keeps books";
    let (report, mut truth) = held(what, &compiled("notes, operators"));
    let noted = Held { bytes: truth.fact("noted_bytes"), blocks: truth.fact("noted_blocks") };
    // It is called from there.
    let caller = truth.held.get_mut("from_new").unwrap();
    *caller = *caller + noted;
    check_holders(what, &report, &truth);
}

#[test]
fn an_interposer_that_passes_all_on() {
    let interposer = compiled("interposer");
    check("interposer", &compiled("family"), &[interposer.to_str().unwrap()], None);
}

/// A block of no bytes lies where the one ends that holds its header.
#[test]
fn blocks_of_no_bytes_behind_headers() {
    let program = compiled("empty");
    check("no bytes", &program, &[], Some(&program));
}

/// musl's `free` jumps to another function that is probed: the same block twice, whose neighbour lives on.
#[test]
fn neighbours_of_what_is_freed() {
    let program = compiled("neighbours, static musl");
    check("neighbours", &program, &[], Some(&program));
}

/// Of the family a static program has what it calls.
#[test]
fn a_static_program_without_malloc() {
    let program = compiled("neighbours alone, static musl");
    check("no malloc", &program, &[], Some(&program));
}

/// What an interposer allocates for itself, by itself or through the C library, are blocks of their own.
#[test]
fn an_interposer_that_keeps_books() {
    require_root();
    let (program, interposer) = (compiled("family"), compiled("notebook"));
    let environment = [("LD_PRELOAD", interposer.to_str().unwrap()), ("NOTED", "1")];
    let mut target = Target::start_with(&program, &[], &environment);
    let tracer = Run::pid(target.pid()).start();
    let truth = target.ask("begin");
    let report = tracer.stop().report(0);
    report.assert_nothing_lost("books");
    report.assert_complete("books");
    check_functions("books", &report, &truth, Some(&program));
    let noted = Held { bytes: truth.fact("noted_bytes"), blocks: truth.fact("noted_blocks") };
    assert!(noted.blocks > 1000, "{noted}");
    assert_eq!(report.outstanding(), truth.total() + noted, "with its own blocks");
}

/// What the interposer has not is the C library's own; blocks of one are resized and freed by the other.
#[test]
fn an_interposer_of_a_part() {
    let interposer = compiled("interposer of a part");
    check("part", &compiled("family"), &[interposer.to_str().unwrap()], None);
}

#[test]
fn interposers_in_a_row() {
    let (first, second) = (compiled("interposer of a part"), compiled("interposer"));
    let row = [first.to_str().unwrap(), second.to_str().unwrap(), &preloadable("jemalloc")];
    check("row", &compiled("family"), &row, None);
}

/// An allocator whose functions of the C library's names are in another file than those that do the work.
#[test]
fn a_proxy() {
    check("TBB", &compiled("family"), &[&preloadable("tbbmalloc_proxy")], None);
}

/// Its operators delete give blocks back by a function of another file that is neither free nor delete.
#[test]
fn operators_of_a_proxy() {
    require_root();
    let proxy = preloadable("tbbmalloc_proxy");
    let mut target = Target::start_with(&compiled("cpp"), &[], &[("LD_PRELOAD", &proxy)]);
    let tracer = Run::pid(target.pid()).start();
    let truth = target.ask("begin");
    let report = tracer.stop().report(0);
    report.assert_complete("TBB");
    check_holders("TBB", &report, &truth);
}

/// Launched, allocators come one by one as the loader maps their files.
#[test]
fn three_at_once_from_the_first_instruction() {
    require_root();
    let program = compiled("several");
    let outcome = Run::launch(&[], [program.to_str().unwrap(), "at once"]).finish();
    let report = outcome.report(0);
    report.assert_nothing_lost("launched");
    let mut truth = Truth::default();
    outcome.stdout.lines().for_each(|line| truth.read(line));
    assert!(truth.total().blocks > 0, "{}", outcome.stdout);
    check_functions("launched", &report, &truth, Some(&program));
}

/// Operators that come to another file's malloc on some ways only: blocks of their own are seen.
#[test]
fn operators_with_memory_of_their_own() {
    for program in ["pool", "pool, small blocks only"] {
        check_held(program, &compiled(program));
    }
}

/// Libraries that are opened while the process is traced.
#[test]
fn an_allocator_that_comes_later() {
    require_root();
    let program = compiled("plugins");
    let (first, second) = (compiled("plugin, own allocator"), compiled("plugin, second"));
    let mut target = Target::start_with(&program, &[first.to_str().unwrap(), second.to_str().unwrap()], &[]);
    let mut tracer = Run::pid(target.pid()).start();
    target.say("begin");
    tracer.wait_for_line(" WARN process");
    target.say("later");
    target.until("next");
    target.say("next");
    let truth = target.ask("later");
    let outcome = tracer.stop();
    let report = outcome.report(3);
    assert!(outcome.stderr.contains("while it was traced"), "{}", outcome.stderr);
    report.assert_gap("unseen_spans", 1);
    let held = |function: &str| report.by_caller(None).get(function).copied().unwrap_or_default();
    for function in ["first_later", "second_at_once", "second_later"] {
        assert_eq!(held(function), truth.held[function], "{function}");
    }
}

/// A function that is chosen at run time is seen where a file is bound to it.
#[test]
fn an_allocator_that_is_chosen_at_run_time() {
    let library = compiled("chosen allocator");
    check("IFUNC", &compiled("family"), &[library.to_str().unwrap()], None);
}

/// A library that is written anew in its place, between two programs that are run with it: it has the same inode, and other functions.
#[test]
fn an_allocator_that_is_written_anew() {
    require_root();
    let folder = tempfile::tempdir().unwrap();
    let library = folder.path().join("library.so");
    let (before, after) = (compiled("own allocator"), compiled("own allocator, written anew"));
    let program = compiled("at_once");
    let script = "cat $1 > $0; LD_PRELOAD=$0 $3 < /dev/null; cat $2 > $0; LD_PRELOAD=$0 $3 < /dev/null";
    let script = [OsStr::new("/bin/sh"), OsStr::new("-c"), OsStr::new(script)];
    let paths = [library.as_os_str(), before.as_os_str(), after.as_os_str(), program.as_os_str()];
    let outcome = Run::launch(&[], script.into_iter().chain(paths)).finish();
    let report = outcome.report(3);
    assert!(outcome.stderr.contains("was written anew in its place"), "{}", outcome.stderr);
    assert!(report.gaps().contains(&"unseen_spans".to_owned()), "{:?}", report.gaps());
}

#[track_caller]
fn check_rust(allocator: &str) {
    check_held(allocator, &rust_on(allocator));
}

#[test]
fn rust_on_jemalloc() {
    check_rust("jemalloc");
}

/// Without symbols none of its functions can be probed, and what it says when it fails tells that it is there.
#[test]
fn an_allocator_that_is_hidden_in_a_stripped_program_is_told() {
    require_root();
    for allocator in ["jemalloc", "mimalloc"] {
        let folder = scratch();
        let stripped = folder.path().join("stripped");
        let strip = Command::new("strip").arg("-o").arg(&stripped).arg(rust_on(allocator)).status().unwrap();
        assert!(strip.success());
        let mut target = Target::start(&stripped);
        let tracer = Run::pid(target.pid()).start();
        target.ask("begin");
        let report = tracer.stop().report(3);
        let notes = report.json["quality"]["notes"].to_string();
        assert!(notes.contains(&format!("has {allocator} in it")), "{notes}");
    }
}

#[test]
fn rust_on_mimalloc() {
    check_rust("mimalloc");
}

#[test]
fn rust_on_snmalloc() {
    check_rust("snmalloc");
}

#[test]
fn rust_on_rpmalloc() {
    check_rust("rpmalloc");
}

/// The compiler inlines what stands for it: its methods are called from everywhere.
#[test]
fn rust_on_an_allocator_of_the_programs_own() {
    check_held("an arena", &compiled("rust_arena"));
}

/// A method that reads none of its arguments is called without: nobody can see what is freed.
#[test]
fn a_rust_allocator_that_is_told_of_no_free_is_not_complete() {
    require_root();
    let mut target = Target::start(&compiled("rust_arena, forgets"));
    let tracer = Run::pid(target.pid()).start();
    target.ask("begin");
    let report = tracer.stop().report(3);
    let notes = report.json["quality"]["notes"].to_string();
    assert!(notes.contains("may have put dealloc into the code of callers"), "{notes}");
}
