//! Addresses to frames: functions, the functions inlined into them, files and lines.
//!
//! Works from places (file and offset), which outlive the process, and never asks a process. blazesym reads symbols and
//! DWARF; what is done here is finding separate debug files, keeping hostile files from doing harm, and remembering.

mod copy;
mod debug_file;
mod demangle;
mod guard;
mod language;
mod nesting;
mod source;
mod survey;
#[cfg(test)]
mod tests;
mod work;

use std::{fs::File, os::unix::fs::FileExt as _, path::PathBuf, sync::Arc};

use hashbrown::HashMap;

pub use demangle::demangle;
pub use language::language;
pub use survey::Names;

use self::{
    source::{Function, Source},
    work::Work,
};
use crate::{
    files::{
        elf::{Bytes, Elf, Segment, code},
        module::{Identity, Location, Module},
    },
    profile::{self, Frame, JIT},
    space::{
        address_space::Place,
        perf_map::{Functions, PerfMap},
    },
    unwind::ends_a_call,
};

/// Where debug files are, unless it is said otherwise.
const DEBUG_DIRECTORIES: [&str; 1] = ["/usr/lib/debug"];

/// Most that is kept of files, bytes, unless it is said otherwise.
const MEMORY: u64 = 1 << 30;

/// An address that is to be named.
pub struct Query<'a> {
    /// The process that it is from.
    pub pid: u32,
    /// A return address.
    pub addr: u64,
    /// What it belonged to when it was recorded.
    pub place: &'a Place,
}

/// The file that holds the symbols of a stripped one, where distributions put them; `None` where it has its own.
pub fn debug_file(module: &Module) -> Option<File> {
    let bytes = Bytes::new(module.file()?);
    let elf = Elf::parse(&bytes).ok().filter(|elf| !elf.has_section(".symtab"))?;
    debug_file::find(module, &elf, &DEBUG_DIRECTORIES.map(PathBuf::from), &mut Work::new(MEMORY))
        .map(|found| found.file)
}

/// A file with what was in it when it was opened: the same of modules that [are the same](Module::is_same).
type State = (Identity, (u64, u64));

fn state(module: &Module) -> State {
    (module.identity().clone(), module.version())
}

/// Names addresses, each once.
///
/// Holds open every file that it has read, and what it has learned of them; belongs to one thread.
pub struct Symbolizer {
    debug_directories: Vec<PathBuf>,
    objects: HashMap<State, Object>,
    generated: HashMap<(u32, u64), Arc<[Frame]>>,
    unknown: HashMap<u64, Arc<[Frame]>>,
    work: Work,
}

impl Symbolizer {
    /// One that finds debug files where distributions put them.
    pub fn new() -> Self {
        Self::within(MEMORY)
    }

    /// The same, which keeps at most so many bytes of files.
    pub fn within(memory: u64) -> Self {
        let symbolizer = Self::with_debug_directories(DEBUG_DIRECTORIES.map(PathBuf::from).to_vec());
        Self { work: Work::new(memory), ..symbolizer }
    }

    /// One that finds debug files under `directories` (absolute paths), in the layout of `/usr/lib/debug`.
    pub fn with_debug_directories(directories: Vec<PathBuf>) -> Self {
        Self {
            debug_directories: directories,
            objects: HashMap::new(),
            generated: HashMap::new(),
            unknown: HashMap::new(),
            work: Work::new(MEMORY),
        }
    }

    /// What the reader of a report should know of names that are missing.
    pub fn notes(&self) -> &[String] {
        self.work.left_out()
    }

    /// How many files were written to after they had been mapped, and name nothing any more.
    pub fn rewritten(&self) -> u64 {
        self.objects.values().filter(|object| object.is_rewritten).count() as u64
    }

