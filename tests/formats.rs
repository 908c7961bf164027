//! Reports in all formats from one run, and the flags that shape them.

use std::{collections::BTreeMap, ffi::OsStr, fs, process::Command, thread, time::Duration};

use serde_json::Value;

use crate::harness::{Held, Outcome, Pprof, Report, Run, Target, Truth, compiled, pprof, require_root, scratch};

/// Traces a program that keeps 4000 blocks of 100 to 149 bytes and 100 of 1000 to 1099; `between` happens in between.
fn traced(arguments: &[&str], names: &[&str], between: impl FnOnce()) -> (Outcome, Truth) {
    require_root();
    let program = compiled("churn");
    let mut target = Target::start_with(&program, &["1"], &[]);
    let run = Run::pid(target.pid());
    let outputs: Vec<String> = names
        .iter()
        .flat_map(|name| ["-o".to_owned(), run.folder().join(name).to_string_lossy().into_owned()])
        .collect();
    let tracer = run.args(arguments).args(&outputs).start();
    target.ask("keep");
    between();
    let truth = target.ask("leak");
    (tracer.stop(), truth)
}

/// Sum of the numbers at the ends of lines.
fn folded_sum(folded: &str) -> u64 {
    folded.lines().map(|line| line.rsplit_once(' ').unwrap().1.parse::<u64>().unwrap()).sum()
}

/// Fails unless all tags match and all entities are known.
#[track_caller]
pub(crate) fn assert_well_formed(xml: &str) {
    let mut reader = quick_xml::Reader::from_str(xml);
    let mut depth = 0;
    loop {
        use quick_xml::events::Event;
        match reader.read_event().unwrap_or_else(|error| panic!("no XML at {}: {error}", reader.error_position())) {
            Event::Start(_) => depth += 1,
            Event::End(_) => depth -= 1,
            Event::Eof => break,
            _ => {}
        }
    }
    assert_eq!(depth, 0, "elements that do not end");
}

#[test]
fn all_formats_come_from_one_run() {
    let (outcome, truth) = traced(&[], &["out.txt", "out.folded", "out.svg"], || {});
    let report = outcome.report(0);
    assert_eq!(report.outstanding(), truth.total());

    let folded = outcome.file("out.folded");
    assert_eq!(folded_sum(&folded), truth.total().bytes);
    assert!(folded.lines().all(|line| line.starts_with("churn")), "the process comes first: {folded}");
    assert!(folded.lines().any(|line| line.contains(";main;") && line.contains(";keep_all_along ")), "{folded}");

    let svg = outcome.file("out.svg");
    assert_well_formed(&svg);
    for words in ["keep_all_along", "churn"] {
        assert!(svg.contains(words), "no {words} in the flame graph");
    }

    let text = outcome.file("out.txt");
    assert_eq!(text, outcome.stdout, "the standard output gets the text too");
    for words in ["keep_all_along", "#1", "pid", "exact"] {
        assert!(text.contains(words), "no {words} in: {text}");
    }
    assert!(!text.contains('\u{1b}'), "colour in a file");
}

/// What `go tool pprof` shows of a profile is what JSON says of the same run.
#[track_caller]
fn check_pprof(program: &str, arguments: &[&str], orders: &[&str]) {
    require_root();
    let program = compiled(program);
    let mut target = Target::start_with(&program, arguments, &[]);
    let run = Run::pid(target.pid());
    let output = run.folder().join("out.pb.gz");
    let tracer = run.args([OsStr::new("-o"), output.as_os_str()]).start();
    for order in orders {
        target.ask(order);
    }
    let outcome = tracer.stop();
    let report = outcome.report(0);
    let read = Pprof::read(&outcome.path("out.pb.gz"));

    let (held, allocated) = (report.outstanding(), report.allocated());
    assert_eq!(
        read.types,
        ["inuse_objects/count", "inuse_space/bytes[dflt]", "alloc_objects/count", "alloc_space/bytes"]
    );
    assert_eq!(read.totals(), [held.blocks, held.bytes, allocated.blocks, allocated.bytes]);
    assert_eq!(read.stacks(1, |_| true), stacks_of(&report.json, "outstanding_bytes"));
    assert_eq!(read.stacks(2, |_| true), stacks_of(&report.json, "allocated_blocks"));
    let labels = [
        format!("pid:[{}]", target.pid()),
        format!("comm:[{}]", report.json["processes"][0]["comm"].as_str().unwrap()),
    ];
    assert!(read.samples.iter().all(|sample| labels.iter().all(|label| sample.labels.contains(label))), "{labels:?}");
    assert_eq!(read.files[0], program.to_string_lossy(), "the main program comes first");

    // What people see: the total, and by name what functions hold that call the allocator.
    let top = pprof(
        &["-top", "-sample_index=inuse_space", "-nodecount=100000", "-nodefraction=0", "-unit=B"],
        &outcome.path("out.pb.gz"),
    );
    assert!(top.contains(&format!("100% of {}B total", held.bytes)), "{} bytes, not: {top}", held.bytes);
    let flat = flat(&top);
    let mut holders: BTreeMap<String, u64> = BTreeMap::new();
    for stack in report.json["stacks"].as_array().unwrap() {
        let caller = stack["frames"].as_array().unwrap().last().unwrap()["function"].as_str();
        *holders.entry(caller.unwrap_or_default().to_owned()).or_default() +=
            stack["outstanding_bytes"].as_u64().unwrap();
    }
    holders.remove("");
    holders.retain(|_, bytes| *bytes > 0);
    assert!(holders.len() >= 2, "{holders:?}");
    for (name, bytes) in holders {
        assert_eq!(flat.get(&name), Some(&bytes), "{name} in {top}");
    }

    let comments = pprof(&["-comments"], &outcome.path("out.pb.gz"));
    for words in ["exact: every allocation was recorded", "quality      complete", &format!("(pid {})", target.pid())] {
        assert!(comments.contains(words), "no {words:?} in {comments}");
    }
}

