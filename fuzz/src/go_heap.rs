//! The heap of a Go program in memory that is the input, over and over: its own profile, and what has become of sampled
//! objects.

use tracer::{
    golang::heap::{Buckets, Objects, Sample, sampling_of},
    process::memory::Span,
};
use tracer_ebpf::golang::CLASS_SIZES;

use crate::{
    input::take,
    memory::{LAYOUTS, Memory},
};

/// Bytes of a sample in the input, and most of them.
const SAMPLE: usize = 16;
const MOST_SAMPLES: u8 = 32;
/// Most addresses of a stack.
const MOST_FRAMES: usize = 1024;

/// The input is the version, when and where memory changes, its holes, the mean of bytes between samples, where the
/// variables are, the number of samples, these, and memory.
pub fn run(data: &[u8]) {
    let ([version, when, low, high, holes, mean, variable, samples], rest) = take(data);
    let layout = &LAYOUTS[usize::from(version % 2)].heap;
    let layout = layout.as_ref().expect("a known heap");
    let wanted = SAMPLE * usize::from(samples % MOST_SAMPLES);
    let (samples, bytes) = rest.split_at(wanted.min(rest.len()));
    if bytes.is_empty() {
        return;
    }
    let memory = Memory::new(bytes, when, [low, high], holes);
    let read = |spans: &[Span], buffer: &mut [u8]| memory.read(spans, buffer);
    let (variable, mean) = (8 * u64::from(variable), u64::from(mean) << 4);

    let mut objects = Objects::new(mean);
    let mut taken = 0;
    for sample in samples.chunks_exact(SAMPLE) {
        let before = objects.len();
        objects.add(decode(sample));
        taken += objects.len() - before;
    }
    for look in 1..=3 {
        let before = objects.len();
        // An error is an answer.
        let looked = objects.look_at(layout, variable, &read);
        let sampling = objects.sampling(u64::MAX);
        assert!(objects.len() <= before && before <= taken);
        assert!(sampling.undecided <= objects.len() as u64);
        assert!(looked.is_err() || objects.is_undecided() == (sampling.undecided > 0));
        assert!(memory.reads() <= look * (2 + 5 * taken), "more is read than is asked for");
        assert!(sampling.relative_error.is_finite());
        let usage = objects.usage(u64::MAX);
        assert_eq!(usage.iter().map(|usage| usage.samples).sum::<u64>(), objects.len() as u64);
        // Both are rounded sums, in different orders.
        assert!(usage.iter().all(|usage| usage.values.outstanding_bytes <= usage.values.allocated_bytes + 1));
    }

    let mut buckets = Buckets::default();
    for _ in 0..2 {
        // An error is an answer.
        let _ = buckets.refresh_at(&layout.bucket, variable, &read);
        // Each bucket is led to by the bytes at some place, and the one that changes makes a few more.
        assert!(buckets.iter().count() <= 2 * bytes.len() + 16);
        for bucket in buckets.iter() {
            assert!(bucket.calls.len() <= MOST_FRAMES);
            let [allocated, held] = bucket.estimate(mean);
            assert!(held.0 <= allocated.0 && held.1 <= allocated.1);
        }
        assert!(!sampling_of(buckets.iter(), mean).relative_error.is_nan());
    }
}

/// A sample, mostly of a size that its class has.
fn decode(bytes: &[u8]) -> Sample {
    let ([a0, a1, a2, a3, a4, a5, s0, s1, s2, s3, class, pages, charge, stack], _) = take(bytes);
    let size = match CLASS_SIZES.get(usize::from(class >> 1)) {
        Some(0) | None => u64::from(pages) << 13,
        Some(size) => u64::from(*size) + u64::from(pages == 0xff),
    };
    Sample {
        addr: u64::from_le_bytes([a0, a1, a2, a3, a4, a5, 0, 0]),
        size,
        charge: charge.into(),
        time: 0,
        sweepgen: u32::from_le_bytes([s0, s1, s2, s3]),
        class,
        stack: u32::from(stack % 8),
    }
}
