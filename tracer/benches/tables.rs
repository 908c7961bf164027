//! Unwinding tables: how long they take to build, file by file on one core, and how large they are beside the code.
#![expect(clippy::print_stdout, reason = "figures are what a bench is for")]

use std::{
    collections::BTreeSet,
    fs::{self, File},
    path::{Path, PathBuf},
    process::Command,
    time::Instant,
};

use tracer::{
    unwind::{Packed, Table},
    unwinder,
};

/// Times that every table is built; the median counts.
const TURNS: usize = 3;

fn main() {
    println!("{:<44} {:>9} {:>8} {:>9} {:>7} {:>8}", "unwinding table of", "code KiB", "rows", "KiB", "% code", "ms");
    measure("libc", &[library("libc.so.6")]);
    measure("libstdc++", &[library("libstdc++.so.6")]);
    measure("redis-server with its libraries", &with_libraries("/usr/bin/redis-server"));
    measure("python3 with its libraries", &with_libraries("/usr/bin/python3"));
    measure("libc of musl: rules from its code", &[synthesized()]);
    measure("libLLVM (goal: <= 150 ms, <= 12 % of its code)", &[largest("libLLVM")]);
}

/// Prints the sums over some files.
fn measure(what: &str, files: &[Option<PathBuf>]) {
    let files: Vec<&PathBuf> = files.iter().flatten().collect();
    if files.is_empty() {
        println!("{what:<44} NOT RUN, it is not installed");
        return;
    }
    let (mut code, mut rows, mut milliseconds) = (0, 0, 0.0);
    let mut packed = Packed::default();
    let empty = packed.size();
    for path in files {
        let mut times: Vec<f64> = (0..TURNS).map(|_| build(path).2).collect();
        times.sort_by(f64::total_cmp);
        milliseconds += times[TURNS / 2];
        let (code_bytes, table, _) = build(path);
        code += code_bytes;
        rows += table.rows().len();
        packed.add(&table).unwrap_or_else(|full| panic!("{}: {full}", path.display()));
    }
    let bytes = packed.size() - empty;
    let share = 100.0 * bytes as f64 / code as f64;
    println!("{what:<44} {:>9} {rows:>8} {:>9} {share:>7.1} {milliseconds:>8.1}", code >> 10, bytes >> 10);
}

/// The C library of musl, which has no unwind information; says what a byte of it takes.
fn synthesized() -> Option<PathBuf> {
    let path = Some(PathBuf::from("/lib/ld-musl-x86_64.so.1")).filter(|path| path.exists())?;
    let mut runs: Vec<(u64, Table, f64)> = (0..4 * TURNS).map(|_| build(&path)).collect();
    runs.sort_by(|one, other| one.2.total_cmp(&other.2));
    let (code, table, milliseconds) = &runs[0];
    let (nanoseconds, share) =
        (milliseconds * 1e6 / *code as f64, 100.0 * table.stats.synthesized_bytes as f64 / *code as f64);
    println!(
        "{nanoseconds:.1} ns a byte of code without unwind information (goal: <= 30), rules for {share:.1} % of it:"
    );
    Some(path)
}

/// Bytes of code, the table, and the milliseconds that it took.
fn build(path: &Path) -> (u64, Table, f64) {
    let file = File::open(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let start = Instant::now();
    let (segments, table) =
        unwinder::compile_file(&file).unwrap_or_else(|problem| panic!("{}: {problem}", path.display()));
    let milliseconds = start.elapsed().as_secs_f64() * 1e3;
    (segments.iter().filter(|segment| segment.executable).map(|segment| segment.size).sum(), table, milliseconds)
}

/// Where the loader finds a library.
fn library(name: &str) -> Option<PathBuf> {
    folders().map(|folder| folder.join(name)).find(|path| path.exists())
}

/// The largest library whose name begins so.
fn largest(start: &str) -> Option<PathBuf> {
    let entries = folders().filter_map(|folder| fs::read_dir(folder).ok()).flatten().flatten();
    let named = entries.filter(|entry| entry.file_name().to_string_lossy().starts_with(start));
    named.map(|entry| entry.path()).max_by_key(|path| fs::metadata(path).map_or(0, |metadata| metadata.len()))
}

fn folders() -> impl Iterator<Item = PathBuf> {
    ["x86_64", "aarch64"].iter().map(|arch| PathBuf::from(format!("/usr/lib/{arch}-linux-gnu")))
}

/// A program and what `ldd` says it loads.
fn with_libraries(program: &str) -> Vec<Option<PathBuf>> {
    let Ok(program) = fs::canonicalize(program) else { return Vec::new() };
    let output = Command::new("ldd").arg(&program).output();
    let text = output.map(|output| String::from_utf8_lossy(&output.stdout).into_owned()).unwrap_or_default();
    let libraries = text.split_whitespace().filter(|word| word.starts_with('/')).map(PathBuf::from);
    let all: BTreeSet<PathBuf> = std::iter::once(program).chain(libraries).collect();
    all.into_iter().map(Some).collect()
}
