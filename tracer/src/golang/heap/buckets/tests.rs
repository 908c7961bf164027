//! Lists of buckets that are made up.

use proptest::prelude::*;

use super::*;
use crate::golang::heap::fixture::{Fake, layout};

/// The variable that leads to the list.
const LIST: u64 = 0x50_0000;

/// A bucket as the runtime has it.
#[derive(Clone)]
struct Made {
    addr: u64,
    next: u64,
    calls: Vec<u64>,
    size: u64,
    /// Allocated and freed, as published.
    counts: (u64, u64),
    /// The same of what is held back.
    held_back: [(u64, u64); FUTURES],
}

fn made(addr: u64, next: u64, calls: &[u64], counts: (u64, u64)) -> Made {
    Made { addr, next, calls: calls.to_vec(), size: 48, counts, held_back: [(0, 0); FUTURES] }
}

/// Puts a bucket into memory, with its stack and its counts behind it.
fn put(fake: &Fake, made: &Made) {
    let bucket = layout().bucket;
    fake.write(made.addr, &vec![0; bucket.len]);
    fake.word(made.addr + bucket.next as u64, made.next);
    fake.word(made.addr + bucket.size as u64, made.size);
    fake.word(made.addr + bucket.frames as u64, made.calls.len() as u64);
    for (nth, call) in made.calls.iter().enumerate() {
        // What the runtime keeps is where a call returns to.
        fake.word(made.addr + (bucket.len + 8 * nth) as u64, call + 1);
    }
    let record = record_of(made);
    fake.write(record, &vec![0; bucket.record_len]);
    let (active, future) = bucket.cycles;
    let cycles = std::iter::once(active).chain((0..FUTURES).map(|nth| future + nth * bucket.cycle_len));
    for (cycle, (allocs, frees)) in cycles.zip(std::iter::once(made.counts).chain(made.held_back)) {
        fake.word(record + (cycle + bucket.counts.0) as u64, allocs);
        fake.word(record + (cycle + bucket.counts.1) as u64, frees);
    }
}

fn record_of(made: &Made) -> u64 {
    made.addr + (layout().bucket.len + 8 * made.calls.len()) as u64
}

fn refresh(buckets: &mut Buckets, fake: &Fake) -> Result<(), Unreadable> {
    buckets.refresh_at(&layout().bucket, LIST, &|spans, buffer| fake.read(spans, buffer))
}

/// Stack, objects allocated and freed.
fn all(buckets: &Buckets) -> Vec<(Vec<u64>, u64, u64)> {
    buckets.iter().map(|bucket| (bucket.calls.to_vec(), bucket.allocs, bucket.frees)).collect()
}

#[test]
fn only_what_is_published_counts() {
    let fake = Fake::default();
    fake.word(LIST, 0x1000);
    let held_back = [(200, 100), (2000, 1000), (20_000, 10_000)];
    let bucket = |counts| Made { held_back, ..made(0x1000, 0, &[5, 6, 7], counts) };
    put(&fake, &bucket((20, 10)));
    let mut buckets = Buckets::default();
    refresh(&mut buckets, &fake).unwrap();
    assert_eq!(all(&buckets), [(vec![5, 6, 7], 20, 10)]);
    assert_eq!(buckets.iter().next().unwrap().size, 48);
    assert!(buckets.is_published());
    // Nothing is: `MemProfile` adds all up then.
    put(&fake, &bucket((0, 0)));
    refresh(&mut buckets, &fake).unwrap();
    assert_eq!(all(&buckets), [(vec![5, 6, 7], 22_200, 11_100)]);
    assert!(!buckets.is_published());
    // As soon as one is, only what is counts.
    put(&fake, &Made { next: 0x1000, addr: 0x2000, ..bucket((0, 1)) });
    fake.word(LIST, 0x2000);
    refresh(&mut buckets, &fake).unwrap();
    assert_eq!(all(&buckets), [(vec![5, 6, 7], 0, 0), (vec![5, 6, 7], 0, 1)]);
}

/// The runtime publishes a bucket's counts when that has been read, and those of the next one before it is.
#[test]
fn counts_are_those_of_one_cycle() {
    let fake = Fake::default();
    let (first, second) = (made(0x1000, 0, &[5], (1, 0)), made(0x2000, 0x1000, &[6], (1, 0)));
    put(&fake, &first);
    put(&fake, &second);
    fake.word(LIST, 0x2000);
    let (published, after) = (layout().bucket.cycles.0 as u64, 9_u64.to_le_bytes());
    fake.word(record_of(&second) + published + layout().bucket.counts.0 as u64, 9);
    fake.write_after(record_of(&first), record_of(&first) + published + layout().bucket.counts.0 as u64, &after);
    let mut buckets = Buckets::default();
    refresh(&mut buckets, &fake).unwrap();
    assert_eq!(all(&buckets), [(vec![5], 9, 0), (vec![6], 9, 0)]);
}

