//! Processes with memory of Go's and of C's: stacks that go through both, and what tracing changes in the process.

use nix::sys::signal::Signal;

use crate::harness::{Held, Outcome, Run, STOCK, Target, Truth, go_program, require_root};

/// Mean of bytes between samples.
const MEAN: &str = "1024";
/// By how much an estimate may be off: with four thousand objects of half the mean, it is eight per cent in one case of
/// ten thousand.
const TOLERANCE: f64 = 0.1;

/// Functions that tell the program's stacks apart; they keep their names when it is stripped.
fn tells_apart(function: &str) -> bool {
    let of_main = function.strip_prefix("main.").is_some_and(|name| !["main", "keeps"].contains(&name));
    of_main || ["runtime.asmcgocall", "crosscall2"].contains(&function)
}

/// Who keeps memory, of which heap, and its stack, root first: what [`tells_apart`], and in parentheses the names in C.
const KEEPERS: [(&str, &str, &str); 8] = [
    ("main.goKeeps", "go", "main.goKeeps"),
    ("main.throughC", "native", "main.throughC main._Cfunc_c_keeps runtime.asmcgocall (c_keeps) (keep)"),
    ("calls_go", "native", "main.thereAndBack main._Cfunc_calls_go runtime.asmcgocall (calls_go) (keep)"),
    (
        "main.inGo",
        "go",
        "main.thereAndBack main._Cfunc_calls_go runtime.asmcgocall (calls_go) (inGo) crosscall2 main.inGo",
    ),
    (
        "c_deep",
        "native",
        "main.thereAndBack main._Cfunc_calls_go runtime.asmcgocall (calls_go) (inGo) crosscall2 main.inGo \
         main._Cfunc_c_deep runtime.asmcgocall (c_deep) (keep)",
    ),
    ("begin", "native", "(begin) (keep)"),
    ("main.onThread", "go", "(begin) (onThread) crosscall2 main.onThread"),
    (
        "c_last",
        "native",
        "(begin) (onThread) crosscall2 main.onThread main._Cfunc_c_last runtime.asmcgocall (c_last) (keep)",
    ),
];

/// Those of a stack's functions that count, in the order and the form of [`KEEPERS`].
fn signature(functions: &[String], in_c: bool) -> String {
    const IN_C: [&str; 8] = ["c_keeps", "calls_go", "inGo", "c_deep", "begin", "onThread", "c_last", "keep"];
    let words = functions.iter().filter_map(|function| match &**function {
        function if tells_apart(function) => Some(function.to_owned()).filter(|name| !name.contains("_cgo")),
        function if in_c && IN_C.contains(&function) => Some(format!("({function})")),
        _ => None,
    });
    words.collect::<Vec<_>>().join(" ")
}

/// Traces a program while it allocates, and compares what is said of each keeper with what the program says.
#[track_caller]
fn trace(what: &str, flags: &[&str], named: bool) -> (Outcome, Truth) {
    require_root();
    let program = go_program("both", flags);
    let mut target = Target::start(&program);
    let run = Run::pid(target.pid()).args(["--go-heap", "sample", "--sample", MEAN, "--top", "100"]);
    let folded = run.folder().join("out.folded");
    let running = run.args(["-o".as_ref(), folded.as_os_str()]).start();
    let truth = target.ask("allocate");
    let outcome = running.stop();
    let report = outcome.report(0);
    report.assert_complete(what);
    report.assert_nothing_lost(what);
    let stacks = report.json["stacks"].as_array().unwrap();
    for (keeper, heap, path) in KEEPERS {
        let wanted = path.split(' ').filter(|word| named || !word.starts_with('(')).collect::<Vec<_>>().join(" ");
        let of_keeper = report.stacks.iter().zip(stacks).filter(|(stack, json)| {
            // The C library and the runtime keep things of their own.
            json["heap"] == heap
                && stack.module.as_deref() == program.to_str()
                && signature(&stack.functions, named) == wanted
                && (heap == "native" || stack.caller() == "main.keeps")
        });
        let held = of_keeper.fold(Held::default(), |sum, (stack, _)| sum + stack.held);
        let expected = truth.held[keeper];
        if heap == "native" {
            assert_eq!(held, expected, "{what}: {keeper}: {wanted:?} in {:#?}", report.stacks);
        } else {
            let error = held.bytes as f64 / expected.bytes as f64 - 1.0;
            assert!(error.abs() < TOLERANCE, "{what}: {keeper} holds {held}, not {expected}: {:#?}", report.stacks);
        }
    }
    assert_eq!(truth.fact("rate"), 0, "{what}: the process was written to");
    assert_eq!(target.ask("").fact("rate"), 0, "{what}: the process was written to");
    (outcome, truth)
}

