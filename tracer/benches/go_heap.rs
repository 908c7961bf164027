//! What following the heap of a Go process costs: the process, for each allocation, and the tracer, for a look at sampled
//! objects, for reading the runtime's own profile, and to begin on a large program. With arguments (`look`, `profile`,
//! `allocations`, `begin`) only those.
#![expect(clippy::print_stdout, reason = "figures are what a bench is for")]

#[path = "support/compared.rs"]
mod compared;
#[path = "support/median.rs"]
mod median;
#[path = "support/rounds.rs"]
mod rounds;
#[path = "support/tracing.rs"]
mod tracing;

use std::{
    fmt::Write as _,
    fs,
    io::{BufRead as _, Read as _},
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};
use median::median;
use rounds::Rounds;
use tracer::{
    bpf::{Links, Programs},
    go::{heap::GoProcess, process},
    golang::heap::{Buckets, Objects, Sample, probe_sites},
};
use tracing::Tracing;

/// Times that every variant is measured.
const TURNS: usize = 5;
/// How long one measurement of allocations lasts.
const MEASURE: Duration = Duration::from_secs(2);
/// Objects that are looked at, and class of such objects: 512 bytes without pointers.
const OBJECTS: usize = 1_000_000;
const CLASS: u8 = 26 << 1 | 1;
/// Bits of the paths that the runtime's profile tells apart.
const PATHS: &str = "17";
/// Functions of the large program, and instructions of each.
const FUNCTIONS: usize = 25_500;
const INSTRUCTIONS: usize = 500;

/// A part of the bench, given the program that it measures on.
type Part = fn(&Path) -> Result<()>;

fn main() -> Result<()> {
    let program = folder().join("allocations");
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/allocations.go");
    let mut build = Command::new("go");
    build.env("GOFLAGS", "").arg("build").arg("-o").arg(&program).arg(source);
    if !build.status().is_ok_and(|status| status.success()) {
        println!("go_heap: NOT RUN, go is missing");
        return Ok(());
    }
    let root = rustix::process::geteuid().is_root();
    let wanted: Vec<String> = std::env::args().skip(1).filter(|argument| !argument.starts_with('-')).collect();
    let parts: [(&str, bool, Part); 4] = [
        ("look", false, look),
        ("profile", false, profile),
        ("allocations", true, allocations),
        ("begin", true, begin),
    ];
    for (name, needs_root, part) in parts {
        if !wanted.is_empty() && !wanted.iter().any(|wanted| wanted == name) {
            continue;
        }
        if needs_root && !root {
            println!("{name}: NOT RUN, it needs root to attach probes");
            continue;
        }
        part(&program)?;
    }
    Ok(())
}

/// Allocations of 64 bytes, one after the other: nothing attached, empty programs at the places that tracer probes, tracer.
fn allocations(program: &Path) -> Result<()> {
    let mut target = Rounds::start(Command::new(program).args(["loop"]))?;
    let pid = target.pid();
    let (mut bare, mut floor, mut sampled) = (vec![], vec![], vec![]);
    for _ in 0..TURNS {
        bare.push(target.measure(MEASURE)?);
        let (mut programs, links) = empty_at_sites(program, pid)?;
        floor.push(target.measure(MEASURE)?);
        links.detach(&mut programs);
        let (tracing, _) = Tracing::start(pid, ["--go-heap", "sample"])?;
        let measured = target.measure(MEASURE);
        tracing.stop()?;
        sampled.push(measured?);
    }
    let [bare, floor, sampled] = [bare, floor, sampled].map(median);
    println!("allocation of 64 bytes              ns      added   x floor");
    for (name, ns) in [("bare", bare), ("empty programs (the floor)", floor), ("sampled every 32 KiB", sampled)] {
        println!("{name:<30} {ns:>8.0} {:>10.0} {:>9.2}", ns - bare, (ns - bare) / (floor - bare));
    }
    println!("sampling is {:.2} times the floor (goal: <= 1.2)", (sampled - bare) / (floor - bare));
    Ok(())
}

fn empty_at_sites(program: &Path, pid: u32) -> Result<(Programs, Links)> {
    let mut programs = compared::load()?;
    let sites = probe_sites(&*process::open(pid)?)?;
    let all = [sites.allocate, sites.new_span, sites.refilled, sites.after_assist];
    let mut links = Links::default();
    links.attach(&mut programs, "empty_entry", program, all.concat(), std::num::NonZeroU32::try_from(pid)?)?;
    Ok((programs, links))
}

