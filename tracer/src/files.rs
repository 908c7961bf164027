//! Files by the numbers that the BPF side has given them, held open: what places in stacks refer to. A file has one number
//! in all processes.

use std::sync::Arc;

use hashbrown::HashMap;

use crate::process::{
    address_space::{Location, Place},
    module::{Identity, Module},
};

/// The files of all traced processes.
#[derive(Default)]
pub struct Files {
    by_number: HashMap<u32, Option<Arc<Module>>>,
    numbers: HashMap<Identity, u32>,
}

impl Files {
    /// Notes the number of a file. As long as it is noted the file is held open, so that no other can be taken for it.
    pub fn add(&mut self, number: u32, module: Arc<Module>) {
        self.numbers.insert(module.identity().clone(), number);
        self.by_number.insert(number, Some(module));
    }

    /// Notes that code is kept in a file that was generated at run time: it is named by its address.
    pub fn add_generated(&mut self, number: u32) {
        self.by_number.insert(number, None);
    }

    /// Whether it is known what a number stands for.
    pub fn knows(&self, number: u32) -> bool {
        self.by_number.contains_key(&number)
    }

    /// Whether a file has a number that is known.
    pub fn has(&self, identity: &Identity) -> bool {
        self.numbers.contains_key(identity)
    }

    /// The place at `offset` of a file; `None` as long as nobody knows the file.
    pub fn place(&self, number: u32, offset: u64) -> Option<Place> {
        Some(match self.by_number.get(&number)? {
            Some(module) => Place::File(Location { module: Arc::clone(module), offset }),
            None => Place::Unknown,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_stands_for_one_file() {
        let mut files = Files::default();
        let file = |path| Arc::new(Module::of_file(path, std::fs::File::open(path).unwrap()).unwrap());
        let (one, same) = (file("/proc/self/exe"), file("/proc/self/exe"));
        assert!(!files.knows(7) && !files.has(one.identity()) && files.place(7, 1).is_none());
        files.add(7, Arc::clone(&one));
        assert!(files.knows(7) && files.has(same.identity()));
        let Some(Place::File(location)) = files.place(7, 0x123) else { panic!() };
        assert!(Arc::ptr_eq(&location.module, &one) && location.offset == 0x123);
        files.add_generated(8);
        assert!(matches!(files.place(8, 1), Some(Place::Unknown)));
    }
}
