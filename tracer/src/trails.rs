//! Stacks as places in files: looked up while the process lives, and kept.

use std::sync::Arc;

use hashbrown::{HashMap, HashSet};
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

/// The places of a stack, leaf first. Stacks share them: a hundred thousand are made of a few thousand.
pub type Sites = Arc<[Arc<Site>]>;

/// The places of all stacks that have some, by [`StackIndex`].
#[derive(Default)]
pub struct Trails {
    sites: Vec<Option<Sites>>,
    /// Every place that a stack has gone through: by address, owner and offset in that.
    places: HashMap<(u64, usize, u64), Arc<Site>>,
    /// Places of all stacks together, each as often as it is in one.
    frames: usize,
    /// Those that were cut because nothing proves the next frame.
    unproved: HashSet<StackIndex>,
}

impl Trails {
    /// The places of a stack, leaf first.
    pub fn get(&self, stack: StackIndex) -> Option<&Sites> {
        self.sites.get(stack.index())?.as_ref()
    }

    /// Every stack that has places, and how many.
    pub fn lengths(&self) -> impl Iterator<Item = (StackIndex, usize)> {
        let known = self.sites.iter().enumerate();
        known.filter_map(|(index, sites)| Some((StackIndex::from_raw(index as u32), sites.as_ref()?.len())))
    }

    /// How many places all stacks have together, each as often as it is in one; and how many different ones there are.
    pub fn size(&self) -> (usize, usize) {
        (self.frames, self.places.len())
    }

    /// Forgets the places of these stacks, and those that no other stack has.
    pub fn forget(&mut self, stacks: &[StackIndex]) {
        for stack in stacks {
            let sites = self.sites.get_mut(stack.index()).and_then(Option::take);
            self.frames -= sites.map_or(0, |sites| sites.len());
            self.unproved.remove(stack);
        }
        self.places.retain(|_, site| Arc::strong_count(site) > 1);
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
        let sites: Sites = sites.into_iter().map(|site| self.shared(site)).collect();
        self.frames += sites.len();
        let before = self.sites[stack.index()].replace(sites);
        self.frames -= before.map_or(0, |before| before.len());
        complete
    }

    /// The one that stands for all places like this one.
    fn shared(&mut self, site: Site) -> Arc<Site> {
        let offset = if let Place::File(location) = &site.place { location.offset } else { 0 };
        let key = (site.addr, site.place.owner(), offset);
        Arc::clone(self.places.entry(key).or_insert_with(|| Arc::new(site)))
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
