//! The heap of Go programs: by samples against what the programs say of themselves, and from the runtime's own buckets against
//! runtime/pprof; and that whatever the tracer does harms none of them.

mod harm;
mod memory;

use std::{fs, io::Write as _, thread, time::Duration};

use crate::harness::{
    Outcome, Report, Run, STOCK, Target, Truth, Usage, Usages, alone, callers_of, check_sites, go_program, hot_profile,
    read_heap_profile, reported_usages, require_root, scratch, slowness,
};

const STRIPPED: &[&str] = &["-ldflags=-s -w"];
const POSITION_INDEPENDENT: &[&str] = &["-buildmode=pie"];
const PROFILED: &[&str] = &["-tags=profiled"];

/// Mean number of bytes between samples, unless the command line says otherwise.
const DEFAULT_MEAN: f64 = 32.0 * 1024.0;

fn run(pid: u32, mode: &str) -> Run {
    require_root();
    Run::pid(pid).args(["--go-heap", mode])
}

/// Whatever the mode, the report is one of a Go heap.
#[track_caller]
fn go_report(what: &str, outcome: &Outcome, mode: &str) -> Report {
    let report = outcome.report(0);
    assert_eq!((&report.json["kind"], &report.json["mode"]), (&"heap".into(), &mode.into()), "{what}");
    assert_eq!(report.json["processes"][0]["language"], "Go", "{what}");
    for stack in &report.stacks {
        assert_eq!(stack.heap.as_deref(), Some("go"), "{what}: {:?}", stack.functions);
        assert!(stack.functions.iter().all(|name| !name.is_empty()), "{what}: {:?}", stack.functions);
    }
    report.assert_complete(what);
    report
}

/// Runs cases of the program under a tracer that samples. Where the machine is too busy to look at every garbage collection, which is
/// told, once more.
#[track_caller]
fn sampled(what: &str, flags: &[&str], cases: &[&str], sample: Option<&str>) -> (Report, Truth) {
    const TIMES: usize = 3;
    let mut left = TIMES;
    loop {
        let mut target = Target::start_with(&go_program("heap", flags), cases, &[]);
        // That a program without the runtime's profile is sampled goes without saying.
        let mut run = run(target.pid(), "auto");
        if let Some(sample) = sample {
            run = run.args(["--sample", sample]);
        }
        let tracer = run.start();
        let truth = target.ask("begin");
        let outcome = tracer.stop();
        assert!(target.is_alive(), "{what}");
        left -= 1;
        if left > 0 && outcome.code() == Some(3) && outcome.report(3).gap("missed_cycles") > 0 {
            continue;
        }
        return (go_report(what, &outcome, "sampled"), truth);
    }
}

#[track_caller]
fn check_case(case: &str) {
    let (report, truth) = sampled(case, STOCK, &[case], None);
    let sampling = &report.json["quality"]["sampling"];
    assert_eq!(sampling["mean_bytes"].as_f64(), Some(DEFAULT_MEAN), "{case}: {sampling}");
    // What was allocated is at least what the sites have allocated: a sample every 32 KiB.
    let allocated: u64 = truth.sites.values().map(|site| site.allocated.requested).sum();
    let samples = sampling["samples"].as_f64().unwrap();
    assert!(
        samples > 100.0 && samples * DEFAULT_MEAN < 3.0 * allocated as f64,
        "{case}: {sampling}, {allocated} bytes"
    );
    let error = sampling["relative_error"].as_f64().unwrap();
    assert!(error > 0.0 && error < 0.5, "{case}: {sampling}");
    check_sites(case, &report, &truth, DEFAULT_MEAN);
}

#[test]
fn a_map_that_is_never_cleared() {
    check_case("syncmap");
}

#[test]
fn buffers_of_goroutines_that_are_stuck() {
    check_case("stuck");
}

#[test]
fn slices_that_grow_behind_an_interface() {
    check_case("slice");
}

#[test]
fn a_cache_with_a_bound() {
    check_case("ring");
}

#[test]
fn churn_beside_what_is_held() {
    let _turn = alone();
    check_case("churn");
}

#[test]
fn large_objects() {
    check_case("large");
}

#[test]
fn tiny_objects() {
    check_case("tiny");
}

#[test]
fn small_objects() {
    check_case("small");
}

#[test]
fn objects_with_headers() {
    check_case("header");
}

#[test]
fn objects_with_finalizers() {
    check_case("finalizers");
}

#[test]
fn maps_of_which_half_is_deleted() {
    check_case("maps");
}

#[test]
fn many_goroutines_whose_stacks_grow_while_garbage_is_collected() {
    let _turn = alone();
    check_case("crowd");
}