#[test]
fn what_is_new_is_read_once_and_counts_every_time() {
    let fake = Fake::default();
    let counts = |allocs| (allocs, 1);
    fake.word(LIST, 0);
    let mut buckets = Buckets::default();
    refresh(&mut buckets, &fake).unwrap();
    assert_eq!(all(&buckets), []);
    // A stack that is longer than what is read at first.
    let long: Vec<u64> = (100..300).collect();
    put(&fake, &made(0x1000, 0, &[5], counts(1)));
    put(&fake, &made(0x2000, 0x1000, &long, counts(2)));
    fake.word(LIST, 0x2000);
    refresh(&mut buckets, &fake).unwrap();
    assert_eq!(all(&buckets), [(vec![5], 1, 1), (long.clone(), 2, 1)]);
    put(&fake, &made(0x1000, 0, &[5], counts(11)));
    put(&fake, &made(0x4000, 0x2000, &[6], counts(3)));
    put(&fake, &made(0x5000, 0x4000, &[], counts(4)));
    fake.word(LIST, 0x5000);
    fake.reads();
    refresh(&mut buckets, &fake).unwrap();
    assert_eq!(all(&buckets), [(vec![5], 11, 1), (long, 2, 1), (vec![6], 3, 1), (vec![], 4, 1)]);
    // The head, two buckets, each by at most three parts, and four records, twice.
    assert!(fake.reads() <= 1 + 2 * 3 + 2 * 4);
    fake.reads();
    refresh(&mut buckets, &fake).unwrap();
    assert_eq!((all(&buckets).len(), fake.reads()), (4, 1 + 4));
}

/// As many as are read together, and one more.
#[test]
fn many_buckets_are_read_in_parts() {
    let fake = Fake::default();
    let count = BATCH as u64 + 1;
    for nth in 1..=count {
        put(&fake, &made(0x1000 * nth, 0x1000 * (nth - 1), &[nth], (nth, 0)));
    }
    fake.word(LIST, 0x1000 * count);
    let mut buckets = Buckets::default();
    refresh(&mut buckets, &fake).unwrap();
    assert!(all(&buckets).into_iter().eq((1..=count).map(|nth| (vec![nth], nth, 0))));
}

#[track_caller]
fn check_refused(what: &str, fake: &Fake, buckets: &mut Buckets) {
    let known = all(buckets).len();
    assert!(matches!(refresh(buckets, fake), Err(Unreadable::Nonsense(_))), "{what}");
    assert_eq!(all(buckets).len(), known, "{what}");
}

