//! Whether DWARF is nested so deeply that a parser that recurses runs out of stack.
//!
//! blazesym recurses for functions that are inlined into inlined functions. A byte per level is enough for a file to
//! say that, so a megabyte would end the program, and no handler can catch it. So the tree is walked once before, in a
//! loop. That also finds files whose tables take for ever to read.

use std::time::{Duration, Instant};

use gimli::{AbbreviationsCacheStrategy, Dwarf, EndianSlice, LittleEndian, SectionId, UnitHeader};

/// Deepest nesting that is taken. Compilers stay below a few hundred; one level takes about half a kilobyte of stack.
const MAX_DEPTH: isize = 1000;
/// Most time that looking may take. A gigabyte takes a few seconds.
const MAX_TIME: Duration = Duration::from_secs(5);
/// Entries between two looks at the time.
const PAUSE: usize = 1 << 16;

type Data<'data> = EndianSlice<'data, LittleEndian>;

/// Whether the entries of `info` (.debug_info) with `abbreviations` (.debug_abbrev) are nested as compilers do it.
pub(super) fn is_shallow(info: &[u8], abbreviations: &[u8]) -> bool {
    let section = |id| {
        let data = match id {
            SectionId::DebugInfo => info,
            SectionId::DebugAbbrev => abbreviations,
            _ => &[],
        };
        Ok::<_, gimli::Error>(EndianSlice::new(data, LittleEndian))
    };
    let Ok(mut dwarf) = Dwarf::load(section) else { return false };
    dwarf.populate_abbreviations_cache(AbbreviationsCacheStrategy::Duplicates);
    let start = Instant::now();
    let mut units = dwarf.units();
    // An error ends what blazesym reads at the same place.
    while let Ok(Some(unit)) = units.next() {
        if start.elapsed() > MAX_TIME || !is_unit_shallow(&dwarf, &unit, start).unwrap_or(true) {
            return false;
        }
    }
    true
}

fn is_unit_shallow(dwarf: &Dwarf<Data<'_>>, unit: &UnitHeader<Data<'_>>, start: Instant) -> gimli::Result<bool> {
    let abbreviations = dwarf.abbreviations(unit)?;
    let mut entries = unit.entries_raw(&abbreviations, None)?;
    let mut count = 0_usize;
    while !entries.is_empty() {
        count += 1;
        if entries.next_depth() > MAX_DEPTH || count.is_multiple_of(PAUSE) && start.elapsed() > MAX_TIME {
            return Ok(false);
        }
        if let Some(abbreviation) = entries.read_abbreviation()? {
            entries.skip_attributes(abbreviation.attributes())?;
        }
    }
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One unit whose entry 1 has children, and nothing else: the compiler's way, then `depth` entries in each other.
    fn nested(depth: usize) -> Vec<u8> {
        let entries = vec![1; depth];
        let mut info = ((2 + 4 + 1 + entries.len()) as u32).to_le_bytes().to_vec();
        info.extend([4, 0, 0, 0, 0, 0, 8]);
        info.extend(entries);
        info
    }

    #[test]
    fn deep_nesting_is_refused() {
        // Abbreviation 1: DW_TAG_inlined_subroutine with children, without attributes.
        let abbreviations = [1, 0x1d, 1, 0, 0, 0];
        assert!(is_shallow(&nested(500), &abbreviations));
        assert!(!is_shallow(&nested(2_000), &abbreviations));
        assert!(!is_shallow(&[nested(10), nested(1_000_000)].concat(), &abbreviations));
        assert!(is_shallow(&[], &[]));
    }
}
