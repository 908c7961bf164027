//! What tracing costs is measured while it goes on, and bounded where that is asked for.

use std::time::{Duration, Instant};

use anyhow::Result;

use super::{
    LOOK_AROUND, Session,
    budget::{Budget, Step},
};
use crate::{clock::monotonic, collector::Request, event::Pid, profile::Cost};

/// Most processes of which it is looked at a time what they have used.
const MOST_METERED: usize = 64;

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
        let live: Vec<(Pid, bool)> = live.map(|attached| (attached.pid(), attached.life().came_later())).collect();
        self.meter.look(&live, most);
    }

    /// The same now and then.
    pub(super) fn look_at_cost_again(&mut self) {
        let now = Instant::now();
        if self.budget.is_some() || now >= self.meter_next {
            self.meter_next = now + LOOK_AROUND;
            self.look_at_cost(MOST_METERED);
        }
    }

    /// Sees to it that tracing costs no more than it may. Whether it goes on.
    pub(super) fn keep_budget(&mut self) -> Result<bool> {
        if self.budget.is_none() {
            return Ok(true);
        }
        let (Some(cost), Some(budget)) = (self.meter.cost(), &mut self.budget) else { return Ok(true) };
        let is_ready = !self.probes.programs.is_detaching();
        let step = budget.step(Instant::now(), &cost, self.clock.elapsed(), is_ready);
        match step {
            Step::Close => {
                self.send(Request::Away)?;
                self.take_probes_off();
            }
            Step::Open => self.put_probes_again()?,
            Step::Stop => tracing::warn!("tracing has stopped: it costs more than --max-overhead allows"),
            Step::Stay => {}
        }
        Ok(step != Step::Stop)
    }

    /// Whether probes are there now.
    pub(super) fn has_probes(&self) -> bool {
        self.budget.as_ref().is_none_or(|budget| budget.is_open)
    }

    /// How often probes were away in a trace that has lasted so long, and what is to be said of that.
    pub(super) fn told_of_budget(&self, cost: Option<Cost>, lasted: Duration) -> (u64, Vec<String>) {
        let told = |budget: &Budget| (budget.closed, budget.notes(self.clock + lasted, lasted, cost.as_ref()));
        self.budget.as_ref().map(told).unwrap_or_default()
    }

    fn take_probes_off(&mut self) {
        self.probes.go_away();
        self.attached.iter_mut().for_each(|attached| attached.take_probes_off(&mut self.probes));
    }

    fn put_probes_again(&mut self) -> Result<()> {
        self.probes.come_back();
        for attached in self.attached.iter_mut().filter(|attached| !attached.is_over()) {
            attached.put_probes_again(&mut self.probes);
        }
        self.send(Request::Back(monotonic()))
    }
}
