//! Goroutines of Go programs, against what their own runtimes say of them.

mod hostile;

use std::{
    collections::{BTreeMap, BTreeSet},
    ffi::OsStr,
    fs,
    path::Path,
    process::{Command, Stdio},
    thread,
    time::Duration,
};

use serde_json::Value;

use crate::{
    formats::assert_well_formed,
    harness::{
        NOBODY, Outcome, Pprof, Run, STOCK, Target, compiled, copy_for_all, copy_program, go_program, is_runtimes,
        pprof, require_root, scratch,
    },
};

/// Ways to build a program that leave other things in it.
const BUILDS: [(&str, &[&str]); 6] = [
    ("stock", STOCK),
    ("stripped", &["-ldflags=-s -w"]),
    ("position-independent", &["-buildmode=pie"]),
    ("position-independent and stripped", &["-buildmode=pie", "-ldflags=-s -w"]),
    ("without optimization", &["-gcflags=all=-N -l"]),
    ("without paths", &["-trimpath", "-ldflags=-w"]),
];

/// Goroutines that look the same.
type Counts = BTreeMap<String, u64>;

fn run(pid: u32) -> Run {
    require_root();
    Run::bare().args(["goroutines", "--pid", &pid.to_string()]).with_json()
}

#[track_caller]
fn json(outcome: &Outcome) -> Value {
    assert_eq!(outcome.code(), Some(0), "{}", outcome.stderr);
    let json: Value = serde_json::from_str(&outcome.file("out.json")).unwrap();
    assert_eq!((&json["format"], &json["version"]), (&"tracer-profile".into(), &1.into()));
    assert_eq!(json["kind"], "goroutines");
    let sum: u64 = groups(&json).iter().map(|group| group["goroutines"].as_u64().unwrap()).sum();
    assert_eq!(json["totals"]["goroutines"], sum, "totals are not the sums over the stacks");
    json
}

fn groups(json: &Value) -> &Vec<Value> {
    json["stacks"].as_array().unwrap()
}

/// `function file:line` of each frame, leaf first.
fn frames(group: &Value) -> Vec<(String, String)> {
    let text = |value: &Value| value.as_str().unwrap_or_else(|| panic!("no name in {group}")).to_owned();
    let frames = group["frames"].as_array().unwrap().iter().rev();
    frames.map(|frame| (text(&frame["function"]), format!("{}:{}", text(&frame["file"]), frame["line"]))).collect()
}

/// Goroutines with a function on their stacks.
fn with_function(json: &Value, function: &str) -> u64 {
    let has = |group: &&Value| frames(group).iter().any(|(name, _)| name == function);
    groups(json).iter().filter(has).map(|group| group["goroutines"].as_u64().unwrap()).sum()
}

fn stack(frames: &[(String, String)], all: usize) -> String {
    let own = frames.iter().position(|(function, _)| !is_runtimes(function)).unwrap_or(0);
    let lines: Vec<String> = frames[own..].iter().map(|(function, place)| format!("  {function} {place}")).collect();
    format!("{all} frames\n{}", lines.join("\n"))
}

/// Stacks as reported. The main goroutine does something else while its program writes a profile.
fn reported_stacks(json: &Value) -> Counts {
    let mut counts = Counts::new();
    for group in groups(json) {
        let frames = frames(group);
        if !frames.iter().any(|(function, _)| function == "main.main") {
            *counts.entry(stack(&frames, frames.len())).or_default() += group["goroutines"].as_u64().unwrap();
        }
    }
    counts
}

/// Stacks of a profile that runtime/pprof wrote with debug=1: `COUNT @ ADDRESS...`, then `#<tab>ADDRESS<tab>FUNCTION+OFFSET
/// <tab>FILE:LINE` without frames of the runtime at the leaf.
fn pprof_stacks(profile: &str) -> Counts {
    let mut counts = Counts::new();
    for record in profile.split("\n\n").map(|record| record.trim_start_matches('\n')) {
        let mut lines = record.lines().skip_while(|line| !line.contains(" @ "));
        let Some((count, addresses)) = lines.next().and_then(|head| head.split_once(" @ ")) else { continue };
        let frames: Vec<(String, String)> = lines
            .filter_map(|line| {
                let mut fields = line.split('\t').filter(|field| !field.is_empty()).skip(2);
                let (function, place) = (fields.next()?, fields.next()?);
                Some((function.trim_end().rsplit_once('+')?.0.to_owned(), place.to_owned()))
            })
            .collect();
        if !frames.iter().any(|(function, _)| function == "main.main") {
            // What all goroutines return to is the last address.
            let all = addresses.split(' ').count() - 1;
            *counts.entry(stack(&frames, all)).or_default() += count.parse::<u64>().unwrap();
        }
    }
    counts
}

