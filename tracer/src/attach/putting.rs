//! Putting the probes of a traced process on what it allocates with, again where they have gone.

use std::{io, sync::Arc, time::Instant};

use anyhow::Result;

use super::{
    Attached,
    find::{Allocator, Allocators, Phase, code_files, find, mappings},
    probes::{Own, Probes, Put, Scope},
};
use crate::{
    bpf::Order,
    event::{Image, Pid},
    files::module::Module,
    process::status,
    report::visible,
    space::address_space::AddressSpace,
};

/// To how many threads probes are moved at a time at most that end while they are.
const MOST_MOVES: usize = 16;

impl Attached {
    /// Puts probes on allocators in the place of those that are there. Whether they are in force.
    pub(super) fn reattach(&mut self, probes: &mut Probes, allocators: Allocators, task: u32) -> bool {
        let put = self.put(probes, &allocators, task);
        self.were_put(probes, put, allocators, true)
    }

    /// Attaches probes for it, beside those that are there.
    fn put(&self, probes: &mut Probes, allocators: &Allocators, task: u32) -> Result<Put> {
        // What is not recorded yet has no calls that could be seen by halves.
        let order = if self.life.is_paused() { Order::AtOnce } else { Order::InTurn };
        probes.attach(allocators.files(), self.pid, task, self.returns, order)
    }

    /// Puts probes on those allocators that have none yet, beside those that are there.
    pub(super) fn attach_others(&mut self, probes: &mut Probes, allocators: Allocators) -> bool {
        let others = allocators.files().iter().filter(|allocator| !self.has(allocator));
        let others: Vec<Allocator> = others.cloned().collect();
        if others.is_empty() {
            self.tell_of_files(&allocators);
            return true;
        }
        let put = probes.attach(&others, self.pid, self.task(), self.returns, Order::InTurn);
        self.were_put(probes, put, allocators, false)
    }

    /// Libraries of the process have come or gone: those that allocate are probed from now on.
    pub fn libraries_came(&mut self, probes: &mut Probes) {
        if self.is_over() || self.gave_up || !self.life.is_settled() {
            return;
        }
        let files = code_files(self.pid);
        if files.is_subset(&self.code_files) {
            return;
        }
        let before = std::mem::replace(&mut self.code_files, files);
        let found = mappings(self.pid).and_then(|space| find(self.pid, &space, Phase::Begun));
        let allocators = match found {
            Ok(Some(allocators)) => allocators,
            Ok(None) => return,
            // To be looked at again, if it is the first thread alone that has ended.
            Err(error) if has_no_memory(&error) || !status::is_alive(self.pid) => {
                self.code_files = before;
                return;
            }
            Err(error) => {
                return self.was_unseen(format!(
                    "process {} has loaded files while it was traced that could not be searched for allocators: {error:#}",
                    self.pid
                ));
            }
        };
        self.has_go_library |= allocators.has_go_library();
        let is_new = |allocator: &&Allocator| !self.has(allocator) && !probes.covers(&allocator.module);
        let new = allocators.files().iter().filter(is_new);
        let new: Vec<String> = new.map(|allocator| visible(allocator.module.path()).to_string()).collect();
        if self.attach_others(probes, allocators) {
            for path in new {
                self.was_unseen(format!(
                    "process {} has loaded {path} while it was traced: what it allocated by that before tracer had found it is not \
                     recorded",
                    self.pid
                ));
            }
        }
    }

    /// Probes were put on allocators, in the place of those that were there or beside them. Whether they are in force.
    fn were_put(&mut self, probes: &mut Probes, put: Result<Put>, allocators: Allocators, anew: bool) -> bool {
        match put {
            Ok(Put { own, unseen }) => {
                self.tell_of_files(&allocators);
                (self.allocators, self.gave_up) = (Some(allocators), false);
                if anew {
                    self.guard.forget();
                    std::mem::replace(&mut self.links, own).detach_aside(&mut probes.programs);
                } else {
                    self.guard.has_others();
                    self.links.extend(own);
                }
                unseen.into_iter().for_each(|note| self.was_unseen(note));
                true
            }
            // What it did until then is all there is.
            Err(_) if !status::is_alive(self.pid) => false,
            Err(error) => {
                let what =
                    if anew { "the probes cannot be put again" } else { "what it allocates by that is not recorded" };
                self.was_unseen(format!("process {}: {error:#}; {what}", self.pid));
                false
            }
        }
    }

    /// Tells of files of which it is not known what is allocated by them, but of those that were told.
    pub(super) fn tell_of_files(&mut self, found: &Allocators) {
        let told = self.allocators.clone();
        let was_told = |note: &String| told.as_ref().is_some_and(|told| told.unseen().contains(note));
        for note in found.unseen().iter().filter(|note| !was_told(note)) {
            self.was_unseen(format!("process {}: {note}", self.pid));
        }
    }

    /// Takes the probes off that are for this process alone, for a while.
    pub fn take_probes_off(&mut self, probes: &mut Probes) {
        std::mem::take(&mut self.links).detach_aside(&mut probes.programs);
        self.guard.forget();
    }

    /// Puts the probes again that were taken off for a while.
    pub fn put_probes_again(&mut self, probes: &mut Probes) {
        if self.gave_up || probes.scope() == Scope::File {
            return;
        }
        if let Some(allocators) = self.allocators.clone() {
            self.reattach(probes, allocators, self.task());
        }
    }

