//! How far apart samples are, which the BPF programs draw from a table.

use std::borrow::BorrowMut;

use aya::maps::{Array, MapData, MapError};
use tracer_ebpf::SPACINGS;

/// Has samples taken every `mean` bytes.
pub(super) fn set_spacing<T: BorrowMut<MapData>>(spacing: &mut Array<T, u64>, mean: u64) -> Result<(), MapError> {
    for (index, distance) in spacings(mean).enumerate() {
        spacing.set(index as u32, distance, 0)?;
    }
    Ok(())
}

/// Quantiles of the exponential distribution with this mean, in steps of 1 / [`SPACINGS`]; the last two are the one from which
/// on there is only the tail.
fn spacings(mean: u64) -> impl Iterator<Item = u64> {
    (0..=SPACINGS).map(move |index| {
        let below = index.min(SPACINGS - 1) as f64 / SPACINGS as f64;
        (-(-below).ln_1p() * mean as f64).round() as u64
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn distances_have_the_mean_that_was_asked_for() {
        let mean = 32768;
        let table: Vec<u64> = spacings(mean).collect();
        assert_eq!(table.len(), SPACINGS + 1);
        assert!(table.is_sorted() && table[0] == 0);
        // As the BPF side draws: linear within a step, and in the last one the tail, which has the mean again.
        let inside: f64 = table.windows(2).take(SPACINGS - 1).map(|pair| (pair[0] + pair[1]) as f64 / 2.0).sum();
        let drawn = (inside + table[SPACINGS - 1] as f64 + mean as f64) / SPACINGS as f64;
        assert!((drawn / mean as f64 - 1.0).abs() < 1e-3, "{drawn}");
    }
}
