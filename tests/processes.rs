//! Processes that change under the tracer: exec, fork, a first thread that ends, and several at once.

use std::{thread, time::Duration};

use crate::harness::{Run, Target, Truth, check_functions, check_holders, compiled, require_root, slowness};

/// The new image starts with nothing, and is traced from its start.
#[test]
fn exec_begins_anew() {
    require_root();
    let program = compiled("exec");
    let mut target = Target::start(&program);
    let tracer = Run::pid(target.pid()).start();
    let truth = target.ask("begin");
    let report = tracer.stop().report(0);
    check_functions("exec", &report, &truth, Some(&program));
    report.assert_nothing_lost("exec");
}

/// Children free what they inherited and allocate: the parent's numbers do not change.
#[test]
fn children_are_not_their_parent() {
    require_root();
    let program = compiled("fork");
    let mut target = Target::start(&program);
    let tracer = Run::pid(target.pid()).start();
    let truth = target.ask("begin");
    let report = tracer.stop().report(0);
    check_functions("fork", &report, &truth, Some(&program));
    report.assert_nothing_lost("fork");
    assert_eq!(report.quality("unmatched_frees"), 0, "frees of the children were taken for the parent's");
}

/// What a library allocates before its table is there stands under its name all the same; what it allocates afterwards has
/// a complete stack.
#[test]
fn libraries_that_are_opened_while_tracing() {
    libraries(&[]);
}

/// The same addresses are other functions then, and other stacks.
#[test]
fn a_library_in_the_place_of_one_that_was_closed() {
    assert_eq!(libraries(&["close"]).fact("same_address"), 1);
}

fn libraries(further: &[&str]) -> Truth {
    require_root();
    let program = compiled("plugins");
    let (first, second) = (compiled("plugin, first"), compiled("plugin, second"));
    let paths = [first.to_str().unwrap(), second.to_str().unwrap()];
    let mut target = Target::start_with(&program, &[&paths, further].concat(), &[]);
    let tracer = Run::pid(target.pid()).start();
    target.say("begin");
    thread::sleep(Duration::from_secs(1) * slowness());
    target.say("later");
    target.until("next");
    thread::sleep(Duration::from_secs(1) * slowness());
    target.say("next");
    thread::sleep(Duration::from_secs(1) * slowness());
    let truth = target.ask("later");
    let report = tracer.stop().report(0);
    check_holders("plugins", &report, &truth);
    for function in ["first_later", "second_later"] {
        let stack = report.stacks.iter().find(|stack| stack.caller() == function).unwrap();
        assert_eq!(&stack.functions[stack.functions.len() - 3..], ["use", "call", function], "{:?}", stack.functions);
        assert_eq!(stack.functions[0], "_start", "{:?}", stack.functions);
    }
    let cut = report.quality("truncated_stacks");
    assert_eq!(
        cut,
        report.json["quality"]["truncated_by_reason"]["no_mapping"].as_u64().unwrap_or(0),
        "{:?}",
        report.json["quality"]
    );
    assert!(cut <= 2, "{:?}", report.json["quality"]);
    truth
}

/// Whatever the first thread was for, the process lives on.
#[test]
fn the_first_thread_ends() {
    require_root();
    let program = compiled("main_exits");
    let mut target = Target::start(&program);
    let tracer = Run::pid(target.pid()).start();
    target.say("begin");
    target.until("ended");
    let truth = target.ask("go on");
    let report = tracer.stop().report(0);
    check_functions("first thread ended", &report, &truth, Some(&program));
    report.assert_nothing_lost("first thread ended");
}

/// Perf events are tied to a thread: when the first one ends they are moved to another.
#[test]
fn the_first_thread_ends_with_the_perf_events() {
    require_root();
    let program = compiled("main_exits");
    let mut target = Target::start(&program);
    let tracer = Run::pid(target.pid()).args(["--perf-events"]).start();
    target.say("begin");
    target.until("ended");
    // For as long as it takes to move the probes nothing is allocated here.
    thread::sleep(Duration::from_secs(4));
    let truth = target.ask("go on");
    // What was held then may have been freed in that moment, for all the tracer knows.
    let report = tracer.stop().report(3);
    check_functions("main thread ended", &report, &truth, Some(&program));
    assert_eq!(report.uncertain_bytes("after_the_end"), 0);
    assert!(report.json["quality"]["notes"].to_string().contains("first thread"), "{}", report.json["quality"]);
}

/// Two processes in one trace do not mix.
#[test]
fn several_processes_are_kept_apart() {
    require_root();
    let program = compiled("fork");
    let mut targets = [Target::start(&program), Target::start(&program)];
    let second = targets[1].pid().to_string();
    let tracer = Run::pid(targets[0].pid()).args(["--pid", &second]).start();
    let truth = targets[0].ask("begin");
    let both = targets[1].ask("begin").total() + truth.total();
    let report = tracer.stop().report(0);
    assert_eq!(report.outstanding(), both);
    for target in &targets {
        let of_this = report.of_process(target.pid());
        check_functions(&format!("process {}", target.pid()), &of_this, &truth, None);
    }
}

/// The trace ends with its target, with everything it held.
#[test]
fn the_end_of_the_target_ends_the_trace() {
    require_root();
    let program = compiled("fork");
    let mut target = Target::start(&program);
    let tracer = Run::pid(target.pid()).start();
    let truth = target.ask("begin");
    assert!(target.finish().success());
    let report = tracer.outcome().report(0);
    check_functions("ended", &report, &truth, Some(&program));
}
