//! `test --vm`: integration tests on older kernels of Debian's, in virtual machines.
//!
//! The executable of the integration tests runs there as it does here, with the tracer and the BPF programs of this source.
//! Kernels and emulator are downloaded and unpacked, not installed.

mod archive;
mod guest;
mod machine;
mod selection;

use std::{
    ffi::{OsStr, OsString},
    fs,
    path::{Path, PathBuf},
    thread,
};

use anyhow::{Context as _, Result, bail};
use cargo_metadata::Message;

use crate::{
    command, ebpf, integration, setup,
    vm::{
        guest::Contents,
        machine::{Machine, Ran},
        selection::Selection,
    },
    workspace::Workspace,
};

/// Kernels by the beginnings of their versions: Debian's own, and the newest without links that know a process by all its
/// threads. The cloud flavour has what a virtual machine needs built in.
const KERNELS: &[&str] = &["6.1", "6.12"];

/// The emulator, and a shell that needs no libraries.
const EMULATOR: &[&str] = &["qemu-system-x86", "qemu-system-data", "seabios", "busybox-static"];

/// Compiles all programs and prints their paths.
const COMPILES: &str = "harness::programs::every_program_compiles";

/// What precedes a path there.
const COMPILED: &str = "compiled: ";

/// A kernel that can be booted.
struct Kernel {
    version: &'static str,
    package: String,
    image: PathBuf,
}

/// Brings what is missing, then runs the tests on all kernels at a time.
pub(crate) fn run(workspace: &Workspace, filters: &[OsString]) -> Result<()> {
    setup::for_tests()?;
    let folder = workspace.target.join("vm");
    let emulator = folder.join("emulator");
    setup::unpack_with_dependencies(EMULATOR, &emulator)?;
    let kernels: Vec<Kernel> = KERNELS.iter().map(|version| kernel(version, &folder)).collect::<Result<_>>()?;

    ebpf::build(workspace)?;
    let tests = build_tests(workspace)?;
    let programs = compile_programs(&tests)?;
    let listing = command::output(command::program(&tests).arg("--list"))?;
    let arguments = arguments(&listing, filters)?;
    let archive = folder.join("guest.cpio");
    let contents = Contents {
        busybox: &emulator.join("bin/busybox"),
        tests: &tests,
        programs: &programs,
        arguments: &arguments.iter().map(AsRef::as_ref).collect::<Vec<&OsStr>>(),
    };
    contents.write(workspace, &archive)?;
    boot(&kernels, &emulator, &archive, &folder)
}

/// Boots all kernels, shows what each one's tests say, and fails when one failed.
fn boot(kernels: &[Kernel], emulator: &Path, archive: &Path, folder: &Path) -> Result<()> {
    println!("vm: booting {} kernels; the tests take minutes there", kernels.len());
    let results: Vec<Result<Ran>> = thread::scope(|scope| {
        let run = |kernel: &Kernel| Machine { emulator, kernel: &kernel.image, archive, folder }.run(&kernel.package);
        let running: Vec<_> = kernels.iter().map(|kernel| scope.spawn(move || run(kernel))).collect();
        running.into_iter().map(|machine| machine.join().unwrap_or_else(|_| bail!("a panic"))).collect()
    });
    let mut failed = Vec::new();
    for (kernel, result) in kernels.iter().zip(results) {
        println!("\n== {}", kernel.package);
        match result {
            Ok(ran) => {
                println!("{}", ran.output.trim());
                let boot =
                    ran.boot.map_or("never came to its first process".to_owned(), |at| format!("booted in {at:.1} s"));
                println!("\nLinux {} {boot}, ran for {:.0} s in all", kernel.version, ran.duration.as_secs_f64());
                if !ran.passed {
                    failed.push(kernel.version);
                }
            }
            Err(error) => {
                println!("{error:#}");
                failed.push(kernel.version);
            }
        }
    }
    if !failed.is_empty() {
        bail!("tests failed on Linux {}", failed.join(", "));
    }
    Ok(())
}

/// Brings the newest kernel of a version. Older ones of the same version are removed: they are large.
fn kernel(version: &'static str, folder: &Path) -> Result<Kernel> {
    let family = format!("linux-image-{version}.");
    let pattern = format!("{}[^ ]*-cloud-amd64", family.replace('.', "[.]"));
    let Some(package) = setup::newest(&pattern)? else {
        bail!(
            "no package {family}*-cloud-amd64 in this system's repositories: Debian 12 and its security updates have them"
        );
    };
    let unpacked = folder.join(&package);
    setup::unpack(std::slice::from_ref(&package), &unpacked)?;
    for other in fs::read_dir(folder).with_context(|| format!("cannot read {}", folder.display()))? {
        let other = other?.path();
        let name = other.file_name().unwrap_or_default().to_string_lossy();
        if other.is_dir() && name.starts_with(&family) && other != unpacked {
            fs::remove_dir_all(&other).with_context(|| format!("cannot remove {}", other.display()))?;
        }
    }
    let image = unpacked.join("boot").join(package.replace("linux-image-", "vmlinuz-"));
    Ok(Kernel { version, package, image })
}

/// Builds the executable of the integration tests, and the tracer with it, and says where it is.
fn build_tests(workspace: &Workspace) -> Result<PathBuf> {
    let mut build = integration::tests(workspace);
    let messages = command::captured(build.args(["--no-run", "--message-format", "json-render-diagnostics"]))?;
    let executables = Message::parse_stream(messages.as_bytes()).filter_map(|message| match message {
        Ok(Message::CompilerArtifact(artifact)) if artifact.target.is_test() => artifact.executable,
        _ => None,
    });
    executables.last().map(Into::into).context("cargo built no integration tests")
}

/// Compiles what the tests trace, and says where it is.
fn compile_programs(tests: &Path) -> Result<Vec<PathBuf>> {
    let output = command::captured(command::program(tests).args([COMPILES, "--exact", "--nocapture"]))?;
    let programs: Vec<PathBuf> = output.lines().filter_map(|line| Some(line.split_once(COMPILED)?.1.into())).collect();
    if programs.is_empty() {
        bail!("`{COMPILES}` compiled nothing");
    }
    Ok(programs)
}

/// The command line of the tests in a guest. Says which of the tests do not run there.
fn arguments(listing: &str, filters: &[OsString]) -> Result<Vec<OsString>> {
    let is_option = |argument: &&OsString| argument.as_encoded_bytes().starts_with(b"-");
    let (options, filters): (Vec<_>, Vec<_>) = filters.iter().partition(is_option);
    let filters: Vec<_> = filters.iter().map(|filter| filter.to_string_lossy()).collect();
    let filters: Vec<&str> = filters.iter().map(AsRef::as_ref).collect();
    let Selection { run, left_out } = Selection::new(selection::names(listing), &filters);
    for (reason, tests) in left_out {
        println!("vm: not run, {reason}: {}", tests.join(", "));
    }
    if run.is_empty() {
        bail!("no test of that name can run in a virtual machine");
    }
    let names = run.into_iter().map(OsString::from);
    Ok([OsString::from("--exact")].into_iter().chain(names).chain(options.into_iter().cloned()).collect())
}
