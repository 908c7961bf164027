//! The names of stacks: each is looked up once, while the files that it goes through can be read.

use std::sync::{Arc, Weak};

use hashbrown::HashMap;

use super::go::without_runtime;
use crate::{
    collector::Trail,
    event::Pid,
    files::module::Location,
    golang::{Runtime, Symbols},
    heap::StackIndex,
    profile::{Frame, Frames, Module},
    space::address_space::Place,
    symbolize::{Query, Symbolizer},
    trails::{Site, Sites},
};

/// Names stacks; remembers those it has named.
pub(super) struct Names {
    symbolizer: Symbolizer,
    named: HashMap<StackIndex, Named>,
    /// Stacks of the profiles that Go runtimes keep.
    named_calls: HashMap<(Pid, Arc<[u64]>), Frames>,
    /// Names of Go code, by process.
    go: HashMap<Pid, Symbols<Arc<Runtime>>>,
}

/// A stack that has been named.
struct Named {
    pid: Pid,
    /// No others come to be where they are while this is here. Who forgets places goes by who has them.
    sites: Weak<[Arc<Site>]>,
    frames: Frames,
}

impl Named {
    /// Whether it is still what was named: more of it may have become known, and another stack may have its index by now.
    fn is_of(&self, pid: Pid, sites: &Sites) -> bool {
        let is_same = |known: &Sites| known.iter().map(Arc::as_ptr).eq(sites.iter().map(Arc::as_ptr));
        let known = self.sites.upgrade().filter(|_| self.pid == pid);
        known.is_some_and(|known| Arc::ptr_eq(&known, sites) || is_same(&known))
    }
}

impl Names {
    /// One that has named nothing yet, and keeps at most so many bytes of the files that names come from.
    pub(super) fn within(memory: u64) -> Self {
        Self {
            symbolizer: Symbolizer::within(memory),
            named: HashMap::new(),
            named_calls: HashMap::new(),
            go: HashMap::new(),
        }
    }

    /// Names the Go code of a process, whose executable is known to it as `exe`, by the tables of a runtime or plugin of it.
    pub(super) fn know_go(&mut self, pid: Pid, runtime: Arc<Runtime>, exe: &str) {
        let library = runtime.library().cloned();
        let module = library.as_deref().unwrap_or(exe);
        match self.go.get_mut(&pid) {
            Some(known) if library.is_some() => known.add(runtime, module),
            // Another program than before, if any.
            _ => drop(self.go.insert(pid, Symbols::of_returns(runtime, module))),
        }
    }

    /// What the reader should know of them.
    pub(super) fn notes(&self) -> &[String] {
        self.symbolizer.notes()
    }

    /// How many files were written to after they had been mapped.
    pub(super) fn rewritten(&self) -> u64 {
        self.symbolizer.rewritten()
    }

    /// The files that named frames lie in.
    pub(super) fn modules(&mut self) -> Vec<Module> {
        let mut modules = self.symbolizer.modules();
        for module in self.go.values().flat_map(Symbols::described) {
            // The symbolizer may know it by its parts in C.
            if !modules.contains(&module) {
                modules.push(module);
            }
        }
        modules
    }

    /// The frames of a stack that has been named.
    pub(super) fn of(&self, stack: StackIndex) -> Option<&Frames> {
        self.named.get(&stack).map(|named| &named.frames)
    }

    /// The frames of a stack that has been named, or what stands for what is not known of it.
    pub(super) fn of_trail(&self, stack: StackIndex, trail: &Trail) -> Frames {
        match trail {
            Trail::TableFull => stand_in("[stack table full]"),
            Trail::Lost => stand_in("[stack lost]"),
            Trail::Folded => stand_in("[other stacks]"),
            Trail::Known(_) => self.of(stack).cloned().unwrap_or_else(|| stand_in("[unknown]")),
        }
    }

