//! What stock servers lose in throughput, with all their workers: as bystanders, while another program is traced with probes for
//! all that use the same C library, and when they are traced themselves, with the workers that come meanwhile. Clients are on the
//! same machine and take their part of its processors; those of this bench do not allocate, but pgbench does, and pays for that. In
//! turns: the ratios hold even when the machine's speed drifts.
#![expect(clippy::print_stdout, reason = "figures are what a bench is for")]

#[path = "support/http.rs"]
mod http;
#[path = "support/median.rs"]
mod median;
#[path = "support/postgres.rs"]
mod postgres;
#[path = "support/server.rs"]
mod server;
#[path = "support/stock.rs"]
mod stock;
#[path = "support/tracing.rs"]
mod tracing;

use std::{
    ffi::OsString,
    fs,
    path::Path,
    process::{Child, Command, Stdio},
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use median::median;
use serde_json::Value;
use server::{Load, Server, Stock};
use tempfile::TempDir;
use tracing::Tracing;

/// Times that every variant is measured; the median counts.
const TURNS: usize = 3;
/// How long one measurement lasts, in whole seconds, and that before all others.
const MEASURE: Duration = Duration::from_secs(2);
const WARM: Duration = Duration::from_secs(1);
/// How long workers that have served enough take to end, so that they are not among those to trace.
const SETTLE: Duration = Duration::from_millis(500);
/// Of what is missing in a report, what are records that were made and did not come.
const LOST: [&str; 4] = ["lost_allocs", "lost_frees", "lost_moments", "lost_remappings"];

type Start = fn() -> Result<Stock>;

const SERVERS: [(&str, Start); 5] = [
    ("postgres", postgres::start),
    ("nginx", stock::nginx),
    ("apache", stock::apache),
    ("php-fpm", stock::php),
    ("gunicorn", stock::gunicorn),
];

fn main() -> Result<()> {
    if !rustix::process::geteuid().is_root() {
        println!("servers: NOT RUN, it needs root to attach probes");
        return Ok(());
    }
    let idle = Idle::start()?;
    println!(
        "requests (transactions) a second, and their share beside a file scope of another program, and traced (--scope=file)"
    );
    println!(
        "{:<34} {:>10} {:>7} {:>7} {:>10} {:>7} {:>6}",
        "", "bare", "beside", "traced", "processes", "status", "lost"
    );
    let mut failed = Vec::new();
    for (name, start) in SERVERS {
        let stock = match start() {
            Ok(stock) => stock,
            Err(error) => {
                println!("{name}: NOT RUN, {error:#}");
                continue;
            }
        };
        for (name, load) in &stock.loads {
            // The others are measured all the same.
            if let Err(error) = compare(&idle, &stock.server, name, load) {
                println!("{name}: FAILED, {error:#}");
                failed.push(*name);
            }
        }
    }
    ensure!(failed.is_empty(), "failed: {}", failed.join("; "));
    Ok(())
}

/// A program that does nothing and has the C library that the servers have.
struct Idle {
    child: Child,
    _folder: TempDir,
}

impl Idle {
    fn start() -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let binary = folder.path().join("storm");
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/programs/storm.c");
        let status = Command::new("cc").args(["-O2", "-o"]).arg(&binary).arg(source).status()?;
        ensure!(status.success(), "cannot compile storm.c");
        let mut command = Command::new(&binary);
        command.args(["0", "1", "fork", "wait"]).stdin(Stdio::piped()).stdout(Stdio::null());
        let idle = Self { child: command.spawn()?, _folder: folder };
        thread::sleep(Duration::from_millis(200));
        Ok(idle)
    }
}

impl Drop for Idle {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// One server under one load.
fn compare(idle: &Idle, server: &Server, name: &str, load: &Load) -> Result<()> {
    load(WARM)?;
    let (mut bare, mut beside, mut traced) = (vec![], vec![], vec![]);
    let mut traces = Vec::new();
    for _ in 0..TURNS {
        let alone = load(MEASURE)?;
        bare.push(alone);
        let (tracing, _) = Tracing::start(idle.child.id(), ["--scope=file"])?;
        beside.push(load(MEASURE)? / alone);
        // Nothing was allocated there, so it was no complete trace.
        let _ = tracing.stop();
        thread::sleep(SETTLE);
        let (requests, trace) = Trace::run(server, load)?;
        traced.push(requests / alone);
        traces.push(trace);
    }
    let processes = median(traces.iter().map(|trace| trace.processes as f64).collect());
    let status = traces.iter().map(|trace| trace.status).max().context("no trace")?;
    let lost: u64 = traces.iter().map(|trace| trace.lost).sum();
    println!(
        "{name:<34} {:>10.0} {:>7.2} {:>7.2} {processes:>10.0} {status:>7} {lost:>6}",
        median(bare),
        median(beside),
        median(traced)
    );
    for (turn, trace) in traces.iter().enumerate() {
        for missing in &trace.missing {
            println!("    in turn {}: {missing}", turn + 1);
        }
    }
    Ok(())
}

/// What a trace of a server came to.
struct Trace {
    /// That were in the server's group.
    processes: u64,
    /// Of the tracer's end.
    status: i32,
    /// Records.
    lost: u64,
    /// All that is, in words.
    missing: Vec<String>,
}

impl Trace {
    /// Requests a second of a server that is traced with its workers, and the trace.
    fn run(server: &Server, load: &Load) -> Result<(f64, Self)> {
        let folder = tempfile::tempdir()?;
        let report = folder.path().join("report.json");
        let mut arguments: Vec<OsString> = vec!["--scope=file".into(), "--output".into(), report.clone().into()];
        let workers = server.workers()?;
        if !workers.is_empty() {
            arguments.extend(["--pid".into(), workers.into()]);
        }
        let (tracing, _) = Tracing::start(server.pid(), &arguments)?;
        let requests = load(MEASURE)?;
        let status = tracing.end()?.code().context("tracer was killed")?;
        let report = fs::read(&report).with_context(|| format!("no report, status {status}"))?;
        Ok((requests, Self::of(&serde_json::from_slice(&report)?, server.pid(), status)?))
    }

    fn of(report: &Value, pid: u32, status: i32) -> Result<Self> {
        let list = |value: &Value| value.as_array().cloned().unwrap_or_default();
        let processes = list(&report["processes"]);
        let master =
            processes.iter().find(|process| process["pid"] == pid).context("the server is not in the report")?;
        let groups = list(&report["groups"]);
        let group = groups.iter().find(|group| list(&group["images"]).contains(&master["image"]));
        let group = group.context("the server is in no group")?;
        let gaps = list(&report["quality"]["gaps"]);
        let lost = gaps.iter().filter(|gap| LOST.iter().any(|name| gap["what"] == *name));
        Ok(Self {
            processes: ["live_processes", "ended_processes"].iter().filter_map(|name| group[name].as_u64()).sum(),
            status,
            lost: lost.filter_map(|gap| gap["amount"].as_u64()).sum(),
            missing: gaps.iter().filter_map(|gap| Some(gap["words"].as_str()?.to_owned())).collect(),
        })
    }
}
