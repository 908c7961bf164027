//! How much memory a process has, from `/proc/PID/smaps_rollup`, `status` and `smaps`: text of the kernel's
//! (`show_smap` and `proc_task_name` of fs/proc), read with bounds.

use std::{
    fs,
    io::{self, BufRead, BufReader, Read as _},
    ops::Range,
};

use super::maps;
use crate::files::root::ProcessDirectory;

/// Most mappings that are looked at one by one.
const MAX_REGIONS: usize = 1 << 15;
/// Longest text that is read of a file with a fixed number of lines, bytes.
const MAX_SUMMARY: u64 = 1 << 16;
/// Longest line: that of a mapping with a path of PATH_MAX escaped bytes.
const MAX_LINE: u64 = 4 * 4096 + 256;

/// Memory of a process, bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Anonymous memory, also what is swapped out; without what the process has told the kernel to take (MADV_FREE).
    pub anonymous: u64,
    /// Pages of mapped files.
    pub file: u64,
    /// Pages of shared memory.
    pub shared: u64,
}

/// A mapping whose pages are the process's own once it writes to them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Region {
    /// Its addresses.
    pub range: Range<u64>,
    /// What the kernel calls it: a path, `[heap]`, or nothing. Hostile text.
    pub name: String,
    /// Anonymous memory in it, as in [`Usage`].
    pub anonymous: u64,
    /// Whether it can be used at all; guards of stacks, and what is only reserved, cannot.
    pub usable: bool,
}

/// What the process has now. The kernel's summary of its page tables; its counters, which are a little rougher, where that cannot be
/// read.
///
/// # Errors
/// The process has ended, or no right to look at it.
pub fn usage(process: &ProcessDirectory) -> io::Result<Usage> {
    let status = counted(process)?;
    Ok(match summary(process, "smaps_rollup") {
        Ok(text) => {
            let pages = Pages::default().with(&text);
            // The summary of a process that is about to end has no line.
            if pages.lines == 0 { status } else { Usage { anonymous: pages.held(), ..status } }
        }
        Err(_) => status,
    })
}

/// The same by the kernel's counters alone, which costs next to nothing.
///
/// # Errors
/// As for [`usage`].
pub fn counted(process: &ProcessDirectory) -> io::Result<Usage> {
    let text = summary(process, "status")?;
    let field = |name: &str| text.lines().find_map(|line| kilobytes(line, name));
    // One that has ended has no memory, and no such lines.
    let anonymous = field("RssAnon:").ok_or(io::ErrorKind::NotFound)?;
    Ok(Usage {
        anonymous: anonymous.saturating_add(field("VmSwap:").unwrap_or(0)),
        file: field("RssFile:").unwrap_or(0),
        shared: field("RssShmem:").unwrap_or(0),
    })
}

/// Whether the kernel gives huge pages to who has not asked for them. Then much of what is new was touched by nobody, and lies between what
/// was.
pub fn huge_pages_come_unasked() -> bool {
    fs::read_to_string("/sys/kernel/mm/transparent_hugepage/enabled").is_ok_and(|enabled| enabled.contains("[always]"))
}

/// The mappings that can hold anonymous memory, and guards, by address.
///
/// # Errors
/// As for [`usage`]; or there are more than can be looked at.
pub fn regions(process: &ProcessDirectory) -> io::Result<Vec<Region>> {
    read_regions(BufReader::with_capacity(1 << 16, process.file("smaps")?))
}

fn read_regions(mut text: impl BufRead) -> io::Result<Vec<Region>> {
    let mut regions: Vec<Region> = Vec::new();
    let mut pages = Pages::default();
    let mut line = Vec::new();
    let mut all = 0;
    let mut wanted = false;
    let finish = |regions: &mut Vec<Region>, pages: &mut Pages, wanted: bool| {
        if let (true, Some(region)) = (wanted, regions.last_mut()) {
            region.anonymous = pages.held();
        }
        *pages = Pages::default();
    };
    loop {
        line.clear();
        let read = text.by_ref().take(MAX_LINE).read_until(b'\n', &mut line)?;
        let mapping = line.strip_suffix(b"\n").and_then(maps::parse_line);
        if read == 0 || mapping.is_some() {
            finish(&mut regions, &mut pages, wanted);
        }
        if read == 0 {
            return Ok(regions);
        }
        let Some(mapping) = mapping else {
            pages.add(&String::from_utf8_lossy(&line));
            continue;
        };
        all += 1;
        if all > MAX_REGIONS {
            return Err(io::Error::other("it has too many mappings"));
        }
        let permissions = line.split(|byte| *byte == b' ').nth(1).unwrap_or_default();
        wanted = permissions.last() == Some(&b'p');
        if wanted {
            let usable = permissions != b"---p";
            regions.push(Region { range: mapping.start..mapping.end, name: mapping.path, anonymous: 0, usable });
        }
    }
}

