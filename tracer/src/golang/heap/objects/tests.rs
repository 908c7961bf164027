//! What sampled objects are told to be, by a heap that is made up.

mod estimates;

use proptest::prelude::*;
use tracer_ebpf::golang::CLASS_SIZES;

use super::*;
use crate::golang::heap::{
    fixture::{Fake, layout},
    liveness::{ARENA_BASE, ARENA_SHIFT, IN_USE},
    sample::PAGE_SHIFT,
};

const MHEAP: u64 = 0x50_0000;
const ARENAS: u64 = 0x60_0000;
const ARENA: u64 = 0x7f00_0000_0000;
const SPAN: u64 = 0x7e00_0000_0000;
const BITS: u64 = 0x7d00_0000_0000;
/// Where the first arena of a Go program is.
const BASE: u64 = 0xc0_0000_0000;
const PAGE: u64 = 1 << PAGE_SHIFT;

/// `mheap_.sweepgen` now, and when the objects were born.
const NOW: u32 = 12;
const BEFORE: u32 = 10;

/// A span of objects.
#[derive(Clone)]
struct Objs {
    number: u64,
    page: u64,
    size: u64,
    class: u8,
    sweepgen: u32,
    bits: Vec<u8>,
}

impl Objs {
    fn addr(&self, index: u64) -> u64 {
        BASE + self.page * PAGE + index * self.size
    }

    fn at(&self, field: usize) -> u64 {
        SPAN + 4096 * self.number + field as u64
    }

    fn bits_at(&self) -> u64 {
        BITS + (self.number << 20)
    }

    fn sample(&self, index: u64) -> Sample {
        Sample {
            addr: self.addr(index),
            size: self.size,
            charge: self.size,
            time: 7,
            sweepgen: BEFORE,
            class: self.class,
            stack: 0,
        }
    }
}

/// Objects of one size, without pointers, 64 of them, of which the sweep has left all.
fn objects(size: u64) -> Objs {
    Objs { number: 0, page: 3, size, class: class(size), sweepgen: NOW, bits: vec![0xff; 8] }
}

fn class(size: u64) -> u8 {
    (CLASS_SIZES.iter().position(|other| u64::from(*other) == size).unwrap() << 1 | 1) as u8
}

/// A heap without spans.
fn heap() -> Fake {
    let (fake, layout) = (Fake::default(), layout());
    set_sweepgen(&fake, NOW);
    fake.word(MHEAP + layout.mheap.1 as u64, ARENAS);
    fake.word(ARENAS + 8 * ((BASE + ARENA_BASE) >> ARENA_SHIFT), ARENA);
    fake
}

fn set_sweepgen(fake: &Fake, sweepgen: u32) {
    fake.write(MHEAP + layout().mheap.0 as u64, &sweepgen.to_le_bytes());
}

/// Puts a span into a heap.
fn put(fake: &Fake, objects: &Objs) {
    let span = layout().span;
    let pages = (objects.bits.len() as u64 * 8 * objects.size).div_ceil(PAGE);
    for page in objects.page..objects.page + pages {
        fake.word(ARENA + layout().arena_spans as u64 + 8 * page, objects.at(0));
    }
    fake.write(objects.at(0), &vec![0; span.size]);
    fake.word(objects.at(span.start), objects.addr(0));
    fake.write(objects.at(span.elements), &(8 * objects.bits.len() as u16).to_le_bytes());
    fake.word(objects.at(span.element_size), objects.size);
    fake.word(objects.at(span.bits), objects.bits_at());
    fake.write(objects.at(span.class), &[objects.class]);
    fake.write(objects.at(span.state), &[IN_USE]);
    fake.write(objects.at(span.sweepgen), &objects.sweepgen.to_le_bytes());
    fake.write(objects.bits_at(), &objects.bits);
}

fn look(objects: &mut Objects, fake: &Fake) -> bool {
    objects.look_at(&layout(), MHEAP, &|spans, buffer| fake.read(spans, buffer)).unwrap()
}