/// State and place of creation, as reported.
fn reported_states(json: &Value) -> Counts {
    let mut counts = Counts::new();
    for group in groups(json).iter().filter(|group| !group["created_by"].is_null()) {
        let state = group["wait_reason"].as_str().or(group["state"].as_str()).unwrap();
        let by = &group["created_by"];
        let (function, file) = (by["function"].as_str().unwrap(), by["file"].as_str().unwrap());
        let key = format!("{state}, by {function} {file}:{}", by["line"]);
        *counts.entry(key).or_default() += group["goroutines"].as_u64().unwrap();
    }
    counts
}

/// The same of a traceback of all goroutines: `goroutine ID [STATE, ...]:`, frames, `created by FUNCTION in goroutine ID` and
/// its place.
fn traceback_states(traceback: &str) -> Counts {
    let mut counts = Counts::new();
    for goroutine in traceback.split("\n\n") {
        let state = goroutine.split_once('[').unwrap().1.split([',', ']']).next().unwrap();
        let Some((_, creation)) = goroutine.split_once("created by ") else { continue };
        let mut lines = creation.lines();
        let function = lines.next().unwrap().split(" in goroutine ").next().unwrap();
        let place = lines.next().unwrap().trim().split(' ').next().unwrap();
        *counts.entry(format!("{state}, by {function} {place}")).or_default() += 1;
    }
    counts
}

#[track_caller]
fn assert_same(what: &str, reported: &Counts, truth: &Counts) {
    let differing = |here: &Counts, there: &Counts| {
        let lines = here.iter().filter(|(key, count)| there.get(*key) != Some(count));
        lines.map(|(key, count)| format!("{count} x {key}\n")).collect::<String>()
    };
    let (ours, theirs) = (differing(reported, truth), differing(truth, reported));
    assert!(ours.is_empty() && theirs.is_empty(), "{what}\nreported:\n{ours}\nin truth:\n{theirs}");
}

/// Compares count, stack, state and creator of each goroutine with what the runtime says.
#[track_caller]
fn check_build(program: &str, build: &str, flags: &[&str]) {
    let mut target = Target::start_with(&go_program(program, flags), &["5"], &[]);
    let folder = scratch();
    let dump = folder.path().join("dump");
    let truth = target.ask(&format!("dump {}", dump.display()));
    let outcome = run(target.pid()).finish();
    let json = json(&outcome);
    let read = |suffix: &str| fs::read_to_string(dump.with_extension(suffix)).unwrap();
    assert_same(build, &reported_stacks(&json), &pprof_stacks(&read("1")));
    assert_same(build, &reported_states(&json), &traceback_states(&read("2")));
    assert_eq!(json["totals"]["goroutines"], truth.fact("goroutines"), "{build}");
    assert_eq!(json["quality"]["complete"], true, "{build}: {}", json["quality"]);
    assert_eq!(json["quality"]["notes"].to_string(), "[]", "{build}");
    assert_eq!((&json["mode"], &json["processes"][0]["language"]), (&"snapshot".into(), &"Go".into()));
    // Nothing was harmed.
    assert_eq!(target.ask(&format!("dump {}", dump.display())).fact("goroutines"), truth.fact("goroutines"), "{build}");
}

#[test]
fn every_way_to_wait_is_told_as_the_runtime_tells_it() {
    for (build, flags) in BUILDS {
        check_build("goroutines", build, flags);
    }
}

#[test]
fn goroutines_in_c_are_told_as_the_runtime_tells_them() {
    check_build("cgo", "cgo", STOCK);
    check_build("cgo", "cgo, position-independent and stripped", &["-buildmode=pie", "-ldflags=-s -w"]);
}

#[test]
fn a_hundred_thousand_goroutines() {
    let mut target = Target::start_with(&go_program("goroutines", STOCK), &["100000"], &[]);
    let truth = target.ask("collect");
    let json = json(&run(target.pid()).finish());
    assert_eq!(json["totals"]["goroutines"], truth.fact("goroutines"));
    let first = &groups(&json)[0];
    assert_eq!((&first["goroutines"], &first["wait_reason"]), (&100_000.into(), &"chan receive".into()));
    assert_eq!(frames(first).last().unwrap().0, "main.inBulk");
}

