//! How far a trace can be trusted, from what was lost, cut and sampled.

use std::{collections::BTreeMap, time::Duration};

use super::go::GoTrace;
use crate::{
    collector::{Snapshot, Trail},
    event::Image,
    go::heap::Way,
    golang::heap,
    profile::{
        Unexplained, UnwindTable,
        quality::{Collections, Quality, Sampling, Truncation},
    },
};

/// What is known before stacks and processes are looked at one by one, but for those that were `cut`. `is_held`: whether what stacks of an
/// image held counts as outstanding.
pub(super) fn of(
    snapshot: &Snapshot,
    go: &[GoTrace],
    cut: &[(Image, Truncation)],
    is_held: impl Fn(Image) -> bool,
) -> Quality {
    let loss = &snapshot.loss;
    let held = snapshot.stacks.iter().filter(|stack| is_held(stack.image));
    let unknown = held.clone().filter(|stack| !matches!(stack.trail, Trail::Known(_)));
    let mut truncated = BTreeMap::new();
    for (_, reason) in cut {
        *truncated.entry(*reason).or_default() += 1;
    }
    let reasons: Vec<String> =
        truncated.iter().map(|(reason, count)| format!("{count} of the cut stacks: {}", reason.words())).collect();
    let tables =
        if truncated.contains_key(&Truncation::NoRule) { without_rules(&snapshot.unwind_tables) } else { Vec::new() };
    let sampling: Vec<&heap::Sampling> = go.iter().filter_map(|go| go.heap.sampling.as_ref()).collect();
    let shown: Vec<&GoTrace> = go.iter().filter(|go| is_held(go.image)).collect();
    let problems = go.iter().filter_map(|go| {
        let problem = go.heap.problem.as_ref()?;
        Some(format!("{} could not be followed to the end: {problem}", go.name()))
    });
    let missed = go.iter().filter_map(|go| {
        let heap::Sampling { missed_cycles: missed, cycles, .. } = *go.heap.sampling.as_ref()?;
        (missed > 0).then(|| {
            format!(
                "{missed} of {cycles} garbage collections of {} were not looked at in full: objects that ended then may still \
                 be shown where others took their place at once, under stacks that hold less than that; no standard error tells it",
                go.name()
            )
        })
    });
    let few = shown.iter().copied().filter_map(few_samples);
    let collections = go.iter().filter_map(|go| {
        let (at_begin, at_end) = go.heap.collections.seen?;
        let (pid, library, own_profile) = (go.pid, go.library.clone(), go.way != Way::Sampled);
        Some(Collections { pid, library, at_begin, at_end, own_profile })
    });
    let collections: Vec<Collections> = collections.collect();
    let sum = |field: fn(&heap::Sampling) -> u64| sampling.iter().map(|sampling| field(sampling)).sum();
    let of_shown = shown.iter().filter_map(|go| go.heap.sampling.as_ref());
    Quality {
        sampling: None,
        missed_cycles: sum(|sampling| sampling.missed_cycles),
        cycles: collections.iter().map(Collections::while_traced).sum(),
        collections,
        uncollected_heaps: go.iter().filter(|go| !go.heap.collections.collected).count() as u64,
        undecided_samples: of_shown.map(|sampling| sampling.undecided).sum(),
        unresolved_samples: loss.unresolved + sum(|sampling| sampling.misplaced),
        all_samples: sum(|sampling| sampling.samples),
        lost_allocs: loss.allocs,
        refused_allocs: snapshot.counters.refused_blocks,
        refused_samples: loss.samples,
        lost_frees: loss.frees,
        lost_moments: loss.moments,
        unfollowed_processes: loss.processes,
        undecided_events: snapshot.undecided_events,
        inherited_frees: snapshot.counters.inherited_frees,
        unmatched_frees: snapshot.counters.unmatched_frees,
        missed_frees: snapshot.counters.missed_frees,
        rewritten_files: 0,
        lost_remappings: loss.remappings + snapshot.refused_remappings,
        recorded_remappings: snapshot.remappings.saturating_sub(snapshot.refused_remappings),
        truncated,
        uncertain_bytes: held.map(|stack| stack.uncertain_bytes).fold(0, u64::saturating_add),
        unknown_stack_bytes: unknown.map(|stack| stack.values.outstanding_bytes).fold(0, u64::saturating_add),
        untracked_calls: loss.threads_full + loss.outcomes_unseen,
        unknown_records: snapshot.unknown_records + sum(|sampling| sampling.senseless),
        unexplained_bytes: 0,
        fresh_bytes: 0,
        unseen_spans: 0,
        unseen_heaps: 0,
        silent_targets: 0,
        targets: 0,
        recorded_events: snapshot.counters.events,
        outstanding_bytes: 0,
        notes: problems.chain(late(snapshot.late)).chain(missed).chain(few).chain(reasons).chain(tables).collect(),
    }
}

