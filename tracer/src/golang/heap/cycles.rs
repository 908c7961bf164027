//! Where a Go runtime keeps its heap, and how far its garbage collector is.

use crate::{
    golang::{ReadMemory, Runtime, Unreadable, executable::HEAP, layout},
    process::memory::Span,
};

/// Cycles of the garbage collector whose events a `memRecord` holds back.
pub(super) const FUTURES: usize = 3;

/// How many garbage collections have come to their end in a process since it began: up to 2^31, then anew from 0.
///
/// # Errors
/// Not found, or not readable.
pub fn collections(runtime: &Runtime, memory: &ReadMemory<'_>) -> Result<u64, Unreadable> {
    let at = runtime.variable(HEAP)?.wrapping_add(layout(runtime)?.mheap.0 as u64);
    let mut sweepgen = [0; 4];
    if memory(&[Span { addr: at, len: 4 }], &mut sweepgen)? != [true] {
        return Err(Unreadable::Nonsense("the state of its garbage collector"));
    }
    Ok(u64::from(u32::from_le_bytes(sweepgen) / 2))
}

/// The layout of the heap.
pub(super) fn layout(runtime: &Runtime) -> Result<&layout::Heap, Unreadable> {
    runtime.executable.layout.heap.as_ref().map_err(|missing| Unreadable::NoLayout {
        version: runtime.executable.version.to_string(),
        missing: missing.clone(),
    })
}
