//! Describes the Go runtime in an executable that has symbols and DWARF, as JSON: an entry of `src/golang/layouts.json`.
//! `cargo xtask go-layouts` runs it.
#![expect(clippy::print_stdout, reason = "its output")]

use std::{env, fs::File};

use anyhow::{Context as _, Result};
use tracer::golang::describe::describe;

fn main() -> Result<()> {
    let path = env::args_os().nth(1).context("give the path of an executable")?;
    let description = describe(File::open(path)?)?;
    println!("{}", serde_json::to_string_pretty(&description)?);
    Ok(())
}
