//! What probes cost, by kind.

/// What probes of one kind have cost on one processor.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cost {
    /// How often their program ran.
    pub runs: u64,
    /// How many of those runs were timed.
    pub timed: u64,
    /// How long these took, nanoseconds.
    pub time: u64,
    /// When the present one began, which is timed; 0: none.
    pub begun: u64,
    /// Which run is timed next.
    pub next: u64,
}

/// At the entry of a function that allocates.
pub const ENTRY: u32 = 0;
/// At the entry of one that frees.
pub const FREE: u32 = 1;
/// At an instruction where an outcome is known.
pub const EXIT: u32 = 2;
/// At a return.
pub const RETURN: u32 = 3;
/// In the Go runtime.
pub const GO: u32 = 4;
/// How many there are.
pub const KINDS: u32 = 5;
/// One run of so many is timed: a prime, so that those of a loop come in turn.
pub const TIMED: u64 = 61;
