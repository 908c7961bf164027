//! What it costs on this machine that a probe is hit, whatever its program does: tried on a function of tracer's own.

use std::{
    io,
    time::{Duration, Instant},
};

use crate::bpf::{
    subject,
    trials::{self, Uprobe},
};

/// Calls that are timed together, and how often: what disturbs makes some of them slower, and none faster.
const CALLS: u32 = 50;
const ROUNDS: u32 = 40;

/// What one hit takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Traps {
    /// At an instruction that the kernel emulates.
    pub(super) instruction: Duration,
    /// At one that it steps.
    pub(super) stepped: Duration,
    /// At a return.
    pub(super) at_return: Duration,
}

impl Default for Traps {
    /// Where it cannot be tried: what was found on the machine that this was written on.
    fn default() -> Self {
        Self {
            instruction: Duration::from_nanos(600),
            stepped: Duration::from_nanos(10_500),
            at_return: Duration::from_nanos(350),
        }
    }
}

impl Traps {
    /// Tries it, by perf events or not.
    ///
    /// # Errors
    /// The kernel refuses.
    pub(super) fn measure(by_events: bool) -> io::Result<Self> {
        let (alone, with_return) =
            if by_events { (Uprobe::Event, Uprobe::ReturnEvent) } else { (Uprobe::Multi, Uprobe::Session) };
        let bare = time_of_calls();
        let (emulated, stepped) = (subject::place()?, subject::stepped_place()?);
        let mut times = [Duration::ZERO; 3];
        for (time, (way, place)) in times.iter_mut().zip([(alone, emulated), (alone, stepped), (with_return, emulated)])
        {
            let hits = trials::uprobe(way, subject::path(), place, None, || *time = time_of_calls())?;
            if hits == 0 {
                return Err(io::Error::other("the probe was not hit"));
            }
        }
        let [instruction, stepped, both] = times.map(|time| time.saturating_sub(bare));
        Ok(Self { instruction, stepped, at_return: both.saturating_sub(instruction) })
    }
}

/// How long a call takes.
fn time_of_calls() -> Duration {
    let round = || {
        let begin = Instant::now();
        (0..CALLS).for_each(|_| subject::call());
        begin.elapsed() / CALLS
    };
    (0..ROUNDS).map(|_| round()).min().unwrap_or_default()
}
