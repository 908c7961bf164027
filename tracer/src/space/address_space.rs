//! The executable mappings of a process: which file and which offset in it an address belongs to.
//!
//! Places are looked up while the process lives and stay true after it has exited, because they hold their files open.

use std::{
    collections::VecDeque,
    io::{self, BufReader},
    sync::Arc,
};

use hashbrown::HashMap;

use super::{
    maps::{self, Mapping},
    perf_map::PerfMap,
};
use crate::{
    files::{
        module::{Location, Module},
        root::{ProcessDirectory, Root},
    },
    process::memory::Memory,
};

/// How many mappings that are gone are remembered: libraries that were closed after they had allocated.
const MAX_RETIRED: usize = 256;

/// What an address belongs to.
#[derive(Clone, Debug)]
pub enum Place {
    /// A mapped file, or code of the kernel's like `[vdso]`.
    File(Location),
    /// Memory that the process filled with code itself, named by its perf map if by anything; `None`: nobody could look at the process.
    /// What was code when a thread ran it stays that, also where something else is mapped by now, or nothing.
    Jit(Option<Arc<PerfMap>>),
    /// Nothing that is known to be executable.
    Unknown,
}

impl Place {
    /// A number that tells the files of two places apart, as long as both exist.
    pub fn owner(&self) -> usize {
        match self {
            Self::File(location) => Arc::as_ptr(&location.module) as usize,
            Self::Jit(Some(map)) => Arc::as_ptr(map) as usize,
            // Where nothing is.
            Self::Jit(None) => 1,
            Self::Unknown => 0,
        }
    }
}

/// One executable mapping.
#[derive(Clone)]
struct Code {
    mapping: Mapping,
    /// `None` for generated code.
    module: Option<Arc<Module>>,
}

impl Code {
    fn contains(&self, addr: u64) -> bool {
        (self.mapping.start..self.mapping.end).contains(&addr)
    }
}

/// The process, as it was found.
struct Opened {
    process: Arc<ProcessDirectory>,
    root: Option<Arc<Root>>,
    perf_map: Arc<PerfMap>,
}

/// The executable mappings of one process, as of the last refresh.
pub struct AddressSpace {
    pid: u32,
    has_ended: bool,
    opened: Option<Opened>,
    /// By address.
    code: Vec<Code>,
    /// Latest first.
    retired: VecDeque<Code>,
    /// By what the kernel prints of a file. As long as the file is open, that cannot become another one's.
    modules: HashMap<(u32, u32, u64), Arc<Module>>,
}

impl AddressSpace {
    /// That of process `pid`. Nothing is known before the first refresh.
    pub fn new(pid: u32) -> Self {
        Self {
            pid,
            has_ended: false,
            opened: None,
            code: Vec::new(),
            retired: VecDeque::new(),
            modules: HashMap::new(),
        }
    }

    /// That of a process that has ended, whose number may be another one's by now: nothing is known of it, and never will be.
    pub fn of_ended() -> Self {
        Self { has_ended: true, ..Self::new(0) }
    }

    /// Whether it is that of a process that had ended from the beginning.
    pub fn is_of_ended(&self) -> bool {
        self.has_ended
    }

    /// The process.
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// Looks at the mappings again. True when executable ones have come, gone or changed.
    ///
    /// # Errors
    /// The process has exited (what is known of it stays), or no right to look at it.
    pub fn refresh(&mut self) -> io::Result<bool> {
        let gone = || io::Error::from_raw_os_error(rustix::io::Errno::SRCH.raw_os_error());
        if self.has_ended {
            return Err(gone());
        }
        let Opened { process, root, perf_map } = match &self.opened {
            Some(opened) => opened,
            None => self.opened.insert(Opened::open(self.pid)?),
        };
        let mut text = BufReader::with_capacity(1 << 16, process.file("maps")?);
        let mappings = maps::read(&mut text, |mapping| mapping.executable)?;
        // An exiting process has no mappings any more, but does not say so.
        if mappings.is_empty() {
            return Err(gone());
        }
        let changed = !mappings.iter().eq(self.code.iter().map(|code| &code.mapping));
        if changed {
            let modules = &mut self.modules;
            let code: Vec<Code> = mappings
                .into_iter()
                .map(|mapping| Code { module: module(modules, process, root.as_ref(), &mapping), mapping })
                .collect();
            let old = std::mem::replace(&mut self.code, code);
            retire(&mut self.retired, old, &self.code);
        }
        if self.code.iter().any(|code| code.module.is_none()) {
            perf_map.open();
        }
        Ok(changed)
    }

