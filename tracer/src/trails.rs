//! Stacks as places in files: looked up while the process lives, and kept.

use std::{os::unix::fs::FileExt as _, sync::Arc};

use hashbrown::HashMap;
use tracer_ebpf::{end, unwind::place};

use crate::{
    cow::Chunks,
    files::module::Location,
    files::registry::Files,
    heap::StackIndex,
    space::address_space::{AddressSpace, Place},
    unwind::ends_a_call,
};

/// One frame of a stack: what the return address points to; of code that was interrupted, one byte on from that.
#[derive(Clone, Debug)]
pub struct Site {
    /// That address; 0 where it lies in a file, which may be mapped anywhere.
    pub addr: u64,
    /// The file and offset it lies in.
    pub place: Place,
}

impl Site {
    /// Whether it lies in a file that is not known, but may be one day.
    pub fn is_pending(&self) -> bool {
        self.addr == 0 && matches!(self.place, Place::Unknown)
    }

    /// Whether its caller was found by a frame pointer that its code may use for anything: code that was generated, or is in a file of
    /// another format than programs have.
    fn is_guess(&self) -> bool {
        match &self.place {
            Place::Jit(_) => true,
            Place::File(location) => location.module.is_guessed(),
            Place::Unknown => false,
        }
    }
}

/// The places of a stack, leaf first. Stacks share them: a hundred thousand are made of a few thousand.
pub type Sites = Arc<[Arc<Site>]>;

/// The places of all stacks that have some, by the [`StackIndex`] of the first stack with its id.
#[derive(Default)]
pub struct Trails {
    known: KnownTrails,
    /// Every place that a stack has gone through: by address where it is one, owner and offset in that.
    places: HashMap<(u64, usize, u64), Arc<Site>>,
    /// Places of all stacks together, each as often as it is in one.
    frames: usize,
}

/// The places of each stack, by its index.
#[derive(Default)]
pub struct KnownTrails(Chunks<Option<Kept>>);

/// Those of one.
#[derive(Clone)]
struct Kept {
    sites: Sites,
    /// Whether it was cut because nothing proves the next frame.
    is_unproved: bool,
}

impl KnownTrails {
    /// The places of a stack, leaf first.
    pub fn get(&self, stack: StackIndex) -> Option<&Sites> {
        self.0.get(stack.index())?.as_ref().map(|kept| &kept.sites)
    }

    /// Why the stack has no further place, one of [`end`]; `recorded` is what the BPF side said of it.
    pub fn end(&self, stack: StackIndex, recorded: u32) -> u32 {
        let is_unproved = self.0.get(stack.index()).and_then(Option::as_ref).is_some_and(|kept| kept.is_unproved);
        if is_unproved { end::NO_RULE } else { recorded }
    }
}

impl Trails {
    /// The places of a stack, leaf first.
    pub fn get(&self, stack: StackIndex) -> Option<&Sites> {
        self.known.get(stack)
    }

    /// The places of all of them as they are now.
    pub fn share(&mut self) -> KnownTrails {
        KnownTrails(self.known.0.share())
    }

    /// Every stack that has places.
    pub fn stacks(&self) -> impl Iterator<Item = StackIndex> {
        let known = self.known.0.iter().enumerate().filter(|(_, kept)| kept.is_some());
        known.map(|(index, _)| StackIndex::from_raw(index as u32))
    }

    /// How many places all stacks have together, each as often as it is in one; and how many different ones there are.
    pub fn size(&self) -> (usize, usize) {
        (self.frames, self.places.len())
    }

    /// Forgets the places of these stacks, and those that no other stack has.
    pub fn forget(&mut self, stacks: &[StackIndex]) {
        for stack in stacks {
            let kept = self.known.0.get_mut(stack.index()).and_then(Option::take);
            self.frames -= kept.map_or(0, |kept| kept.sites.len());
        }
        self.places.retain(|_, site| Arc::strong_count(site) > 1);
    }

    /// Keeps what the places of a stack stand for. `is_unproved`: it was cut because nothing proves the next frame.
    pub fn keep(&mut self, stack: StackIndex, sites: Vec<Site>, is_unproved: bool) {
        let sites: Sites = sites.into_iter().map(|site| self.shared(site)).collect();
        self.frames += sites.len();
        let before = self.known.0.at(stack.index()).replace(Kept { sites, is_unproved });
        self.frames -= before.map_or(0, |before| before.sites.len());
    }

    /// The one that stands for all places like this one.
    fn shared(&mut self, site: Site) -> Arc<Site> {
        let offset = if let Place::File(location) = &site.place { location.offset } else { 0 };
        let key = (site.addr, site.place.owner(), offset);
        Arc::clone(self.places.entry(key).or_insert_with(|| Arc::new(site)))
    }
}

