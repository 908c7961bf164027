//! Memory of a process that is made of the input.

use std::{cell::Cell, io, sync::LazyLock};

use tracer::{
    golang::{Layout, known_layout},
    process::memory::Span,
};

/// What an old and a new Go runtime keep in it.
pub(crate) static LAYOUTS: LazyLock<[Layout; 2]> =
    LazyLock::new(|| [19, 27].map(|minor| known_layout(minor).expect("a known version")));

/// Memory that holds some bytes again and again, of which one changes at some time, and some addresses cannot be read.
pub(crate) struct Memory<'a> {
    bytes: &'a [u8],
    /// The time, in parts that were read, and the place.
    change: (usize, usize),
    /// One of so many blocks of a kilobyte is not there; 0: all are.
    holes: u64,
    reads: Cell<usize>,
}

impl<'a> Memory<'a> {
    /// Of these bytes, of which there is one at least. One changes after `when` parts were read, at this place.
    pub(crate) fn new(bytes: &'a [u8], when: u8, place: [u8; 2], holes: u8) -> Self {
        let change = (usize::from(when), usize::from(u16::from_le_bytes(place)));
        Self { bytes, change, holes: holes.into(), reads: Cell::new(0) }
    }

    /// Parts that have been read.
    pub(crate) fn reads(&self) -> usize {
        self.reads.get()
    }

    /// As a process's memory is read.
    pub(crate) fn read(&self, spans: &[Span], buffer: &mut [u8]) -> io::Result<Vec<bool>> {
        let length = self.bytes.len() as u64;
        let mut rest = buffer;
        let mut readable = Vec::with_capacity(spans.len());
        for span in spans {
            let (mut into, behind) = rest.split_at_mut(span.len);
            rest = behind;
            let begin = (span.addr % length) as usize;
            self.reads.set(self.reads.get() + 1);
            let changed = self.reads.get() > self.change.0;
            let mut at = begin;
            while !into.is_empty() {
                let part = into.len().min(self.bytes.len() - at);
                let (now, later) = into.split_at_mut(part);
                now.copy_from_slice(&self.bytes[at..at + part]);
                if let Some(inside) = self.change.1.checked_sub(at).filter(|inside| changed && *inside < part) {
                    now[inside] ^= 0xff;
                }
                (into, at) = (later, 0);
            }
            readable.push(self.holes == 0 || !(span.addr >> 10).is_multiple_of(self.holes));
        }
        assert!(rest.is_empty(), "a buffer of another length");
        Ok(readable)
    }
}
