//! What all objects together are estimated to be, against the truth.

use super::{
    super::{Objects, Sample},
    BEFORE, NOW, Objs, PAGE, heap, look, objects, put, set_sweepgen,
};
use crate::golang::heap::fixture::{Random, layout};

#[test]
fn usage_and_sampling_are_of_what_is_asked_for() {
    let (small, large) = (objects(48), objects(4096));
    let of = |sizes| {
        let mut objects = Objects::new(1000).of_sizes(sizes);
        for index in 0..3 {
            objects.add(Sample { charge: 40, time: 10 + index, ..small.sample(index) });
        }
        objects.add(Sample { time: 20, stack: 1, addr: 1, ..large.sample(0) });
        objects
    };
    let samples = |until, sizes| -> Vec<_> {
        of(sizes).usage(until).iter().map(|usage| (usage.stack, usage.samples, usage.oldest)).collect()
    };
    assert_eq!(samples(u64::MAX, (0, u64::MAX)), [(0, 3, Some(10)), (1, 1, Some(20))]);
    assert_eq!(samples(11, (0, u64::MAX)), [(0, 2, Some(10)), (1, 0, None)]);
    assert_eq!(samples(u64::MAX, (41, 4096)), [(1, 1, Some(20))]);
    assert_eq!(samples(u64::MAX, (40, 4095)), [(0, 3, Some(10))]);

    // Of n like objects, each sampled with probability p, the error is sqrt((1 - p) / n).
    let p = |charge: f64| 1.0 - (-charge / 1000.0_f64).exp();
    let error = |until, sizes| of(sizes).sampling(until).relative_error;
    let near = |a: f64, b: f64| assert!((a - b).abs() < 1e-12 && b > 0.0, "{a} {b}");
    near(error(u64::MAX, (0, 40)), ((1.0 - p(40.0)) / 3.0).sqrt());
    near(error(10, (0, 40)), (1.0 - p(40.0)).sqrt());
    near(error(u64::MAX, (4096, 4096)), (1.0 - p(4096.0)).sqrt());
    // Errors of both together add up as squares.
    let (few, one) = (3.0 * 48.0 / p(40.0), 4096.0 / p(4096.0));
    let squares = (few * error(u64::MAX, (0, 40))).powi(2) + (one * error(u64::MAX, (4096, 4096))).powi(2);
    near(error(u64::MAX, (0, u64::MAX)), squares.sqrt() / (few + one));
    assert_eq!(error(0, (0, u64::MAX)), 0.0);
    let sampling = of((0, u64::MAX)).sampling(u64::MAX);
    assert_eq!((sampling.samples, sampling.mean_bytes), (4, 1000));
}

/// What is younger than asked for, and lives, has not been freed; and sizes that nobody asked for are not in what was allocated.
#[test]
fn what_is_not_asked_for_has_not_ended() {
    let span = objects(48);
    let mut objects = Objects::new(1).of_sizes((40, 64));
    for index in 0..8 {
        objects.add(Sample { time: 10 * (index + 1), ..span.sample(index) });
    }
    for index in 8..16 {
        objects.add(Sample { charge: 33, ..span.sample(index) });
    }
    let of = |objects: &Objects, until| {
        let usage = objects.usage(until)[0];
        let values = usage.values;
        ([values.allocated_blocks, values.outstanding_blocks, values.freed_blocks], usage.younger_bytes)
    };
    assert_eq!(of(&objects, u64::MAX), ([8, 8, 0], 0));
    assert_eq!(of(&objects, 20), ([8, 2, 0], 6 * 48));
    // Where one of another size is now, none of these can be any more.
    objects.add(Sample { charge: 33, sweepgen: NOW, ..span.sample(0) });
    assert_eq!((objects.len(), objects.usage(20)[0].samples), (7, 1));
}

