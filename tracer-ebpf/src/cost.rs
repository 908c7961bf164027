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
    /// How many of all runs were at an instruction that the kernel steps: such a hit takes it longer.
    pub stepped: u64,
}

/// The bit of a cookie that says that the kernel steps the instruction of the probe, and does not emulate it. Nothing else that programs are
/// told has it.
pub const STEPPED: u64 = 1 << 63;

/// The cookie of a probe whose program is told so much, at an instruction that the kernel emulates or steps.
pub fn cookie(told: u64, is_emulated: bool) -> u64 {
    if is_emulated { told } else { told | STEPPED }
}

/// What a cookie tells the program.
#[inline(always)]
pub fn told(cookie: u64) -> u64 {
    cookie & !STEPPED
}

/// How many stepped instructions a hit of the probe with this cookie is: 0 or 1.
#[inline(always)]
pub fn stepped(cookie: u64) -> u64 {
    cookie >> STEPPED.trailing_zeros()
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cookie_tells_what_it_told_and_whether_it_is_stepped() {
        for what in [0, 1, STEPPED - 1] {
            let (emulated, dear) = (cookie(what, true), cookie(what, false));
            assert_eq!((told(emulated), stepped(emulated)), (what, 0));
            assert_eq!((told(dear), stepped(dear)), (what, 1));
        }
    }
}
