//! Structures and constants of the Go runtime from the DWARF of an executable that was not stripped.
//!
//! Go describes the types of the runtime in a unit named `runtime`. Whatever is forged, the answer is at most wrong
//! numbers, which [`Layout`](super::layout::Layout) bounds.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use gimli::{
    AbbreviationsCacheStrategy, AttributeValue, DW_AT_byte_size, DW_AT_const_value, DW_AT_data_member_location,
    DW_AT_name, DebuggingInformationEntry, Dwarf, EndianSlice, LittleEndian, SectionId,
};

use super::layout::{STRUCTURES, Structure, TRACEABLE, WRAPPERS};
use crate::files::elf::Elf;

/// Most DWARF that is read, bytes when unpacked: one of the largest Go programs, at 100 MB, has half of that.
const MAX_INFO: u64 = 128 << 20;
const MAX_ABBREVIATIONS: u64 = 1 << 20;
/// Units whose types and constants are looked at. The constant that marks wrappers moved to `internal/abi` in Go 1.21.
const UNITS: [&[u8]; 2] = [b"runtime", b"internal/abi"];
/// Most time that looking may take; a program of 10 MB takes some milliseconds.
const MAX_TIME: Duration = Duration::from_secs(2);
/// Most entries that are looked at; the runtime has 50,000.
const MAX_ENTRIES: usize = 1 << 20;

type Data<'data> = EndianSlice<'data, LittleEndian>;
type Entry<'data> = DebuggingInformationEntry<Data<'data>>;

/// What the DWARF of an executable says of its runtime.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Found {
    /// Those of [`STRUCTURES`], with the fields named there.
    pub(super) structures: BTreeMap<String, Structure>,
    /// `funcID` of wrappers.
    pub(super) wrapper: Option<u8>,
}

impl Found {
    fn is_complete(&self) -> bool {
        let mut always = STRUCTURES.iter().filter(|(name, _)| *name != TRACEABLE);
        always.all(|(name, _)| self.structures.contains_key(*name)) && self.wrapper.is_some()
    }
}

/// Looks into the DWARF of an executable. `None` when there is none that can be read.
pub(super) fn find(elf: &Elf<'_>) -> Option<Found> {
    let info = elf.unpacked(".debug_info", MAX_INFO)?;
    let abbreviations = elf.unpacked(".debug_abbrev", MAX_ABBREVIATIONS)?;
    search(&info, &abbreviations).ok()
}

fn search(info: &[u8], abbreviations: &[u8]) -> gimli::Result<Found> {
    let section = |id| {
        let data = match id {
            SectionId::DebugInfo => info,
            SectionId::DebugAbbrev => abbreviations,
            _ => &[],
        };
        Ok::<_, gimli::Error>(EndianSlice::new(data, LittleEndian))
    };
    let mut dwarf = Dwarf::load(section)?;
    dwarf.populate_abbreviations_cache(AbbreviationsCacheStrategy::Duplicates);
    let start = Instant::now();
    let mut found = Found::default();
    let mut left = MAX_ENTRIES;
    let mut units = dwarf.units();
    while let Some(header) = units.next()? {
        if start.elapsed() > MAX_TIME {
            break;
        }
        let abbreviations = dwarf.abbreviations(&header)?;
        let mut entries = header.entries(&abbreviations);
        let Some(root) = entries.next_dfs()? else { continue };
        if !name(root).is_some_and(|name| UNITS.contains(&name)) {
            continue;
        }
        // The structure whose members are being read, and its depth.
        let mut open: Option<(&'static [&'static str], Structure, String, isize)> = None;
        while let Some(entry) = entries.next_dfs()? {
            left -= 1;
            if left == 0 {
                return Ok(found);
            }
            if let Some((_, structure, name, _)) = open.take_if(|(.., depth)| entry.depth() <= *depth) {
                found.structures.entry(name).or_insert(structure);
            }
            match entry.tag() {
                gimli::DW_TAG_structure_type => open = structure(entry),
                gimli::DW_TAG_member => {
                    if let Some((fields, structure, ..)) = &mut open {
                        member(entry, fields, structure);
                    }
                }
                gimli::DW_TAG_constant => found.wrapper = found.wrapper.or_else(|| wrapper(entry)),
                _ => {}
            }
        }
        if let Some((_, structure, name, _)) = open {
            found.structures.entry(name).or_insert(structure);
        }
        if found.is_complete() {
            break;
        }
    }
    Ok(found)
}

fn structure(entry: &Entry<'_>) -> Option<(&'static [&'static str], Structure, String, isize)> {
    let name = name(entry)?;
    let (known, fields) = STRUCTURES.into_iter().find(|(known, _)| known.as_bytes() == name)?;
    let size = entry.attr_value(DW_AT_byte_size)?.udata_value()?;
    Some((fields, Structure { size, fields: BTreeMap::new() }, known.to_owned(), entry.depth()))
}

fn member(entry: &Entry<'_>, fields: &[&str], structure: &mut Structure) {
    let Some(name) = name(entry) else { return };
    let location = entry.attr_value(DW_AT_data_member_location).and_then(|value| value.udata_value());
    if let (Some(field), Some(at)) = (fields.iter().find(|field| field.as_bytes() == name), location) {
        structure.fields.insert((*field).to_owned(), at);
    }
}

fn wrapper(entry: &Entry<'_>) -> Option<u8> {
    let name = name(entry)?;
    let value = entry.attr_value(DW_AT_const_value)?;
    let value = value.udata_value().or_else(|| value.sdata_value()?.try_into().ok())?;
    WRAPPERS.iter().any(|wrapper| wrapper.as_bytes() == name).then(|| u8::try_from(value).ok())?
}

/// Go writes names into the entries themselves.
fn name<'data>(entry: &Entry<'data>) -> Option<&'data [u8]> {
    match entry.attr_value(DW_AT_name)? {
        AttributeValue::String(name) => Some(name.slice()),
        _ => None,
    }
}
