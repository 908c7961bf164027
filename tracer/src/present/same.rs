//! Stacks of one process that are the same as far as they are known.

use std::{
    hash::{Hash, Hasher},
    sync::Arc,
};

use hashbrown::HashMap;

use crate::{
    collector::{StackSnapshot, Trail},
    event::Image,
    trails::{Site, Sites},
};

/// Stacks with those made one that differ only in what was cut off.
pub(super) fn merged(stacks: Vec<StackSnapshot>) -> Vec<StackSnapshot> {
    // Equal places are one: how they ended tells stacks apart.
    let mut places: HashMap<(Image, Key), usize> = HashMap::new();
    let mut all: Vec<StackSnapshot> = Vec::with_capacity(stacks.len());
    for stack in stacks {
        let key = match &stack.trail {
            Trail::Known(sites) => Key::Known(Arc::clone(sites)),
            Trail::Lost => Key::Lost,
            Trail::TableFull => Key::TableFull,
            Trail::Folded => Key::Folded,
        };
        let next = all.len();
        match *places.entry((stack.image, key)).or_insert(next) {
            place if place == next => all.push(stack),
            place => all[place].absorb(&stack),
        }
    }
    all
}

/// What tells stacks apart.
enum Key {
    Known(Sites),
    Lost,
    TableFull,
    Folded,
}

impl Key {
    fn places(&self) -> impl Iterator<Item = *const Site> {
        let sites: &[Arc<Site>] = if let Self::Known(sites) = self { sites } else { &[] };
        sites.iter().map(Arc::as_ptr)
    }
}

impl PartialEq for Key {
    fn eq(&self, other: &Self) -> bool {
        std::mem::discriminant(self) == std::mem::discriminant(other) && self.places().eq(other.places())
    }
}

impl Eq for Key {}

impl Hash for Key {
    fn hash<H: Hasher>(&self, state: &mut H) {
        std::mem::discriminant(self).hash(state);
        self.places().for_each(|place| place.hash(state));
    }
}
