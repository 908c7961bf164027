//! Processes that come and go by the hundred: each is exact, and nothing of them is left in tracer.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    io::{BufRead as _, BufReader, Write as _},
    path::PathBuf,
    process::{Command, Stdio},
};

use serde_json::Value;
use tracer::bpf::entries_of;

use crate::harness::{Held, Run, compiled, require_root, wait_until};

/// Maps whose entries are of processes, threads, or what was lost.
const OF_PROCESSES: [&str; 7] = ["TARGETS", "PAUSED", "THREADS", "OWNERS", "LOST_BEGINNINGS", "LOST_FREES", "UNSEEN"];

/// What a tracer has of processes: entries of maps, its threads, and its descriptors but one for each file.
#[derive(Debug, PartialEq, Eq)]
struct Holdings {
    entries: BTreeMap<String, u64>,
    threads: usize,
    descriptors: usize,
}

impl Holdings {
    fn of(pid: u32) -> Self {
        let count = |what: &str| fs::read_dir(format!("/proc/{pid}/{what}")).unwrap().count();
        let mut entries = entries_of(pid).unwrap();
        // The kernel keeps 15 bytes of a name.
        entries.retain(|name, _| OF_PROCESSES.iter().any(|of| name == &of[..of.len().min(15)]));
        assert_eq!(entries.len(), OF_PROCESSES.len(), "{entries:?}");
        let links = fs::read_dir(format!("/proc/{pid}/fd")).unwrap().flatten();
        let links = links.filter_map(|link| fs::read_link(link.path()).ok());
        // What other processes of the machine have mapped is opened in the background, each once.
        let (files, others): (Vec<PathBuf>, Vec<PathBuf>) = links.partition(|path| path.is_absolute());
        let kept = files.iter().filter(|path| !path.starts_with("/proc")).collect::<BTreeSet<_>>().len();
        Self { entries, threads: count("task"), descriptors: files.len() + others.len() - kept }
    }
}

#[test]
fn nothing_is_left_of_processes_that_have_ended() {
    require_root();
    for way in ["fork", "exec"] {
        let mut command = Command::new(compiled("storm"));
        let mut storm = command.args(["500", "8", way, "wait"]);
        storm = storm.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut storm = storm.spawn().unwrap();
        let running = Run::pid(storm.id()).args(["--scope=file"]).start();
        let mut input = storm.stdin.take().unwrap();
        let mut before = Holdings::of(running.pid());
        // Its own thread has made a call, then.
        before.entries.insert("OWNERS".to_owned(), 1);
        input.write_all(b"\n").unwrap();
        let mut line = String::new();
        BufReader::new(storm.stdout.take().unwrap()).read_line(&mut line).unwrap();
        // What was met for the first time stays open: the program itself, its loader.
        let is_left = |after: &Holdings| {
            after.entries != before.entries
                || after.threads > before.threads
                || after.descriptors > before.descriptors + 4
        };
        wait_until(way, || !is_left(&Holdings::of(running.pid())));
        drop(input);
        storm.wait().unwrap();
        let report = running.outcome().report(0);
        report.assert_nothing_lost(way);
        assert_eq!(report.json["targets"].as_array().unwrap().len(), 501, "{way}");
        let held = report.stacks.iter().filter(|stack| stack.caller() == "work");
        assert_eq!(
            held.fold(Held::default(), |sum, stack| sum + stack.held),
            Held { bytes: 500_000, blocks: 500 },
            "{way}"
        );
    }
}

/// Of thousands that have ended the last ones are told one by one, and the others together, with exact sums.
#[test]
fn what_is_told_of_many_that_have_ended_is_bounded_and_adds_up() {
    require_root();
    let report = Run::launch(&[], [compiled("storm").to_str().unwrap(), "1600", "8", "fork"]).finish().report(0);
    report.assert_nothing_lost("many ended processes");
    let processes = report.json["processes"].as_array().unwrap();
    assert!(processes.len() <= 1_252, "{}", processes.len());
    let stands_for = |process: &Value| process["stands_for"].as_u64().unwrap_or(1);
    assert_eq!(processes.iter().map(stands_for).sum::<u64>(), 1_601);
    let held = report.stacks.iter().filter(|stack| stack.caller() == "work");
    assert_eq!(held.fold(Held::default(), |sum, stack| sum + stack.held), Held { bytes: 1_600_000, blocks: 1_600 });
    let stacks = report.json["stacks"].as_array().unwrap();
    let of_work =
        |stack: &&Value| matches!(stack["outstanding_bytes"].as_u64(), Some(bytes @ 1..) if bytes % 1_000 == 0);
    let holding = stacks.iter().filter(of_work);
    let holders: u64 = holding.map(|stack| stack["holding_processes"].as_u64().unwrap_or(1)).sum();
    assert_eq!(holders, 1_600);
}
