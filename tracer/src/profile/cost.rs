//! What tracing costs.

use std::time::Duration;

/// Least that processes must have used for a share to say something.
const LEAST: Duration = Duration::from_millis(200);

/// What a trace has cost so far, in time of processors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cost {
    /// How often a probe was hit, in whatever process.
    pub hits: u64,
    /// What that took, about: time of whatever processes.
    pub probes: Duration,
    /// What those in Go runtimes took of that.
    pub go: Duration,
    /// What tracer itself used.
    pub own: Duration,
    /// What the traced processes used, that of their probes included: to a hundredth of a second each. Of those that
    /// have ended, threads that ended with them count as they were when they were last looked at.
    pub processes: Duration,
}

impl Cost {
    /// What tracing cost, as a share of what the processes would have used without; `None` where that is too little to tell.
    pub fn share(&self) -> Option<f64> {
        let without = self.processes.saturating_sub(self.probes);
        (without >= LEAST).then(|| (self.probes + self.own).as_secs_f64() / without.as_secs_f64())
    }

    /// What probes took that can be taken off.
    pub fn bounded(&self) -> Duration {
        self.probes.saturating_sub(self.go)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_share_is_of_what_they_would_have_used() {
        let cost = |processes| Cost {
            hits: 1000,
            go: Duration::ZERO,
            probes: Duration::from_millis(400),
            own: Duration::from_millis(100),
            processes: Duration::from_millis(processes),
        };
        assert_eq!(cost(2400).share(), Some(0.25));
        assert_eq!((cost(500).share(), cost(300).share()), (None, None));
    }
}
