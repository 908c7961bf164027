//! `tracer doctor`: whether this machine, and a process on it, can be traced, found out by trying. Nothing is put into the process, and
//! nothing stays.

mod examination;
pub mod filtered;
mod json;
mod kernel;
pub mod line;
mod process;
mod rights;
mod text;

#[cfg(test)]
mod tests;

use std::io::{self, Write as _};

use anyhow::{Context as _, Result};

pub use self::{examination::Examination, process::Process};
use self::{kernel::Kernel, line::Verdict, rights::Rights};
use crate::{
    config::DoctorConfig,
    exit::Exit,
    files::opener,
    memory::{Memory, default_bound},
    preflight::Machine,
    probe::asked,
};

/// Examines as `config` says, and prints what was found.
///
/// # Errors
/// The rights of this process cannot be told, or nothing can be written.
pub fn run(config: &DoctorConfig) -> Result<Exit> {
    opener::start(Memory::within(default_bound(), 0).for_copies());
    asked::ask(config.symbols.clone());
    let examination = examine(config.pid)?;
    let text = if config.json {
        serde_json::to_string_pretty(&json::value(&examination))?
    } else {
        text::lines(&examination).join("\n")
    };
    match writeln!(io::stdout().lock(), "{text}") {
        // Nobody reads any more (`tracer doctor | head`).
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {}
        written => written.context("cannot write to the standard output")?,
    }
    Ok(match examination.verdict() {
        Verdict::Complete => Exit::Complete,
        Verdict::Incomplete => Exit::Incomplete,
        Verdict::Nothing => Exit::Failed,
    })
}

/// Examines the machine, and a process if there is one to.
///
/// # Errors
/// The rights of this process cannot be told.
pub fn examine(pid: Option<u32>) -> Result<Examination> {
    let machine = Machine::this().context("cannot tell the rights of this process")?;
    let release = machine.release.clone();
    let rights = Rights::this(machine);
    let Kernel { sections, by_events, sessions } = kernel::examine(&rights, &release);
    let machine = std::iter::once(rights.section(by_events)).chain(sections).collect();
    let process = pid.map(|pid| process::examine(pid, sessions));
    Ok(Examination { release, machine, process })
}
