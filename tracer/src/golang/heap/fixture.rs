//! Memory of a process that is made up, for tests.

use std::{cell::RefCell, collections::HashMap, io, sync::LazyLock};

use crate::{
    golang::layout::{self, Heap},
    process::memory::Span,
};

/// Layout of the heap of Go 1.27.
pub(super) fn layout() -> Heap {
    static LAYOUT: LazyLock<Heap> = LazyLock::new(|| layout::known(27).unwrap().heap.unwrap());
    *LAYOUT
}

/// Bytes at addresses; what has none cannot be read.
#[derive(Default)]
pub(super) struct Fake {
    bytes: RefCell<HashMap<u64, u8>>,
    /// What is written once the byte at an address has been read, for the first time.
    later: RefCell<HashMap<u64, (u64, Vec<u8>)>>,
    /// How many parts have been read.
    reads: RefCell<usize>,
}

impl Fake {
    pub(super) fn write(&self, addr: u64, bytes: &[u8]) {
        self.bytes.borrow_mut().extend((addr..).zip(bytes.iter().copied()));
    }

    pub(super) fn word(&self, addr: u64, word: u64) {
        self.write(addr, &word.to_le_bytes());
    }

    /// Writes `bytes` at `addr` after the byte at `read` has been read.
    pub(super) fn write_after(&self, read: u64, addr: u64, bytes: &[u8]) {
        self.later.borrow_mut().insert(read, (addr, bytes.to_vec()));
    }

    /// Makes some bytes unreadable.
    pub(super) fn unmap(&self, addr: u64, len: u64) {
        self.bytes.borrow_mut().retain(|at, _| !(addr..addr + len).contains(at));
    }

    /// How many parts were read since the last call.
    pub(super) fn reads(&self) -> usize {
        self.reads.take()
    }

    /// As [`read_spans`](crate::process::memory::read_spans).
    pub(super) fn read(&self, spans: &[Span], buffer: &mut [u8]) -> io::Result<Vec<bool>> {
        let mut rest = buffer;
        let mut readable = Vec::new();
        for span in spans {
            *self.reads.borrow_mut() += 1;
            let (into, behind) = rest.split_at_mut(span.len);
            rest = behind;
            let places = (0..).map(|inside| span.addr.wrapping_add(inside));
            let filled = into.iter_mut().zip(places).all(|(byte, at)| {
                let found = self.bytes.borrow().get(&at).copied();
                *byte = found.unwrap_or(0x5a);
                found.is_some()
            });
            readable.push(filled);
        }
        for span in spans {
            let later = self.later.borrow_mut().remove(&span.addr);
            if let Some((addr, bytes)) = later {
                self.write(addr, &bytes);
            }
        }
        assert!(rest.is_empty(), "a buffer of another length");
        Ok(readable)
    }
}

/// Numbers from 0 to 1 (xorshift), the same in every run.
pub(super) struct Random(pub(super) u64);

impl Random {
    pub(super) fn next(&mut self) -> f64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) as f64 / (1_u64 << 53) as f64
    }
}