/// Goroutines come and go, run and wait while they are read: each is still counted once.
#[test]
fn goroutines_that_run_are_told_as_running() {
    let mut target = Target::start_with(&go_program("goroutines", STOCK), &["1000"], &[]);
    let before = target.ask("collect").fact("goroutines");
    let truth = target.ask("spin");
    assert_eq!(truth.fact("goroutines"), before + 2);
    for _ in 0..10 {
        let outcome = run(target.pid()).finish();
        let json = json(&outcome);
        assert_eq!(json["totals"]["goroutines"], truth.fact("goroutines"));
        assert_eq!(with_function(&json, "main.spins"), 2);
        let running: Vec<&Value> = groups(&json).iter().filter(|group| group["state"] == "running").collect();
        let notes = json["quality"]["notes"].to_string();
        assert_eq!(notes.contains("whenever they were looked at"), !running.is_empty(), "{notes}");
    }
    assert_eq!(target.ask("rest").fact("goroutines"), before);
}

/// Whatever they do meanwhile: each is counted once, with a stack that it can have had.
#[test]
fn goroutines_that_move_have_the_stacks_of_one_moment() {
    let mut target = Target::start_with(&go_program("goroutines", STOCK), &["5"], &[]);
    let before = target.ask("collect").fact("goroutines");
    let truth = target.ask("bounce");
    assert_eq!(truth.fact("goroutines"), before + 40);
    for _ in 0..100 {
        let json = json(&run(target.pid()).finish());
        assert_eq!(json["totals"]["goroutines"], truth.fact("goroutines"));
        let created = groups(&json).iter().filter(|group| group["created_by"]["function"] == "main.main");
        assert_eq!(created.map(|group| group["goroutines"].as_u64().unwrap()).sum::<u64>(), 40);
        assert_eq!(json["quality"]["complete"], true, "{}", json["quality"]);
        for group in groups(&json) {
            let frames = frames(group);
            assert!(!frames.is_empty(), "{group}");
            let own: Vec<&str> =
                frames.iter().rev().map(|(name, _)| &**name).skip_while(|name| *name != "main.bounces").collect();
            let depth = own.iter().filter(|name| **name == "main.deeper").count();
            let exchanges = own.iter().position(|name| *name == "main.exchange");
            assert!(exchanges.is_none_or(|at| at == depth + 1 && depth <= 50), "{own:?}");
        }
    }
    target.say("rest");
}

#[test]
fn the_longest_wait_is_known_once_garbage_was_collected_twice() {
    let mut target = Target::start_with(&go_program("goroutines", STOCK), &["5"], &[]);
    let longest = |target: &Target| {
        let json = json(&run(target.pid()).finish());
        let bulk = groups(&json).iter().find(|group| group["goroutines"] == 5).unwrap();
        bulk["longest_wait_seconds"].as_f64()
    };
    assert_eq!(longest(&target), None);
    // The second collection notes the time of the first.
    target.ask("collect");
    target.ask("collect");
    thread::sleep(Duration::from_millis(1500));
    let seconds = longest(&target).unwrap();
    assert!((1.5..60.0).contains(&seconds), "{seconds} s");
}

#[test]
fn all_formats_show_goroutines() {
    let target = Target::start_with(&go_program("goroutines", STOCK), &["50"], &[]);
    let run = run(target.pid()).args(["--top", "2"]);
    let outputs: Vec<String> = ["out.txt", "out.folded", "out.svg"]
        .iter()
        .flat_map(|name| ["-o".to_owned(), run.folder().join(name).to_string_lossy().into_owned()])
        .collect();
    let outcome = run.args(&outputs).finish();
    let total = json(&outcome)["totals"]["goroutines"].as_u64().unwrap();

    let text = outcome.file("out.txt");
    assert_eq!(text, outcome.stdout, "the standard output gets the text too");
    for words in
        ["goroutine profile", "50 goroutines", "chan receive", "created by main.start", "main.inBulk", "not shown"]
    {
        assert!(text.contains(words), "no {words} in: {text}");
    }
    assert!(!text.contains("runtime.gopark"), "the runtime's own frames say nothing: {text}");
    assert_eq!(text.lines().filter(|line| line.starts_with('#')).count(), 2);

    let folded = outcome.file("out.folded");
    let sum: u64 = folded.lines().map(|line| line.rsplit_once(' ').unwrap().1.parse::<u64>().unwrap()).sum();
    assert_eq!(sum, total);
    assert!(folded.contains(";main.waitsThroughInterface;main.byValue.wait;"), "{folded}");

    let svg = outcome.file("out.svg");
    assert_well_formed(&svg);
    assert!(svg.contains(&format!("{total} goroutines")) && svg.contains("main.inBulk (5"), "{svg:.3000}");

    let outcome = self::run(target.pid()).args(["-o", "-", "--format", "folded"]).finish();
    assert_eq!(outcome.stdout, folded);
}

