//! Rights of this process: capabilities by name, and whether they are those of the machine or of a namespace.

use std::fs;

use rustix::thread::CapabilitySet;

use super::line::{Line, Need, Section};
use crate::preflight::Machine;

/// What a process in the kernel's first user namespace has as `/proc/self/ns/user` (PROC_USER_INIT_INO in the kernel's
/// include/linux/proc_ns.h).
const FIRST_USER_NAMESPACE: &str = "user:[4026531837]";
/// Yama's level at which nobody may look into the memory of others, whatever the rights.
const NOBODY: &str = "3";

/// A capability.
struct Capability {
    set: CapabilitySet,
    name: &'static str,
    need: Need,
    needed_for: &'static str,
    /// Whether CAP_SYS_ADMIN stands for it.
    old: bool,
}

const CAPABILITIES: [Capability; 5] = [
    Capability {
        set: CapabilitySet::BPF,
        name: "CAP_BPF",
        need: Need::Required,
        needed_for: "making BPF maps, loading BPF programs",
        old: true,
    },
    Capability {
        set: CapabilitySet::PERFMON,
        name: "CAP_PERFMON",
        need: Need::Required,
        needed_for: "BPF programs that read memory, and attaching them",
        old: true,
    },
    Capability {
        set: CapabilitySet::SYS_PTRACE,
        name: "CAP_SYS_PTRACE",
        need: Need::Required,
        needed_for: "looking into processes: mappings, memory, Go heaps, goroutines",
        old: false,
    },
    Capability {
        set: CapabilitySet::CHECKPOINT_RESTORE,
        name: "CAP_CHECKPOINT_RESTORE",
        need: Need::Required,
        needed_for: "opening the very files that a process has mapped (/proc/PID/map_files)",
        old: true,
    },
    Capability {
        set: CapabilitySet::DAC_READ_SEARCH,
        name: "CAP_DAC_READ_SEARCH",
        need: Need::Optional,
        needed_for: "of other users' processes: files that were deleted or lie in containers, environments, Go runtimes",
        old: false,
    },
];

/// Rights of this process.
#[derive(Clone, Debug)]
pub(super) struct Rights {
    machine: Machine,
    user: u32,
    first_user_namespace: bool,
    ptrace_scope: Option<String>,
}

impl Rights {
    /// Those of this process.
    pub(super) fn this(machine: Machine) -> Self {
        let namespace = fs::read_link("/proc/self/ns/user").ok();
        Self {
            machine,
            user: rustix::process::geteuid().as_raw(),
            first_user_namespace: namespace.is_none_or(|namespace| namespace.as_os_str() == FIRST_USER_NAMESPACE),
            ptrace_scope: fs::read_to_string("/proc/sys/kernel/yama/ptrace_scope").ok(),
        }
    }

    /// Whether a capability is there, or the old one that stands for it.
    fn has(&self, capability: &Capability) -> bool {
        let all = if capability.old { capability.set | CapabilitySet::SYS_ADMIN } else { capability.set };
        let reads_all = CapabilitySet::DAC_READ_SEARCH | CapabilitySet::DAC_OVERRIDE;
        let all = if capability.set == CapabilitySet::DAC_READ_SEARCH { reads_all } else { all };
        self.machine.capabilities.intersects(all)
    }

