//! What tracing costs the traced program: nanoseconds of its processor time added to a malloc+free pair under a chain of 20
//! calls, with nothing attached, with empty BPF programs at entries and returns (the floor), with tracer by each way to see
//! the end of calls, and with the bpftrace one-liner that people use for the job; then beside the floor on other allocators, and
//! to pairs of operator new and delete on those that bring their own. One program, one run, in turns: the ratios hold even when the
//! machine's speed drifts.
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
    io::{BufRead as _, BufReader},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use median::median;
use rounds::Rounds;
use tracer::{
    bpf::{Links, Programs},
    probe::resolve,
};
use tracing::Tracing;

/// Times that every variant is measured.
const TURNS: usize = 3;
/// How long one measurement lasts.
const MEASURE: Duration = Duration::from_secs(2);

fn main() -> Result<()> {
    if !rustix::process::geteuid().is_root() {
        println!("overhead: NOT RUN, it needs root to attach probes");
        return Ok(());
    }
    pairs()?;
    by_allocator()?;
    for (name, library) in OWN_NEW {
        new_and_delete(name, library)?;
    }
    Ok(())
}

/// Ways to see the end of calls, by what they are called on the command line.
const WAYS: [&str; 4] = ["exits", "session", "link", "ret"];

/// Allocators with an operator new of their own, where Debian puts them.
const OWN_NEW: [(&str, &str); 2] = [
    ("jemalloc", "/usr/lib/x86_64-linux-gnu/libjemalloc.so.2"),
    ("tcmalloc", "/usr/lib/x86_64-linux-gnu/libtcmalloc_minimal.so.4"),
];

/// Pairs 20 calls deep, by everything that there is to compare.
fn pairs() -> Result<()> {
    let mut program = start(&mut Command::new(compile("pairs", &[])?))?;
    let libc = mapped(program.pid(), "libc.so")?;
    let (mut bare, mut floor, mut script) = (vec![], vec![], vec![]);
    let mut ways = WAYS.map(|_| vec![]);
    for _ in 0..TURNS {
        bare.push(program.measure(MEASURE)?);
        let (mut programs, links) = at_sites(&libc, program.pid())?;
        floor.push(program.measure(MEASURE)?);
        links.detach(&mut programs);
        for (way, measured) in WAYS.iter().zip(&mut ways) {
            measured.push(traced(&mut program, way)?);
        }
        if let Some(script_run) = bpftrace(&libc, program.pid())? {
            script.push(with(script_run, &mut program)?);
        }
    }
    let bare = median(bare);
    println!("malloc+free pair, 20 calls deep     ns/pair   added   x floor");
    let floor = median(floor) - bare;
    let line = |name: &str, added: f64| {
        println!("{name:<34} {:>8.0} {added:>7.0} {:>9.2}", bare + added, added / floor);
    };
    line("bare", 0.0);
    line("empty programs (the floor)", floor);
    let ways = ways.map(|measured| median(measured) - bare);
    for (way, added) in WAYS.iter().zip(ways) {
        line(&format!("tracer, --returns {way}"), added);
    }
    // What it does by itself.
    let traced = ways[0];
    if script.is_empty() {
        println!("bpftrace: NOT RUN, it is not installed (apt-get install bpftrace)");
    } else {
        let script = median(script) - bare;
        line("bpftrace one-liner", script);
        println!("tracer is {:.1} times cheaper than the one-liner (goal: >= 6.5)", script / traced);
    }
    println!("tracer is {:.2} times the floor (goal: <= 1.45)", traced / floor);
    Ok(())
}

/// Other allocators, where Debian puts those that are preloaded; musl is linked statically.
const ALLOCATORS: [(&str, &str); 5] = [
    ("jemalloc", "/usr/lib/x86_64-linux-gnu/libjemalloc.so.2"),
    ("tcmalloc", "/usr/lib/x86_64-linux-gnu/libtcmalloc_minimal.so.4"),
    ("mimalloc", "/usr/lib/x86_64-linux-gnu/libmimalloc.so.2"),
    ("oneTBB", "/usr/lib/x86_64-linux-gnu/libtbbmalloc_proxy.so.2"),
    ("musl", "/usr/bin/musl-gcc"),
];

/// Pairs 20 calls deep on each allocator: with empty programs at its entries and returns, and with tracer.
fn by_allocator() -> Result<()> {
    println!("malloc+free pair, 20 calls deep, on   ns/pair   floor  tracer   x floor");
    for (name, file) in ALLOCATORS {
        if !Path::new(file).exists() {
            println!("{name}: NOT RUN, {file} is not installed");
            continue;
        }
        let (mut program, file) = if name == "musl" {
            let binary = compile_by(file, "pairs-musl", &["-static"])?;
            (start(&mut Command::new(&binary))?, binary)
        } else {
            let program = start(Command::new(compile("pairs", &[])?).env("LD_PRELOAD", file))?;
            let file =
                mapped(program.pid(), Path::new(file).file_name().and_then(|name| name.to_str()).unwrap_or(file))?;
            (program, file)
        };
        let (mut bare, mut floor, mut exact) = (vec![], vec![], vec![]);
        for _ in 0..TURNS {
            bare.push(program.measure(MEASURE)?);
            let (mut programs, links) = at_sites(&file, program.pid())?;
            floor.push(program.measure(MEASURE)?);
            links.detach(&mut programs);
            exact.push(traced(&mut program, "auto")?);
        }
        let bare = median(bare);
        let (floor, exact) = (median(floor) - bare, median(exact) - bare);
        println!("{name:<34} {bare:>10.0} {floor:>7.0} {exact:>7.0} {:>9.2}", exact / floor);
    }
    Ok(())
}