    /// The frames at each address, in the order of `queries`. Those of one address are the function that the code is in,
    /// then the functions inlined there, outermost first.
    ///
    /// The call is before the address, so that is what is named. [`Frame::offset`] is that of the address itself, as
    /// `/proc/PID/maps` counts; where no file is known, the address.
    pub fn resolve(&mut self, queries: &[Query<'_>]) -> Vec<Arc<[Frame]>> {
        self.resolve_files(queries);
        let mut perf_maps = HashMap::new();
        queries.iter().map(|query| self.frames(query, &mut perf_maps)).collect()
    }

    /// Where names of a file come from; `None` when it is no ELF file, or cannot be read.
    pub fn names_of(&mut self, module: &Module) -> Option<Names> {
        survey::names(module, &self.debug_directories, &mut self.work)
    }

    /// The files in which addresses have been named, by path.
    pub fn modules(&self) -> Vec<profile::Module> {
        let mut modules: Vec<profile::Module> = self.objects.values().filter_map(Object::description).collect();
        modules.sort_by(|a, b| (&a.path, &a.build_id).cmp(&(&b.path, &b.build_id)));
        modules
    }

    /// Asks every file once for all addresses that it has not been asked for.
    fn resolve_files(&mut self, queries: &[Query<'_>]) {
        let mut wanted: HashMap<State, (&Arc<Module>, Vec<u64>)> = HashMap::new();
        for query in queries {
            let Place::File(Location { module, offset }) = query.place else { continue };
            let known = self.objects.get(&state(module)).is_some_and(|object| object.frames.contains_key(offset));
            if !known {
                wanted.entry(state(module)).or_insert_with(|| (module, Vec::new())).1.push(*offset);
            }
        }
        for (state, (module, mut offsets)) in wanted {
            offsets.sort_unstable();
            offsets.dedup();
            let is_rewritten = module.is_rewritten();
            let object = self.objects.entry(state).or_insert_with(|| {
                if is_rewritten {
                    Object::nameless(Arc::clone(module))
                } else {
                    Object::open(Arc::clone(module), &self.debug_directories, &mut self.work)
                }
            });
            if is_rewritten {
                if !std::mem::replace(&mut object.is_rewritten, true) {
                    self.work.tell_of_rewritten(module.path());
                }
                object.know_nothing_of(module, &offsets);
            } else {
                object.learn(module, &offsets);
            }
        }
    }

    fn frames(&mut self, query: &Query<'_>, perf_maps: &mut HashMap<*const PerfMap, Functions>) -> Arc<[Frame]> {
        match query.place {
            Place::File(Location { module, offset }) => {
                let known = self.objects.get(&state(module)).and_then(|object| object.frames.get(offset));
                known.cloned().unwrap_or_else(|| [bare(Some(module.path()), *offset)].into())
            }
            Place::Jit(perf_map) => self.generated(query, perf_map, perf_maps),
            Place::Unknown => {
                Arc::clone(self.unknown.entry(query.addr).or_insert_with(|| [bare(None, query.addr)].into()))
            }
        }
    }

    /// Names generated code. The perf map grows, so it is read again for each batch, and only names are remembered.
    fn generated(
        &mut self,
        query: &Query<'_>,
        perf_map: &Option<Arc<PerfMap>>,
        perf_maps: &mut HashMap<*const PerfMap, Functions>,
    ) -> Arc<[Frame]> {
        // Of an image that has ended nothing is known: its process may be another program by now, whose names are remembered.
        let Some(perf_map) = perf_map else { return [bare(Some(JIT), query.addr)].into() };
        if let Some(known) = self.generated.get(&(query.pid, query.addr)) {
            return Arc::clone(known);
        }
        let functions = perf_maps.entry(Arc::as_ptr(perf_map)).or_insert_with(|| perf_map.functions());
        let name = functions.at(query.addr.saturating_sub(1)).map(str::to_owned);
        let named = name.is_some();
        let frames: Arc<[Frame]> = [Frame { function: name, ..bare(Some(JIT), query.addr) }].into();
        if named {
            self.generated.insert((query.pid, query.addr), Arc::clone(&frames));
        }
        frames
    }
}

impl Default for Symbolizer {
    fn default() -> Self {
        Self::new()
    }
}

/// A frame of which only the place is known.
fn bare(module: Option<&str>, offset: u64) -> Frame {
    Frame { module: module.map(str::to_owned), offset, ..Frame::default() }
}

/// A mapped file, what names its addresses, and what has been named.
struct Object {
    build_id: Option<String>,
    segments: Vec<Segment>,
    /// The best first.
    sources: Vec<Source>,
    /// By offset in the file.
    frames: HashMap<u64, Arc<[Frame]>>,
    /// Whether it was found to have been written to after it had been mapped.
    is_rewritten: bool,
    /// Keeps the file open, so that nothing else gets its identity.
    module: Arc<Module>,
}

impl Object {
    fn open(module: Arc<Module>, debug_directories: &[PathBuf], work: &mut Work) -> Self {
        let (mut build_id, mut segments, mut sources) = (None, Vec::new(), Vec::new());
        if let Some(file) = module.file() {
            let bytes = Bytes::new(file);
            if let Ok(elf) = Elf::parse(&bytes) {
                build_id = elf.build_id_text();
                segments = elf.segments();
                let name = module.path();
                let debug_file = debug_file::find(&module, &elf, debug_directories, work);
                sources.extend(debug_file.and_then(|found| Source::new(&found.file, name, found.trusted, work)));
                sources.extend(Source::new(file, name, module.is_administrators(), work));
            }
        }
        Self { build_id, segments, sources, ..Self::nameless(module) }
    }

    /// One that names nothing.
    fn nameless(module: Arc<Module>) -> Self {
        let (segments, sources, frames) = (Vec::new(), Vec::new(), HashMap::new());
        Self { build_id: None, segments, sources, frames, is_rewritten: false, module }
    }

    /// What a profile tells of it; nothing of what is no file.
    fn description(&self) -> Option<profile::Module> {
        self.module.file()?;
        Some(profile::Module {
            path: self.module.path().to_owned(),
            build_id: self.build_id.clone(),
            code: code(&self.segments),
        })
    }

    /// Names the code before each of the sorted `offsets`.
    fn learn(&mut self, module: &Module, offsets: &[u64]) {
        let before = |offset: &u64| Some((*offset, self.address(offset.checked_sub(1)?)?));
        let open = self.ask(module, offsets.iter().filter_map(before).collect());
        // Frames that no call has made may be at the very begin of their function: what signals return to, and the ends of stacks
        // that programs make.
        let at_begin = open.into_iter().filter(|(offset, _)| !self.ends_a_call(*offset));
        let open = at_begin.filter_map(|(offset, _)| Some((offset, self.address(offset)?))).collect();
        self.ask(module, open);
        self.know_nothing_of(module, offsets);
    }

    /// Whether a call returns to the code at `offset`.
    fn ends_a_call(&self, offset: u64) -> bool {
        self.module.file().is_some_and(|file| ends_a_call(offset, |at, code| file.read_exact_at(code, at).is_ok()))
    }

    /// Names those of these offsets, each with an address, whose address is in a function: the others.
    fn ask(&mut self, module: &Module, mut open: Vec<(u64, u64)>) -> Vec<(u64, u64)> {
        for source in &mut self.sources {
            let addresses: Vec<u64> = open.iter().map(|(_, address)| *address).collect();
            let answers = source.functions(&addresses);
            let mut unanswered = Vec::new();
            for ((offset, address), functions) in open.into_iter().zip(answers) {
                if functions.is_empty() {
                    unanswered.push((offset, address));
                } else {
                    self.frames.insert(offset, frames(module, offset, functions));
                }
            }
            open = unanswered;
        }
        open
    }

    /// Leaves those of these `offsets` without a name that have none yet.
    fn know_nothing_of(&mut self, module: &Module, offsets: &[u64]) {
        for offset in offsets {
            self.frames.entry(*offset).or_insert_with(|| [bare(Some(module.path()), *offset)].into());
        }
    }

    /// The address that the byte at `offset` was linked for.
    fn address(&self, offset: u64) -> Option<u64> {
        self.segments.iter().find_map(|segment| {
            let inside = offset.checked_sub(segment.offset).filter(|inside| *inside < segment.size)?;
            segment.address.checked_add(inside)
        })
    }
}

fn frames(module: &Module, offset: u64, functions: Vec<Function>) -> Arc<[Frame]> {
    let frames = functions.into_iter().enumerate().map(|(depth, Function { name, file, line })| Frame {
        function: name,
        file,
        line,
        inlined: depth > 0,
        ..bare(Some(module.path()), offset)
    });
    frames.collect()
}
