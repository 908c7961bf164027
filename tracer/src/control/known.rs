//! Programs that were looked at: what a process is that runs one again need not be read again, and is known of one that is over before
//! anybody could read it.

use hashbrown::HashMap;
use tracer_ebpf::unwind::FileKey;

use crate::{
    attach::{Allocators, OwnAllocator, Program, probes::Probes},
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
pub(super) struct KnownPrograms {
    looked_at: HashMap<FileKey, Known>,
    /// Of those that were over before that: the allocator in the program's own file.
    ended: HashMap<FileKey, OwnAllocator>,
    /// How many of them are being looked at.
    asked: usize,
}

/// Whether something may have been allocated unseen by a process that was over before it was looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Doubt {
    None,
    /// If nothing was recorded of it.
    IfSilent,
    /// It has an allocator of its own that had no probes.
    Certain,
}

impl KnownPrograms {
    /// What is known of a program.
    pub(super) fn get(&self, program: Option<FileKey>) -> Option<&Known> {
        self.looked_at.get(&program?)
    }

    /// What is not known of a process that was over before it was looked at: what its program is known by, and since when it was that, nanoseconds
    /// of CLOCK_MONOTONIC.
    pub(super) fn doubt(&self, program: Option<(FileKey, u64)>, probes: &Probes) -> Doubt {
        let Some((program, began)) = program else { return Doubt::IfSilent };
        let is_covered = |since: Option<u64>| since.is_some_and(|since| since <= began);
        match (self.looked_at.get(&program), self.ended.get(&program)) {
            (Some(known), _) if is_covered(known.covered_since(probes)) => Doubt::None,
            (Some(_), _) | (None, Some(OwnAllocator::Hidden)) => Doubt::Certain,
            (None, Some(OwnAllocator::Known(own))) if !is_covered(probes.covered_since(own)) => Doubt::Certain,
            (None, _) => Doubt::IfSilent,
        }
    }

    /// Whether a program that was over before it was looked at is to be looked at: it was not yet.
    pub(super) fn is_new(&mut self, program: FileKey) -> bool {
        let is_new = !self.looked_at.contains_key(&program) && !self.ended.contains_key(&program);
        if is_new && self.ended.len() < MAX_KNOWN {
            self.ended.insert(program, OwnAllocator::None);
            self.asked += 1;
            return true;
        }
        false
    }

    /// The allocator of a file that nobody need have mapped any more, if somebody has looked; that there is none until then.
    pub(super) fn own_allocator(&self, file: &FileKey) -> Option<&OwnAllocator> {
        self.ended.get(file)
    }

    /// A program that was over has this allocator in its own file, or a library that was found in nobody.
    pub(super) fn learn_of_ended(&mut self, program: FileKey, own: OwnAllocator) {
        self.ended.insert(program, own);
        self.asked = self.asked.saturating_sub(1);
    }

    /// Whether some are being looked at.
    pub(super) fn waits(&self) -> bool {
        self.asked > 0
    }

    /// A program was looked at. What has another heap than that of its allocator is looked at each time.
    pub(super) fn learn(&mut self, program: Option<FileKey>, seen: &Program) {
        let (Some(program), Some(allocators)) = (program, &seen.allocators) else { return };
        if seen.has_go || self.looked_at.len() >= MAX_KNOWN && !self.looked_at.contains_key(&program) {
            return;
        }
        let (exe, language) = (seen.process.exe.clone(), seen.process.language);
        self.looked_at.insert(program, Known { exe, language, allocators: allocators.clone() });
    }
}