    /// What the return address `addr` belongs to. That is where the call before it is: a call can be the last
    /// instruction of its mapping.
    pub fn locate(&self, addr: u64) -> Place {
        let Some(call) = addr.checked_sub(1) else { return Place::Unknown };
        let behind = self.code.partition_point(|code| code.mapping.start <= call);
        let present = self.code[..behind].last().filter(|code| code.contains(call));
        let Some(code) = present.or_else(|| self.retired.iter().find(|code| code.contains(call))) else {
            return Place::Unknown;
        };
        match &code.module {
            Some(module) => {
                let offset = (addr - code.mapping.start).saturating_add(code.mapping.offset);
                Place::File(Location { module: Arc::clone(module), offset })
            }
            None => self.generated(),
        }
    }

    /// What code stands for that the process has generated, whether it is mapped or was.
    pub fn generated(&self) -> Place {
        Place::Jit(self.opened.as_ref().map(|opened| Arc::clone(&opened.perf_map)))
    }

    /// Every executable mapping of a file with its first address, by address. A file that is mapped in pieces comes
    /// several times.
    pub fn executable_files(&self) -> impl Iterator<Item = (Arc<Module>, u64)> {
        let files = self.mapped().filter(|(_, mapping)| mapping.inode != 0);
        files.map(|(module, mapping)| (Arc::clone(module), mapping.start))
    }

    /// Whether there is code in it that was generated at run time.
    pub fn has_generated_code(&self) -> bool {
        self.code.iter().any(|code| code.module.is_none())
    }

    /// Whether the process's runtime names such code in a perf map.
    pub fn has_perf_map(&self) -> bool {
        self.opened.as_ref().is_some_and(|opened| opened.perf_map.open().is_some())
    }

    /// Every executable mapping by address, and its file; `None` for generated code.
    pub fn code(&self) -> impl Iterator<Item = (&Mapping, Option<&Arc<Module>>)> {
        self.code.iter().map(|code| (&code.mapping, code.module.as_ref()))
    }

    /// The process's memory.
    ///
    /// # Errors
    /// It has ended, or nothing is known of it yet.
    pub fn memory(&self) -> io::Result<Memory> {
        let opened = self.opened.as_ref().ok_or(io::ErrorKind::NotFound)?;
        opened.process.file("mem").map(Memory::of)
    }

    fn mapped(&self) -> impl Iterator<Item = (&Arc<Module>, &Mapping)> {
        self.code.iter().filter_map(|code| Some((code.module.as_ref()?, &code.mapping)))
    }
}

impl Opened {
    fn open(pid: u32) -> io::Result<Self> {
        let process = Arc::new(ProcessDirectory::with_memory(pid)?);
        let root = process.root().map(Arc::new).ok();
        Ok(Self { perf_map: Arc::new(PerfMap::new(Arc::clone(&process))), process, root })
    }
}

/// Remembers the mappings of files in `old` that are not there any more.
fn retire(retired: &mut VecDeque<Code>, old: Vec<Code>, present: &[Code]) {
    for code in old {
        let same = present.binary_search_by_key(&code.mapping.start, |code| code.mapping.start);
        let stays = same.is_ok_and(|index| present[index].mapping == code.mapping);
        if !stays && code.module.is_some() {
            retired.push_front(code);
        }
    }
    retired.truncate(MAX_RETIRED);
}

/// The module that is mapped; `None` when the mapping holds generated code.
fn module(
    modules: &mut HashMap<(u32, u32, u64), Arc<Module>>,
    process: &ProcessDirectory,
    root: Option<&Arc<Root>>,
    mapping: &Mapping,
) -> Option<Arc<Module>> {
    if mapping.inode == 0 {
        let generated = ["[heap]", "[stack", "[anon"].iter().any(|name| mapping.path.starts_with(name));
        if generated || !mapping.path.starts_with('[') {
            return None;
        }
        return Some(Arc::new(Module::special(&mapping.path)));
    }
    let key = (mapping.device.0, mapping.device.1, mapping.inode);
    let module = match modules.get(&key) {
        Some(known) => Arc::clone(known),
        None => Arc::new(Module::open(process, root, mapping)),
    };
    // Only an open file keeps its inode from being given to another.
    if module.file().is_some() {
        modules.insert(key, Arc::clone(&module));
    }
    Some(module).filter(|module| is_file(module, mapping))
}