/// A name as Go's own reports have it: in files for pprof the shapes of a generic function's types are spelled out, as
/// runtime/pprof does.
fn without_shapes(name: &str) -> String {
    let Some(start) = name.find("[go.shape.") else { return name.to_owned() };
    let mut depth = 0;
    let end = name[start..].find(|c| {
        depth += i32::from(c == '[') - i32::from(c == ']');
        depth == 0
    });
    let rest = end.map_or("", |end| &name[start + end + 1..]);
    format!("{}[...]{}", &name[..start], without_shapes(rest))
}

/// What `go tool pprof` shows of a profile is what JSON says of the same run.
#[test]
fn pprof_shows_goroutines() {
    for flags in [STOCK, &["-buildmode=pie", "-ldflags=-s -w"]] {
        let program = go_program("goroutines", flags);
        let target = Target::start_with(&program, &["50"], &[]);
        let run = run(target.pid());
        let output = run.folder().join("out.pb.gz");
        let outcome = run.args([OsStr::new("-o"), output.as_os_str()]).finish();
        let json = json(&outcome);
        let read = Pprof::read(&outcome.path("out.pb.gz"));
        assert_eq!(read.types, ["goroutine/count[dflt]"]);
        assert_eq!(read.totals(), [json["totals"]["goroutines"].as_u64().unwrap()]);
        assert_eq!(read.files[0], program.to_string_lossy());
        let top = pprof(&["-top", "-nodecount=100000", "-nodefraction=0"], &outcome.path("out.pb.gz"));
        assert!(top.contains(&format!("100% of {} total", json["totals"]["goroutines"])), "{top}");

        let states: BTreeSet<_> = groups(&json)
            .iter()
            .map(|group| (&group["state"], &group["wait_reason"]))
            .map(|(state, reason)| (state.as_str().unwrap(), reason.as_str()))
            .collect();
        assert!(states.len() > 3, "{states:?}");
        for (state, reason) in states {
            let mut stacks: BTreeMap<Vec<String>, u64> = BTreeMap::new();
            for group in
                groups(&json).iter().filter(|group| group["state"] == state && group["wait_reason"].as_str() == reason)
            {
                let frames = group["frames"].as_array().unwrap().iter().rev().map(Pprof::saved_frame).collect();
                *stacks.entry(frames).or_default() += group["goroutines"].as_u64().unwrap();
            }
            let labels = [Some(format!("state:[{state}]")), reason.map(|reason| format!("wait_reason:[{reason}]"))];
            let of_state = |label: &str| {
                labels.iter().flatten().all(|wanted| label.contains(wanted))
                    && label.contains("wait_reason") == reason.is_some()
            };
            let mut read_stacks: BTreeMap<Vec<String>, u64> = BTreeMap::new();
            for (frames, count) in read.stacks(0, of_state) {
                let frames = frames.iter().map(|frame| without_shapes(frame)).collect();
                *read_stacks.entry(frames).or_default() += count;
            }
            assert_eq!(read_stacks, stacks, "{state}, {reason:?}");
        }

        // Addresses are those of the functions: pprof finds the same names where there are symbols.
        if flags == STOCK {
            let anew = pprof(
                &["-symbolize=force", "-top", "-nodecount=100000", "-nodefraction=0"],
                &outcome.path("out.pb.gz"),
            );
            for function in ["main.inBulk", "runtime.gopark"] {
                let row =
                    |text: &str| text.lines().find(|line| line.ends_with(&format!(" {function}"))).map(str::to_owned);
                assert!(row(&top).is_some() && row(&anew) == row(&top), "{function} in {anew}, and in {top}");
            }
        }
    }
}

/// In a container the executable has another path, or none any more.
#[test]
fn behind_a_chroot_and_with_the_executable_deleted() {
    let root = scratch();
    let copy = root.path().join("service");
    copy_program(&go_program("goroutines", STOCK), &copy);
    let target =
        Target::start_with(Path::new("/usr/sbin/chroot"), &[root.path().to_str().unwrap(), "/service", "5"], &[]);
    assert_eq!(with_function(&json(&run(target.pid()).finish()), "main.inBulk"), 7);
    fs::remove_file(copy).unwrap();
    assert_eq!(with_function(&json(&run(target.pid()).finish()), "main.inBulk"), 7);
}

#[track_caller]
fn check_refused(outcome: &Outcome, code: i32, words: &[&str]) {
    assert_eq!(outcome.code(), Some(code), "{}", outcome.stderr);
    for words in words {
        assert!(outcome.stderr.contains(words), "no {words:?} in: {}", outcome.stderr);
    }
    assert!(!outcome.has_report() && outcome.stdout.is_empty(), "a report of nothing");
}

