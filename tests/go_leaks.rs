//! Goroutines that leak while their process is traced, against what the program says of them.

use std::collections::BTreeMap;

use serde_json::Value;

use crate::harness::{Outcome, Run, STOCK, Target, go_program, require_root};

/// Those of the program's functions that leak, with how many different things each goroutine waits on of its own; 0 when
/// all wait on one.
const LEAKS: [(&str, u64); 5] =
    [("main.receives", 1), ("main.sends", 0), ("main.locks", 0), ("main.selects", 2), ("main.waits", 0)];

/// Looks at the goroutines that a trace waits for. The first has come before anything leaks.
const LOOKS: usize = 6;

fn groups(json: &Value, pid: u32) -> Vec<&Value> {
    json["goroutines"].as_array().unwrap().iter().filter(|group| group["pid"] == pid).collect()
}

/// The program's own functions on a stack, leaf first.
fn functions(group: &Value) -> Vec<&str> {
    let frames = group["frames"].as_array().unwrap().iter().rev();
    frames.filter_map(|frame| frame["function"].as_str()).filter(|function| function.starts_with("main.")).collect()
}

fn count(group: &Value) -> u64 {
    group["goroutines"].as_u64().unwrap()
}

/// The groups of a process by their innermost function; a function has several when it waits in several ways.
fn by_function(json: &Value, pid: u32) -> BTreeMap<&str, Vec<&Value>> {
    let mut found: BTreeMap<&str, Vec<&Value>> = BTreeMap::new();
    for group in groups(json, pid) {
        if let Some(function) = functions(group).first() {
            found.entry(function).or_default().push(group);
        }
    }
    found
}

/// Traces programs while they leak, and checks that their leaks are found and nothing else.
#[track_caller]
fn trace(mut targets: Vec<Target>, semaphores: bool) -> Outcome {
    require_root();
    let pids: Vec<u32> = targets.iter().map(Target::pid).collect();
    let mut run = Run::bare().with_json().args(["-v", "--interval", "2s", "--top", "3"]);
    for pid in &pids {
        run = run.args(["--pid", &pid.to_string()]);
    }
    let mut running = run.start();
    for target in &mut targets {
        target.ask("leak");
    }
    for _ in 0..LOOKS * targets.len() {
        running.wait_for_line("DEBUG goroutines looked at");
    }
    let truths: Vec<_> = targets.iter_mut().map(|target| target.ask("stop")).collect();
    let outcome = running.stop();
    // Their heaps may be too small for a sample, which is told.
    assert!(matches!(outcome.code(), Some(0 | 3)), "{}", outcome.stderr);
    let json: Value = serde_json::from_str(&outcome.file("out.json")).unwrap();
    assert_eq!(json["kind"], "heap");
    let gaps = json["quality"]["gaps"].as_array().unwrap();
    assert!(
        gaps.iter().all(|gap| ["silent_targets", "uncollected_heaps"].contains(&gap["what"].as_str().unwrap())),
        "{gaps:?}"
    );
    for (pid, truth) in pids.iter().zip(truths) {
        let total: u64 = groups(&json, *pid).into_iter().map(count).sum();
        assert_eq!(total, truth.fact("goroutines"), "all goroutines of {pid}");
        let functions = by_function(&json, *pid);
        for (function, own) in LEAKS {
            let [group] = functions[function][..] else { panic!("not one group: {:?}", functions[function]) };
            let leaked = truth.fact(function);
            assert!(leaked >= 8, "{function} has leaked too little to be seen: {leaked}");
            assert_eq!((count(group), &group["suspected_leak"]), (leaked, &true.into()), "{group}");
            assert_eq!((&group["first_count"], &group["only_grows"]), (&0.into(), &true.into()), "{group}");
            assert!(group["growth_per_second"].as_f64().unwrap() > 0.0, "{group}");
            assert_eq!(group["created_by"]["function"], "main.leak");
            // Before Go 1.26 a goroutine does not note its semaphore.
            if semaphores || !["main.locks", "main.waits"].contains(&function) {
                let waits_on = &group["waits_on"];
                assert_eq!(waits_on["objects"], if own == 0 { 1 } else { own * leaked }, "{group}");
                assert_eq!(waits_on["address"].is_u64(), own == 0, "{group}");
            }
        }
        for (function, groups) in &functions {
            let leaks = LEAKS.iter().any(|(leak, _)| leak == function);
            assert!(leaks || groups.iter().all(|group| group["suspected_leak"] == false), "{function}: {groups:?}");
        }
        // Those that only sleep become more, too. A pool of workers does not.
        assert!(functions["main.sleeps"].iter().any(|group| group["only_grows"] == true), "{functions:?}");
        assert_eq!(functions["main.works"].iter().map(|group| count(group)).sum::<u64>(), 50);
        assert!(functions["main.works"].iter().all(|group| group["only_grows"] == false), "{functions:?}");
    }
    outcome
}

/// Version of Go that programs are built with: the number behind `go1.`.
fn minor() -> u32 {
    let program = std::fs::File::open(go_program("leaks", STOCK)).unwrap();
    tracer::golang::Executable::open(program).unwrap().version.minor.unwrap()
}

