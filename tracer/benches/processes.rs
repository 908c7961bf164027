//! What many processes cost: starting, attaching and detaching; what those pay that are not traced; storms of processes that come
//! and go, what they take of the processor, and what is left of them in tracer. In turns where that can be: the ratios hold even
//! when the machine's speed drifts.
#![expect(clippy::print_stdout, reason = "figures are what a bench is for")]

#[path = "support/median.rs"]
mod median;
#[path = "support/rounds.rs"]
#[expect(dead_code, reason = "which process a bystander is does not matter")]
mod rounds;
#[path = "support/tracing.rs"]
mod tracing;

use std::{
    collections::BTreeMap,
    fs,
    io::{BufRead as _, BufReader, Write as _},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use median::median;
use rounds::Rounds;
use tempfile::TempDir;
use tracer::bpf::entries_of;
use tracing::Tracing;

/// Times that every variant is measured; the median counts.
const TURNS: usize = 3;
/// How long a bystander is measured.
const MEASURE: Duration = Duration::from_secs(1);
/// Processes of a storm of which the ratios are told, and of the long one.
const STORM: u32 = 1_000;
const LONG_STORM: u32 = 10_000;

fn main() -> Result<()> {
    if !rustix::process::geteuid().is_root() {
        println!("processes: NOT RUN, it needs root to attach probes");
        return Ok(());
    }
    let programs = Programs::compile()?;
    let starts: Result<Vec<f64>> = (0..TURNS).map(|_| start()).collect();
    println!("start and end of `tracer -- /bin/true`: {:.2} s", median(starts?));
    for count in [10, 500] {
        for options in [&[][..], &["--scope=file"]] {
            attach(&programs, count, options)?;
        }
    }
    bystander(&programs)?;
    for way in ["fork", "exec"] {
        storm(&programs, way)?;
    }
    for way in ["fork", "exec"] {
        soak(&programs, way)?;
    }
    Ok(())
}

/// What is run.
struct Programs {
    storm: PathBuf,
    pairs: PathBuf,
    _folder: TempDir,
}

impl Programs {
    fn compile() -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let compile = |name: &str, source: &str| -> Result<PathBuf> {
            let binary = folder.path().join(name);
            let source = Path::new(env!("CARGO_MANIFEST_DIR")).join(source);
            let status = Command::new("cc").args(["-O2", "-o"]).arg(&binary).arg(source).status()?;
            ensure!(status.success(), "cannot compile {name}");
            Ok(binary)
        };
        let storm = compile("storm", "../tests/programs/storm.c")?;
        let pairs = compile("pairs", "benches/pairs.c")?;
        Ok(Self { storm, pairs, _folder: folder })
    }

    /// A storm that begins when it is told to.
    fn storm(&self, count: u32, way: &str) -> Result<Storm> {
        let mut command = Command::new(&self.storm);
        command.args([&count.to_string(), "8", way, "wait"]).stdin(Stdio::piped()).stdout(Stdio::piped());
        Ok(Storm(command.spawn()?))
    }
}

/// Processes to come; it ends with this.
struct Storm(Child);

impl Storm {
    fn pid(&self) -> u32 {
        self.0.id()
    }

    /// Lets it go: ns until all have ended.
    fn run(&mut self) -> Result<f64> {
        self.0.stdin.as_mut().context("no input")?.write_all(b"\n")?;
        let mut line = String::new();
        BufReader::new(self.0.stdout.as_mut().context("no output")?).read_line(&mut line)?;
        Ok(line.trim().parse()?)
    }
}

