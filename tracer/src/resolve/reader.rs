//! What reads the mappings of processes that may be gone in a moment, for the rests of their stacks: a thread that does nothing else,
//! and is asked by who takes the stacks in.

use std::sync::mpsc;

use super::rests::Found;
use crate::{
    bpf::CodeChanges,
    event::{Image, Pid},
    priority,
    space::address_space::AddressSpace,
};

/// What came of reading the mappings of an image.
pub(super) struct Reading {
    pub(super) image: Image,
    pub(super) found: Found<Box<AddressSpace>>,
}

/// Reads what it is asked for, until nobody asks any more.
pub(super) fn run(asked: &mpsc::Receiver<(Image, Pid)>, changes: &CodeChanges, tell: impl Fn(Reading)) {
    priority::set_own(priority::URGENT);
    for (image, pid) in asked {
        let before = changes.of(pid);
        let mut space = Box::new(AddressSpace::new(pid));
        let is_read = space.refresh().is_ok();
        let appeared = changes.latest(pid);
        let found = match (before, changes.of(pid)) {
            (Some(before), Some(after)) if is_read && before == after => {
                Found::These { changes: after, appeared, mappings: space }
            }
            (Some(_), Some(_)) if is_read => Found::Changed,
            _ => Found::Nothing,
        };
        tell(Reading { image, found });
    }
}