#[test]
fn functions_that_leak_are_suspected_and_no_others() {
    let start = |flags: &[&str]| Target::start_with(&go_program("leaks", flags), &[], &[]);
    let targets = vec![start(STOCK), start(&["-ldflags=-s -w"])];
    // From then on goroutines note the semaphores that they wait for.
    let outcome = trace(targets, minor() >= 26);

    let text = &outcome.stdout;
    let last = &text[text.rfind("heap profile").unwrap()..];
    let (head, leaks) = last.split_once(" at the first look: 10 suspected leaks\n").unwrap_or_else(|| panic!("{last}"));
    assert!(head.contains("\n  goroutines   ") && head.contains("/s), suspected leak: "), "{last}");
    let largest = leaks.trim_start();
    assert!(largest.starts_with("suspected leak: from 0 to "), "{leaks}");
    for words in ["chan receive, on ", " different channels", "created by main.leak", "main.receives", "not shown"] {
        assert!(leaks.contains(words), "no {words:?} in {leaks}");
    }
    assert!(!leaks.contains("runtime.gopark"), "{leaks}");
    // While it was traced, a line told of them.
    let interval = &text[..text.len() - last.len()];
    let line = interval.lines().rfind(|line| line.starts_with("  goroutines   ")).unwrap();
    assert!(line.contains(", suspected leak: ") && line.contains(" in main.receives"), "{line}");
    assert!(!interval.contains("at the first look"), "{interval}");
}

/// Those that only they themselves know the channels of: the garbage collector sees that from Go 1.26 on.
#[test]
fn what_the_runtime_calls_leaked_is_suspected_at_once() {
    require_root();
    let flags: &[&str] = match minor() {
        26 => &["GOEXPERIMENT=goroutineleakprofile"],
        27.. => STOCK,
        _ => return,
    };
    let mut target = Target::start_with(&go_program("leaks", flags), &[], &[]);
    target.ask("leak");
    std::thread::sleep(std::time::Duration::from_millis(500));
    let truth = target.ask("stop");
    let suspected = |target: &Target| {
        let pid = target.pid().to_string();
        let outcome = Run::bare().args(["goroutines", "--pid", &pid]).with_json().finish();
        let json: Value = serde_json::from_str(&outcome.file("out.json")).unwrap();
        let suspected = json["stacks"].as_array().unwrap().iter().filter(|group| group["suspected_leak"] == true);
        let entries = suspected.map(|group| {
            assert_eq!((&group["state"], &group["first_count"]), (&"leaked".into(), &Value::Null), "{group}");
            (functions(group)[0].to_owned(), (count(group), group["waits_on"]["objects"].as_u64().unwrap()))
        });
        (entries.collect::<BTreeMap<_, _>>(), outcome.stdout)
    };
    assert_eq!(suspected(&target).0, BTreeMap::new(), "at one look nothing grows");
    let told = target.ask("profile");
    let (leaked, text) = suspected(&target);
    let [receives, selects] = ["main.receives", "main.selects"].map(|name| (name.to_owned(), truth.fact(name)));
    let receives_and_selects = receives.1 + selects.1;
    let expected = [(receives.0, (receives.1, receives.1)), (selects.0, (selects.1, 2 * selects.1))];
    assert_eq!(leaked, BTreeMap::from(expected));
    assert_eq!(told.fact("leaked"), receives_and_selects, "as the runtime counts them");
    assert!(text.contains(", suspected leak\n    chan receive (leaked), on "), "{text}");
}

/// What a process without goroutines is told of is what it always was.
#[test]
fn programs_without_goroutines_have_none() {
    require_root();
    let mut target = Target::start_with(&crate::harness::compiled("churn"), &["1"], &[]);
    let running = Run::pid(target.pid()).start();
    let outcome = running.stop();
    assert!(target.is_alive());
    let json: Value = serde_json::from_str(&outcome.file("out.json")).unwrap();
    assert_eq!(
        (&json["goroutines"], &json["quality"]["notes"]),
        (&Value::Array(Vec::new()), &Value::Array(Vec::new()))
    );
    assert!(!outcome.stdout.contains("goroutine"), "{}", outcome.stdout);
}

/// Stacks that are deeper than what is kept look the same where they differ: that is told, also where nothing of them grows.
#[test]
fn goroutines_whose_stacks_are_cut() {
    require_root();
    let mut target = Target::start(&go_program("deep", STOCK));
    let mut running = Run::pid(target.pid()).args(["-v"]).start();
    running.wait_for_line("DEBUG goroutines looked at");
    target.ask("rest");
    let outcome = running.stop();
    let report = outcome.report(outcome.code().unwrap());
    let cut: Vec<&Value> =
        groups(&report.json, target.pid()).into_iter().filter(|group| group["truncated"] == "depth").collect();
    assert_eq!(cut.iter().map(|group| count(group)).sum::<u64>(), 20, "{cut:?}");
    assert_eq!(report.gap("truncated_stacks"), cut.len() as u64, "{}", report.json["quality"]);
}
