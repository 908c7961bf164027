//! What is a gap, and beyond which share.

use super::*;

/// A quality of a thousand of everything that something can be a part of.
fn base() -> Quality {
    let sampling = Some(Sampling { mean_bytes: 1, samples: 1_000, relative_error: 0.0 });
    Quality {
        recorded_events: 1_000_000,
        recorded_remappings: 1_000_000,
        outstanding_bytes: 1_000_000,
        targets: 2,
        cycles: 1_000,
        sampling,
        ..Quality::default()
    }
}

#[test]
fn each_way_to_be_incomplete_is_so_at_once_and_in_the_exit_status_beyond_its_share() {
    type Set = fn(&mut Quality, u64);
    let ways: [(Missing, Set, Option<u64>); 17] = [
        (Missing::AllAllocations, |q, n| q.silent_targets = n, Some(2)),
        (Missing::Allocations, |q, n| q.lost_allocs = n, Some(1_002)),
        (Missing::Room, |q, n| q.refused_allocs = n, Some(1_001)),
        (Missing::SampleRoom, |q, n| q.refused_samples = n, Some(1_002)),
        (Missing::Frees, |q, n| q.lost_frees = n, Some(1_002)),
        (Missing::Moments, |q, n| q.lost_moments = n, Some(1_002)),
        (Missing::Undecided, |q, n| q.undecided_events = n, Some(1_002)),
        (Missing::Calls, |q, n| q.untracked_calls = n, Some(1_002)),
        (Missing::Records, |q, n| q.unknown_records = n, Some(1_002)),
        (Missing::UnseenFrees, |q, n| q.missed_frees = n, Some(1_001)),
        (Missing::Remappings, |q, n| q.lost_remappings = n, Some(10_102)),
        (Missing::Certainty, |q, n| q.uncertain_bytes = n, Some(1_001)),
        (Missing::Stacks, |q, n| q.unknown_stack_bytes = n, Some(1_001)),
        (Missing::Samples, |q, n| q.unresolved_samples = n, Some(53)),
        (Missing::Ends, |q, n| q.undecided_samples = n, Some(51)),
        (Missing::Files, |q, n| q.rewritten_files = n, None),
        (Missing::Roots, |q, n| q.truncated = [(Truncation::Depth, n)].into(), None),
    ];
    assert!(base().complete() && base().has_every_allocation() && !base().is_beyond_threshold());
    for (what, set, beyond) in ways {
        let with = |number| {
            let mut quality = base();
            set(&mut quality, number);
            quality
        };
        let gaps = with(1).gaps();
        assert_eq!(gaps.iter().map(|gap| (gap.what, gap.amount)).collect::<Vec<_>>(), [(what, 1)]);
        assert!(!with(1).complete() && !with(1).is_beyond_threshold(), "{what:?}");
        match beyond {
            Some(number) => {
                assert!(!with(number - 1).is_beyond_threshold(), "{what:?}");
                assert!(with(number).is_beyond_threshold(), "{what:?}");
            }
            None => assert!(!with(u64::MAX).is_beyond_threshold(), "{what:?}"),
        }
    }
}

#[test]
fn lost_changes_of_mappings_are_a_part_of_those_changes() {
    let few = Quality { recorded_remappings: 90, lost_remappings: 10, ..base() };
    let gaps: Vec<_> = few.gaps().iter().map(|gap| (gap.what, gap.amount, gap.of)).collect();
    assert_eq!(gaps, [(Missing::Remappings, 10, 100)]);
    assert!(few.is_beyond_threshold(), "however many allocations there are");
}

#[test]
fn nobody_knows_what_a_process_did_unseen() {
    for unseen in [Quality { unseen_spans: 1, ..base() }, Quality { unseen_heaps: 1, ..base() }] {
        assert!(!unseen.complete() && unseen.is_beyond_threshold() && !unseen.has_every_allocation());
    }
}

#[test]
fn a_few_cycles_that_were_missed_are_no_gap() {
    let with = |missed_cycles| Quality { missed_cycles, ..base() };
    assert!(with(250).complete());
    assert!(!with(251).complete() && with(251).is_beyond_threshold());
}

#[test]
fn unexplained_memory_is_beyond_any_share() {
    let quality = Quality { unexplained_bytes: 1, fresh_bytes: 1 << 40, ..base() };
    assert!(!quality.complete() && quality.is_beyond_threshold() && !quality.has_every_allocation());
}

#[test]
fn what_is_missing_of_nothing_is_beyond_any_share() {
    assert!(Quality { lost_frees: 1, ..Quality::default() }.is_beyond_threshold());
    assert!(Quality { unknown_stack_bytes: 1, ..Quality::default() }.is_beyond_threshold());
}

#[test]
fn every_allocation_is_not_claimed_beside_lost_ones() {
    assert!(!Quality { lost_allocs: 1, ..base() }.has_every_allocation());
    assert!(!Quality { untracked_calls: 1, ..base() }.has_every_allocation());
    assert!(!Quality { silent_targets: 1, ..base() }.has_every_allocation());
    assert!(Quality { lost_frees: 1, missed_frees: 1, ..base() }.has_every_allocation());
}
