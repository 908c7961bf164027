//! How far apart samples are, in bytes.

use aya_ebpf::{helpers::generated::bpf_get_prandom_u32, macros::map, maps::Array};
use tracer_ebpf::{SPACING_BITS, SPACINGS};

/// Distances between samples, parts of bytes ([`SPACING_BITS`]): quantiles of the exponential distribution, the last of which stands for its tail. Filled
/// by user space.
#[map]
static SPACING: Array<u64> = Array::with_max_entries(SPACINGS as u32 + 1, 0);

/// Where in the table the mean is: as much of the distribution is below as 1 - 1/e.
const MEAN: u32 = (SPACINGS as f64 * 0.632_120_558_828_557_7) as u32;

/// Bytes between samples on average: larger blocks are taken more often than not.
#[inline(always)]
pub(crate) fn mean() -> u64 {
    SPACING.get(MEAN).copied().unwrap_or(0) >> SPACING_BITS
}

/// A distance between samples, bytes, never 0: so that one of up to `s` bytes is as likely as of the distribution.
#[inline(always)]
pub(crate) fn distance() -> u64 {
    1 + (drawn() >> SPACING_BITS)
}

#[inline(always)]
fn drawn() -> u64 {
    let mut sum = 0;
    // The tail of an exponential distribution is one itself.
    for _ in 0..3 {
        // SAFETY: no arguments.
        let random = unsafe { bpf_get_prandom_u32() };
        let index = random >> 20;
        let part = u64::from(random) & 0xf_ffff;
        let from = SPACING.get(index).copied().unwrap_or(0);
        let to = SPACING.get(index + 1).copied().unwrap_or(0);
        if index != SPACINGS as u32 - 1 {
            return sum + from + (((to - from) * part) >> 20);
        }
        sum += from;
    }
    sum
}
