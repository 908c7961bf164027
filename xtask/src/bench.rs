//! `bench`: the tracer's benches, with the BPF programs of this source.

use std::ffi::OsString;

use anyhow::Result;

use crate::{build, command, setup, workspace::Workspace};

/// Builds what the benches run and passes the arguments to `cargo bench`.
pub(crate) fn run(workspace: &Workspace, args: &[OsString]) -> Result<()> {
    setup::for_tests()?;
    build::release(workspace)?;
    let mut bench = command::cargo();
    bench.args(["bench", "--package", "tracer"]).args(args).current_dir(&workspace.root);
    command::run(&mut bench)
}
