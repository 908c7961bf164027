//! Whether a process can be traced at all, from what /proc says of it.

use std::{fs, io, os::unix::fs::FileExt as _};

use super::stat::stat;
pub use super::stat::{Stat, other_threads, parse_stat, shown_by};
use crate::{files::root::ProcessDirectory, limits};

/// Why a process cannot be traced. Each message says what to do.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum NotTraceable {
    /// There is none with this id.
    #[error("there is no process {0}: look its id up with `pgrep -a NAME`")]
    NoSuchProcess(u32),
    /// The id is that of a thread.
    #[error("{tid} is a thread of process {pid}: trace the process with --pid {pid}")]
    Thread {
        /// The id that was given.
        tid: u32,
        /// The process it belongs to.
        pid: u32,
    },
    /// It belongs to the kernel.
    #[error("process {0} ({1}) is a kernel thread: it has no user-space heap to trace")]
    KernelThread(u32, String),
    /// It has exited and waits for its parent.
    #[error("process {0} ({1}) has already exited (it is a zombie): trace the process that replaces it")]
    Zombie(u32, String),
    /// Its first thread has ended, and others run.
    #[error(
        "the first thread of process {0} ({1}) has ended, and the kernel knows a process that is to be probed by that, though others run \
         on: trace it from before that, or from its start (tracer -- CMD)"
    )]
    FirstThreadEnded(u32, String),
    /// It is not a 64-bit program.
    #[error("process {0} ({1}) is a 32-bit program: only 64-bit x86-64 programs can be traced")]
    Not64Bit(u32, String),
    /// No file can be opened any more.
    #[error("{0}")]
    Exhausted(String),
    /// It cannot be looked at.
    #[error(
        "cannot look at process {pid} ({what}): {error}; run tracer as root (sudo), or with CAP_SYS_PTRACE and CAP_DAC_READ_SEARCH"
    )]
    Forbidden {
        /// The process.
        pid: u32,
        /// What could not be read.
        what: String,
        /// Why.
        error: String,
    },
}

/// What is known of a traceable process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Status {
    /// Name, as the process chose it: hostile text.
    pub comm: String,
    /// Path of the executable, as the process sees it: hostile text.
    pub exe: String,
    /// Clock ticks since boot at its start: tells it from another process with the same id.
    pub start_time: u64,
}

/// Looks at process `pid`.
///
/// # Errors
/// [`NotTraceable`], when it cannot be traced.
pub fn check(pid: u32) -> Result<Status, NotTraceable> {
    let stat = there(pid)?;
    if stat.goes_on_without_its_first_thread() {
        return Err(NotTraceable::FirstThreadEnded(pid, stat.comm));
    }
    described(pid, stat)
}

/// The same of a process that is traced already, or was started by one: its first thread may have ended.
///
/// # Errors
/// As for [`check`].
pub fn look(pid: u32) -> Result<Status, NotTraceable> {
    described(pid, there(pid)?)
}

fn there(pid: u32) -> Result<Stat, NotTraceable> {
    match stat(pid) {
        Ok(found) => found.ok_or(NotTraceable::NoSuchProcess(pid)),
        Err(error) => Err(unreadable(pid, &format!("/proc/{pid}/stat"), &error)),
    }
}

fn described(pid: u32, stat: Stat) -> Result<Status, NotTraceable> {
    if stat.is_kernel_thread() {
        return Err(NotTraceable::KernelThread(pid, stat.comm));
    }
    if matches!(stat.state, 'Z' | 'X') && stat.is_over() {
        return Err(NotTraceable::Zombie(pid, stat.comm));
    }
    if let Some(tgid) = tgid(pid).filter(|tgid| *tgid != pid) {
        return Err(NotTraceable::Thread { tid: pid, pid: tgid });
    }
    let exe = format!("/proc/{pid}/exe");
    let header = match read_start(pid) {
        // Nobody knows; it is told where it matters.
        Err(error) if error.kind() == io::ErrorKind::TimedOut => [0; 5],
        header => header.map_err(|error| unreadable(pid, &exe, &error))?,
    };
    if header[..4] == *b"\x7fELF" && header[4] != 2 {
        return Err(NotTraceable::Not64Bit(pid, stat.comm));
    }
    let exe = executable(pid).unwrap_or_default();
    Ok(Status { comm: stat.comm, exe, start_time: stat.start_time })
}

