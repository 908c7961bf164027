//! Whether this machine lets anything be traced: rights and kernel features, with what to do about each that is missing.

use std::{io, path::Path};

use rustix::thread::CapabilitySet;

use crate::bpf::kernel_version;

/// Something without which nothing can be traced.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum Missing {
    /// Rights.
    #[error("tracer lacks {0}: run it as root (sudo tracer ...), or in a container with --cap-add for each")]
    Capabilities(String),
    /// The kernel cannot trace user-space functions.
    #[error(
        "this kernel has no uprobes ({0} is not there): one with CONFIG_UPROBE_EVENTS=y is needed, as all distributions ship"
    )]
    Uprobes(String),
    /// The kernel is too old.
    #[error("this kernel is too old ({0}): Linux 5.17 or newer is needed")]
    Kernel(String),
    /// Process ids mean something else here than in the kernel.
    #[error(
        "tracer runs in a PID namespace of its own, where process ids are not the kernel's: run it on the host, or in a \
         container with --pid=host"
    )]
    PidNamespace,
    /// The kernel does not describe its types.
    #[error("this kernel does not describe its types ({0} is not there): one with CONFIG_DEBUG_INFO_BTF=y is needed")]
    Btf(String),
}

/// What was found on a machine.
#[derive(Clone, Debug)]
pub struct Machine {
    /// Release of the kernel, as uname(2) says it.
    pub release: String,
    /// Effective capabilities of this process.
    pub capabilities: CapabilitySet,
    /// Whether process ids are those of the kernel's first PID namespace.
    pub first_pid_namespace: bool,
    /// Where the kernel's files are: `/`, but for tests.
    pub root: std::path::PathBuf,
}

/// Oldest kernel: bpf_loop is of 5.17, BPF ring buffers are of 5.8, batch operations on hash maps of 5.6.
const OLDEST: (u32, u32) = (5, 17);

/// What `/proc/PID/ns/pid` of the processes of the first PID namespace points to (PROC_PID_INIT_INO in the kernel's
/// include/linux/proc_ns.h).
const FIRST_PID_NAMESPACE: &str = "pid:[4026531836]";

/// The kernel's list of uprobes as a source of perf events.
const UPROBE_PMU: &str = "sys/bus/event_source/devices/uprobe/type";
const BTF: &str = "sys/kernel/btf/vmlinux";

impl Machine {
    /// Looks at this machine.
    ///
    /// # Errors
    /// When the kernel does not tell the capabilities of this process.
    pub fn this() -> io::Result<Self> {
        let capabilities = rustix::thread::capabilities(None)?.effective;
        let release = rustix::system::uname().release().to_string_lossy().into_owned();
        let namespace = std::fs::read_link("/proc/self/ns/pid").ok();
        let first_pid_namespace = namespace.is_none_or(|namespace| namespace.as_os_str() == FIRST_PID_NAMESPACE);
        Ok(Self { release, capabilities, first_pid_namespace, root: "/".into() })
    }

    /// Checks everything that tracing needs, the most common obstacle first.
    ///
    /// # Errors
    /// The first thing that is [`Missing`].
    pub fn check(&self) -> Result<(), Missing> {
        self.check_capabilities()?;
        if !self.first_pid_namespace {
            return Err(Missing::PidNamespace);
        }
        if kernel_version(&self.release).is_some_and(|version| version < OLDEST) {
            return Err(Missing::Kernel(self.release.clone()));
        }
        let file =
            |path: &str| (!self.root.join(path).exists()).then(|| Path::new("/").join(path).display().to_string());
        file(UPROBE_PMU).map_or(Ok(()), |path| Err(Missing::Uprobes(path)))?;
        file(BTF).map_or(Ok(()), |path| Err(Missing::Btf(path)))
    }

    fn check_capabilities(&self) -> Result<(), Missing> {
        let has = |any: CapabilitySet| self.capabilities.intersects(any | CapabilitySet::SYS_ADMIN);
        let missing: Vec<&str> = [
            (CapabilitySet::BPF, "CAP_BPF (to load BPF programs)"),
            (CapabilitySet::PERFMON, "CAP_PERFMON (to attach probes)"),
            (CapabilitySet::CHECKPOINT_RESTORE, "CAP_CHECKPOINT_RESTORE (to open the files that a process has mapped)"),
        ]
        .into_iter()
        .filter(|(capability, _)| !has(*capability))
        .map(|(_, name)| name)
        .chain(
            (!self.capabilities.contains(CapabilitySet::SYS_PTRACE))
                .then_some("CAP_SYS_PTRACE (to look into processes)"),
        )
        .collect();
        if missing.is_empty() { Ok(()) } else { Err(Missing::Capabilities(missing.join(", "))) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn machine(root: &Path) -> Machine {
        for path in [UPROBE_PMU, BTF] {
            let path = root.join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, "9\n").unwrap();
        }
        Machine {
            release: "6.1.0-44-cloud-amd64".to_owned(),
            capabilities: CapabilitySet::all(),
            first_pid_namespace: true,
            root: root.to_owned(),
        }
    }

    #[test]
    fn each_missing_thing_is_named() {
        let directory = tempfile::tempdir().unwrap();
        let good = machine(directory.path());
        assert_eq!(good.check(), Ok(()));

        let old = Machine { release: "5.10.0-30-amd64".to_owned(), ..good.clone() };
        assert_eq!(old.check(), Err(Missing::Kernel("5.10.0-30-amd64".to_owned())));

        let weak = Machine { capabilities: CapabilitySet::empty(), ..good.clone() };
        let message = weak.check().unwrap_err().to_string();
        for name in ["CAP_BPF", "CAP_PERFMON", "CAP_CHECKPOINT_RESTORE", "CAP_SYS_PTRACE", "sudo"] {
            assert!(message.contains(name), "{message}");
        }
        // The old all-in-one right stands for the new ones.
        let classic = CapabilitySet::SYS_ADMIN | CapabilitySet::SYS_PTRACE;
        assert_eq!(Machine { capabilities: classic, ..good.clone() }.check(), Ok(()));

        let inside = Machine { first_pid_namespace: false, ..good.clone() };
        assert_eq!(inside.check(), Err(Missing::PidNamespace));

        std::fs::remove_file(directory.path().join(BTF)).unwrap();
        assert_eq!(good.check(), Err(Missing::Btf(format!("/{BTF}"))));
        std::fs::remove_file(directory.path().join(UPROBE_PMU)).unwrap();
        assert_eq!(good.check(), Err(Missing::Uprobes(format!("/{UPROBE_PMU}"))));
    }
}
