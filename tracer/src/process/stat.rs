//! What the kernel says of a process in a line, and of which threads it is.

use std::{fs, io};

use super::text;
use crate::limits;

/// Bit of a task's flags that marks kernel threads (PF_KTHREAD, include/linux/sched.h).
const PF_KTHREAD: u64 = 0x0020_0000;
/// That of tasks which are about to end, or have (PF_EXITING).
const PF_EXITING: u64 = 0x0000_0004;
/// Longer than the line can be, bytes.
pub const MAX_STAT: u64 = 1 << 12;

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

    /// Whether its first thread has begun to end.
    pub fn is_exiting(&self) -> bool {
        self.flags & PF_EXITING != 0
    }

    /// Whether its first thread has ended, and others go on.
    pub fn goes_on_without_its_first_thread(&self) -> bool {
        matches!(self.state, 'Z' | 'X') && !self.is_over()
    }

    /// Whether nothing of the process runs any more, though nobody has waited for it: its first thread may exit before others.
    pub fn is_over(&self) -> bool {
        self.state == 'Z' && self.threads < 2
    }
}

/// What the kernel says of a process; `None` where there is none.
///
/// # Errors
/// No file can be opened any more.
pub fn stat(pid: u32) -> io::Result<Option<Stat>> {
    match fs::File::open(format!("/proc/{pid}/stat")).and_then(|file| text::read(file, MAX_STAT)) {
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

/// Threads of process `pid` that have not exited, other than its first.
pub fn other_threads(pid: u32) -> Vec<u32> {
    let Ok(entries) = fs::read_dir(format!("/proc/{pid}/task")) else { return Vec::new() };
    entries
        .flatten()
        .filter_map(|entry| entry.file_name().to_string_lossy().parse().ok())
        .filter(|tid| *tid != pid)
        .collect()
}

/// The thread by which the kernel shows the memory of process `pid`, what it runs and what it was started with: its first one, or, where that
/// has ended, one of the others.
pub fn shown_by(pid: u32) -> u32 {
    match stat(pid) {
        Ok(Some(stat)) if stat.goes_on_without_its_first_thread() => {
            // The one that has been there for longest goes on for longest, perhaps.
            other_threads(pid).into_iter().min().unwrap_or(pid)
        }
        _ => pid,
    }
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
}
