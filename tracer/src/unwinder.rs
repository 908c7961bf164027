//! Unwinding tables of the files that traced processes map: reads what a file says, has it compiled, and tells the BPF side of it
//! under the file's number. Who asks for which file is in `resolve/`.

mod contexts;
mod entry;
mod switches;
mod undescribed;
mod window;

use std::{
    fs::File,
    io,
    ops::Range,
    os::unix::fs::FileExt as _,
    sync::Arc,
    time::{Duration, Instant},
};

use hashbrown::{HashMap, HashSet};
use tracer_ebpf::unwind::{FileSegment, FileTable, GENERATED, MAX_SEGMENTS, file, fp, kind, rule};

use self::window::Window;
use crate::{
    bpf::Tables,
    event::Pid,
    files::{
        elf::{Bytes, Elf},
        module::Module,
    },
    golang,
    profile::UnwindTable,
    ranges::joined,
    unwind::{self, Packed, Placed, Sections, Table, UnwindError},
};

/// Most of an unwinding section that is read, bytes: as much as is read of a file in one piece. A file of 150 MiB has ten.
const MAX_SECTION: u64 = 256 << 20;

/// Bytes of a page.
const PAGE: u64 = 4096;
/// No rule.
const NONE: u64 = rule(kind::NONE, 0, 0, 0);
/// That of code of which nothing is known but that it runs.
const GUESS: u64 = rule(kind::FRAME_POINTERS, fp::SAME, 0, 0);

/// The numbers of files and their unwinding tables, as the BPF programs have them: the only one who writes there.
pub struct Unwinder {
    tables: Tables,
    packed: Packed,
    /// Where the tables of files are, by number, and for which of their segments.
    placed: HashMap<u32, (Placed, [FileSegment; MAX_SEGMENTS])>,
    /// Files, by number, whose code is followed by frame pointers.
    guessed: HashSet<u32>,
    /// Whether there was no room for a table.
    is_full: bool,
}

type Segment = crate::files::elf::Segment;

/// A file's table, compiled but not yet placed.
pub struct Compiled {
    /// The file.
    pub module: Arc<Module>,
    segments: Vec<Segment>,
    /// Or why there is none, in words.
    table: Result<Table, String>,
    build_time: Duration,
}

impl Compiled {
    /// One that has no table, for a reason in words.
    pub fn failed(module: Arc<Module>, problem: &str) -> Self {
        Self { module, segments: Vec::new(), table: Err(problem.to_owned()), build_time: Duration::ZERO }
    }
}

impl Unwinder {
    /// One that has no tables yet.
    pub fn new(tables: Tables) -> Self {
        Self { tables, packed: Packed::default(), placed: HashMap::new(), guessed: HashSet::new(), is_full: false }
    }

    /// Changes of the mappings of a process, and of others, so far; `None` where nobody counts them.
    pub fn changes_of(&self, pid: Pid) -> Option<u64> {
        self.tables.changes_of(pid)
    }

    /// The number of a file that can be asked for it: not one that is a copy, and lies on a file system that may not answer.
    /// User space is told of it no more from then on.
    pub fn number_of(&self, module: &Module) -> Option<u32> {
        let file = module.file().filter(|_| module.original().is_none())?;
        let number = self.tables.number_of(file);
        number.inspect_err(|error| tracing::debug!("{}: {error}", module.path().escape_debug())).ok()?
    }

    /// Has a file told again when it is met again.
    pub fn retry(&mut self, number: u32) {
        self.write(number, FileTable::default());
    }

    /// Makes it known that code is kept in a file that was generated at run time.
    pub fn know_generated(&mut self, number: u32) {
        self.write(number, FileTable { told: 1, state: file::GENERATED, ..FileTable::default() });
    }

    /// Makes files known: what their tables are like, in that order.
    pub fn know(&mut self, files: impl IntoIterator<Item = (u32, Compiled)>) -> Vec<UnwindTable> {
        let (described, known): (Vec<UnwindTable>, Vec<(u32, FileTable)>) =
            files.into_iter().map(|(number, compiled)| self.place(number, compiled)).unzip();
        if let Err(error) = self.write_changes() {
            tracing::warn!("cannot write unwinding tables: {error}");
        }
        for (number, table) in known {
            self.write(number, table);
        }
        described
    }

