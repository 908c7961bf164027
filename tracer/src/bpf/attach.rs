//! Attaching the programs to probe sites and to the life of processes.

use std::{num::NonZeroU32, os::fd::OwnedFd, path::Path};

use aya::programs::{
    Program, ProgramError, UProbe,
    uprobe::{UProbeAttachLocation, UProbeAttachPoint, UProbeLinkId, UProbeScope},
};

use super::{
    load_error::LoadError,
    loader::Programs,
    refusal,
    site::{Order, Placed, Site},
    tracepoints::raw_tracepoint,
};

/// The probes of one allocator in one process. Dropping it leaves those of perf events attached: detaching takes time, so
/// it is done by [`Links::detach`], or by the kernel when the tracer exits.
#[derive(Default)]
#[must_use = "links are detached through `detach`"]
pub struct Links {
    perf_events: Vec<(&'static str, UProbeLinkId)>,
    multi: Vec<OwnedFd>,
    /// Offsets of the probed instructions in the file.
    offsets: Vec<u64>,
}

impl Links {
    /// Attaches the program `name` at `sites` in `file`, for the process `pid` only, or for all that map the file.
    ///
    /// # Errors
    /// [`LoadError::Program`] when the kernel refuses: no permission, no such process, no instruction there.
    pub fn attach(
        &mut self,
        programs: &mut Programs,
        name: &'static str,
        file: &Path,
        sites: impl IntoIterator<Item = impl Into<Site>>,
        pid: impl Into<Option<NonZeroU32>>,
    ) -> Result<(), LoadError> {
        let placed = vec![(name, sites.into_iter().map(Into::into).collect())];
        self.attach_all(programs, placed, file, pid.into(), Order::InTurn)
    }

    /// The same for several programs. Those that were attached before one failed stay so.
    ///
    /// # Errors
    /// As [`Links::attach`].
    pub fn attach_all(
        &mut self,
        programs: &mut Programs,
        placed: Vec<Placed>,
        file: &Path,
        pid: Option<NonZeroU32>,
        order: Order,
    ) -> Result<(), LoadError> {
        if let Some(multi) = &mut programs.multi {
            multi.attach_all(&placed, file, pid.map_or(0, NonZeroU32::get), order, &mut self.multi)?;
        } else {
            for (name, sites) in &placed {
                let program = uprobe(programs, name)?;
                for Site { offset, cookie } in sites {
                    let location = UProbeAttachLocation::AbsoluteOffset(*offset);
                    let point = UProbeAttachPoint { location, cookie: Some(*cookie) };
                    let link =
                        program.attach(point, file, pid.map_or(UProbeScope::AllProcesses, UProbeScope::OneProcess));
                    self.perf_events.push((name, link.map_err(|error| LoadError::refused(name, &error))?));
                }
            }
        }
        self.offsets.extend(placed.iter().flat_map(|(_, sites)| sites).map(|site| site.offset));
        Ok(())
    }

    /// Number of probed instructions.
    pub fn len(&self) -> usize {
        self.offsets.len()
    }

    /// Whether nothing is attached.
    pub fn is_empty(&self) -> bool {
        self.offsets.is_empty()
    }

    /// Offsets of the probed instructions in the file.
    pub fn offsets(&self) -> &[u64] {
        &self.offsets
    }

    /// Whether the probes end with the one thread that they were attached to, not with the process.
    pub fn end_with_thread(&self) -> bool {
        !self.perf_events.is_empty()
    }

    /// Takes off the probes that are uprobe-multi links. When the thread that they were attached to has become another program,
    /// they take nothing up there, but are asked at every instruction that others have probed.
    pub fn close_multi(&mut self) {
        self.multi.clear();
    }

    /// Takes the probes off again.
    pub fn detach(self, programs: &mut Programs) {
        self.detach_aside(programs);
        programs.finish_detaching();
    }

    /// Takes the probes off without waiting for that.
    pub fn detach_aside(self, programs: &mut Programs) {
        let Self { perf_events, multi, .. } = self;
        let mut links: Vec<Box<dyn Send>> = Vec::new();
        for (name, link) in perf_events {
            match uprobe(programs, name).map(|program| program.take_link(link)) {
                Ok(Ok(link)) => links.push(Box::new(link)),
                Ok(Err(error)) => tracing::debug!("detaching {name}: {error}"),
                Err(error) => tracing::debug!("detaching {name}: {error}"),
            }
        }
        links.extend(multi.into_iter().map(|link| Box::new(link) as Box<dyn Send>));
        programs.remover.take(links);
    }
}

/// The uprobe program `name`, loaded.
fn uprobe<'a>(programs: &'a mut Programs, name: &str) -> Result<&'a mut UProbe, LoadError> {
    let program = programs.ebpf.program_mut(name).ok_or_else(|| LoadError::Mismatch(format!("no program {name}")))?;
    let program: &mut UProbe =
        program.try_into().map_err(|error: ProgramError| LoadError::Mismatch(format!("program {name}: {error}")))?;
    match refusal::again(|| program.load(), |error| refusal::number(error)) {
        Ok(()) | Err(ProgramError::AlreadyLoaded) => Ok(program),
        Err(error) => Err(LoadError::refused(name, &error)),
    }
}

