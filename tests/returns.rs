//! What is done to see how calls end does no harm: programs that change stacks inside of the allocator, and those that walk
//! their own stacks there, go on as if nobody were looking; and what was not seen is counted.

use crate::harness::{
    Held, Report, Run, Target, Truth, check_holders, compiled, preloadable, require_root, taking_returns,
};

/// Ways to see outcomes that may be asked for, but for that which is known to do harm; the first is what tracer does by
/// itself.
const WAYS: [&str; 4] = ["auto", "exits", "ret", "session"];

/// How often the outcome of a call was not seen.
fn unseen(report: &Report) -> u64 {
    report.gap("untracked_calls")
}

/// Traces a program that does what `order` says, seeing returns in the way `way`: the truth and the report.
fn traced(program: &str, environment: &[(&str, &str)], order: &str, way: &str) -> (Truth, Report) {
    let mut target = Target::start_with(&compiled(program), &[], environment);
    let tracer = Run::pid(target.pid()).args(["--returns", way]).start();
    let truth = target.ask(order);
    assert!(target.is_alive(), "{program} {order}, by {way}");
    let outcome = tracer.stop();
    let code = outcome.code().unwrap();
    assert!(code == 0 || code == 3, "{program} {order}, by {way}: exit status {code}");
    (truth, outcome.report(code))
}

/// The program lives, and what is missing in the report is counted as not seen.
fn check_unharmed(order: &str, way: &str) {
    let (truth, report) = traced("fibers", &[], order, way);
    let held = report.stacks.iter().fold(Held::default(), |sum, stack| sum + stack.held);
    let missing = truth.total().blocks.saturating_sub(held.blocks);
    assert!(missing <= unseen(&report), "{order}, by {way}: {missing} blocks missing, {} not seen", unseen(&report));
    assert!(held.blocks <= truth.total().blocks, "{order}, by {way}: {held:?} of {:?}", truth.total());
    if unseen(&report) == 0 {
        check_holders(&format!("{order}, by {way}"), &report, &truth);
    } else {
        assert!(!report.is_complete(), "{order}, by {way}");
    }
}

#[test]
fn fibers_that_wait_inside_of_the_allocator() {
    require_root();
    let _turn = taking_returns();
    for way in WAYS {
        check_unharmed("swap 8", way);
        check_unharmed("jump 8", way);
    }
}

#[test]
fn hundreds_of_fibers() {
    require_root();
    let _turn = taking_returns();
    for way in ["auto", "session"] {
        check_unharmed("swap 500", way);
        check_unharmed("jump 500", way);
    }
}

#[test]
fn handlers_on_stacks_of_their_own() {
    require_root();
    let _turn = taking_returns();
    for way in WAYS {
        check_unharmed("handler above", way);
        check_unharmed("handler below", way);
    }
}

/// By what tracer does by itself, nothing is missed: an allocator that is the program's own is seen without touching its stacks.
#[test]
fn fibers_are_followed() {
    require_root();
    let _turn = taking_returns();
    let (truth, report) = traced("fibers", &[], "swap 8", "auto");
    check_holders("swap 8", &report, &truth);
    assert_eq!(unseen(&report), 0);
}

/// A walk that the program takes inside of malloc comes to main, and meets nothing that is not the program's.
#[test]
fn programs_that_walk_their_own_stacks() {
    require_root();
    for way in ["auto", "exits", "ret"] {
        let (truth, report) = traced("own backtrace", &[], "run", way);
        assert_eq!((truth.fact("cut"), truth.fact("strange")), (0, 0), "by {way}");
        check_holders(&format!("own backtrace, by {way}"), &report, &truth);
    }
}

/// A thread enters the allocator and another one leaves it: no return probe survives that. The allocator is in a library that
/// nobody knows.
#[test]
fn fibers_that_go_on_in_another_thread() {
    require_root();
    let _turn = taking_returns();
    let allocator = compiled("pausing allocator");
    for way in ["auto", "exits", "ret"] {
        let preloaded = [("LD_PRELOAD", allocator.to_str().unwrap())];
        let (truth, report) = traced("migrants", &preloaded, "begin", way);
        let held = report.stacks.iter().fold(Held::default(), |sum, stack| sum + stack.held);
        let (blocks, told) = (truth.total().blocks, held.blocks + unseen(&report));
        // Of the last calls of each thread it has not come out yet that they were not seen.
        let rest = blocks.saturating_sub(told);
        assert!(rest <= 2 * 16, "by {way}: {held:?} of {:?}, {} not seen", truth.total(), unseen(&report));
        assert!(held.blocks == blocks || !report.is_complete(), "by {way}: {held:?}");
    }
}

