//! What a recorded block stands for: itself, or, where allocations are sampled, all those that it was taken from.
//!
//! A block of s bytes is taken with probability p = 1 - exp(-s / mean), whatever is taken besides. So it stands for 1 / p blocks, and
//! what a stack holds is estimated without bias; the variance of the estimate is the sum of (s / p)^2 (1 - p) over its samples.

use super::blocks::Block;
use crate::profile::{Estimate, Values};

/// Parts of a block that are counted where blocks are samples: sums of whole numbers have no error of their own.
const PARTS: u64 = 1 << 10;

/// Most bytes on either side that a sample stands for.
const MOST_REACH: f64 = (8 << 20) as f64;

/// How blocks are weighed.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Weights {
    /// Mean of bytes between samples; `None`: every block was recorded.
    mean: Option<f64>,
}

/// What one block stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Weight {
    /// Bytes.
    pub(super) bytes: u64,
    /// Blocks, in parts of one where blocks are samples.
    pub(super) blocks: u64,
}

impl Weights {
    /// Those of samples that are so many bytes apart on average.
    pub(super) fn sampled(mean: u64) -> Self {
        Self { mean: Some(mean.max(1) as f64) }
    }

    /// The same for the same size, always.
    #[inline]
    pub(super) fn of(&self, block: &Block) -> Weight {
        let Some(mean) = self.mean else { return Weight { bytes: block.size, blocks: 1 } };
        let inverse = 1.0 / probability(block.size, mean);
        let bytes = (block.size as f64 * inverse).round() as u64;
        // What is huge is always taken, and may be more than a float tells exactly.
        let bytes = if inverse == 1.0 { block.size } else { bytes };
        Weight { bytes, blocks: (inverse * PARTS as f64).round() as u64 }
    }

    /// What is known of the error by one block.
    pub(super) fn estimate(&self, block: &Block) -> Estimate {
        let variance = self.mean.map_or(0.0, |mean| {
            let taken = probability(block.size, mean);
            (block.size as f64 / taken).powi(2) * (1.0 - taken)
        });
        Estimate { samples: 1, variance }
    }

    /// The estimate that the numbers are, if they are one.
    pub(super) fn told(&self, estimate: Estimate) -> Option<Estimate> {
        self.mean.map(|_| estimate)
    }

    /// Amounts with whole blocks.
    pub(super) fn whole(&self, values: Values) -> Values {
        if self.mean.is_none() {
            return values;
        }
        let whole = |parts: u64| parts.saturating_add(PARTS / 2) / PARTS;
        let Values { outstanding_bytes, outstanding_blocks, allocated_bytes, allocated_blocks, freed_blocks } = values;
        Values {
            outstanding_bytes,
            outstanding_blocks: whole(outstanding_blocks).max(u64::from(outstanding_blocks > 0)),
            allocated_bytes,
            allocated_blocks: whole(allocated_blocks).max(u64::from(allocated_blocks > 0)),
            freed_blocks: whole(freed_blocks),
        }
    }

    /// How far from a block of so many bytes others lie of which it is likely the only one that was taken, bytes: of as many bytes in
    /// one place, one in fifty has no sample. A block that would be taken in any case stands for no others. Where samples are very
    /// far apart, what lies between them is anybody's.
    pub(super) fn reach(&self, size: u64) -> u64 {
        self.mean.map_or(0, |mean| ((4.0 * mean).min(MOST_REACH) * (1.0 - probability(size, mean))) as u64)
    }
}

/// How likely it is that a block of so many bytes is taken; one of none counts as one byte.
fn probability(size: u64, mean: f64) -> f64 {
    -(-(size.max(1) as f64) / mean).exp_m1()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::heap::StackIndex;

    fn block(size: u64) -> Block {
        Block { addr: 16, size, stack: StackIndex::new(0), time: 0 }
    }

    #[test]
    fn all_blocks_stand_for_themselves() {
        let weights = Weights::default();
        for size in [0, 1, 1 << 20, u64::MAX] {
            assert_eq!(weights.of(&block(size)), Weight { bytes: size, blocks: 1 });
        }
        assert_eq!(weights.told(weights.estimate(&block(5))), None);
        assert_eq!(weights.reach(16), 0);
    }

    #[test]
    fn what_lies_near_small_samples_is_theirs_within_bounds() {
        let weights = Weights::sampled(1 << 16);
        assert!(weights.reach(16).abs_diff(4 << 16) < 100, "{}", weights.reach(16));
        assert_eq!(weights.reach(1 << 24), 0, "it would be there in any case");
        assert!(Weights::sampled(1 << 40).reach(16) <= 8 << 20);
    }

    #[test]
    fn small_samples_stand_for_the_mean_and_large_ones_for_themselves() {
        let weights = Weights::sampled(1 << 16);
        let Weight { bytes, blocks } = weights.of(&block(16));
        assert!(bytes.abs_diff(1 << 16) < 10 && blocks.abs_diff(4096 * PARTS) < 512 * PARTS / 100, "{bytes} {blocks}");
        assert_eq!(weights.of(&block(u64::MAX)), Weight { bytes: u64::MAX, blocks: PARTS });
        assert_eq!(weights.of(&block(1 << 40)), Weight { bytes: 1 << 40, blocks: PARTS });
        assert_eq!(weights.of(&block(0)).bytes, 0);
    }

    /// Of thousands of blocks some are taken, many times over: the mean of what they stand for is what there is, and it strays as far
    /// as it says.
    #[test]
    fn estimates_are_the_truth_on_average_and_so_is_their_error() {
        const MEAN: u64 = 4096;
        let sizes: Vec<u64> = (0..4_000).map(|nth| [8, 100, 1_000, 5_000, 30_000][nth % 5]).collect();
        let truth: u64 = sizes.iter().sum();
        let weights = Weights::sampled(MEAN);
        let mut random = 0x1234_5678_9abc_def1_u64;
        let mut uniform = || {
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            (random >> 11) as f64 / (1u64 << 53) as f64
        };
        let (mut bytes, mut blocks, mut squares, mut variances) = (0.0, 0.0, 0.0, 0.0);
        const ROUNDS: usize = 400;
        for _ in 0..ROUNDS {
            let (mut sum, mut count, mut variance) = (0, 0, 0.0);
            for size in &sizes {
                if uniform() < probability(*size, MEAN as f64) {
                    let block = block(*size);
                    let weight = weights.of(&block);
                    (sum, count) = (sum + weight.bytes, count + weight.blocks);
                    variance += weights.estimate(&block).variance;
                }
            }
            bytes += sum as f64 / ROUNDS as f64;
            blocks += count as f64 / PARTS as f64 / ROUNDS as f64;
            squares += (sum as f64 - truth as f64).powi(2) / ROUNDS as f64;
            variances += variance / ROUNDS as f64;
        }
        assert!((bytes / truth as f64 - 1.0).abs() < 0.003, "{bytes} {truth}");
        assert!((blocks / sizes.len() as f64 - 1.0).abs() < 0.03, "{blocks}");
        assert!((squares / variances - 1.0).abs() < 0.25, "{squares} {variances}");
    }
}
