//! What a stack costs: the runs of tracer's programs, by the kernel's own statistics, in chains of calls of several depths
//! and in stock redis-server and python3 under load, beside bpf_get_stackid at the same instructions. That walks by frame
//! pointers, so what it finds in stock binaries is wrong and often short. In turns: the ratios hold even when the machine's
//! speed drifts.
#![expect(clippy::print_stdout, reason = "figures are what a bench is for")]

#[path = "support/compared.rs"]
mod compared;
#[path = "support/tracing.rs"]
mod tracing;

use std::{
    ffi::OsStr,
    net::{Ipv4Addr, TcpListener},
    path::Path,
    process::{Child, Command, Stdio},
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use tempfile::TempDir;
use tracer::{
    attach,
    bpf::{Links, Runs, Statistics},
};
use tracing::Tracing;

/// Times that every variant is measured; the median counts.
const TURNS: usize = 3;
/// How long one measurement lasts.
const MEASURE: Duration = Duration::from_secs(1);
/// The whole path of a stack of 36 frames should take at most this long, ns.
const GOAL: f64 = 1300.0;

/// Recursion, callbacks and many small objects: the interpreter calls itself through C.
const SCRIPT: &str = r#"
import json

def deep(depth):
    if depth == 0:
        return sorted(range(50), key=lambda n: str(n))
    return [deep(depth - 1)]

n = 0
while True:
    n += 1
    deep(n % 20)
    json.loads(json.dumps({"a": [1.5, "x" * 100, {"b": None}] * 5}))
"#;

fn main() -> Result<()> {
    if !rustix::process::geteuid().is_root() {
        println!("stacks: NOT RUN, it needs root to attach probes");
        return Ok(());
    }
    println!("ns of one run, less that of an empty program");
    println!("whole: a stack id at the entry, and a record at the return; goal: <= {GOAL:.0} at 36 frames");
    println!(
        "{:<22} {:>7} {:>7} {:>7} {:>7} {:>11} {:>6} {:>6}",
        "", "frames", "entry", "return", "whole", "get_stackid", "ratio", "empty"
    );
    for depth in [10, 20, 36, 100] {
        measure(&format!("chain of {depth}"), &pairs(depth)?)?;
    }
    match redis() {
        Ok(redis) => measure("redis-server", &redis)?,
        Err(error) => println!("redis-server: NOT RUN, {error:#} (apt-get install redis-server redis-tools)"),
    }
    match python() {
        Ok(python) => measure("python3", &python)?,
        Err(error) => println!("python3: NOT RUN, {error:#}"),
    }
    Ok(())
}

/// What was measured in one turn, ns of a run.
#[derive(Default)]
struct Turn {
    frames: f64,
    entry: f64,
    exit: f64,
    stackid: f64,
    empty: f64,
}

fn measure(what: &str, load: &Load) -> Result<()> {
    let mut turns = Vec::new();
    for _ in 0..TURNS {
        let mut turn = Turn {
            stackid: at_entries(load.pid(), "stackid_entry")?,
            empty: at_entries(load.pid(), "empty_entry")?,
            ..Turn::default()
        };
        traced(load.pid(), &mut turn)?;
        turns.push(turn);
    }
    let median = |value: fn(&Turn) -> f64| {
        let mut values: Vec<f64> = turns.iter().map(value).collect();
        values.sort_by(f64::total_cmp);
        values[values.len() / 2]
    };
    let (frames, empty) = (median(|turn| turn.frames), median(|turn| turn.empty));
    let entry = median(|turn| turn.entry - turn.empty);
    let exit = median(|turn| turn.exit - turn.empty);
    let whole = median(|turn| turn.entry + turn.exit - 2.0 * turn.empty);
    let stackid = median(|turn| turn.stackid - turn.empty);
    println!(
        "{what:<22} {frames:>7.1} {entry:>7.0} {exit:>7.0} {whole:>7.0} {stackid:>11.0} {:>6.2} {empty:>6.0}",
        whole / stackid
    );
    Ok(())
}

/// The program `name` at the entry of every function that allocates: ns of a run.
fn at_entries(pid: u32, name: &'static str) -> Result<f64> {
    let mut programs = compared::load()?;
    let allocators = attach::allocators(pid)?.context("no allocator")?;
    let allocator = allocators.files().first().context("no allocator")?;
    let allocates = allocator.functions.functions.iter().filter(|function| !function.shape.frees());
    let mut offsets: Vec<u64> = allocates.map(|function| function.file_offset).collect();
    offsets.sort_unstable();
    offsets.dedup();
    let file = allocator.module.open_path().context("the allocator's file is gone")?;
    let mut links = Links::default();
    links.attach(&mut programs, name, &file, offsets, std::num::NonZeroU32::try_from(pid)?)?;
    let statistics = Statistics::start()?;
    let run = per_run(&statistics, std::process::id(), |program| program == name);
    links.detach(&mut programs);
    run
}

/// Tracer's programs, and the frames of the stacks that they found.
fn traced(pid: u32, turn: &mut Turn) -> Result<()> {
    let folder = tempfile::tempdir()?;
    let report = folder.path().join("report.json");
    let (tracing, _) = Tracing::start(pid, [OsStr::new("--output"), report.as_os_str()])?;
    let statistics = Statistics::start()?;
    turn.entry = per_run(&statistics, tracing.child.id(), |program| program == "enter")?;
    turn.exit = per_run(&statistics, tracing.child.id(), |program| program.starts_with("leave"))?;
    tracing.stop()?;
    turn.frames = mean_frames(&serde_json::from_slice(&std::fs::read(report)?)?).context("nothing was allocated")?;
    Ok(())
}

/// Mean time of the runs that the programs make from now on, ns.
fn per_run(statistics: &Statistics, pid: u32, wanted: impl Fn(&str) -> bool) -> Result<f64> {
    let before = statistics.of(pid, &wanted)?;
    thread::sleep(MEASURE);
    let after = statistics.of(pid, &wanted)?;
    let runs = Runs { count: after.count - before.count, time: after.time - before.time };
    ensure!(runs.count > 1000, "only {} runs", runs.count);
    Ok(runs.time.as_secs_f64() * 1e9 / runs.count as f64)
}

/// Frames of the mean stack of an allocation, without those that are inlined.
fn mean_frames(report: &serde_json::Value) -> Option<f64> {
    let (mut frames, mut blocks) = (0, 0);
    for stack in report["stacks"].as_array()? {
        let real = stack["frames"].as_array()?.iter().filter(|frame| frame["inlined"] != true).count() as u64;
        let allocated = stack["allocated_blocks"].as_u64()?;
        frames += real * allocated;
        blocks += allocated;
    }
    (blocks > 0).then(|| frames as f64 / blocks as f64)
}

/// A process that allocates without end, and what keeps it busy.
struct Load {
    process: Child,
    client: Option<Child>,
    _folder: TempDir,
}

impl Load {
    fn pid(&self) -> u32 {
        self.process.id()
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        for child in self.client.iter_mut().chain([&mut self.process]) {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// The chain is called by main, that by two functions of the C library, those by _start.
fn pairs(depth: u32) -> Result<Load> {
    let folder = tempfile::tempdir()?;
    let binary = folder.path().join("pairs");
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/pairs.c");
    let status = Command::new("cc").args(["-O2", "-fno-omit-frame-pointer", "-o"]).arg(&binary).arg(source).status()?;
    ensure!(status.success(), "cannot compile pairs.c");
    Load::start(Command::new(binary).arg((depth - 5).to_string()), folder)
}

/// Debian's, whose allocator is jemalloc.
fn redis() -> Result<Load> {
    let folder = tempfile::tempdir()?;
    let port = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port().to_string();
    let mut server = Command::new("/usr/bin/redis-server");
    server.args(["--bind", "127.0.0.1", "--save", "", "--appendonly", "no", "--port", &port, "--dir"]);
    let mut load = Load::start(server.arg(folder.path()), folder)?;
    let mut client = Command::new("/usr/bin/redis-benchmark");
    client.args(["-p", &port, "-q", "-l", "-n", "20000", "-c", "20", "-r", "1000", "-t", "set,get,lpush,lpop,sadd"]);
    load.client = Some(client.stdout(Stdio::null()).stderr(Stdio::null()).spawn()?);
    thread::sleep(MEASURE);
    Ok(load)
}

/// Debian's; every object is a block of the C library's allocator.
fn python() -> Result<Load> {
    let mut python = Command::new("/usr/bin/python3");
    Load::start(python.args(["-c", SCRIPT]).env("PYTHONMALLOC", "malloc"), tempfile::tempdir()?)
}

impl Load {
    /// Starts it and waits until it has been loaded.
    fn start(command: &mut Command, folder: TempDir) -> Result<Self> {
        let process = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn()?;
        thread::sleep(MEASURE);
        Ok(Self { process, client: None, _folder: folder })
    }
}
