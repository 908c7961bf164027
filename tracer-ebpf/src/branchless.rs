//! Comparisons and choices without a branch, of which the verifier would follow both sides.

/// All ones when a < b, both below 2^63.
#[inline(always)]
pub(crate) fn less(a: u64, b: u64) -> u64 {
    is_less(a, b).wrapping_neg()
}

/// 1 when a < b, both below 2^63. In assembler, so that a search has no branch: the verifier would follow both sides of each.
/// A logical shift: that of 6.18 follows -1 and 0 apart, which an arithmetic one may give.
#[inline(always)]
pub(crate) fn is_less(a: u64, b: u64) -> u64 {
    let mut difference = a.wrapping_sub(b);
    // SAFETY: a shift of a register.
    unsafe { core::arch::asm!("{0} >>= 63", inout(reg) difference, options(pure, nomem, nostack)) };
    difference
}

/// The same value, before which nothing is read that comes behind it: the compiler would read all of a group first, and there is no room on
/// the stack for that.
#[inline(always)]
pub(crate) fn in_order(mut value: u64) -> u64 {
    // An instruction there has to be: the line that this is would be one without any, which the kernel refuses.
    // SAFETY: a move of a register to itself.
    unsafe { core::arch::asm!("{0} = {0}", inout(reg) value, options(nostack)) };
    value
}

/// The same pointer, kept in a register: what is further than 32 KiB from where a state begins would be computed anew for each access.
#[inline(always)]
pub(crate) fn kept<T>(mut pointer: *const T) -> *const T {
    // SAFETY: a move of a register to itself.
    unsafe { core::arch::asm!("{0} = {0}", inout(reg) pointer, options(nostack)) };
    pointer
}

/// The bit `to`, if the bit `from` is there.
#[inline(always)]
pub(crate) fn moved(bits: u64, from: u64, to: u32) -> u32 {
    ((bits & from) >> from.trailing_zeros()) as u32 * to
}
