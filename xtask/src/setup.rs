//! `setup`: brings what is missing, says what it does, and is quick and silent when all is there.
//!
//! The BPF programs need a rustc with `core` for the BPF target. Debian's `rustc-web` has it prebuilt and is preferred;
//! elsewhere rustup's nightly compiles `core` itself. Either needs bpf-linker.

mod debian;
mod rust;
mod unpacked;

pub(crate) use rust::NIGHTLY;
pub(crate) use unpacked::{newest, unpack, unpack_with_dependencies};

use std::{fmt, path::Path};

use anyhow::{Result, bail};

use crate::{command, workspace::Workspace};

/// Debian's compiler with the BPF target, from its security suite.
const BPF_COMPILER: &[&str] = &["rustc-web", "libstd-rust-web-dev-bpf"];

/// What bpf-linker is built with.
const BPF_LINKER_LIBRARIES: &[&str] = &["llvm-22-dev", "libpolly-22-dev", "zlib1g-dev", "libzstd-dev"];

/// What tests and benches run, beyond a C compiler.
const TEST_PACKAGES: &[&str] = &[
    "redis-server",
    "redis-tools",
    "nginx-light",
    "apache2-bin",
    "gunicorn",
    "php8.2-fpm",
    "postgresql",
    "postgresql-contrib",
    "python3",
    "bpftrace",
    "gdb",
    "g++",
    "libjemalloc2",
    "libjemalloc-dev",
    "libtcmalloc-minimal4",
    "libgoogle-perftools4",
    "libgoogle-perftools-dev",
    "libmimalloc2.0",
    "libtbbmalloc2",
    "musl-tools",
    "xz-utils",
    "rust-web-clippy",
];

/// Go, where there is none: any version from 1.19 on will do.
const GO_PACKAGES: &[&str] = &["golang-go"];

/// For systems without these libraries.
const BPF_LINKER_ADVICE: &str = "install the program of its release 0.13.0 for LLVM 22 into a folder on PATH, or build \
    it with `LLVM_PREFIX=DIR cargo install bpf-linker --version 0.13.0 --no-default-features --features llvm-22 \
    --locked`, where DIR holds LLVM 22";

/// The compiler for the BPF programs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum BpfToolchain {
    /// Debian's rustc in /usr/bin, with `core` prebuilt for BPF.
    Debian,
    /// Rustup's nightly, which compiles `core` from its source component.
    Nightly,
}

impl fmt::Display for BpfToolchain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Debian => write!(f, "Debian's rustc-web (/usr/bin/rustc)"),
            Self::Nightly => write!(f, "rustup's {NIGHTLY} with -Z build-std=core"),
        }
    }
}

/// What this machine has for BPF.
#[derive(Clone, Copy, Debug)]
struct Found {
    /// It installs packages with apt.
    apt: bool,
    /// Debian's rustc has the BPF target.
    debian_compiler: bool,
    /// Rustup's nightly has the sources of `core`.
    nightly_source: bool,
    /// bpf-linker is on PATH or among cargo's programs.
    linker: bool,
}

/// What to do about the BPF toolchain.
#[derive(Debug, PartialEq, Eq)]
enum Plan {
    /// All is there.
    Use(BpfToolchain),
    /// Parts are missing; prefer this one.
    Install(BpfToolchain),
}

impl Found {
    fn look() -> Self {
        Self {
            apt: Path::new("/usr/bin/apt-get").exists(),
            debian_compiler: debian_compiler(),
            nightly_source: rust::nightly_source(),
            linker: command::find("bpf-linker").is_some(),
        }
    }

    fn plan(self) -> Plan {
        match self {
            Self { linker: true, debian_compiler: true, .. } => Plan::Use(BpfToolchain::Debian),
            Self { linker: true, nightly_source: true, .. } => Plan::Use(BpfToolchain::Nightly),
            Self { apt: true, .. } | Self { debian_compiler: true, .. } => Plan::Install(BpfToolchain::Debian),
            Self { .. } => Plan::Install(BpfToolchain::Nightly),
        }
    }
}

