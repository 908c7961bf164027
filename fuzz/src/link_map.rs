//! The dynamic loader's list of objects, in a memory that says anything.

use std::{cell::Cell, io};

use tracer::space::link_map::{Auxv, MAX_OBJECTS, search_order_in};

/// Where the memory begins.
const BASE: u64 = 0x1000;

/// The input is the auxiliary vector and then the memory, whose words are aligned or not. A byte that is not there is an
/// error, as an address that is not mapped.
pub fn run(data: &[u8]) {
    let (auxv, memory) = data.split_at(data.len().min(128));
    let reads = Cell::new(0usize);
    let word = |addr: u64| {
        reads.set(reads.get() + 1);
        let at = addr.checked_sub(BASE).and_then(|at| usize::try_from(at).ok());
        let word = at.and_then(|at| memory.get(at..)?.first_chunk());
        word.map(|word| u64::from_ne_bytes(*word)).ok_or_else(|| io::ErrorKind::NotFound.into())
    };
    let auxv = Auxv::parse(auxv);
    if let Ok(Some(order)) = search_order_in(&auxv, word) {
        assert!((1..=MAX_OBJECTS).contains(&order.len()));
    }
    // Two words for each header, each entry of the dynamic section and each object.
    assert!(reads.get() <= 2 * (1024 + 1024 + MAX_OBJECTS) + 2);
    let _ = auxv.entry();
}
