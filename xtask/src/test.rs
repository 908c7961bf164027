//! `test`: all tests, those that attach probes included.
//!
//! Unit tests are built with the checks of development (`checked.sh`). The integration tests run the tracer as it is released
//! (`tests.sh`): they hold it to its numbers under full load. All depend on what the release does, so that it is built once.

use std::{env, ffi::OsString, num::NonZero, process::Command, thread};

use anyhow::{Result, bail};

use crate::{command, ebpf, go_services, integration, setup, workspace::Workspace};

const UNIT: &[&str] = &["test", "--release", "--workspace", "--lib", "--bins", "--no-fail-fast"];
/// Of the one library that has a documentation for users.
const DOCUMENTATION: &[&str] = &["test", "--release", "--package", "tracer", "--doc", "--no-fail-fast"];

/// How many tests run at a time (test harness of Rust).
const THREADS: &str = "RUST_TEST_THREADS";

/// Brings what the tests run, and runs them all, also when some have failed.
pub(crate) fn run(workspace: &Workspace, filters: &[OsString]) -> Result<()> {
    setup::for_tests()?;
    ebpf::build(workspace)?;
    if !command::is_root()? {
        println!("not root: the tests that attach probes (target `integration`) cannot pass; run this as root");
    }
    let mut unit = command::cargo();
    unit.args(UNIT).current_dir(&workspace.root);
    unit.env("RUSTC_WORKSPACE_WRAPPER", workspace.root.join("xtask/checked.sh"));
    let mut documentation = integration::beside_them(workspace);
    documentation.args(DOCUMENTATION);
    let mut integration = integration::tests(workspace);
    if env::var_os(THREADS).is_none() {
        // They wait for processes and clocks as much as they work.
        let processors = thread::available_parallelism().map_or(1, NonZero::get);
        integration.env(THREADS, (processors + 1).to_string());
    }
    let mut failed = Vec::new();
    let mut test = |name, mut tests: Command| {
        println!("\n== {name} tests");
        if let Err(error) = command::run(tests.arg("--").args(filters)) {
            println!("{error:#}");
            failed.push(name);
        }
    };
    thread::scope(|scope| {
        // That is downloading, for the most part.
        let services =
            go_services::wanted(filters).then(|| scope.spawn(|| go_services::build(workspace, go_services::SHORT)));
        test("unit", unit);
        test("documentation", documentation);
        services.map_or(Ok(()), |services| services.join().unwrap_or_else(|_| bail!("a panic")))
    })?;
    test("integration", integration);
    if !failed.is_empty() {
        bail!("tests failed: {}", failed.join(", "));
    }
    Ok(())
}