/// Bytes and blocks that are held and too young to be told.
pub(super) fn younger(snapshot: &Snapshot, is_held: impl Fn(Image) -> bool) -> (u64, u64) {
    let held = snapshot.stacks.iter().filter(|stack| is_held(stack.image)).map(|stack| stack.younger);
    held.fold((0, 0), |sum: (u64, u64), (bytes, blocks)| (sum.0.saturating_add(bytes), sum.1.saturating_add(blocks)))
}

/// What to say of processes that were not followed from their beginning on: how many, and for how long at most.
fn late((count, time): (u64, Duration)) -> Option<String> {
    let those = if count == 1 { "1 process was".to_owned() } else { format!("{count} processes were") };
    let words = format!(
        "{those} followed late, by up to {:.1} ms: the record of the beginning found the ring buffer full (--buffer-size)",
        time.as_secs_f64() * 1e3
    );
    (count > 0).then_some(words)
}

/// Most files that are named whose code has no rules, or not all that it should have.
const MOST_FILES: usize = 3;

/// Why code of files has no rules though it could be read: what is missing from their tables.
fn without_rules(tables: &[UnwindTable]) -> Vec<String> {
    let with_code = tables.iter().filter(|table| table.code_bytes > 0);
    let mut problems: Vec<(&str, &str)> =
        with_code.filter_map(|table| Some((&*table.path, table.problem.as_deref()?))).collect();
    problems.sort_unstable();
    problems.dedup();
    let others = problems.len().saturating_sub(MOST_FILES);
    let named = problems.iter().take(MOST_FILES);
    let mut notes: Vec<String> = named
        .map(|(path, problem)| format!("stacks may end in {path}, whose unwinding rules are not complete: {problem}"))
        .collect();
    notes.extend(
        (others > 0).then(|| format!("stacks may end in {others} more files whose unwinding rules are not complete")),
    );
    notes
}

/// The standard error of all bytes that a report should have at most, as a share of them; so many samples of small blocks give it.
const ENOUGH: f64 = 0.1;
const ENOUGH_SAMPLES: u64 = 100;

/// What to do where so few samples are held that the numbers are hardly better than guesses.
fn few_samples(go: &GoTrace) -> Option<String> {
    let heap::Sampling { mean_bytes, samples, relative_error, .. } = *go.heap.sampling.as_ref()?;
    let sampling = Sampling { mean_bytes, samples, relative_error };
    if go.way == Way::Sampled { are_few(&go.name(), sampling) } else { None }
}

/// What to do where a heap of this name is told by so few samples that its bytes are hardly known. Blocks that are larger than the
/// distance of samples are all there, however few they are: with those alone nothing is to be done.
pub(super) fn are_few(name: &str, sampling: Sampling) -> Option<String> {
    let Sampling { samples, mean_bytes, relative_error } = sampling;
    if samples == 0
        || samples >= ENOUGH_SAMPLES
        || mean_bytes <= 1
        || relative_error.is_nan()
        || relative_error <= ENOUGH
    {
        return None;
    }
    // The variance is proportional to the distance where blocks are small, and falls faster with it where they are not.
    let least = mean_bytes as f64 * (ENOUGH / relative_error).powi(2);
    let wanted: u64 = 1 << (least as u64).max(1).ilog2();
    let error = relative_error * (wanted as f64 / mean_bytes as f64).sqrt() * 100.0;
    let size = option_size(wanted);
    if wanted == 1 {
        return Some(format!("{name} is told by few samples ({samples}): --sample={size} records all"));
    }
    Some(format!(
        "{name} is told by few samples ({samples}): --sample={size} would bring the standard error of all bytes to about {error:.0}% or less"
    ))
}

/// So many bytes as an option takes them.
pub(super) fn option_size(bytes: u64) -> String {
    if bytes < 1024 { format!("{bytes}B") } else { format!("{}KiB", bytes / 1024) }
}

