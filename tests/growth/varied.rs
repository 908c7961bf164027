//! Some hundred traces of programs whose memory grows or does not, in ways drawn at random: how often what is said of that is
//! true. Takes a quarter of an hour, and so is not run unless it is asked for: `cargo xtask test growth --ignored --nocapture`.

use std::{
    collections::BTreeMap,
    env,
    fmt::{self, Write as _},
    sync::{
        Mutex,
        atomic::{AtomicU64, Ordering},
    },
    thread,
    time::Duration,
};

use serde_json::Value;

use crate::harness::{Report, Run, STOCK, Target, Truth, compiled, go_program, require_root};

/// Traces, unless the environment says how many; and how many of them run at a time, for each is idle most of the time.
const TRACES: u64 = 240;
const TRACES_VARIABLE: &str = "TRACER_TEST_TRACES";
const AT_A_TIME: usize = 2;
/// How long they are, in seconds.
const SECONDS: [u64; 5] = [1, 2, 3, 5, 10];
/// The oldest blocks that some of them tell only of, as a part of that time.
const AGED: [Option<f64>; 4] = [None, None, None, Some(0.3)];

/// What the C program can do.
const KINDS: [&str; 21] = [
    "leak_by_clock",
    "leak_at_random",
    "leak_of_all_sizes",
    "leak_in_bursts",
    "leak_after_one_large",
    "leak_beside_churn",
    "leak_beside_cycle",
    "hold_one",
    "hold_many",
    "fill_and_stay",
    "cycle_fast",
    "cycle_slow",
    "cycle_once",
    "on_and_off",
    "burst_and_drain",
    "cache_in_order",
    "cache_at_random",
    "churn",
    "queue",
    "replace_before",
    "vector",
];

/// What was said of one kind, in all traces.
#[derive(Default)]
struct Said {
    growing: u32,
    shrinking: u32,
    steady: u32,
    too_early: u32,
    /// Of what grows, how many rates were told, within how many of two errors, and the sum of these as parts of the truth.
    rates: u32,
    within: u32,
    errors: f64,
}

impl Said {
    fn add(&mut self, stack: &Value, truth: f64) {
        match stack["trend"].as_str() {
            Some("growing") => self.growing += 1,
            Some("shrinking") => self.shrinking += 1,
            Some("steady") => self.steady += 1,
            _ => self.too_early += 1,
        }
        let number = |name: &str| stack[name].as_f64();
        if let (Some(rate), Some(error)) = (number("growth_bytes_per_second"), number("growth_error"))
            && truth > 0.0
        {
            self.rates += 1;
            self.within += u32::from((rate - truth).abs() <= 2.0 * error);
            self.errors += error / truth;
        }
    }

    fn absorb(&mut self, other: &Self) {
        self.growing += other.growing;
        self.shrinking += other.shrinking;
        self.steady += other.steady;
        self.too_early += other.too_early;
        self.rates += other.rates;
        self.within += other.within;
        self.errors += other.errors;
    }

    fn times(&self) -> u32 {
        self.growing + self.shrinking + self.steady + self.too_early
    }
}

impl fmt::Display for Said {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { growing, shrinking, steady, too_early, rates, within, errors } = self;
        let times = self.times();
        write!(f, "{times:5} {growing:7} {shrinking:9} {steady:6} {too_early:9}")?;
        if *rates > 0 {
            let share = f64::from(*within) / f64::from(*rates);
            write!(f, " {:8.1} % of {rates:4}, error {:.3}", 100.0 * share, errors / f64::from(*rates))?;
        }
        Ok(())
    }
}

/// By function, and by whether the program grows there.
type Results = BTreeMap<(String, bool), Said>;

/// Adds what a report says of each function, and says what of it is wrong.
fn judge(trace: &str, report: &Report, truth: &Truth, group: &str, results: &Mutex<Results>) -> bool {
    let mut results = results.lock().unwrap();
    let mut wrong = false;
    let stacks = report.json["stacks"].as_array().unwrap();
    for (stack, of) in stacks.iter().zip(&report.stacks) {
        let Some(truth) = of.functions.iter().find_map(|function| truth.facts.get(function)) else { continue };
        // What holds nothing is not told.
        if stack["outstanding_blocks"].as_u64() == Some(0) {
            continue;
        }
        let truth = *truth as f64;
        let kind = format!("{group} {}", of.caller());
        results.entry((kind.clone(), truth > 0.0)).or_default().add(stack, truth);
        let [rate, error] = ["growth_bytes_per_second", "growth_error"].map(|name| stack[name].as_f64());
        let is_off = rate.zip(error).is_some_and(|(rate, error)| (rate - truth).abs() > 2.0 * error);
        let grows_falsely = truth == 0.0 && stack["trend"] == "growing";
        wrong |= grows_falsely;
        if grows_falsely || (truth > 0.0 && is_off) {
            report_line(&format!("{trace}: {kind} {} {rate:?} ± {error:?}, truth {truth}", stack["trend"]));
        }
    }
    wrong
}