/// Stacks of a saved report, leaf first, as `-raw` shows them, with one of their amounts; those with the amount 0 left out.
fn stacks_of(json: &Value, amount: &str) -> BTreeMap<Vec<String>, u64> {
    let mut stacks: BTreeMap<Vec<String>, u64> = BTreeMap::new();
    for stack in json["stacks"].as_array().unwrap() {
        let frames = stack["frames"].as_array().unwrap().iter().rev().map(Pprof::saved_frame).collect();
        *stacks.entry(frames).or_default() += stack[amount].as_u64().unwrap();
    }
    stacks.retain(|_, amount| *amount > 0);
    stacks
}

/// What `-top` says of functions themselves: `FLAT FLAT% SUM% CUM CUM% NAME`.
fn flat(top: &str) -> BTreeMap<String, u64> {
    let rows = top.lines().skip_while(|line| !line.trim_start().starts_with("flat ")).skip(1);
    let row = |line: &str| {
        let mut fields = line.split_whitespace();
        let flat = fields.next()?.trim_end_matches('B').parse().ok()?;
        let name = fields.skip(4).collect::<Vec<_>>().join(" ");
        let name = name.trim_end_matches(" (inline)").trim_end_matches(" (partial-inline)");
        Some((name.to_owned(), flat))
    };
    rows.filter_map(row).collect()
}

#[test]
fn pprof_shows_what_c_holds() {
    check_pprof("churn", &["1"], &["keep", "drop", "leak"]);
}

#[test]
fn pprof_shows_what_cpp_holds() {
    check_pprof("cpp", &[], &["begin"]);
}

#[test]
fn pprof_shows_what_rust_holds() {
    check_pprof("rust_service", &[], &["begin"]);
}

/// What has no name has an address that leads to the place in the file: pprof names it from what was
/// stripped.
#[test]
fn pprof_names_what_was_stripped() {
    require_root();
    let (program, folder) = (compiled("churn, debug information"), scratch());
    let path = folder.path().join("service");
    let strip = Command::new("strip").arg("-o").arg(&path).arg(&program).status().unwrap();
    assert!(strip.success());
    let mut target = Target::start_with(&path, &["1"], &[]);
    let run = Run::pid(target.pid());
    let output = run.folder().join("out.pb.gz");
    let tracer = run.args([OsStr::new("-o"), output.as_os_str()]).start();
    target.ask("keep");
    let truth = target.ask("leak");
    let outcome = tracer.stop();
    assert_eq!(outcome.report(0).outstanding(), truth.total());
    let top = |symbolize: &str| {
        pprof(&["-top", symbolize, "-unit=B", "-nodecount=100000", "-nodefraction=0"], &outcome.path("out.pb.gz"))
    };
    let stripped = top("-symbolize=none");
    assert_eq!(flat(&stripped).get("[service]"), Some(&truth.total().bytes), "{stripped}");
    fs::remove_file(&path).unwrap();
    fs::copy(program, &path).unwrap();
    let named = top("-symbolize=force");
    let flat = flat(&named);
    for (function, held) in truth.held.iter().filter(|(_, held)| held.bytes > 0) {
        assert_eq!(flat.get(function), Some(&held.bytes), "{function} in {named}");
    }
}

#[test]
fn json_to_the_standard_output() {
    let (outcome, truth) = traced(&["-o", "-", "--format", "json"], &[], || {});
    let report = Report::parse(&outcome.stdout);
    assert_eq!(report.outstanding(), truth.total());
    assert_eq!(report.json, outcome.report(0).json, "one run, one report");
}

#[test]
fn quiet_says_little() {
    let (outcome, _) = traced(&["-q"], &[], || {});
    assert_eq!(outcome.code(), Some(0));
    assert_eq!(outcome.stdout, "", "the report is in the file");
    assert_eq!(outcome.stderr.lines().count(), 1, "{}", outcome.stderr);
    assert!(outcome.stderr.starts_with("tracing "), "{}", outcome.stderr);
}

