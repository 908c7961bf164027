//! Whatever the tracer does harms no program.

use std::{env, fs, path::Path, thread, time::Duration};

use nix::sys::signal::Signal;

use super::{PROFILED, run};
use crate::harness::{Report, STOCK, Target, alone, go_program, probed_bytes, slowness, wait_until};

/// A program that checks its own data all the time, on all processors.
struct Checked(Target);

impl Checked {
    fn start(flags: &[&str]) -> Self {
        let mut target = Target::start_with(&go_program("heap", flags), &["checked"], &[]);
        target.ask("begin");
        Self(target)
    }

    #[track_caller]
    fn assert_well(mut self, what: &str) {
        assert!(self.0.is_alive(), "{what}: the program has died");
        // It goes on to work.
        thread::sleep(Duration::from_millis(500));
        let truth = self.0.ask("rest");
        assert_eq!(truth.fact("failures"), 0, "{what}: its data was damaged");
        assert!(truth.fact("trees") > 10, "{what}: it did not get far");
        assert!(self.0.finish().success(), "{what}: it did not end well");
    }
}

/// How often the tracer comes and goes: `TRACER_TEST_CYCLES`, or few times.
fn cycles() -> u32 {
    let cycles = env::var("TRACER_TEST_CYCLES").ok();
    cycles.map_or(20 / slowness().min(10), |cycles| {
        cycles.parse().unwrap_or_else(|_| panic!("TRACER_TEST_CYCLES={cycles}: no number"))
    })
}

#[test]
fn a_tracer_that_comes_and_goes_harms_nothing() {
    let _turn = alone();
    let checked = Checked::start(STOCK);
    for cycle in 0..cycles() {
        let tracer = run(checked.0.pid(), "sample").start();
        thread::sleep(Duration::from_millis(u64::from(cycle % 5) * 50));
        let outcome = tracer.stop();
        // Its own collections are so quick that one may be missed, which is told.
        assert!(matches!(outcome.code(), Some(0 | 3)), "cycle {cycle}: {}", outcome.stderr);
        assert!(outcome.has_report(), "cycle {cycle}: {}", outcome.stderr);
    }
    checked.assert_well("attached and detached");
}

#[test]
fn a_tracer_that_is_killed_harms_nothing() {
    let _turn = alone();
    for (flags, mode) in [(STOCK, "sample"), (STOCK, "enable"), (PROFILED, "buckets"), (PROFILED, "sample")] {
        let checked = Checked::start(flags);
        let pid = checked.0.pid();
        for wait in [0, 100, 700] {
            let tracer = run(pid, mode).start();
            thread::sleep(Duration::from_millis(wait));
            tracer.signal(Signal::SIGKILL);
            assert_eq!(tracer.outcome().code(), None, "{mode}: killed");
        }
        let program = fs::read_link(format!("/proc/{pid}/exe")).unwrap();
        let name = Path::new(&program).file_name().unwrap().to_string_lossy().into_owned();
        wait_until("no probe is left", || probed_bytes(pid, &name) == 0);
        checked.assert_well(mode);
    }
}

/// It dies at any moment of being traced, and the report is written all the same.
#[test]
fn a_program_that_is_killed_leaves_a_report() {
    let target = Target::start_with(&go_program("heap", STOCK), &["checked"], &[]);
    let mut target = Checked(target);
    let tracer = run(target.0.pid(), "sample").start();
    target.0.ask("begin");
    thread::sleep(Duration::from_millis(500));
    drop(target);
    let outcome = tracer.outcome();
    assert!(matches!(outcome.code(), Some(0 | 3)), "{}", outcome.stderr);
    let report = Report::parse(&outcome.file("out.json"));
    assert!(report.allocated().bytes > 0, "{}", report.json["totals"]);
}
