//! Functions of allocators that are chosen at run time (IFUNC): what the pointers of the process's files are bound to tells which.

use std::{
    fs::File,
    panic::{RefUnwindSafe, catch_unwind},
    sync::Arc,
};

use crate::{
    files::module::Module,
    probe::{
        allocators,
        asked::{self, Asked},
        bound,
        resolve::{self, Functions},
    },
    space::address_space::{AddressSpace, Place},
};

/// Most functions of one file that are chosen so: each is searched for by itself. What is left out is told as not recorded.
const MOST_CHOSEN: usize = 64;

/// The functions of `module` with those that the process has chosen, as far as one of its files is bound to them by now. `open` opens
/// a file anew.
pub(super) fn with_chosen(
    space: &AddressSpace,
    module: &Module,
    functions: &Functions,
    open: impl Fn(&Module) -> Option<File> + RefUnwindSafe,
) -> Option<Arc<Functions>> {
    let memory = space.memory().ok()?;
    let names = &functions.chosen;
    let mut found: Vec<Option<u64>> = vec![None; names.len()];
    let mut seen = Vec::new();
    for (mapping, file) in space.code() {
        let Some(user) = file else { continue };
        if found.iter().all(Option::is_some) || seen.contains(&user.identity()) || !user.is_elf() {
            continue;
        }
        seen.push(user.identity());
        // Its contents are hostile: should reading them panic, it is bound to nothing.
        let slots = catch_unwind(|| bound::slots(&open(user)?, names)).ok().flatten();
        let Some(slots) = slots else { continue };
        let Some(moved) = slots.moved_by(mapping.offset, mapping.start) else { continue };
        for (index, slot) in &slots.slots {
            let Ok(target) = memory.word(slot.wrapping_add(moved)) else { continue };
            // What follows is looked up as the call before a return address is.
            let Place::File(place) = space.locate(target.wrapping_add(1)) else { continue };
            if place.module.identity() == module.identity() {
                found[*index].get_or_insert(place.offset.wrapping_sub(1));
            }
        }
    }
    let chosen = names.iter().zip(found).filter_map(|(name, offset)| {
        let known = allocators::known(name.as_bytes())?;
        Some(Asked::chosen(name, (known.function, known.shape), offset?))
    });
    let chosen: Vec<Asked> = chosen.take(MOST_CHOSEN).collect();
    let file = open(module)?;
    let mut all: Vec<&Asked> = asked::of(module.path());
    // A pointer that is not bound yet leads to code that binds it, where no function begins: one that leads there is left out.
    all.extend(catch_unwind(|| resolve::beginning(&file, &chosen)).unwrap_or_default());
    let search = catch_unwind(|| resolve::search(&file, None, &all).ok()).ok().flatten();
    search?.functions.map(Arc::new)
}