#[test]
fn what_has_no_goroutines_is_refused() {
    let target = Target::start_with(&compiled("churn"), &["1"], &[]);
    check_refused(&run(target.pid()).finish(), 1, &["not a Go program", "churn"]);

    let mut ended = Command::new("true").spawn().unwrap();
    ended.wait().unwrap();
    check_refused(&run(ended.id()).finish(), 1, &["no process"]);
    check_refused(&run(2).finish(), 1, &["kernel thread"]);

    for (line, words) in [
        (&["goroutines"][..], "--pid"),
        (&["goroutines", "--pid", "0"], "--pid"),
        (&["goroutines", "--pid", "1", "--top", "x"], "--top"),
        (&["goroutines", "--pid", "1", "-o", "x.pdf"], ".pb.gz or .json"),
        (&["goroutines", "--pid", "1", "--duration", "5s"], "--duration"),
        (&["--pid", "1", "goroutines", "--pid", "1"], "goroutines"),
    ] {
        check_refused(&Run::bare().args(line).finish(), 2, &[words]);
    }
}

/// Without symbols a runtime must be known, and be compiled as usual.
#[test]
fn runtimes_that_are_not_known_are_refused() {
    for (flags, code) in [(STOCK, 0), (&["-ldflags=-s -w"], 1)] {
        let folder = scratch();
        let copy = folder.path().join("future");
        let mut bytes = fs::read(go_program("goroutines", flags)).unwrap();
        let magic = b"\xff Go buildinf:";
        let info = bytes.windows(magic.len()).position(|window| window == magic).unwrap();
        let version = &mut bytes[info + 33..];
        assert!(version.starts_with(b"go1."));
        version[4..6].copy_from_slice(b"99");
        let written = folder.path().join("written");
        fs::write(&written, bytes).unwrap();
        copy_program(&written, &copy);
        fs::set_permissions(&copy, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        let target = Target::start_with(&copy, &["5"], &[]);
        let outcome = run(target.pid()).finish();
        if code == 0 {
            // DWARF describes it.
            assert_eq!(with_function(&json(&outcome), "main.inBulk"), 7);
        } else {
            check_refused(&outcome, code, &["go1.99", "DWARF", "-ldflags=-w"]);
        }
    }
    let unusual = go_program("goroutines", &["-gcflags=all=-N -l", "-ldflags=-s -w"]);
    let target = Target::start_with(&unusual, &["5"], &[]);
    check_refused(&run(target.pid()).finish(), 1, &["runtime.allglen", "no symbols", "-ldflags=-s"]);
}

#[test]
fn no_rights_to_look() {
    require_root();
    let target = Target::start_with(&go_program("goroutines", STOCK), &["5"], &[]);
    let (_folder, copy) = copy_for_all(Run::tracer());
    let outcome =
        Run::through("setpriv", &NOBODY, &copy).args(["goroutines", "--pid", &target.pid().to_string()]).finish();
    check_refused(&outcome, 1, &["cannot look at process", "CAP_SYS_PTRACE"]);
}

/// Root's own processes need no more rights than to look: no BPF, no probes.
#[test]
fn no_right_is_needed_but_to_look() {
    let target = Target::start_with(&go_program("goroutines", STOCK), &["5"], &[]);
    let keep = ["--bounding-set=-all,+sys_ptrace", "--inh-caps=-all"];
    let outcome = Run::through("setpriv", &keep, Run::tracer())
        .args(["goroutines", "--pid", &target.pid().to_string()])
        .with_json()
        .finish();
    assert_eq!(with_function(&json(&outcome), "main.inBulk"), 7);
}

/// Whatever the moment at which it ends, there is a status, a message, and an end.
#[test]
fn a_process_that_ends_while_it_is_read() {
    require_root();
    let program = go_program("goroutines", STOCK);
    for run_number in 0..24_u64 {
        let mut target =
            Command::new(&program).arg("20000").stdin(Stdio::null()).stdout(Stdio::null()).spawn().unwrap();
        // It begins, fills its list, and ends after a quarter of a second.
        thread::sleep(Duration::from_millis(run_number * 17));
        let running = run(target.id()).spawn();
        target.wait().unwrap();
        let outcome = running.outcome();
        assert!(matches!(outcome.code(), Some(0 | 1)), "{}", outcome.stderr);
        assert_eq!(outcome.has_report(), outcome.code() == Some(0), "{}", outcome.stderr);
    }
}
