//! Code of a file, read a piece at a time, from its begin to its end as its table goes.

use std::{fs::File, ops::Range, os::unix::fs::FileExt as _};

use crate::files::elf::Segment;

/// Bytes of a piece.
const PIECE: u64 = 64 << 10;
/// Most bytes that are read of one file.
const MOST: u64 = 1 << 30;
/// Most executable segments that are known: linkers make a few.
const MAX_SEGMENTS: usize = 16;

/// What was read last.
pub(super) struct Window<'a> {
    file: &'a File,
    code: Vec<Segment>,
    /// The address that its first byte was linked for.
    first: u64,
    piece: Vec<u8>,
    read: usize,
    /// Bytes that may still be asked for: what is in a file may lead to and fro, and through holes of any size.
    left: u64,
}

impl<'a> Window<'a> {
    /// The code of a file with these segments.
    pub(super) fn new(file: &'a File, segments: &[Segment]) -> Self {
        let code = segments.iter().filter(|segment| segment.executable).take(MAX_SEGMENTS).copied().collect();
        Self { file, code, first: 0, piece: vec![0; PIECE as usize], read: 0, left: MOST }
    }

    /// The code of some addresses, fewer than a piece has; `None` where there is none.
    pub(super) fn code(&mut self, of: &Range<u64>) -> Option<&[u8]> {
        let found = match self.find(of) {
            Some(found) => found,
            None => {
                self.read(of.start);
                self.find(of)?
            }
        };
        self.piece.get(found)
    }

    /// Where they are in the piece.
    fn find(&self, of: &Range<u64>) -> Option<Range<usize>> {
        let index = |address: u64| usize::try_from(address.checked_sub(self.first)?).ok();
        Some(index(of.start)?..index(of.end)?).filter(|found| found.start <= found.end && found.end <= self.read)
    }

    fn read(&mut self, address: u64) {
        (self.first, self.read) = (address, 0);
        let place = self.code.iter().find_map(|segment| {
            let inside = address.checked_sub(segment.address).filter(|inside| *inside < segment.size)?;
            Some((segment.offset.checked_add(inside)?, segment.size - inside))
        });
        self.left = self.left.saturating_sub(PIECE);
        if let Some((offset, left)) = place.filter(|_| self.left > 0) {
            let piece = &mut self.piece[..PIECE.min(left) as usize];
            self.read = self.file.read_at(piece, offset).unwrap_or(0);
        }
    }
}
