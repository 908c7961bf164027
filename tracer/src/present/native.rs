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

/// What to do where so few samples are held by all of them together that the numbers are hardly better than guesses.
pub(super) fn few_samples(estimates: &[(Sampling, u64)]) -> Option<String> {
    let all = quality::together(estimates)?;
    quality::are_few("what is held", all.samples, all.mean_bytes)
}
