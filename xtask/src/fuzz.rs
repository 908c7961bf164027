//! `fuzz`: libFuzzer on the tracer's parsers, from the kept inputs on.
//!
//! The instrumentation is LLVM's and the stable compiler has it (`fuzz/rustc.sh`); what cargo-fuzz adds (sanitizers, which only nightly has)
//! finds errors of unsafe code, of which parsers have none. New inputs go to cargo's target directory, never to
//! `fuzz/corpus`.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    sync::{
        Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
};

use anyhow::{Context as _, Result, bail};

use crate::{command, setup, workspace::Workspace};

/// An input may take so many seconds, all so much memory, one allocation so much; inputs have at most so many bytes.
const LIMITS: [&str; 4] = ["-timeout=10", "-rss_limit_mb=512", "-malloc_limit_mb=256", "-max_len=16384"];

/// Names the target, for the program.
const TARGET: &str = "FUZZ_TARGET";

/// What one run did.
#[derive(Debug, Default, PartialEq, Eq)]
struct Figures {
    executions: u64,
    /// Edges that were reached.
    coverage: u64,
    /// Inputs, kept ones and new ones, that reach something that no other does.
    inputs: u64,
}

/// Builds the program and runs one target, or each, for so many seconds, as many at a time as there are processors; an error
/// when an input did harm.
pub(crate) fn run(workspace: &Workspace, only: Option<&str>, seconds: u64) -> Result<()> {
    let corpus = workspace.root.join("fuzz/corpus");
    let mut targets = targets(&corpus)?;
    if let Some(only) = only {
        if !targets.iter().any(|target| target == only) {
            bail!("no target `{only}`: there are {}", targets.join(", "));
        }
        targets.retain(|target| target == only);
    }
    setup::for_tests()?;
    let program = build(workspace)?;
    let (next, results) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
    let run_what_is_left = || {
        while let Some(target) = targets.get(next.fetch_add(1, Ordering::Relaxed)) {
            let folder = workspace.target.join("fuzz").join(target);
            let result = search(target, &program, &corpus.join(target), &folder, seconds);
            results.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).push((target, result));
        }
    };
    thread::scope(|scope| {
        for _ in 0..thread::available_parallelism().map_or(1, usize::from) {
            scope.spawn(run_what_is_left);
        }
    });
    let (mut harmful, mut failed) = (Vec::new(), Ok(()));
    for (target, result) in results.into_inner().unwrap_or_else(|poisoned| poisoned.into_inner()) {
        match result {
            Ok(true) => {}
            Ok(false) => harmful.push(target.as_str()),
            Err(error) => failed = failed.and(Err(error)),
        }
    }
    if !harmful.is_empty() {
        bail!("fuzzing found inputs that do harm: {}", harmful.join(", "));
    }
    failed
}

/// Names of the targets: the folders of the inputs that are kept. That all have one is tested beside them.
fn targets(corpus: &Path) -> Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in fs::read_dir(corpus).with_context(|| format!("cannot read {}", corpus.display()))? {
        names.push(entry?.file_name().to_string_lossy().into_owned());
    }
    names.sort();
    Ok(names)
}

/// Builds the program and says where it is. What the workspace depends on is that of the release, and of the tests of the
/// tracer, whose package is named for that.
fn build(workspace: &Workspace) -> Result<PathBuf> {
    let mut build = command::cargo();
    build.args(["build", "--release", "--locked", "--package", "tracer-fuzz", "--package", "tracer"]);
    build.args(["--example", "fuzz", "--features", "tracer-fuzz/libfuzzer"]);
    build.env("RUSTC_WORKSPACE_WRAPPER", workspace.root.join("fuzz/rustc.sh"));
    command::run(build.current_dir(&workspace.root))?;
    Ok(workspace.target.join("release/examples/fuzz"))
}

/// Runs one target; false when an input did harm.
fn search(target: &str, program: &Path, kept: &Path, folder: &Path, seconds: u64) -> Result<bool> {
    let (found, log) = (folder.join("found"), folder.join("log"));
    fs::create_dir_all(&found).with_context(|| format!("cannot create {}", found.display()))?;
    let output = File::create(&log).with_context(|| format!("cannot write {}", log.display()))?;
    let mut fuzz = command::program(program);
    fuzz.env(TARGET, target);
    fuzz.args(LIMITS).arg(format!("-max_total_time={seconds}")).arg("-print_final_stats=1");
    fuzz.arg(format!("-artifact_prefix={}/", folder.display()));
    // New inputs go to the first folder.
    fuzz.args([&found, kept]).current_dir(folder).stdout(output.try_clone()?).stderr(output);
    let status = fuzz.status().with_context(|| format!("cannot run {}", program.display()))?;
    let text = String::from_utf8_lossy(&fs::read(&log)?).into_owned();
    let Figures { executions, coverage, inputs } = figures(&text);
    println!("{target:>9}: {executions:>9} executions, {coverage:>5} edges reached, {inputs:>5} inputs");
    if status.success() {
        return Ok(true);
    }
    println!("{}", end(&text));
    match harmful_input(&text) {
        Some(input) => println!(
            "{target}: again with `{TARGET}={target} {} {input}`; copy it to {} so that `cargo test` does",
            program.display(),
            kept.display()
        ),
        None => println!("{target}: {status}; all that it said is in {}", log.display()),
    }
    Ok(false)
}

/// From what libFuzzer prints: `#1234 DONE cov: 12 ft: 34 corp: 5/67b ...`, and `stat::number_of_executed_units: 1234`.
fn figures(log: &str) -> Figures {
    let mut figures = Figures::default();
    for line in log.lines() {
        let mut words = line.split_whitespace();
        while let Some(word) = words.next() {
            let mut number = || words.next().and_then(|word| word.split('/').next()?.parse().ok()).unwrap_or_default();
            match word {
                "cov:" => figures.coverage = number(),
                "corp:" => figures.inputs = number(),
                "stat::number_of_executed_units:" => figures.executions = number(),
                _ => {}
            }
        }
    }
    figures
}

fn harmful_input(log: &str) -> Option<&str> {
    log.lines().rev().find_map(|line| line.split_once("Test unit written to ")).map(|(_, path)| path)
}

/// The last lines, where the panic is.
fn end(log: &str) -> String {
    let lines: Vec<&str> = log.lines().collect();
    lines[lines.len().saturating_sub(40)..].join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_those_of_the_last_line() {
        let log = "#2\tINITED cov: 8 ft: 8 corp: 1/1b exec/s: 0 rss: 27Mb\n\
                   #21095\tNEW    cov: 11 ft: 12 corp: 4/13Kb lim: 212 exec/s: 0 rss: 27Mb L: 4/4 MS: 1 Cov-\n\
                   stat::number_of_executed_units: 99\n";
        assert_eq!(figures(log), Figures { executions: 99, coverage: 11, inputs: 4 });
        assert_eq!(figures(""), Figures::default());
        assert_eq!(harmful_input(log), None);
        let crash = "artifact_prefix='/t/'; Test unit written to /t/crash-1\nBase64: AAA=\n";
        assert_eq!(harmful_input(crash), Some("/t/crash-1"));
    }
}
