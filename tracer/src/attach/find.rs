//! Which allocators a process has, and what it is besides.

use std::{
    fs::{self, File},
    io::{self, BufReader},
    panic::catch_unwind,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use anyhow::{Context as _, Result, bail};
use hashbrown::{HashMap, HashSet};
use rustix::fs::{AtFlags, CWD, StatxFlags, statx};
use tracer_ebpf::unwind::FileKey;

use super::chosen::with_chosen;
use crate::{
    bpf,
    event::Pid,
    files::{
        elf::{Bytes, Elf},
        module::{Identity, Module},
        root,
    },
    go::process::has_go_code,
    probe::{
        asked,
        beyond::Beyond,
        hidden::{self, Proof},
        resolve::{self, Function, Functions, ResolveError, Search},
    },
    process::{stat::shown_by, status::Status},
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
pub struct Allocators {
    files: Arc<[Allocator]>,
    unseen: Arc<[String]>,
    has_go_library: bool,
}

impl Allocators {
    /// The files.
    pub fn files(&self) -> &[Allocator] {
        &self.files
    }

    /// What may be allocated unseen by files of the process, or be told wrongly.
    pub fn unseen(&self) -> &[String] {
        &self.unseen
    }

    /// Whether a library of the process has Go code in it.
    pub fn has_go_library(&self) -> bool {
        self.has_go_library
    }

    /// Paths of the files, as the process sees them: hostile text.
    pub fn paths(&self) -> impl Iterator<Item = &str> {
        self.files.iter().map(|allocator| allocator.module.path())
    }
}

/// The allocators of a running process; `None` when it has none that is known.
///
/// # Errors
/// No right to look at the process, or it has ended.
pub fn allocators(pid: Pid) -> Result<Option<Allocators>> {
    find(pid, &mappings(pid)?, Phase::Running)
}

/// The allocator that a program has in its own file.
pub enum OwnAllocator {
    /// None, or nobody can tell.
    None,
    /// One that can be probed.
    Known(Allocators),
    /// One of which no function is found.
    Hidden,
}

/// The same of a file that no process need have mapped any more.
pub(super) fn own_allocator(program: &FileKey) -> OwnAllocator {
    let opened = bpf::open_by_key(program).and_then(|file| {
        let path = bpf::path_of(&file).unwrap_or_default();
        Module::of_file(&path.to_string_lossy(), file)
    });
    let opened = opened.inspect_err(|error| tracing::debug!(?program, "an ended program cannot be opened: {error}"));
    let searched = opened.ok().and_then(|module| search(&Arc::new(module)).ok());
    let Some(Searched { module, functions, hidden, .. }) = searched else { return OwnAllocator::None };
    match functions {
        Some(functions) if !functions.functions.is_empty() => {
            let files = [Allocator { module, functions }].into();
            OwnAllocator::Known(Allocators { files, unseen: Arc::default(), has_go_library: false })
        }
        Some(functions) if !functions.chosen.is_empty() => OwnAllocator::Hidden,
        _ if hidden.is_some() => OwnAllocator::Hidden,
        _ => OwnAllocator::None,
    }
}

/// Whether process `pid` runs the program that the kernel knows by this; `None` where that cannot be told: what a file system says of its
/// files need not be what the kernel has.
pub fn is_run_by(program: &FileKey, pid: Pid) -> Option<bool> {
    let flags = AtFlags::STATX_DONT_SYNC;
    let stat = statx(CWD, format!("/proc/{}/exe", shown_by(pid)), flags, StatxFlags::INO).ok()?;
    let is_its_device = (stat.stx_dev_major, stat.stx_dev_minor) == bpf::device_of(program);
    is_its_device.then_some(stat.stx_ino == program.inode)
}

/// The mappings of a process.
pub(super) fn mappings(pid: Pid) -> Result<AddressSpace> {
    let mut space = AddressSpace::new(pid);
    space.refresh().context("cannot read its mappings")?;
    Ok(space)
}

/// Devices and inodes of the files that a process has mapped as code, as far as it can be read.
pub(super) fn code_files(pid: Pid) -> HashSet<((u32, u32), u64)> {
    let text = File::open(format!("/proc/{}/maps", shown_by(pid)));
    let code = text.and_then(|text| maps::read(BufReader::new(text), |one| one.executable && one.inode != 0));
    code.unwrap_or_default().into_iter().map(|mapping| (mapping.device, mapping.inode)).collect()
}

/// The same of a process whose mappings were read.
pub(super) fn code_files_in(space: &AddressSpace) -> HashSet<((u32, u32), u64)> {
    let files = space.code().map(|(mapping, _)| mapping).filter(|mapping| mapping.inode != 0);
    files.map(|mapping| (mapping.device, mapping.inode)).collect()
}

/// Where a program is in its life.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Phase {
    /// The loader is at work: objects appear in the order in which they will be searched.
    Loading,
    /// The loader's list is there.
    Running,
    /// The same, of a process that was not asked for itself, but begins while others are traced: what it has not, others have.
    Begun,
}

/// What was found in files, by what they are.
type Found = HashMap<Identity, Searched>;

/// What was found in a file.
#[derive(Clone)]
struct Searched {
    /// The file.
    module: Arc<Module>,
    /// Its functions of allocators.
    functions: Option<Arc<Functions>>,
    /// What it takes of other files that is not seen.
    wanted: Arc<[&'static str]>,
    /// Whether it had been searched before something else was written into it.
    rewritten: bool,
    /// Why what the command line asks for is not probed in it.
    refused: Option<Arc<str>>,
    /// Whether its code becomes another one when it is loaded.
    has_text_relocations: bool,
    /// The allocator that it has for certain, of which no function is found.
    hidden: Option<&'static str>,
    /// Whether it has Go code in it.
    has_go: bool,
}

/// Files that were searched. They are held open, so that no other file gets their identity; many processes map the same ones.
static SEARCHED: Mutex<Option<Found>> = Mutex::new(None);
/// Most of them.
const MAX_SEARCHED: usize = 512;
/// Most of a program that is looked through for what an allocator says, bytes.
const MAX_HIDDEN: u64 = 128 << 20;

/// The files by whose functions the process with these mappings allocates. All that it has mapped are searched: the loader binds each
/// name on its own, and an allocator under names of its own is called beside the C library's.
pub(super) fn find(pid: Pid, space: &AddressSpace, phase: Phase) -> Result<Option<Allocators>> {
    let (mut allocators, mut unseen) = (Vec::new(), Vec::new());
    let (mut beyond, mut wanted): (Vec<(String, Beyond)>, Vec<&str>) = (Vec::new(), Vec::new());
    let executable = root::executable(pid).ok();
    let is_executable = |module: &Module| executable.as_ref().is_some_and(|file| module.is_file(file));
    let listed = if phase == Phase::Running { search_ranks(pid) } else { None };
    let mut has_go_library = false;
    for module in candidates(space, listed, is_executable) {
        if let Some(exhausted) = module.exhausted() {
            bail!("{exhausted}");
        }
        let path = visible(module.path());
        if module.file().is_none() && path.starts_with('/') {
            unseen.push(format!(
                "{path} cannot be opened: what it may allocate by functions of that file is not recorded"
            ));
        }
        let found = match search(&module) {
            Ok(searched) => searched,
            Err(error) => {
                unseen.push(format!("{path}: {error}; what it may allocate by functions of that file is not recorded"));
                continue;
            }
        };
        let Searched { module: searched, functions, wanted: wants, rewritten, refused, .. } = found;
        match refused {
            // Who has asked for it sees to it.
            Some(refused) if phase != Phase::Begun => bail!("{path}: {refused}"),
            Some(refused) => unseen.push(format!(
                "{path}: {refused}; what it allocates by that, and by others that were asked for there, is not recorded"
            )),
            None => {}
        }
        if rewritten {
            unseen.push(format!(
                "{path} was written anew in its place after it had been read: stacks through it, and what is allocated by it, may be told \
                 wrongly"
            ));
        }
        wanted.extend(wants.iter());
        has_go_library |= found.has_go && !is_executable(&module);
        if let Some(name) = found.hidden {
            unseen.push(format!(
                "{path} has {name} in it, of which no function can be found (it is stripped): what is allocated by that is not recorded (keep \
                 its table of symbols, or name the functions with --symbol)"
            ));
        }
        let Some(mut functions) = functions else { continue };
        if found.has_text_relocations {
            unseen.push(format!(
                "{path} allocates, and its code is changed when it is loaded (text relocations), so that a probe there would harm: what is \
                 allocated by it is not recorded (link it without them, -z text)"
            ));
            continue;
        }
        if !functions.chosen.is_empty() && phase != Phase::Loading {
            functions = with_chosen(space, &module, &functions, |module| File::open(module.open_path()?).ok())
                .unwrap_or(functions);
        }
        beyond.extend(functions.beyond.iter().map(|beyond| (path.to_string(), beyond.clone())));
        if !functions.inlined.is_empty() {
            let names = functions.inlined.join(", ");
            unseen.push(format!(
                "{path} has a global allocator of its own, of which the compiler may have put {names} into the code of callers: what is \
                 allocated or freed there is not recorded, and what is freed there stays in the report"
            ));
        }
        if !functions.chosen.is_empty() {
            let names = functions.chosen.join(", ");
            unseen
                .push(format!("{path} chooses {names} at run time (IFUNC): what it allocates by that is not recorded"));
        }
        if !functions.functions.is_empty() {
            allocators.push(Allocator { module: searched, functions });
        }
    }
    for (path, Beyond { name, .. }) in
        beyond.iter().filter(|(_, beyond)| beyond.is_called || wanted.contains(&beyond.name))
    {
        unseen.push(format!("{path}: {name} allocates as much as no argument tells: blocks of it are not recorded"));
    }
    if phase != Phase::Loading {
        unseen.extend(asked::without_file());
        if let (true, Some(never)) = (allocators.is_empty(), asked::without_file().next()) {
            bail!("{never}");
        }
    }
    Ok((!allocators.is_empty()).then(|| Allocators { files: allocators.into(), unseen: unseen.into(), has_go_library }))
}

/// The functions of allocators that a file has; and the file, as it is held open already where that is so.
fn search(module: &Arc<Module>) -> io::Result<Searched> {
    let mut rewritten = false;
    if let Some(known) = searched().get_or_insert_default().get(module.identity()) {
        if known.module.version() == module.version() {
            // Elsewhere it may have another name.
            let held = if known.module.path() == module.path() { &known.module } else { module };
            return Ok(Searched { module: Arc::clone(held), ..known.clone() });
        }
        rewritten = true;
    }
    let Some(path) = module.open_path().filter(|_| module.is_elf()) else {
        return Ok(Searched {
            module: Arc::clone(module),
            functions: None,
            wanted: Arc::default(),
            rewritten,
            refused: None,
            has_text_relocations: false,
            hidden: None,
            has_go: false,
        });
    };
    // Opened anew: the position of an open file is shared, and others read this one too.
    let file = File::open(path)?;
    let symbols = symbolize::debug_file(module);
    let asked = asked::of(module.path());
    // What is in it is hostile: should that make the search panic, it has none.
    let found = |asked| {
        let found = catch_unwind(|| resolve::search(&file, symbols.as_ref(), asked));
        found.map_err(|_| io::Error::other("its symbols make no sense"))
    };
    let (mut result, mut refused) = (found(&asked)?, None);
    if let Err(ResolveError::Asked(refusal)) = &result {
        refused = Some(refusal.to_string().into());
        result = found(&[])?;
    }
    let Search { functions, wanted, is_program } = match result {
        // No loader has made of it what is called by names.
        Err(error) => {
            tracing::warn!("{}: {error}; it is left out", visible(module.path()));
            Search::default()
        }
        Ok(found) => found,
    };
    let functions = functions.map(Arc::new);
    if let Some(functions) = &functions {
        tell(module, functions);
    }
    let has_text_relocations =
        functions.is_some() && Elf::parse(&Bytes::new(&file)).is_ok_and(|elf| elf.has_text_relocations());
    let hidden = if functions.is_none() && is_program { hidden_in(&file) } else { None };
    let searched = Searched {
        module: Arc::clone(module),
        functions,
        wanted: wanted.into(),
        rewritten,
        refused,
        has_text_relocations,
        hidden,
        has_go: has_go_code(&file),
    };
    let mut all = self::searched();
    let all = all.get_or_insert_default();
    if all.len() >= MAX_SEARCHED {
        all.clear();
    }
    all.insert(module.identity().clone(), searched.clone());
    Ok(searched)
}

/// The allocator that a program without symbols of one has in it all the same.
fn hidden_in(file: &File) -> Option<&'static str> {
    let mut left = MAX_HIDDEN;
    let may_read = |bytes: u64| {
        left = left.saturating_sub(bytes);
        left > 0
    };
    hidden::allocators(file, Proof::Own, may_read).first().copied()
}

fn tell(module: &Module, functions: &Functions) {
    let path = visible(module.path());
    tracing::debug!("{path} allocates: {}", functions.allocator());
    for Function { name, file_offset, emulated, .. } in &functions.functions {
        tracing::debug!("{name} of {path}: probed at {file_offset:#x} ({})", resolve::cost(*emulated));
    }
}

fn searched() -> MutexGuard<'static, Option<Found>> {
    SEARCHED.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Mapped files in the order in which the loader looks symbols up.
fn candidates(
    space: &AddressSpace,
    listed: Option<Vec<(String, u64)>>,
    is_executable: impl Fn(&Module) -> bool,
) -> Vec<Arc<Module>> {
    let mut modules: Vec<Arc<Module>> = Vec::new();
    for (module, _) in space.executable_files() {
        if !modules.iter().any(|known| known.identity() == module.identity()) {
            modules.push(module);
        }
    }
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
    let text = fs::read(format!("/proc/{}/maps", shown_by(pid))).ok()?;
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

/// The executable of a process with these mappings, where it is one of them.
pub(super) fn executable(pid: Pid, space: &AddressSpace) -> Option<Arc<Module>> {
    let executable = root::executable(pid).ok()?;
    space.executable_files().map(|(module, _)| module).find(|module| module.is_file(&executable))
}

/// What a process with these mappings is.
pub(super) fn describe(pid: Pid, status: &Status, space: &AddressSpace) -> Process {
    let language = executable(pid, space).map_or(Language::C, |module| symbolize::language(&module));
    let place = place_of(pid).unwrap_or_default();
    Process { place, ..Process::new(pid, status.comm.clone(), status.exe.clone(), language) }
}
