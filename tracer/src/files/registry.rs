//! Files by the numbers that the BPF side has given them, held open: what places in stacks refer to. A file has one number
//! in all processes.

use std::sync::Arc;

use hashbrown::HashMap;

use super::module::{Location, Module};

/// The files of all traced processes.
#[derive(Clone, Default)]
pub struct Files {
    by_number: HashMap<u32, Option<Arc<Module>>>,
    /// Those that no new stack will be of.
    retired: Vec<u32>,
}

impl Files {
    /// Notes the number of a file. As long as it is noted the file is held open, so that no other can be taken for it.
    pub fn add(&mut self, number: u32, module: Arc<Module>) {
        self.by_number.insert(number, Some(module));
    }

    /// Lets go of files that were retired before and that nobody else refers to. From now on no new stack will be of `numbers`, but
    /// for those that are on their way.
    pub fn retire(&mut self, numbers: Vec<u32>) {
        let Self { by_number, retired } = self;
        retired.retain(|number| {
            let module = by_number.get(number).and_then(Option::as_ref);
            let is_referred_to = module.is_some_and(|module| Arc::strong_count(module) > 1);
            if !is_referred_to {
                by_number.remove(number);
            }
            is_referred_to
        });
        retired.extend(numbers);
    }

    /// Notes that code is kept in a file that was generated at run time: it is named by its address.
    pub fn add_generated(&mut self, number: u32) {
        self.by_number.insert(number, None);
    }

    /// Whether it is known what a number stands for.
    pub fn knows(&self, number: u32) -> bool {
        self.by_number.contains_key(&number)
    }

    /// The place at `offset` of a file; `None` for code that was generated, and as long as nobody knows the file.
    pub fn location(&self, number: u32, offset: u64) -> Option<Location> {
        let module = self.by_number.get(&number)?.as_ref()?;
        Some(Location { module: Arc::clone(module), offset })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_stands_for_one_file() {
        let mut files = Files::default();
        let file = |path| Arc::new(Module::of_file(path, std::fs::File::open(path).unwrap()).unwrap());
        let one = file("/proc/self/exe");
        assert!(!files.knows(7) && files.location(7, 1).is_none());
        files.add(7, Arc::clone(&one));
        assert!(files.knows(7));
        let location = files.location(7, 0x123).unwrap();
        assert!(Arc::ptr_eq(&location.module, &one) && location.offset == 0x123);
        files.add_generated(8);
        assert!(files.knows(8) && files.location(8, 1).is_none());
    }

    #[test]
    fn what_nobody_refers_to_is_let_go_when_others_are_retired() {
        let mut files = Files::default();
        for number in 1..4 {
            files.add(number, Arc::new(Module::special("a file")));
        }
        let place = files.location(2, 0);
        files.retire(vec![1, 2]);
        assert!((1..4).all(|number| files.knows(number)), "a stack may be on its way");
        files.retire(vec![3]);
        assert!(!files.knows(1) && files.knows(2) && files.knows(3));
        drop(place);
        files.retire(Vec::new());
        assert!(!(1..4).any(|number| files.knows(number)));
    }
}