/// `cargo xtask setup`.
pub(crate) fn everything_for_builds() -> Result<()> {
    let toolchain = for_builds()?;
    rust::components(&["rustfmt", "clippy"])?;
    println!("setup: BPF programs are compiled with {toolchain}; nothing is missing for builds");
    Ok(())
}

/// `cargo xtask setup --tests`.
pub(crate) fn everything() -> Result<()> {
    everything_for_builds()?;
    for_tests()?;
    println!("setup: nothing is missing for tests and benches");
    Ok(())
}

/// Brings what builds need and says which BPF toolchain to take.
pub(crate) fn for_builds() -> Result<BpfToolchain> {
    match Found::look().plan() {
        Plan::Use(toolchain) => Ok(toolchain),
        Plan::Install(BpfToolchain::Debian) if debian_packages_come()? => {
            rust::install_bpf_linker()?;
            Ok(BpfToolchain::Debian)
        }
        Plan::Install(_) => {
            println!("setup: taking {} for the BPF programs", BpfToolchain::Nightly);
            rust::install_nightly_source()?;
            if command::find("bpf-linker").is_none() {
                bail!("bpf-linker is missing; {BPF_LINKER_ADVICE}");
            }
            Ok(BpfToolchain::Nightly)
        }
    }
}

/// Brings what tests and benches need beyond the builds.
pub(crate) fn for_tests() -> Result<()> {
    let mut missing = debian::missing(TEST_PACKAGES)?;
    if command::find("go").is_none() {
        missing.extend(debian::missing(GO_PACKAGES)?);
    }
    if !missing.is_empty() {
        let unavailable = debian::unavailable(&missing)?;
        if !unavailable.is_empty() {
            println!("setup: no package {} here; tests that need one fail and say so", unavailable.join(", "));
        }
        missing.retain(|package| !unavailable.contains(package));
    }
    if !missing.is_empty() {
        debian::install(&missing)?;
    }
    if command::find("cargo-deny").is_none() {
        rust::install_cargo_deny()?;
    }
    rust::fetch_package(&Workspace::load()?.root.join("tests/programs/rust_allocators"))?;
    Ok(())
}

/// Installs Debian's compiler and what bpf-linker is built with; all or, when Debian does not offer all, nothing.
fn debian_packages_come() -> Result<bool> {
    let mut missing = Vec::new();
    if !debian_compiler() {
        missing.extend(debian::missing(BPF_COMPILER)?);
    }
    if command::find("bpf-linker").is_none() {
        missing.extend(debian::missing(BPF_LINKER_LIBRARIES)?);
    }
    if !missing.is_empty() {
        let unavailable = debian::unavailable(&missing)?;
        if !unavailable.is_empty() {
            let names = unavailable.join(", ");
            println!("setup: no package {names} here; on Debian, the security suite in apt's sources brings them");
            return Ok(false);
        }
        debian::install(&missing)?;
    }
    Ok(debian_compiler())
}

/// The folder of `core` for BPF tells rustc-web from Debian's older rustc, which is in the same place.
fn debian_compiler() -> bool {
    Path::new("/usr/bin/rustc").exists() && Path::new("/usr/lib/rustlib/bpfel-unknown-none/lib").is_dir()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_plan_follows_what_is_there() {
        let (debian, nightly) = (BpfToolchain::Debian, BpfToolchain::Nightly);
        for (apt, debian_compiler, nightly_source, linker, plan) in [
            (true, true, true, true, Plan::Use(debian)),
            (false, true, false, true, Plan::Use(debian)),
            (true, false, true, true, Plan::Use(nightly)),
            (true, false, false, true, Plan::Install(debian)),
            (true, true, true, false, Plan::Install(debian)),
            (true, false, false, false, Plan::Install(debian)),
            (false, true, false, false, Plan::Install(debian)),
            (false, false, true, false, Plan::Install(nightly)),
            (false, false, false, false, Plan::Install(nightly)),
        ] {
            let found = Found { apt, debian_compiler, nightly_source, linker };
            assert_eq!(found.plan(), plan, "{found:?}");
        }
    }
}
