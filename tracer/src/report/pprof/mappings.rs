//! Files as mappings. A profile tells places by file and offset, and files are somewhere else in every process; so each
//! part of a file gets addresses that no process has, and pprof computes the way back to the file from the mapping.

use std::ops::Range;

use hashbrown::HashMap;

use super::{super::escape::visible, message, strings::Strings};
use crate::profile::{Frame, JIT, Module, Profile};

const PAGE: u64 = 4096;
/// Behind all addresses of processes, and behind the ends of all files.
const LIMIT: u64 = 1 << 47;
/// Most parts of one file that are looked at. Usual is one.
const MAX_PARTS: usize = 64;

/// A place in a mapping.
#[derive(Clone, Copy)]
pub(super) struct Place {
    /// Index of the mapping.
    mapping: usize,
    /// Offset in the file, bytes.
    offset: u64,
}

/// The mappings so far.
pub(super) struct Mappings<'a> {
    /// By path; `None` where several files have it.
    modules: HashMap<&'a str, Option<&'a Module>>,
    /// By path and part of the file.
    indexes: HashMap<(&'a str, Option<usize>), usize>,
    mappings: Vec<Mapping<'a>>,
}

/// A part of a file.
struct Mapping<'a> {
    path: &'a str,
    build_id: Option<&'a str>,
    /// Offsets in the file, bytes; whole pages.
    range: Range<u64>,
    known: Known,
}

/// What is known of the places in a mapping.
#[derive(Default)]
struct Known {
    functions: bool,
    files: bool,
    lines: bool,
    inlined: bool,
}

impl<'a> Mappings<'a> {
    /// Those of the executable of the first process: pprof takes the first mapping for the main program.
    pub(super) fn new(profile: &'a Profile) -> Self {
        let mut modules: HashMap<&str, Option<&Module>> = HashMap::new();
        for module in &profile.modules {
            let known = modules.entry(&module.path).or_insert(Some(module));
            *known = known.filter(|known| *known == module);
        }
        let mut all = Self { modules, indexes: HashMap::new(), mappings: Vec::new() };
        if let Some(target) = profile.processes.first().filter(|target| !target.exe.is_empty()) {
            let module = all.modules.get(&*target.exe).copied().flatten();
            let begin = module.and_then(|module| parts(module).next()).map_or(0, |(_, part)| part.start);
            all.place(&target.exe, begin);
        }
        all
    }

    /// The place of an instruction in a file. Its mapping is made if there is none. `None` for what can be in no file.
    pub(super) fn place(&mut self, path: &'a str, offset: u64) -> Option<Place> {
        if offset >= LIMIT {
            return None;
        }
        let module = self.modules.get(path).copied().flatten();
        let part = module.and_then(|module| parts(module).find(|(_, part)| part.contains(&offset)));
        let (part, range) = match part {
            Some((index, part)) => (Some(index), part.clone()),
            None => (None, offset..offset + 1),
        };
        let range = range.start / PAGE * PAGE..range.end.next_multiple_of(PAGE);
        let next = self.mappings.len();
        let mapping = *self.indexes.entry((path, part)).or_insert(next);
        if mapping == next {
            let build_id = module.and_then(|module| module.build_id.as_deref());
            self.mappings.push(Mapping { path, build_id, range, known: Known::default() });
        } else {
            let known = &mut self.mappings[mapping].range;
            *known = known.start.min(range.start)..known.end.max(range.end);
        }
        Some(Place { mapping, offset })
    }

    /// Notes what is known of a place.
    pub(super) fn note(&mut self, place: Place, frames: &[Frame]) {
        let known = &mut self.mappings[place.mapping].known;
        known.functions = true;
        known.files |= frames.iter().any(|frame| frame.file.is_some());
        known.lines |= frames.iter().any(|frame| frame.line.is_some());
        known.inlined |= frames.iter().any(|frame| frame.inlined);
    }

    /// Their messages, and what tells addresses of places.
    pub(super) fn finish(self, strings: &mut Strings) -> (Vec<message::Mapping>, Addresses) {
        let mut next = LIMIT;
        let mut biases = Vec::with_capacity(self.mappings.len());
        let messages = self.mappings.iter().enumerate().map(|(index, Mapping { path, build_id, range, known })| {
            // Offsets in generated code are addresses already.
            let generated = *path == JIT;
            let memory_start = if generated { range.start } else { next };
            let memory_limit = memory_start.saturating_add(range.end - range.start);
            biases.push(memory_start.wrapping_sub(range.start));
            if !generated {
                // A page between two, or they would be taken for one.
                next = memory_limit.saturating_add(PAGE);
            }
            message::Mapping {
                id: index as u64 + 1,
                memory_start,
                memory_limit,
                file_offset: if generated { 0 } else { range.start },
                filename: strings.id(&visible(path)),
                build_id: build_id.map_or(0, |id| strings.id(&visible(id))),
                has_functions: known.functions,
                has_filenames: known.files,
                has_line_numbers: known.lines,
                has_inline_frames: known.inlined,
            }
        });
        (messages.collect(), Addresses { biases })
    }
}

/// The parts of a file that can be believed, and their indexes.
fn parts(module: &Module) -> impl Iterator<Item = (usize, &Range<u64>)> {
    let parts = module.code.iter().take(MAX_PARTS).enumerate();
    parts.filter(|(_, part)| part.start < part.end && part.end <= LIMIT)
}

/// Addresses in mappings that are finished.
pub(super) struct Addresses {
    /// What is added to offsets, for each mapping.
    biases: Vec<u64>,
}

impl Addresses {
    /// Id of the mapping, and the address.
    pub(super) fn of(&self, place: Place) -> (u64, u64) {
        (place.mapping as u64 + 1, place.offset.wrapping_add(self.biases[place.mapping]))
    }
}
