//! The entries of a section of call frame information, one after the other, whatever is wrong with some of them.

use gimli::{BaseAddresses, Error, FrameDescriptionEntry, UnwindOffset, UnwindSection};
use hashbrown::HashMap;

use super::program::{Bytes, Cie, Machine, State};

/// Longest entry of what functions have in common, bytes: usual are 20 to 40. It is read again for each function in the
/// worst case, so its length bounds the time.
const MAX_CIE: u32 = 256;
/// Most of them that are kept: linkers merge equal ones, so that few are left.
const MAX_CIES: usize = 4096;

/// The entry of one function.
pub(super) struct Function<'a> {
    pub(super) fde: FrameDescriptionEntry<Bytes<'a>>,
    /// What holds at its start; `None` when that cannot be made out.
    pub(super) initial: Option<State>,
    /// Where it is in the section.
    pub(super) at: usize,
}

/// An entry describes a function, but cannot be read.
pub(super) struct Unreadable;

/// What functions have in common, by offset in the section; `None` for what cannot be read.
#[derive(Default)]
pub(super) struct Cies<'a>(HashMap<usize, Option<(Cie<'a>, Option<State>)>>);

impl<'a> Cies<'a> {
    fn get<S: UnwindSection<Bytes<'a>>>(
        &mut self,
        section: &S,
        bytes: &[u8],
        bases: &BaseAddresses,
        offset: S::Offset,
    ) -> Option<&(Cie<'a>, Option<State>)> {
        if self.0.len() >= MAX_CIES {
            self.0.clear();
        }
        let at: usize = UnwindOffset::into(offset);
        let read = || {
            if read_u32(bytes, at)? > MAX_CIE {
                return None;
            }
            let cie = section.cie_from_offset(bases, offset).ok()?;
            let initial = Machine::initial(&cie, cie.instructions(section, bases));
            Some((cie, initial))
        };
        self.0.entry(at).or_insert_with(read).as_ref()
    }
}

/// Iterates over the functions of a section. gimli's own iterator ends at the first entry that it cannot read, and at a
/// zero, which linkers may leave between two objects' entries.
pub(super) struct Entries<'a, 'b, S> {
    section: &'b S,
    bytes: &'a [u8],
    bases: &'b BaseAddresses,
    cies: &'b mut Cies<'a>,
    at: usize,
}

impl<'a, 'b, S: UnwindSection<Bytes<'a>>> Entries<'a, 'b, S> {
    pub(super) fn new(section: &'b S, bytes: &'a [u8], bases: &'b BaseAddresses, cies: &'b mut Cies<'a>) -> Self {
        Self { section, bytes, bases, cies, at: 0 }
    }

    /// Offset of the next entry, which is not empty; `None` at the end, or when its length makes no sense.
    fn advance(&mut self) -> Option<usize> {
        loop {
            let at = self.at;
            let (header, length) = match read_u32(self.bytes, at)? {
                0xffff_ffff => (12, read_u64(self.bytes, at + 4)?),
                length => (4, u64::from(length)),
            };
            self.at = at.checked_add(header)?.checked_add(usize::try_from(length).ok()?)?;
            if self.at > self.bytes.len() {
                return None;
            }
            if length != 0 {
                return Some(at);
            }
        }
    }

    /// The entry at an offset; `None` when it is none of a function.
    pub(super) fn entry(&mut self, at: usize) -> Option<Result<Function<'a>, Unreadable>> {
        let partial = match self.section.partial_fde_from_offset(self.bases, at.into()) {
            Ok(partial) => partial,
            Err(Error::NotCiePointer(_)) => return None,
            Err(_) => return Some(Err(Unreadable)),
        };
        let (bytes, cies) = (self.bytes, &mut *self.cies);
        let mut initial = None;
        let fde = partial.parse(|section, bases, offset| {
            let found = cies.get(section, bytes, bases, offset).ok_or(Error::NotCieId(0))?;
            initial = found.1;
            Ok(found.0.clone())
        });
        Some(fde.map(|fde| Function { fde, initial, at }).map_err(|_| Unreadable))
    }
}

impl<'a, S: UnwindSection<Bytes<'a>>> Iterator for Entries<'a, '_, S> {
    type Item = Result<Function<'a>, Unreadable>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            let at = self.advance()?;
            if let Some(entry) = self.entry(at) {
                return Some(entry);
            }
        }
    }
}

fn read_u32(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..)?.first_chunk().map(|word| u32::from_le_bytes(*word))
}

fn read_u64(bytes: &[u8], at: usize) -> Option<u64> {
    bytes.get(at..)?.first_chunk().map(|word| u64::from_le_bytes(*word))
}