/// How good estimates are together, each with the bytes that it is of.
pub(super) fn together(estimates: &[(Sampling, u64)]) -> Option<Sampling> {
    let (Sampling { mean_bytes, .. }, _) = *estimates.first()?;
    let (mut sum, mut variance, mut samples) = (0.0, 0.0, 0);
    for (sampling, held) in estimates {
        sum += *held as f64;
        variance += (sampling.relative_error * *held as f64).powi(2);
        samples += sampling.samples;
    }
    let relative_error = if sum > 0.0 { variance.sqrt() / sum } else { 0.0 };
    Some(Sampling { mean_bytes, samples, relative_error })
}

/// Of how many processes new memory is not explained though it is little in each.
pub(super) fn scattered(unexplained: &Unexplained) -> Option<String> {
    let Unexplained { scattered, processes, .. } = *unexplained;
    (scattered > 0).then(|| {
        let bytes = scattered >> 20;
        format!(
            "{bytes} MiB of new memory are not explained that {processes} processes have together, each of them little"
        )
    })
}

/// What the reader should know of stacks that became one: how many hold nothing, and how many something.
pub(super) fn folded((empty, holding): (u64, u64)) -> Option<String> {
    (empty + holding > 0).then(|| {
        format!(
            "{} stacks are shown as one, [other stacks] ({holding} of them hold something): tracer's memory is bounded \
             (--max-memory)",
            empty + holding
        )
    })
}

/// What the reader should know of stacks that there was no room for.
pub(super) fn without_room(snapshot: &Snapshot, is_held: impl Fn(Image) -> bool) -> Option<String> {
    let without = snapshot.stacks.iter().filter(|stack| matches!(stack.trail, Trail::TableFull));
    let mut any = false;
    let (mut bytes, mut blocks) = (0u64, 0u64);
    for stack in without {
        any |= stack.values.allocated_blocks > 0;
        if is_held(stack.image) {
            bytes = bytes.saturating_add(stack.values.outstanding_bytes);
            blocks = blocks.saturating_add(stack.values.outstanding_blocks);
        }
    }
    any.then(|| {
        format!(
            "stacks that came when there was no room for more are shown as one, [stack table full], which holds {bytes} bytes in {blocks} \
             blocks: tracer's memory is bounded (--max-memory)"
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_are_few_where_the_bytes_are_hardly_known() {
        let few =
            |samples, mean_bytes, relative_error| are_few("the heap", Sampling { mean_bytes, samples, relative_error });
        let advice = |size, error| {
            format!("--sample={size} would bring the standard error of all bytes to about {error}% or less")
        };
        // Small blocks: an error of 1 by the root of the samples.
        assert!(few(25, 1 << 20, 0.2).is_some_and(|few| few.ends_with(&advice("256KiB", 10))));
        assert!(few(16, 4 << 20, 0.25).is_some_and(|few| few.ends_with(&advice("512KiB", 9))));
        assert!(few(1, 512 << 10, 1.0).is_some_and(|few| few.ends_with(&advice("4KiB", 9))));
        assert!(few(1, 8, 1.0).is_some_and(|few| few.ends_with("(1): --sample=1B records all")));
        // Blocks much larger than the distance: no sample more could come.
        assert_eq!(few(8, 32 << 10, 0.0), None);
        assert_eq!(few(8, 32 << 10, 0.1), None);
        assert_eq!(few(8, 32 << 10, f64::NAN), None);
        assert_eq!((few(0, 32 << 10, 0.0), few(100, 32 << 10, 0.5), few(9, 1, 0.5)), (None, None, None));
    }

    #[test]
    fn files_are_named_whose_rules_are_not_complete() {
        let table = |path: &str, code_bytes, problem: Option<&str>| UnwindTable {
            path: path.to_owned(),
            rows: 0,
            bytes: 0,
            build_time: Duration::ZERO,
            code_bytes,
            uncovered_bytes: code_bytes,
            synthesized_bytes: 0,
            problem: problem.map(str::to_owned),
        };
        let mut tables =
            vec![table("/b", 1, Some("full")), table("/whole", 1, None), table("/none", 0, Some("no file"))];
        let note = "stacks may end in /b, whose unwinding rules are not complete: full";
        assert_eq!(without_rules(&tables), [note]);
        // The same file twice is one.
        tables.extend(["/b", "/c", "/d", "/e", "/f"].map(|path| table(path, 1, Some("full"))));
        let notes = without_rules(&tables);
        assert_eq!((notes.len(), &*notes[0]), (4, note));
        assert_eq!(notes[3], "stacks may end in 2 more files whose unwinding rules are not complete");
    }
}
