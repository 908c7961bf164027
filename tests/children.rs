//! What a traced process starts: every process exact, from its first instruction.

use std::{
    collections::BTreeMap,
    fs,
    io::{BufRead as _, BufReader, Read as _, Write as _},
    process::{Command, Stdio},
    thread,
    time::Duration,
};

use nix::sys::signal::Signal;
use tempfile::TempDir;

use crate::harness::{Held, Outcome, Report, Run, compiled, copy_program, require_root, skipped, slowness};

/// What `hold()` has left in each process, as they say: `held PID BYTES BLOCKS`.
pub(crate) fn told(output: &str) -> BTreeMap<u32, Held> {
    let process = |line: &str| {
        let mut words = line.strip_prefix("held ")?.split_whitespace().map(|word| word.parse::<u64>().unwrap());
        let pid = words.next()?.try_into().unwrap();
        Some((pid, Held { bytes: words.next()?, blocks: words.next()? }))
    };
    output.lines().filter_map(process).collect()
}

/// The same of a report.
pub(crate) fn reported(report: &Report) -> BTreeMap<u32, Held> {
    let mut all: BTreeMap<u32, Held> = BTreeMap::new();
    for stack in report.stacks.iter().filter(|stack| stack.caller() == "hold") {
        let held = all.entry(stack.pid).or_default();
        *held = *held + stack.held;
    }
    all
}

fn trace(options: &[&str], way: &str) -> Outcome {
    require_root();
    Run::launch(options, [compiled("tree").to_str().unwrap(), way]).finish()
}

/// Also as the last thing that a process does: what the C library's cache gives back at the end of a thread is something else, and nobody gives
/// it back as all of a process ends, by whichever thread.
#[test]
fn frees_of_what_a_child_has_from_its_parent_are_all_counted() {
    require_root();
    let program = compiled("inherits");
    for (blocks, thread) in [("45", None), ("45", Some("thread")), ("2500", None), ("2500", Some("thread"))] {
        let command = [program.to_str().unwrap(), blocks].into_iter().chain(thread);
        let report = Run::launch(&[], command).finish().report(0);
        let counted = (report.quality("inherited_frees"), report.quality("unmatched_frees"));
        assert_eq!(counted, (blocks.parse().unwrap(), 0), "{blocks} {thread:?}");
    }
}

/// By fork, fork of a fork, double fork and setsid, posix_spawn, exec, workers that are replaced, threads that fork; and memory that
/// a child shares with its parent, which frees what the parent has allocated.
#[test]
fn every_process_is_exact() {
    for (way, number) in [
        ("fork", 5),
        ("daemon", 3),
        ("vfork", 1),
        ("clone", 1),
        ("spawn", 4),
        ("vfork and exec", 4),
        ("exec", 4),
        ("workers", 17),
        ("threads", 5),
        ("hundreds", 301),
    ] {
        let outcome = trace(&[], way);
        let truth = told(&outcome.stdout);
        assert_eq!(truth.len(), number, "{way}: {}", outcome.stdout);
        let report = outcome.report(5);
        report.assert_nothing_lost(way);
        let mut truth = truth;
        truth.retain(|_, held| held.blocks > 0);
        assert_eq!(reported(&report), truth, "{way}");
        let processes = report.json["processes"].as_array().unwrap();
        assert!(processes.iter().skip(1).all(|process| process["parent_pid"].is_u64()), "{way}: {processes:?}");
        assert!(processes.iter().all(|process| process["ended_after_seconds"].is_f64()), "{way}: {processes:?}");
        // That of a process which was forked and became another program before anybody looked is there, too.
        assert!(processes.len() >= number, "{way}: {processes:?}");
    }
}

/// A process that shares the memory of the one that is traced is not recorded with it alone: that is told.
#[test]
fn without_children() {
    let outcome = trace(&["--no-children"], "fork");
    let report = outcome.report(5);
    assert_eq!(reported(&report).values().copied().collect::<Vec<_>>(), [Held { bytes: 1000, blocks: 1 }]);
    report.assert_complete("only the process itself");
    let outcome = trace(&["--no-children"], "vfork");
    outcome.report(5).assert_gap("unseen_spans", 3);
}

/// What a child does on its parent's memory before it becomes a program is not seen with probes for each process alone, and told; most do
/// nothing there but to exec, of which nothing is to be told.
#[test]
fn what_becomes_a_program_on_the_memory_of_its_parent() {
    let (outcome, truth) = of_a_running_one(&["--no-children"], "vfork and exec");
    let report = outcome.report(3);
    let held: u64 = reported(&report).values().map(|held| held.bytes).sum();
    let certain = held - report.uncertain_bytes("hold");
    let truth: u64 = truth.values().map(|held| held.bytes).sum();
    assert!(certain <= truth, "{certain} of {held}, {truth}");
    report.assert_gap("unseen_spans", 3);
    let (outcome, _) = of_a_running_one(&["--no-children"], "spawn");
    outcome.report(0).assert_complete("spawned");
}