/// What is said of one object.
#[track_caller]
fn check(what: &str, fake: &Fake, sample: Sample, expected: Answer) {
    let mut objects = Objects::new(512);
    objects.add(sample);
    assert!(look(&mut objects, fake), "{what}");
    let answer = match (objects.len(), objects.is_undecided()) {
        (1, false) => Answer::Alive,
        (0, false) => Answer::Ended,
        (1, true) => Answer::Undecided,
        other => panic!("{what}: {other:?}"),
    };
    assert_eq!(answer, expected, "{what}");
    assert_eq!(objects.sampling(u64::MAX).undecided, u64::from(answer == Answer::Undecided), "{what}");
}

#[test]
fn the_bit_decides_in_spans_that_have_been_swept() {
    for (size, index) in [(48, 0), (48, 9), (8, 63), (1024, 10), (4096, 5)] {
        for (sweepgen, left, expected) in [
            (NOW, true, Answer::Alive),
            (NOW, false, Answer::Ended),
            (NOW + 3, true, Answer::Alive),
            (NOW + 3, false, Answer::Ended),
            // To be swept, being swept, and swept in the cycle before while it was in a cache.
            (NOW - 2, true, Answer::Undecided),
            (NOW - 2, false, Answer::Undecided),
            (NOW - 1, true, Answer::Undecided),
            (NOW - 1, false, Answer::Undecided),
            (NOW + 1, true, Answer::Undecided),
            (NOW + 1, false, Answer::Undecided),
        ] {
            let mut span = Objs { sweepgen, ..objects(size) };
            // All others say the contrary.
            span.bits = vec![if left { 0 } else { 0xff }; 8];
            span.bits[index / 8] ^= 1 << (index % 8);
            let fake = heap();
            put(&fake, &span);
            check(&format!("{index} of {size} bytes, {sweepgen}, {left}"), &fake, span.sample(index as u64), expected);
        }
    }
}

#[test]
fn the_count_of_cycles_goes_round() {
    for (now, swept, expected) in [
        (0, 0, Answer::Ended),
        (0, 3, Answer::Ended),
        (0, u32::MAX - 1, Answer::Undecided),
        (u32::MAX - 1, 1, Answer::Ended),
    ] {
        let span = Objs { sweepgen: swept, bits: vec![0; 8], ..objects(48) };
        let fake = heap();
        put(&fake, &span);
        set_sweepgen(&fake, now);
        check(&format!("{now} {swept}"), &fake, Sample { sweepgen: now.wrapping_sub(2), ..span.sample(1) }, expected);
        let born = Sample { sweepgen: now, ..span.sample(1) };
        let expected = if expected == Answer::Ended { Answer::Alive } else { expected };
        check(&format!("{now} {swept}, born"), &fake, born, expected);
    }
}

/// The bits are those of the last sweep: they say nothing of what is newer.
#[test]
fn what_was_born_in_this_cycle_is_alive() {
    let span = Objs { bits: vec![0; 8], ..objects(48) };
    for (sweepgen, expected) in
        [(BEFORE, Answer::Ended), (NOW - 1, Answer::Ended), (NOW, Answer::Alive), (NOW + 2, Answer::Alive)]
    {
        let fake = heap();
        put(&fake, &span);
        check(&sweepgen.to_string(), &fake, Sample { sweepgen, ..span.sample(3) }, expected);
    }
}