impl Drop for Storm {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn start() -> Result<f64> {
    let begin = Instant::now();
    let mut tracer = Command::new(env!("CARGO_BIN_EXE_tracer"));
    tracer.args(["--", "/bin/true"]).stdout(Stdio::null()).stderr(Stdio::null()).status()?;
    Ok(begin.elapsed().as_secs_f64())
}

/// How long tracer has something to do that belongs to the beginning: it tries what a hit of a probe takes.
const BEGINNING: Duration = Duration::from_secs(2);
/// How long it is looked what tracer takes while nothing happens: the kernel tells that to 10 ms.
const IDLE: Duration = Duration::from_secs(5);

/// So many processes that do nothing.
fn attach(programs: &Programs, count: usize, options: &[&str]) -> Result<()> {
    let idle: Result<Vec<Storm>> = (0..count).map(|_| programs.storm(0, "fork")).collect();
    let idle = idle?;
    thread::sleep(Duration::from_millis(500));
    let others: Vec<String> = idle[1..].iter().map(|process| process.pid().to_string()).collect();
    let mut arguments: Vec<&str> = options.to_vec();
    let others = others.join(",");
    arguments.extend(["--pid", &others]);
    let (tracing, begun) = Tracing::start(idle[0].pid(), &arguments)?;
    let descriptors = count_of(tracing.child.id(), "fd")?;
    let threads = count_of(tracing.child.id(), "task")?;
    thread::sleep(BEGINNING);
    let before = processor(tracing.child.id())?;
    thread::sleep(IDLE);
    let idle_share = (processor(tracing.child.id())? - before) / IDLE.as_secs_f64() * 100.0;
    let end = Instant::now();
    // Nothing was allocated, so it was no complete trace.
    let _ = tracing.stop();
    println!(
        "{count:>4} processes, scope {:<8} attached in {:.2} s, ended in {:.2} s; {descriptors} descriptors, {threads} threads, \
         idle {idle_share:.1} % of a processor",
        if options.is_empty() { "process:" } else { "file:" },
        begun.as_secs_f64(),
        end.elapsed().as_secs_f64()
    );
    Ok(())
}

/// What somebody pays for a pair of malloc and free while another process is traced.
fn bystander(programs: &Programs) -> Result<()> {
    let traced = programs.storm(0, "fork")?;
    thread::sleep(Duration::from_millis(200));
    let mut others = Rounds::start(Command::new(&programs.pairs).arg("5"))?;
    let mut ways: [Vec<f64>; 3] = Default::default();
    for _ in 0..TURNS {
        ways[0].push(others.measure(MEASURE)?);
        for (way, options) in [(1, &[][..]), (2, &["--scope=file"])] {
            let (tracing, _) = Tracing::start(traced.pid(), options)?;
            ways[way].push(others.measure(MEASURE)?);
            let _ = tracing.stop();
        }
    }
    let [bare, process, file] = ways.map(median);
    println!("a bystander's malloc + free: bare {bare:.0} ns, scope process {process:.0} ns, scope file {file:.0} ns");
    Ok(())
}

/// How much longer processes take to come and go that are traced.
fn storm(programs: &Programs, way: &str) -> Result<()> {
    let (mut bare, mut traced) = (Vec::new(), Vec::new());
    for _ in 0..TURNS {
        bare.push(programs.storm(STORM, way)?.run()?);
        let mut storm = programs.storm(STORM, way)?;
        let (tracing, _) = Tracing::start(storm.pid(), ["--scope=file"])?;
        traced.push(storm.run()?);
        let _ = tracing.stop();
    }
    let (bare, traced) = (median(bare) / f64::from(STORM) / 1e3, median(traced) / f64::from(STORM) / 1e3);
    println!("{way} and end of a process: bare {bare:.0} us, traced {traced:.0} us, ratio {:.2}", traced / bare);
    Ok(())
}

/// What a long storm takes, and leaves behind.
fn soak(programs: &Programs, way: &str) -> Result<()> {
    let mut storm = programs.storm(LONG_STORM, way)?;
    let (tracing, _) = Tracing::start(storm.pid(), ["--scope=file"])?;
    let pid = tracing.child.id();
    let before = Holdings::of(pid)?;
    let (used, shares) = (processor(pid)?, by_thread(pid)?);
    let took = storm.run()? / 1e9;
    let used = processor(pid)? - used;
    let mut shares_after = by_thread(pid)?;
    for (thread, before) in shares {
        *shares_after.entry(thread).or_default() -= before;
    }
    thread::sleep(Duration::from_secs(2));
    let after = Holdings::of(pid)?;
    let result = tracing.stop();
    println!("{LONG_STORM} processes by {way} in {took:.1} s: {:.0} a second", f64::from(LONG_STORM) / took);
    println!("  tracer took {:.0} % of a processor:", used / took * 100.0);
    for (thread, time) in shares_after.iter().filter(|(_, time)| **time > 0.0) {
        println!("    {thread:<16} {:.1} %", time / took * 100.0);
    }
    println!("  before and after: {before:?}\n                    {after:?}");
    if let Err(error) = result {
        println!("  the trace is not complete: {error:#}");
    }
    Ok(())
}

/// What a tracer has.
#[derive(Debug)]
#[expect(dead_code, reason = "printed as a whole")]
struct Holdings {
    entries: BTreeMap<String, u64>,
    threads: usize,
    descriptors: usize,
    rss_mib: u64,
}

impl Holdings {
    fn of(pid: u32) -> Result<Self> {
        let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
        let rss = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS")?;
        let rss: u64 = rss.trim().trim_end_matches(" kB").parse()?;
        let mut entries = entries_of(pid)?;
        entries.retain(|_, count| *count > 0);
        Ok(Self { entries, threads: count_of(pid, "task")?, descriptors: count_of(pid, "fd")?, rss_mib: rss >> 10 })
    }
}

fn count_of(pid: u32, what: &str) -> Result<usize> {
    Ok(fs::read_dir(format!("/proc/{pid}/{what}"))?.count())
}

/// Seconds of a processor that a process has taken.
fn processor(pid: u32) -> Result<f64> {
    ticks(&format!("/proc/{pid}/stat"))
}

/// The same of its threads, by name.
fn by_thread(pid: u32) -> Result<BTreeMap<String, f64>> {
    let mut all: BTreeMap<String, f64> = BTreeMap::new();
    for entry in fs::read_dir(format!("/proc/{pid}/task"))? {
        let path = entry?.path();
        // A thread may end meanwhile.
        let Ok(name) = fs::read_to_string(path.join("comm")) else { continue };
        *all.entry(name.trim().to_owned()).or_default() += ticks(&path.join("stat").to_string_lossy()).unwrap_or(0.0);
    }
    Ok(all)
}

/// Fields 14 and 15 of proc_pid_stat(5): time in user space and in the kernel.
fn ticks(path: &str) -> Result<f64> {
    let text = fs::read_to_string(path)?;
    let (_, rest) = text.rsplit_once(')').context("no name")?;
    let fields: Vec<&str> = rest.split_whitespace().collect();
    let field = |number: usize| fields.get(number - 3).context("too short")?.parse::<f64>().context("no number");
    Ok((field(14)? + field(15)?) / 100.0)
}
