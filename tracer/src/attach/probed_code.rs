//! Whether the probes are in the code that a process runs.
//!
//! The kernel puts breakpoints into the process's own copies of the pages. A process that drops those pages (MADV_DONTNEED)
//! or maps others in their place is without them, and nobody says so: it runs on unseen.

use std::os::unix::fs::FileExt as _;

use super::altered::is_probed;
use crate::{
    event::Pid,
    files::module::Module,
    process::memory::{Span, read_spans},
    space::address_space::AddressSpace,
};

/// What a look at the probes has shown.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Look {
    /// How many instructions are without their probe, as far as the process's memory can be read.
    pub(super) missing: usize,
    /// In the place of how many of those there is something else.
    pub(super) replaced: usize,
}

impl std::iter::Sum for Look {
    fn sum<I: Iterator<Item = Self>>(looks: I) -> Self {
        looks.fold(Self::default(), |all, one| Self {
            missing: all.missing + one.missing,
            replaced: all.replaced + one.replaced,
        })
    }
}

/// Probed instructions of one file in one process.
pub(super) struct ProbedCode {
    pid: Pid,
    /// Offset in the file, and the byte there without a probe.
    instructions: Vec<(u64, u8)>,
    /// Where they are in the process, each with that byte.
    places: Vec<(u64, u8)>,
    /// How many of them are nowhere.
    unmapped: usize,
}

impl ProbedCode {
    /// The instructions at `offsets` in the file `module`, which was probed for process `pid`.
    pub(super) fn new(pid: Pid, module: &Module, offsets: &[u64]) -> Self {
        let original = |offset: &u64| {
            let mut byte = [0];
            module.file()?.read_exact_at(&mut byte, *offset).ok()?;
            Some((*offset, byte[0]))
        };
        let mut instructions: Vec<(u64, u8)> = offsets.iter().filter_map(original).collect();
        instructions.sort_unstable();
        instructions.dedup();
        Self { pid, instructions, places: Vec::new(), unmapped: 0 }
    }

    /// Looks up where the instructions are now.
    pub(super) fn locate(&mut self, module: &Module, space: &AddressSpace) {
        self.places.clear();
        self.unmapped = 0;
        for (offset, original) in &self.instructions {
            let before = self.places.len();
            let mappings =
                space.code().filter(|(_, file)| file.is_some_and(|file| file.identity() == module.identity()));
            for (mapping, _) in mappings {
                let inside = offset.checked_sub(mapping.offset).filter(|inside| *inside < mapping.end - mapping.start);
                self.places.extend(inside.map(|inside| (mapping.start + inside, *original)));
            }
            self.unmapped += usize::from(self.places.len() == before);
        }
    }

    /// Whether the instructions have their probes; `None` where nobody can tell.
    pub(super) fn look(&self) -> Option<Look> {
        let spans: Vec<Span> = self.places.iter().map(|(addr, _)| Span { addr: *addr, len: 1 }).collect();
        let mut bytes = vec![0; spans.len()];
        let readable = read_spans(self.pid, &spans, &mut bytes).ok()?;
        let mut look = Look { missing: self.unmapped, replaced: 0 };
        for (((_, original), byte), readable) in self.places.iter().zip(bytes).zip(readable) {
            // What is not there any more has to be looked up again.
            let is_gone = !readable || !is_probed(*original, byte);
            look.missing += usize::from(is_gone);
            look.replaced += usize::from(is_gone && readable && byte != *original);
        }
        Some(look)
    }

    /// How many instructions are probed.
    pub(super) fn instructions(&self) -> usize {
        self.instructions.len()
    }
}
