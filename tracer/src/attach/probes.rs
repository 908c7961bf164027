//! Putting probes on allocators: for one process, or on a file for all processes that map it.

use std::{cell::OnceCell, num::NonZeroU32, sync::Arc};

use anyhow::{Context as _, Result};

use super::{
    find::{Allocator, file_name, is_libc},
    returns::Returns,
};
use crate::{
    bpf::{Links, Order, Placed, Programs, Site},
    clock::monotonic,
    event::Pid,
    files::{module::Module, root},
    probe::{
        outcomes::{self, Means},
        risks::{self, Risk},
    },
    report::visible,
    space::address_space::AddressSpace,
};

/// For whom probes are there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// For one process each. Nobody else pays; what it starts has none until they are attached.
    Process,
    /// For all that map the file. Others pay for being asked whether they are traced; what is started has them from its first
    /// instruction on.
    File,
}

/// The programs, and what they are attached to in file scope.
pub struct Probes {
    /// The programs.
    pub programs: Programs,
    scope: Scope,
    /// Files that are probed for everybody, and since when. Held, so that no other gets its identity.
    files: Vec<Probed>,
}

/// A file that is probed for everybody.
struct Probed {
    module: Arc<Module>,
    links: Links,
    /// Nanoseconds of CLOCK_MONOTONIC.
    since: u64,
}

impl Probes {
    /// None yet.
    pub fn new(programs: Programs, scope: Scope) -> Self {
        Self { programs, scope, files: Vec::new() }
    }

    /// For whom they are.
    pub fn scope(&self) -> Scope {
        self.scope
    }

    /// Whether a file is probed for everybody.
    pub fn covers(&self, module: &Module) -> bool {
        self.of(module).is_some()
    }

    /// Since when, nanoseconds of CLOCK_MONOTONIC.
    pub fn covered_since(&self, module: &Module) -> Option<u64> {
        self.of(module).map(|probed| probed.since)
    }

    fn of(&self, module: &Module) -> Option<&Probed> {
        self.files.iter().find(|probed| probed.module.identity() == module.identity())
    }

    /// Offsets of the probed instructions in an allocator's file, bytes; `own`: the probes of the process alone.
    pub fn offsets<'a>(&'a self, module: &Module, own: &'a Links) -> &'a [u64] {
        self.of(module).map_or(own, |probed| &probed.links).offsets()
    }

    /// Probes an allocator of the process `pid`, of which `task` is a thread. What it gives back is for that process alone: nothing
    /// in file scope.
    ///
    /// # Errors
    /// The kernel refuses; nothing stays attached then.
    pub fn attach(
        &mut self,
        allocator: &Allocator,
        pid: Pid,
        task: u32,
        returns: Returns,
        order: Order,
    ) -> Result<Links> {
        match self.scope {
            Scope::Process => {
                let task = NonZeroU32::new(task).context("process id 0")?;
                probe(&mut self.programs, allocator, pid, Some(task), returns, order)
            }
            Scope::File if self.covers(&allocator.module) => Ok(Links::default()),
            Scope::File => {
                let links = probe(&mut self.programs, allocator, pid, None, returns, order)?;
                self.files.push(Probed { module: Arc::clone(&allocator.module), links, since: monotonic() });
                Ok(Links::default())
            }
        }
    }

    /// Takes the probes off a file that were there for everybody.
    pub fn forget(&mut self, module: &Module) {
        if let Some(at) = self.files.iter().position(|probed| probed.module.identity() == module.identity()) {
            self.files.swap_remove(at).links.detach_aside(&mut self.programs);
        }
    }

    /// Has all taken off that are there for everybody.
    pub fn take_off(&mut self) {
        for Probed { links, .. } in self.files.drain(..) {
            links.detach_aside(&mut self.programs);
        }
    }

    /// Waits until all are off that were to be.
    pub fn finish(&mut self) {
        self.programs.finish_detaching();
    }
}

/// Attaches every function's programs in this order, for `task` of the process `pid` or for everybody; nothing stays attached when one fails.
fn probe(
    programs: &mut Programs,
    allocator: &Allocator,
    pid: Pid,
    task: Option<NonZeroU32>,
    returns: Returns,
    order: Order,
) -> Result<Links> {
    let file = allocator.module.probe_path().context("the allocator's file is not open")?;
    let found = OnceCell::new();
    let risk = || found.get_or_init(|| risk(pid, allocator, returns)).clone();
    let means = Means { asked: returns.asked, sessions: programs.has_sessions(), risk: &risk };
    let plan = outcomes::plan(&allocator.functions, &means);
    let mut links = Links::default();
    // A call must not be seen entering before its return can be seen; the switch in the collector covers the rest.
    let sites = |places: Vec<(u64, u64)>| places.into_iter().map(|(offset, cookie)| Site { offset, cookie }).collect();
    let placed: Vec<Placed> = plan.programs.into_iter().map(|(program, places)| (program, sites(places))).collect();
    if let Err(error) = links.attach_all(programs, placed, &file, task, order) {
        links.detach_aside(programs);
        return Err(error).with_context(|| format!("cannot probe {}", visible(allocator.module.path())));
    }
    for (name, choice) in plan.choices {
        let because = if choice.because.is_empty() { String::new() } else { format!(", because {}", choice.because) };
        tracing::debug!("outcomes of {name} are seen {}{because}", choice.way);
    }
    let dear: Vec<&str> = allocator.functions.iter().filter(|f| !f.emulated).map(|f| f.name).collect();
    tracing::debug!(instructions = links.len(), ?dear, "probes attached");
    Ok(links)
}

/// What in a process return probes could harm.
fn risk(pid: Pid, allocator: &Allocator, returns: Returns) -> Option<Risk> {
    if returns.declined {
        return Some(Risk::Seen);
    }
    if returns.among_others {
        return Some(Risk::Others);
    }
    // Without the right to look, or when it has ended: nothing is known.
    let environment = std::fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
    if let Some(risk) = risks::of_environment(&environment) {
        return Some(risk);
    }
    let mut space = AddressSpace::new(pid);
    space.refresh().ok()?;
    let executable = root::executable(pid).ok();
    let is_executable = |module: &Module| executable.as_ref().is_some_and(|file| module.is_file(file));
    if is_executable(&allocator.module) {
        return Some(Risk::OwnAllocator);
    }
    if let Some(risk) = risks::of_allocator(file_name(allocator.module.path())) {
        return Some(risk);
    }
    let mut files: Vec<Arc<Module>> = Vec::new();
    for (module, _) in space.executable_files() {
        if !files.iter().any(|known| known.identity() == module.identity()) {
            files.push(module);
        }
    }
    let defines = |module: &Module| is_libc(module.path()) || module.identity() == allocator.module.identity();
    files.iter().find_map(|module| risks::of_file(module.file()?, defines(module)))
}
