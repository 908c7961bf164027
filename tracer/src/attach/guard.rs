//! Whether the probes of a process are still where they were put: looked at now and then, and believed to be gone only at the second
//! look, for the first one may have been at an exec of which nothing has been heard yet.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use super::probed_code::{Look, ProbedCode};
use crate::{event::Pid, files::module::Module, space::address_space::AddressSpace};

/// How often the probes are looked for in the code of the process at most.
const CHECKING: Duration = Duration::from_millis(200);
/// How long after a look that has not found them to look again.
pub const SUSPENSE: Duration = Duration::from_millis(50);

/// What is known of the probes of one process.
pub(super) struct Guard {
    /// What is probed, a file each, as it was last looked at; `None` where that is not known, or not worth another look.
    probed: Option<Vec<ProbedCode>>,
    /// When all probes were seen in force last.
    seen: Instant,
    /// When they are to be looked for again.
    next: Instant,
    /// Whether they were gone at the last look.
    suspect: bool,
    /// Whether they are not to be looked for any more.
    left: bool,
}

/// Probes that are gone.
pub(super) struct Gone {
    /// How many.
    pub(super) missing: usize,
    /// In the place of how many of them there is something else than what the file has.
    pub(super) replaced: usize,
    /// Of how many.
    pub(super) of: usize,
}

impl Guard {
    pub(super) fn new(now: Instant) -> Self {
        Self { probed: None, seen: now, next: now, suspect: false, left: false }
    }

    /// The process has become another program, or has other probes.
    pub(super) fn forget(&mut self) {
        (self.left, self.probed, self.suspect) = (false, None, false);
    }

    /// The process has more probes than before.
    pub(super) fn has_others(&mut self) {
        (self.probed, self.suspect) = (None, false);
    }

    /// Does not look for these any more: they will not be back.
    pub(super) fn leave(&mut self) {
        (self.suspect, self.left) = (false, true);
    }

    /// Has the probes looked for the next time that somebody asks.
    pub(super) fn look_now(&mut self) {
        self.next = Instant::now();
    }

    /// Whether probes seem to be gone.
    pub(super) fn is_suspect(&self) -> bool {
        self.suspect
    }

    /// When they are to be looked for again.
    pub(super) fn next(&self) -> Instant {
        self.next
    }

    /// Whether they are to be looked for now.
    pub(super) fn is_due(&self, now: Instant) -> bool {
        now >= self.next && !self.left
    }

    /// Looks for the probes of process `pid` that are at these offsets in these files. `Some` when they are gone for certain.
    pub(super) fn check(&mut self, pid: Pid, probed: impl FnOnce() -> Vec<(Arc<Module>, Vec<u64>)>) -> Option<Gone> {
        let now = Instant::now();
        self.next = now + CHECKING;
        let known: Option<Look> = self.probed.as_ref().and_then(|probed| probed.iter().map(ProbedCode::look).sum());
        // Not looked at yet, or mapped elsewhere.
        let known = known.filter(|look| look.missing == 0);
        let Look { missing, replaced } = known.or_else(|| self.look(pid, &probed()))?;
        if missing == 0 {
            (self.seen, self.suspect) = (now, false);
            return None;
        }
        if !std::mem::replace(&mut self.suspect, true) {
            self.next = now + SUSPENSE;
            return None;
        }
        let of = self.probed.as_ref().map_or(missing, |probed| probed.iter().map(ProbedCode::instructions).sum());
        Some(Gone { missing, replaced, of })
    }

    /// They were put there again, or could not be. For how long they were away at most.
    pub(super) fn renewed(&mut self) -> Duration {
        let away = self.seen.elapsed();
        (self.suspect, self.seen) = (false, Instant::now());
        away
    }

    /// Whether the probes are in the code of the process, as it is mapped now. `None` when it has ended, or
    /// cannot be read.
    pub(super) fn look(&mut self, pid: Pid, probed: &[(Arc<Module>, Vec<u64>)]) -> Option<Look> {
        let mut space = AddressSpace::new(pid);
        space.refresh().ok()?;
        self.locate(pid, probed, &space).iter().map(ProbedCode::look).sum()
    }

    /// Takes down where the probes are in the code of the process, which is mapped like this.
    pub(super) fn locate(
        &mut self,
        pid: Pid,
        probed: &[(Arc<Module>, Vec<u64>)],
        space: &AddressSpace,
    ) -> &[ProbedCode] {
        let located = probed.iter().map(|(module, offsets)| {
            let mut probed = ProbedCode::new(pid, module, offsets);
            probed.locate(module, space);
            probed
        });
        self.probed.insert(located.collect())
    }
}
