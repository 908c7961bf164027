//! `build-ebpf` and `lint-ebpf`: the BPF programs, compiled by a toolchain of their own.

use std::{env::consts, fs, path::Path, process::Command};

use anyhow::{Context as _, Result, bail};

use crate::{
    command,
    setup::{self, BpfToolchain},
    workspace::Workspace,
};

const TARGET: &str = "bpfel-unknown-none";

/// The objects: that of the product, and what tests and benches load.
const OBJECTS: [&str; 2] = ["tracer-bpf", "tracer-bpf-compared"];

/// Builds the objects and puts them where tracer's build script looks.
pub(crate) fn build(workspace: &Workspace) -> Result<()> {
    let toolchain = setup::for_builds()?;
    println!("BPF programs: compiled with {toolchain}");
    let mut build = match toolchain {
        BpfToolchain::Debian => command::cargo(),
        BpfToolchain::Nightly => nightly_cargo(),
    };
    build.arg("build");
    configure(&mut build, toolchain, workspace)?;
    command::run(&mut build)?;

    for name in OBJECTS {
        let built = workspace.bpf_target().join(TARGET).join("bpf").join(name);
        let object = workspace.bpf_target().join(format!("{name}.o"));
        if replace_if_different(&built, &object)? {
            println!("BPF programs: new object {}", object.display());
        }
    }
    Ok(())
}

/// Clippy of the same compiler over the same programs.
pub(crate) fn lint(workspace: &Workspace) -> Result<()> {
    let toolchain = setup::for_builds()?;
    let mut clippy = match toolchain {
        // The stable toolchain's clippy cannot read what Debian's compiler made of `core`.
        BpfToolchain::Debian => {
            setup::for_tests()?;
            command::program("/usr/bin/cargo-clippy")
        }
        BpfToolchain::Nightly => nightly_cargo(),
    };
    clippy.arg("clippy");
    configure(&mut clippy, toolchain, workspace)?;
    clippy.args(["--", "-D", "warnings"]);
    command::run(&mut clippy)
}

fn nightly_cargo() -> Command {
    let mut cargo = command::program("rustup");
    cargo.args(["run", setup::NIGHTLY, "cargo"]);
    cargo
}

/// Toolchain, target and flags of a cargo command on the BPF programs.
fn configure(cargo: &mut Command, toolchain: BpfToolchain, workspace: &Workspace) -> Result<()> {
    // What wraps or redirects the compiler elsewhere would spoil this build.
    for variable in ["CARGO_ENCODED_RUSTFLAGS", "CARGO_BUILD_TARGET", "RUSTC_WRAPPER", "RUSTC_WORKSPACE_WRAPPER"] {
        cargo.env_remove(variable);
    }
    cargo.current_dir(&workspace.root).env("PATH", command::path_with_cargo_bin()?);
    cargo.env("RUSTFLAGS", rustflags(consts::ARCH)?);
    cargo.args(["--package", "tracer-ebpf", "--features", "bpf", "--target", TARGET]);
    cargo.args(OBJECTS.iter().flat_map(|name| ["--bin", name]));
    cargo.args(["--profile", "bpf", "--target-dir"]).arg(workspace.bpf_target());
    match toolchain {
        // aya-ebpf uses a feature gate, hence the bootstrap variable.
        BpfToolchain::Debian => cargo.env("RUSTC", "/usr/bin/rustc").env("RUSTC_BOOTSTRAP", "1"),
        BpfToolchain::Nightly => cargo.env_remove("RUSTC").args(["-Z", "build-std=core"]),
    };
    Ok(())
}

/// The programs read the registers of the traced machine, so they differ by architecture. Function and line
/// information become BTF, which the kernel wants for callbacks and shows in the verifier's messages.
fn rustflags(arch: &str) -> Result<String> {
    if !["x86_64", "aarch64"].contains(&arch) {
        bail!("the BPF programs know x86_64 and aarch64, not {arch}");
    }
    Ok(format!("--cfg bpf_target_arch=\"{arch}\" -C debuginfo=2 -C link-arg=--btf"))
}

/// Copies unless the contents are the same, so that an unchanged object does not rebuild the tracer.
fn replace_if_different(from: &Path, to: &Path) -> Result<bool> {
    let new = fs::read(from).with_context(|| format!("cannot read the BPF object {}", from.display()))?;
    if fs::read(to).is_ok_and(|old| old == new) {
        return Ok(false);
    }
    // By rename: a build that runs meanwhile sees the old or the new object, not a part.
    let part = to.with_extension("o.new");
    fs::write(&part, new).with_context(|| format!("cannot write {}", part.display()))?;
    fs::rename(&part, to).with_context(|| format!("cannot write {}", to.display()))?;
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_new_object_is_written() {
        let folder = tempfile::tempdir().unwrap();
        let (from, to) = (folder.path().join("from"), folder.path().join("to.o"));
        assert!(replace_if_different(&from, &to).is_err());
        for (contents, written) in [("a", true), ("a", false), ("b", true)] {
            fs::write(&from, contents).unwrap();
            assert_eq!(replace_if_different(&from, &to).unwrap(), written);
            assert_eq!(fs::read_to_string(&to).unwrap(), contents);
        }
    }

    #[test]
    fn each_known_architecture_has_its_flag() {
        assert!(rustflags("aarch64").unwrap().contains("bpf_target_arch=\"aarch64\""));
        assert!(rustflags("riscv64").is_err());
    }
}