/// Traces a process that runs already, with what it starts from then on: what is reported, and what the processes say.
fn of_a_running_one(options: &[&str], way: &str) -> (Outcome, BTreeMap<u32, Held>) {
    require_root();
    let mut command = Command::new(compiled("tree"));
    let mut parent = command.args([way, "wait"]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let running = Run::pid(parent.id()).args(options).start();
    parent.stdin.take().unwrap().write_all(b"\n").unwrap();
    let output = parent.wait_with_output().unwrap();
    (running.outcome(), told(std::str::from_utf8(&output.stdout).unwrap()))
}

#[test]
fn of_a_running_process() {
    let (outcome, truth) = of_a_running_one(&["--scope", "file"], "fork");
    assert_eq!((reported(&outcome.report(0)), truth.len()), (truth, 5));
}

/// With probes for each process alone, a child has none until it is seen: what it does from then on is recorded, and how long that
/// took is told. The ones of `late` wait for a second before they allocate.
#[test]
fn of_a_running_process_alone() {
    let (outcome, truth) = of_a_running_one(&[], "late");
    let report = outcome.report(3);
    assert_eq!((reported(&report), truth.len()), (truth, 3));
    report.assert_gap("unseen_spans", 2);
    let notes = report.json["quality"]["notes"].to_string();
    assert!(notes.contains("2 processes that began") && notes.contains("ms of each"), "{notes}");
    // Children that end before they have probes of their own are told, and nothing is a leak that none is.
    let (outcome, truth) = of_a_running_one(&[], "fork");
    for (pid, held) in reported(&outcome.report(3)) {
        assert!(held.bytes <= truth[&pid].bytes, "{pid}: {held:?}, {truth:?}");
    }
}

/// What a child without probes does on the memory of its parent is not seen: what it may have freed is uncertain.
#[test]
fn of_a_running_process_on_its_memory() {
    for way in ["vfork", "clone"] {
        let (outcome, truth) = of_a_running_one(&[], way);
        let report = outcome.report(3);
        let held: u64 = reported(&report).values().map(|held| held.bytes).sum();
        let certain = held - report.uncertain_bytes("hold");
        let truth: u64 = truth.values().map(|held| held.bytes).sum();
        assert!(held >= 300_000 && certain <= truth, "{way}: {certain} of {held}, {truth}");
        report.assert_gap("unseen_spans", 3);
    }
}

/// A child without probes that ends on the memory of its parent has done nothing there if it has met none of its parent's: where the kernel
/// still knows that (from Linux 6.16 on), nothing is told, as little as of one that becomes a program.
#[test]
fn of_a_running_process_on_its_memory_and_without_work() {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    let known = tracer::bpf::kernel_version(&release) >= Some((6, 16));
    for options in [&[][..], &["--no-children"]] {
        let (outcome, truth) = of_a_running_one(options, "vfork and end");
        let report = outcome.report(if known { 0 } else { 3 });
        assert_eq!(reported(&report), truth, "{options:?}");
        if known {
            report.assert_complete("nothing was done");
            assert_eq!(report.uncertain_bytes("hold"), 0, "{options:?}");
        } else {
            report.assert_gap("unseen_spans", 3);
        }
    }
}

/// It works on the memory of its parent, which ends before it: nobody sees what it does then, and that is told.
#[test]
fn one_that_shares_memory_and_outlives_its_parent() {
    let report = trace(&[], "outlive").report(5);
    report.assert_gap("unfollowed_processes", 1);
}

/// A process that starts another by vfork goes on before that has become a program, and may be gone by then: nothing is missed.
#[test]
fn whose_parents_leave_at_once() {
    require_root();
    let outcome = Run::launch(&[], [compiled("leaves").to_str().unwrap()]).finish();
    let gaps = Report::parse(&outcome.file("out.json")).gap("unfollowed_processes");
    assert_eq!(gaps, 0, "{}", outcome.stdout);
}

/// Their beginnings find the ring buffer full: they are followed as soon as somebody looks, and that is told.
#[test]
fn that_began_unheard() {
    require_root();
    let mut command = Command::new(compiled("tree"));
    let mut parent = command.args(["unheard", "wait"]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let running = Run::pid(parent.id()).args(["--scope=file", "--buffer-size", "4KiB"]).start();
    running.signal(Signal::SIGSTOP);
    let mut input = parent.stdin.take().unwrap();
    input.write_all(b"\n").unwrap();
    let mut output = BufReader::new(parent.stdout.take().unwrap());
    let mut line = String::new();
    output.read_line(&mut line).unwrap();
    assert_eq!(line, "begun\n");
    running.signal(Signal::SIGCONT);
    thread::sleep(Duration::from_millis(500) * slowness());
    input.write_all(b"\n\n").unwrap();
    let mut text = String::new();
    output.read_to_string(&mut text).unwrap();
    parent.wait().unwrap();
    let report = running.outcome().report(3);
    let mut truth = told(&text);
    assert_eq!(truth.remove(&parent.id()), Some(Held { bytes: 1000, blocks: 1 }), "{text}");
    let mut seen = reported(&report);
    seen.remove(&parent.id());
    assert_eq!((seen, truth.len()), (truth, 2), "{}", report.json["quality"]);
    assert!(report.gaps().iter().any(|gap| gap == "unfollowed_processes"), "{:?}", report.gaps());
    assert!(report.json["quality"]["notes"].to_string().contains("followed late"), "{}", report.json["quality"]);
}

/// Most are over before anybody can look at them; the program was looked at in those that were not.
#[test]
fn programs_that_are_over_at_once() {
    let outcome = trace(&[], "many leaves");
    let truth = told(&outcome.stdout);
    let report = outcome.report(5);
    report.assert_nothing_lost("many leaves");
    assert!(
        report.json["quality"]["notes"].as_array().unwrap().iter().all(|note| !note.to_string().contains("could look"))
    );
    assert_eq!((truth.len(), reported(&report).len()), (101, 1), "{}", outcome.stdout);
}

/// Kinds of file systems (`f_type` of statfs(2)).
const EXT4: u32 = 0xef53;
const XFS: u32 = 0x5846_5342;

/// Their files are found by what the kernel knows them by, also when nobody could look at the process any more.
#[test]
fn programs_that_are_over_at_once_have_names() {
    require_root();
    let Some((_folder, runs)) = copies("brief", "names of programs that are over at once") else { return };
    let report = Run::launch(&[], ["sh", "-c", &format!("{} true", runs.concat())]).finish().report(0);
    let own = report.stacks.iter().filter(|stack| stack.has("forget_quickly"));
    let blocks: u64 = own.map(|stack| stack.allocated.blocks).sum();
    assert_eq!(blocks, runs.len() as u64, "{:?}", report.stacks);
}

/// One that has an allocator of its own, which nobody could find in time, is told of although something was recorded of it.
#[test]
fn programs_that_are_over_at_once_and_have_allocators_of_their_own() {
    require_root();
    let Some((_folder, runs)) = copies("brief_own", "allocators of programs that are over at once") else { return };
    for run in &runs {
        let outcome = Run::launch(&[], ["sh", "-c", &format!("{run} true")]).finish();
        let status = outcome.code().unwrap();
        let report = outcome.report(status);
        let sum = |size| -> u64 {
            let own = report.stacks.iter().map(|stack| stack.allocated).filter(|all| all.bytes == size);
            own.map(|all| all.blocks).sum()
        };
        assert_eq!(sum(4242), 1, "{:?}", report.stacks);
        assert!(status == 3 || sum(10_007) == 1, "{status}: {:?}", report.stacks);
    }
}

/// Copies of a program that nobody has seen, each as a command of the shell. Without, and that is said, where nothing can be found out of
/// one that is over.
fn copies(name: &str, what: &str) -> Option<(TempDir, Vec<String>)> {
    let program = compiled(name);
    // Beside it: folders for what is temporary may lie in memory.
    let folder = tempfile::tempdir_in(program.parent().unwrap()).unwrap();
    let file_system = rustix::fs::statfs(folder.path()).unwrap().f_type as u32;
    if ![EXT4, XFS].contains(&file_system) {
        skipped(what, &format!("{file_system:#x} finds no files by their numbers"));
        return None;
    }
    let copy = |nth| {
        let copy = folder.path().join(format!("{name}{nth}"));
        copy_program(&program, &copy);
        format!("{};", copy.display())
    };
    let runs = (0..20).map(copy).collect();
    Some((folder, runs))
}

/// A program that nobody has seen: whatever it does before anybody could look at its file, its stacks are whole. By a copy, for what
/// was mapped before is known.
#[test]
fn programs_that_nobody_has_seen() {
    require_root();
    let folder = crate::harness::scratch();
    for (nth, way) in ["exec", "fork"].into_iter().enumerate() {
        let program = folder.path().join(format!("unseen{nth}"));
        copy_program(&compiled("at_once"), &program);
        let path = program.display();
        let script = if way == "exec" { format!("{path} & wait") } else { format!("({path}; true) & wait") };
        let report = Run::launch(&[], ["sh", "-c", &script]).finish().report(0);
        let own = report.stacks.iter().filter(|stack| stack.functions.iter().any(|function| function == "further"));
        let mut ways: Vec<u64> = Vec::new();
        for stack in own {
            let main = stack.functions.iter().position(|function| function == "main");
            let main = main.unwrap_or_else(|| panic!("{way}: cut: {:?}", stack.functions));
            assert_eq!(stack.functions[0], "_start", "{way}: {:?}", stack.functions);
            let went = stack.functions[main..].iter().filter(|function| ["left", "right"].contains(&function.as_str()));
            let size = went.fold(1, |size, function| size << 1 | u64::from(function == "right"));
            assert_eq!(stack.allocated, Held { bytes: size, blocks: 1 }, "{way}: {:?}", stack.functions);
            ways.push(size);
        }
        ways.sort_unstable();
        assert_eq!(ways, (1024..2048).collect::<Vec<u64>>(), "{way}");
        assert_eq!(report.quality("truncated_stacks"), 0, "{way}: {}", report.json["quality"]);
    }
}
