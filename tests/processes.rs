//! Processes that change under the tracer: exec, fork, a first thread that ends, and several at once.

use std::{
    fs,
    os::unix::process::ExitStatusExt as _,
    path::{Path, PathBuf},
    thread,
    time::Duration,
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use tempfile::TempDir;

use crate::harness::{
    Held, Run, Running, Target, Truth, check_functions, check_holders, compiled, require_root, scratch, slowness,
};

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
    let quality = &report.json["quality"];
    assert!(!quality["gaps"].to_string().contains("missed_frees"), "calls inside of calls were counted: {quality}");
}

/// It has no libraries yet when it is attached to, and is traced when they are there.
#[test]
fn a_process_that_is_stopped_before_it_is_loaded() {
    require_root();
    let program = compiled("family");
    let mut target = Target::start_with(&compiled("stopped_at_exec"), &[program.to_str().unwrap()], &[]);
    let children = format!("/proc/{0}/task/{0}/children", target.pid());
    let pid = fs::read_to_string(children).unwrap().trim().parse().unwrap();
    let mut tracer = Run::pid(pid).start();
    kill(Pid::from_raw(pid.cast_signed()), Signal::SIGCONT).unwrap();
    target.until("waiting");
    tracer.wait_for_line(" WARN process");
    let truth = target.ask("begin");
    let report = tracer.stop().report(3);
    check_holders("loaded late", &report, &truth);
    report.assert_gap("unseen_spans", 2);
    kill(Pid::from_raw(pid.cast_signed()), Signal::SIGKILL).unwrap();
}

/// Probes go with the thread that they were attached to. What is missed until others are there is told.
#[test]
fn exec_by_another_thread() {
    for options in [&[][..], &["--perf-events"]] {
        require_root();
        let program = compiled("exec_thread");
        let mut target = Target::start(&program);
        let mut tracer = Run::pid(target.pid()).args(options).start();
        target.say("begin");
        target.until("waiting");
        // For as long as it takes to attach again nothing is allocated here.
        tracer.wait_for_line(&format!(" WARN process {} became another program", target.pid()));
        let truth = target.ask("go on");
        let report = tracer.stop().report(3);
        check_functions("exec by another thread", &report, &truth, Some(&program));
        let notes = report.json["quality"]["notes"].to_string();
        assert_eq!(report.gap("unseen_spans"), 1, "told once, however late the exec is heard of: {notes}");
        assert!(notes.contains("ms of that were not recorded"), "{notes}");
    }
}

/// Told as soon as it happens.
#[test]
fn exec_of_what_cannot_be_traced() {
    require_root();
    for (program, words) in [("32 bits", "32-bit"), ("no allocator", "without a malloc")] {
        let mut target = Target::start_with(&compiled("become"), &[compiled(program).to_str().unwrap()], &[]);
        let mut tracer = Run::pid(target.pid()).start();
        target.say("begin");
        target.until("waiting");
        tracer.wait_for_line(" WARN process");
        let report = tracer.stop().report(3);
        assert_eq!(report.gap("unseen_spans"), 1, "{}", report.json["quality"]);
        assert_eq!(report.outstanding(), Held::default(), "what was held is gone with the first program");
        assert!(report.json["quality"]["notes"].to_string().contains(words), "{}", report.json["quality"]);
    }
}

/// A process that is given the id of one that has ended is another one.
#[test]
fn an_id_that_is_used_again() {
    require_root();
    let program = compiled("exec_thread");
    let (ends, mut stays) = (Target::start(&program), Target::start(&compiled("fork")));
    let pid = ends.pid();
    let tracer = Run::pid(pid).args(["--pid", &stays.pid().to_string(), "--no-children"]).start();
    drop(ends);
    let mut stranger = with_id(pid, &program, &["later"]);
    // For a tracer that would attach to it.
    thread::sleep(Duration::from_secs(1) * slowness());
    stranger.ask("go on");
    let truth = stays.ask("begin");
    let report = tracer.stop().report(0);
    check_functions("the one that stays", &report, &truth, None);
}

