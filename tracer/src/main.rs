//! The `tracer` command: reads the command line, runs the session, turns the outcome into an exit status.

use std::{
    env,
    io::{self, IsTerminal as _, Write as _},
    process::ExitCode,
};

use mimalloc::MiMalloc;
use tracer::{
    bpf::{LoadError, uses_multi_here},
    cli::{self, Request},
    config::{Config, Subject, Verbosity},
    control,
    doctor::{self, filtered},
    exit::Exit,
    files::opener,
    go::goroutines,
    limits,
    preflight::Missing,
    privileges::{self, Role},
    report, top,
};

/// Of its own, not the C library's: where probes are for all who use that, tracer would pay for each of its own allocations.
#[global_allocator]
static ALLOCATOR: MiMalloc = MiMalloc;

fn main() -> ExitCode {
    if env::args_os().next().is_some_and(|name| name == opener::NAME) {
        return if opener::serve().is_ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE };
    }
    if env::args_os().next().is_some_and(|name| name == filtered::NAME) {
        return if filtered::serve().is_ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE };
    }
    let exit = match cli::parse() {
        Request::Trace(config) => run(config.verbosity, || {
            give_up_rights(&config);
            control::run(*config)
        }),
        Request::Goroutines(config) => run(config.verbosity, || goroutines::run(&config)),
        // What is told beside would be lost under the next screen.
        Request::Top(config) => run(Verbosity::Quiet, || top::run(&config)),
        // What is told beside is in the report.
        Request::Doctor(config) => run(Verbosity::Quiet, || doctor::run(&config)),
        Request::Print(text) => printed(io::stdout().write_all(&text)),
        Request::Help(help) => printed(help.print()),
        Request::Refuse(error) => {
            // Nobody is left to tell when even this fails.
            let _ = error.print();
            Exit::Usage
        }
    };
    exit.into()
}

fn printed(result: io::Result<()>) -> Exit {
    if result.is_ok() { Exit::Complete } else { Exit::Failed }
}

/// Before there is a thread. A command that is launched has all rights that tracer was started with.
fn give_up_rights(config: &Config) {
    if !matches!(config.subject, Subject::Command(_)) {
        let by_events = config.perf_events || !uses_multi_here();
        privileges::keep_those_of(Role::Tracer { by_events });
    }
}

fn run(verbosity: Verbosity, job: impl FnOnce() -> anyhow::Result<Exit>) -> Exit {
    let levels = match verbosity {
        Verbosity::Quiet => "error",
        Verbosity::Normal => "warn",
        // aya tells every relocation; what its programs log has their own target.
        Verbosity::Verbose => "debug,aya=warn,aya_obj=warn,blazesym=warn",
        Verbosity::Debug => "trace",
    };
    let colour = io::stderr().is_terminal() && env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
    tracing_subscriber::fmt()
        .with_env_filter(levels)
        .with_writer(io::stderr)
        // It would tell there what cannot be written there, and panic.
        .log_internal_errors(false)
        .with_ansi(colour)
        .with_target(false)
        .without_time()
        .init();
    limits::raise_open_files();
    job().unwrap_or_else(|error| {
        let numbers = error.chain().filter_map(|cause| cause.downcast_ref::<io::Error>());
        let advice = numbers.filter_map(limits::exhausted).next();
        let mut message = advice.map_or_else(|| format!("{error:#}"), |advice| format!("{error:#}: {advice}"));
        if error.chain().any(|cause| cause.is::<Missing>() || cause.is::<LoadError>()) {
            message.push_str("; `tracer doctor` tries what works on this machine");
        }
        // Names from outside may be in the message: nothing that a terminal would obey.
        let _ = writeln!(io::stderr(), "tracer: {}", report::visible(&message));
        Exit::Failed
    })
}
