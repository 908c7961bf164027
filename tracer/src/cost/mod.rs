//! What tracing costs: hits of probes, each with what one takes on this machine and what its program takes, and tracer's own time,
//! beside what the traced processes use.

mod traps;

use std::{
    io,
    thread::{self, JoinHandle},
    time::Duration,
};

use hashbrown::{HashMap, HashSet};
use rustix::{
    param::clock_ticks_per_second,
    time::{ClockId, clock_gettime},
};
use tracer_ebpf::cost;

use self::traps::Traps;
use crate::{bpf::Costs, event::Pid, process::status, profile::Cost};

/// What a process has used, in clock ticks.
#[derive(Clone, Copy, Debug)]
struct Used {
    /// When it began: its id may become another's.
    start_time: u64,
    /// Before it was traced.
    before: u64,
    /// At the last look.
    latest: u64,
}

impl Used {
    /// While it was traced.
    fn since(&self) -> u64 {
        self.latest.saturating_sub(self.before)
    }
}

/// Ended processes that are kept one by one, at most, beside those that live.
const MOST_OVER: usize = 1000;

/// Measures what a trace costs.
pub struct Meter {
    costs: Costs,
    /// Where it is tried what a hit takes, until that is known.
    trial: Option<JoinHandle<io::Result<Traps>>>,
    traps: Traps,
    processes: HashMap<Pid, Used>,
    /// What those have used that are not looked at any more though they may live, in clock ticks.
    over: u64,
    /// What those have used that have ended.
    ended: Duration,
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
        Self {
            costs,
            trial,
            traps,
            processes: HashMap::new(),
            over: 0,
            ended: Duration::ZERO,
            before: Duration::ZERO,
            next: 0,
        }
    }

    /// Tracing begins.
    pub fn begin(&mut self) {
        self.before = own_time();
    }

    /// Looks at what a process has used. `is_new`: it began while others were traced.
    pub fn look_at(&mut self, pid: Pid, is_new: bool) {
        let Some((start_time, latest)) = status::used(pid) else { return };
        let before = if is_new { 0 } else { latest };
        let used = self.processes.entry(pid).or_insert(Used { start_time, before, latest });
        if used.start_time == start_time {
            used.latest = latest;
        } else {
            self.over += std::mem::replace(used, Used { start_time, before, latest }).since();
        }
    }

    /// A process has ended, which `ran` for so long as far as that is known: of one with threads, those that ended with it may be
    /// missing. It is looked at for the last time, too, as long as nobody has waited for it.
    pub fn has_ended(&mut self, pid: Pid, is_new: bool, ran: Duration) {
        self.look_at(pid, is_new);
        let looked = self.processes.remove(&pid);
        let before = looked.map_or(Duration::ZERO, |used| of_ticks(used.before));
        let seen = looked.map_or(Duration::ZERO, |used| of_ticks(used.since()));
        self.ended += seen.max(ran.saturating_sub(before));
    }

    /// The same for all that live, at most so many, which come round in turn.
    pub fn look(&mut self, processes: &[(Pid, bool)], most: usize) {
        let most = processes.len().min(most);
        for at in 0..most {
            let (pid, is_new) = processes[self.next.wrapping_add(at) % processes.len()];
            self.look_at(pid, is_new);
        }
        self.next = self.next.wrapping_add(most) % processes.len().max(1);
        if self.processes.len() > 2 * processes.len() + MOST_OVER {
            let live: HashSet<Pid> = processes.iter().map(|(pid, _)| *pid).collect();
            let over = self.processes.extract_if(|pid, _| !live.contains(pid));
            self.over += over.map(|(_, used)| used.since()).sum::<u64>();
        }
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
        let used = self.over + self.processes.values().map(Used::since).sum::<u64>();
        Some(Cost {
            hits: kinds.iter().map(|kind| kind.runs).sum(),
            go: kinds.get(cost::GO as usize).map_or(Duration::ZERO, |cost| time(cost::GO, cost, self.traps)),
            probes: kinds.iter().enumerate().map(|(kind, cost)| time(kind as u32, cost, self.traps)).sum(),
            own: own_time().saturating_sub(self.before),
            processes: of_ticks(used) + self.ended,
        })
    }
}

/// What all hits of one kind have taken: of some runs it is known how long they took.
fn time(kind: u32, cost: &cost::Cost, traps: Traps) -> Duration {
    let trap = if kind == cost::RETURN { traps.at_return } else { traps.instruction };
    let run = if cost.timed == 0 { 0.0 } else { cost.time as f64 / cost.timed as f64 };
    // Read one after the other while both go on.
    let stepped = cost.stepped.min(cost.runs);
    let of = |runs: u64, trap: Duration| runs as f64 * trap.as_nanos() as f64;
    let nanoseconds = of(cost.runs - stepped, trap) + of(stepped, traps.stepped) + cost.runs as f64 * run;
    Duration::from_nanos(nanoseconds as u64)
}

fn of_ticks(ticks: u64) -> Duration {
    Duration::from_secs_f64(ticks as f64 / clock_ticks_per_second() as f64)
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
        let traps = Traps {
            instruction: Duration::from_nanos(500),
            stepped: Duration::from_nanos(10_000),
            at_return: Duration::from_nanos(300),
        };
        let cost = |runs, timed, time| cost::Cost { runs, timed, time, ..cost::Cost::default() };
        assert_eq!(time(cost::ENTRY, &cost(640, 10, 2_000), traps), Duration::from_nanos(640 * 700));
        assert_eq!(time(cost::RETURN, &cost(10, 0, 0), traps), Duration::from_nanos(3_000));
        assert_eq!(time(cost::FREE, &cost(0, 0, 0), traps), Duration::ZERO);
        let some_dear = cost::Cost { stepped: 40, ..cost(640, 10, 2_000) };
        assert_eq!(time(cost::EXIT, &some_dear, traps), Duration::from_nanos(600 * 700 + 40 * 10_200));
    }

    #[test]
    fn own_time_goes_on() {
        let before = own_time();
        while own_time() == before {
            std::hint::spin_loop();
        }
    }
}
