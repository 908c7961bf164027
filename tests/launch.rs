//! `tracer -- CMD`: from the first instruction, with the command's own exit status.

use std::path::{Path, PathBuf};

use nix::sys::signal::Signal;

use crate::harness::{Held, Run, Truth, check_functions, compiled, preloadable, require_root, scratch};

fn told(output: &str) -> Truth {
    let mut truth = Truth::default();
    output.lines().for_each(|line| truth.read(line));
    assert!(!truth.held.is_empty(), "the command told no truth: {output}");
    truth
}

/// The reserve for exceptions that the C++ library allocates before everything else (72,704 bytes in GCC 12's).
fn has_reserve_for_exceptions(stacks: &[crate::harness::Stack]) -> bool {
    stacks.iter().any(|stack| stack.held == Held { bytes: 72_704, blocks: 1 })
}

fn check(what: &str, options: &[&str], command: &[&str], program: &Path, code: i32) {
    require_root();
    let outcome = Run::launch(options, command).finish();
    let truth = told(&outcome.stdout);
    let report = outcome.report(code);
    report.assert_nothing_lost(what);
    check_functions(what, &report, &truth, Some(program));
    assert!(has_reserve_for_exceptions(&report.stacks), "{what}: what was allocated before main is missing");
    assert_eq!(report.quality("unmatched_frees"), 0, "{what}: something was allocated before the probes were there");
}

#[test]
fn the_status_is_the_commands() {
    let program = compiled("launched");
    let path = program.to_str().unwrap();
    for (end, code) in [("0", 0), ("7", 7), ("kill", 128 + Signal::SIGTERM as i32)] {
        check(end, &[], &[path, end], &program, code);
    }
}

/// Nobody can look at it any more when it is known that it has mapped the library.
#[test]
fn an_allocator_of_a_command_that_ends_at_once() {
    require_root();
    let (program, library) = (compiled("brief_plugin"), compiled("plugin, own allocator"));
    let outcome = Run::launch(&[], [program.to_str().unwrap(), library.to_str().unwrap()]).finish();
    assert_eq!(told(&outcome.stdout).held["first_at_once"], Held { bytes: 100_000, blocks: 100 });
    let report = outcome.report(3);
    // None of the libraries that had probes, or need none.
    report.assert_gap("unseen_spans", 1);
    let notes = report.json["quality"]["notes"].as_array().unwrap();
    let path = library.to_str().unwrap();
    assert!(notes.iter().any(|note| note.as_str().is_some_and(|note| note.contains(path))), "{notes:?}");
}

/// The loader is the program, and maps the other one as it would a library.
#[test]
fn a_program_that_the_loader_is_told_to_run() {
    let program = compiled("launched");
    let path = program.to_str().unwrap();
    let loader = "/lib64/ld-linux-x86-64.so.2";
    check("by the loader", &[], &[loader, path, "7"], &program, 7);
    let command = format!("exec {loader} {path} 7");
    check("by the loader, from a shell", &[], &["sh", "-c", &command], &program, 7);
}

/// The loader gives up before the program begins, while the command is held.
#[test]
fn a_command_that_ends_while_it_is_loaded() {
    require_root();
    let folder = scratch();
    let missing = folder.path().join("libmissing.so");
    std::fs::copy(compiled("own allocator"), &missing).unwrap();
    let program = folder.path().join("brief");
    let source = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../tests/programs/brief.c");
    let linked = std::process::Command::new("cc").arg("-o").arg(&program).args([&source, &missing]).status().unwrap();
    assert!(linked.success());
    std::fs::remove_file(&missing).unwrap();
    let path = program.to_str().unwrap();
    for command in [vec![path], vec!["sh", "-c", &format!("exec {path}")]] {
        let outcome = Run::launch(&[], &command).finish();
        assert_eq!(outcome.code(), Some(127), "{command:?}: {}", outcome.stderr);
    }
}

/// By a script: the shell becomes the program, which starts with another allocator state.
#[test]
fn a_shell_that_becomes_the_program() {
    let program = compiled("launched");
    let script = format!("exec {} 5", program.display());
    require_root();
    let outcome = Run::launch(&[], ["sh", "-c", &script]).finish();
    let truth = told(&outcome.stdout);
    check_functions("exec by a shell", &outcome.report(5), &truth, Some(&program));
}