/// Whether each of a million objects lives, as after a cycle of the garbage collector.
fn look(program: &Path) -> Result<()> {
    let mut target = Rounds::start(Command::new(program).args(["keep", &OBJECTS.to_string()]))?;
    let pid = target.pid();
    let mut addresses = vec![0; 8 * OBJECTS];
    target.output.read_exact(&mut addresses)?;
    let runtime = process::open(pid)?;
    let memory = process::reader(pid);
    let mut times = Vec::new();
    for _ in 0..TURNS {
        let mut objects = Objects::new(1);
        for addr in addresses.chunks_exact(8).filter_map(|addr| addr.try_into().ok()).map(u64::from_le_bytes) {
            objects.add(Sample { addr, size: 512, charge: 512, time: 0, sweepgen: 0, class: CLASS, stack: 0 });
        }
        let begin = Instant::now();
        objects.look(&runtime, &memory)?;
        times.push(begin.elapsed().as_secs_f64());
        ensure!(objects.len() == OBJECTS && !objects.is_undecided(), "{} objects live", objects.len());
    }
    println!("look at {OBJECTS} sampled objects of 512 bytes: {:.0} ms", median(times) * 1e3);
    Ok(())
}

/// The runtime's own profile: all of it, and again its counts alone.
fn profile(program: &Path) -> Result<()> {
    let mut target = Rounds::start(Command::new(program).args(["profile", PATHS]))?;
    let pid = target.pid();
    target.output.read_line(&mut String::new())?;
    let runtime = process::open(pid)?;
    let memory = process::reader(pid);
    let (mut first, mut again, mut found) = (vec![], vec![], 0);
    for _ in 0..TURNS {
        let mut buckets = Buckets::default();
        for times in [&mut first, &mut again] {
            let begin = Instant::now();
            buckets.refresh(&runtime, &memory)?;
            times.push(begin.elapsed().as_secs_f64());
        }
        found = buckets.iter().count();
    }
    ensure!(found >= 1 << 17, "{found} buckets");
    let [first, again] = [first, again].map(|times| median(times) * 1e3);
    println!("runtime's own profile of {found} buckets: {first:.0} ms, its counts again: {again:.0} ms");
    Ok(())
}

/// From the start of the tracer until it traces a large program.
fn begin(_: &Path) -> Result<()> {
    for (what, flags) in [("", &[][..]), (", stripped", &["-ldflags=-s -w"])] {
        let program = large_program(flags)?;
        let megabytes = fs::metadata(&program)?.len() as f64 / 1e6;
        let target = Rounds::start(Command::new(&program).args(["wait"]))?;
        let pid = target.pid();
        let (mut opens, mut starts) = (vec![], vec![]);
        for _ in 0..TURNS {
            let begin = Instant::now();
            let process = GoProcess::open(pid)?;
            opens.push(begin.elapsed().as_secs_f64());
            ensure!(process.is_some(), "it is no Go program");
            let (tracing, taken) = Tracing::start(pid, ["--go-heap", "sample"])?;
            starts.push(taken.as_secs_f64());
            tracing.stop()?;
        }
        let [open, start] = [opens, starts].map(|times| median(times) * 1e3);
        println!(
            "a program of {megabytes:.0} MB{what}: traced after {start:.0} ms (goal: <= 1000), {open:.0} ms to know its runtime"
        );
    }
    Ok(())
}

/// A program of many functions: written in assembler, for which the toolchain needs no minutes.
fn large_program(flags: &[&str]) -> Result<PathBuf> {
    let sources = folder().join("large");
    fs::create_dir_all(&sources)?;
    fs::write(sources.join("go.mod"), "module large\n\ngo 1.19\n")?;
    let main = "package main\n\nimport (\n\t\"fmt\"\n\t\"os\"\n\t\"time\"\n)\n\nfunc all()\n\nvar kept *int\n\n\
                func main() {\n\tif len(os.Args) > 2 {\n\t\tall()\n\t}\n\tfmt.Println(\"waiting\")\n\tfor {\n\t\t\
                kept = new(int)\n\t\ttime.Sleep(time.Second)\n\t}\n}\n";
    fs::write(sources.join("main.go"), main)?;
    let mut all = String::from("TEXT ·all(SB), 4, $8-0\n");
    let mut functions = String::new();
    for function in 0..FUNCTIONS {
        writeln!(all, "\tCALL ·function_with_a_name_of_a_usual_length_{function}(SB)")?;
        writeln!(functions, "TEXT ·function_with_a_name_of_a_usual_length_{function}(SB), 4, $0-0")?;
        for instruction in 0..INSTRUCTIONS {
            writeln!(functions, "\tMOVQ ${}, AX", 0x1000_0000 + instruction)?;
        }
        functions.push_str("\tRET\n");
    }
    fs::write(sources.join("large.s"), format!("{all}\tRET\n{functions}"))?;
    let program = folder().join("large_program");
    let mut build = Command::new("go");
    build.env("GOFLAGS", "").arg("build").args(flags).arg("-o").arg(&program).arg(".").current_dir(&sources);
    ensure!(build.status()?.success(), "cannot build a large program");
    Ok(program)
}

fn folder() -> &'static Path {
    Path::new(env!("CARGO_TARGET_TMPDIR"))
}
