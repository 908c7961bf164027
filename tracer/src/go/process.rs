//! Finding the Go runtimes of a process: that of its executable, as it is mapped, and those of libraries.
//!
//! A library that was built with `-buildmode=c-shared` brings a runtime of its own, with its own heap and goroutines; so there
//! may be several in one process, and one in a process whose executable is no Go program. A plugin brings code for the
//! runtime of the executable.

use std::{fs::File, io, os::fd::OwnedFd, sync::Arc};

use anyhow::{Result, anyhow};
use hashbrown::HashMap;

use crate::{
    event::Pid,
    files::{
        elf::{Bytes, Elf, Segment},
        module::{Identity, Module},
        root::{ProcessDirectory, executable},
    },
    golang::{BUILD_INFO, Executable, Home, Runtime, TABLES, Unreadable},
    process::{
        memory::{self, Span},
        status::NotTraceable,
    },
    space::{address_space::AddressSpace, link_map::Auxv},
    unwinder::linked_address,
};

/// Function of the runtime that a plugin exports, so that the runtime's own is used, and a library with its own does not.
const EXPORTED: &str = "runtime.mallocgc";

/// Times that a library is looked at whose runtime is not ready: the loader is at work on it.
const ATTEMPTS: u32 = 10;

/// Finds the Go runtime of the executable of a process.
///
/// # Errors
/// [`Unreadable`] or [`NotTraceable`], when there is none, or it cannot be read.
pub fn open(pid: Pid) -> Result<Arc<Runtime>> {
    let directory = ProcessDirectory::with_memory(pid).map_err(|_| NotTraceable::NoSuchProcess(pid))?;
    let opened = directory.executable(pid).map_err(|error| forbidden(pid, "its executable", error))?;
    let mut executable = Executable::open(opened.file).map_err(|error| explained(pid, error))?;
    executable.original = opened.original;
    let auxv = Auxv::read(pid).map_err(|error| forbidden(pid, "its auxiliary vector", error))?;
    let entry = auxv.entry().ok_or(NotTraceable::NoSuchProcess(pid))?;
    let runtime = Runtime::attach(executable, entry, &reader(pid)).map_err(|error| explained(pid, error))?;
    Ok(Arc::new(runtime))
}

/// Go runtimes and plugins that are in none of the executable, and what could not be understood of some, each told once.
#[derive(Default)]
pub struct Found {
    /// In libraries.
    pub runtimes: Vec<Arc<Runtime>>,
    /// In plugins.
    pub plugins: Vec<Arc<Runtime>>,
    /// Why others cannot be seen: hostile text.
    pub problems: Vec<String>,
}

/// Looks for the Go runtimes in the libraries of one process, in each file once.
pub struct Libraries {
    pid: Pid,
    /// Files that were looked at, and how often in vain.
    seen: HashMap<Identity, u32>,
}

impl Libraries {
    /// Of a process that nothing is known of yet.
    pub fn new(pid: Pid) -> Self {
        Self { pid, seen: HashMap::new() }
    }

    /// The process.
    pub fn pid(&self) -> Pid {
        self.pid
    }

    /// What there is in files that have been mapped since the last look.
    pub fn look(&mut self) -> Found {
        let mut found = Found::default();
        // Not kept: it holds files open.
        let mut space = AddressSpace::new(self.pid);
        // A process that is gone has none.
        if space.refresh().is_err() {
            return found;
        }
        let executable = executable(self.pid).ok();
        for (module, mappings) in loaded(&space) {
            let attempts = self.seen.entry(module.identity().clone()).or_default();
            if *attempts >= ATTEMPTS || executable.as_ref().is_some_and(|file| module.is_file(file)) {
                continue;
            }
            match library(self.pid, &module, &mappings) {
                Ok(None) => *attempts = ATTEMPTS,
                Ok(Some(runtime)) => {
                    *attempts = ATTEMPTS;
                    match runtime.home {
                        Home::Plugin(_) => found.plugins.push(Arc::new(runtime)),
                        _ => found.runtimes.push(Arc::new(runtime)),
                    }
                }
                Err(error) => {
                    *attempts += 1;
                    if *attempts == ATTEMPTS {
                        found.problems.push(format!("the Go runtime in {} cannot be seen: {error:#}", module.path()));
                    }
                }
            }
        }
        found
    }