    /// Names of those that are missing of these.
    pub(super) fn missing(&self, of: CapabilitySet) -> Vec<&'static str> {
        let wanted = CAPABILITIES.iter().filter(|capability| of.contains(capability.set));
        let mut missing: Vec<&str> =
            wanted.filter(|capability| !self.has(capability)).map(|capability| capability.name).collect();
        if of.contains(CapabilitySet::SYS_ADMIN) && !self.machine.capabilities.contains(CapabilitySet::SYS_ADMIN) {
            missing.push("CAP_SYS_ADMIN");
        }
        missing
    }

    /// What there is to say of them. `by_events`: probes are perf events here, for which the kernel asks for CAP_SYS_ADMIN.
    pub(super) fn section(&self, by_events: bool) -> Section {
        let mut lines: Vec<Line> = CAPABILITIES.iter().map(|capability| self.line(capability)).collect();
        let admin = Line::new("CAP_SYS_ADMIN", Need::Required, "probes by perf events, before Linux 6.13");
        let has_admin = self.machine.capabilities.contains(CapabilitySet::SYS_ADMIN);
        lines.push(match (by_events, has_admin) {
            (false, has) => admin.not_needed(if has { "there" } else { "not there" }),
            (true, true) => admin.works("there"),
            (true, false) => admin.missing("not in the effective set", advice("CAP_SYS_ADMIN")),
        });
        lines.extend([self.pid_namespace(), self.user_namespace(), self.yama()]);
        Section { title: "rights", lines }
    }

    fn line(&self, capability: &Capability) -> Line {
        let line = Line::new(capability.name, capability.need, capability.needed_for);
        match (self.machine.capabilities.intersects(capability.set), self.has(capability)) {
            (true, _) => line.works("there"),
            (false, true) if capability.old => line.works("CAP_SYS_ADMIN stands for it"),
            (false, true) => line.works("CAP_DAC_OVERRIDE stands for it"),
            (false, false) => line.missing("not in the effective set", advice(capability.name)),
        }
    }

    fn pid_namespace(&self) -> Line {
        let line = Line::new("PID namespace", Need::Required, "process ids that are the kernel's");
        if self.machine.first_pid_namespace {
            line.works("the machine's")
        } else {
            line.missing("one of its own", "run tracer on the host, or in a container with --pid=host")
        }
    }

    fn user_namespace(&self) -> Line {
        let line = Line::new("user namespace", Need::Required, "capabilities that count for the whole machine");
        if self.first_user_namespace {
            line.works(format!("the machine's, as user {}", self.user))
        } else {
            line.missing(
                format!("one of its own, as user {}: its capabilities count in there only", self.user),
                "run tracer on the host, or in a container whose root is the machine's",
            )
        }
    }

    fn yama(&self) -> Line {
        let line = Line::new("ptrace scope", Need::ForCompleteness, "reading memory of processes, launching commands");
        match self.ptrace_scope.as_deref().map(str::trim) {
            None => line.works("no restriction (no Yama)"),
            Some(NOBODY) => line.degraded(
                "kernel.yama.ptrace_scope is 3: nobody may look into memory",
                "boot with another level: this one cannot be lowered again",
            ),
            Some(level) => line.works(format!("kernel.yama.ptrace_scope is {level}, which CAP_SYS_PTRACE is above")),
        }
    }
}

fn advice(capability: &str) -> String {
    format!("run tracer as root (sudo), or with {capability} (setcap; --cap-add of containers)")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::line::{Status, Verdict, verdict};

    fn rights(capabilities: CapabilitySet) -> Rights {
        let release = "6.18.0".to_owned();
        let machine = Machine { release, capabilities, first_pid_namespace: true, root: "/".into() };
        Rights { machine, user: 65534, first_user_namespace: true, ptrace_scope: None }
    }

    #[test]
    fn each_missing_capability_has_a_line() {
        let all = CAPABILITIES.iter().fold(CapabilitySet::empty(), |all, capability| all | capability.set);
        for capability in &CAPABILITIES {
            let rights = rights(all.difference(capability.set));
            let section = rights.section(false);
            let missing: Vec<&str> = section
                .lines
                .iter()
                .filter(|line| line.status == Status::Missing)
                .map(|line| line.topic.as_str())
                .collect();
            assert_eq!(missing, [capability.name]);
            assert_eq!(rights.missing(all), [capability.name]);
        }
        assert_eq!(verdict(&[rights(all).section(false)]), Verdict::Complete);
        assert_eq!(verdict(&[rights(all).section(true)]), Verdict::Nothing, "perf events ask for more");
        let classic = CapabilitySet::SYS_ADMIN | CapabilitySet::SYS_PTRACE | CapabilitySet::DAC_OVERRIDE;
        assert_eq!(verdict(&[rights(classic).section(true)]), Verdict::Complete);
    }

    #[test]
    fn namespaces_of_its_own_are_told() {
        let all = CapabilitySet::all();
        let mut inside = rights(all);
        inside.first_user_namespace = false;
        assert_eq!(verdict(&[inside.section(false)]), Verdict::Nothing);
        let mut inside = rights(all);
        inside.machine.first_pid_namespace = false;
        assert_eq!(verdict(&[inside.section(false)]), Verdict::Nothing);
        let locked = Rights { ptrace_scope: Some("3\n".to_owned()), ..rights(all) };
        assert_eq!(verdict(&[locked.section(false)]), Verdict::Incomplete);
    }
}