/// A shell starts program after program, and each has the id of the one before: what is there when one is looked at may be the next, or
/// the shell's child that is to become it.
#[test]
fn programs_that_have_one_id_one_after_the_other() {
    require_root();
    const TIMES: usize = 40;
    let program = compiled("brief");
    let (path, folder) = (program.to_str().unwrap(), scratch());
    let script = folder.path().join("script");
    let each = format!("echo $((P - 1)) >/proc/sys/kernel/ns_last_pid; {path};");
    let text = format!("read last </proc/sys/kernel/ns_last_pid; P=$((last + 3000)); {}", each.repeat(TIMES));
    fs::write(&script, text).unwrap();
    let report = Run::launch(&[], ["sh", script.to_str().unwrap()]).finish().report(0);
    let processes = report.json["processes"].as_array().unwrap();
    let stacks = report.json["stacks"].as_array().unwrap().iter();
    let own = stacks.filter(|stack| stack["frames"].to_string().contains("forget_quickly"));
    let images: Vec<u64> = own.map(|stack| stack["image"].as_u64().unwrap()).collect();
    assert_eq!(images.len(), TIMES, "{processes:?}");
    for image in images {
        let process = processes.iter().find(|process| process["image"].as_u64() == Some(image)).unwrap();
        // As much of the file's name as a name of a process holds. It may be over before anybody can see its path.
        let (comm, exe) = (process["comm"].as_str().unwrap(), process["exe"].as_str().unwrap());
        assert!(comm.starts_with("brief") && [path, ""].contains(&exe), "{process}");
    }
}

/// Starts a program again and again until it has this process id: `ns_last_pid` says where the kernel goes on.
fn with_id(pid: u32, program: &Path, arguments: &[&str]) -> Target {
    for _ in 0..2_000 {
        fs::write("/proc/sys/kernel/ns_last_pid", (pid - 1).to_string()).unwrap();
        let target = Target::start_with(program, arguments, &[]);
        if target.pid() == pid {
            return target;
        }
    }
    panic!("no process was given the id {pid}");
}

/// What the C library's caches give back then was freed before.
#[test]
fn threads_that_end_free_nothing_from_before() {
    require_root();
    let program = compiled("brief_threads");
    let mut target = Target::start(&program);
    let tracer = Run::pid(target.pid()).start();
    let truth = target.ask("begin");
    let report = tracer.stop().report(0);
    check_functions("threads", &report, &truth, Some(&program));
    assert_eq!(report.quality("unmatched_frees"), 0);
}

/// The probes go with the pages that they were written to. They are put there again, and what was missed is told.
#[test]
fn code_that_is_dropped() {
    require_root();
    for options in [&[][..], &["--perf-events"]] {
        let program = compiled("drops_text");
        let mut target = Target::start(&program);
        let mut tracer = Run::pid(target.pid()).args(options).start();
        target.say("begin");
        target.until("dropped");
        tracer.wait_for_line(" WARN");
        // What is allocated in the moment in which the probes come back is as uncertain as what was there before.
        thread::sleep(Duration::from_millis(200));
        let truth = target.ask("go on");
        let report = tracer.stop().report(3);
        check_functions("dropped", &report, &truth, Some(&program));
        report.assert_gap("unseen_spans", 1);
        // Some of them may have been freed while nobody looked.
        assert_eq!((report.uncertain_bytes("before"), report.uncertain_bytes("after")), (100_000, 0));
    }
}

/// A breakpoint that was copied ends the process that runs it, which is no end like another.
#[test]
fn the_signal_that_ends_a_process_is_told() {
    require_root();
    for (signal, status) in [(Signal::SIGTERM, 0), (Signal::SIGTRAP, 3)] {
        let mut target = Target::start(&compiled("memory"));
        let tracer = Run::pid(target.pid()).start();
        let held = target.ask("leak").held["leaks"];
        kill(Pid::from_raw(target.pid() as i32), signal).unwrap();
        assert_eq!(target.finish().signal(), Some(signal as i32));
        let outcome = tracer.outcome();
        let report = outcome.report(status);
        assert_eq!(report.outstanding(), held);
        assert_eq!(report.json["processes"][0]["ended_by_signal"], signal as i32, "{}", report.json["processes"]);
        assert!(outcome.stdout.contains(&format!(", by {signal}\n")), "{}", outcome.stdout);
        assert_eq!(report.gap("unseen_spans"), u64::from(signal == Signal::SIGTRAP));
    }
}

/// Children free what they inherited and allocate: the parent's numbers do not change.
#[test]
fn children_are_not_their_parent() {
    require_root();
    let program = compiled("fork");
    let mut target = Target::start(&program);
    let tracer = Run::pid(target.pid()).args(["--no-children"]).start();
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
        report.json["quality"]["truncated_by_reason"]["unknown_file"].as_u64().unwrap_or(0),
        "{:?}",
        report.json["quality"]
    );
    assert!(cut <= 2, "{:?}", report.json["quality"]);
    truth
}

