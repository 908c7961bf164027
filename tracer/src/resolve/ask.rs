//! What the desk hears of.

use tracer_ebpf::unwind::FileKey;

use super::{reader::Reading, rests::Rest, worker::Done};
use crate::{
    event::{Image, Pid, UnknownFile},
    heap::StackIndex,
    space::address_space::AddressSpace,
    trails::Site,
};

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
    Follow(Box<AddressSpace>, Then),
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