    /// Frames of addresses each of which stands for one function.
    pub(super) fn of_calls(&mut self, pid: Pid, calls: Arc<[u64]>) -> Option<Frames> {
        let symbols = self.go.get_mut(&pid)?;
        let named = self.named_calls.entry((pid, calls)).or_insert_with_key(|(_, calls)| {
            let frames = calls.iter().rev().filter_map(|call| symbols.innermost(*call));
            let frames = frames.filter(|frame| frame.function.as_deref() != Some("runtime.goexit"));
            without_runtime(&frames.map(|frame| Arc::from([Frame { inlined: false, ..frame }])).collect())
        });
        Some(named.clone())
    }

    /// Names those of these stacks that are not named yet, or not as they are now.
    pub(super) fn look_up<'a>(&mut self, stacks: impl Iterator<Item = (StackIndex, Pid, &'a Trail)>) {
        let Self { symbolizer, named, go, .. } = self;
        go.values().for_each(Symbols::allow_a_look);
        let new: Vec<(StackIndex, Pid, &Sites)> = stacks
            .into_iter()
            .filter_map(|(stack, pid, trail)| match trail {
                Trail::Known(sites) => {
                    let known = named.get(&stack).filter(|named| named.is_of(pid, sites));
                    let is_named = known.is_some() && !sites.iter().any(|site| site.is_pending());
                    (!is_named).then_some((stack, pid, sites))
                }
                _ => None,
            })
            .collect();
        // Stacks share their places: each is asked for once.
        let mut asked: HashMap<(Pid, *const Site), usize> = HashMap::new();
        let mut queries: Vec<Query<'_>> = Vec::new();
        for (_, pid, sites) in &new {
            for site in sites.iter().filter(|site| call_in_go(go, *pid, site).is_none()) {
                let next = queries.len();
                if *asked.entry((*pid, Arc::as_ptr(site))).or_insert(next) == next {
                    queries.push(Query { pid: *pid, addr: site.addr, place: &site.place });
                }
            }
        }
        let answers = symbolizer.resolve(&queries);
        for (stack, pid, sites) in new {
            let mut frames: Vec<Arc<[Frame]>> = Vec::with_capacity(sites.len());
            // Go code is named in one go: whether a frame is shown may depend on what it calls.
            let in_go: Vec<Option<u64>> = sites.iter().map(|site| call_in_go(go, pid, site)).collect();
            let mut begin = 0;
            for calls in in_go.chunk_by(|a, b| a.is_some() == b.is_some()) {
                let part = &sites[begin..begin + calls.len()];
                begin += calls.len();
                let calls: Vec<u64> = calls.iter().copied().flatten().collect();
                match go.get_mut(&pid).filter(|_| !calls.is_empty()) {
                    Some(symbols) => frames.extend(symbols.part(&calls)),
                    None => {
                        frames.extend(part.iter().map(|site| Arc::clone(&answers[asked[&(pid, Arc::as_ptr(site))]])))
                    }
                }
            }
            frames.reverse();
            named.insert(stack, Named { pid, sites: Arc::downgrade(sites), frames: frames.into_iter().collect() });
        }
    }
}

/// The address in its process of the call that returns to a site in Go code; `None` for other code.
fn call_in_go(go: &HashMap<Pid, Symbols<Arc<Runtime>>>, pid: Pid, site: &Site) -> Option<u64> {
    let symbols = go.get(&pid)?;
    match &site.place {
        Place::File(Location { module, offset }) => symbols.address(module.contents()?, offset.checked_sub(1)?),
        _ => None,
    }
}

/// A stack that stands for what is not known.
pub(super) fn stand_in(name: &str) -> Frames {
    vec![Frame { function: Some(name.to_owned()), ..Frame::default() }].into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stack(addr: u64) -> Trail {
        Trail::Known([Arc::new(Site { addr, place: Place::Unknown })].into())
    }

    #[test]
    fn a_stack_that_has_the_index_of_another_is_named_by_itself() {
        let mut names = Names::within(1 << 20);
        let index = StackIndex::from_raw(7);
        for (pid, addr) in [(1, 0x1000), (1, 0x2000), (2, 0x3000)] {
            names.look_up([(index, pid, &stack(addr))].into_iter());
            let frames = names.of(index).unwrap();
            assert_eq!(frames.iter().map(|frame| frame.offset).collect::<Vec<_>>(), [addr]);
        }
    }
}
