//! Putting probes on allocators: for one process, or on a file for all processes that map it.

use std::{cell::OnceCell, num::NonZeroU32, sync::Arc};

use anyhow::{Context as _, Result, bail};

use super::{
    altered::{Altered, Machine, Printed, altered, printed},
    find::{Allocator, Allocators, file_name, is_libc},
    returns::Returns,
};
use crate::{
    bpf::{Links, Order, Placed, Programs, Site},
    clock::monotonic,
    event::Pid,
    files::{
        module::{Identity, Module},
        root,
    },
    probe::{
        outcomes::{self, Means},
        resolve::Functions,
        risks::{self, Risk},
    },
    process::{stat::shown_by, status},
    report::visible,
    space::address_space::AddressSpace,
};

/// For whom probes are there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// For one process each. Nobody else pays, unless its first thread has ended; what it starts has none until they are attached.
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
    /// Whether none are to be there for a while.
    are_away: bool,
    /// Files that are probed for everybody, and since when. Held, so that no other gets its identity.
    files: Vec<Probed>,
    /// Number of the next function.
    next: u16,
    machine: Machine,
}

/// The probes that are there for one process, by the files that they are on: none in file scope.
#[derive(Default)]
#[must_use = "links are detached through `detach_aside`"]
pub struct Own(Vec<(Identity, Links)>);

impl Own {
    /// Whether there are probes on a file.
    pub fn covers(&self, module: &Module) -> bool {
        self.on(module).is_some()
    }

    fn on(&self, module: &Module) -> Option<&Links> {
        self.0.iter().find(|(identity, _)| identity == module.identity()).map(|(_, links)| links)
    }

    /// Takes in others, on other files.
    pub fn extend(&mut self, others: Self) {
        self.0.extend(others.0);
    }

    /// Whether they end with the one thread that they were attached to, not with the process.
    pub fn end_with_thread(&self) -> bool {
        self.0.iter().any(|(_, links)| links.end_with_thread())
    }

    /// See [`Links::close_multi`].
    pub fn close_multi(&mut self) {
        self.0.iter_mut().for_each(|(_, links)| links.close_multi());
    }

    /// Takes them off without waiting for that.
    pub fn detach_aside(self, programs: &mut Programs) {
        self.0.into_iter().for_each(|(_, links)| links.detach_aside(programs));
    }
}

/// What came of putting probes on the files of a process.
pub struct Put {
    /// Those that are for the process.
    pub own: Own,
    /// What is not seen because a file cannot be probed.
    pub unseen: Vec<String>,
}

/// A file that is probed for everybody.
struct Probed {
    allocator: Allocator,
    /// By which process it was found, and how outcomes are to be seen.
    found_by: (Pid, Returns),
    /// How the kernel prints it of that process.
    printed: Printed,
    links: Links,
    /// Nanoseconds of CLOCK_MONOTONIC.
    since: u64,
}

impl Probes {
    /// None yet.
    pub fn new(programs: Programs, scope: Scope) -> Self {
        Self { programs, scope, are_away: false, files: Vec::new(), next: 0, machine: Machine::default() }
    }

    /// For whom they are.
    pub fn scope(&self) -> Scope {
        self.scope
    }

    /// Whether a file is probed for everybody.
    pub fn covers(&self, module: &Module) -> bool {
        !self.are_away && self.of(module).is_some()
    }

    /// Since when all of these are probed for everybody, nanoseconds of CLOCK_MONOTONIC.
    pub fn covered_since(&self, allocators: &Allocators) -> Option<u64> {
        let since = |allocator: &Allocator| self.of(&allocator.module).map(|probed| probed.since);
        allocators.files().iter().map(since).collect::<Option<Vec<u64>>>()?.into_iter().max()
    }

    fn of(&self, module: &Module) -> Option<&Probed> {
        self.files.iter().find(|probed| probed.allocator.module.is_same(module))
    }

    /// Offsets of the probed instructions in an allocator's file, bytes; `own`: the probes of the process alone.
    pub fn offsets<'a>(&'a self, module: &Module, own: &'a Own) -> &'a [u64] {
        self.of(module).map(|probed| &probed.links).or_else(|| own.on(module)).map_or(&[], Links::offsets)
    }

