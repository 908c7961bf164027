//! What the desk hears of.

use std::{ops::Range, sync::Arc};

use tracer_ebpf::unwind::FileKey;

use super::{reader::Reading, rests::Rest, worker::Done};
use crate::{
    event::{Image, Pid, UnknownFile},
    files::module::Module,
    heap::StackIndex,
    trails::Site,
};

/// A mapping of a file: addresses, and the file.
pub(super) type Mapped = (Range<u64>, Arc<Module>);

/// What is to be done when files are known.
pub(super) type Then = Box<dyn FnOnce() + Send>;

/// What the desk hears of.
pub(super) enum Input {
    Ask(Ask),
    /// Work was done; unless `is_last`, there is more to come of it.
    Done {
        worker: usize,
        done: Done,
        is_last: bool,
    },
    /// Mappings were read.
    Read(Reading),
    /// Nobody asks any more.
    End,
}

/// What is asked.
pub(super) enum Ask {
    /// What a process has mapped is to be known.
    Follow(Pid, Vec<Mapped>, Then),
    Began {
        image: Image,
        pid: Pid,
        program: Option<FileKey>,
    },
    Ended(Image),
    Find(Pid, UnknownFile),
    Retry(u32),
    Locate(Image, Vec<(StackIndex, Vec<Site>)>),
    /// The mappings of an image are about to be read.
    Reads(Image, Pid),
    Unwind(Image, u32, Box<(StackIndex, Rest)>),
    Machine {
        at_once: bool,
    },
    Settle {
        number: u64,
        is_last: bool,
    },
}