#[test]
fn young_objects_count_by_what_survives_of_their_stack() {
    // Of two stacks, one of which holds what it allocates.
    let mut span = objects(48);
    span.bits = vec![0b1111_0000; 8];
    let fake = heap();
    put(&fake, &span);
    let mut objects = Objects::new(1);
    let of = |index: u64, sweepgen| Sample { stack: u32::from(index % 8 >= 4), sweepgen, ..span.sample(index) };
    let held = |objects: &Objects| -> Vec<u64> {
        let usage = objects.usage(u64::MAX);
        usage.iter().map(|usage| usage.values.outstanding_bytes).collect()
    };
    let survivors = |objects: &Objects| objects.survivors(u64::MAX);
    (0..32).for_each(|index| objects.add(of(index, BEFORE)));
    assert_eq!(held(&objects), [16 * 48, 16 * 48], "nothing is known yet");
    assert_eq!(survivors(&objects), [16 * 48, 16 * 48], "no cycle has been seen");
    look(&mut objects, &fake);
    assert_eq!(held(&objects), [0, 16 * 48]);
    (32..64).for_each(|index| objects.add(of(index, NOW)));
    // 1 of 17 is all that can be said of a stack of which none of 16 has survived.
    assert_eq!(held(&objects), [16 * 48 / 17, 32 * 48]);
    look(&mut objects, &fake);
    assert_eq!(held(&objects), [16 * 48 / 17, 32 * 48], "no cycle has come by");
    assert_eq!(survivors(&objects), [0, 16 * 48], "of what is older than the last cycle");
    set_sweepgen(&fake, NOW + 2);
    fake.write(span.at(layout().span.sweepgen), &(NOW + 2).to_le_bytes());
    look(&mut objects, &fake);
    assert_eq!(held(&objects), [0, 32 * 48]);
    assert_eq!(survivors(&objects), [0, 32 * 48]);
}

/// A program of which the truth is known, sampled as the BPF programs do it, many times.
#[test]
fn estimates_are_the_truth_on_average() {
    const MEAN: u64 = 16 << 10;
    const EACH: u64 = 4096;
    const RUNS: u32 = 60;
    // Requests of less than their class's size are sampled by what they ask for.
    let kinds = [(48, 48), (1024, 897), (2048, 2048), (32, 25)];
    let (fake, mut spans, mut page) = (heap(), Vec::new(), 0);
    for (number, (size, _)) in kinds.iter().enumerate() {
        // A third has ended.
        let bits =
            (0..EACH / 8).map(|byte| (0..8).filter(|bit| (8 * byte + bit) % 3 != 0).map(|bit| 1_u8 << bit).sum::<u8>());
        let span = Objs { number: number as u64, page, bits: bits.collect(), ..objects(*size) };
        put(&fake, &span);
        page += EACH * size / PAGE + 1;
        spans.push(span);
    }
    let held = (0..EACH).filter(|index| index % 3 != 0).count() as f64;
    let truth: f64 = kinds.iter().map(|(size, _)| held * *size as f64).sum();
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    let mut sums = vec![[0.0; 4]; kinds.len()];
    let mut squares = 0.0;
    for _ in 0..RUNS {
        let mut objects = Objects::new(MEAN);
        for ((stack, span), (_, charge)) in spans.iter().enumerate().zip(kinds) {
            for index in 0..EACH {
                if random.next() < 1.0 - (-(charge as f64) / MEAN as f64).exp() {
                    objects.add(Sample { charge, stack: stack as u32, ..span.sample(index) });
                }
            }
        }
        look(&mut objects, &fake);
        assert!(!objects.is_undecided());
        let mut sum = 0.0;
        for usage in objects.usage(u64::MAX) {
            let values = usage.values;
            let found =
                [values.outstanding_bytes, values.outstanding_blocks, values.allocated_bytes, values.allocated_blocks];
            let sums = &mut sums[usage.stack as usize];
            *sums = std::array::from_fn(|nth| sums[nth] + found[nth] as f64);
            sum += values.outstanding_bytes as f64;
        }
        let deviation = objects.sampling(u64::MAX).relative_error * sum;
        squares += ((sum - truth) / deviation).powi(2);
    }
    let runs = f64::from(RUNS);
    for ((size, charge), sums) in kinds.iter().zip(sums) {
        let p = 1.0 - (-(*charge as f64) / MEAN as f64).exp();
        let unit = [*size as f64, 1.0, *size as f64, 1.0];
        for (nth, count) in [held, held, EACH as f64, EACH as f64].into_iter().enumerate() {
            let truth = count * unit[nth];
            let sigma = (count * (1.0 - p) / p / runs).sqrt() * unit[nth];
            let found = sums[nth] / runs;
            // Whole numbers are reported: half of one may be missing.
            assert!((found - truth).abs() <= 5.0 * sigma + 0.5, "{size} [{nth}]: {found}, not {truth} +- {sigma}");
        }
    }
    // The error that is told is that of the estimates: deviations in its units have a mean square of 1.
    let (mean, sigma) = (squares / runs, (2.0 / runs).sqrt());
    assert!((mean - 1.0).abs() <= 5.0 * sigma, "{mean} +- {sigma}");
}
