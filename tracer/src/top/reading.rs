//! What /proc says of the memory of all processes at one moment. Of each, `stat` and `statm` are read; `status`, which costs more,
//! only where something of the process may be swapped out and it has changed.

use std::{
    fs,
    io::{self, Read as _},
    time::Instant,
};

use hashbrown::HashMap;

use crate::{
    files::root::ProcessDirectory,
    process::status::{self, Stat},
};

/// A process, told from another one that is given the same id later.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Id {
    /// Its id.
    pub pid: u32,
    /// Clock ticks since boot at its start.
    pub start_time: u64,
}

/// A process and its memory at one moment, bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sample {
    /// Which process.
    pub id: Id,
    /// Name, as the process chose it: hostile text.
    pub comm: String,
    /// When it was looked at.
    pub at: Instant,
    /// Memory that is resident, files included (RSS).
    pub resident: u64,
    /// Anonymous memory that is resident.
    pub anonymous: u64,
    /// Memory that is swapped out.
    pub swapped: u64,
    /// Times that a page was not there, since the start of the process.
    pub faults: u64,
}

impl Sample {
    /// Anonymous memory, resident or swapped out.
    pub fn own(&self) -> u64 {
        self.anonymous.saturating_add(self.swapped)
    }
}

/// All processes at one moment.
#[derive(Clone, Debug)]
pub struct Reading {
    /// When it began.
    pub at: Instant,
    /// Every process that has memory of its own, but tracer.
    pub processes: HashMap<Id, Sample>,
    /// Threads of the kernel, which have none.
    pub kernel_threads: usize,
    /// Memory of the machine.
    pub machine: Machine,
}

/// Memory of the machine, bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Machine {
    /// All.
    pub total: u64,
    /// What processes could still have.
    pub available: u64,
    /// What is swapped out.
    pub swapped: u64,
}

/// Longest text that is taken of one file, bytes: those that are read have a fixed number of lines.
const MAX_TEXT: u64 = 1 << 14;

impl Reading {
    /// Looks at all processes. `before`: the reading before this one.
    ///
    /// # Errors
    /// There is no /proc.
    pub fn take(before: Option<&Self>) -> io::Result<Self> {
        let machine = machine(&fs::read_to_string("/proc/meminfo")?);
        let mut reading = Self { at: Instant::now(), processes: HashMap::new(), kernel_threads: 0, machine };
        let mut text = Vec::new();
        for entry in fs::read_dir("/proc")?.flatten() {
            let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
            if pid == std::process::id() {
                continue;
            }
            // Most that are gone by now were on their way when the list was made.
            let Ok(directory) = ProcessDirectory::open(pid) else { continue };
            let Some(stat) = read(&directory, "stat", &mut text).and_then(status::parse_stat) else { continue };
            if stat.is_kernel_thread() {
                reading.kernel_threads += 1;
                continue;
            }
            let id = Id { pid, start_time: stat.start_time };
            let Some(pages) = pages(&directory, pid, &stat, &mut text) else { continue };
            let mut sample = sample(id, stat, pages);
            if machine.swapped > 0 {
                let known = before.and_then(|before| before.processes.get(&id)).filter(|known| is_as(&sample, known));
                sample.swapped = match known {
                    Some(known) => known.swapped,
                    None => swapped(&directory, &mut text).unwrap_or(0),
                };
            }
            reading.processes.insert(id, sample);
        }
        Ok(reading)
    }
}

/// Whether nothing has become of the process's pages since: it had no page fault, and as many are resident.
fn is_as(now: &Sample, before: &Sample) -> bool {
    (now.faults, now.resident, now.anonymous) == (before.faults, before.resident, before.anonymous)
}

/// Pages that are resident, and those of them that are of files or shared memory.
type Pages = (u64, u64);

/// The pages of a process; `None` when it has ended.
fn pages(directory: &ProcessDirectory, pid: u32, stat: &Stat, text: &mut Vec<u8>) -> Option<Pages> {
    if stat.state != 'Z' {
        return read(directory, "statm", text).and_then(parse_statm);
    }
    if stat.is_over() {
        return None;
    }
    // Its first thread has exited, and has no memory any more; the others have.
    let other = status::other_threads(pid).first().copied()?;
    read(directory, &format!("task/{other}/statm"), text).and_then(parse_statm)
}

