//! Which allocators a process has, and what it is besides.

use std::{
    fs::File,
    io,
    panic::catch_unwind,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use anyhow::{Context as _, Result, bail};
use hashbrown::HashMap;

use crate::{
    event::Pid,
    files::{
        module::{Identity, Module},
        root,
    },
    probe::resolve::{self, Function, Functions},
    process::status::Status,
    profile::{Language, Process},
    report::visible,
    select::processes::place_of,
    space::{address_space::AddressSpace, link_map, maps},
    symbolize,
};

/// A file by whose functions a process allocates.
#[derive(Clone)]
pub struct Allocator {
    /// The file.
    pub module: Arc<Module>,
    /// Its functions that allocate and free.
    pub functions: Arc<Functions>,
}

/// What a process allocates with: at least one file, in the order in which the loader searches them.
#[derive(Clone)]
pub struct Allocators(Arc<[Allocator]>);

impl Allocators {
    /// The files.
    pub fn files(&self) -> &[Allocator] {
        &self.0
    }

    /// Paths of the files, as the process sees them: hostile text.
    pub fn paths(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(|allocator| allocator.module.path())
    }
}

/// The allocators of a running process; `None` when it has none that is known.
///
/// # Errors
/// No right to look at the process, or it has ended.
pub fn allocators(pid: Pid) -> Result<Option<Allocators>> {
    find(pid, &mappings(pid)?, Phase::Running)
}

/// The mappings of a process.
pub(super) fn mappings(pid: Pid) -> Result<AddressSpace> {
    let mut space = AddressSpace::new(pid);
    space.refresh().context("cannot read its mappings")?;
    Ok(space)
}

/// Where a program is in its life.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Phase {
    /// The loader is at work: objects appear in the order in which they will be searched.
    Loading,
    /// The loader's list is there.
    Running,
}

/// What was found in files, by what they are and how long.
type Found = HashMap<(Identity, u64), Searched>;

/// A file, and the functions of allocators that it has.
type Searched = (Arc<Module>, Option<Arc<Functions>>);

/// Files that were searched. They are held open, so that no other file gets their identity; many processes map the same ones.
static SEARCHED: Mutex<Option<Found>> = Mutex::new(None);
/// Most of them.
const MAX_SEARCHED: usize = 512;

/// The files by whose functions the process with these mappings allocates. All that it has mapped are searched: the loader binds each
/// name on its own, and an allocator under names of its own is called beside the C library's.
pub(super) fn find(pid: Pid, space: &AddressSpace, phase: Phase) -> Result<Option<Allocators>> {
    let mut allocators: Vec<Allocator> = Vec::new();
    for module in candidates(pid, space, phase) {
        if let Some(exhausted) = module.exhausted() {
            bail!("{exhausted}");
        }
        match search(&module) {
            Ok((module, Some(functions))) => allocators.push(Allocator { module, functions }),
            Ok((_, None)) => {}
            Err(error) => tracing::warn!("{}: {error}; it is left out", visible(module.path())),
        }
    }
    Ok((!allocators.is_empty()).then(|| Allocators(allocators.into())))
}

/// The functions of allocators that a file has; and the file, as it is held open already where that is so.
fn search(module: &Arc<Module>) -> io::Result<Searched> {
    // A file that was written anew where it lies is another one.
    let key = (module.identity().clone(), module.length());
    if let Some((known, functions)) = searched().get_or_insert_default().get(&key) {
        // Elsewhere it may have another name.
        let held = if known.path() == module.path() { known } else { module };
        return Ok((Arc::clone(held), functions.clone()));
    }
    let Some(path) = module.open_path().filter(|_| module.is_elf()) else { return Ok((Arc::clone(module), None)) };
    // Opened anew: the position of an open file is shared, and others read this one too.
    let file = File::open(path)?;
    // What is in it is hostile: should that make the search panic, it has none.
    let found = catch_unwind(|| resolve::allocator(&file));
    let functions = found.map_err(|_| io::Error::other("its symbols make no sense"))??.map(Arc::new);
    if let Some(functions) = &functions {
        tell(module, functions);
    }
    let mut searched = searched();
    let searched = searched.get_or_insert_default();
    if searched.len() >= MAX_SEARCHED {
        searched.clear();
    }
    searched.insert(key, (Arc::clone(module), functions.clone()));
    Ok((Arc::clone(module), functions))
}

fn tell(module: &Module, Functions { functions, name, .. }: &Functions) {
    let path = visible(module.path());
    tracing::debug!("{path} allocates: {}", name.unwrap_or("by the names of the C library or of C++"));
    for Function { name, file_offset, emulated, .. } in functions {
        let cost = if *emulated { "cheap" } else { "dear: the kernel steps over it" };
        tracing::debug!("{name} of {path}: probed at {file_offset:#x} ({cost})");
    }
}

fn searched() -> MutexGuard<'static, Option<Found>> {
    SEARCHED.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Mapped files in the order in which the loader looks symbols up.
fn candidates(pid: Pid, space: &AddressSpace, phase: Phase) -> Vec<Arc<Module>> {
    let mut modules: Vec<Arc<Module>> = Vec::new();
    for (module, _) in space.executable_files() {
        if !modules.iter().any(|known| known.identity() == module.identity()) {
            modules.push(module);
        }
    }
    let executable = root::executable(pid).ok();
    let is_executable = |module: &Module| executable.as_ref().is_some_and(|file| module.is_file(file));
    let listed = if phase == Phase::Running { search_ranks(pid) } else { None };
    modules.sort_by_key(|module| {
        let rank = match &listed {
            Some(ranks) => ranks.iter().position(|(path, _)| path == module.path()).unwrap_or(usize::MAX),
            None => usize::from(is_libc(module.path())),
        };
        (!is_executable(module), rank)
    });
    // glibc's loader exports a malloc of its own in old versions, for itself.
    modules.retain(|module| is_executable(module) || !file_name(module.path()).starts_with("ld-linux"));
    modules
}

/// Paths of the objects in the loader's list, in its order.
fn search_ranks(pid: Pid) -> Option<Vec<(String, u64)>> {
    let order = link_map::search_order(pid).ok()??;
    let text = std::fs::read(format!("/proc/{pid}/maps")).ok()?;
    let mappings = maps::parse(&text);
    let path = |addr: u64| {
        let mapping = mappings.iter().find(|mapping| (mapping.start..mapping.end).contains(&addr))?;
        Some((mapping.path.clone(), addr))
    };
    Some(order.into_iter().filter_map(path).collect())
}

/// The last part of a path.
pub fn file_name(path: &str) -> &str {
    path.rsplit('/').next().unwrap_or(path)
}

/// Whether a path is that of a C library.
pub fn is_libc(path: &str) -> bool {
    let name = file_name(path);
    ["libc.so", "libc-", "ld-musl", "libc.musl"].iter().any(|start| name.starts_with(start))
}

/// What a process with these mappings is.
pub(super) fn describe(pid: Pid, status: &Status, space: &AddressSpace) -> Process {
    let executable = root::executable(pid).ok();
    let module = executable.and_then(|executable| {
        space.executable_files().map(|(module, _)| module).find(|module| module.is_file(&executable))
    });
    let language = module.map_or(Language::C, |module| symbolize::language(&module));
    let place = place_of(pid).unwrap_or_default();
    Process { place, ..Process::new(pid, status.comm.clone(), status.exe.clone(), language) }
}

/// For errors of files that belong to others.
impl From<resolve::ResolveError> for io::Error {
    fn from(error: resolve::ResolveError) -> Self {
        Self::new(io::ErrorKind::InvalidData, error)
    }
}