    /// The rule that holds at `offset` of a file, in a mapping of it that begins at `mapped`, as the BPF side finds it.
    pub fn rule_at(&self, number: u32, mapped: u64, offset: u64) -> u64 {
        if self.guessed.contains(&number) {
            return GUESS;
        }
        let find = || {
            let (placed, segments) = self.placed.get(&number)?;
            let segment = segments.iter().find(|segment| (segment.first..segment.last).contains(&mapped))?;
            let address = offset.wrapping_sub(segment.delta).wrapping_add(placed.base);
            Some(self.packed.rule_at(placed, address))
        };
        find().unwrap_or(NONE)
    }

    /// Says how many bytes of the rests of stacks are done with so far.
    pub fn set_rests_done(&mut self, bytes: u64) {
        if let Err(error) = self.tables.set_rests_done(bytes) {
            tracing::warn!("cannot write how much memory of stacks is free: {error}");
        }
    }

    /// Whether there was no room for the table of some file, and none was forgotten since.
    pub fn is_full(&self) -> bool {
        self.is_full
    }

    /// Which of these files some thread has met since this was last asked for them; all, when nobody can tell.
    pub fn take_met(&mut self, numbers: &HashSet<u32>) -> HashSet<u32> {
        self.tables.take_met(numbers.iter().copied()).unwrap_or_else(|error| {
            tracing::warn!("cannot tell which files are in use: {error}");
            numbers.clone()
        })
    }

    /// Forgets files, whose tables give their room to others. Met again they are files of other numbers.
    pub fn forget(&mut self, numbers: &HashSet<u32>) {
        let forgotten = self.tables.forget_files(numbers);
        for number in numbers {
            self.guessed.remove(number);
            let placed = self.placed.remove(number);
            if let (Some((placed, _)), Ok(())) = (placed, &forgotten) {
                self.packed.remove(&placed);
            }
        }
        match forgotten {
            Ok(()) => self.is_full = false,
            Err(error) => tracing::warn!("the tables of {} files that are not in use stay: {error}", numbers.len()),
        }
    }

    /// Tells the BPF side what is known of a file.
    fn write(&mut self, number: u32, table: FileTable) {
        if let Err(error) = self.tables.set_file(number, table) {
            tracing::warn!("cannot write what is known of a file: {error}");
        }
    }

    fn place(&mut self, number: u32, compiled: Compiled) -> (UnwindTable, (u32, FileTable)) {
        let Compiled { module, segments, table, build_time } = compiled;
        let code_bytes = code_bytes(&segments);
        let mut file = UnwindTable {
            path: module.path().to_owned(),
            rows: 0,
            bytes: 0,
            build_time,
            code_bytes,
            uncovered_bytes: code_bytes,
            synthesized_bytes: 0,
            problem: None,
        };
        let mut known = FileTable { told: 1, state: file::KNOWN, ..FileTable::default() };
        match table {
            Ok(table) => {
                let before = self.packed.size();
                match self.packed.add(&table) {
                    Ok(placed) => {
                        file.rows = table.rows().len();
                        file.bytes = self.packed.size() - before;
                        file.uncovered_bytes = uncovered_bytes(&segments, &table);
                        file.synthesized_bytes = table.stats.synthesized_bytes;
                        file.problem = table.stats.problem();
                        (known.first_page, known.pages) = (placed.first_page, placed.pages);
                        let code = segments.iter().filter(|segment| segment.executable);
                        for (to, segment) in known.segments.iter_mut().zip(code) {
                            *to = code_segment(segment, placed);
                        }
                        self.placed.insert(number, (placed, known.segments));
                    }
                    Err(full) => {
                        self.is_full = true;
                        file.problem = Some(full.to_string());
                    }
                }
            }
            Err(problem) => {
                file.problem = Some(problem);
                if module.is_guessed() {
                    known.first_page = GENERATED;
                    known.segments[0] = FileSegment { last: u64::MAX, ..FileSegment::default() };
                    self.guessed.insert(number);
                }
            }
        }
        tracing::debug!(number, ?file, "unwinding table");
        (file, (number, known))
    }

