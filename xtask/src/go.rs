//! Go toolchains of all supported versions: `go-layouts`, what each of them makes of the runtime, and `test --go-matrix`,
//! tests with all of them.
//!
//! Toolchains are modules (`golang.org/toolchain`), so one `go` brings the others. They are kept in cargo's target
//! directory.

use std::{
    ffi::OsString,
    fmt::Write as _,
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, bail};

use crate::{
    command::{self, NETWORK_PAUSE},
    ebpf, integration, setup,
    workspace::Workspace,
};

/// One toolchain of each minor version, from 1.19 on.
pub(crate) const TOOLCHAINS: [&str; 9] =
    ["1.19.13", "1.20.14", "1.21.13", "1.22.12", "1.23.12", "1.24.11", "1.25.5", "1.26.6", "1.27.3"];

/// Where the table of layouts is.
const TABLE: &str = "tracer/src/golang/layouts.json";

/// A program that does nothing: the runtime is in every one.
const PROGRAM: &str = "package main\n\nfunc main() { select {} }\n";

/// Builds a program with each toolchain, and writes the table of what the runtime looks like in it.
pub(crate) fn layouts(workspace: &Workspace) -> Result<()> {
    let folder = workspace.target.join("go/layout");
    fs::create_dir_all(&folder)?;
    fs::write(folder.join("main.go"), PROGRAM)?;
    fs::write(folder.join("go.mod"), "module layout\n\ngo 1.19\n")?;
    let mut table = String::new();
    for version in TOOLCHAINS {
        let program = folder.join(version);
        let mut build = go(&toolchain(workspace, version)?);
        command::run(build.args(["build", "-o"]).arg(&program).arg(".").current_dir(&folder))?;
        let mut describe = command::cargo();
        describe.args(["run", "--quiet", "--package", "tracer", "--example", "go_layout", "--"]).arg(&program);
        let description = command::captured(describe.current_dir(&workspace.root))?;
        let minor = version.split('.').nth(1).context("a version without a minor number")?;
        let separator = if table.is_empty() { "{\n" } else { ",\n" };
        write!(table, "{separator}  \"{minor}\": {}", description.trim().replace('\n', "\n  "))?;
    }
    table.push_str("\n}\n");
    fs::write(workspace.root.join(TABLE), table)?;
    println!("wrote {TABLE}");
    Ok(())
}

/// Root of the toolchain of a version, downloaded unless that has been done before.
pub(crate) fn toolchain(workspace: &Workspace, version: &str) -> Result<PathBuf> {
    let modules = workspace.target.join("go/modules");
    let module = format!("golang.org/toolchain@v0.0.1-go{version}.linux-amd64");
    let root = modules.join(&module);
    if !root.join("bin/go").exists() {
        fs::create_dir_all(&modules)?;
        let Some(own) = command::find("go") else {
            bail!("go is missing, which brings other versions of itself: `cargo xtask setup --tests` installs it");
        };
        command::with_retries("download of a Go toolchain", NETWORK_PAUSE, |_| {
            let mut download = command::program(&own);
            download.args(["mod", "download", "-modcacherw", &module]).current_dir(&modules);
            command::run(download.env("GOMODCACHE", &modules).env("GOTOOLCHAIN", "local").env("GOFLAGS", "-mod=mod"))
        })?;
    }
    // Modules hold no executable files.
    for folder in ["bin", "pkg/tool/linux_amd64"] {
        let folder = root.join(folder);
        for entry in fs::read_dir(&folder).with_context(|| format!("no toolchain in {}", folder.display()))? {
            fs::set_permissions(entry?.path(), fs::Permissions::from_mode(0o755))?;
        }
    }
    Ok(root)
}

/// The `go` of a toolchain, which uses no other.
pub(crate) fn go(root: &Path) -> Command {
    let mut go = command::program(root.join("bin/go"));
    go.env("GOROOT", root).env("GOTOOLCHAIN", "local").env("GOFLAGS", "");
    go
}

/// Tests of Go programs: those that the matrix runs, unless it is told others.
const TESTS: [&str; 4] = ["goroutines::", "go_leaks::", "go_heap::", "go_both::"];

/// Runs tests with programs built by each toolchain, and prints a table of the results.
pub(crate) fn matrix(workspace: &Workspace, filters: &[OsString]) -> Result<()> {
    setup::for_tests()?;
    ebpf::build(workspace)?;
    let default = TESTS.map(OsString::from);
    let filters = if filters.is_empty() { &default[..] } else { filters };
    let mut table = String::new();
    let mut failed = false;
    for version in TOOLCHAINS {
        let mut test = integration::tests(workspace);
        test.arg("--").args(filters);
        test.env("TRACER_TEST_GOROOT", toolchain(workspace, version)?);
        let (success, printed) = command::printed(&mut test)?;
        print!("{printed}");
        let result = printed.lines().find_map(|line| line.strip_prefix("test result: ")).unwrap_or("did not run");
        writeln!(table, "{:<10}  {}", version, result.split("; 0 ignored").next().unwrap_or(result))?;
        for line in printed.lines().filter(|line| line.starts_with("test ") && line.ends_with("... FAILED")) {
            writeln!(table, "            {line}")?;
        }
        failed |= !success;
    }
    println!("\nGo version  result\n{table}");
    if failed {
        bail!("tests failed with some version of Go");
    }
    Ok(())
}