/// All cases in one process, sampled more often: estimates are so much the sharper.
#[test]
fn whatever_way_it_was_built() {
    let _turn = alone();
    for (build, flags) in [("stripped", STRIPPED), ("position-independent", POSITION_INDEPENDENT)] {
        let (report, truth) = sampled(build, flags, &["all"], Some("8KiB"));
        check_sites(build, &report, &truth, 8192.0);
    }
}

/// The compiler inlines what is probed elsewhere, differently in each version.
#[test]
fn optimised_by_a_profile() {
    let _turn = alone();
    let Some(profile) = hot_profile() else {
        // Not by the macro, whose output is kept back when a test passes.
        writeln!(std::io::stderr(), "optimised_by_a_profile: NOT RUN, this version of Go takes no profile").unwrap();
        return;
    };
    let flag = format!("-pgo={}", profile.display());
    let (report, truth) = sampled("-pgo", &[&flag], &["all"], Some("8KiB"));
    check_sites("-pgo", &report, &truth, 8192.0);
}

/// Where an object comes from is told to the line, up to where its goroutine began.
#[test]
fn stacks_reach_from_the_line_to_the_root() {
    let source = include_str!("programs/go/heap/containers.go");
    let line = 1 + source.lines().position(|line| line.contains("entry := make")).unwrap();
    for flags in [STOCK, STRIPPED, POSITION_INDEPENDENT] {
        let (report, _) = sampled("ring", flags, &["ring"], None);
        let callers = callers_of(&report, "main.(*ring).put");
        assert_eq!(callers.len(), 1, "{callers:#?}");
        let stack: Vec<(String, String)> = callers.into_iter().next().unwrap();
        let names: Vec<&str> = stack.iter().map(|(function, _)| &**function).collect();
        assert!(
            matches!(
                *names,
                ["main.work", "main.turnRing", "main.(*ring).put"]
                    | ["runtime.goexit", "main.work", "main.turnRing", "main.(*ring).put"]
            ),
            "{names:?}"
        );
        let place = &stack.last().unwrap().1;
        assert!(place.ends_with(&format!("/containers.go:{line}")), "{place}, not line {line}");
    }
}

/// A thread's first allocation is one like any other: it is large enough to be sampled for certain.
#[test]
fn the_first_allocation_of_each_thread() {
    let (report, _) = sampled("firsts", STOCK, &["firsts"], None);
    let held = report.below("main.newFirst");
    assert_eq!((held.blocks, held.bytes), (16, 128 << 20));
}

/// What was there before is not seen, and the report does not say that nothing is.
#[test]
fn samples_begin_with_the_tracer() {
    let mut target = Target::start_with(&go_program("heap", STOCK), &["small"], &[]);
    target.ask("begin");
    let tracer = run(target.pid(), "sample").start();
    target.ask("collect");
    let outcome = tracer.stop();
    // If it has allocated too little for a sample, that is told.
    let report = outcome.report(outcome.code().unwrap());
    assert_eq!(report.json["mode"], "sampled");
    assert_eq!(report.is_complete(), outcome.code() == Some(0), "{:?}", report.gaps());
    assert!(report.gaps().iter().all(|gap| gap == "silent_targets"), "{:?}", report.gaps());
    assert!(report.outstanding().bytes < 1 << 20, "{}", report.json["totals"]);
}

/// A program that another one starts has its own heap, though it has no other allocator: it is followed from when it is found.
#[test]
fn of_a_child() {
    require_root();
    let program = go_program("heap", STOCK);
    let line = format!("(sleep {}; echo begin; sleep 1) | {} syncmap; true", 2 * slowness(), program.display());
    let outcome = Run::launch(&[], ["sh", "-c", &*line]).finish();
    let mut truth = Truth::default();
    outcome.stdout.lines().for_each(|line| truth.read(line));
    let report = outcome.report(3);
    report.assert_gap("unseen_heaps", 1);
    check_sites("a child", &report, &truth, DEFAULT_MEAN);
}