    /// Probes allocators of the process `pid`, of which `task` is a thread.
    ///
    /// # Errors
    /// The kernel refuses, for each of them; nothing stays attached then.
    pub fn attach<'a>(
        &mut self,
        allocators: impl IntoIterator<Item = &'a Allocator>,
        pid: Pid,
        task: u32,
        returns: Returns,
        order: Order,
    ) -> Result<Put> {
        let mut put = Put { own: Own::default(), unseen: Vec::new() };
        let (mut failure, mut any) = (None, false);
        for allocator in allocators {
            match self.attach_one(allocator, None, pid, task, returns, order) {
                Ok((links, notes)) => {
                    put.unseen.extend(notes);
                    put.own.0.extend(links.map(|links| (allocator.module.identity().clone(), links)));
                    any = true;
                }
                Err(error) => {
                    put.unseen.push(unprobed(allocator.module.path(), pid, !status::is_alive(pid), &error));
                    failure = failure.or(Some(error));
                }
            }
        }
        match failure {
            Some(error) if !any => Err(error),
            _ => Ok(put),
        }
    }

    /// Probes one allocator, which is printed as `known` where that was found out before: the probes, if they are for the process alone, and
    /// what of it is not probed.
    fn attach_one(
        &mut self,
        allocator: &Allocator,
        known: Option<Printed>,
        pid: Pid,
        task: u32,
        returns: Returns,
        order: Order,
    ) -> Result<(Option<Links>, Vec<String>)> {
        if self.are_away && (self.scope == Scope::Process || self.of(&allocator.module).is_some()) {
            // When they come back.
            return Ok(((self.scope == Scope::Process).then(Links::default), Vec::new()));
        }
        let first = self.next;
        self.next = first.wrapping_add(allocator.functions.functions.len() as u16);
        match self.scope {
            Scope::Process => {
                let task = NonZeroU32::new(task).context("process id 0")?;
                // Uprobe-multi links know a process by its first thread only: where that has ended, they are there for everybody.
                let of_all = self.programs.has_multi() && task.get() != pid;
                let (module, functions) = (&allocator.module, &allocator.functions.functions);
                let altered = if of_all {
                    tracing::warn!(
                        "the first thread of process {pid} has ended: its probes on {} are there for all that map the file from now on",
                        visible(module.path())
                    );
                    self.machine.altered(pid, &printed(pid, module), module, functions)
                } else {
                    altered(pid, module, functions)
                };
                let (left, notes) = without(allocator, pid, &altered)?;
                let (task, among_others) = if of_all { (None, true) } else { (Some(task), returns.among_others) };
                let returns = Returns { among_others, ..returns };
                let links = probe(&mut self.programs, &left, first, pid, task, returns, order)?;
                Ok((Some(links), notes))
            }
            Scope::File if self.covers(&allocator.module) => Ok((None, Vec::new())),
            Scope::File => {
                // What was in it before.
                self.forget(&allocator.module);
                let (mut links, mut notes) = (Links::default(), Vec::new());
                let module = &allocator.module;
                let printed = known.unwrap_or_else(|| printed(pid, module));
                if printed.is_empty() {
                    bail!("cannot probe {}: process {pid} has it no longer", visible(module.path()));
                }
                if !self.are_away {
                    let altered = self.machine.altered(pid, &printed, module, &allocator.functions.functions);
                    let left;
                    (left, notes) = without(allocator, pid, &altered)?;
                    links = probe(&mut self.programs, &left, first, pid, None, returns, order)?;
                }
                let (allocator, since) = (allocator.clone(), monotonic());
                self.files.push(Probed { allocator, found_by: (pid, returns), printed, links, since });
                Ok((None, notes))
            }
        }
    }

    /// Takes the probes off a file that were there for everybody.
    pub fn forget(&mut self, module: &Module) {
        if let Some(at) = self.files.iter().position(|probed| probed.allocator.module.identity() == module.identity()) {
            self.files.swap_remove(at).links.detach_aside(&mut self.programs);
        }
    }

    /// Has those taken off that are there for everybody, for a while, in which no others are put either.
    pub fn go_away(&mut self) {
        self.are_away = true;
        for probed in &mut self.files {
            std::mem::take(&mut probed.links).detach_aside(&mut self.programs);
        }
    }

    /// Puts those again that are there for everybody. A file that cannot be probed any more is left.
    pub fn come_back(&mut self) {
        self.are_away = false;
        for Probed { allocator, found_by: (pid, returns), printed, .. } in std::mem::take(&mut self.files) {
            match self.attach_one(&allocator, Some(printed), pid, pid, returns, Order::AtOnce) {
                Ok((_, notes)) => notes.iter().for_each(|note| tracing::warn!("{note}")),
                Err(error) => {
                    tracing::warn!("{error:#}: what is allocated by that file is not recorded any more");
                }
            }
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

/// An allocator without the functions that are altered somewhere, and what that comes to in words for process `pid`.
///
/// # Errors
/// None is left.
fn without(allocator: &Allocator, pid: Pid, altered: &[Altered]) -> Result<(Allocator, Vec<String>)> {
    let Allocator { module, functions } = allocator;
    if altered.is_empty() {
        return Ok((allocator.clone(), Vec::new()));
    }
    let is_altered = |number: usize| altered.iter().any(|altered| altered.function == number);
    let (mut names, mut left) = (Vec::new(), Vec::new());
    for (number, function) in functions.functions.iter().enumerate() {
        if is_altered(number) { names.push(function.name.as_str()) } else { left.push(function.clone()) }
    }
    let (names, path) = (names.join(", "), visible(module.path()));
    let by = altered.iter().find(|altered| altered.pid == pid).or(altered.first()).map_or(pid, |altered| altered.pid);
    let advice = if by == pid { "" } else { " (--scope=process leaves others alone)" };
    let what = format!(
        "process {by} runs code of its own in the place of {names} of {path}, where a probe would make it crash{advice}"
    );
    if left.is_empty() {
        bail!("{what}");
    }
    let functions = Functions { functions: left, ..Functions::clone(functions) };
    Ok((
        Allocator { module: Arc::clone(module), functions: Arc::new(functions) },
        vec![format!("{what}: what is allocated and freed by that is not recorded")],
    ))
}

/// What is not recorded of a process where a file was not probed for this reason, or because it ended.
fn unprobed(path: &str, pid: Pid, has_ended: bool, error: &anyhow::Error) -> String {
    if has_ended {
        let file = visible(path);
        return format!(
            "process {pid} ended before {file} could be probed: what it allocated by that file is not recorded"
        );
    }
    format!("{error:#}: what process {pid} allocates by that file is not recorded")
}

/// Attaches every function's programs in this order, for `task` of the process `pid` or for everybody; nothing stays attached when one fails.
fn probe(
    programs: &mut Programs,
    allocator: &Allocator,
    first: u16,
    pid: Pid,
    task: Option<NonZeroU32>,
    returns: Returns,
    order: Order,
) -> Result<Links> {
    let file = allocator.module.probe_path().context("the allocator's file is not open")?;
    let found = OnceCell::new();
    let risk = || found.get_or_init(|| risk(pid, allocator, returns)).clone();
    let means =
        Means { asked: returns.asked, sessions: programs.has_sessions(), samples: programs.samples(), risk: &risk };
    let plan = outcomes::plan(&allocator.functions.functions, first, &means);
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
    tracing::debug!(instructions = links.len(), "probes attached to {}", visible(allocator.module.path()));
    Ok(links)
}

/// What in a process return probes could harm.
pub fn risk(pid: Pid, allocator: &Allocator, returns: Returns) -> Option<Risk> {
    if returns.declined {
        return Some(Risk::Seen);
    }
    if returns.among_others {
        return Some(Risk::Others);
    }
    // Without the right to look, or when it has ended: nothing is known.
    let environment = std::fs::read(format!("/proc/{}/environ", shown_by(pid))).unwrap_or_default();
    if let Some(risk) = risks::of_environment(&environment) {
        return Some(risk);
    }
    let mut space = AddressSpace::new(pid);
    space.refresh().ok()?;
    let executable = root::executable(pid).ok();
    let is_executable = |module: &Module| executable.as_ref().is_some_and(|file| module.is_file(file));
    if !allocator.functions.is_known {
        let own = if is_executable(&allocator.module) { Some(Risk::OwnAllocator) } else { None };
        if let Some(risk) = own.or_else(|| risks::of_allocator(file_name(allocator.module.path()))) {
            return Some(risk);
        }
    }
    let mut files: Vec<Arc<Module>> = Vec::new();
    for (module, _) in space.executable_files() {
        if !files.iter().any(|known| known.identity() == module.identity()) {
            files.push(module);
        }
    }
    // An executable defines for itself whatever it has.
    let is_allocator = |module: &Module| module.identity() == allocator.module.identity() && !is_executable(module);
    let defines = |module: &Module| is_libc(module.path()) || is_allocator(module);
    files.iter().find_map(|module| risks::of_file(module.file()?, defines(module)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_a_process_that_has_ended_no_refusal_is_told() {
        let refused = anyhow::anyhow!("No such process").context("cannot probe /lib/libc.so.6");
        let rest = "by that file is not recorded";
        assert_eq!(
            unprobed("/lib/libc.so.6", 7, true, &refused),
            format!("process 7 ended before /lib/libc.so.6 could be probed: what it allocated {rest}")
        );
        assert_eq!(
            unprobed("/lib/libc.so.6", 7, false, &refused),
            format!("cannot probe /lib/libc.so.6: No such process: what process 7 allocates {rest}")
        );
    }
}
