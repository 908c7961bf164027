//! How far apart samples are, in bytes.

use aya_ebpf::{helpers::generated::bpf_get_prandom_u32, macros::map, maps::Array};
use tracer_ebpf::SPACINGS;

/// Distances between samples, bytes: quantiles of the exponential distribution, the last of which stands for its tail. Filled
/// by user space.
#[map]
static SPACING: Array<u64> = Array::with_max_entries(SPACINGS as u32 + 1, 0);

/// A distance between samples, never 0.
#[inline(always)]
pub(crate) fn distance() -> u64 {
    let mut sum = 1;
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
