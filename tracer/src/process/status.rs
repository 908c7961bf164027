//! Whether a process can be traced at all, from what /proc says of it.

use std::{fs, io, os::unix::fs::FileExt as _};

use crate::files::root::ProcessDirectory;
use crate::limits;

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
        "the first thread of process {0} ({1}) has ended, and with it went what tracer looks at it by, though others run on: trace it \
         from before that, or from its start (tracer -- CMD)"
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

/// Bit of a task's flags that marks kernel threads (PF_KTHREAD, include/linux/sched.h).
const PF_KTHREAD: u64 = 0x0020_0000;
/// That of tasks which are about to end, or have (PF_EXITING).
const PF_EXITING: u64 = 0x0000_0004;

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
    let stat = match stat(pid) {
        Ok(Some(stat)) => stat,
        Ok(None) => return Err(NotTraceable::NoSuchProcess(pid)),
        Err(error) => return Err(unreadable(pid, &format!("/proc/{pid}/stat"), &error)),
    };
    if stat.is_kernel_thread() {
        return Err(NotTraceable::KernelThread(pid, stat.comm));
    }
    if stat.state == 'Z' && !stat.is_over() {
        return Err(NotTraceable::FirstThreadEnded(pid, stat.comm));
    }
    if matches!(stat.state, 'Z' | 'X') {
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
    Some(fs::read_link(format!("/proc/{pid}/exe")).ok()?.to_string_lossy().into_owned())
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

/// The fields of /proc/PID/stat that matter here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stat {
    /// Name, as the process chose it: hostile text.
    pub comm: String,
    /// State of its first thread: `Z` when that has exited.
    pub state: char,
    flags: u64,
    /// Id of its parent.
    pub parent: u32,
    /// Times that a page was not there, of all its threads.
    pub faults: u64,
    /// Time of processors that it has used, in clock ticks.
    pub used: u64,
    /// Number of threads.
    pub threads: u64,
    /// Clock ticks since boot at its start: tells it from another process with the same id.
    pub start_time: u64,
}

impl Stat {
    /// Whether it belongs to the kernel.
    pub fn is_kernel_thread(&self) -> bool {
        self.flags & PF_KTHREAD != 0
    }

    /// Whether nothing of the process runs any more, though nobody has waited for it: its first thread may exit before others.
    pub fn is_over(&self) -> bool {
        self.state == 'Z' && self.threads < 2
    }
}

/// What the kernel says of a process; `None` where there is none.
fn stat(pid: u32) -> io::Result<Option<Stat>> {
    match fs::read(format!("/proc/{pid}/stat")) {
        Ok(text) => Ok(parse_stat(&text)),
        Err(error) if limits::exhausted(&error).is_some() => Err(error),
        Err(_) => Ok(None),
    }
}

/// `PID (COMM) STATE ...`: the name may hold anything, parentheses and newlines included, so it ends at the last one.
pub fn parse_stat(bytes: &[u8]) -> Option<Stat> {
    let open = bytes.iter().position(|byte| *byte == b'(')?;
    let close = bytes.iter().rposition(|byte| *byte == b')')?;
    let comm = String::from_utf8_lossy(bytes.get(open + 1..close)?).into_owned();
    let rest = String::from_utf8_lossy(bytes.get(close + 1..)?);
    let fields: Vec<&str> = rest.split_whitespace().collect();
    // The state is field 3 of proc_pid_stat(5), the flags field 9, minor and major faults 10 and 12, user and system time 14 and 15,
    // threads 20, the start time 22.
    let number = |field: usize| fields.get(field - 3)?.parse::<u64>().ok();
    Some(Stat {
        comm,
        state: fields.first()?.chars().next()?,
        flags: number(9)?,
        parent: u32::try_from(number(4)?).ok()?,
        faults: number(10)?.wrapping_add(number(12)?),
        used: number(14)?.saturating_add(number(15)?),
        threads: number(20)?,
        start_time: number(22)?,
    })
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
    ProcessDirectory::open(pid)?.executable(pid)?.file.read_exact_at(&mut start, 0)?;
    Ok(start)
}

/// Threads of process `pid` that have not exited, other than its first.
pub fn other_threads(pid: u32) -> Vec<u32> {
    let Ok(entries) = fs::read_dir(format!("/proc/{pid}/task")) else { return Vec::new() };
    entries
        .flatten()
        .filter_map(|entry| entry.file_name().to_string_lossy().parse().ok())
        .filter(|tid| *tid != pid)
        .collect()
}

/// Whether something of process `pid` runs. So it is as long as that cannot be read.
pub fn is_alive(pid: u32) -> bool {
    stat(pid).map_or(true, |stat| stat.is_some_and(|stat| !stat.is_over()))
}

/// Whether the first thread of process `pid` has begun to end, or there is none.
pub fn is_exiting(pid: u32) -> bool {
    stat(pid).ok().flatten().is_none_or(|stat| stat.flags & PF_EXITING != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stat_with_a_hostile_name() {
        let line = b"77 (a) R 1 (\n) S 1 77 77 0 -1 4194304 1 2 3 4 5 6 7 8 20 0 1 0 4242 9 9\n";
        let stat = parse_stat(line).unwrap();
        let comm = "a) R 1 (\n".to_owned();
        assert_eq!(
            stat,
            Stat { comm, state: 'S', flags: 4_194_304, parent: 1, faults: 4, used: 11, threads: 1, start_time: 4242 }
        );
        for garbage in [&b""[..], b"77", b"77 (", b"77 )(", b"77 (x) ", b"77 (x) S 1"] {
            assert_eq!(parse_stat(garbage), None);
        }
    }

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
