//! Hostile targets: names that terminals, browsers and parsers trip over, and garbage mapped as code.

use std::{path::Path, time::Duration};

use crate::harness::{Outcome, Pprof, Run, Target, compiled, pprof, require_root, scratch};

/// Traces the hostile program into every format.
fn traced() -> (Outcome, crate::harness::Truth) {
    require_root();
    let folder = scratch();
    let program = compiled("hostile");
    let garbage = folder.path().join("garbage");
    let mut target = Target::start_with(&program, &[garbage.to_str().unwrap()], &[]);
    let run = Run::pid(target.pid());
    let files: Vec<String> = ["out.svg", "out.folded", "out.txt", "out.pb.gz"]
        .iter()
        .flat_map(|name| ["-o".to_owned(), run.folder().join(name).to_string_lossy().into_owned()])
        .collect();
    let tracer = run.args(&files).start();
    let truth = target.ask("begin");
    (tracer.stop(), truth)
}

#[test]
fn hostile_names_do_no_harm_in_any_format() {
    let (outcome, truth) = traced();
    let report = outcome.report(0);
    report.assert_nothing_lost("hostile");
    assert_eq!(report.outstanding(), truth.total());

    // JSON keeps what is there.
    let callers = report.by_caller(None);
    for name in ["<script>alert", "a;b 77;c 88", "\u{1b}[2Jcleared", "&amp;]]>'<!--"] {
        assert!(callers.keys().any(|caller| caller.starts_with(name)), "no {name:?} in {callers:?}");
    }
    assert!(report.json["processes"][0]["comm"].as_str().unwrap().starts_with("<b>;\n\u{1b}"));

    // Terminals obey nothing.
    for text in [&outcome.stdout, &outcome.file("out.txt"), &outcome.file("out.folded")] {
        assert!(!text.contains(|c: char| c.is_control() && c != '\n'), "{text:?}");
    }
    // Nor what pprof prints, which leaves names as they are in the file.
    let file = outcome.path("out.pb.gz");
    let top = pprof(&["-top", "-nodecount=100000", "-nodefraction=0"], &file);
    assert!(!top.contains(|c: char| c.is_control() && c != '\n'), "{top:?}");
    for name in ["<script>alert", "a;b 77;c 88", r"\u{1b}[2Jcleared", "&amp;]]>'<!--"] {
        assert!(top.lines().any(|line| line.contains(&format!("  {name}"))), "no {name:?} in {top}");
    }
    assert_eq!(Pprof::read(&file).totals()[1], truth.total().bytes);
    // Folded: each line is one stack and a number, and the sum is the total.
    let folded = outcome.file("out.folded");
    let sum: u64 = folded.lines().map(|line| line.rsplit_once(' ').unwrap().1.parse::<u64>().unwrap()).sum();
    assert_eq!(sum, truth.total().bytes, "{folded}");
    assert_eq!(folded.lines().count(), truth.held.len(), "{folded}");
    // A name with separators stays one frame: all stacks are equally deep.
    let depths: Vec<usize> = folded.lines().map(|line| line.matches(';').count()).collect();
    assert!(depths.iter().all(|depth| *depth == depths[0]), "{folded}");
    // Browsers run nothing of it.
    let svg = outcome.file("out.svg");
    crate::formats::assert_well_formed(&svg);
    assert!(!svg.contains("<script>alert"), "a name became a script");
}

/// The clock of a time namespace is another one than that of the kernel's events.
#[test]
fn ages_are_right_in_a_time_namespace() {
    require_root();
    let folder = scratch();
    let garbage = folder.path().join("garbage");
    for ahead in ["100000", "-1"] {
        let mut target = Target::start_with(&compiled("hostile"), &[garbage.to_str().unwrap()], &[]);
        let tracer = Run::through("unshare", &["-T", "--monotonic", ahead], Run::tracer());
        let tracer = tracer.with_json().args(["--pid", &target.pid().to_string()]).start();
        target.ask("begin");
        let report = tracer.stop().report(0);
        let oldest =
            report.json["stacks"].as_array().unwrap().iter().filter_map(|stack| stack["oldest_seconds"].as_f64());
        let oldest = oldest.fold(None, |oldest: Option<f64>, age| Some(oldest.map_or(age, |oldest| oldest.max(age))));
        let traced = report.json["duration_seconds"].as_f64().unwrap();
        // Times are rounded down to ticks of a millisecond, and read once per timer tick.
        assert!(oldest.is_some_and(|oldest| oldest <= traced + 0.1), "{oldest:?} of {traced} s, {ahead} s ahead");
    }
}

/// A program that generates code, in a mount namespace of its own that `mounts` (commands for a shell; PERF_MAP is where the map
/// is looked for) has made.
fn with_mounts(mounts: &str) -> Target {
    // The program itself may lie below /tmp.
    let script =
        format!("exec 9<\"$0\"; mount -t tmpfs none /tmp; PERF_MAP=/tmp/perf-$$.map; {mounts} && exec /proc/self/fd/9");
    let program = compiled("generated code");
    Target::start_with(Path::new("unshare"), &["-m", "sh", "-c", &script, program.to_str().unwrap()], &[])
}

/// Looks like a regular file that belongs to root, and reading it waits until the kernel has something to say.
#[test]
fn a_perf_map_that_waits_for_ever() {
    require_root();
    for file in ["/proc/kmsg", "/dev/kmsg"] {
        let mut target = with_mounts(&format!("touch $PERF_MAP; mount --bind {file} $PERF_MAP"));
        let tracer = Run::pid(target.pid()).start();
        let truth = target.ask("begin");
        tracer.signal(nix::sys::signal::Signal::SIGINT);
        let report = tracer.outcome_within(Duration::from_secs(20)).report(0);
        assert_eq!(report.outstanding(), truth.total(), "{file}");
    }
}

/// Stacks that do not fit into memory become one: first those that hold nothing, then the smallest. The sums stay.
#[test]
fn stacks_that_do_not_fit_become_one() {
    require_root();
    let mut target = Target::start(&compiled("deep"));
    let tracer = Run::pid(target.pid()).args(["--max-memory", "128MiB"]).start();
    let truth = target.ask("begin");
    let report = tracer.stop().report(0);
    report.assert_nothing_lost("deep");
    assert_eq!(report.outstanding(), truth.total());
    let (others, own): (Vec<_>, Vec<_>) = report.stacks.iter().partition(|stack| stack.has("[other stacks]"));
    assert!(others.len() == 1 && others[0].allocated.blocks > 1000, "{others:?}");
    assert_eq!(others[0].held.blocks, 0, "those that hold nothing are enough");
    let held = own.iter().filter(|stack| stack.held.blocks > 0);
    assert_eq!(held.count() as u64, truth.total().blocks, "each block has a stack of its own");
    let notes = report.json["quality"]["notes"].to_string();
    assert!(notes.contains("[other stacks]") && notes.contains("--max-memory"), "{notes}");
}
