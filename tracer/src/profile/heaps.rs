//! The heaps that memory comes from, and how each was seen.

use std::sync::Arc;

use super::quality::Sampling;

/// Where memory comes from.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Heap {
    /// An allocator of C: `malloc` and its family.
    Native,
    /// The Go runtime.
    Go,
    /// The Go runtime of a library: path of that, hostile text.
    GoLibrary(Arc<str>),
}

impl Heap {
    /// Its name in reports.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Native => "native",
            Self::Go | Self::GoLibrary(_) => "go",
        }
    }

    /// The library whose runtime it is of.
    pub fn library(&self) -> Option<&str> {
        match self {
            Self::GoLibrary(path) => Some(path),
            Self::Native | Self::Go => None,
        }
    }
}

/// How one heap of a process was seen.
#[derive(Clone, Debug, PartialEq)]
pub struct SeenHeap {
    /// Which heap it is.
    pub heap: Heap,
    /// How its numbers came about.
    pub mode: Mode,
    /// How good they are where they are estimates.
    pub sampling: Option<Sampling>,
}

/// How the numbers came about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Mode {
    /// Allocations were recorded one by one.
    Exact,
    /// Some allocations were recorded; the numbers are estimates.
    Sampled,
    /// A Go runtime's own profile of its heap was read from memory; the numbers are its estimates.
    GoBuckets,
    /// Read from memory, while the process ran.
    Snapshot,
}
