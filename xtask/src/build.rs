//! `build` and `run`: the release build, and the tracer from it.

use std::{ffi::OsString, os::unix::process::CommandExt as _};

use anyhow::{Context as _, Result};

use crate::{command, ebpf, workspace::Workspace};

/// Builds the BPF programs and everything that is released.
pub(crate) fn release(workspace: &Workspace) -> Result<()> {
    ebpf::build(workspace)?;
    let mut build = command::cargo();
    build.args(["build", "--release", "--workspace", "--exclude", "xtask"]).current_dir(&workspace.root);
    command::run(&mut build)
}

/// Builds, then becomes the tracer: signals and the exit status are its own.
pub(crate) fn run(workspace: &Workspace, args: &[OsString]) -> Result<()> {
    release(workspace)?;
    let tracer = workspace.tracer();
    let error = command::as_root(&tracer)?.args(args).exec();
    Err(error).with_context(|| format!("cannot run {}", tracer.display()))
}
