//! The symbols of a file as its loader finds them: by the dynamic segment, without section headers.

use object::{
    Endianness,
    elf::{DT_GNU_HASH, DT_HASH, DT_STRSZ, DT_STRTAB, DT_SYMTAB, DynamicTag, PT_DYNAMIC, Sym64},
    read::elf::{Dyn as _, ElfFile64, ProgramHeader as _},
};
use object::{Object as _, ObjectSegment as _, ReadRef as _};

use crate::files::elf::Bounded;

type Elf<'data> = ElfFile64<'data, Endianness, Bounded<'data>>;

/// Most symbols of a table that are read.
const MAX_SYMBOLS: u64 = 1 << 22;
/// Entries of a chain that are read at a time.
const BLOCK: u64 = 1 << 10;
/// Most bytes of names.
const MAX_NAMES: u64 = 64 << 20;

/// The table and its names; `None` where the file has none, or it makes no sense.
pub(super) fn symbols<'data>(
    elf: &Elf<'data>,
    data: Bounded<'data>,
) -> Option<(&'data [Sym64<Endianness>], &'data [u8])> {
    let endian = elf.endian();
    let segment = elf.elf_program_headers().iter().find(|header| header.p_type(endian) == PT_DYNAMIC)?;
    let entries = segment.dynamic(endian, data).ok()??;
    let value = |tag: DynamicTag| Some(entries.iter().find(|entry| entry.d_tag(endian) == tag)?.d_val(endian));
    let count = value(DT_HASH)
        .and_then(|at| read(elf, data, at.checked_add(4)?))
        .map(u64::from)
        .or_else(|| counted_by_gnu_hash(elf, data, value(DT_GNU_HASH)?))?;
    let at = offset(elf, value(DT_SYMTAB)?)?;
    let symbols = data.read_slice_at(at, usize::try_from(count.min(MAX_SYMBOLS)).ok()?).ok()?;
    let names = data.read_bytes_at(offset(elf, value(DT_STRTAB)?)?, value(DT_STRSZ)?.min(MAX_NAMES)).ok()?;
    Some((symbols, names))
}

/// How many symbols there are, by the table that they are looked up with (DT_GNU_HASH): the last chain of the last bucket ends with
/// the last of them.
fn counted_by_gnu_hash(elf: &Elf<'_>, data: Bounded<'_>, at: u64) -> Option<u64> {
    let word = |index: u64| read(elf, data, at.checked_add(index.checked_mul(4)?)?).map(u64::from);
    let (buckets, first, filter) = (word(0)?, word(1)?, word(2)?);
    if buckets > MAX_SYMBOLS || filter > MAX_SYMBOLS {
        return None;
    }
    let bucket = 4 + 2 * filter;
    let begins = offset(elf, at.checked_add(4 * bucket)?)?;
    let bytes = data.read_bytes_at(begins, 4 * buckets).ok()?;
    let last = bytes.chunks_exact(4).filter_map(|bucket| bucket.first_chunk().map(|word| u32::from_le_bytes(*word)));
    let mut last = u64::from(last.max()?);
    if last < first {
        return Some(first);
    }
    let chains = offset(elf, at.checked_add(4 * (bucket + buckets))?)?;
    last += end_of_chain(data, chains, last - first, MAX_SYMBOLS.saturating_sub(last))?;
    Some(last + 1)
}

/// How many entries the last one of a chain is behind the one with this number, `most` at most. They are words at an offset in the file,
/// which are read in blocks: a hostile chain has millions.
fn end_of_chain(data: Bounded<'_>, chains: u64, number: u64, most: u64) -> Option<u64> {
    let (mut at, length) = (chains.checked_add(4 * number)?, data.len().ok()?);
    let mut passed = 0;
    while passed < most {
        let words = (length.checked_sub(at)? / 4).min(BLOCK).min(most - passed);
        let block = data.read_bytes_at(at, 4 * words).ok().filter(|block| !block.is_empty())?;
        if let Some(end) = block.chunks_exact(4).position(|word| word[0] & 1 != 0) {
            return Some(passed + end as u64);
        }
        (at, passed) = (at + 4 * words, passed + words);
    }
    Some(most)
}

/// The word at an address, as the file was linked.
fn read(elf: &Elf<'_>, data: Bounded<'_>, address: u64) -> Option<u32> {
    let bytes = data.read_bytes_at(offset(elf, address)?, 4).ok()?;
    bytes.first_chunk().map(|word| u32::from_le_bytes(*word))
}

/// Where what is loaded at an address is in the file, bytes.
fn offset(elf: &Elf<'_>, address: u64) -> Option<u64> {
    elf.segments().find_map(|segment| {
        let inside = address.checked_sub(segment.address())?;
        let (offset, size) = segment.file_range();
        if inside < size { offset.checked_add(inside) } else { None }
    })
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;
    use crate::files::elf::Bytes;

    #[test]
    fn chains_are_followed_over_blocks_and_not_for_ever() {
        // Even words go on; one in the third block ends the chain.
        let end = 2 * BLOCK + 7;
        let words = (0..4 * BLOCK).map(|at| if at == end { 3u32 } else { 8 });
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(b"before--").unwrap();
        file.write_all(&words.flat_map(u32::to_le_bytes).collect::<Vec<u8>>()).unwrap();
        let bytes = Bytes::new(&file);
        let ends = |number, most| end_of_chain(bytes.bounded(), 8, number, most);
        assert_eq!(
            (ends(0, 1 << 20), ends(end, 1 << 20), ends(end - BLOCK, 1 << 20)),
            (Some(end), Some(0), Some(BLOCK))
        );
        assert_eq!((ends(0, 100), ends(3, BLOCK + 1), ends(0, 0)), (Some(100), Some(BLOCK + 1), Some(0)));
        // Behind it none ends, and the file does.
        assert_eq!((ends(end + 1, 1 << 20), ends(u64::MAX / 8, 1 << 20)), (None, None));
    }
}
