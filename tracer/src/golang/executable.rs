//! The executable of a Go program: version, tables and layout of its runtime, from the file alone.

use std::{
    collections::BTreeMap,
    fs::File,
    io,
    ops::Range,
    os::{
        fd::OwnedFd,
        unix::fs::{FileExt, MetadataExt},
    },
};

use super::{
    Unreadable,
    buildinfo::{self, BuildInfo, Version},
    dwarf,
    layout::{self, Layout, Mention},
    pclntab::{Function, HEADERS, Pclntab},
    shared::{self, read},
};
use crate::files::elf::{Bytes, Elf, Segment};

/// Oldest minor version whose runtime is understood, with DWARF or without.
const OLDEST: u32 = 19;
/// Sections that hold pclntab, of ordinary and of position-independent executables.
pub const TABLES: [&str; 2] = [".gopclntab", ".data.rel.ro.gopclntab"];
/// Largest pclntab that is taken, bytes. That of a program of 100 MB takes 30 MB.
const MAX_TABLES: u64 = 256 << 20;
/// Section that holds the build information; every Go executable that was not stripped of its sections has it.
pub const BUILD_INFO: &str = ".go.buildinfo";
/// How much of a segment is searched for build information, bytes. It is the first thing in the data.
const MAX_BUILD_INFO: u64 = 1 << 20;
/// Bytes that are searched at once.
const CHUNK: u64 = 1 << 20;

/// Variables of the runtime that lead to the goroutines: how many there are, and where their list is.
pub(super) const GOROUTINES: [&str; 2] = ["runtime.allglen", "runtime.allgptr"];
/// The heap.
pub(super) const HEAP: &str = "runtime.mheap_";
/// The profile that the runtime itself keeps of it: the list of what it holds by stack, and the mean of bytes between samples.
pub(super) const BUCKETS: &str = "runtime.mbuckets";
pub(super) const PROFILE_RATE: &str = "runtime.MemProfileRate";
/// Whether goroutines must help the garbage collector.
pub(super) const ASSIST: &str = "runtime.gcBlackenEnabled";
/// All of these.
pub(super) const VARIABLES: [&str; 6] = [GOROUTINES[0], GOROUTINES[1], HEAP, BUCKETS, PROFILE_RATE, ASSIST];
/// What goroutines wait for, in words.
pub(super) const WAIT_REASONS: &str = "runtime.waitReasonStrings";

/// What says where the runtime keeps what.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LayoutSource {
    /// The executable's own debug information.
    Dwarf,
    /// What is known of the version that it was built with.
    Table,
}

/// An opened Go executable.
pub struct Executable {
    file: File,
    /// The file itself, by which it can be probed, where what is read is a copy of it.
    pub original: Option<OwnedFd>,
    /// Device and inode of what is read.
    pub inode: Option<(u64, u64)>,
    /// Version that it was built with.
    pub version: Version,
    /// What tells this build from others, if anything does: hostile text.
    pub build_id: Option<String>,
    /// What is loaded of the file.
    pub segments: Vec<Segment>,
    /// Address of the first instruction, as linked.
    pub entry: u64,
    /// Functions, lines and frames.
    pub tables: Pclntab,
    /// Where these are, as linked.
    pub tables_at: u64,
    /// Where the runtime keeps what.
    pub layout: Layout,
    /// What says so.
    pub layout_source: LayoutSource,
    /// Addresses of those of [`VARIABLES`] that symbols tell, as linked.
    pub variables: BTreeMap<String, u64>,
    /// How to find them elsewhere.
    pub mentions: Vec<Mention>,
}