/// Compares every stack and byte with the profile that the program wrote of itself. A record may be rounded the other way.
#[track_caller]
fn assert_same_profile(what: &str, report: &Report, profile: &str) {
    // There it talks, and writes the profile; and the runtime may begin a thread at any time.
    let apart = |usages: Usages| -> Usages {
        let talks = |frame: &String| frame.starts_with("main.main ");
        let is_runtime = |frame: &String| frame.starts_with("runtime.");
        let wanted = |frames: &Vec<String>| !frames.iter().any(talks) && !frames.iter().all(is_runtime);
        usages.into_iter().filter(|(frames, _)| wanted(frames)).collect()
    };
    let (reported, truth) = (apart(reported_usages(report)), apart(read_heap_profile(profile)));
    let same = |a: Usage, b: Usage| {
        let records = a.records.max(b.records);
        let near = |a: i64, b: i64| (a - b).abs() <= records;
        near(a.held_blocks, b.held_blocks)
            && near(a.held_bytes, b.held_bytes)
            && near(a.allocated_blocks, b.allocated_blocks)
            && near(a.allocated_bytes, b.allocated_bytes)
    };
    let get = |usages: &Usages, frames: &Vec<String>| usages.get(frames).copied().unwrap_or_default();
    let differing: Vec<String> = reported
        .keys()
        .chain(truth.keys())
        .filter(|frames| !same(get(&reported, frames), get(&truth, frames)))
        .map(|frames| {
            format!(
                "reported {:?}\nin truth {:?}\n  {}\n",
                get(&reported, frames),
                get(&truth, frames),
                frames.join("\n  ")
            )
        })
        .collect();
    assert!(differing.is_empty(), "{what}: {} stacks differ\n{}", differing.len(), differing.join("\n"));
    let held: i64 = truth.values().map(|usage| usage.held_bytes).sum();
    assert!(held > 32 << 20, "{what}: not much of a profile: {held} bytes");
}

/// Everything since the program began, of a tracer that came afterwards.
#[track_caller]
fn check_buckets(build: &str, flags: &[&str], rate: Option<&str>) {
    let flags: Vec<&str> = PROFILED.iter().chain(flags).copied().collect();
    let environment: Vec<(&str, &str)> = rate.map(|rate| ("HEAP_PROFILE_RATE", rate)).into_iter().collect();
    let cases = ["syncmap", "stuck", "slice", "large", "tiny", "small", "crowd"];
    let mut target = Target::start_with(&go_program("heap", &flags), &cases, &environment);
    target.ask("begin");
    let folder = scratch();
    let profile = folder.path().join("profile");
    target.ask(&format!("profile {}", profile.display()));
    let profile = fs::read_to_string(profile).unwrap();
    for mode in ["auto", "buckets"] {
        let what = format!("{build}, rate {}, {mode}", rate.unwrap_or("as it is"));
        let report = go_report(&what, &run(target.pid(), mode).start().stop(), "go-buckets");
        // Where every object is counted, there is no error.
        let error = report.json["quality"]["sampling"]["relative_error"].as_f64().unwrap_or(0.0);
        assert!(error == 0.0 || rate != Some("1"), "{what}: {}", report.json["quality"]);
        assert_same_profile(&what, &report, &profile);
    }
    assert!(target.is_alive());
}

#[test]
fn buckets_are_those_of_the_runtimes_own_profile() {
    for rate in [None, Some("4096"), Some("1")] {
        check_buckets("stock", STOCK, rate);
    }
    check_buckets("stripped", STRIPPED, Some("4096"));
    check_buckets("position-independent and stripped", &["-buildmode=pie", "-ldflags=-s -w"], Some("4096"));
}

/// What has been allocated since the last garbage collection is garbage, and is in neither profile.
#[test]
fn buckets_are_those_of_a_collection() {
    let environment = [("HEAP_PROFILE_RATE", "4096"), ("GOGC", "off")];
    let mut target = Target::start_with(&go_program("heap", PROFILED), &["slice"], &environment);
    target.ask("begin");
    let folder = scratch();
    let profile = folder.path().join("profile");
    target.ask(&format!("litter {}", profile.display()));
    let outcome = run(target.pid(), "buckets").start().stop();
    let report = go_report("litter", &outcome, "go-buckets");
    assert_same_profile("litter", &report, &fs::read_to_string(profile).unwrap());
    assert_eq!(report.below("main.litter").bytes, 0);
    let collections = &report.json["quality"]["collections"][0];
    assert!(collections["at_end"].as_u64().is_some_and(|end| end >= 4), "{collections}");
    assert_eq!(collections["at_begin"], collections["at_end"]);
}

/// Nothing says what has ended: the report is not complete, and says why.
#[test]
fn samples_without_a_collection_are_not_complete() {
    let mut target = Target::start_with(&go_program("heap", STOCK), &["slice"], &[("GOGC", "off")]);
    let tracer = run(target.pid(), "auto").start();
    target.ask("litter");
    let outcome = tracer.stop();
    assert_eq!(outcome.code(), Some(3), "{}", outcome.stderr);
    let report = Report::parse(&outcome.file("out.json"));
    let quality = &report.json["quality"];
    assert_eq!((&quality["complete"], &quality["cycles"]), (&false.into(), &0.into()), "{quality}");
    let held = report.below("main.litter").bytes;
    assert!(held.abs_diff(64 << 20) < 8 << 20, "{held} bytes, all that was allocated");
    // With one, it is known.
    let tracer = run(target.pid(), "auto").start();
    target.ask("litter");
    target.ask("collect");
    let report = go_report("with a collection", &tracer.stop(), "sampled");
    assert_eq!(report.below("main.litter").bytes, 0);
    assert!(report.json["quality"]["cycles"].as_u64().is_some_and(|cycles| cycles >= 4), "{}", report.json["quality"]);
}