#[test]
fn counts_instead_of_bytes() {
    let (outcome, truth) = traced(&["--value", "count"], &["out.folded", "out.svg"], || {});
    assert_eq!(folded_sum(&outcome.file("out.folded")), truth.total().blocks);
    assert_well_formed(&outcome.file("out.svg"));
}

#[test]
fn the_top_is_as_long_as_asked_for() {
    let (outcome, _) = traced(&["--top", "2"], &[], || {});
    let numbers: Vec<&str> = outcome.stdout.lines().filter(|line| line.starts_with('#')).collect();
    assert_eq!(numbers.len(), 2, "{}", outcome.stdout);
    assert!(outcome.report(0).stacks.len() > 2, "the saved form has all");
}

#[test]
fn only_old_blocks_when_asked_for() {
    let (outcome, truth) = traced(&["--min-age", "1s"], &[], || thread::sleep(Duration::from_millis(2500)));
    let report = outcome.report(0);
    assert_eq!(report.json["filters"]["min_age_seconds"], 1.0);
    assert!(report.json["filters"]["younger_blocks"].as_u64() > Some(0), "{}", report.json["filters"]);
    assert!(outcome.stdout.contains("  filters      only blocks held for 1s or longer\n"), "{}", outcome.stdout);
    let held = report.by_caller(None);
    assert_eq!(held.get("keep_all_along"), Some(&truth.held["keep_all_along"]));
    assert_eq!(held.get("leak_now_and_then"), None, "too young");
}

#[test]
fn only_sizes_that_are_asked_for() {
    let all = |from: u64, to: u64, times: u64| {
        let bytes: u64 = (from..=to).sum();
        Held { bytes: bytes * times, blocks: (to - from + 1) * times }
    };
    let (outcome, _) = traced(&["--min-size", "120", "--max-size", "129"], &[], || {});
    let report = outcome.report(0);
    // Two functions, each 40 times the sizes of 100 to 149.
    assert_eq!(report.outstanding(), all(120, 129, 80));
    assert!(report.json["quality"]["notes"].to_string().contains("size filter"));
    let (outcome, truth) = traced(&["--min-size", "1000"], &[], || {});
    assert_eq!(outcome.report(0).outstanding(), truth.held["leak_now_and_then"]);
}

#[test]
fn a_report_every_interval() {
    let (outcome, truth) = traced(&["--interval", "500ms"], &[], || thread::sleep(Duration::from_millis(2200)));
    let reports = outcome.stdout.lines().filter(|line| line.starts_with("heap profile")).count();
    assert!((4..=9).contains(&reports), "{reports} reports: {}", outcome.stdout);
    assert_eq!(outcome.report(0).outstanding(), truth.total());
}

/// Nothing is lost while somebody looks.
#[test]
fn what_comes_while_many_stacks_are_looked_at_counts() {
    require_root();
    let mut target = Target::start(&compiled("paths"));
    let tracer = Run::pid(target.pid()).args(["--interval", "100ms"]).start();
    let truth = target.ask("begin");
    let report = tracer.stop().report(0);
    report.assert_nothing_lost("paths");
    assert_eq!(report.below("at_the_end_of_a_path"), truth.total());
    let pairs = report.stacks.iter().filter(|stack| stack.has("back_and_forth")).map(|stack| stack.allocated.blocks);
    assert_eq!(pairs.sum::<u64>(), truth.fact("pairs"));
}

#[test]
fn a_duration_ends_the_trace() {
    require_root();
    let program = compiled("churn");
    let mut target = Target::start_with(&program, &["1"], &[]);
    let tracer = Run::pid(target.pid()).args(["--duration", "1s"]).env("NO_COLOR", "1").start();
    let truth = target.ask("keep");
    let report = tracer.outcome().report(0);
    assert_eq!(report.outstanding(), truth.total());
    let seconds = report.json["duration_seconds"].as_f64().unwrap();
    assert!(seconds >= 1.0, "{seconds} s");
}

#[test]
fn help_tells_the_exit_statuses_and_examples() {
    let outcome = Run::bare().args(["--help"]).finish();
    assert_eq!(outcome.code(), Some(0));
    for words in ["Exit status", "128 + the signal", "--strict", "sudo tracer --pid", "--min-age", "--buffer-size"] {
        assert!(outcome.stdout.contains(words), "no {words:?} in: {}", outcome.stdout);
    }
    assert!(!outcome.stdout.contains('\x1b'), "only a terminal is told how letters look: {}", outcome.stdout);
    let version = Run::bare().args(["--version"]).finish();
    assert!(version.stdout.starts_with("tracer "), "{}", version.stdout);
}

#[test]
fn man_page_and_completions() {
    for (what, words) in [
        ("man", ".TH"),
        ("complete-bash", "complete -F"),
        ("complete-zsh", "#compdef tracer"),
        ("complete-fish", "complete -c tracer"),
    ] {
        let outcome = Run::bare().args(["--generate", what]).finish();
        assert_eq!(outcome.code(), Some(0), "{what}: {}", outcome.stderr);
        let text = outcome.stdout.replace('\\', "");
        assert!(text.contains(words) && text.contains("buffer-size"), "{what}: {text}");
    }
}