impl Programs {
    /// Whether some probes are not off yet that were taken off aside.
    pub fn is_detaching(&self) -> bool {
        self.remover.is_at_work()
    }

    /// Waits until all probes are off that were taken off aside.
    pub fn finish_detaching(&self) {
        self.remover.finish();
    }

    /// Loads every program, those that go to instructions in each way in which this kernel lets them be attached, and tells
    /// of each what the kernel's verifier says; in no order. Tracing loads those that it attaches only.
    pub fn load_all(&mut self) -> Vec<(String, Result<(), LoadError>)> {
        let mut loaded = Vec::new();
        for (name, program) in self.ebpf.programs_mut() {
            let taken = match program {
                Program::UProbe(program) => program.load(),
                Program::RawTracePoint(program) => program.load(),
                // Where it is not allowed, another one does.
                Program::FEntry(_) => continue,
                _ => Err(ProgramError::UnexpectedProgramType),
            };
            let taken = match taken {
                Ok(()) | Err(ProgramError::AlreadyLoaded) => Ok(()),
                Err(error) => Err(LoadError::refused(name, &error)),
            };
            loaded.push((name.to_owned(), taken));
            if let (Program::UProbe(_), Some(multi)) = (program, &mut self.multi) {
                loaded.push((format!("{name} (multi)"), multi.program(name).map(drop)));
            }
        }
        loaded
    }
}

/// Attaches the programs that follow forks, execs and the ends of threads. Raw tracepoints: they need no tracefs.
///
/// # Errors
/// [`LoadError::Program`] when the kernel refuses.
pub fn attach_lifecycle(programs: &mut Programs) -> Result<(), LoadError> {
    for (name, tracepoint) in [
        ("process_fork", "sched_process_fork"),
        ("process_exec", "sched_process_exec"),
        ("thread_exit", "sched_process_exit"),
    ] {
        raw_tracepoint(&mut programs.ebpf, name, tracepoint)?;
    }
    // From Linux 6.10 on; before, probes of one process are met by what works on its memory, too.
    if let Err(error) = raw_tracepoint(&mut programs.ebpf, "process_prepares_exec", "sched_prepare_exec") {
        tracing::debug!("what becomes of processes that worked on another one's memory is seen when it has: {error}");
    }
    Ok(())
}

/// Why what processes map is not recorded.
#[derive(Debug, thiserror::Error)]
pub enum NoRemappings {
    /// The kernel does not say how its lock of mappings can be watched, or what its tree of mappings looks like.
    #[error(
        "this kernel does not tell of its lock of mappings, or has another tree of them than those from Linux 6.1 on"
    )]
    Unknown,
    /// It would cost every process of the machine.
    #[error("before Linux 6.14 every process of the machine would pay for it; --mmap=always has it done all the same")]
    Dear,
    /// The BPF side reads registers of x86-64 only.
    #[error("that is possible on x86-64 only")]
    Machine,
    /// The kernel refuses.
    #[error(transparent)]
    Refused(#[from] LoadError),
}

/// Attaches the programs that record what processes map and unmap: to tracepoints of the lock that they take for that. `always`: even
/// where that costs others something.
///
/// # Errors
/// Why that cannot be.
pub fn attach_remappings(programs: &mut Programs, always: bool) -> Result<(), NoRemappings> {
    if !cfg!(target_arch = "x86_64") {
        return Err(NoRemappings::Machine);
    }
    let lock = programs.remappings.ok_or(NoRemappings::Unknown)?;
    if lock.cost_others && !always {
        return Err(NoRemappings::Dear);
    }
    for (name, tracepoint) in [
        ("remapping_ends", "mmap_lock_released"),
        ("remapping_room", "vm_unmapped_area"),
        // Last: what is begun is seen to its end.
        ("remapping_begins", "mmap_lock_acquire_returned"),
    ] {
        if name == "remapping_room" && programs.placed {
            continue;
        }
        raw_tracepoint(&mut programs.ebpf, name, tracepoint)?;
    }
    Ok(())
}