impl Executable {
    /// Reads an executable.
    ///
    /// # Errors
    /// Not a Go program, or not one that can be understood.
    pub fn open(file: File) -> Result<Self, Unreadable> {
        // The parser borrows the file.
        let borrowed = file.try_clone()?;
        let bytes = Bytes::new(&borrowed);
        let elf = Elf::parse(&bytes).map_err(|_| Unreadable::NotGo)?;
        let segments = elf.segments();
        let version = match build_info(&file, &elf, &segments) {
            BuildInfo::Version(version) => version,
            BuildInfo::Old => return Err(Unreadable::OldVersion),
            BuildInfo::Absent => return Err(Unreadable::NotGo),
        };
        if version.minor.is_some_and(|minor| minor < OLDEST) {
            return Err(Unreadable::OldVersion);
        }
        if !elf.is_x86_64() {
            return Err(Unreadable::OtherProcessor);
        }
        let (tables, tables_at) = tables(&file, &elf, &segments).ok_or(Unreadable::NoTables)?;
        let known = version.minor.and_then(|minor| layout::table().get(&minor));
        let (layout, layout_source) = layout_of(&file, &elf, &segments, known)
            .map_err(|missing| Unreadable::NoLayout { version: version.to_string(), missing })?;
        let symbols = VARIABLES.into_iter().zip(elf.symbols(VARIABLES));
        let variables = symbols.filter_map(|(name, symbol)| Some((name.to_owned(), symbol?.0))).collect();
        let mentions = known.map(|known| known.mentions.clone()).unwrap_or_default();
        let (build_id, entry) = (elf.build_id_text(), elf.entry());
        let inode = file.metadata().ok().map(|metadata| (metadata.dev(), metadata.ino()));
        Ok(Self {
            file,
            original: None,
            inode,
            version,
            build_id,
            segments,
            entry,
            tables,
            tables_at,
            layout,
            layout_source,
            variables,
            mentions,
        })
    }

    /// Of no file, for [`Runtime::made_up`](super::Runtime::made_up).
    pub(super) fn made_up(layout: Layout, tables: Pclntab) -> io::Result<Self> {
        Ok(Self {
            file: File::open("/dev/null")?,
            original: None,
            inode: None,
            version: Version { text: "made up".to_owned(), minor: None },
            build_id: None,
            segments: Vec::new(),
            entry: 0,
            tables,
            tables_at: 0,
            layout,
            layout_source: LayoutSource::Table,
            variables: BTreeMap::new(),
            mentions: Vec::new(),
        })
    }

    /// Address as linked of what is at an offset of the file, bytes.
    pub fn address(&self, offset: u64) -> Option<u64> {
        self.segments.iter().find_map(|segment| {
            let inside = offset.checked_sub(segment.offset).filter(|inside| *inside < segment.size)?;
            segment.address.checked_add(inside)
        })
    }

    /// The file itself.
    pub fn file(&self) -> &File {
        &self.file
    }

    /// Fills `buffer` with what was linked for `address`.
    pub fn read(&self, address: u64, buffer: &mut [u8]) -> Option<()> {
        let offset = self.file_offset(address)?;
        self.file.read_exact_at(buffer, offset).ok()
    }

    /// Where in the file that is which was linked for `address`, bytes.
    pub fn file_offset(&self, address: u64) -> Option<u64> {
        file_offset(&self.segments, address)
    }
}

fn file_offset(segments: &[Segment], address: u64) -> Option<u64> {
    segments.iter().find_map(|segment| {
        let inside = address.checked_sub(segment.address).filter(|inside| *inside < segment.size)?;
        segment.offset.checked_add(inside)
    })
}

fn build_info(file: &File, elf: &Elf<'_>, segments: &[Segment]) -> BuildInfo {
    let section = elf.section_place(BUILD_INFO).filter(|section| section.address.is_multiple_of(16));
    let data = segments.iter().filter(|segment| !segment.executable && segment.address.is_multiple_of(16));
    for place in section.iter().chain(data) {
        let found = read(file, place.offset, place.size.min(MAX_BUILD_INFO)).map(|data| buildinfo::find(&data));
        match found {
            None | Some(BuildInfo::Absent) => {}
            Some(found) => return found,
        }
    }
    BuildInfo::Absent
}