    /// The thread that the kernel knows the process by.
    pub(super) fn task(&self) -> u32 {
        status::shown_by(self.pid)
    }

    /// Moves the probes to another thread of the process when its first one has ended: the kernel keeps them for the
    /// life of one thread. Whether there was another.
    pub fn move_to_another_thread(&mut self, probes: &mut Probes) -> bool {
        self.goes_on_without_its_first_thread = true;
        if self.is_over() || !self.links.end_with_thread() {
            return false;
        }
        let Some(allocators) = self.allocators.clone() else { return false };
        for _ in 0..MOST_MOVES {
            let Some(thread) = status::other_threads(self.pid).first().copied() else { break };
            let put = self.put(probes, &allocators, thread);
            if status::other_threads(self.pid).contains(&thread) {
                return self.were_put(probes, put, allocators, true);
            }
            // It has ended meanwhile, or becomes another program as the first one, which is heard of in a moment.
            if let Ok(Put { own, .. }) = put {
                own.detach_aside(&mut probes.programs);
            }
        }
        false
    }

    /// Sees outcomes at instructions from now on, where that can be: a return address had to be left alone.
    pub fn leave_returns_alone(&mut self, probes: &mut Probes) {
        // In file scope they are.
        if self.is_over()
            || probes.scope() == Scope::File
            || self.returns.asked.is_some()
            || std::mem::replace(&mut self.returns.declined, true)
        {
            return;
        }
        if let Some(allocators) = self.allocators.clone() {
            self.reattach(probes, allocators, self.task());
        }
    }

    /// Whether it is to be looked now whether the probes are still there.
    pub fn is_look_at_probes_due(&self, now: Instant) -> bool {
        self.guard.is_due(now)
            && !self.gave_up
            && (!self.life.came_later() || self.goes_on_without_its_first_thread)
            && self.life.is_settled()
            && self.allocators.is_some()
    }

    /// Takes down where the probes are, as the process has its files mapped: it need not be found out at the first look at them.
    pub fn locate_probes(&mut self, probes: &Probes, space: &AddressSpace) {
        if let Some(allocators) = &self.allocators {
            self.guard.locate(self.pid, &probed(allocators, probes, &self.links), space);
        }
    }

    /// Looks whether the probes are still in the code that the process runs, where that is due, and puts them there again where they
    /// are not. Whether they were away. `is_still` tells whether a process is still of an image: if not, its probes have gone with the
    /// program before, which is heard of in a moment.
    pub fn keep_probes(&mut self, probes: &mut Probes, is_still: impl FnOnce(Pid, Image) -> bool) -> bool {
        if !self.is_look_at_probes_due(Instant::now()) {
            return false;
        }
        let Some(allocators) = self.allocators.clone() else { return false };
        let Some(gone) = self.guard.check(self.pid, || probed(&allocators, probes, &self.links)) else { return false };
        if !is_still(self.pid, self.image) {
            return false;
        }
        if gone.replaced > 0 {
            // Those that are there stay; in the place of the others the process would run what it does not have there.
            let away = self.guard.renewed().as_millis();
            self.was_unseen(format!(
                "process {} has put code of its own in the place of {} of {} probed instructions: what it allocated and freed by those \
                 since then, or up to {away} ms before, is not recorded",
                self.pid, gone.replaced, gone.of
            ));
            self.guard.leave();
            return true;
        }
        allocators.files().iter().for_each(|allocator| probes.forget(&allocator.module));
        let again = self.reattach(probes, allocators.clone(), self.task())
            && self
                .guard
                .look(self.pid, &probed(&allocators, probes, &self.links))
                .is_some_and(|look| look.missing == 0);
        self.gave_up = !again;
        let away = self.guard.renewed().as_millis();
        let what = format!(
            "{} of {} probes went from the code of process {}, which has dropped, moved or replaced it",
            gone.missing, gone.of, self.pid
        );
        self.was_unseen(if again {
            format!("{what}; they are there again, and at most {away} ms were not recorded")
        } else {
            format!("{what}; what it did since then, or up to {away} ms before, is not recorded")
        });
        true
    }
}

/// What is probed of these files: offsets in each.
fn probed(allocators: &Allocators, probes: &Probes, own: &Own) -> Vec<(Arc<Module>, Vec<u64>)> {
    let files = allocators.files().iter().map(|allocator| &allocator.module);
    files.map(|module| (Arc::clone(module), probes.offsets(module, own).to_vec())).collect()
}

/// Whether the reason is that the process has no memory any more: it ends, and may still be there for a moment.
fn has_no_memory(error: &anyhow::Error) -> bool {
    let errors = error.chain().filter_map(|cause| cause.downcast_ref::<io::Error>());
    errors.filter_map(io::Error::raw_os_error).any(|code| code == libc::ESRCH)
}

#[cfg(test)]
mod tests {
    use anyhow::Context as _;

    use super::*;

    #[test]
    fn who_ends_has_no_memory() {
        let error = |code| Err::<(), _>(io::Error::from_raw_os_error(code)).context("cannot read its mappings");
        assert!(has_no_memory(&error(libc::ESRCH).unwrap_err()));
        assert!(!has_no_memory(&error(libc::EACCES).unwrap_err()));
        assert!(!has_no_memory(&anyhow::anyhow!("no file")));
    }
}
