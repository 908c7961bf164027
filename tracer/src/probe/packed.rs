//! Symbols that are packed into a stripped file (MiniDebugInfo, section `.gnu_debugdata`): an ELF file within, compressed by xz.
//!
//! The container is read here (its specification: <https://tukaani.org/xz/xz-file-format.txt>, 1.1.0), because it may ask for a
//! dictionary of 4 GiB: what is taken is bounded.

use std::{
    fs::File,
    io::{self, Read as _, Write as _},
};

use lzma_rust2::Lzma2Reader;
use object::{Object as _, ReadRef};
use object::{ObjectSection as _, read::elf::ElfFile64};
use rustix::fs::{MemfdFlags, memfd_create};

/// Most packed bytes that are read. Usual are tens of thousands.
const MAX_PACKED: u64 = 16 << 20;
/// Most that they may unpack to, bytes.
const MAX_UNPACKED: u64 = 64 << 20;
/// Most blocks, which may unpack to nothing. Usual is one; `xz` that runs in many threads makes each of some MiB.
const MAX_BLOCKS: u32 = 256;
/// Filter of LZMA2, and the largest value of its property (a dictionary of 4 GiB).
const LZMA2: (u8, u8) = (0x21, 40);

/// The file within, unpacked; `None` where there is none, or it cannot be unpacked within bounds.
pub(super) fn symbols<'data, R: ReadRef<'data>>(elf: &ElfFile64<'data, object::Endianness, R>) -> Option<File> {
    let section = elf.section_by_name(".gnu_debugdata").filter(|section| section.size() <= MAX_PACKED)?;
    let packed = section.data().ok()?;
    unpack(packed)
        .map_err(|error| tracing::warn!("symbols that are packed cannot be read (.gnu_debugdata): {error}"))
        .ok()
}

/// A file of memory with what was packed.
fn unpack(packed: &[u8]) -> io::Result<File> {
    let invalid = || io::Error::from(io::ErrorKind::InvalidData);
    let (header, mut rest) = packed.split_at_checked(12).ok_or_else(invalid)?;
    if !header.starts_with(b"\xfd7zXZ\0") {
        return Err(invalid());
    }
    // Bytes of the sum behind each block.
    let check = match header[7] & 0xf {
        0 => 0,
        1..=3 => 4,
        4..=6 => 8,
        7..=9 => 16,
        10..=12 => 32,
        _ => 64,
    };
    let mut file = File::from(memfd_create(c"symbols", MemfdFlags::CLOEXEC)?);
    let (mut left, mut blocks) = (MAX_UNPACKED, 0);
    // An index follows the blocks, and begins with 0.
    while rest.first().is_some_and(|size| *size != 0) {
        blocks += 1;
        if blocks > MAX_BLOCKS {
            return Err(io::Error::other("too many blocks"));
        }
        let (dictionary, length) = block(rest).ok_or_else(invalid)?;
        let body = rest.get(length..).ok_or_else(invalid)?;
        let mut reader = Lzma2Reader::new(body, dictionary, None).take(left + 1);
        let unpacked = io::copy(&mut reader, &mut file)?;
        left = left.checked_sub(unpacked).ok_or_else(|| io::Error::other("too large"))?;
        let behind = reader.into_inner().into_inner();
        let used = body.len() - behind.len();
        rest = body.get(used.next_multiple_of(4) + check..).ok_or_else(invalid)?;
    }
    file.flush()?;
    Ok(file)
}

/// Bytes of the dictionary of a block that is compressed by LZMA2 alone, and the length of its header.
fn block(bytes: &[u8]) -> Option<(u32, usize)> {
    let length = (usize::from(*bytes.first()?) + 1) * 4;
    let header = bytes.get(..length)?;
    let flags = *header.get(1)?;
    let mut at = 2;
    // Sizes, which are there or not, each of as many bytes as have the highest bit set, and one.
    for _ in 0..(flags >> 6).count_ones() {
        while header.get(at)? & 0x80 != 0 {
            at += 1;
        }
        at += 1;
    }
    let &[filter, 1, property] = header.get(at..at + 3)? else { return None };
    if flags & 3 != 0 || filter != LZMA2.0 || property > LZMA2.1 {
        return None;
    }
    let size = (2 | u64::from(property & 1)) << (property / 2 + 11);
    Some((size.min(MAX_UNPACKED) as u32, length))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// "symbols" and a line feed a hundred times, by `xz`.
    const PACKED: &[u8] = include_bytes!("../../../tests/data/packed.xz");

    fn unpacked(packed: &[u8]) -> Option<Vec<u8>> {
        use std::os::unix::fs::FileExt as _;
        let file = unpack(packed).ok()?;
        let mut bytes = vec![0; usize::try_from(file.metadata().unwrap().len()).unwrap()];
        file.read_exact_at(&mut bytes, 0).unwrap();
        Some(bytes)
    }

    #[test]
    fn what_xz_has_packed_is_unpacked() {
        assert_eq!(unpacked(PACKED), Some(b"symbols\n".repeat(100)));
    }

    #[test]
    fn blocks_of_nothing_are_not_read_for_ever() {
        // Sums behind blocks: none. Each block: eight bytes of header, four of its sum, and the end of its data.
        let block = [2, 0, LZMA2.0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        let packed = |blocks: u32| [&b"\xfd7zXZ\0\0\0\0\0\0\0"[..], &block.repeat(blocks as usize), &[0]].concat();
        assert_eq!(unpacked(&packed(MAX_BLOCKS)), Some(Vec::new()));
        assert_eq!(unpacked(&packed(MAX_BLOCKS + 1)), None);
    }

    #[test]
    fn what_is_cut_or_changed_does_no_harm() {
        for end in 0..PACKED.len() {
            let _ = unpacked(&PACKED[..end]);
        }
        for at in 0..PACKED.len() {
            for bit in 0..8 {
                let mut changed = PACKED.to_vec();
                changed[at] ^= 1 << bit;
                let _ = unpacked(&changed);
            }
        }
        assert_eq!(unpacked(b""), None);
    }
}