#[test]
fn stacks_through_go_and_c_are_whole_and_tell_their_heap() {
    let (outcome, truth) = trace("stock", STOCK, true);

    let folded = outcome.file("out.folded");
    let lines = |heap: &str, function: &str| {
        let lines = folded.lines().map(|line| line.rsplit_once(' ').unwrap());
        let lines = lines.filter(|(stack, _)| stack.split(';').nth(1) == Some(heap) && stack.contains(function));
        lines.map(|(_, bytes)| bytes.parse::<u64>().unwrap()).sum::<u64>()
    };
    assert_eq!(lines("[C heap]", ";main.throughC;"), truth.held["main.throughC"].bytes, "{folded}");
    assert!(lines("[Go heap]", ";main.goKeeps;") > 0, "{folded}");
    assert_eq!(lines("[C heap]", ";main.goKeeps;") + lines("[Go heap]", ";main.throughC;"), 0, "{folded}");
    assert!(folded.lines().all(|line| line.split(';').nth(1).is_some_and(|name| name.ends_with(" heap]"))), "{folded}");

    // Each stack in the text says which it is, and the head how each heap was seen.
    let text = &outcome.stdout;
    assert!(text.contains("  mode         C heap exact: every allocation was recorded\n"), "{text}");
    assert!(text.contains("               Go heap sampled: "), "{text}");
    let heaps = &outcome.report(0).json["processes"][0]["heaps"];
    assert_eq!((&heaps[0]["kind"], &heaps[0]["mode"]), (&"native".into(), &"exact".into()), "{heaps}");
    assert!(heaps[0]["sampling"].is_null() && heaps[1]["sampling"]["samples"].as_u64() > Some(0), "{heaps}");
    assert_eq!((&heaps[1]["kind"], &heaps[1]["mode"]), (&"go".into(), &"sampled".into()), "{heaps}");
    let lines: Vec<&str> = text.lines().collect();
    let heads: Vec<usize> = (0..lines.len()).filter(|index| lines[*index].starts_with('#')).collect();
    assert!(heads.len() >= KEEPERS.len(), "{text}");
    for head in heads {
        let heap = lines[head + 1];
        assert!(["    Go heap", "    C heap"].contains(&heap), "{text}");
        let frames = lines[head + 2..].iter().take_while(|line| !line.is_empty() && !line.starts_with('#'));
        let leaf = frames.into_iter().find(|line| line.starts_with("      ")).unwrap().trim();
        if leaf.starts_with("keep ") || leaf.starts_with("main.keeps ") {
            assert_eq!(heap == "    Go heap", leaf.starts_with("main."), "{text}");
        }
    }
}

#[test]
fn stacks_of_other_builds() {
    trace("stripped", &["-ldflags=-s -w"], false);
    trace("position-independent and stripped", &["-buildmode=pie", "-ldflags=-s -w"], false);
}

/// A run of a kind that begins, and what the program says of its rate while it goes on and after its end.
fn rates(target: &mut Target, options: &[&str], signal: Signal) -> ((u64, u64), Outcome) {
    let running = Run::pid(target.pid()).args(options).start();
    let during = target.ask("allocate").fact("rate");
    running.signal(signal);
    let outcome = running.outcome();
    ((during, target.ask("").fact("rate")), outcome)
}

fn held_by_go(outcome: &Outcome) -> u64 {
    let report = outcome.report(0);
    let stacks = report.json["stacks"].as_array().unwrap();
    let own = stacks.iter().filter(|stack| stack["heap"] == "go");
    let bytes = own.filter_map(|stack| stack["outstanding_bytes"].as_u64());
    bytes.sum()
}

/// What a run that is to read the runtime's own profile says when there is none.
fn says_none(target: &Target) -> bool {
    let outcome = Run::pid(target.pid()).args(["--go-heap", "buckets"]).finish();
    assert_eq!(outcome.code(), Some(1), "{}", outcome.stderr);
    outcome.stderr.contains("MemProfileRate is 0")
}

#[test]
fn a_profile_is_turned_on_only_when_asked_for_and_turned_off_at_the_end() {
    require_root();
    let mut target = Target::start(&go_program("both", STOCK));
    for signal in [Signal::SIGINT, Signal::SIGTERM] {
        let (rates, outcome) = rates(&mut target, &["--go-heap", "enable", "--sample", MEAN], signal);
        assert_eq!(rates, (1024, 0), "{signal}");
        // As of a collection: what came after the last one is not in it yet.
        assert!(held_by_go(&outcome) > 1 << 20, "{signal}: {}", outcome.stdout);
        assert!(says_none(&target), "{signal}");
    }
    for way in ["auto", "sample"] {
        let (rates, outcome) = rates(&mut target, &["--go-heap", way, "--sample", MEAN], Signal::SIGTERM);
        assert_eq!(rates, (0, 0), "{way}");
        assert!(outcome.stdout.contains("is sampled ("), "{way}: {}", outcome.stdout);
    }
    assert_eq!(target.ask("profile").fact("rate"), 512);
    for way in ["auto", "buckets", "enable"] {
        let (rates, outcome) = rates(&mut target, &["--go-heap", way, "--sample", MEAN], Signal::SIGINT);
        assert_eq!(rates, (512, 512), "{way}");
        assert_eq!(
            outcome.report(0).json["quality"]["notes"].to_string().matches("a sample every 512 bytes").count(),
            1
        );
    }
    assert!(target.is_alive());
}

