//! Heaps of C, C++ and Rust of which only samples were recorded: how good the estimates are, for each process.

use super::{processes::ByImage, quality};
use crate::{
    event::Image,
    profile::{Estimate, Heap, Mode, Process, StackEntry, quality::Sampling},
};

/// Says of each process how its heap was estimated, by samples that are `mean` bytes apart; and how good each estimate is, with the
/// bytes that it is of.
pub(super) fn estimate(
    processes: &mut [Process],
    by_image: &ByImage,
    stacks: &[StackEntry],
    mean: u64,
) -> Vec<(Sampling, u64)> {
    let mut sums = vec![(Estimate::default(), 0u64); processes.len()];
    for stack in stacks.iter().filter(|stack| stack.heap == Heap::Native) {
        let sum = by_image.place(Image(stack.image)).and_then(|place| sums.get_mut(place));
        if let (Some((sum, held)), Some(estimate)) = (sum, &stack.estimate) {
            sum.absorb(estimate);
            *held = held.saturating_add(stack.values.outstanding_bytes);
        }
    }
    let mut estimates = Vec::new();
    for (process, (sum, held)) in processes.iter_mut().zip(sums) {
        let relative_error = if held > 0 { sum.standard_error() / held as f64 } else { 0.0 };
        let sampling = Sampling { mean_bytes: mean, samples: sum.samples, relative_error };
        for heap in process.heaps.iter_mut().filter(|seen| seen.heap == Heap::Native) {
            (heap.mode, heap.sampling) = (Mode::Sampled, Some(sampling));
            estimates.push((sampling, held));
        }
    }
    estimates
}

/// What may be held where no sample is, with 95 % certainty, in times the mean distance of samples: -ln(0.05).
const UNSAMPLED: u64 = 3;
/// A standard error that more samples need not make smaller, as a share.
const SURE: f64 = 0.05;

/// What the reader should know where so few samples are held by all of them together that the numbers are hardly better than guesses,
/// and where `lost` samples could not be told.
pub(super) fn doubts(estimates: &[(Sampling, u64)], lost: u64) -> Vec<String> {
    let Some(Sampling { samples, mean_bytes, relative_error }) = quality::together(estimates) else {
        return Vec::new();
    };
    let none = (samples == 0 && mean_bytes > 1).then(|| {
        let most = quality::option_size(UNSAMPLED.saturating_mul(mean_bytes));
        format!("no sample is held: up to about {most} may be, with 95% certainty; a smaller --sample tells more")
    });
    // Blocks that are larger than the distance of samples are all there.
    let few = quality::are_few("what is held", samples, mean_bytes).filter(|_| relative_error > SURE);
    let lost = (lost > 0).then(|| {
        let least = quality::option_size(lost.saturating_mul(mean_bytes));
        format!("{lost} samples were lost, which stand for about {least} of allocations, or more")
    });
    none.into_iter().chain(few).chain(lost).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_no_sample_tells_is_told() {
        let of = |samples| vec![(Sampling { mean_bytes: 64 << 10, samples, relative_error: 0.0 }, 0)];
        let none = doubts(&of(0), 0);
        assert!(none.len() == 1 && none[0].contains("up to about 192KiB may be"), "{none:?}");
        let lost = doubts(&of(1000), 5);
        assert!(
            lost.len() == 1 && lost[0].starts_with("5 samples were lost, which stand for about 320KiB"),
            "{lost:?}"
        );
        assert_eq!((doubts(&of(1000), 0), doubts(&[], 5)), (vec![], vec![]));
    }
}