/// What the places of a stack stand for, as far as files tell.
#[derive(Debug)]
pub enum Draft {
    /// One is in the file with this number, which nobody knows yet.
    Waiting(u32),
    /// All are in files: the stack as it is.
    InFiles(Vec<Site>),
    /// Some are mere addresses, or led to by guesses: to be completed ([`complete`]).
    Addresses(Vec<Site>),
}

/// Looks up what files tell of a stack, which ended as one of [`end`] says.
pub fn draft(places: &[u64], end: u32, files: &Files) -> Draft {
    let numbers = places.iter().filter_map(|place| place::file(*place));
    if let Some((number, _)) = numbers.into_iter().find(|(number, _)| !files.knows(*number)) {
        return Draft::Waiting(number);
    }
    let mut sites: Vec<Site> = places.iter().map(|place| site(*place, files)).collect();
    // The BPF side has gone on only from what was code at that moment, whatever is mapped there by now. The root is code, too.
    let code = if end == end::ROOT { sites.len() } else { sites.len().saturating_sub(1) };
    for site in sites[..code].iter_mut().filter(|site| site.addr != 0) {
        site.place = Place::Jit(None);
    }
    if sites.iter().any(|site| site.addr != 0 || site.is_guess()) {
        return Draft::Addresses(sites);
    }
    cut_at_no_code(&mut sites);
    Draft::InFiles(sites)
}

/// What a place stands for where it is in a file.
pub fn site(place: u64, files: &Files) -> Site {
    match place::file(place) {
        Some((number, offset)) => {
            Site { addr: 0, place: files.location(number, offset).map_or(Place::Unknown, Place::File) }
        }
        None => Site { addr: place, place: Place::Unknown },
    }
}

/// A stack of which all is looked up.
#[derive(Debug)]
pub struct Complete {
    /// Its places, leaf first.
    pub sites: Vec<Site>,
    /// Whether it was cut because nothing proves the next frame.
    pub is_unproved: bool,
    /// Whether not each place is something, or not as far as the mappings tell that are known.
    pub is_doubtful: bool,
}

/// Looks up what mere addresses stand for, in the process's `space`.
pub fn complete(mut sites: Vec<Site>, space: &AddressSpace) -> Complete {
    let mut is_unmapped = false;
    for site in sites.iter_mut().filter(|site| site.addr != 0) {
        site.place = match (space.locate(site.addr), &site.place) {
            // Nothing is there any more, or not yet as far as is known: its callers were found by means of it all the same.
            (Place::Unknown, Place::Jit(_)) => {
                is_unmapped = true;
                space.generated()
            }
            // And a file that is mapped there is another than was run.
            (Place::File(location), Place::Jit(_)) if location.module.file().is_some() => {
                is_unmapped = true;
                space.generated()
            }
            (found, _) => found,
        };
    }
    // What lies in a file is told as that: where an address seems to, the mappings are not those of today.
    let is_outdated = sites.iter().any(|site| {
        let in_file = matches!(&site.place, Place::File(location) if location.module.file().is_some());
        in_file && site.addr != 0
    });
    let is_cut = cut_at_no_code(&mut sites);
    let unproved = unproved(&sites, space);
    if let Some(unproved) = unproved {
        tracing::trace!(?sites, unproved, "cut at what no call returns to");
        sites.truncate(unproved);
    }
    let is_unknown = matches!(sites.first(), Some(Site { place: Place::Unknown, .. }));
    Complete { sites, is_unproved: unproved.is_some(), is_doubtful: is_outdated || is_unmapped || is_cut || is_unknown }
}

/// What is no code is no return address: the last word of a stack that ended there, as its end tells. What is before that was code when it
/// was gone through ([`draft`]). The direct caller is certain.
fn cut_at_no_code(sites: &mut Vec<Site>) -> bool {
    let is_cut = sites.len() > 1 && matches!(sites.last(), Some(Site { place: Place::Unknown, .. }));
    if is_cut {
        tracing::trace!(?sites, "the last is no code");
        sites.pop();
    }
    is_cut
}

/// The first of `sites` that a frame pointer led to which may be anything, and that no call returns to.
fn unproved(sites: &[Site], space: &AddressSpace) -> Option<usize> {
    let guessed = |at: usize| sites[at - 1].is_guess();
    let first = (1..sites.len()).find(|at| guessed(*at))?;
    let memory = space.memory();
    let follows_call = |site: &Site| match (&site.place, &memory) {
        (Place::File(Location { module, offset }), _) if site.addr == 0 => {
            module.file().is_some_and(|file| ends_a_call(*offset, |at, code| file.read_exact_at(code, at).is_ok()))
        }
        (_, Ok(memory)) => ends_a_call(site.addr, |at, code| memory.read(at, code).is_ok()),
        _ => false,
    };
    (first..sites.len()).find(|at| guessed(*at) && !follows_call(&sites[*at]))
}

#[cfg(test)]
mod tests;
