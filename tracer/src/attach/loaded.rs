//! Files whose code a process has mapped while it was traced. Those that allocate are found by looks at its mappings, from time to time; for
//! what it has mapped since the last one there is [`last_look`](super::last_look).

use std::collections::VecDeque;

use tracer_ebpf::unwind::FileKey;

use super::find::Allocators;

/// Most of a process: code that is generated may be in files, too.
pub(super) const MOST: usize = 64;

/// Those of a process, the latest last.
#[derive(Default)]
pub(super) struct Loaded {
    /// With when they were mapped, nanoseconds of CLOCK_MONOTONIC.
    pub(super) files: VecDeque<(FileKey, u64)>,
    /// Versions of the files that had probes, where nothing else of them is kept.
    pub(super) probed: Vec<(u64, u64)>,
}

impl Loaded {
    /// Nothing but this is kept of a process's allocators.
    pub(super) fn keep_what_was_probed(&mut self, allocators: Option<&Allocators>) {
        if !self.files.is_empty() {
            let files = allocators.into_iter().flat_map(Allocators::files);
            self.probed = files.map(|allocator| allocator.module.version()).collect();
        }
    }
}
