//! Stacks as places in files: looked up while the process lives, and kept.

use std::sync::Arc;

use hashbrown::HashSet;
use tracer_ebpf::end;

use crate::{
    collector::Site,
    heap::{Heap, StackIndex, StackKind},
    process::{
        address_space::{AddressSpace, Place},
        memory::Memory,
    },
    unwind::{LONGEST_CALL, ends_with_call},
};

/// The places of all stacks that have some, by [`StackIndex`].
#[derive(Default)]
pub struct Trails {
    sites: Vec<Option<Arc<[Site]>>>,
    /// Those that were cut because nothing proves the next frame.
    unproved: HashSet<StackIndex>,
}

impl Trails {
    /// The places of a stack, leaf first.
    pub fn get(&self, stack: StackIndex) -> Option<&Arc<[Site]>> {
        self.sites.get(stack.index())?.as_ref()
    }

    /// Why the stack has no further place, one of [`end`]; `recorded` is what the BPF side said of it.
    pub fn end(&self, stack: StackIndex, recorded: u32) -> u32 {
        if self.unproved.contains(&stack) { end::NO_RULE } else { recorded }
    }

    /// Looks a stack's addresses up. Whether every one of them has a place.
    pub fn locate(&mut self, heap: &Heap, space: &AddressSpace, stack: StackIndex) -> bool {
        let StackKind::Addresses(addresses) = heap.stacks().kind(stack) else { return true };
        let mut sites: Vec<Site> =
            addresses.iter().map(|addr| Site { addr: *addr, place: space.locate(*addr) }).collect();
        // What is no code is no return address, and what was found by means of it is no stack. The direct caller is certain.
        let code = sites.iter().skip(1).position(|site| matches!(site.place, Place::Unknown)).map(|at| at + 1);
        if let Some(code) = code {
            tracing::trace!(?addresses, code, "cut at what is no code");
            sites.truncate(code);
        }
        if let Some(unproved) = unproved(&sites, space) {
            tracing::trace!(?addresses, unproved, "cut at what no call returns to");
            sites.truncate(unproved);
            self.unproved.insert(stack);
        }
        let complete = code.is_none() && !matches!(sites.first(), Some(Site { place: Place::Unknown, .. }));
        if self.sites.len() <= stack.index() {
            self.sites.resize(stack.index() + 1, None);
        }
        self.sites[stack.index()] = Some(sites.into());
        complete
    }
}

/// The first of `sites` that a frame pointer of generated code led to and that no call returns to: such code may use that
/// register for anything.
fn unproved(sites: &[Site], space: &AddressSpace) -> Option<usize> {
    let guessed = |at: usize| matches!(sites[at - 1].place, Place::Jit(_));
    let first = (1..sites.len()).find(|at| guessed(*at))?;
    let memory = space.memory();
    let follows_call = |site: &Site| match (&memory, site.addr.checked_sub(LONGEST_CALL as u64)) {
        (Ok(memory), Some(start)) => follows_call(memory, start),
        _ => false,
    };
    (first..sites.len()).find(|at| guessed(*at) && !follows_call(&sites[*at]))
}

/// Whether the code that begins at `start` and is as long as the longest call ends with one.
fn follows_call(memory: &Memory, start: u64) -> bool {
    let mut code = [0; LONGEST_CALL];
    // A mapping may begin with the call.
    (0..LONGEST_CALL - 1)
        .find(|skipped| memory.read(start + *skipped as u64, &mut code[*skipped..]).is_ok())
        .is_some_and(|skipped| ends_with_call(&code[skipped..]))
}
