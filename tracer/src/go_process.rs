//! Finding the Go runtime of a process: from its executable, as it is mapped.

use std::{io, sync::Arc};

use anyhow::Result;

use crate::{
    event::Pid,
    golang::{Executable, Runtime, Unreadable},
    process::{
        link_map::Auxv,
        memory::{self, Span},
        root::ProcessDirectory,
        status::NotTraceable,
    },
};

/// Finds the Go runtime of a process.
///
/// # Errors
/// [`Unreadable`] or [`NotTraceable`], when there is none, or it cannot be read.
pub fn open(pid: Pid) -> Result<Arc<Runtime>> {
    let directory = ProcessDirectory::open(pid).map_err(|_| NotTraceable::NoSuchProcess(pid))?;
    let file = directory.target("exe").map_err(|error| forbidden(pid, "its executable", error))?;
    let executable = Executable::open(file).map_err(|error| explained(pid, error))?;
    let auxv = Auxv::read(pid).map_err(|error| forbidden(pid, "its auxiliary vector", error))?;
    let entry = auxv.entry().ok_or(NotTraceable::NoSuchProcess(pid))?;
    let runtime = Runtime::attach(executable, entry, &reader(pid)).map_err(|error| explained(pid, error))?;
    Ok(Arc::new(runtime))
}

/// Whether an error of [`open`] says that it is no Go program.
pub fn is_not_go(error: &anyhow::Error) -> bool {
    matches!(error.downcast_ref(), Some(Unreadable::NotGo))
}

/// Reads the memory of a process.
pub fn reader(pid: Pid) -> impl Fn(&[Span], &mut [u8]) -> io::Result<Vec<bool>> {
    move |spans, buffer| memory::read_spans(pid, spans, buffer)
}

/// Puts a failure to read memory down to the end of the process, or to a missing right.
pub fn explained(pid: Pid, error: Unreadable) -> anyhow::Error {
    match error {
        Unreadable::Memory(error) => forbidden(pid, "its memory", error).into(),
        other => other.into(),
    }
}

fn forbidden(pid: Pid, what: &str, error: io::Error) -> NotTraceable {
    match error.raw_os_error() {
        Some(libc::ESRCH | libc::ENOENT) => NotTraceable::NoSuchProcess(pid),
        _ => NotTraceable::Forbidden { pid, what: what.to_owned(), error: error.to_string() },
    }
}