/// Path of the executable that a process has now, as the kernel tells it: hostile text. `None` when that cannot be known.
pub fn executable(pid: u32) -> Option<String> {
    let link = |id: u32| fs::read_link(format!("/proc/{id}/exe")).ok();
    // Its first thread may have ended.
    let path = link(pid).or_else(|| link(Some(shown_by(pid)).filter(|other| *other != pid)?))?;
    Some(path.to_string_lossy().into_owned())
}

/// Why the file `what` of a process cannot be read.
fn unreadable(pid: u32, what: &str, error: &io::Error) -> NotTraceable {
    match limits::exhausted(error) {
        Some(exhausted) => NotTraceable::Exhausted(exhausted),
        // Exited between two looks at it.
        None if error.kind() == io::ErrorKind::NotFound => NotTraceable::NoSuchProcess(pid),
        None => NotTraceable::Forbidden { pid, what: what.to_owned(), error: error.to_string() },
    }
}

/// Whether a process was stopped, by a signal and not by a tracer.
pub fn is_stopped(pid: u32) -> bool {
    stat(pid).ok().flatten().is_some_and(|stat| stat.state == 'T')
}

/// When a process began and what time of processors it has used, in clock ticks; `None` where there is none.
pub fn used(pid: u32) -> Option<(u64, u64)> {
    stat(pid).ok().flatten().map(|stat| (stat.start_time, stat.used))
}

/// Process that the thread or process `id` belongs to.
fn tgid(id: u32) -> Option<u32> {
    let status = fs::read(format!("/proc/{id}/status")).ok()?;
    let status = String::from_utf8_lossy(&status).into_owned();
    // The name comes first, with newlines escaped.
    status.lines().find_map(|line| line.strip_prefix("Tgid:")).and_then(|id| id.trim().parse().ok())
}

fn read_start(pid: u32) -> io::Result<[u8; 5]> {
    let mut start = [0; 5];
    ProcessDirectory::with_memory(pid)?.executable(pid)?.file.read_exact_at(&mut start, 0)?;
    Ok(start)
}

/// Whether something of process `pid` runs. So it is as long as that cannot be read.
pub fn is_alive(pid: u32) -> bool {
    stat(pid).map_or(true, |stat| stat.is_some_and(|stat| !stat.is_over()))
}

/// Whether the first thread of process `pid` has begun to end, or there is none.
pub fn is_exiting(pid: u32) -> bool {
    stat(pid).ok().flatten().is_none_or(|stat| stat.is_exiting())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_traced_says_why() {
        assert!(check(std::process::id()).is_ok());
        // Process ids end below 2^22.
        assert_eq!(check(4_194_304), Err(NotTraceable::NoSuchProcess(4_194_304)));
        assert!(matches!(
            check(2),
            Err(NotTraceable::KernelThread(2, _)) | Err(NotTraceable::NoSuchProcess(2)) | Ok(_)
        ));
    }

    #[test]
    fn a_thread_is_not_a_process() {
        let (send, receive) = std::sync::mpsc::channel();
        let (done, wait) = std::sync::mpsc::channel::<()>();
        let thread = std::thread::spawn(move || {
            send.send(rustix::thread::gettid().as_raw_nonzero().get() as u32).unwrap();
            let _ = wait.recv();
        });
        let tid = receive.recv().unwrap();
        assert_eq!(check(tid), Err(NotTraceable::Thread { tid, pid: std::process::id() }));
        assert!(other_threads(std::process::id()).contains(&tid));
        drop(done);
        thread.join().unwrap();
    }
}