/// Few samples say so, and which mean would give enough.
#[test]
fn few_samples_ask_for_more() {
    let mut target = Target::start_with(&go_program("heap", STOCK), &["slice"], &[("GOGC", "off")]);
    let tracer = run(target.pid(), "auto").args(["--sample", "4MiB"]).start();
    target.ask("litter");
    let report = Report::parse(&tracer.stop().file("out.json"));
    let quality = &report.json["quality"];
    let note = quality["notes"].as_array().unwrap().iter().find_map(|note| {
        note.as_str().filter(|note| note.contains("few samples"))?.split("--sample=").nth(1)?.split("KiB").next()
    });
    let mean: u64 = note.unwrap_or_else(|| panic!("{quality}")).parse().unwrap();
    // 64 MiB in 100 samples, as far as so few tell.
    assert!((128..=2048).contains(&mean), "{quality}");
}

/// A profile without ages cannot tell what is old: it is refused by name, or the samples are taken, which have ages.
#[test]
fn the_age_of_objects_is_known_or_refused() {
    let mut target = Target::start_with(&go_program("heap", PROFILED), &["slice"], &[("GOGC", "off")]);
    for way in ["buckets", "enable"] {
        let outcome = run(target.pid(), way).args(["--min-age", "1s"]).finish();
        assert_eq!(outcome.code(), Some(2), "{}", outcome.stderr);
        let refusal = format!("--min-age cannot be used with --go-heap={way}: ");
        assert!(outcome.stderr.contains(&refusal), "{}", outcome.stderr);
    }
    let tracer = run(target.pid(), "auto").args(["--min-age", "1h"]).start();
    target.ask("litter");
    target.ask("begin");
    let report = go_report("younger", &tracer.stop(), "sampled");
    assert_eq!(report.outstanding().bytes, 0, "{}", report.json["totals"]);
    let tracer = run(target.pid(), "auto").args(["--min-age", "1s"]).start();
    target.ask("begin");
    thread::sleep(Duration::from_millis(1500));
    let report = go_report("older", &tracer.stop(), "sampled");
    assert!(report.outstanding().bytes > 1 << 20, "{}", report.json["totals"]);
}

/// A program with the runtime's profile can be sampled, too.
#[test]
fn what_has_buckets_can_be_sampled() {
    let mut target = Target::start_with(&go_program("heap", PROFILED), &["small"], &[]);
    let tracer = run(target.pid(), "sample").start();
    let truth = target.ask("begin");
    let report = go_report("sampled", &tracer.stop(), "sampled");
    check_sites("sampled", &report, &truth, DEFAULT_MEAN);
}

/// Switches the runtime's profile on, and off again.
#[test]
fn enabling_the_profile_is_undone() {
    let mut target = Target::start_with(&go_program("heap", STOCK), &["ring"], &[]);
    let tracer = run(target.pid(), "enable").start();
    let truth = target.ask("begin");
    let report = go_report("enabled", &tracer.stop(), "go-buckets");
    let (held, site) = (report.below("main.(*ring).put"), truth.sites["main.(*ring).put"].held.bytes);
    // Samples of the runtime's own, every 512 KiB at worst.
    assert!(held.bytes * 2 > site && held.bytes < site * 2, "{held} reported, {site} in truth");
    let afterwards = run(target.pid(), "auto").start().stop();
    // The program rests.
    let report = afterwards.report(3);
    assert_eq!((&report.json["mode"], report.gaps()), (&"sampled".into(), vec!["silent_targets".to_owned()]));
}

/// A launched program is told to begin, and nothing after that.
fn told_to_begin(run: Run) -> Outcome {
    let folder = scratch();
    let words = folder.path().join("words");
    fs::write(&words, "begin\n").unwrap();
    run.input(fs::File::open(&words).unwrap()).finish()
}

