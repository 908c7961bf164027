//! The heap of a Go process at one moment, and its stacks as people read them.

use std::sync::Arc;

use crate::{
    event::{Image, Pid},
    go::heap::{Collections, HeapSnapshot, Way},
    profile::{Frame, Frames, Heap, Mode, SeenHeap, quality::Sampling},
};

/// The heap of a Go process at one moment.
#[derive(Clone)]
pub struct GoTrace {
    /// The process.
    pub pid: Pid,
    /// Its image.
    pub image: Image,
    /// The library whose runtime it is of; `None` for that of the executable.
    pub library: Option<Arc<str>>,
    /// How it was seen.
    pub way: Way,
    /// How it was seen and why, in a sentence: hostile text.
    pub note: String,
    /// What it holds.
    pub heap: HeapSnapshot,
}

impl GoTrace {
    /// Bytes that are held.
    pub fn held(&self) -> u64 {
        let stacks = self.heap.stacks.iter();
        stacks.map(|stack| stack.values.outstanding_bytes).fold(0, u64::saturating_add)
    }

    /// Whether it is told by a profile of the runtime's own, which no collection has brought up to date while it was traced.
    pub(super) fn is_of_before(&self) -> bool {
        let Collections { seen, collected } = self.heap.collections;
        self.way != Way::Sampled && collected && seen.is_some_and(|(begin, end)| begin == end)
    }

    /// How good its numbers are, where they are estimates, and how many bytes those are of.
    pub(super) fn estimate(&self) -> Option<(Sampling, u64)> {
        self.seen().sampling.map(|sampling| (sampling, self.held()))
    }

    /// How the heap was seen.
    pub(super) fn seen(&self) -> SeenHeap {
        let mode = match self.way {
            Way::Sampled => Mode::Sampled,
            Way::Buckets(_) => Mode::GoBuckets,
        };
        let sampling = self.heap.sampling.as_ref().map(|sampling| Sampling {
            mean_bytes: sampling.mean_bytes,
            samples: sampling.samples,
            relative_error: sampling.relative_error,
        });
        SeenHeap { heap: self.kind(), mode, sampling }
    }

    /// Which heap it is.
    pub(super) fn kind(&self) -> Heap {
        self.library.clone().map_or(Heap::Go, Heap::GoLibrary)
    }

    /// It in words: hostile text.
    pub(super) fn name(&self) -> String {
        match &self.library {
            Some(library) => format!("the Go heap of {library} in process {}", self.pid),
            None => format!("the Go heap of process {}", self.pid),
        }
    }
}

/// A stack without the functions of the Go runtime at its leaf, which allocate on behalf of the program; a stack of nothing
/// else stays as it is (as `writeHeapProto` of runtime/pprof does).
pub(super) fn without_runtime(frames: &Frames) -> Frames {
    let is_runtime = |frame: &Frame| {
        let function = frame.function.as_deref().unwrap_or_default();
        function.starts_with("runtime.") || function.starts_with("internal/runtime/")
    };
    let addresses: Vec<Arc<[Frame]>> = frames.addresses().cloned().collect();
    let own = addresses.iter().rposition(|address| !address.iter().all(is_runtime));
    match own {
        Some(last) => addresses.into_iter().take(last + 1).collect(),
        None => frames.clone(),
    }
}
