//! Whether a return probe harms a process with a seccomp filter. From Linux 6.11 on its trampoline is a system call, which first kernels
//! give to filters that do not know it: the process is lost (fixed in 6.14 and in later 6.12 and 6.13). A process of tracer's own with
//! such a filter is probed, and looked at whether it lives.

use std::{
    io::{self, Read as _, Write as _},
    os::unix::process::CommandExt as _,
    process::{Command, Stdio},
};

use crate::bpf::{
    subject,
    trials::{self, Uprobe},
};

/// What the process is called by: its first argument.
pub const NAME: &str = "tracer: filtered";

/// What that process does: it sets up the filter, says so, and calls the function when the standard input ends.
///
/// # Errors
/// There can be no filter, or nobody listens.
pub fn serve() -> io::Result<()> {
    trials::refuse_trampolines()?;
    io::stdout().write_all(b".")?;
    io::stdout().flush()?;
    io::stdin().read_to_end(&mut Vec::new())?;
    subject::call();
    Ok(())
}

/// Whether such a process lives on behind a return probe of this kind.
///
/// # Errors
/// It cannot be tried.
pub(super) fn lives(way: Uprobe) -> io::Result<bool> {
    let mut command = Command::new("/proc/self/exe");
    command.arg0(NAME).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
    let mut process = command.spawn()?;
    let mut said = [0];
    let is_ready = process.stdout.take().is_some_and(|mut stdout| stdout.read_exact(&mut said).is_ok());
    let pid = process.id();
    let mut status = None;
    let tried = subject::place().and_then(|place| {
        trials::uprobe(way, subject::path(), place, Some(pid), || {
            drop(process.stdin.take());
            status = Some(process.wait());
        })
    });
    if status.is_none() {
        // Its input has ended with this, or it has.
        drop(process.stdin.take());
        process.wait()?;
    }
    if !is_ready {
        return Err(io::Error::other("no process can have a filter here"));
    }
    tried?;
    status.map_or(Ok(false), |status| Ok(status?.success()))
}
