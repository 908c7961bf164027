//! What the threads tell.

use std::sync::Arc;

use tracer_ebpf::end;

use crate::{event::Image, files::module::Module, heap::StackIndex, profile::UnwindTable, trails::Site};

/// What has come to be known.
pub enum Resolved {
    /// The BPF side knows the file with this number by now.
    Known {
        /// The number.
        number: u32,
        /// The file; `None` when code is kept in it that was generated at run time.
        module: Option<Arc<Module>>,
        /// What it is unwound by, where somebody has met it or a process that begins has mapped it.
        table: Option<UnwindTable>,
    },
    /// These numbers stand for nothing new any more: nobody has met their files for a while.
    Forgotten(Vec<u32>),
    /// What places of these stacks stand for that lie in no file.
    Located(Vec<Located>),
    /// What follows the places of a stack that ended at a file of which nothing was known, leaf first, and one of
    /// [`tracer_ebpf::end`].
    Unwound {
        /// Which one.
        stack: StackIndex,
        /// Places ([`tracer_ebpf::unwind::place`]).
        places: Vec<u64>,
        /// How it ends.
        end: u32,
    },
    /// The executable mappings of an image have changed.
    Mapped(Image),
    /// All is told that was asked before this number was: see [`Resolvers::settle`].
    Settled(u64),
}

impl Resolved {
    /// Nobody can unwind the rest of a stack.
    pub(super) fn stays_cut(stack: StackIndex) -> Self {
        Self::Unwound { stack, places: Vec::new(), end: end::UNKNOWN_FILE }
    }
}

/// A stack whose places were looked up.
pub struct Located {
    /// Which one.
    pub stack: StackIndex,
    /// Its places, leaf first.
    pub sites: Vec<Site>,
    /// Whether it was cut because nothing proves the next frame.
    pub is_unproved: bool,
}
