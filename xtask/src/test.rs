//! `test`: all tests, those that attach probes included.
//!
//! Unit and documentation tests are built for development, where arithmetic is checked. The integration tests run the
//! tracer as it is released: they hold it to its numbers under full load.

use std::{ffi::OsString, process::Command};

use anyhow::{Result, bail};

use crate::{
    command::{self, INTEGRATION},
    ebpf, go_services, setup,
    workspace::Workspace,
};

const UNIT: &[&str] = &["test", "--workspace", "--lib", "--bins", "--no-fail-fast"];
const DOCUMENTATION: &[&str] = &["test", "--workspace", "--doc", "--no-fail-fast"];

/// Brings what the tests run, then runs them all, also when some have failed.
pub(crate) fn run(workspace: &Workspace, filters: &[OsString]) -> Result<()> {
    setup::for_tests()?;
    ebpf::build(workspace)?;
    if go_services::wanted(filters) {
        go_services::build(workspace, go_services::SHORT)?;
    }
    if !command::is_root()? {
        println!("not root: the tests that attach probes (target `integration`) cannot pass; run this as root");
    }
    let mut failed = Vec::new();
    for (name, args) in [("unit", UNIT), ("documentation", DOCUMENTATION), ("integration", INTEGRATION)] {
        println!("\n== {name} tests");
        if let Err(error) = command::run(&mut cargo_test(workspace, args, filters)) {
            println!("{error:#}");
            failed.push(name);
        }
    }
    if !failed.is_empty() {
        bail!("tests failed: {}", failed.join(", "));
    }
    Ok(())
}

fn cargo_test(workspace: &Workspace, args: &[&str], filters: &[OsString]) -> Command {
    let mut test = command::cargo();
    test.args(args).arg("--").args(filters).current_dir(&workspace.root);
    test
}
