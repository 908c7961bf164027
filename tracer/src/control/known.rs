//! Programs that were looked at: what a process is that runs one again need not be read again, and is known of one that is over before
//! anybody could read it.

use hashbrown::HashMap;
use tracer_ebpf::unwind::FileKey;

use crate::{
    attach::{Allocators, Program, probes::Probes},
    profile::Language,
};

/// Most of them.
const MAX_KNOWN: usize = 4096;

/// What is known of a program.
pub struct Known {
    /// Its path, as the process that was looked at saw it: hostile text.
    pub exe: String,
    /// What it is written in.
    pub language: Language,
    allocators: Allocators,
}

impl Known {
    /// Since when whoever runs it has probes from its first instruction on, nanoseconds of CLOCK_MONOTONIC.
    pub fn covered_since(&self, probes: &Probes) -> Option<u64> {
        probes.covered_since(&self.allocators)
    }
}

/// Programs by what the kernel knows their files by.
#[derive(Default)]
pub(super) struct KnownPrograms(HashMap<FileKey, Known>);

impl KnownPrograms {
    /// What is known of a program.
    pub(super) fn get(&self, program: Option<FileKey>) -> Option<&Known> {
        self.0.get(&program?)
    }

    /// Whether a program was looked at that a process has run since then, and had probes in it from its first instruction on: nanoseconds
    /// of CLOCK_MONOTONIC.
    pub(super) fn knows(&self, program: Option<(FileKey, u64)>, probes: &Probes) -> bool {
        let Some((program, began)) = program else { return false };
        let since = self.get(Some(program)).and_then(|known| known.covered_since(probes));
        since.is_some_and(|since| since <= began)
    }

    /// A program was looked at. What has another heap than that of its allocator is looked at each time.
    pub(super) fn learn(&mut self, program: Option<FileKey>, seen: &Program) {
        let (Some(program), Some(allocators)) = (program, &seen.allocators) else { return };
        if seen.has_go || self.0.len() >= MAX_KNOWN && !self.0.contains_key(&program) {
            return;
        }
        let (exe, language) = (seen.process.exe.clone(), seen.process.language);
        self.0.insert(program, Known { exe, language, allocators: allocators.clone() });
    }
}