/// The command is held at its exec, so nothing is missed.
#[test]
fn a_thread_that_becomes_the_program() {
    require_root();
    let program = compiled("exec_thread");
    for options in [&[][..], &["--perf-events"]] {
        let outcome = Run::launch(options, [program.to_str().unwrap(), "at once"]).finish();
        check_functions("exec by a thread", &outcome.report(0), &told(&outcome.stdout), Some(&program));
    }
}

/// Told as soon as it happens; the command runs on.
#[test]
fn a_command_that_becomes_what_cannot_be_traced() {
    require_root();
    for (program, words) in [("32 bits", "32-bit"), ("no allocator", "without a malloc")] {
        let script = format!("exec {}", compiled(program).display());
        let mut running = Run::launch(&[], ["sh", "-c", &script]).start();
        running.wait_for_line(" WARN process");
        let report = running.stop().report(128 + Signal::SIGINT as i32);
        report.assert_gap("unseen_spans", 1);
        assert!(report.json["quality"]["notes"].to_string().contains(words), "{}", report.json["quality"]);
    }
}

/// A preloaded allocator is mapped after the C library, and searched before it.
#[test]
fn a_preloaded_allocator_is_found() {
    let program = compiled("launched");
    let preload = format!("LD_PRELOAD={}", preloadable("jemalloc"));
    require_root();
    let outcome = Run::launch(&[], ["env", &preload, program.to_str().unwrap(), "3"]).finish();
    let truth = told(&outcome.stdout);
    let report = outcome.report(3);
    check_functions("preloaded", &report, &truth, Some(&program));
}

/// One that is over at once is named all the same.
#[test]
fn a_short_life_has_names() {
    require_root();
    let program = compiled("brief");
    for _ in 0..3 {
        let report = Run::launch(&[], [&program]).finish().report(0);
        assert_eq!(report.below("forget_quickly"), Held { bytes: 4242, blocks: 1 });
        assert!(report.stacks.iter().any(|stack| stack.caller() == "forget_quickly" && stack.has("main")));
    }
}

/// Ctrl-C goes to the command, and its end is the end of the trace.
#[test]
fn a_signal_reaches_the_command() {
    require_root();
    let running = Run::launch(&[], ["sleep", "60"]).start();
    running.signal(Signal::SIGTERM);
    let outcome = running.outcome();
    assert_eq!(outcome.code(), Some(128 + Signal::SIGTERM as i32), "{}", outcome.stderr);
    assert!(outcome.has_report());
}

/// With a time limit the report comes in time; the command is waited for.
#[test]
fn a_time_limit_ends_the_trace_and_not_the_command() {
    require_root();
    let outcome = Run::launch(&["--duration", "500ms"], ["sh", "-c", "sleep 5; exit 4"]).finish();
    let report = outcome.report(4);
    let seconds = report.json["duration_seconds"].as_f64().unwrap();
    // As long as asked for, and not as long as the command.
    assert!((0.4..4.8).contains(&seconds), "traced for {seconds} s");
}

#[test]
fn a_command_that_cannot_be_started_is_named() {
    for (command, words) in [("no-such-command", "No such file"), ("/etc/passwd", "Permission denied"), ("/", "denied")]
    {
        let outcome = Run::launch(&[], [command]).finish();
        assert_eq!(outcome.code(), Some(1), "{}", outcome.stderr);
        assert!(outcome.stderr.contains(command) && outcome.stderr.contains(words), "{}", outcome.stderr);
        assert!(!outcome.has_report());
    }
}

/// Tracer needs more descriptors than a shell gives; the command gets what it would have had.
#[test]
fn the_command_keeps_its_limit_of_open_files() {
    require_root();
    let tracer = Run::through("prlimit", &["--nofile=512:4096"], Run::tracer());
    let limits = "ulimit -Sn; ulimit -Hn; grep 'open files' /proc/$PPID/limits";
    let outcome = tracer.args(["-q", "--", "sh", "-c", limits]).finish();
    let words: Vec<&str> = outcome.stdout.split_whitespace().take(7).collect();
    assert_eq!(words, ["512", "4096", "Max", "open", "files", "4096", "4096"], "{}", outcome.stderr);
}