/// Whether a file is one, not memory for generated code: runtimes that map their code twice take a nameless file for it.
pub fn is_file(module: &Module, mapping: &Mapping) -> bool {
    !mapping.deleted || module.file().is_none() || module.is_elf()
}

#[cfg(test)]
mod tests {
    use std::{
        io::Read,
        process::{Child, Command, Stdio},
    };

    use super::*;

    fn own() -> AddressSpace {
        let mut space = AddressSpace::new(std::process::id());
        assert!(space.refresh().unwrap());
        space
    }

    fn file(place: Place) -> Location {
        match place {
            Place::File(location) => location,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn addresses_of_this_process() {
        let space = own();
        let here = own as fn() -> AddressSpace as usize as u64 + 1;
        let location = file(space.locate(here));
        assert!(location.module.is_file(&crate::files::root::executable(std::process::id()).unwrap()));
        let (_, first) =
            space.executable_files().find(|(module, _)| module.identity() == location.module.identity()).unwrap();
        assert!(first < here);
        for nothing in [0, 1, u64::MAX, &raw const space as u64] {
            assert!(matches!(space.locate(nothing), Place::Unknown), "{nothing:#x}");
        }
    }

    #[test]
    fn the_end_of_a_mapping_belongs_to_it() {
        let space = own();
        let code = space.code.iter().find(|code| code.module.as_ref().is_some_and(|module| module.is_elf())).unwrap();
        let location = file(space.locate(code.mapping.end));
        assert_eq!(location.offset, code.mapping.end - code.mapping.start + code.mapping.offset);
        assert_eq!(location.module.path(), code.mapping.path);
    }

    #[test]
    fn special_mappings_count_from_their_start() {
        let space = own();
        let vdso = space.code.iter().find(|code| code.mapping.path == "[vdso]").unwrap();
        let location = file(space.locate(vdso.mapping.start + 0x10));
        assert_eq!((location.module.path(), location.offset), ("[vdso]", 0x10));
        assert!(space.executable_files().all(|(module, _)| !module.path().starts_with('[')));
    }

    #[test]
    fn files_are_opened_once_and_change_is_noticed() {
        let mut child = cat();
        let mut space = AddressSpace::new(child.id());
        space.refresh().unwrap();
        let before: Vec<_> = space.executable_files().collect();
        assert!(!space.refresh().unwrap());
        space.code.pop();
        assert!(space.refresh().unwrap());
        for ((old, _), (new, _)) in before.iter().zip(space.executable_files()) {
            assert!(Arc::ptr_eq(old, &new));
        }
        child.kill().unwrap();
        child.wait().unwrap();
    }

    #[test]
    fn what_was_known_outlives_the_process() {
        let mut child = cat();
        let mut space = AddressSpace::new(child.id());
        space.refresh().unwrap();
        let (module, start) = space.executable_files().next().unwrap();
        child.kill().unwrap();
        assert!(
            space.refresh().is_err() || {
                child.wait().unwrap();
                space.refresh().is_err()
            }
        );
        assert!(Arc::ptr_eq(&file(space.locate(start + 1)).module, &module));
        assert_eq!(std::fs::read(module.open_path().unwrap()).unwrap()[..4], *b"\x7fELF");
        child.wait().unwrap();
    }

    #[test]
    fn a_closed_library_is_remembered() {
        let mut space = own();
        let old = Code {
            mapping: Mapping { start: 0x1000, end: 0x2000, ..space.code[0].mapping.clone() },
            module: Some(Arc::new(Module::special("gone"))),
        };
        space.code.insert(0, old);
        assert!(space.refresh().unwrap());
        assert_eq!(file(space.locate(0x1800)).module.path(), "gone");
    }

    #[test]
    fn generated_code_is_told_from_files() {
        let space = own();
        let process = ProcessDirectory::open(std::process::id()).unwrap();
        let anonymous = Mapping { path: String::new(), inode: 0, ..space.code[0].mapping.clone() };
        for (path, generated) in
            [("", true), ("[heap]", true), ("[anon:v8]", true), ("[vdso]", false), ("[uprobes]", false)]
        {
            let mapping = Mapping { path: path.to_owned(), ..anonymous.clone() };
            assert_eq!(module(&mut HashMap::new(), &process, None, &mapping).is_none(), generated, "{path}");
        }
    }

    fn cat() -> Child {
        let mut child = Command::new("cat").arg("-").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        // It has been loaded when it answers.
        io::Write::write_all(child.stdin.as_mut().unwrap(), b"x").unwrap();
        child.stdout.as_mut().unwrap().read_exact(&mut [0]).unwrap();
        child
    }
}
