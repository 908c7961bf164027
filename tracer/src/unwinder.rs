//! Unwinding tables for traced processes: reads what the files say, has it compiled, and keeps the BPF side's tables and
//! mappings up to date.

use std::{
    fs::File,
    ops::Range,
    os::unix::fs::FileExt as _,
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use hashbrown::HashMap;
use tracer_ebpf::unwind::{GENERATED, MAX_MAPPINGS, Mapping, Mappings};

use crate::{
    bpf::Tables,
    event::Pid,
    golang,
    process::{
        address_space::AddressSpace,
        elf::{Bytes, Elf},
        module::{Identity, Module},
    },
    profile::UnwindTable,
    unwind::{self, Packed, Placed, Sections, Table, UnwindError},
};

/// Most of an unwinding section that is read, bytes.
const MAX_SECTION: u64 = 64 << 20;

/// Bytes of a page.
const PAGE: u64 = 4096;

/// The tables of all files that traced processes map.
pub struct Unwinder {
    tables: Tables,
    packed: Packed,
    placed: HashMap<Identity, Option<(Placed, Vec<Segment>)>>,
    /// Of mappings, of all processes.
    generation: u32,
    files: Vec<UnwindTable>,
}

type Segment = crate::process::elf::Segment;

/// A file's table, compiled but not yet placed.
struct Compiled {
    module: Arc<Module>,
    segments: Vec<Segment>,
    table: Result<Table, String>,
    build_time: Duration,
}

impl Unwinder {
    /// One that has no tables yet.
    pub fn new(tables: Tables) -> Self {
        Self { tables, packed: Packed::default(), placed: HashMap::new(), generation: 0, files: Vec::new() }
    }

    /// What the tables are like, in the order in which they came.
    pub fn files(&self) -> &[UnwindTable] {
        &self.files
    }

    /// Brings the BPF side up to date with the mappings of a process. Files that are new get their tables first.
    pub fn follow(&mut self, pid: Pid, space: &AddressSpace) {
        self.compile_new(space);
        if let Err(error) = self.write_changes() {
            tracing::warn!("cannot write unwinding tables: {error}");
        }
        let mappings = self.mappings(space);
        if let Err(error) = self.tables.set_mappings(pid, &mappings) {
            tracing::warn!("cannot write the mappings of process {pid}: {error}");
        }
    }

    /// Compiles the tables of files that have none yet, in parallel.
    fn compile_new(&mut self, space: &AddressSpace) {
        let mut new: Vec<Arc<Module>> = Vec::new();
        for (_, module) in space.code() {
            let Some(module) = module else { continue };
            let known = self.placed.contains_key(module.identity())
                || new.iter().any(|other| other.identity() == module.identity());
            if !known {
                new.push(Arc::clone(module));
            }
        }
        let workers = thread::available_parallelism().map_or(1, usize::from).min(new.len().max(1));
        let queue = std::sync::Mutex::new(new.into_iter());
        let (send, receive) = std::sync::mpsc::channel();
        thread::scope(|scope| {
            for _ in 0..workers {
                let (queue, send) = (&queue, send.clone());
                scope.spawn(move || {
                    while let Some(module) = queue.lock().ok().and_then(|mut queue| queue.next()) {
                        // The receiver outlives the scope.
                        let _ = send.send(compile(module));
                    }
                });
            }
        });
        drop(send);
        for compiled in receive {
            self.place(compiled);
        }
    }

    fn place(&mut self, compiled: Compiled) {
        let Compiled { module, segments, table, build_time } = compiled;
        let code_bytes = code_bytes(&segments);
        let mut file = UnwindTable {
            path: module.path().to_owned(),
            rows: 0,
            bytes: 0,
            build_time,
            code_bytes,
            uncovered_bytes: code_bytes,
            problem: None,
        };
        let placed = match table {
            Ok(table) => {
                let before = self.packed.size();
                match self.packed.add(&table) {
                    Ok(placed) => {
                        file.rows = table.rows().len();
                        file.bytes = self.packed.size() - before;
                        file.uncovered_bytes = uncovered_bytes(&segments, &table);
                        Some((placed, segments))
                    }
                    Err(full) => {
                        file.problem = Some(full.to_string());
                        None
                    }
                }
            }
            Err(problem) => {
                file.problem = Some(problem);
                None
            }
        };
        tracing::debug!(?file, "unwinding table");
        self.placed.insert(module.identity().clone(), placed);
        self.files.push(file);
    }

    fn write_changes(&mut self) -> std::io::Result<()> {
        let Self { packed, tables, .. } = self;
        let changes = packed.changed();
        for (shard, rows) in changes.rows {
            tables.set_rows(shard, &rows)?;
        }
        if let Some(rules) = changes.rules {
            tables.set_rules(&rules)?;
        }
        // Last: a page entry makes the rest visible.
        for (shard, pages) in changes.pages {
            tables.set_pages(shard, &pages)?;
        }
        Ok(())
    }

    fn mappings(&mut self, space: &AddressSpace) -> Box<Mappings> {
        // One of its own for each process: children begin with their parent's.
        self.generation = self.generation.wrapping_add(1);
        let mut mappings = Box::new(Mappings {
            count: 0,
            generation: self.generation,
            reuses: space.reuses(),
            mappings: [Mapping::default(); MAX_MAPPINGS],
        });
        // [vsyscall] lies in the kernel's half, whose addresses the search on the BPF side cannot order.
        let user = space.code().filter(|(mapping, _)| mapping.end < 1 << 63);
        for (mapping, module) in user.take(MAX_MAPPINGS) {
            let mut entry = Mapping { start: mapping.start, end: mapping.end, ..Mapping::default() };
            if let Some((placed, segments)) = module.and_then(|module| self.placed.get(module.identity())?.as_ref())
                && let Some(linked) = linked_address(segments, mapping.offset)
            {
                entry.bias = mapping.start.wrapping_sub(linked).wrapping_add(placed.base);
                (entry.first_page, entry.pages) = (placed.first_page, placed.pages);
            }
            if entry.pages == 0 {
                entry.first_page = if module.is_none() { GENERATED } else { 0 };
            }
            mappings.mappings[mappings.count as usize] = entry;
            mappings.count += 1;
        }
        mappings
    }
}

/// The address that the start of an executable mapping was linked for, which maps the file from `offset` on. Mappings begin
/// at pages, segments anywhere: the page may hold the end of another segment too.
pub fn linked_address(segments: &[Segment], offset: u64) -> Option<u64> {
    let segment = segments.iter().find(|segment| {
        segment.executable
            && (segment.offset & !(PAGE - 1)..segment.offset.saturating_add(segment.size)).contains(&offset)
    })?;
    Some(segment.address.wrapping_add(offset).wrapping_sub(segment.offset))
}

/// Bytes of code in a file. Hostile segments may say anything, so the sum ends at the largest number.
pub fn code_bytes(segments: &[Segment]) -> u64 {
    let code = segments.iter().filter(|segment| segment.executable);
    code.fold(0, |sum, segment| sum.saturating_add(segment.size))
}

/// How many of these have no rule in the file's table.
pub fn uncovered_bytes(segments: &[Segment], table: &Table) -> u64 {
    let code = segments.iter().filter(|segment| segment.executable);
    let covered = code.fold(0u64, |sum, code| sum.saturating_add(table.covered_bytes(code.address, code.size)));
    code_bytes(segments).saturating_sub(covered)
}

/// Reads and compiles the table of one file.
fn compile(module: Arc<Module>) -> Compiled {
    let start = Instant::now();
    let read = read(&module);
    let build_time = start.elapsed();
    match read {
        Ok((segments, table)) => Compiled { module, segments, table: Ok(table), build_time },
        Err(problem) => Compiled { module, segments: Vec::new(), table: Err(problem), build_time },
    }
}

fn read(module: &Module) -> Result<(Vec<Segment>, Table), String> {
    compile_file(module.file().ok_or("it is no file, or could not be opened")?)
}

/// The segments and the unwinding table of an ELF file.
///
/// # Errors
/// In words: it is no ELF file, or its unwind information makes no sense.
pub fn compile_file(file: &File) -> Result<(Vec<Segment>, Table), String> {
    let bytes = Bytes::new(file);
    let elf = Elf::parse(&bytes).map_err(|error| error.to_string())?;
    let segments = elf.segments();
    // Linkers of C may put the tables into a section of their own.
    let mut of_go = golang::TABLES.into_iter().chain([golang::BUILD_INFO]);
    let go = of_go.any(|name| elf.section_place(name).is_some());
    let sections = Sections {
        eh_frame: elf.section_at(".eh_frame", MAX_SECTION),
        // Go's knows neither the runtime's switches of stacks nor where goroutines begin.
        debug_frame: elf.section_at(".debug_frame", MAX_SECTION).filter(|_| !go),
        text_address: elf.section_at(".text", 0).map_or(0, |(_, address)| address),
        got_address: elf.section_at(".got", 0).map(|(_, address)| address),
    };
    let mut table = match unwind::compile(&sections) {
        // All of it, where nothing is in C.
        Err(UnwindError::NoSection | UnwindError::Empty) if go => Table::default(),
        compiled => compiled.map_err(|error| error.to_string())?,
    };
    if go {
        for code in segments.iter().filter(|segment| segment.executable) {
            table.fill_with_go(code.address..code.address.saturating_add(code.size));
        }
        if let Some((code, rule)) = callback(file, &elf, &segments) {
            table.replace(code, rule);
        }
    }
    table.mark_entry(elf.entry());
    Ok((segments, table))
}

/// Where C calls Go in an executable, and the rule that holds there.
fn callback(file: &File, elf: &Elf<'_>, segments: &[Segment]) -> Option<(Range<u64>, u64)> {
    let (address, _) = elf.exported(golang::CALLBACK)?;
    let (segment, inside) = segments.iter().filter(|segment| segment.executable).find_map(|segment| {
        let inside = address.checked_sub(segment.address).filter(|inside| *inside < segment.size)?;
        Some((segment, inside))
    })?;
    let mut code = vec![0; golang::CALLBACK_WINDOW.min((segment.size - inside) as usize)];
    file.read_exact_at(&mut code, segment.offset.checked_add(inside)?).ok()?;
    golang::callback_rule(&code, address)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mappings_begin_before_their_segment() {
        let segment = |offset, size, address, executable| Segment { offset, size, address, executable };
        // As lld lays a position-independent executable out: the segments share the page at 0x1a000.
        let segments = [
            segment(0, 0x1a31c, 0, false),
            segment(0x1a320, 0x576b0, 0x1b320, true),
            segment(0x719d0, 0x36b0, 0x739d0, false),
        ];
        assert_eq!(linked_address(&segments, 0x1a000), Some(0x1b000));
        assert_eq!(linked_address(&segments, 0x20000), Some(0x21000), "a part of it");
        assert_eq!(linked_address(&segments, 0), None, "no code");
        let hostile = [segment(u64::MAX - 5, u64::MAX, u64::MAX, true), segment(0x3000, u64::MAX, 0, true)];
        assert_eq!(linked_address(&hostile, 0x1000), None);
        assert_eq!(linked_address(&hostile, 0x3000), Some(0));
        assert_eq!(code_bytes(&hostile), u64::MAX);
        assert_eq!(uncovered_bytes(&hostile, &Table::frame_pointers(0x100..0x300)), u64::MAX - 0x200);
    }
}
