//! What tracing costs is measured while it goes on, and bounded where that is asked for.

use std::time::Instant;

use anyhow::Result;

use super::{
    Session,
    budget::{Budget, Step},
};
use crate::{attach::Attached, clock::monotonic, collector::Request, event::Image};

impl Session {
    /// From now on it is measured what tracing costs.
    pub(super) fn begin_meter(&mut self) {
        self.meter.begin();
        self.budget = self.config.max_overhead.map(|share| Budget::new(share, Instant::now()));
        self.look_at_cost(usize::MAX);
    }

    /// Looks at what processes have used, at most so many of them.
    pub(super) fn look_at_cost(&mut self, most: usize) {
        let live = self.attached.iter().filter(|attached| !attached.is_over());
        let live = live.map(|attached| (attached.image(), attached.pid(), attached.life().came_later()));
        self.meter.look(&live.collect::<Vec<_>>(), most);
    }

    /// Sees to it that tracing costs no more than it may. Whether it goes on.
    pub(super) fn keep_budget(&mut self) -> Result<bool> {
        if self.budget.is_none() {
            return Ok(true);
        }
        let (Some(cost), Some(budget)) = (self.meter.cost(), &mut self.budget) else { return Ok(true) };
        let step = budget.step(Instant::now(), &cost, self.clock.elapsed());
        match step {
            // Some may have been put since.
            _ if !budget.is_open && step != Step::Open => self.take_probes_off(),
            Step::Open => self.put_probes_again()?,
            _ => {}
        }
        if step == Step::Stop {
            tracing::warn!("tracing has stopped: it costs more than --max-overhead allows");
        }
        Ok(step != Step::Stop)
    }

    /// Whether probes are there now.
    pub(super) fn has_probes(&self) -> bool {
        self.budget.as_ref().is_none_or(|budget| budget.is_open)
    }

    /// How often probes were away, and what is to be said of that.
    pub(super) fn told_of_budget(&self) -> (u64, Vec<String>) {
        let told = |budget: &Budget| (budget.closed, budget.notes(Instant::now(), self.clock.elapsed()));
        self.budget.as_ref().map(told).unwrap_or_default()
    }

    fn take_probes_off(&mut self) {
        self.attached.iter_mut().for_each(|attached| attached.take_probes_off(&mut self.probes));
        self.probes.take_off();
    }

    fn put_probes_again(&mut self) -> Result<()> {
        for attached in &mut self.attached {
            attached.put_probes_again(&mut self.probes);
        }
        self.were_away()
    }

    /// What was recorded so far may have been freed while probes were away, until now, if they are.
    pub(super) fn tell_what_is_away(&self) -> Result<()> {
        if self.has_probes() { Ok(()) } else { self.were_away() }
    }

    fn were_away(&self) -> Result<()> {
        let live = self.attached.iter().filter(|attached| !attached.is_over());
        let images: Vec<Image> = live.map(Attached::image).collect();
        images.into_iter().try_for_each(|image| self.send(Request::Unseen(image, monotonic())))
    }
}
