//! By what mapped memory is told.

use crate::{heap::StackIndex, profile::MappedKind};

/// What memory of one process is told by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Owner {
    /// Stack of the call that mapped it, or that made reserved addresses usable.
    pub stack: StackIndex,
    /// What it is.
    pub kind: MappedKind,
    /// Whether an allocator mapped it whose blocks are recorded.
    pub by_allocator: bool,
}
