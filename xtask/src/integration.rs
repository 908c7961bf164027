//! Integration tests: how they are built, by everything that runs them, so that it is done once.

use std::process::Command;

use crate::{command, workspace::Workspace};

/// Cargo, told to run the integration tests. More of its arguments may follow.
pub(crate) fn tests(workspace: &Workspace) -> Command {
    let mut cargo = beside_them(workspace);
    cargo.args(["test", "--release", "--package", "tracer", "--test", "integration"]);
    cargo
}

/// Cargo, for what is to use the tracer that they run.
pub(crate) fn beside_them(workspace: &Workspace) -> Command {
    let mut cargo = command::cargo();
    cargo.current_dir(&workspace.root).env("RUSTC_WORKSPACE_WRAPPER", workspace.root.join("xtask/tests.sh"));
    cargo
}
