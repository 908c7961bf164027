//! Prints where the outcomes of allocator functions are known: `exits [-v] FILE...`; the files are ELF files for x86-64.

#![expect(clippy::print_stdout, reason = "that is what it is for")]

use std::{env, fs::File};

use anyhow::{Context, Result};
use tracer::probe::{
    exits::Exits,
    resolve::{Binding, Function, allocator},
};

fn main() -> Result<()> {
    let (options, files): (Vec<String>, Vec<String>) = env::args().skip(1).partition(|argument| argument == "-v");
    for path in files {
        let begin = std::time::Instant::now();
        let file = File::open(&path).with_context(|| format!("cannot open {path}"))?;
        let dynamic = allocator(file.try_clone()?, Binding::Dynamic);
        let functions = match dynamic.with_context(|| format!("cannot read {path}"))? {
            Some(functions) => functions,
            None => allocator(file, Binding::Static)?.unwrap_or_default(),
        };
        println!("{path}: {} functions, {:.1} ms", functions.len(), begin.elapsed().as_secs_f64() * 1e3);
        for function in functions {
            describe(&function, !options.is_empty());
        }
    }
    Ok(())
}

fn describe(Function { name, exits, .. }: &Function, each: bool) {
    match exits {
        None => {}
        Some(Exits::Unproven(why)) => println!("  {name:36} not covered: {why}"),
        Some(exits @ Exits::Proven(sites)) => {
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