/// Faster than anybody could look. Whoever takes what was known of an address for what is there now, gives the blocks of the
/// one to the other. Each file is told of until it is known, and then its stacks are whole.
#[test]
fn libraries_that_take_turns_at_one_address() {
    require_root();
    let program = compiled("swaps");
    let (first, second) = (compiled("plugin, first"), compiled("plugin, second"));
    let mut target = Target::start_with(&program, &[first.to_str().unwrap(), second.to_str().unwrap()], &[]);
    let tracer = Run::pid(target.pid()).args(["-v"]).start();
    target.say("begin");
    target.until("next");
    target.say("next");
    target.until("opened");
    thread::sleep(Duration::from_secs(1) * slowness());
    let truth = target.ask("later");
    let outcome = tracer.stop();
    let report = outcome.report(0);
    assert!(truth.fact("same_address") > 300, "{}", truth.fact("same_address"));
    check_holders("swaps", &report, &truth);
    report.assert_nothing_lost("swaps");
    for function in ["first_later", "second_later"] {
        let stacks: Vec<_> = report.stacks.iter().filter(|stack| stack.caller() == function).collect();
        assert_eq!(stacks.len(), 1, "{function}");
        assert_eq!(stacks[0].functions[0], "_start", "{:?}", stacks[0].functions);
    }
    for library in [first, second] {
        let name = library.file_name().unwrap().to_str().unwrap().to_owned();
        let tables = outcome.stderr.lines().filter(|line| line.contains("unwinding table") && line.contains(&name));
        assert_eq!(tables.count(), 1, "{name} is read once");
    }
}

/// The C library's is the last of them.
#[test]
fn hundreds_of_mappings() {
    require_root();
    let program = compiled("many mappings");
    let mut target = Target::start(&program);
    let tracer = Run::pid(target.pid()).start();
    let truth = target.ask("begin");
    let report = tracer.stop().report(0);
    check_functions("many mappings", &report, &truth, Some(&program));
    report.assert_complete("many mappings");
}

/// A program, and a traced process of it whose first thread has ended. It has a C library of its own: the end of any other trace would take
/// its probes with it, too.
fn whose_first_thread_ends(arguments: &[&str]) -> (TempDir, PathBuf, Target, Running) {
    require_root();
    let program = compiled("main_exits");
    let folder = scratch();
    fs::copy("/lib/x86_64-linux-gnu/libc.so.6", folder.path().join("libc.so.6")).unwrap();
    let mut target = Target::start_with(&program, &[], &[("LD_LIBRARY_PATH", folder.path().to_str().unwrap())]);
    let tracer = Run::pid(target.pid()).args(arguments).start();
    target.say("begin");
    target.until("ended");
    (folder, program, target, tracer)
}

/// Whatever the first thread was for, the process lives on.
#[test]
fn the_first_thread_ends() {
    let (_library, program, mut target, tracer) = whose_first_thread_ends(&[]);
    let truth = target.ask("go on");
    let report = tracer.stop().report(0);
    check_functions("first thread ended", &report, &truth, Some(&program));
    report.assert_nothing_lost("first thread ended");
}

/// What the kernel takes away with the probes of a child that ends is put there again: it knows the process by its first thread no more.
#[test]
fn the_first_thread_ends_and_a_child_does() {
    let (_library, program, mut target, tracer) = whose_first_thread_ends(&[]);
    target.ask("fork");
    // For as long as it takes to put them there again nothing is allocated here.
    thread::sleep(Duration::from_secs(2));
    let truth = target.ask("go on");
    let report = tracer.stop().report(3);
    check_functions("a child of another thread", &report, &truth, Some(&program));
    // It is read by another thread, too.
    assert!(
        report.json["processes"][0]["memory"]["as_of_seconds"].is_null(),
        "{}",
        report.json["processes"][0]["memory"]
    );
}

/// Perf events are tied to a thread: when the first one ends they are moved to another.
#[test]
fn the_first_thread_ends_with_the_perf_events() {
    let (_library, program, mut target, tracer) = whose_first_thread_ends(&["--perf-events"]);
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
    let tracer = Run::pid(targets[0].pid()).args(["--pid", &second, "--no-children"]).start();
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
    let tracer = Run::pid(target.pid()).args(["--no-children"]).start();
    let truth = target.ask("begin");
    assert!(target.finish().success());
    let report = tracer.outcome().report(0);
    check_functions("ended", &report, &truth, Some(&program));
}
