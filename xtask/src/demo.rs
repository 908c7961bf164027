//! `demo`: traces a small service that leaks, from nothing to a flamegraph.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use anyhow::{Context as _, Result, bail};

use crate::{build, command, workspace::Workspace};

/// Optimized and without frame pointers, as services are shipped; line tables, so that the report can show lines.
const SERVICE_FLAGS: &[&str] = &["-O2", "-fomit-frame-pointer", "-g1", "-Wall", "-Werror"];

/// The service, ended when the demo ends, however it ends.
struct Service(Child);

impl Drop for Service {
    fn drop(&mut self) {
        // It may have ended already; then there is nothing to do.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Builds all, starts the service, traces it by its pid and says where the flamegraph is.
pub(crate) fn run(workspace: &Workspace) -> Result<()> {
    build::release(workspace)?;
    let folder = workspace.target.join("demo");
    fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
    let program = compile_service(workspace, &folder)?;
    let flamegraph = folder.join("flamegraph.svg");
    remove_old(&flamegraph)?;

    let child = command::program(&program).stdin(Stdio::null()).spawn();
    let mut service = Service(child.with_context(|| format!("cannot start {}", program.display()))?);
    println!("demo: a leaking service runs as process {}", service.0.id());
    trace(workspace, service.0.id(), &flamegraph)?;
    if let Some(status) = service.0.try_wait().context("cannot ask for the service's state")? {
        bail!("the service ended while it was traced ({status}); it should have run on");
    }
    if !fs::metadata(&flamegraph).is_ok_and(|file| file.len() > 0) {
        bail!("the tracer succeeded but wrote no flamegraph to {}", flamegraph.display());
    }
    println!("demo: done, the service ran on until now; flamegraph: {}", flamegraph.display());
    Ok(())
}

fn trace(workspace: &Workspace, pid: u32, flamegraph: &Path) -> Result<()> {
    let mut tracer = command::as_root(workspace.tracer())?;
    tracer.args(["--pid", &pid.to_string(), "--duration", "8s", "--top", "5", "-o"]).arg(flamegraph);
    let status = command::status(&mut tracer)?;
    match status.code() {
        Some(0) => Ok(()),
        Some(3) => bail!("the demo's trace is incomplete: the report above says what was lost"),
        _ => bail!("the demo's trace failed: tracer ended with {status}"),
    }
}

fn compile_service(workspace: &Workspace, folder: &Path) -> Result<PathBuf> {
    let source = workspace.root.join("xtask/demo/leaky_service.c");
    let program = folder.join("leaky_service");
    let mut compile = c_compiler()?;
    compile.args(SERVICE_FLAGS).arg(source).arg("-o").arg(&program);
    command::run(&mut compile)?;
    Ok(program)
}

fn c_compiler() -> Result<Command> {
    if let Some(compiler) = env::var_os("CC") {
        return Ok(command::program(compiler));
    }
    match ["gcc", "cc", "clang"].into_iter().find_map(command::find) {
        Some(compiler) => Ok(command::program(compiler)),
        None => bail!("no C compiler: install gcc, or name one in CC"),
    }
}

/// So that a flamegraph that is there afterwards is this run's.
fn remove_old(flamegraph: &Path) -> Result<()> {
    match fs::remove_file(flamegraph) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot replace {}", flamegraph.display()))
        }
        _ => Ok(()),
    }
}
