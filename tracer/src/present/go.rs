//! The heap of a Go process at one moment, and its stacks as people read them.

use std::{collections::BTreeMap, sync::Arc};

use crate::{
    event::{Image, Pid},
    go::heap::{Collections, HeapSnapshot, Way},
    profile::{Frame, Frames, Heap, Mode, Process, SeenHeap, quality::Sampling},
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

/// Has the Go heaps explain what has come to them of their processes' memory; `place`: which process of these an image is. How many
/// of them are told by a profile of before that, and leave out what has come since.
pub(super) fn explain(go: &[GoTrace], processes: &mut [Process], place: impl Fn(Image) -> Option<usize>) -> u64 {
    let mut by_process: BTreeMap<usize, Vec<&GoTrace>> = BTreeMap::new();
    for go in go {
        if let Some(place) = place(go.image) {
            by_process.entry(place).or_default().push(go);
        }
    }
    let mut old = 0;
    for (place, heaps) in by_process {
        let Some(memory) = processes[place].memory.as_mut() else { continue };
        let sum = |bytes: fn(&HeapSnapshot) -> u64| heaps.iter().map(|go| bytes(&go.heap)).fold(0, u64::saturating_add);
        if memory.explain_go(sum(|heap| heap.allocated), sum(|heap| heap.goroutine_stacks)) {
            old += heaps.iter().filter(|go| go.is_of_before()).count() as u64;
        }
    }
    old
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::profile::{Language, Memory};

    const MIB: u64 = 1 << 20;

    /// A heap of image 7 that is told by its own profile, with collections while it was traced or not.
    fn heap(collections: u64, allocated: u64) -> GoTrace {
        let collections = Collections { seen: Some((5, 5 + collections)), collected: true };
        let heap = HeapSnapshot { allocated, collections, ..HeapSnapshot::default() };
        GoTrace { pid: 4711, image: Image(7), library: None, way: Way::Buckets(1), note: String::new(), heap }
    }

    /// How many heaps are of before, and what is not explained of 100 MiB that have come.
    fn explained(heaps: &[GoTrace]) -> (u64, u64) {
        let mut process = Process::new(4711, String::new(), String::new(), Language::Go);
        // What was held before explains nothing.
        let memory = Memory { fresh: 100 * MIB, in_go: 100 * MIB, recorded: 1 << 40, ..Memory::default() };
        process.memory = Some(memory);
        let mut processes = [process];
        let old = explain(heaps, &mut processes, |image| (image == Image(7)).then_some(0));
        (old, processes[0].memory.as_ref().map_or(0, |memory| memory.unexplained))
    }

    #[test]
    fn heaps_explain_what_was_allocated_in_them_and_no_more() {
        assert_eq!(explained(&[heap(0, 0)]), (1, 100 * MIB));
        assert_eq!(explained(&[heap(1, 0)]), (0, 100 * MIB));
        assert_eq!(explained(&[heap(2, 100 * MIB)]), (0, 0));
        assert_eq!(explained(&[heap(3, 50 * MIB), heap(0, 45 * MIB)]), (0, 5 * MIB), "two heaps of a process");
        assert_eq!(explained(&[GoTrace { image: Image(8), ..heap(3, 100 * MIB) }]), (0, 0), "of another one");
    }
}
