//! Everything that is done to the project, as `cargo xtask COMMAND`.
//!
//! Each command first brings what it needs and does not find ([`setup`]), so that a fresh clone needs no preparation.
//! This file only parses and dispatches; one file per command does the rest.
#![expect(clippy::print_stdout, clippy::print_stderr, reason = "a program for developers: it tells what it does")]

mod bench;
mod build;
mod command;
mod demo;
mod ebpf;
mod fuzz;
mod go;
mod go_services;
mod integration;
mod setup;
mod test;
mod tidy;
mod vm;
mod workspace;

use std::{ffi::OsString, process::ExitCode};

use anyhow::Result;
use clap::{Parser, Subcommand};

use crate::workspace::Workspace;

#[derive(Parser)]
#[command(name = "cargo xtask", about = "Builds, tests and measures the tracer; installs what that needs")]
struct Cli {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Install what is missing for building: the BPF toolchain, bpf-linker, rustfmt, clippy
    Setup {
        /// Also what the tests and benches run: servers, allocators, compilers, cargo-deny
        #[arg(long)]
        tests: bool,
    },
    /// Build the BPF object that the tracer embeds
    BuildEbpf,
    /// Run clippy over the BPF programs, warnings are errors
    LintEbpf,
    /// Build everything for release: target/release/tracer
    Build,
    /// Build, then run the tracer (as root, through sudo if need be)
    Run {
        /// Arguments of the tracer
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<OsString>,
    },
    /// Build all, trace a small leaking service, print its top stacks and write a flamegraph
    Demo,
    /// Run all tests, those that need root included
    Test {
        /// Those about kernels, on older kernels in virtual machines
        #[arg(long)]
        vm: bool,
        /// Those of Go programs, with programs built by every supported version of Go
        #[arg(long, conflicts_with = "vm")]
        go_matrix: bool,
        /// Those of services in Go, which are built for minutes
        #[arg(long, conflicts_with_all = ["vm", "go_matrix"])]
        go_services: bool,
        /// Names of tests, or options of the test harness such as --nocapture
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        filters: Vec<OsString>,
    },
    /// Run the benches
    Bench {
        /// Arguments of `cargo bench`
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<OsString>,
    },
    /// Search for input that the parsers cannot stand
    Fuzz {
        /// One of fuzz/corpus; all when left out
        target: Option<String>,
        /// How long each is run
        #[arg(long, default_value_t = 3)]
        seconds: u64,
    },
    /// Build a program with every supported version of Go and write the table of what its runtime looks like
    GoLayouts,
    /// Check the repository's own rules
    Tidy,
}

fn main() -> ExitCode {
    match run(Cli::parse().task) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("xtask: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(task: Task) -> Result<()> {
    let workspace = Workspace::load()?;
    match task {
        Task::Setup { tests: false } => setup::everything_for_builds(),
        Task::Setup { tests: true } => setup::everything(),
        Task::BuildEbpf => ebpf::build(&workspace),
        Task::LintEbpf => ebpf::lint(&workspace),
        Task::Build => build::release(&workspace),
        Task::Run { args } => build::run(&workspace, &args),
        Task::Demo => demo::run(&workspace),
        Task::Test { vm: true, filters, .. } => vm::run(&workspace, &filters),
        Task::Test { go_matrix: true, filters, .. } => go::matrix(&workspace, &filters),
        Task::Test { go_services: true, filters, .. } => go_services::test(&workspace, &filters),
        Task::Test { filters, .. } => test::run(&workspace, &filters),
        Task::Bench { args } => bench::run(&workspace, &args),
        Task::Fuzz { target, seconds } => fuzz::run(&workspace, target.as_deref(), seconds),
        Task::GoLayouts => go::layouts(&workspace),
        Task::Tidy => tidy::run(&workspace),
    }
}