/// The runtime of a program that cannot read its profile turns that off as it starts: from then on it is on all the same.
#[test]
fn enabling_the_profile_of_a_command() {
    require_root();
    let program = go_program("heap", STOCK);
    let run = Run::launch(&["--go-heap=enable"], [program.to_str().unwrap(), "ring"]);
    let outcome = told_to_begin(run);
    let mut truth = Truth::default();
    outcome.stdout.lines().for_each(|line| truth.read(line));
    let report = outcome.report(outcome.code().unwrap());
    assert_eq!((&report.json["mode"], report.gap("unseen_heaps")), (&"go-buckets".into(), 0), "{:?}", report.gaps());
    let (held, site) = (report.below("main.(*ring).put"), truth.sites["main.(*ring).put"].held.bytes);
    assert!(held.bytes * 2 > site && held.bytes < site * 2, "{held} reported, {site} in truth");
}

/// A program sets how often its runtime takes samples as it begins: that is told, not what its executable has.
#[test]
fn a_command_that_sets_its_own_rate() {
    require_root();
    let program = go_program("heap", PROFILED);
    let run = Run::launch(&[], [program.to_str().unwrap(), "ring"]).env("HEAP_PROFILE_RATE", "4096");
    let outcome = told_to_begin(run);
    let report = outcome.report(outcome.code().unwrap());
    let quality = &report.json["quality"];
    assert_eq!(quality["sampling"]["mean_bytes"], 4096, "{quality}");
    let notes = quality["notes"].to_string();
    assert!(notes.contains("a sample every 4096 bytes") && !notes.contains("524288"), "{notes}");
}

#[test]
fn off_shows_no_go_heap() {
    let mut target = Target::start_with(&go_program("heap", PROFILED), &["ring"], &[("HEAP_PROFILE_RATE", "4096")]);
    target.ask("begin");
    let outcome = run(target.pid(), "off").args(["--duration", "1s"]).finish();
    // It has no other heap: whether that is refused or reported, nothing of Go is in it.
    if outcome.has_report() {
        let report = Report::parse(&outcome.file("out.json"));
        assert!(report.stacks.iter().all(|stack| stack.heap.as_deref() != Some("go")), "{:?}", report.stacks.first());
    } else {
        assert_eq!(outcome.code(), Some(1), "{}", outcome.stderr);
    }
}

#[test]
fn a_mode_that_there_is_not() {
    require_root();
    let outcome = Run::bare().args(["--pid", "1", "--go-heap", "guess"]).finish();
    assert_eq!(outcome.code(), Some(2), "{}", outcome.stderr);
    assert!(outcome.stderr.contains("--go-heap") && outcome.stderr.contains("buckets"), "{}", outcome.stderr);
}

/// What a service has leaked, and who waits for ever: the whole story in one report.
#[test]
fn a_service_that_leaks_sessions_and_goroutines() {
    let mut target = Target::start_with(&go_program("story", STOCK), &[], &[]);
    // Goroutines are looked at once in an interval.
    let tracer = run(target.pid(), "auto").args(["--interval", "2s"]).start();
    target.ask("begin");
    thread::sleep(Duration::from_secs(18));
    let truth = target.ask("rest");
    let report = go_report("story", &tracer.stop(), "sampled");

    let mut stacks: Vec<_> = report.stacks.iter().collect();
    stacks.sort_by_key(|stack| std::cmp::Reverse(stack.held.bytes));
    let top: Vec<&Vec<String>> = stacks.iter().take(3).map(|stack| &stack.functions).collect();
    assert!(
        top[0].iter().any(|name| name == "main.openSession")
            && top[0].iter().any(|name| name == "main.(*service).sessionOf"),
        "{top:#?}"
    );
    let place = stacks[0].places.iter().zip(&stacks[0].functions).find(|(_, name)| *name == "main.openSession");
    assert!(place.is_some_and(|(place, _)| place.contains("/main.go:")), "{place:?}");
    // 3,800 bytes and some fields: the class of 4,096.
    let (sessions, held) = (truth.fact("sessions"), report.below("main.openSession"));
    assert!(sessions > 1000, "not much of a story: {sessions} sessions");
    let near = (sessions * 4096).abs_diff(held.bytes) * 5 < sessions * 4096;
    assert!(near, "{sessions} sessions of 4,096 bytes, {held} reported");

    let groups = report.json["goroutines"].as_array().unwrap_or_else(|| panic!("no goroutines in the report"));
    let leaks: Vec<_> = groups.iter().filter(|group| group["suspected_leak"] == true).collect();
    let stuck: u64 = leaks
        .iter()
        .filter(|group| group["frames"].to_string().contains("\"main.answerLookup\""))
        .map(|group| group["goroutines"].as_u64().unwrap())
        .sum();
    assert_eq!(stuck, truth.fact("stuck"), "{leaks:#?}");
}
