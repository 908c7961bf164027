//! How much memory tracer takes: one bound, and what share of it each part may have.

use std::fs;

use crate::process::cgroups;

/// What the program takes before it has recorded anything, bytes.
const PROGRAM: u64 = 64 << 20;
/// Smallest bound, bytes.
pub const LEAST: u64 = 128 << 20;
/// Share of the machine's memory that is the bound unless it is said otherwise.
const SHARE: u64 = 8;

/// Most that one live block takes, bytes: 48 in the emptiest tables, twice that where they are changed while somebody looks at them, or are full of
/// places where blocks have been.
pub const BLOCK: u64 = 96;
/// What one takes besides while it is younger than the age that is asked for: its part of what its stack holds in such.
pub const YOUNG: u64 = 40;
/// What a stack takes besides its frames, bytes: its amounts, their history (128 bytes), both twice
/// where they are changed while somebody looks at them, its identity, and its line of a report.
pub const STACK: u64 = 600;
/// What each of its frames takes, bytes: a place, a name, and their part of a report.
pub const FRAME: u64 = 40;
/// What each different place takes with its names, bytes.
pub const PLACE: u64 = 400;

/// What the address of a sampled block takes in the kernel, bytes; and most of them.
const SAMPLE: u64 = 80;
const MOST_SAMPLES: u32 = 1 << 22;
/// What the state of a thread that allocates takes in the kernel, bytes, but for those of the first hundred; and least and most of them.
const THREAD: u64 = 64 << 10;
const THREADS: (u32, u32) = (1 << 12, 1 << 16);
/// What a range takes that a process has mapped itself, bytes: its place in a tree, and its part of an answer.
const RANGE: u64 = 160;

/// A bound, and the shares of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Memory {
    /// What is left besides the program, bytes.
    rest: u64,
}

impl Memory {
    /// The shares of `bound` bytes, of which the program itself and a ring buffer of `buffer` bytes take a part.
    pub fn within(bound: u64, buffer: u32) -> Self {
        Self { rest: bound - (PROGRAM + u64::from(buffer)).min(bound / 2) }
    }

    /// For copies of what names the addresses of files, bytes.
    pub fn for_names(self) -> u64 {
        self.rest / 8
    }

    /// For copies of files that lie where they may not be readable in a moment, bytes.
    pub fn for_copies(self) -> u64 {
        self.rest / 8
    }

    /// Most threads whose calls are followed at a time.
    pub fn threads(self) -> u32 {
        u32::try_from(self.rest / 8 / THREAD).unwrap_or(u32::MAX).clamp(THREADS.0, THREADS.1)
    }

    /// For memory of stacks that are yet to be unwound, bytes.
    pub fn for_rests(self) -> u64 {
        self.rest / 8
    }

    /// For blocks and stacks together, reports of them included, bytes.
    pub fn for_books(self) -> u64 {
        self.rest / 2
    }

    /// Most ranges that processes have mapped themselves: a sixteenth of the books, which each block and stack leaves free.
    pub fn ranges(self) -> usize {
        usize::try_from(self.for_books() / 16 / RANGE).unwrap_or(usize::MAX).clamp(1 << 10, 1 << 20)
    }

    /// Most blocks, if each takes so many bytes: they cannot be folded, so a part is left for stacks.
    pub fn blocks(self, block: u64) -> u64 {
        self.for_books() / 4 * 3 / block
    }

    /// Most samples that the kernel keeps the addresses of, at [`SAMPLE`] bytes each.
    pub fn samples(self) -> u32 {
        u32::try_from(self.for_books() / 4 / SAMPLE).unwrap_or(u32::MAX).clamp(1, MOST_SAMPLES)
    }

    /// Most stacks that are told apart.
    pub fn stacks(self, most: usize) -> usize {
        usize::try_from(self.for_books() / STACK).unwrap_or(most).min(most)
    }
}

/// The bound unless it is said otherwise: a share of what there is for this process, bytes.
pub fn default_bound() -> u64 {
    let machine = fs::read_to_string("/proc/meminfo").ok().and_then(|text| total(&text));
    let cgroups = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let limits =
        limit_files(&cgroups).into_iter().filter_map(|path| fs::read_to_string(path).ok()?.trim().parse().ok());
    limits.chain(machine).min().map_or(LEAST, |there_is: u64| (there_is / SHARE).max(LEAST))
}

/// The machine's memory, bytes, from `/proc/meminfo`.
fn total(text: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}

/// Files that may hold a limit for this process, from `/proc/self/cgroup`: those of its cgroup, and of all above it.
fn limit_files(cgroups: &str) -> Vec<String> {
    let mut files = Vec::new();
    for membership in cgroups::parse(cgroups) {
        let (folder, file) = if membership.is_v2() {
            ("/sys/fs/cgroup", "memory.max")
        } else if membership.has("memory") {
            ("/sys/fs/cgroup/memory", "memory.limit_in_bytes")
        } else {
            continue;
        };
        files.extend(
            cgroups::ancestors(&membership.path).map(|path| format!("{folder}{}/{file}", path.trim_end_matches('/'))),
        );
    }
    files
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_shares_are_less_than_the_whole() {
        for bound in [LEAST, 1 << 30, 1 << 40, u64::MAX] {
            let memory = Memory::within(bound, 0);
            let others = memory.for_names() + memory.for_copies() + memory.for_rests() + PROGRAM;
            assert!(others + memory.for_books() <= bound);
            let threads = u64::from(memory.threads()) * THREAD;
            assert!(others + memory.for_books() + threads <= bound.max(1 << 31), "but for some thousand in any case");
            assert!(Memory::within(bound, 1 << 26).rest <= memory.rest);
            assert!(memory.blocks(BLOCK) * BLOCK < memory.for_books());
            assert!(memory.stacks(usize::MAX) as u64 * STACK <= memory.for_books());
        }
        assert_eq!(Memory::within(1 << 40, 0).stacks(5), 5);
    }

    #[test]
    fn limits_of_both_versions_of_cgroups() {
        let text = "5:cpu,memory:/a/b\n1:name=systemd:/x\n0::/c.slice\n";
        assert_eq!(
            limit_files(text),
            [
                "/sys/fs/cgroup/memory/a/b/memory.limit_in_bytes",
                "/sys/fs/cgroup/memory/a/memory.limit_in_bytes",
                "/sys/fs/cgroup/memory/memory.limit_in_bytes",
                "/sys/fs/cgroup/c.slice/memory.max",
                "/sys/fs/cgroup/memory.max",
            ]
        );
        assert_eq!(total("MemTotal:       16 kB\nMemFree: 1 kB\n"), Some(16_384));
        assert!(default_bound() >= LEAST);
    }
}