#[test]
fn what_lies_in_no_span_of_its_kind_has_ended() {
    let (span, layout) = (objects(48), layout());
    let entry = ARENA + layout.arena_spans as u64 + 8 * span.page;
    type Change<'a> = &'a dyn Fn(&Fake);
    let changes: [(&str, Change<'_>); 9] = [
        ("no arena", &|fake| fake.word(ARENAS + 8 * ((BASE + ARENA_BASE) >> ARENA_SHIFT), 0)),
        ("no arenas", &|fake| fake.unmap(ARENAS, 1 << 25)),
        ("no span", &|fake| fake.word(entry, 0)),
        ("an unreadable span", &|fake| fake.unmap(span.at(0), 4096)),
        ("a span of stacks", &|fake| fake.write(span.at(layout.span.state), &[2])),
        ("a free span", &|fake| fake.write(span.at(layout.span.state), &[0])),
        ("the same size, with pointers", &|fake| fake.write(span.at(layout.span.class), &[span.class & !1])),
        ("another size", &|fake| fake.word(span.at(layout.span.element_size), 64)),
        ("a span that begins behind it", &|fake| fake.word(span.at(layout.span.start), span.addr(3) + 1)),
    ];
    for (what, change) in changes {
        // Not even what is new lies there.
        for sweepgen in [BEFORE, NOW] {
            let fake = heap();
            put(&fake, &span);
            let sample = Sample { sweepgen, ..span.sample(3) };
            check(what, &fake, sample, Answer::Alive);
            change(&fake);
            check(what, &fake, sample, Answer::Ended);
        }
    }
    // Farther in than objects can be: forged.
    let fake = heap();
    put(&fake, &span);
    fake.word(span.at(layout.span.start), span.addr(3) - 48 * (1 << 16));
    fake.write(span.bits_at() + (1 << 16) / 8, &[0xff]);
    check("far in", &fake, span.sample(3), Answer::Ended);
}

#[test]
fn bits_that_are_replaced_meanwhile_decide_nothing() {
    let (span, layout) = (objects(48), layout());
    for bit in [0, 0xff] {
        let span = Objs { bits: vec![bit; 8], ..span.clone() };
        let expected = if bit == 0 { Answer::Ended } else { Answer::Alive };
        for (what, at, bytes, expected) in [
            ("its bits", layout.span.bits, (BITS + 0x1000).to_le_bytes().to_vec(), Answer::Undecided),
            ("its cycle", layout.span.sweepgen, (NOW + 2).to_le_bytes().to_vec(), Answer::Undecided),
            // Goes on while objects are allocated.
            ("what is free", layout.span.free_index, vec![9], expected),
        ] {
            let fake = heap();
            put(&fake, &span);
            fake.write_after(span.bits_at(), span.at(at), &bytes);
            check(what, &fake, span.sample(3), expected);
        }
    }
}

#[test]
fn what_was_undecided_is_asked_again_and_nothing_else_is() {
    let swept = objects(48);
    let waits = Objs { number: 1, page: 9, sweepgen: NOW - 2, ..objects(64) };
    let fake = heap();
    put(&fake, &swept);
    put(&fake, &waits);
    let mut objects = Objects::new(512);
    objects.add(swept.sample(1));
    objects.add(waits.sample(1));
    objects.add(waits.sample(2));
    assert!(look(&mut objects, &fake));
    assert_eq!((objects.len(), objects.undecided.len()), (3, 2));
    // The sweep comes there, and leaves one of the two. What the other span says is for the next cycle.
    put(&fake, &Objs { sweepgen: NOW, bits: vec![0b100; 8], ..waits.clone() });
    put(&fake, &Objs { bits: vec![0; 8], ..swept.clone() });
    assert!(look(&mut objects, &fake));
    assert_eq!((objects.len(), objects.is_undecided()), (2, false));
    assert!(objects.alive.contains_key(&swept.addr(1)) && objects.alive.contains_key(&waits.addr(2)));
    // Nothing is to be asked, and one part is read: the number of the cycle.
    fake.reads();
    assert!(!look(&mut objects, &fake));
    assert_eq!((objects.len(), fake.reads()), (2, 1));
    set_sweepgen(&fake, NOW + 2);
    put(&fake, &Objs { sweepgen: NOW + 2, bits: vec![0; 8], ..swept });
    put(&fake, &Objs { sweepgen: NOW + 2, bits: vec![0; 8], ..waits });
    assert!(look(&mut objects, &fake));
    assert!(objects.is_empty());
}

#[test]
fn cycles_without_a_look_are_counted() {
    let span = objects(48);
    let mut objects = Objects::new(512);
    let missed = |objects: &Objects| objects.sampling(u64::MAX).missed_cycles;
    let sample = |sweepgen| Sample { sweepgen, ..span.sample(1) };
    for (sweepgen, swept, sampled, expected) in [
        // The first look misses nothing; each cycle after it should have one.
        (NOW, true, NOW, 0),
        (NOW, true, NOW, 0),
        (NOW + 2, true, NOW, 0),
        (NOW + 6, true, NOW + 4, 1),
        // Nothing was sampled in the two that were over at once.
        (NOW + 12, true, NOW + 6, 1),
        // A sample of the first of these comes late.
        (NOW + 14, true, NOW + 8, 2),
        // A look that could not tell is none if the next cycle comes first.
        (NOW + 16, false, NOW + 16, 2),
        (NOW + 16, true, NOW + 16, 2),
        (NOW + 18, false, NOW + 18, 2),
        (NOW + 20, true, NOW + 18, 3),
        (NOW + 22, false, NOW + 18, 3),
        (NOW + 24, true, NOW + 24, 3),
    ] {
        let fake = heap();
        put(&fake, &Objs { sweepgen: if swept { sweepgen } else { sweepgen - 2 }, ..span.clone() });
        set_sweepgen(&fake, sweepgen);
        objects.add(sample(sampled));
        look(&mut objects, &fake);
        assert_eq!(objects.is_undecided(), !swept, "{sweepgen}");
        assert_eq!(missed(&objects), expected, "{sweepgen}");
    }
    // As many as there can be take no time and no memory.
    let mut objects = Objects::new(512);
    for sweepgen in [NOW, NOW.wrapping_add(u32::MAX - 1), NOW.wrapping_add(u32::MAX - 5)] {
        let fake = heap();
        set_sweepgen(&fake, sweepgen);
        look(&mut objects, &fake);
        assert!(objects.unseen.len() <= 2 * MAX_UNSEEN);
    }
    // Round the end of the numbers: one cycle.
    let mut objects = Objects::new(512);
    for sweepgen in [u32::MAX - 1, 0] {
        let fake = heap();
        set_sweepgen(&fake, sweepgen);
        look(&mut objects, &fake);
    }
    assert_eq!(missed(&objects), 0);
}

#[test]
fn a_place_that_is_given_to_another_object_held_one_that_has_ended() {
    let span = Objs { bits: vec![0; 8], ..objects(48) };
    let fake = heap();
    put(&fake, &span);
    let mut objects = Objects::new(1);
    objects.add(span.sample(1));
    objects.add(Sample { stack: 2, sweepgen: NOW, ..span.sample(1) });
    let of = |objects: &Objects| -> Vec<_> {
        let values = |usage: SampledUsage| {
            let Values { outstanding_bytes, allocated_bytes, freed_blocks, .. } = usage.values;
            (usage.stack, outstanding_bytes, allocated_bytes, freed_blocks)
        };
        objects.usage(u64::MAX).into_iter().map(values).collect()
    };
    assert_eq!(of(&objects), [(0, 0, 48, 1), (2, 48, 48, 0)]);
    look(&mut objects, &fake);
    assert_eq!(of(&objects), [(0, 0, 48, 1), (2, 48, 48, 0)], "the bit is that of the old one");
}

#[test]
fn a_span_that_describes_other_places_by_now_holds_nothing_of_before() {
    let span = objects(48);
    for (what, moved) in [("beyond its end", 64 * 48), ("far beyond", PAGE), ("between two objects", 24)] {
        let fake = heap();
        put(&fake, &span);
        check("in it", &fake, span.sample(2), Answer::Alive);
        fake.word(span.at(layout().span.start), span.addr(2) - moved);
        check(what, &fake, span.sample(2), Answer::Ended);
    }
}

#[test]
fn what_comes_to_be_known_late_is_looked_at_all_the_same() {
    let span = Objs { bits: vec![0b10; 8], ..objects(48) };
    let fake = heap();
    put(&fake, &span);
    let mut objects = Objects::new(1);
    assert!(look(&mut objects, &fake));
    assert!(!look(&mut objects, &fake), "there is nothing new");
    objects.add(span.sample(0));
    objects.add(span.sample(1));
    objects.add(Sample { sweepgen: NOW, ..span.sample(2) });
    assert!(look(&mut objects, &fake));
    assert_eq!(objects.len(), 2, "one has ended, one is alive, of one nothing is known yet");
    assert!(!look(&mut objects, &fake));
}

#[test]
fn samples_that_make_no_sense_are_counted() {
    let good = objects(48).sample(1);
    let large = |size| Sample { size, class: 1, ..good };
    let mut objects = Objects::new(512);
    for sample in [good, Sample { class: good.class & !1, ..good }, large(PAGE), large((1 << 47) - PAGE)] {
        let before = objects.allocated.first().copied().unwrap_or_default().blocks;
        objects.add(sample);
        assert!(objects.allocated[0].blocks > before, "{sample:?}");
    }
    assert_eq!((objects.len(), objects.senseless, objects.misplaced), (1, 0, 3));
    let bad = [
        Sample { size: 64, ..good },
        Sample { size: 0, ..good },
        Sample { size: u64::MAX, ..good },
        Sample { class: 0xff, ..good },
        Sample { class: 2 * CLASS_SIZES.len() as u8, size: 0, ..good },
        Sample { charge: 0, ..good },
        large(0),
        large(PAGE + 8),
        large(1 << 47),
    ];
    for sample in bad {
        objects.add(Sample { addr: 0xbad0, ..sample });
    }
    assert_eq!(objects.len(), 1);
    assert_eq!(objects.sampling(u64::MAX).senseless, bad.len() as u64);
}

#[test]
fn a_heap_that_cannot_be_read_is_an_error() {
    let span = objects(48);
    let mut objects = Objects::new(512);
    let nothing = Fake::default();
    let looked = objects.look_at(&layout(), MHEAP, &|spans, buffer| nothing.read(spans, buffer));
    assert!(matches!(looked, Err(Unreadable::Nonsense(_))));
    objects.add(span.sample(1));
    let gone = |_: &[Part], _: &mut [u8]| Err(std::io::Error::other("gone"));
    assert!(matches!(objects.look_at(&layout(), MHEAP, &gone), Err(Unreadable::Memory(_))));
    assert_eq!(objects.len(), 1, "what was known stays");
}

fn any_sample() -> impl Strategy<Value = Sample> {
    let size = prop_oneof![Just(48_u64), Just(PAGE), any::<u64>()];
    let addr = prop_oneof![BASE..BASE + (1 << 20), any::<u64>()];
    (addr, size, any::<u64>(), any::<u32>(), any::<u8>(), 0..4_u32).prop_map(
        |(addr, size, charge, sweepgen, class, stack)| {
            let class = if size == 48 { self::class(48) } else { class };
            Sample { addr, size, charge, time: charge, sweepgen, class, stack }
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

    /// Whatever is in memory: no panic, no more parts read than the samples have a use for, none made up.
    #[test]
    fn any_memory_does_no_harm(
        bytes in proptest::collection::vec(any::<u8>(), 1..300),
        samples in proptest::collection::vec(any_sample(), 0..40),
        holes in 1..20_u64,
    ) {
        let reads = std::cell::Cell::new(0);
        let memory = |spans: &[Part], buffer: &mut [u8]| {
            reads.set(reads.get() + spans.len());
            buffer.iter_mut().zip(bytes.iter().cycle().skip(reads.get() % 7)).for_each(|(to, from)| *to = *from);
            Ok(spans.iter().map(|span| !(span.addr >> 3).is_multiple_of(holes)).collect())
        };
        let mut objects = Objects::new(512);
        for sample in &samples {
            objects.add(*sample);
        }
        let before = objects.len();
        for _ in 0..4 {
            // An error is an answer.
            let _ = objects.look_at(&layout(), MHEAP, &memory);
        }
        prop_assert!(objects.len() <= before);
        prop_assert!(objects.undecided.iter().all(|addr| objects.alive.contains_key(addr)));
        prop_assert!(reads.get() <= 4 * (2 + 5 * samples.len()), "{} parts", reads.get());
        objects.usage(u64::MAX);
        prop_assert!(objects.sampling(u64::MAX).relative_error.is_finite());
    }
}

#[test]
fn one_place_holds_one_object_in_a_cycle() {
    let sample = objects(48).sample(1);
    let mut objects = Objects::new(512);
    let state = |objects: &Objects| (objects.misplaced, objects.allocated[0].met, objects.len());
    objects.add(sample);
    objects.add(sample);
    assert_eq!(state(&objects), (1, 0, 1), "the first was not there, and has met no collector");
    objects.add(Sample { sweepgen: sample.sweepgen + 2, ..sample });
    assert_eq!(state(&objects), (1, 1, 1), "the second has ended in the cycle between");
}
