//! What tracing costs: hits of probes, each with what one takes on this machine and what its program takes, and tracer's own time,
//! beside what the traced processes use.

mod traps;

use std::{
    io,
    thread::{self, JoinHandle},
    time::Duration,
};

use hashbrown::HashMap;
use rustix::{
    param::clock_ticks_per_second,
    time::{ClockId, clock_gettime},
};
use tracer_ebpf::cost;

use self::traps::Traps;
use crate::{
    bpf::Costs,
    event::{Image, Pid},
    process::status,
    profile::Cost,
};

/// What a process has used, in clock ticks.
#[derive(Clone, Copy, Debug, Default)]
struct Used {
    /// Before it was traced.
    before: u64,
    /// At the last look.
    latest: u64,
}

/// Measures what a trace costs.
pub struct Meter {
    costs: Costs,
    /// Where it is tried what a hit takes, until that is known.
    trial: Option<JoinHandle<io::Result<Traps>>>,
    traps: Traps,
    processes: HashMap<Image, Used>,
    /// What tracer itself had used when tracing began.
    before: Duration,
    /// Which process is looked at next.
    next: usize,
}

impl Meter {
    /// Begins to find out what a hit takes. `by_events`: of probes that are perf events.
    pub fn start(costs: Costs, by_events: bool) -> Self {
        let trial = thread::Builder::new().name("cost of probes".to_owned()).spawn(move || Traps::measure(by_events));
        let (trial, traps) = (trial.ok(), Traps::default());
        Self { costs, trial, traps, processes: HashMap::new(), before: Duration::ZERO, next: 0 }
    }

    /// Tracing begins.
    pub fn begin(&mut self) {
        self.before = own_time();
    }

    /// Looks at what processes have used, at most so many, which come round in turn. Of each it is told whether it began while others
    /// were traced.
    pub fn look(&mut self, processes: &[(Image, Pid, bool)], most: usize) {
        let most = processes.len().min(most);
        for at in 0..most {
            let (image, pid, is_new) = processes[self.next.wrapping_add(at) % processes.len()];
            let Some(ticks) = status::used(pid) else { continue };
            let before = if is_new { 0 } else { ticks };
            self.processes.entry(image).or_insert(Used { before, latest: ticks }).latest = ticks;
        }
        self.next = self.next.wrapping_add(most) % processes.len().max(1);
    }

    /// What tracing has cost so far; `None` when the kernel does not tell.
    pub fn cost(&mut self) -> Option<Cost> {
        if let Some(trial) = self.trial.take_if(|trial| trial.is_finished()) {
            match trial.join() {
                Ok(Ok(traps)) => self.traps = traps,
                Ok(Err(error)) => tracing::debug!("what a hit of a probe takes is assumed, not tried: {error}"),
                Err(_) => tracing::debug!("what a hit of a probe takes is assumed, not tried"),
            }
            tracing::debug!(?self.traps, "a hit of a probe");
        }
        let kinds = self.costs.read().inspect_err(|error| tracing::debug!("costs cannot be read: {error}")).ok()?;
        let used = self.processes.values().fold(0, |sum: u64, used| sum + used.latest.saturating_sub(used.before));
        Some(Cost {
            hits: kinds.iter().map(|kind| kind.runs).sum(),
            probes: kinds.iter().enumerate().map(|(kind, cost)| time(kind as u32, cost, self.traps)).sum(),
            own: own_time().saturating_sub(self.before),
            processes: Duration::from_secs_f64(used as f64 / clock_ticks_per_second() as f64),
        })
    }
}

/// What all hits of one kind have taken: of some runs it is known how long they took.
fn time(kind: u32, cost: &cost::Cost, traps: Traps) -> Duration {
    let trap = if kind == cost::RETURN { traps.at_return } else { traps.instruction };
    let run = if cost.timed == 0 { 0.0 } else { cost.time as f64 / cost.timed as f64 };
    let nanoseconds = cost.runs as f64 * (trap.as_nanos() as f64 + run);
    Duration::from_nanos(nanoseconds as u64)
}

/// What this process has used.
fn own_time() -> Duration {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    Duration::new(time.tv_sec.unsigned_abs(), u32::try_from(time.tv_nsec).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hits_cost_their_trap_and_what_their_program_takes() {
        let traps = Traps { instruction: Duration::from_nanos(500), at_return: Duration::from_nanos(300) };
        let cost = |runs, timed, time| cost::Cost { runs, timed, time, begun: 0 };
        assert_eq!(time(cost::ENTRY, &cost(640, 10, 2_000), traps), Duration::from_nanos(640 * 700));
        assert_eq!(time(cost::RETURN, &cost(10, 0, 0), traps), Duration::from_nanos(3_000));
        assert_eq!(time(cost::FREE, &cost(0, 0, 0), traps), Duration::ZERO);
    }

    #[test]
    fn own_time_goes_on() {
        let before = own_time();
        while own_time() == before {
            std::hint::spin_loop();
        }
    }
}
