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

/// What the reader should know where so few samples are held by all of them together that the numbers are hardly better than guesses,
/// and where samples were `lost`: how many, and bytes of those blocks.
pub(super) fn doubts(estimates: &[(Sampling, u64)], (lost, bytes): (u64, u64)) -> Vec<String> {
    let Some(Sampling { samples, mean_bytes, relative_error }) = quality::together(estimates) else {
        return Vec::new();
    };
    let none = (samples == 0 && mean_bytes > 1).then(|| {
        let most = quality::option_size(UNSAMPLED.saturating_mul(mean_bytes));
        format!("no sample is held: up to about {most} may be, with 95% certainty; a smaller --sample tells more")
    });
    let few = quality::are_few("what is held", Sampling { samples, mean_bytes, relative_error });
    let lost = (lost > 0).then(|| {
        let least = quality::option_size(at_least(lost, bytes, mean_bytes));
        format!("{lost} samples were lost, which stand for about {least} of allocations, or more")
    });
    none.into_iter().chain(few).chain(lost).collect()
}

/// What so many samples of blocks of so many bytes together stand for at least, bytes: as much as if the blocks were of one size, for what a
/// block stands for, s / (1 - exp(-s / mean)), is convex in its size.
fn at_least(samples: u64, bytes: u64, mean: u64) -> u64 {
    let (samples, mean) = (samples as f64, mean.max(1) as f64);
    let size = (bytes as f64 / samples).max(1.0);
    (samples * size / -(-size / mean).exp_m1()) as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lost_samples_stand_for_what_their_blocks_are_and_more() {
        // Many times the distance, a small part of it, and as much: 1 / (1 - 1 / e).
        for (samples, bytes, mean, expected) in [
            (10, 10 << 20, 16, 10 << 20),
            (1_000_000, 1_000_000, 1 << 20, (1_000_000 << 20) + 500_000),
            (3, 3 << 10, 1 << 10, 4_859),
            // A block whose size is not known.
            (1, 0, 1 << 10, 1_024),
        ] {
            assert_eq!(at_least(samples, bytes, mean), expected, "{samples} samples of {bytes} bytes");
        }
    }

    #[test]
    fn what_no_sample_tells_is_told() {
        let of = |samples| vec![(Sampling { mean_bytes: 64 << 10, samples, relative_error: 0.0 }, 0)];
        let none = doubts(&of(0), (0, 0));
        assert!(none.len() == 1 && none[0].contains("up to about 192KiB may be"), "{none:?}");
        let lost = doubts(&of(1000), (5, 100));
        assert!(
            lost.len() == 1 && lost[0].starts_with("5 samples were lost, which stand for about 320KiB"),
            "{lost:?}"
        );
        assert_eq!((doubts(&of(1000), (0, 0)), doubts(&[], (5, 100))), (vec![], vec![]));
    }
}
