//! Giving up rights: what a trace reads is hostile, and who can do less can do less harm.

use rustix::thread::{CapabilitySet, CapabilitySets, capabilities, set_capabilities};

/// What looking into processes takes, and priorities of threads.
const LOOKING: CapabilitySet = CapabilitySet::SYS_PTRACE
    .union(CapabilitySet::CHECKPOINT_RESTORE)
    .union(CapabilitySet::DAC_READ_SEARCH)
    .union(CapabilitySet::SYS_NICE);
/// What probing takes.
const PROBING: CapabilitySet = CapabilitySet::BPF.union(CapabilitySet::PERFMON);
/// What writing reports takes, with owner and rights of those that are there.
const WRITING: CapabilitySet =
    CapabilitySet::DAC_OVERRIDE.union(CapabilitySet::CHOWN).union(CapabilitySet::FOWNER).union(CapabilitySet::FSETID);
/// What CAP_SYS_ADMIN stands for.
const NEW: CapabilitySet = PROBING.union(CapabilitySet::CHECKPOINT_RESTORE);

/// Whose rights are to be kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Who traces running processes. `by_events`: probes are perf events, which the kernel keeps for CAP_SYS_ADMIN.
    Tracer {
        /// It is so.
        by_events: bool,
    },
    /// Who opens files for it.
    Opener,
}

/// Has this process, which has one thread still, give up for good all capabilities but those of its role. What it launches lacks
/// them, too, but as root.
pub fn keep_those_of(role: Role) {
    let now = match capabilities(None) {
        Ok(now) => now,
        Err(error) => return tracing::debug!("cannot tell the rights of this process: {error}"),
    };
    let kept = kept(role, now.permitted);
    let sets = CapabilitySets {
        effective: now.effective.intersection(kept),
        permitted: now.permitted.intersection(kept),
        inheritable: now.inheritable.intersection(kept),
    };
    if let Err(error) = set_capabilities(None, sets) {
        tracing::debug!("cannot give up rights: {error}");
    }
}

/// What is kept of these.
fn kept(role: Role, permitted: CapabilitySet) -> CapabilitySet {
    let (wanted, by_events) = match role {
        Role::Tracer { by_events } => (LOOKING.union(PROBING).union(WRITING), by_events),
        Role::Opener => (LOOKING.union(CapabilitySet::DAC_OVERRIDE), false),
    };
    // It is all that there is where the new ones are not known, or were not given.
    let stands_for_others = !permitted.contains(NEW);
    if by_events || stands_for_others { wanted.union(CapabilitySet::SYS_ADMIN) } else { wanted }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_needed_is_kept() {
        let all = CapabilitySet::all();
        let tracer = |by_events, permitted| kept(Role::Tracer { by_events }, permitted);
        for needed in [PROBING, LOOKING, WRITING] {
            assert!(tracer(false, all).contains(needed));
        }
        for other in
            [CapabilitySet::SYS_ADMIN, CapabilitySet::SYS_MODULE, CapabilitySet::SETUID, CapabilitySet::NET_ADMIN]
        {
            assert!(!tracer(false, all).contains(other) && !kept(Role::Opener, all).contains(other));
        }
        assert!(!kept(Role::Opener, all).intersects(PROBING));
        assert!(tracer(true, all).contains(CapabilitySet::SYS_ADMIN), "perf events");
        let classic = CapabilitySet::SYS_ADMIN | CapabilitySet::SYS_PTRACE;
        assert!(tracer(false, classic).contains(classic), "it stands for others");
    }
}
