//! `test`: all tests, those that attach probes included.
//!
//! Unit tests are built with the checks of development (`checked.sh`). The integration tests run the tracer as it is released:
//! they hold it to its numbers under full load. All depend on what the release does, so that it is built once.

use std::{ffi::OsString, process::Command};

use anyhow::{Result, bail};

use crate::{
    command::{self, INTEGRATION},
    ebpf, go_services, setup,
    workspace::Workspace,
};

const UNIT: &[&str] = &["test", "--release", "--workspace", "--lib", "--bins", "--no-fail-fast"];
/// Of the one library that has a documentation for users.
const DOCUMENTATION: &[&str] = &["test", "--release", "--package", "tracer", "--doc", "--no-fail-fast"];

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
    let mut unit = cargo_test(workspace, UNIT, filters);
    unit.env("RUSTC_WORKSPACE_WRAPPER", workspace.root.join("xtask/checked.sh"));
    let documentation = cargo_test(workspace, DOCUMENTATION, filters);
    let integration = cargo_test(workspace, INTEGRATION, filters);
    let mut failed = Vec::new();
    for (name, mut tests) in [("unit", unit), ("documentation", documentation), ("integration", integration)] {
        println!("\n== {name} tests");
        if let Err(error) = command::run(&mut tests) {
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
