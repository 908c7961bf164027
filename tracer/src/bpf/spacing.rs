//! How far apart samples are, which the BPF programs draw from a table.

use std::borrow::BorrowMut;

use aya::maps::{Array, MapData, MapError};
use tracer_ebpf::{SPACING_BITS, SPACINGS};

/// Has samples taken every `mean` bytes.
pub(super) fn set_spacing<T: BorrowMut<MapData>>(spacing: &mut Array<T, u64>, mean: u64) -> Result<(), MapError> {
    for (index, distance) in spacings(mean).enumerate() {
        spacing.set(index as u32, distance, 0)?;
    }
    Ok(())
}

/// Quantiles of the exponential distribution with this mean, in steps of 1 / [`SPACINGS`] and in parts of bytes ([`SPACING_BITS`]); the
/// last two are the one from which on there is only the tail.
fn spacings(mean: u64) -> impl Iterator<Item = u64> {
    (0..=SPACINGS).map(move |index| {
        let below = index.min(SPACINGS - 1) as f64 / SPACINGS as f64;
        (-(-below).ln_1p() * mean as f64 * f64::from(1 << SPACING_BITS)).round() as u64
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As the BPF side draws: linear within a step, and in the last one the tail, which is the same again; then whole bytes, and one more.
    fn share_up_to(bytes: u64, table: &[u64]) -> f64 {
        let below = (bytes << SPACING_BITS) as f64;
        let inside = |pair: &[u64]| ((below - pair[0] as f64) / (pair[1] - pair[0]).max(1) as f64).clamp(0.0, 1.0);
        table.windows(2).take(SPACINGS - 1).map(inside).sum::<f64>() / SPACINGS as f64
    }

    /// With the chance that an estimate is weighed by.
    #[test]
    fn blocks_are_taken_as_likely_as_is_said() {
        for mean in [1, 4, 16, 64, 32768, 1 << 30] {
            let table: Vec<u64> = spacings(mean).collect();
            assert_eq!(table.len(), SPACINGS + 1);
            assert!(table.is_sorted() && table[0] == 0);
            for bytes in [1, 2, 5, 16, 100, 10_000].into_iter().filter(|bytes| bytes / 5 < mean) {
                let (is, ought) = (share_up_to(bytes, &table), -(-(bytes as f64) / mean as f64).exp_m1());
                assert!((is / ought - 1.0).abs() < 1e-3, "{bytes} of {mean}: {is}, not {ought}");
            }
        }
    }

    #[test]
    fn distances_have_the_mean_that_was_asked_for() {
        let mean = 32768;
        let table: Vec<u64> = spacings(mean).collect();
        let inside: f64 = table.windows(2).take(SPACINGS - 1).map(|pair| (pair[0] + pair[1]) as f64 / 2.0).sum();
        let bytes = (inside + table[SPACINGS - 1] as f64) / f64::from(1 << SPACING_BITS);
        let drawn = (bytes + mean as f64) / SPACINGS as f64;
        assert!((drawn / mean as f64 - 1.0).abs() < 1e-3, "{drawn}");
    }
}
