//! Stacks with the memory that they were found in, for tests that unwind them by other means.

use aya::maps::{Array, MapData, MapError, RingBuf};
use tracer_ebpf::StackCopy;

/// Copies of stacks, from functions that the program `copy_entry` is attached to.
pub struct StackCopies {
    pub(super) ring: RingBuf<MapData>,
    pub(super) stops: Array<MapData, u32>,
}

impl StackCopies {
    /// Size of their ring buffer, bytes: room for two hundred.
    pub(super) const BUFFER: u32 = 16 << 20;

    /// The oldest copy that has not been taken out.
    pub fn take(&mut self) -> Option<Box<StackCopy>> {
        let record = self.ring.next()?;
        // SAFETY: any bytes are a copy: it is made of integers, without padding; the length is checked.
        let copy = unsafe {
            if record.len() < size_of::<StackCopy>() {
                return None;
            }
            Box::new(record.as_ptr().cast::<StackCopy>().read_unaligned())
        };
        Some(copy)
    }

    /// Has the process stopped (SIGSTOP) at its next `count` calls that are copied.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn stop(&mut self, count: u32) -> Result<(), MapError> {
        self.stops.set(0, count, 0)
    }
}
