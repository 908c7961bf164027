//! What the BPF programs must know to sample the allocations of Go programs.

use std::borrow::BorrowMut;

use aya::{
    Pod,
    maps::{Array, HashMap, MapData, MapError},
};
use tracer_ebpf::{SPACINGS, golang::Runtime};

#[repr(transparent)]
#[derive(Clone, Copy)]
pub(super) struct RuntimeValue(Runtime);

// SAFETY: integers only, no padding (the ABI asserts the size), any bytes are a value.
unsafe impl Pod for RuntimeValue {}

/// The maps of runtimes and of distances between samples.
pub struct GoMaps {
    pub(super) runtimes: HashMap<MapData, u64, RuntimeValue>,
    pub(super) spacing: Array<MapData, u64>,
}

impl GoMaps {
    /// Says how a runtime of a process is laid out. To be done before its allocations are probed.
    ///
    /// # Errors
    /// When the map is full: more than 4096 runtimes.
    pub fn set_runtime(&mut self, pid: u32, runtime: Runtime) -> Result<(), MapError> {
        self.runtimes.insert(u64::from(pid) << 32 | u64::from(runtime.number), RuntimeValue(runtime), 0)
    }

    /// Has objects sampled every `mean` bytes: distances are exponentially distributed. To be done before anything is probed.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn set_mean(&mut self, mean: u64) -> Result<(), MapError> {
        set_spacing(&mut self.spacing, mean)
    }
}

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
