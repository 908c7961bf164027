//! What rustup and cargo bring: components, the nightly fallback, programs that cargo installs.

use std::{env, env::consts, fs, path::Path};

use anyhow::{Context as _, Result, bail};

use crate::command::{self, NETWORK_PAUSE};

/// The nightly that compiles BPF where Debian's compiler is not to be had. Pinned: a newer one has a newer LLVM, whose
/// output this release of bpf-linker refuses as an "invalid record".
pub(crate) const NIGHTLY: &str = "nightly-2026-05-20";

/// Release of bpf-linker that fits LLVM 22, which both BPF compilers carry.
const BPF_LINKER: &str = "0.13.0";

/// Release of cargo-deny; newer ones may need a newer Rust.
const CARGO_DENY: &str = "0.20.2";

/// Sees to it that the toolchain in use has these components.
pub(super) fn components(wanted: &[&str]) -> Result<()> {
    let sysroot = command::output(command::program("rustc").args(["--print", "sysroot"]))?;
    let missing = missing_components(Path::new(sysroot.trim()), wanted);
    if missing.is_empty() {
        return Ok(());
    }
    println!("setup: adding rustup components: {}", missing.join(" "));
    if command::find("rustup").is_none() {
        bail!("{} missing, and no rustup to bring it: install it beside rustc", missing.join(", "));
    }
    command::with_retries("rustup", NETWORK_PAUSE, |_| {
        command::run(command::program("rustup").args(["component", "add"]).args(&missing))
    })
}

/// Whether that nightly is there with the sources of `core`.
pub(super) fn nightly_source() -> bool {
    let toolchains = command::home_folder("RUSTUP_HOME", ".rustup").join("toolchains");
    let is_nightly_with_source = |folder: &Path| {
        let name = folder.file_name().unwrap_or_default().to_string_lossy();
        name.starts_with(&format!("{NIGHTLY}-{}-", consts::ARCH))
            && folder.join("lib/rustlib/src/rust/library/core/Cargo.toml").is_file()
    };
    let folders = fs::read_dir(toolchains).into_iter().flatten().flatten();
    folders.into_iter().any(|entry| is_nightly_with_source(&entry.path()))
}

/// Brings that nightly and the sources of `core`.
pub(super) fn install_nightly_source() -> Result<()> {
    if nightly_source() {
        return Ok(());
    }
    if command::find("rustup").is_none() {
        bail!("no compiler for BPF: install rustup, or Debian's packages rustc-web and libstd-rust-web-dev-bpf");
    }
    println!("setup: installing rustup's {NIGHTLY} with the sources of core");
    command::with_retries("rustup", NETWORK_PAUSE, |_| {
        let install = ["toolchain", "install", NIGHTLY, "--profile", "minimal", "--component", "rust-src"];
        command::run(command::program("rustup").args(install))
    })
}

/// Builds bpf-linker against Debian's LLVM unless it is there.
pub(super) fn install_bpf_linker() -> Result<()> {
    if command::find("bpf-linker").is_some() {
        return Ok(());
    }
    println!("setup: building bpf-linker {BPF_LINKER}; this takes about a minute");
    let features = ["--no-default-features", "--features", "llvm-22"];
    // Without the prefix the build looks for LLVM where Debian does not have it.
    cargo_install("bpf-linker", BPF_LINKER, &features, &[("LLVM_PREFIX", "/usr/lib/llvm-22")])
}

/// Builds cargo-deny, without optimization: it runs for a second, and optimizing it would take minutes.
pub(super) fn install_cargo_deny() -> Result<()> {
    println!("setup: building cargo-deny {CARGO_DENY}; this takes about a minute");
    let options = ["--profile", "dev", "--no-default-features"];
    cargo_install("cargo-deny", CARGO_DENY, &options, &[("CARGO_PROFILE_DEV_DEBUG", "0")])
}

/// Brings the sources that a package of the tests is built from, which is apart from the workspace.
pub(super) fn fetch_package(folder: &Path) -> Result<()> {
    let manifest = folder.join("Cargo.toml");
    command::with_retries("cargo", NETWORK_PAUSE, |_| {
        command::run(command::program("cargo").args(["fetch", "--locked", "--quiet", "--manifest-path"]).arg(&manifest))
    })
}

fn cargo_install(name: &str, version: &str, options: &[&str], variables: &[(&str, &str)]) -> Result<()> {
    command::with_retries("cargo install", NETWORK_PAUSE, |_| {
        let mut install = command::cargo();
        install.args(["install", name, "--version", version, "--locked", "--quiet"]).args(options);
        // Outside the workspace, whose configuration is not meant for this program.
        install.current_dir(env::temp_dir()).envs(variables.iter().copied());
        install.env_remove("RUSTFLAGS").env_remove("CARGO_ENCODED_RUSTFLAGS").env_remove("CARGO_TARGET_DIR");
        command::run(&mut install)
    })?;
    command::find(name).with_context(|| format!("cargo installed {name}, but where is not on PATH"))?;
    Ok(())
}

/// Components whose program is not in the toolchain. Cargo's own folder has stand-ins for all, so that is no place to look.
fn missing_components(sysroot: &Path, wanted: &[&str]) -> Vec<String> {
    let program =
        |component: &str| if component == "rustfmt" { "cargo-fmt".into() } else { format!("cargo-{component}") };
    let is_missing = |component: &&&str| !sysroot.join("bin").join(program(component)).is_file();
    wanted.iter().filter(is_missing).map(|component| (*component).to_owned()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn components_are_looked_for_in_the_toolchain() {
        let sysroot = tempfile::tempdir().unwrap();
        fs::create_dir(sysroot.path().join("bin")).unwrap();
        fs::write(sysroot.path().join("bin/cargo-fmt"), "").unwrap();
        assert_eq!(missing_components(sysroot.path(), &["rustfmt", "clippy"]), ["clippy"]);
        fs::write(sysroot.path().join("bin/cargo-clippy"), "").unwrap();
        assert!(missing_components(sysroot.path(), &["rustfmt", "clippy"]).is_empty());
    }
}
