//! A sampled object of a Go program.

use tracer_ebpf::golang::CLASS_SIZES;

/// Bytes of a page of the runtime's heap (`PageShift`).
pub(super) const PAGE_SHIFT: u32 = 13;

/// A sampled object, as it was allocated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sample {
    /// Where it is.
    pub addr: u64,
    /// Bytes that it takes.
    pub size: u64,
    /// Bytes by which it was sampled.
    pub charge: u64,
    /// Nanoseconds of CLOCK_MONOTONIC.
    pub time: u64,
    /// `mheap_.sweepgen` at that time.
    pub sweepgen: u32,
    /// `mspan.spanclass`.
    pub class: u8,
    /// Index of its stack, whatever that is to the caller.
    pub stack: u32,
}

impl Sample {
    /// Whether it can be one: of a size that its class has, and sampled by some bytes.
    pub(super) fn makes_sense(&self) -> bool {
        let class = usize::from(self.class >> 1);
        let size = CLASS_SIZES.get(class).copied().map(u64::from);
        match class {
            _ if self.charge == 0 => false,
            0 => self.size > 0 && self.size < 1 << 47 && self.size.is_multiple_of(1 << PAGE_SHIFT),
            _ => size == Some(self.size),
        }
    }
}