/// pclntab, and the address that it was linked for.
fn tables(file: &File, elf: &Elf<'_>, segments: &[Segment]) -> Option<(Pclntab, u64)> {
    let whole = |place: Segment| {
        let bytes = shared::kept(file, &place, MAX_TABLES)?;
        Some((Pclntab::parse(bytes)?, place.address))
    };
    let sections = TABLES.iter().filter_map(|name| elf.section_place(name));
    sections.into_iter().find_map(whole).or_else(|| {
        let data = segments.iter().filter(|segment| !segment.executable);
        data.filter_map(|segment| header(file, segment)).find_map(whole)
    })
}

/// Where the code of C lies that the Go linker has put into an executable itself (the runtime's own part of cgo, `net` and `os/user`), without
/// its unwind information. Addresses as linked.
pub fn linked_c(file: &File, elf: &Elf<'_>) -> Vec<Range<u64>> {
    let text = elf.section_at(".text", 0).map(|(_, address)| address);
    let found = text.zip(tables(file, elf, &elf.segments()));
    let Some((text, (tables, _))) = found else { return Vec::new() };
    let of_c = tables.functions().filter(|(_, function, _)| tables.is_foreign(*function));
    let place = |function: Function, size: u32| {
        let start = text.checked_add(u64::from(function.entry))?;
        Some(start..start.checked_add(u64::from(size))?)
    };
    of_c.filter_map(|(_, function, size)| place(function, size)).collect()
}

/// The rest of a segment from something that looks like the header of pclntab.
fn header(file: &File, segment: &Segment) -> Option<Segment> {
    let mut at = 0;
    while at < segment.size.min(2 * MAX_TABLES) {
        let chunk = read(file, segment.offset.checked_add(at)?, CHUNK.min(segment.size - at))?;
        let found = chunk.chunks(8).position(|word| HEADERS.iter().any(|header| word == header));
        if let Some(word) = found {
            let skipped = at + 8 * word as u64;
            return Some(Segment {
                offset: segment.offset + skipped,
                size: segment.size - skipped,
                address: segment.address.checked_add(skipped)?,
                executable: false,
            });
        }
        at += CHUNK;
    }
    None
}

/// From DWARF, which is of this very build; else what is known of the version. `Err` names what is missing.
fn layout_of(
    file: &File,
    elf: &Elf<'_>,
    segments: &[Segment],
    known: Option<&layout::Description>,
) -> Result<(Layout, LayoutSource), String> {
    let found = dwarf::find(elf).unwrap_or_default();
    let wrapper = found.wrapper.or_else(|| known.map(|known| known.wrapper));
    let words = || wait_reasons(file, elf, segments);
    let reasons = known.map(|known| known.wait_reasons.clone()).or_else(words).unwrap_or_default();
    let told =
        wrapper.ok_or_else(|| "funcID".to_owned()).and_then(|wrapper| Layout::new(&found.structures, wrapper, reasons));
    let told = told.map(|layout| (layout, LayoutSource::Dwarf));
    let of_version = |known| Ok((Layout::try_from(known)?, LayoutSource::Table));
    let (mut layout, source) = told.or_else(|missing| known.ok_or(missing).and_then(of_version))?;
    if let (Err(_), Some(known)) = (&layout.heap, known) {
        layout.heap = Layout::try_from(known)?.heap;
    }
    Ok((layout, source))
}

/// What goroutines wait for, by number, from the runtime's own list: an array of strings (address, length).
pub(super) fn wait_reasons(file: &File, elf: &Elf<'_>, segments: &[Segment]) -> Option<Vec<String>> {
    let [Some((address, size))] = elf.symbols([WAIT_REASONS]) else { return None };
    let list = read(file, file_offset(segments, address)?, size.min(4096))?;
    let reasons = list.chunks_exact(16).map(|string| {
        let (address, length) = (super::bytes::u64_at(string, 0)?, super::bytes::u64_at(string, 8)?);
        if length == 0 {
            return Some(String::new());
        }
        let text = read(file, file_offset(segments, address)?, Some(length).filter(|length| *length <= 64)?)?;
        Some(String::from_utf8_lossy(&text).into_owned())
    });
    reasons.collect()
}
