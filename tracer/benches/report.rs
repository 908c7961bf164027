//! Time to write a profile of 100,000 distinct stacks in each format.
#![expect(clippy::print_stdout, reason = "figures are what a bench is for")]

use std::{
    io,
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use tracer::{
    profile::{
        Filters, Frame, Frames, Growth, Kind, Language, Mode, Process, Profile, Rate, StackEntry, Trend, Values,
        quality::Quality,
    },
    report::{By, Format, Options, Value, write},
};

const STACKS: u64 = 100_000;

fn main() -> io::Result<()> {
    let profile = profile();
    let options = Options { top: 10, value: Value::Bytes, by: By::Program };
    for format in [Format::Text, Format::Folded, Format::Svg, Format::Pprof, Format::Json] {
        let start = Instant::now();
        write(format, &profile, &options, &mut io::sink())?;
        println!(
            "report: {STACKS} stacks to {} in {:.2} s (goal: <= 3 s)",
            format.name(),
            start.elapsed().as_secs_f64()
        );
    }
    Ok(())
}

/// Stacks of 20 to 40 frames that part ways the deeper they go, out of a few thousand functions.
fn profile() -> Profile {
    let functions: Vec<Arc<[Frame]>> = (0..5000u64)
        .map(|n| {
            let frame = Frame {
                symbol: None,
                function: Some(format!("service::module_{}::Handler<T>::function_{n}", n % 37)),
                file: Some(format!("/src/service/module_{}.cc", n % 37)),
                line: Some(n as u32 + 1),
                module: Some(format!("/usr/lib/libservice{}.so", n % 7)),
                offset: n * 64,
                inlined: false,
            };
            [frame].into()
        })
        .collect();
    let stacks = (0..STACKS).map(|n| {
        let frames: Frames = (0..20 + n % 21)
            .map(|depth| {
                Arc::clone(&functions[((n >> (20 - depth.min(20))) * 31 + depth * 97) as usize % functions.len()])
            })
            .collect();
        let held = n % 1000 + 1;
        StackEntry {
            heap: tracer::profile::Heap::Native,
            pid: 1,
            image: 1,
            frames,
            values: Values {
                outstanding_bytes: held * 16,
                outstanding_blocks: held,
                allocated_bytes: held * 32,
                allocated_blocks: held * 2,
                freed_blocks: held,
            },
            uncertain_bytes: 0,
            oldest: Some(Duration::from_secs(n % 60)),
            at_end: None,
            holders: 1,
            truncated: None,
            estimate: None,
            growth: Some(Growth { trend: Trend::Growing, rate: Some(Rate { per_second: n as f64, error: 1.0 }) }),
        }
    });
    Profile {
        cost: None,
        kind: Kind::Heap,
        started: SystemTime::now(),
        duration: Duration::from_secs(60),
        mode: Mode::Exact,
        filters: Filters::default(),
        processes: vec![Process {
            image: 1,
            ..Process::new(1, "service".into(), "/usr/bin/service".into(), Language::Cpp)
        }],
        stacks: stacks.collect(),
        mappings: None,
        goroutines: Vec::new(),
        goroutine_growth: None,
        quality: Quality::default(),
        unwind_tables: Vec::new(),
        modules: Vec::new(),
    }
}