    /// The same, looked for until nothing is left that may not be ready, or has been left alone for as long: what is not mapped any more
    /// will never be ready.
    pub fn look_at_all(&mut self, pause: impl Fn()) -> Found {
        let mut all = self.look();
        for _ in 1..ATTEMPTS {
            if !self.is_waiting() {
                break;
            }
            pause();
            let more = self.look();
            all.runtimes.extend(more.runtimes);
            all.plugins.extend(more.plugins);
            all.problems.extend(more.problems);
        }
        all
    }

    /// Whether something was found that was not ready.
    pub fn is_waiting(&self) -> bool {
        self.seen.values().any(|attempts| (1..ATTEMPTS).contains(attempts))
    }
}

/// Address and offset in the file of each executable mapping of one.
type Mapped = Vec<(u64, u64)>;

/// Every mapped file.
fn loaded(space: &AddressSpace) -> Vec<(Arc<Module>, Mapped)> {
    let mut loaded: Vec<(Arc<Module>, Mapped)> = Vec::new();
    let mut places: HashMap<Identity, usize> = HashMap::new();
    for (mapping, module) in space.code() {
        let Some(module) = module.filter(|module| module.file().is_some()) else { continue };
        let next = loaded.len();
        let place = *places.entry(module.identity().clone()).or_insert(next);
        if place == next {
            loaded.push((Arc::clone(module), Vec::new()));
        }
        loaded[place].1.push((mapping.start, mapping.offset));
    }
    loaded
}

/// The Go runtime, or plugin, in a file that is loaded by these mappings; `None` when there is none.
fn library(pid: Pid, module: &Module, mappings: &[(u64, u64)]) -> Result<Option<Runtime>> {
    let Some(file) = module.file() else { return Ok(None) };
    let Some((segments, is_plugin)) = outline(file) else { return Ok(None) };
    let bias = |(start, offset): &(u64, u64)| Some(start.wrapping_sub(linked_address(&segments, *offset)?));
    let mut biases: Vec<u64> = mappings.iter().filter_map(bias).collect();
    biases.dedup();
    let [bias] = *biases else {
        return Err(anyhow!("it is loaded {} times, and its runtimes cannot be told apart", biases.len()));
    };
    let path: Arc<str> = module.path().into();
    let home = if is_plugin { Home::Plugin(path) } else { Home::Library(path) };
    let mut executable = match Executable::open(file.try_clone()?) {
        Err(Unreadable::NotGo) => return Ok(None),
        opened => opened.map_err(|error| explained(pid, error))?,
    };
    executable.original = module.original().map(OwnedFd::try_clone).transpose()?;
    Ok(Some(Runtime::attach_at(executable, bias, home, &reader(pid)).map_err(|error| explained(pid, error))?))
}

/// The segments of a file that has Go code in it, and whether it is a plugin.
fn outline(file: &File) -> Option<(Vec<Segment>, bool)> {
    let bytes = Bytes::new(file);
    let elf = Elf::parse(&bytes).ok()?;
    let mut sections = TABLES.into_iter().chain([BUILD_INFO]);
    // Without any sections, all of it must be searched.
    if !elf.is_bare() && !sections.any(|name| elf.has_section(name)) {
        return None;
    }
    Some((elf.segments(), elf.exports(EXPORTED)))
}

/// Whether a file has Go code in it, or may have: a library's runtime, or a plugin.
pub fn has_go_code(file: &File) -> bool {
    outline(file).is_some()
}

/// Whether an error of [`open`] says that it is no Go program.
pub fn is_not_go(error: &anyhow::Error) -> bool {
    matches!(error.downcast_ref(), Some(Unreadable::NotGo))
}

/// Reads the memory of a process.
pub fn reader(pid: Pid) -> impl Fn(&[Span], &mut [u8]) -> io::Result<Vec<bool>> {
    move |spans, buffer| memory::read_spans(pid, spans, buffer)
}

/// Puts a failure to read memory down to the end of the process, or to a missing right.
pub fn explained(pid: Pid, error: Unreadable) -> anyhow::Error {
    match error {
        Unreadable::Memory(error) => forbidden(pid, "its memory", error).into(),
        other => other.into(),
    }
}

fn forbidden(pid: Pid, what: &str, error: io::Error) -> NotTraceable {
    match error.raw_os_error() {
        Some(libc::ESRCH | libc::ENOENT) => NotTraceable::NoSuchProcess(pid),
        _ => NotTraceable::Forbidden { pid, what: what.to_owned(), error: error.to_string() },
    }
}