/// `SIZE RESIDENT SHARED ...`, in pages (proc_pid_statm(5)).
fn parse_statm(text: &[u8]) -> Option<Pages> {
    let mut fields = std::str::from_utf8(text).ok()?.split_ascii_whitespace().skip(1);
    let mut field = || fields.next()?.parse().ok();
    Some((field()?, field()?))
}

fn sample(id: Id, stat: Stat, (resident, shared): Pages) -> Sample {
    let bytes = |pages: u64| pages.saturating_mul(rustix::param::page_size() as u64);
    Sample {
        id,
        comm: stat.comm,
        at: Instant::now(),
        resident: bytes(resident),
        anonymous: bytes(resident.saturating_sub(shared)),
        swapped: 0,
        faults: stat.faults,
    }
}

fn swapped(directory: &ProcessDirectory, text: &mut Vec<u8>) -> Option<u64> {
    let status = read(directory, "status", text)?;
    kilobytes(&String::from_utf8_lossy(status), "VmSwap:")
}

fn machine(meminfo: &str) -> Machine {
    let field = |name| kilobytes(meminfo, name).unwrap_or(0);
    Machine {
        total: field("MemTotal:"),
        available: field("MemAvailable:"),
        swapped: field("SwapTotal:").saturating_sub(field("SwapFree:")),
    }
}

/// Bytes of the line that begins with `name`, as in `VmSwap:   12 kB`.
fn kilobytes(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    let number: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    number.checked_mul(1024)
}

/// The text of one of the kernel's files, in a buffer that is used again.
fn read<'a>(directory: &ProcessDirectory, name: &str, text: &'a mut Vec<u8>) -> Option<&'a [u8]> {
    text.clear();
    directory.file(name).ok()?.take(MAX_TEXT).read_to_end(text).ok()?;
    Some(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_of_the_kernel() {
        assert_eq!(parse_statm(b"1000 300 100 7 0 200 0\n"), Some((300, 100)));
        for garbage in [&b""[..], b"1 2", b"1 -2 3", b"a b c", b"1 2 \xff"] {
            assert_eq!(parse_statm(garbage), None);
        }
        let meminfo = "MemTotal:  16 kB\nMemAvailable: 8 kB\nSwapTotal: 4 kB\nSwapFree: 1 kB\n";
        assert_eq!(machine(meminfo), Machine { total: 16384, available: 8192, swapped: 3072 });
        assert_eq!(machine(""), Machine::default());
        assert_eq!(kilobytes("VmSwap: 99999999999999999 kB", "VmSwap:"), None);
    }

    #[test]
    fn processes_are_there_and_neither_the_kernel_s_nor_tracer() {
        // It has been loaded when it answers.
        let piped = std::process::Stdio::piped;
        let mut child = std::process::Command::new("cat").stdin(piped()).stdout(piped()).spawn().unwrap();
        io::Write::write_all(child.stdin.as_mut().unwrap(), b"x").unwrap();
        child.stdout.as_mut().unwrap().read_exact(&mut [0]).unwrap();
        let reading = Reading::take(None).unwrap();
        let of = |reading: &Reading, pid| reading.processes.values().find(|sample| sample.id.pid == pid).cloned();
        let found = of(&reading, child.id()).unwrap();
        assert!(found.resident > found.anonymous && found.anonymous > 0 && found.faults > 0, "{found:?}");
        assert!(reading.processes.values().all(|sample| sample.comm != "kthreadd"));
        assert_eq!(of(&reading, std::process::id()), None);
        assert_eq!(of(&Reading::take(Some(&reading)).unwrap(), child.id()).map(|sample| sample.id), Some(found.id));
        child.kill().unwrap();
        // It is a zombie until it is waited for.
        rustix::process::waitid(
            rustix::process::WaitId::Pid(rustix::process::Pid::from_child(&child)),
            rustix::process::WaitIdOptions::EXITED | rustix::process::WaitIdOptions::NOWAIT,
        )
        .unwrap();
        assert_eq!(of(&Reading::take(Some(&reading)).unwrap(), child.id()), None);
        child.wait().unwrap();
    }
}