#[test]
fn what_is_no_list_of_buckets_is_refused() {
    let bucket = layout().bucket;
    let good = made(0x1000, 0, &[5], (1, 0));
    let frames = 0x1000 + bucket.frames as u64;
    type Change<'a> = &'a dyn Fn(&Fake);
    let changes: [(&str, Change<'_>); 6] = [
        ("no list", &|fake| fake.unmap(LIST, 8)),
        ("no bucket", &|fake| fake.word(LIST, 0xbad0)),
        ("a cycle", &|fake| put(fake, &made(0x1000, 0x1000, &[5], (1, 0)))),
        ("a stack without end", &|fake| fake.word(frames, u64::MAX)),
        ("too long a stack", &|fake| fake.word(frames, MAX_FRAMES + 1)),
        ("a stack that is not there", &|fake| fake.word(frames, MAX_FRAMES)),
    ];
    for (what, change) in changes {
        let fake = Fake::default();
        fake.word(LIST, 0x1000);
        put(&fake, &good);
        change(&fake);
        check_refused(what, &fake, &mut Buckets::default());
    }
    // A long cycle, and one that a later look finds.
    let fake = Fake::default();
    for nth in 1..=100 {
        put(&fake, &made(0x1000 * nth, 0x1000 * (nth % 100 + 1), &[], (1, 0)));
    }
    fake.word(LIST, 0x5000);
    check_refused("a long cycle", &fake, &mut Buckets::default());
    assert!(fake.reads() < 1000);
    let mut buckets = Buckets::default();
    put(&fake, &made(0x1000, 0, &[], (1, 0)));
    put(&fake, &made(0x1000 * 100, 0x2000, &[], (1, 0)));
    fake.word(LIST, 0x1000);
    refresh(&mut buckets, &fake).unwrap();
    fake.word(LIST, 0x2000);
    check_refused("a later cycle", &fake, &mut buckets);
}

#[test]
fn a_record_that_cannot_be_read_is_an_error() {
    let fake = Fake::default();
    let bucket = made(0x1000, 0, &[5], (7, 0));
    put(&fake, &bucket);
    fake.word(LIST, 0x1000);
    let mut buckets = Buckets::default();
    refresh(&mut buckets, &fake).unwrap();
    fake.unmap(record_of(&bucket), 8);
    check_refused("unreadable", &fake, &mut buckets);
    assert_eq!(all(&buckets), [(vec![5], 7, 0)], "what was known stays");
    let gone = |_: &[Span], _: &mut [u8]| Err(std::io::Error::other("gone"));
    assert!(matches!(buckets.refresh_at(&layout().bucket, LIST, &gone), Err(Unreadable::Memory(_))));
}

/// A list in which every address is another bucket, each with as long a stack as there can be.
#[test]
fn a_list_without_end_is_cut() {
    let bucket = layout().bucket;
    let memory = |spans: &[Span], buffer: &mut [u8]| {
        let mut rest = buffer;
        for span in spans {
            let (into, behind) = rest.split_at_mut(span.len);
            rest = behind;
            into.fill(1);
            if span.addr.is_multiple_of(1 << 20) && into.len() >= bucket.len {
                into[bucket.next..][..8].copy_from_slice(&(span.addr + (1 << 20)).to_le_bytes());
                into[bucket.frames..][..8].copy_from_slice(&MAX_FRAMES.to_le_bytes());
            } else if span.addr == LIST {
                into.copy_from_slice(&(1_u64 << 20).to_le_bytes());
            }
        }
        Ok(vec![true; spans.len()])
    };
    let mut buckets = Buckets::default();
    for _ in 0..2 {
        buckets.refresh_at(&bucket, LIST, &memory).unwrap();
        assert_eq!(buckets.known.len(), MAX_ADDRESSES / MAX_FRAMES as usize);
    }
}

#[test]
fn what_was_allocated_since_a_moment_is_what_is_told_of_it() {
    let fake = Fake::default();
    fake.word(LIST, 0x1000);
    let bucket =
        |counts, held_back: u64| Made { held_back: [(held_back, 0); FUTURES], ..made(0x1000, 0, &[5], counts) };
    put(&fake, &bucket((20, 10), 4));
    let mut buckets = Buckets::default();
    let mut since = |anew: bool| {
        refresh(&mut buckets, &fake).unwrap();
        if anew {
            buckets.mark();
        }
        buckets.since_mark(1)
    };
    assert_eq!(since(true), 0);
    // What was held back then is from before, and what is held back now is not told.
    put(&fake, &bucket((32, 10), 100));
    assert_eq!(since(false), 0);
    put(&fake, &bucket((35, 35), 100));
    assert_eq!(since(false), 3 * 48);
    // A bucket that is new.
    fake.word(LIST, 0x2000);
    put(&fake, &made(0x2000, 0x1000, &[6], (2, 2)));
    assert_eq!(since(false), 5 * 48);
}

#[test]
fn counts_are_scaled_as_go_scales_them() {
    let bucket = |size, allocs, frees| Bucket { calls: Arc::from([]), size, allocs, frees };
    // scaleHeapSample(3, 3*4096, 524288) and (2, 2*4096, 524288).
    assert_eq!(bucket(4096, 3, 1).estimate(524_288), [(385, 1_579_015), (257, 1_052_677)]);
    assert_eq!(bucket(16, 5, 2).estimate(1), [(5, 80), (3, 48)]);
    assert_eq!(bucket(16, 5, 9).estimate(512), [(162, 2600), (0, 0)]);
    assert_eq!(bucket(u64::MAX, 5, 0).estimate(512), [(5, u64::MAX), (5, u64::MAX)]);
}

#[test]
fn the_error_is_that_of_what_is_held() {
    let bucket = |size, allocs, frees| Bucket { calls: Arc::from([]), size, allocs, frees };
    // Of n like objects, each sampled with probability p, the error is sqrt((1 - p) / n).
    let p = 1.0 - (-48.0_f64 / 1000.0).exp();
    let sampling = sampling_of([bucket(48, 9, 5), bucket(48, 1, 3), bucket(48, 5, 5)].into_iter(), 1000);
    assert!((sampling.relative_error - ((1.0 - p) / 4.0).sqrt()).abs() < 1e-12, "{sampling:?}");
    assert_eq!((sampling.samples, sampling.mean_bytes), (4, 1000));
    // All objects are sampled: no error.
    assert_eq!(sampling_of([bucket(48, 9, 5)].into_iter(), 1).relative_error, 0.0);
    assert_eq!(sampling_of([].into_iter(), 1000).relative_error, 0.0);
    let forged =
        sampling_of([bucket(u64::MAX, u64::MAX, 0), bucket(0, u64::MAX, 0), bucket(1, u64::MAX, 0)].into_iter(), 9);
    assert_eq!(forged.samples, u64::MAX);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

    /// Whatever is in memory: no panic, and no more parts are read than there can be buckets in so many bytes.
    #[test]
    fn any_memory_does_no_harm(
        words in proptest::collection::vec(prop_oneof![0..2_u64, 0..0x1000_u64, any::<u64>()], 1..400),
        rate in any::<u64>(),
    ) {
        let fake = Fake::default();
        fake.word(LIST, words[0] & 0xfff);
        for (nth, word) in words.iter().enumerate() {
            fake.word(8 * nth as u64, *word);
        }
        let mut buckets = Buckets::default();
        for _ in 0..2 {
            // An error is an answer.
            let _ = refresh(&mut buckets, &fake);
        }
        // Each place begins at most one, which takes three reads, and has one record.
        prop_assert!(fake.reads() <= 2 * (1 + (3 + ROUNDS) * 8 * words.len()));
        for bucket in buckets.iter() {
            bucket.estimate(rate);
        }
        prop_assert!(!sampling_of(buckets.iter(), rate).relative_error.is_nan());
    }
}