#[test]
fn a_profile_that_the_program_turns_on_meanwhile_stays_on() {
    require_root();
    let mut target = Target::start(&go_program("both", STOCK));
    let running = Run::pid(target.pid()).args(["--go-heap", "enable", "--sample", MEAN]).start();
    assert_eq!(target.ask("allocate").fact("rate"), 1024);
    assert_eq!(target.ask("profile").fact("rate"), 512);
    let outcome = running.stop();
    assert!(outcome.has_report(), "{}", outcome.stderr);
    assert_eq!(target.ask("").fact("rate"), 512);
}

#[test]
fn what_can_be_seen_of_a_runtime_is_told() {
    require_root();
    for (flags, build, layouts, variables) in [
        (STOCK, "with symbols", "its own DWARF", "by its symbols: "),
        (&["-ldflags=-w"][..], "with symbols", "what is known of go1.", "by its symbols: "),
        (&["-ldflags=-s -w"], "stripped: without symbols", "what is known of go1.", "by the code that mentions them: "),
        (
            &["-buildmode=pie", "-ldflags=-s -w"],
            "stripped: without symbols, position-independent",
            "what is known of go1.",
            "by the code that mentions them: ",
        ),
    ] {
        let mut target = Target::start(&go_program("both", flags));
        let findings = tracer::go::heap::diagnose(target.pid());
        let told: Vec<String> = findings.iter().map(ToString::to_string).collect();
        assert!(findings.iter().all(|finding| !finding.is_problem), "{told:#?}");
        let [version, layout, found, rate, goroutines, sites] = &told[..] else { panic!("{told:#?}") };
        assert!(version.starts_with("built with go1.") && version.ends_with(&format!(", {build}")), "{version}");
        assert!(layout.starts_with(&format!("what its runtime looks like is told by {layouts}")), "{layout}");
        let names = found.strip_prefix(&format!("variables found {variables}")).unwrap_or_else(|| panic!("{found}"));
        for name in ["allglen", "allgptr", "mheap_", "mbuckets", "MemProfileRate"] {
            assert!(names.split(", ").any(|found| found == format!("runtime.{name}")), "{found}");
        }
        assert!(rate.contains("(MemProfileRate is 0): allocations are sampled"), "{rate}");
        assert!(goroutines.starts_with("goroutines can be read: 1, and "), "{goroutines}");
        assert!(sites.starts_with("allocations can be sampled: ") && !sites.contains(": 0 "), "{sites}");

        // It is what a trace says that is to say more.
        let outcome = Run::pid(target.pid()).args(["-v"]).start().stop();
        for line in [version, layout, found, rate, sites] {
            assert!(
                outcome.stderr.lines().any(|said| said.contains(&format!("DEBUG Go: {line}"))),
                "{}",
                outcome.stderr
            );
        }
        target.ask("profile");
        let rate = &tracer::go::heap::diagnose(target.pid())[3];
        assert!(rate.to_string().contains("(MemProfileRate is 512): that is read"), "{rate}");
    }
    assert_eq!(tracer::go::heap::diagnose(std::process::id()), [], "the tests are no Go program");
    let nobody = tracer::go::heap::diagnose(u32::MAX >> 1);
    assert!(nobody.len() == 1 && nobody[0].is_problem, "{nobody:?}");
}

/// Code of C in a program that the Go linker has put together alone uses the frame pointer for anything, and no table is there.
#[test]
fn stacks_through_c_that_the_go_linker_has_put_in_are_whole() {
    require_root();
    for flags in [&["CGO_ENABLED=1"][..], &["CGO_ENABLED=1", "-ldflags=-s -w"]] {
        let program = go_program("linked", flags);
        let mut target = Target::start(&program);
        let tracer = Run::pid(target.pid()).args(["--go-heap", "off"]).start();
        target.ask("begin");
        let report = tracer.stop().report(0);
        let mut through_c = report.stacks.iter().filter(|stack| stack.has("__getpwuid_r")).peekable();
        assert!(through_c.peek().is_some(), "{flags:?}: C was called");
        for stack in through_c {
            let c = stack.functions.iter().position(|function| function == "__getpwuid_r").unwrap();
            assert!(c > 10, "it does not begin where Go has called C: {:?}", stack.functions);
            // No names are left of Go's functions where it is stripped.
            if flags.len() == 1 {
                assert_eq!(stack.functions[0], "runtime.goexit", "{:?}", stack.functions);
                assert!(stack.has("main.main") && stack.has("runtime.asmcgocall"), "{:?}", stack.functions);
            }
        }
    }
}

/// Children that end before anybody could look at them are told as that, not as what could not be done to them.
#[test]
fn children_that_end_at_once() {
    require_root();
    let program = go_program("heap", STOCK);
    let line = format!("for i in 1 2 3 4 5 6 7 8 9 10; do {} ring; done; true", program.display());
    let outcome = Run::launch(&[], ["sh", "-c", &*line]).finish();
    let report = outcome.report(outcome.code().unwrap());
    let notes = report.json["quality"]["notes"].to_string();
    for told in [&notes, &outcome.stderr] {
        assert!(!told.contains("pgrep") && !told.contains("No such process"), "{told}");
    }
}
