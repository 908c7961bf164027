//! Prints where the outcomes of allocator functions are known, and checks it on real calls.
//!
//! `exits [-v] [--run PROGRAM [--loader LOADER --libraries FOLDERS]] FILE...`: the files are ELF files for x86-64 with a
//! malloc; PROGRAM is the compiled `tests/programs/every_call.c`, which is run with each of them preloaded, by another
//! loader and with other libraries if there are any.

#![expect(clippy::print_stdout, reason = "that is what it is for")]

#[path = "../../tests/harness/stepper.rs"]
mod stepper;

use std::{env, fs::File, path::Path, process::Command};

use anyhow::{Context, Result};
use tracer::probe::{
    exits::Exits,
    resolve::{Function, allocator},
};

#[derive(Default)]
struct Options {
    each: bool,
    program: Option<String>,
    loader: Option<String>,
    libraries: String,
}

fn main() -> Result<()> {
    let mut options = Options::default();
    let mut arguments = env::args().skip(1);
    let mut files = Vec::new();
    while let Some(argument) = arguments.next() {
        match &*argument {
            "-v" => options.each = true,
            "--run" => options.program = arguments.next(),
            "--loader" => options.loader = arguments.next(),
            "--libraries" => options.libraries = arguments.next().unwrap_or_default(),
            _ => files.push(argument),
        }
    }
    for path in files {
        let begin = std::time::Instant::now();
        let file = File::open(&path).with_context(|| format!("cannot open {path}"))?;
        let found = allocator(&file).with_context(|| format!("cannot read {path}"))?;
        let functions = found.map(|found| found.functions).unwrap_or_default();
        println!("{path}: {} functions, {:.1} ms", functions.len(), begin.elapsed().as_secs_f64() * 1e3);
        for function in &functions {
            describe(function, options.each);
        }
        run(&options, Path::new(&path), &functions);
    }
    Ok(())
}

/// Calls the functions, if a program for that was given.
fn run(options: &Options, file: &Path, functions: &[Function]) {
    let Some(program) = &options.program else { return };
    let mut command = match &options.loader {
        None => Command::new(program),
        Some(loader) => {
            let mut command = Command::new(loader);
            command.args(["--library-path", &options.libraries, program]);
            command
        }
    };
    if !file.to_string_lossy().contains("libc.") {
        command.env("LD_PRELOAD", file);
    }
    let checked = stepper::check(command, file, functions);
    let sum = |of: fn(&stepper::Calls) -> usize| checked.calls.values().map(of).sum::<usize>();
    println!(
        "  {} calls of {} functions, {} of them failed, passed {} exits, {} of them stepped; {} faults",
        sum(|calls| calls.returned),
        checked.calls.len(),
        sum(|calls| calls.failed),
        sum(|calls| calls.passed),
        sum(|calls| calls.stepped),
        checked.faults.len(),
    );
    for fault in &checked.faults {
        println!("    {fault}");
    }
}

fn describe(Function { name, exits, .. }: &Function, each: bool) {
    match exits {
        None => {}
        Some(Exits::Unproven(why)) => println!("  {name:36} not covered: {why}"),
        Some(exits @ Exits::Proven(sites, _)) => {
            let stepped = sites.iter().filter(|site| !site.emulated).count();
            let how = if exits.are_cheap() { "" } else { ", dear" };
            println!("  {name:36} covered by {:2} sites, {stepped} of them stepped{how}", sites.len());
            if each {
                for site in sites {
                    println!("    {:#x} {:?} emulated {}", site.address, site.exit, site.emulated);
                }
            }
        }
    }
}
