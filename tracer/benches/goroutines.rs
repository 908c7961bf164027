//! Reading the goroutines of a process: 100,000 that wait, and what each part of it takes.
#![expect(clippy::print_stdout, reason = "figures are what a bench is for")]

use std::{
    fs::File,
    io::{BufRead as _, BufReader},
    path::Path,
    process::{Child, Command, Stdio},
    time::Instant,
};

use tracer::{
    golang::{Executable, Runtime, Symbols, read_goroutines},
    process::memory::{Span, read_spans},
    space::link_map::Auxv,
};

/// Times that all is read; the median counts.
const TURNS: usize = 9;

fn main() {
    println!(
        "{:<44} {:>8} {:>9} {:>9} {:>9} {:>9}",
        "goroutines of", "number", "open ms", "attach ms", "read ms", "name ms"
    );
    for (what, flags) in [("a program as built (goal: read <= 500 ms)", ""), ("the same, stripped", "-ldflags=-s -w")] {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let program = folder.path().join("goroutines");
        let sources = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/programs/go/goroutines");
        let mut build = Command::new("go");
        build
            .arg("build")
            .args(Some(flags).filter(|flags| !flags.is_empty()))
            .arg("-o")
            .arg(&program)
            .current_dir(sources);
        if !build.status().is_ok_and(|status| status.success()) {
            println!("{what:<44} NOT RUN, go is missing");
            continue;
        }
        let mut child = start(&program);
        let mut times: Vec<[f64; 4]> = Vec::new();
        let mut number = 0;
        for _ in 0..TURNS {
            let (found, parts) = turn(&program, child.id());
            number = found;
            times.push(parts);
        }
        let median = |part: usize| {
            let mut times: Vec<f64> = times.iter().map(|times| times[part]).collect();
            times.sort_by(f64::total_cmp);
            times[TURNS / 2]
        };
        let [open, attach, read, name] = [0, 1, 2, 3].map(median);
        println!("{what:<44} {number:>8} {open:>9.1} {attach:>9.1} {read:>9.1} {name:>9.1}");
        child.kill().and_then(|()| child.wait()).expect("its end");
    }
}

/// Starts the program and waits until all its goroutines wait.
fn start(program: &Path) -> Child {
    let mut command = Command::new(program);
    let mut child =
        command.arg("100000").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("a program to start");
    let lines = BufReader::new(child.stdout.take().expect("its output")).lines();
    assert!(lines.map_while(Result::ok).any(|line| line == "waiting"), "it ended before it began");
    child
}

/// How many goroutines there are, and the milliseconds to open, attach, read and name.
fn turn(program: &Path, pid: u32) -> (u64, [f64; 4]) {
    let clock = Instant::now();
    let mut before = 0.0;
    let mut lap = || {
        let now = clock.elapsed().as_secs_f64() * 1e3;
        std::mem::replace(&mut before, now) - now
    };
    let read = |spans: &[Span], buffer: &mut [u8]| read_spans(pid, spans, buffer);
    let executable = Executable::open(File::open(program).expect("its executable")).expect("a Go program");
    let open = lap();
    let entry = Auxv::read(pid).ok().and_then(|auxv| auxv.entry()).expect("where it begins");
    let runtime = Runtime::attach(executable, entry, &read).expect("its runtime");
    let attach = lap();
    let goroutines = read_goroutines(&runtime, &read, &|| ()).expect("its goroutines");
    let reading = lap();
    let mut symbols = Symbols::new(&runtime, "program");
    let frames: usize = goroutines.groups.iter().map(|group| symbols.stack(&group.calls).iter().count()).sum();
    let naming = lap();
    assert!(frames > 0, "no frames");
    (goroutines.groups.iter().map(|group| group.count).sum(), [open, attach, reading, naming].map(|part| -part))
}