    fn write_changes(&mut self) -> io::Result<()> {
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
}

/// A segment as the BPF side looks for it. Mappings begin at pages, segments anywhere.
fn code_segment(segment: &Segment, placed: Placed) -> FileSegment {
    FileSegment {
        first: segment.offset & !(PAGE - 1),
        last: segment.offset.saturating_add(segment.size),
        delta: placed.base.wrapping_sub(segment.address.wrapping_sub(segment.offset)),
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
    code(segments).iter().map(|code| code.end - code.start).sum()
}

/// How many of these have no rule in the file's table.
pub fn uncovered_bytes(segments: &[Segment], table: &Table) -> u64 {
    let code = code(segments).into_iter();
    code.map(|code| (code.end - code.start).saturating_sub(table.covered_bytes(code.start, code.end - code.start)))
        .sum()
}

/// Most ranges of code in one file: linkers make a few, hostile files as many as there is room for.
const MAX_CODE_RANGES: usize = 256;

/// Where the code of these segments is: each byte once, whichever segments share it.
fn code(segments: &[Segment]) -> Vec<Range<u64>> {
    let code = segments.iter().filter(|segment| segment.executable && segment.size > 0);
    let mut code = joined(code.map(|segment| segment.address..segment.address.saturating_add(segment.size)).collect());
    code.truncate(MAX_CODE_RANGES);
    code
}

/// Those ranges, where there are no more: else nothing is known to be outside of all.
fn all_code(ranges: &[Range<u64>]) -> Option<&[Range<u64>]> {
    (ranges.len() < MAX_CODE_RANGES).then_some(ranges)
}

/// Reads and compiles the table of one file.
pub fn compile(module: Arc<Module>) -> Compiled {
    let start = Instant::now();
    let read = read(&module);
    // Code that a runtime has compiled ahead, in a format of its own (.NET): what keeps frame pointers where it is generated does so there.
    if read.is_err() && module.is_pe() {
        module.guess();
    }
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
/// In words: it is no ELF file, or its unwind information makes no sense and its code proves nothing.
pub fn compile_file(file: &File) -> Result<(Vec<Segment>, Table), String> {
    compile_within(file, MAX_SECTION)
}

/// The same of at most so many bytes of each section.
fn compile_within(file: &File, most: u64) -> Result<(Vec<Segment>, Table), String> {
    let bytes = Bytes::new(file);
    let elf = Elf::parse(&bytes).map_err(|error| error.to_string())?;
    let segments = elf.segments();
    let ranges = code(&segments);
    // Linkers of C may put the tables into a section of their own.
    let mut of_go = golang::TABLES.into_iter().chain([golang::BUILD_INFO]);
    let go = of_go.any(|name| elf.section_place(name).is_some());
    let sections = Sections {
        eh_frame: elf.section_at(".eh_frame", most),
        // Go's knows neither the runtime's switches of stacks nor where goroutines begin.
        debug_frame: elf.section_at(".debug_frame", most).filter(|_| !go),
        text_address: elf.section_at(".text", 0).map_or(0, |(_, address)| address),
        got_address: elf.section_at(".got", 0).map(|(_, address)| address),
        code: all_code(&ranges),
    };
    let (mut table, problem) = match unwind::compile(&sections) {
        Ok(table) => (table, None),
        // All of it, where nothing is in C.
        Err(UnwindError::NoSection | UnwindError::Empty) if go => (Table::default(), None),
        Err(problem) => (Table::default(), Some(problem)),
    };
    let read = [(".eh_frame", sections.eh_frame), (".debug_frame", sections.debug_frame)];
    let unread = read.into_iter().filter_map(|(name, read)| {
        let (bytes, _) = read?;
        Some(elf.section_place(name)?.size.saturating_sub(bytes.len() as u64))
    });
    table.stats.unread_bytes = unread.fold(0, u64::saturating_add);
    let mut window = Window::new(file, &segments);
    undescribed::bridge(&mut window, &mut table);
    if go {
        // What a linker of C has put together has tables for C.
        let is_linked_by_go = table.rows().is_empty() && !elf.needed().libraries.is_empty();
        let c = if is_linked_by_go { joined(golang::linked_c(file, &elf)) } else { Vec::new() };
        for code in ranges {
            without(code, &c).into_iter().for_each(|code| table.fill_with_go(code));
        }
        if !c.is_empty() {
            let code = undescribed::code(&elf, &mut table);
            undescribed::describe(&elf, code, &mut table);
        }
        if let Some((code, rule)) = callback(file, &elf, &segments) {
            table.replace(code, rule);
        }
    } else if elf.is_x86_64() {
        contexts::mark(&elf, &mut table);
        let code = undescribed::code(&elf, &mut table);
        let made = contexts::made(&code);
        undescribed::describe(&elf, code, &mut table);
        contexts::mark_made(&made, &mut table);
        switches::mark(&mut window, &mut table);
    }
    if let Some(problem) = problem.filter(|_| table.rows().is_empty()) {
        return Err(problem.to_string());
    }
    entry::mark(&elf, &mut table);
    Ok((segments, table))
}

/// The parts of `code` that are not in `others`, which go up.
fn without(code: Range<u64>, others: &[Range<u64>]) -> Vec<Range<u64>> {
    let mut parts = Vec::new();
    let mut start = code.start;
    for other in others.iter().filter(|other| other.end > code.start && other.start < code.end) {
        parts.push(start..other.start.max(start));
        start = other.end.max(start);
    }
    parts.push(start..code.end.max(start));
    parts.retain(|part| !part.is_empty());
    parts
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

    /// The rule that holds at a symbol of a file.
    pub(super) fn rule_of(path: &std::path::Path, symbol: &str) -> u64 {
        let file = File::open(path).unwrap();
        let bytes = Bytes::new(&file);
        let (address, _) = Elf::parse(&bytes).unwrap().exported(symbol).unwrap();
        compile_file(&file).unwrap().1.rule_at(address)
    }

    /// What is damaged is not followed by guesses, nor is what is no file.
    #[test]
    fn code_in_files_of_other_formats_is_followed_by_frame_pointers() {
        for (contents, is_guessed) in [(&b"MZ\x90\0"[..], true), (b"\x7fELF\x01\x01", false), (b"\x7fELF", false)] {
            let mut file = tempfile::tempfile().unwrap();
            io::Write::write_all(&mut file, contents).unwrap();
            let compiled = compile(Arc::new(Module::of_file("/some/file", file).unwrap()));
            assert!(compiled.table.is_err());
            assert_eq!(compiled.module.is_guessed(), is_guessed, "{contents:?}");
        }
        assert!(!compile(Arc::new(Module::special("[vdso]"))).module.is_guessed());
    }

    /// Of what is too large a part is used, and that is told.
    #[test]
    fn what_is_not_read_is_told() {
        let file = File::open("/usr/lib/x86_64-linux-gnu/libm.so.6").unwrap();
        let (_, whole) = compile_file(&file).unwrap();
        let (_, part) = compile_within(&file, 1 << 10).unwrap();
        assert!((1..whole.stats.functions).contains(&part.stats.functions));
        assert_eq!((whole.stats.unread_bytes, whole.stats.problem()), (0, None));
        assert!(part.stats.problem().is_some_and(|problem| problem.contains("unwind information")));
    }

    #[test]
    fn code_without_parts_of_it() {
        let c = [0..5, 10..20, 20..22, 30..50];
        assert_eq!(without(3..40, &c), [5..10, 22..30]);
        assert_eq!(without(22..31, &c), [Range { start: 22, end: 30 }]);
        assert_eq!(without(12..18, &c), []);
    }

    /// Each byte of code counts once, however many segments share it, and is looked for in the table once.
    #[test]
    fn segments_that_overlap_are_one() {
        let segment = |address, size, executable| Segment { offset: 0, size, address, executable };
        let mut segments = vec![segment(0x1000, 0x1000, true); 60_000];
        segments.extend([segment(0x1800, 0x1000, true), segment(0, 0x800, false), segment(0x4000, 0x10, true)]);
        assert_eq!(code(&segments), [0x1000..0x2800, 0x4000..0x4010]);
        assert_eq!((code_bytes(&segments), uncovered_bytes(&segments, &Table::default())), (0x1810, 0x1810));
    }

    #[test]
    fn what_may_lie_in_code_that_was_cut_off_is_not_judged() {
        let of = |number: u64| {
            let segment = |index| Segment { offset: 0, size: 0x10, address: index * 0x1000, executable: true };
            code(&(0..number).map(segment).collect::<Vec<_>>())
        };
        assert_eq!(all_code(&of(2)), Some(&[0..0x10, 0x1000..0x1010][..]));
        assert_eq!((of(1000).len(), all_code(&of(1000))), (MAX_CODE_RANGES, None));
    }

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