/// Sums over lines of smaps, kilobytes taken for bytes.
#[derive(Clone, Copy, Default)]
struct Pages {
    anonymous: u64,
    swap: u64,
    given_up: u64,
    lines: usize,
}

impl Pages {
    fn with(mut self, text: &str) -> Self {
        text.lines().for_each(|line| self.add(line));
        self
    }

    fn add(&mut self, line: &str) {
        let fields =
            [("Anonymous:", &mut self.anonymous), ("Swap:", &mut self.swap), ("LazyFree:", &mut self.given_up)];
        for (name, field) in fields {
            if let Some(bytes) = kilobytes(line, name) {
                *field = field.saturating_add(bytes);
                self.lines += 1;
            }
        }
    }

    fn held(&self) -> u64 {
        self.anonymous.saturating_sub(self.given_up).saturating_add(self.swap)
    }
}

/// Bytes of a line like `Swap:      12 kB`.
fn kilobytes(line: &str, name: &str) -> Option<u64> {
    let number: u64 = line.strip_prefix(name)?.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(number.saturating_mul(1024))
}

fn summary(process: &ProcessDirectory, name: &str) -> io::Result<String> {
    Ok(String::from_utf8_lossy(&process.text(name, MAX_SUMMARY)?).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    const SMAPS: &str = "\
5500-5600 rw-p 00000000 00:00 0                          [heap]
Size:                132 kB
Rss:                  64 kB
Anonymous:            60 kB
LazyFree:              8 kB
Swap:                  4 kB
SwapPss:               4 kB
VmFlags: rd wr mr mw me ac
7f00-7f10 ---p 00000000 00:00 0
Anonymous:             0 kB
7f10-7f20 rw-s 00000000 00:01 77                         /dev/shm/Anonymous: 5 kB
Anonymous:            40 kB
7f20-7f30 r--p 00000000 fd:01 78                         /usr/lib/a
Anonymous:            12 kB
Swap:                 no kB
";

    #[test]
    fn private_mappings_with_their_anonymous_memory() {
        let region = |range, name: &str, kilobytes: u64, usable| Region {
            range,
            name: name.to_owned(),
            anonymous: kilobytes * 1024,
            usable,
        };
        assert_eq!(
            read_regions(SMAPS.as_bytes()).unwrap(),
            [
                region(0x5500..0x5600, "[heap]", 56, true),
                region(0x7f00..0x7f10, "", 0, false),
                region(0x7f20..0x7f30, "/usr/lib/a", 12, true),
            ]
        );
    }

    #[test]
    fn there_is_an_end_to_mappings() {
        let text = "5500-5600 rw-p 00000000 00:00 0\nAnonymous: 4 kB\n".repeat(MAX_REGIONS);
        assert_eq!(read_regions(text.as_bytes()).unwrap().len(), MAX_REGIONS);
        assert!(read_regions(format!("{text}5500-5600 rw-p 00000000 00:00 0\n").as_bytes()).is_err());
        for garbage in ["", "\n\n", "Anonymous: -5 kB\n", "zz-1 rw-p", "Swap: 99999999999999999999 kB\n"] {
            assert_eq!(read_regions(garbage.as_bytes()).unwrap(), [], "{garbage}");
        }
    }

    #[test]
    fn what_is_touched_is_seen() {
        let process = ProcessDirectory::open(std::process::id()).unwrap();
        let before = usage(&process).unwrap();
        let held = vec![1_u8; 64 << 20];
        let after = usage(&process).unwrap();
        let grown = after.anonymous - before.anonymous;
        // Other tests run in the same process.
        assert!(grown > 40 << 20, "{grown}");
        let address = held.as_ptr() as u64;
        let regions = regions(&process).unwrap();
        let region = regions.iter().find(|region| region.range.contains(&address)).unwrap();
        assert!(region.anonymous >= 64 << 20 && region.usable, "{region:?}");
        assert!(counted(&process).unwrap().anonymous.abs_diff(after.anonymous) < 32 << 20);
        assert!(after.file > 0);
    }

    #[test]
    fn the_dead_have_no_memory() {
        let mut child = std::process::Command::new("true").spawn().unwrap();
        let process = ProcessDirectory::open(child.id()).unwrap();
        child.wait().unwrap();
        assert!(usage(&process).is_err() && counted(&process).is_err() && regions(&process).is_err());
    }
}