/// Pairs of operator new and delete on an allocator that brings its own, at the instructions that tracer takes, and at `ret`.
fn new_and_delete(name: &str, library: &str) -> Result<()> {
    if !Path::new(library).exists() {
        println!("new+delete on {name}: NOT RUN, {library} is not installed");
        return Ok(());
    }
    let binary = compile("pairs-new", &["-DNEW", "-lstdc++"])?;
    let mut program = start(Command::new(binary).env("LD_PRELOAD", library))?;
    let (mut bare, mut exits, mut returns) = (vec![], vec![], vec![]);
    for _ in 0..TURNS {
        bare.push(program.measure(MEASURE)?);
        exits.push(traced(&mut program, "auto")?);
        returns.push(traced(&mut program, "ret")?);
    }
    let bare = median(bare);
    let (exits, returns) = (median(exits) - bare, median(returns) - bare);
    let ratio = returns / exits;
    println!("new+delete on {name}: {exits:.0} ns added, {returns:.0} at ret: {ratio:.1} times cheaper (goal: >= 4)");
    Ok(())
}

/// Nanoseconds of a pair while tracer sees the end of calls in the way `way`.
fn traced(program: &mut Rounds, way: &str) -> Result<f64> {
    let (tracing, _) = Tracing::start(program.pid(), ["--strict", "--returns", way])?;
    let measured = program.measure(MEASURE)?;
    tracing.stop()?;
    Ok(measured)
}

/// Compiles the program that is measured.
fn compile(name: &str, flags: &[&str]) -> Result<PathBuf> {
    compile_by("cc", name, flags)
}

fn compile_by(compiler: &str, name: &str, flags: &[&str]) -> Result<PathBuf> {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/pairs.c");
    let binary = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    let mut compile = Command::new(compiler);
    compile.args(["-O2", "-fno-omit-frame-pointer", "-o"]).arg(&binary).arg(source).args(flags);
    ensure!(compile.status()?.success(), "cannot compile pairs.c");
    Ok(binary)
}

/// Starts the program; it prints the nanoseconds of a pair, round after round.
fn start(command: &mut Command) -> Result<Rounds> {
    Rounds::start(command.arg("20"))
}

fn with(mut tracing: Child, program: &mut Rounds) -> Result<f64> {
    let measured = program.measure(MEASURE);
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(tracing.id() as i32), nix::sys::signal::Signal::SIGINT)?;
    let status = tracing.wait()?;
    ensure!(status.success(), "tracing failed: {status}");
    measured
}

/// The file of this name that a process has mapped. Names of versions are resolved there.
fn mapped(pid: u32, name: &str) -> Result<PathBuf> {
    let maps = std::fs::read_to_string(format!("/proc/{pid}/maps"))?;
    let path = maps.lines().filter_map(|line| line.split_whitespace().last()).find(|path| path.contains(name));
    Ok(path.with_context(|| format!("the program has no {name}"))?.into())
}

/// Empty programs at the sites that tracer would probe.
fn at_sites(file: &Path, pid: u32) -> Result<(Programs, Links)> {
    let mut programs = compared::load()?;
    let found = resolve::allocator(&std::fs::File::open(file)?)?.context("no malloc in it")?;
    let mut links = Links::default();
    let task = std::num::NonZeroU32::try_from(pid)?;
    for function in found.functions.iter().filter(|function| ["malloc", "free"].contains(&&*function.name)) {
        if !function.shape.frees() {
            links.attach(&mut programs, "empty_return", file, [function.file_offset], task)?;
        }
        links.attach(&mut programs, "empty_entry", file, [function.file_offset], task)?;
    }
    Ok((programs, links))
}

/// What people type: sizes by thread, blocks by address, bytes by stack.
fn bpftrace(libc: &Path, pid: u32) -> Result<Option<Child>> {
    let libc = libc.display();
    let script = format!(
        "BEGIN {{ printf(\"attached\\n\"); }} \
         uprobe:{libc}:malloc /pid == {pid}/ {{ @size[tid] = arg0; }} \
         uretprobe:{libc}:malloc /pid == {pid} && @size[tid]/ \
           {{ @stack[retval] = ustack; @bytes[retval] = @size[tid]; delete(@size[tid]); }} \
         uprobe:{libc}:free /pid == {pid}/ {{ delete(@stack[arg0]); delete(@bytes[arg0]); }}"
    );
    let spawned = Command::new("bpftrace")
        .args(["-p", &pid.to_string(), "-e", &script])
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn();
    let Ok(mut child) = spawned else { return Ok(None) };
    let mut lines = BufReader::new(child.stdout.take().context("no output")?).lines();
    let attached = lines.by_ref().map_while(Result::ok).any(|line| line.contains("attached"));
    ensure!(attached, "bpftrace did not attach");
    // It prints its maps at the end: somebody must read.
    std::thread::spawn(move || lines.for_each(drop));
    std::thread::sleep(Duration::from_secs(1));
    Ok(Some(child))
}
