//! Attaching to the processes that were chosen, and to those that begin later and fit.

use std::time::Instant;

use anyhow::{Context as _, Result};
use hashbrown::HashSet;
use tracer_ebpf::target;

use super::{
    Session,
    choosing::{Untraced, in_both},
};
use crate::{
    attach::{self, Attached, Returns, probes::Scope},
    bpf::Order,
    collector::Request,
    coverage::Had,
    event::{Image, Pid},
    files::{module::Module, root},
    priority,
    process::status,
    report::{count, visible},
};

/// Processes that are named one by one, when they are not traced; there may be thousands.
const MOST_TOLD: usize = 8;
/// Processes whose attaching goes before other work: that of more takes seconds, which others need a processor for, too.
const FEW: usize = 8;

/// Ids of those that are not over.
fn live(attached: &[Attached]) -> HashSet<Pid> {
    attached.iter().filter(|attached| !attached.is_over()).map(Attached::pid).collect()
}

impl Session {
    /// Has processes told that begin from now on and may fit.
    ///
    /// # Errors
    /// The kernel refuses.
    pub(super) fn expect_newcomers(&mut self) -> Result<()> {
        if self.newcomers.is_none() {
            return Ok(());
        }
        let paused = if self.probes.scope() == Scope::Process { target::LATER } else { 0 };
        let flags = self.follow_flags() | paused;
        self.probes.programs.newcomers()?.ask_for(Some(flags)).context("cannot ask for processes that begin")?;
        let own = std::process::id();
        if self.probes.scope() == Scope::File
            && let Ok(Some(allocators)) = attach::allocators(own)
        {
            // Most programs take that of the machine, and so have probes from their first instruction on. What is in tracer's own program
            // nobody else takes.
            let program = root::executable(own).ok();
            let is_own = |module: &Module| program.as_ref().is_some_and(|program| module.is_file(program));
            let shared = allocators.files().iter().filter(|allocator| !is_own(&allocator.module));
            let returns = Returns::new(self.config.returns, true);
            let put = self.probes.attach(shared, own, own, returns, Order::AtOnce)?;
            put.own.detach_aside(&mut self.probes.programs);
        }
        self.look_for_newcomers(|| true);
        Ok(())
    }

    /// Looks for processes that fit and were not told of: those that began just before others were recorded, and those that fit without
    /// having become another program, as long as there is time (`has_time`).
    pub(super) fn look_for_newcomers(&mut self, has_time: impl Fn() -> bool) {
        let Some(newcomers) = &mut self.newcomers else { return };
        let live = live(&self.attached);
        newcomers.look(|pid| live.contains(&pid), has_time);
    }

    /// Those that fit as the trace ends and are not traced, as far as is known by now.
    pub(super) fn untraced(&self) -> Vec<Untraced> {
        let Some(newcomers) = &self.newcomers else { return Vec::new() };
        let live = live(&self.attached);
        newcomers.untraced(|pid| live.contains(&pid), self.config.children)
    }

    /// Takes down which of those that fitted and were `untraced` still are, when all that was recorded has been taken in: the record of a
    /// beginning may have been on its way, and what is about to become another program (vfork) has its parent's name until then.
    pub(super) fn learn_of_missed(&mut self, untraced: Vec<Untraced>) {
        if !untraced.is_empty() {
            self.missed = in_both(untraced, &self.untraced());
        }
    }

    /// What the reader of a report should know of those.
    pub(super) fn notes_on_missed(&self) -> impl Iterator<Item = String> {
        let more = self.missed.len().saturating_sub(MOST_TOLD);
        let told = self.missed.iter().take(MOST_TOLD).map(|Untraced { pid, comm, .. }| {
            format!(
                "process {pid} ({}) fits the selection, but was found too late: nothing of it was recorded",
                visible(comm)
            )
        });
        told.chain((more > 0).then(|| format!("and so were {}", count(more as u64, "other process"))))
    }

    /// Attaches to those that were found, unless they are told of after all: the record of a beginning may have been on its way.
    ///
    /// # Errors
    /// The collector has ended.
    pub(super) fn attach_newcomers(&mut self) -> Result<()> {
        let Some(newcomers) = self.newcomers.as_mut().filter(|newcomers| !newcomers.found.is_empty()) else {
            return Ok(());
        };
        if !std::mem::replace(&mut newcomers.is_all_told, true) {
            // Which takes in all that was recorded.
            let image = Image(0);
            return self.ask(|reply| Request::Covered { image, ranges: Vec::new(), reply }).map(drop);
        }
        if self.inputs.are_there() {
            return Ok(());
        }
        for pid in std::mem::take(&mut newcomers.found) {
            if self.image_of(pid).is_some() {
                continue;
            }
            match self.attach(pid) {
                Ok(()) => {
                    tracing::debug!(pid, "a process that has come to fit is traced");
                    self.found_late += 1;
                    let since = self.clock.elapsed();
                    let image = self.attached.last_mut().map(|attached| {
                        attached.began_during(since);
                        attached.image()
                    });
                    self.new.extend(image.map(|image| (Instant::now(), image, Had::All)));
                }
                Err(error) => {
                    self.abandon(pid);
                    self.newcomers.iter_mut().for_each(|newcomers| newcomers.cannot_be_traced(pid));
                    tracing::debug!("not traced: {error:#}");
                }
            }
        }
        Ok(())
    }

    /// Attaches to running processes.
    ///
    /// # Errors
    /// It can be done to none of them.
    pub(super) fn attach_all(&mut self, pids: &[Pid]) -> Result<()> {
        let mut failures = Vec::new();
        if pids.len() <= FEW {
            // Tables are made meanwhile, by as many threads as there are processors.
            priority::set_own(priority::URGENT);
        }
        for pid in pids {
            let checked = status::check(*pid).map_err(Into::into);
            if let Err(error) = checked.and_then(|_| self.attach(*pid)) {
                self.abandon(*pid);
                self.newcomers.iter_mut().for_each(|newcomers| newcomers.cannot_be_traced(*pid));
                failures.push(error);
            }
        }
        priority::set_own(priority::NORMAL);
        if self.attached.is_empty() {
            let more = failures.len().saturating_sub(1);
            let Some(first) = failures.into_iter().next() else { return Ok(()) };
            return Err(if more > 0 {
                first.context(format!("none of {} processes can be traced; the first", more + 1))
            } else {
                first
            });
        }
        let more = failures.len().saturating_sub(MOST_TOLD);
        let told = failures.iter().take(MOST_TOLD).map(|error| format!("not traced: {error:#}"));
        let more = (more > 0).then(|| format!("not traced: {more} more processes"));
        for note in told.chain(more) {
            tracing::warn!("{}", visible(&note));
            self.notes.push(note);
        }
        Ok(())
    }

    /// Undoes what was begun of attaching to a process.
    fn abandon(&mut self, pid: Pid) {
        self.libraries.retain(|libraries| libraries.pid() != pid);
        while let Some(index) = self.go.iter().position(|go| go.pid() == pid) {
            let go = self.go.remove(index);
            self.detach_go(go);
        }
        while let Some(index) = self.attached.iter().position(|attached: &Attached| attached.pid() == pid) {
            self.attached.remove(index).detach(&mut self.probes);
        }
    }
}