#[expect(clippy::print_stdout, reason = "what an experiment finds")]
fn report_line(line: &str) {
    println!("{line}");
}

/// One of the traces. Says whether anything was said to grow that does not.
fn trace(number: u64, results: &Mutex<Results>) -> bool {
    let pick = |of: usize| (number.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 33) as usize % of;
    let seconds = SECONDS[(number / 4) as usize % SECONDS.len()];
    let aged = AGED[(number / 20) as usize % AGED.len()].map(|part| part * seconds as f64);
    let mut options = vec!["--duration".to_owned(), format!("{seconds}s")];
    if let Some(age) = aged {
        options.extend(["--min-age".to_owned(), format!("{}ms", (age * 1e3) as u64)]);
    }
    let (seed, length) = (number.to_string(), seconds.to_string());
    // Of four: all kinds in C from their beginning, three of them that have been at it for a while, and Go in two ways.
    let late = [pick(KINDS.len()), pick(KINDS.len() - 7) + 7, pick(KINDS.len() - 1)].map(|kind| KINDS[kind]);
    let (group, program, mut arguments) = match number % 4 {
        0 => ("C", compiled("varied"), KINDS.to_vec()),
        1 => ("C, running", compiled("varied"), late.to_vec()),
        2 => ("Go, samples", go_program("varied", STOCK), Vec::new()),
        _ if aged.is_some() => ("Go, samples", go_program("varied", STOCK), Vec::new()),
        _ => ("Go, buckets", go_program("varied", &["-tags=profiled"]), Vec::new()),
    };
    if group == "Go, samples" && number.is_multiple_of(3) {
        options.extend(["--sample".to_owned(), "4KiB".to_owned()]);
    }
    arguments.dedup();
    arguments.splice(0..0, [seed.as_str(), length.as_str()]);
    let mut target = Target::start_with(&program, &arguments, &[]);
    let run = Run::pid(target.pid()).args(&options);
    let (truth, outcome) = if group == "C, running" {
        let truth = target.ask("start");
        thread::sleep(Duration::from_secs_f64(seconds as f64 * pick(100) as f64 / 100.0));
        (truth, run.finish())
    } else {
        let mut running = run.spawn();
        running.wait_for_line("tracing ");
        (target.ask("start"), running.outcome())
    };
    let name = format!("{number} ({}) {}", options.join(" "), group);
    judge(&name, &outcome.report(0), &truth, group, results)
}

#[test]
#[ignore = "takes a quarter of an hour: cargo xtask test growth --ignored --nocapture"]
fn what_is_said_of_growth_is_true() {
    require_root();
    let traces = env::var(TRACES_VARIABLE).map_or(TRACES, |number| number.parse().unwrap());
    let (next, wrong, results) = (AtomicU64::new(0), AtomicU64::new(0), Mutex::new(Results::new()));
    thread::scope(|scope| {
        for _ in 0..AT_A_TIME {
            scope.spawn(|| {
                loop {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    if number >= traces {
                        break;
                    }
                    wrong.fetch_add(u64::from(trace(number, &results)), Ordering::Relaxed);
                }
            });
        }
    });
    let results = results.into_inner().unwrap();
    let mut table = format!("{:32} times growing shrinking steady too early  within two errors\n", "");
    let (mut leaks, mut others) = (Said::default(), Said::default());
    for ((kind, grows), said) in &results {
        writeln!(table, "{kind:32} {said}").unwrap();
        if *grows { &mut leaks } else { &mut others }.absorb(said);
    }
    writeln!(table, "{:32} {leaks}\n{:32} {others}", "what grows", "what does not").unwrap();
    writeln!(table, "{} of {traces} traces said of something that it grows that does not", wrong.into_inner()).unwrap();
    report_line(&table);
    assert!(f64::from(others.growing) <= 0.01 * f64::from(others.times()), "what does not grow is said to:\n{table}");
    assert!(f64::from(leaks.within) >= 0.95 * f64::from(leaks.rates), "rates are off:\n{table}");
    assert!(f64::from(leaks.growing) >= 0.75 * f64::from(leaks.times()), "leaks are not found:\n{table}");
}
