//! Go that is not in the executable: libraries with a runtime of their own, one or several in a process, and plugins.

use std::{collections::BTreeMap, path::Path, thread, time::Duration};

use nix::sys::signal::Signal;

use crate::harness::{
    Outcome, Report, Run, Running, STOCK, Target, compiled, go_program, probed_bytes, require_root, slowness,
    wait_until,
};

const SHARED: &str = "-buildmode=c-shared";
/// Two libraries that differ; the second has no symbols.
const LIBRARIES: [&[&str]; 2] = [&[SHARED], &[SHARED, "-ldflags=-s -w"]];
/// Bytes of one of their objects.
const OBJECT: f64 = 1024.0;
/// Mean of bytes between samples: of two thousand objects, each of which is sampled with a probability of 0.22, the error is
/// 4 per cent.
const MEAN: &str = "4KiB";
const TOLERANCE: f64 = 0.2;

fn file_name(path: &str) -> &str {
    path.rsplit('/').next().unwrap()
}

/// Bytes that `function` holds, by the library whose heap they are in; what is in none has an empty name.
fn held(report: &Report, function: &str) -> BTreeMap<String, f64> {
    let mut held = BTreeMap::new();
    for stack in report.json["stacks"].as_array().unwrap() {
        if stack["frames"].as_array().unwrap().iter().any(|frame| frame["function"] == function) {
            assert_eq!(stack["heap"], "go", "{stack}");
            let library = file_name(stack["library"].as_str().unwrap_or_default()).to_owned();
            *held.entry(library).or_default() += stack["outstanding_bytes"].as_f64().unwrap();
        }
    }
    held
}

/// Goroutines that began with `function`, by library.
fn goroutines(json: &serde_json::Value, function: &str) -> BTreeMap<String, u64> {
    let mut count = BTreeMap::new();
    // A look at goroutines alone has them as its stacks.
    let groups = if json["kind"] == "goroutines" { &json["stacks"] } else { &json["goroutines"] };
    for group in groups.as_array().unwrap() {
        if group["frames"].as_array().unwrap().iter().any(|frame| frame["function"] == function) {
            let library = file_name(group["library"].as_str().unwrap_or_default()).to_owned();
            *count.entry(library).or_default() += group["goroutines"].as_u64().unwrap();
        }
    }
    count
}

#[track_caller]
fn assert_near(what: &str, held: &BTreeMap<String, f64>, truth: &[(&str, f64)]) {
    assert_eq!(held.len(), truth.len(), "{what}: {held:?}");
    for (library, bytes) in truth {
        let told = held.get(*library).copied().unwrap_or_default();
        assert!((told / bytes - 1.0).abs() < TOLERANCE, "{what}: {library} holds {bytes}: {held:?}");
    }
}

fn load(target: &mut Target, library: &Path) -> String {
    target.ask(&format!("load {}", library.display()));
    file_name(&library.display().to_string()).to_owned()
}

#[track_caller]
fn finished(outcome: Outcome) -> Report {
    assert!(outcome.has_report(), "{}", outcome.stderr);
    Report::parse(&outcome.file("out.json"))
}

/// Two runtimes in one program in C: heap and goroutines of each, told apart, and the C heap beside them.
#[test]
fn each_library_has_a_heap_and_goroutines_of_its_own() {
    require_root();
    let mut target = Target::start(&compiled("loader"));
    let names = LIBRARIES.map(|flags| load(&mut target, &go_program("library", flags)));
    let tracer = Run::pid(target.pid()).args(["--go-heap", "auto", "--sample", MEAN]).start();
    target.ask("keep 0 2000");
    target.ask("keep 1 4000");
    target.ask("keep 1 4000");
    target.ask("collect");
    let outcome = tracer.stop();
    let report = finished(outcome);
    let truth = [(&*names[0], 2000.0 * OBJECT), (&*names[1], 8000.0 * OBJECT)];
    assert_near("two libraries", &held(&report, "main.keepOne"), &truth);
    let expected = BTreeMap::from([(names[0].clone(), 1), (names[1].clone(), 2)]);
    assert_eq!(goroutines(&report.json, "main.stuck"), expected);
    let heaps = &report.json["processes"][0]["heaps"];
    assert!(
        heaps.as_array().unwrap().iter().any(|heap| heap["kind"] == "native" && heap["mode"] == "exact"),
        "{heaps}"
    );
    // The caller in C is on the stack, too.
    let stack = report.stacks.iter().find(|stack| stack.has("main.keepOne")).unwrap();
    assert!(stack.has("main"), "{:?}", stack.functions);

    let outcome =
        Run::bare().args(["goroutines", "--pid", &target.pid().to_string(), "--format", "json", "-o", "-"]).finish();
    assert_eq!(outcome.code(), Some(0), "{}", outcome.stderr);
    assert_eq!(goroutines(&serde_json::from_str(&outcome.stdout).unwrap(), "main.stuck"), expected);
    assert!(target.is_alive());
}