/// Two at once, by what tracer does by itself: neither changes the stacks of the other.
#[test]
fn two_processes_with_fibers() {
    require_root();
    let _turn = taking_returns();
    let mut targets = [Target::start(&compiled("fibers")), Target::start(&compiled("fibers"))];
    let [first, second] = [targets[0].pid().to_string(), targets[1].pid().to_string()];
    let tracer = Run::bare().with_json().args(["--pid", &first, "--pid", &second]).start();
    let truth = targets.each_mut().map(|target| target.ask("swap 8").total().blocks);
    assert!(targets.iter_mut().all(Target::is_alive));
    let outcome = tracer.stop();
    let report = outcome.report(0);
    assert_eq!(report.outstanding().blocks, truth[0] + truth[1]);
}

/// Another tracer's return probes on the same functions, of another process, take the return addresses of this one too: the kernel
/// does not ask whose they are.
#[test]
fn beside_a_process_whose_returns_are_probed() {
    require_root();
    let other = Target::start(&compiled("family"));
    let foreign = Run::pid(other.pid()).args(["--returns", "link"]).start();
    let mut target = Target::start(&compiled("family"));
    let tracer = Run::pid(target.pid()).start();
    let truth = target.ask("begin");
    let report = tracer.stop().report(0);
    assert_eq!(report.gaps(), Vec::<String>::new());
    assert_eq!(report.outstanding(), truth.total());
    drop(foreign.stop());
}

/// The report of a sanitizer is the same: it recognises its stacks, so the leak that it was told of is none.
#[test]
fn sanitizers_judge_as_without_tracer() {
    require_root();
    for way in ["auto", "ret"] {
        let program = compiled("own backtrace, address sanitizer");
        let mut target = Target::start(&program);
        let tracer = Run::pid(target.pid()).args(["--returns", way]).start();
        let truth = target.ask("run");
        let outcome = tracer.stop();
        let report = outcome.report(outcome.code().unwrap());
        check_holders(&format!("sanitizer, by {way}"), &report, &truth);
        target.say("end");
        let status = target.finish();
        assert!(status.success(), "by {way}: {status}, because the sanitizer did not see who leaked");
    }
}

/// Addresses in the profile of an allocator that lie outside of all files that the profile lists, and how many lie inside.
fn strangers(profile: &str) -> (Vec<u64>, usize) {
    let hexadecimal = |text: &str| u64::from_str_radix(text.trim_start_matches("0x"), 16).ok();
    let range = |line: &str| {
        let (start, end) = line.split_whitespace().next()?.split_once('-')?;
        Some(hexadecimal(start)?..hexadecimal(end)?)
    };
    let ranges: Vec<_> = profile.lines().filter_map(range).collect();
    let stacks = profile.lines().filter_map(|line| line.split_once("@ ")).filter(|(_, stack)| stack.starts_with("0x"));
    let addresses = stacks.flat_map(|(_, stack)| stack.split_whitespace()).filter_map(hexadecimal);
    let (inside, outside): (Vec<u64>, Vec<u64>) =
        addresses.partition(|address| ranges.iter().any(|range| range.contains(address)));
    (outside, inside.len())
}

/// Profilers of allocators walk stacks inside of malloc; they find what they would find without tracer.
#[test]
fn profilers_of_allocators_see_whole_stacks() {
    require_root();
    let folder = tempfile::tempdir().unwrap();
    let place = folder.path().join("heap");
    let jemalloc = format!("prof:true,lg_prof_sample:0,prof_final:true,prof_prefix:{}", place.display());
    for (allocator, variable, value) in
        [("jemalloc", "MALLOC_CONF", jemalloc.as_str()), ("tcmalloc.so", "HEAPPROFILE", place.to_str().unwrap())]
    {
        let library = preloadable(allocator);
        let environment = [("LD_PRELOAD", library.as_str()), (variable, value)];
        let mut target = Target::start_with(&compiled("own backtrace, none of its own"), &[], &environment);
        let tracer = Run::pid(target.pid()).start();
        let truth = target.ask("run");
        let outcome = tracer.stop();
        check_holders(allocator, &outcome.report(outcome.code().unwrap()), &truth);
        target.say("end");
        assert!(target.finish().success());
        let mut seen = 0;
        for entry in std::fs::read_dir(folder.path()).unwrap() {
            let path = entry.unwrap().path();
            let (outside, inside) = strangers(&String::from_utf8_lossy(&std::fs::read(&path).unwrap()));
            assert!(outside.is_empty(), "{allocator}: {outside:x?} in {}", path.display());
            seen += inside;
            std::fs::remove_file(path).unwrap();
        }
        assert!(seen > 0, "{allocator} wrote no profile");
    }
}