/// One that is loaded while the process is traced is found then.
#[test]
fn a_library_that_is_loaded_later_is_found() {
    require_root();
    let target = Target::start(&compiled("loader"));
    let tracer = Run::pid(target.pid()).args(["--go-heap", "auto", "--sample", MEAN]).start();
    let pid = target.pid();
    finds_what_is_loaded(target, tracer, pid);
}

/// So is one that a child of it loads, of which nothing was looked at.
#[test]
fn a_library_that_a_child_loads_is_found() {
    require_root();
    let mut target = Target::start(&compiled("loader"));
    let tracer = Run::pid(target.pid()).args(["--go-heap", "auto", "--sample", MEAN]).start();
    let child = target.ask("fork").fact("child") as u32;
    finds_what_is_loaded(target, tracer, child);
}

/// Has process `pid` load a library, and compares what it holds and does with the truth.
#[track_caller]
fn finds_what_is_loaded(mut target: Target, tracer: Running, pid: u32) {
    let name = load(&mut target, &go_program("library", LIBRARIES[0]));
    wait_until("its runtime is probed", || probed_bytes(pid, &name) > 0);
    // At all its places.
    thread::sleep(Duration::from_secs(2) * slowness());
    target.ask("keep 0 4000");
    target.ask("collect");
    let report = finished(tracer.stop());
    assert_near("loaded later", &held(&report, "main.keepOne"), &[(&name, 4000.0 * OBJECT)]);
    assert_eq!(goroutines(&report.json, "main.stuck"), BTreeMap::from([(name, 1)]));
}

/// A plugin allocates from the runtime of the executable; its code has names, and what it has started is the program's.
#[test]
fn code_of_plugins_is_named() {
    require_root();
    let plugin = go_program("plugin", &["-buildmode=plugin", "-tags=extension"]);
    let host = go_program("plugin", STOCK);
    let mut target = Target::start_with(&host, &[plugin.to_str().unwrap()], &[]);
    let tracer = Run::pid(target.pid()).args(["--go-heap", "buckets"]).start();
    target.ask("keep 4000");
    let report = finished(tracer.stop());
    assert_near("plugin", &held(&report, "extension.keepOne"), &[("", 4000.0 * OBJECT)]);
    let json = &report.json;
    assert_eq!(goroutines(json, "extension.stuck"), BTreeMap::from([(String::new(), 1)]));
    // Nothing of the runtimes, neither that of the executable nor the dead one in the plugin.
    let groups = json["goroutines"].as_array().unwrap().iter().filter(|group| group["goroutines"] != 0).count();
    assert_eq!(groups, 2, "{}", json["goroutines"]);
    assert_eq!(report.gap("unseen_heaps"), 0);

    // Samples are taken in the functions of the executable, of which the plugin has copies.
    let report = finished(Run::pid(target.pid()).args(["--go-heap", "sample"]).start().stop());
    assert_eq!((report.gap("unseen_heaps"), &report.json["quality"]["complete"]), (1, &false.into()));
}

/// What a tracer that was killed has left is told, and a later one takes it away.
#[test]
fn a_profile_that_was_left_on_is_told_and_turned_off() {
    require_root();
    let target = Target::start_with(&go_program("heap", STOCK), &["ring"], &[]);
    let run = |way: &str| Run::pid(target.pid()).args(["--go-heap", way]).start();
    let killed = run("enable");
    killed.signal(Signal::SIGKILL);
    assert_eq!(killed.outcome().code(), None);
    for (way, mode, told) in [
        ("auto", "go-buckets", Some("--go-heap=enable once more")),
        ("enable", "go-buckets", Some("set back at the end")),
        ("auto", "sampled", None),
    ] {
        let report = finished(run(way).stop());
        assert_eq!(report.json["mode"], mode, "{way}");
        let notes = report.json["quality"]["notes"].to_string();
        assert_eq!(
            notes.contains("set from outside") || notes.contains("was killed"),
            told.is_some(),
            "{way}: {notes}"
        );
        assert!(told.is_none_or(|told| notes.contains(told)), "{way}: {notes}");
    }
}
