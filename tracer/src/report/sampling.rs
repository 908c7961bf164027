//! How estimates came about, in a line for each way.

use std::{
    collections::BTreeMap,
    io::{self, Write},
};

use hashbrown::HashMap;

use super::{
    head::LISTED,
    index::Index,
    numbers::{count, size},
    words,
};
use crate::profile::{Heap, Profile, quality::Sampling};

/// Writes how what is shown was estimated: in one line, or where samples are not equally far apart, in one for each heap and distance.
pub(super) fn write(profile: &Profile, index: &Index<'_>, out: &mut impl Write) -> io::Result<()> {
    let Some(sampling) = &profile.quality.sampling else { return Ok(()) };
    let several = by_heap(profile);
    if several.len() < 2 || several.iter().all(|(_, of_heap)| of_heap.mean_bytes == sampling.mean_bytes) {
        let heaps = profile.processes.iter().flat_map(|process| &process.heaps);
        let is_all = heaps.into_iter().all(|seen| seen.sampling.is_some());
        let bytes = if index.has_several_heaps && !is_all { "the Go heap's" } else { "all" };
        return writeln!(out, "  sampling     {}", words(sampling, bytes));
    }
    let (listed, rest) = several.split_at(several.len().min(LISTED));
    for (heap, sampling) in listed {
        writeln!(out, "  sampling     {}: {}", words::heap(heap), words(sampling, "its"))?;
    }
    match rest.len() {
        0 => Ok(()),
        more => writeln!(out, "               and {} (JSON has all)", count(more as u64, "more way")),
    }
}

fn words(sampling: &Sampling, whose: &str) -> String {
    let Sampling { mean_bytes, samples, relative_error } = *sampling;
    format!(
        "{} held, one every {} on average; standard error of {whose} bytes {:.1}%",
        count(samples, "sample"),
        size(mean_bytes),
        100.0 * relative_error
    )
}

/// How the heaps of the processes whose bytes are outstanding were estimated, those of one kind and one distance of samples together.
fn by_heap(profile: &Profile) -> Vec<(&Heap, Sampling)> {
    let mut held: HashMap<(u32, &Heap), u64> = HashMap::new();
    for stack in &profile.stacks {
        let bytes = held.entry((stack.image, &stack.heap)).or_default();
        *bytes = bytes.saturating_add(stack.values.outstanding_bytes);
    }
    // Samples, variance, and bytes.
    let mut sums: BTreeMap<(&Heap, u64), (u64, f64, f64)> = BTreeMap::new();
    let has_ended = profile.has_ended();
    for process in profile.processes.iter().filter(|process| has_ended || process.ended.is_none()) {
        for seen in &process.heaps {
            let Some(sampling) = &seen.sampling else { continue };
            let bytes = held.get(&(process.image, &seen.heap)).copied().unwrap_or(0) as f64;
            let (samples, variance, sum) = sums.entry((&seen.heap, sampling.mean_bytes)).or_default();
            *samples = samples.saturating_add(sampling.samples);
            *variance += (sampling.relative_error * bytes).powi(2);
            *sum += bytes;
        }
    }
    let together = sums.into_iter().map(|((heap, mean_bytes), (samples, variance, sum))| {
        let relative_error = if sum > 0.0 { variance.sqrt() / sum } else { 0.0 };
        (heap, Sampling { mean_bytes, samples, relative_error })
    });
    together.collect()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::{
        profile::{End, Mode, SeenHeap, StackEntry},
        report::fixture,
    };

    fn lines(profile: &Profile) -> Vec<String> {
        let mut text = Vec::new();
        write(profile, &Index::new(profile), &mut text).unwrap();
        String::from_utf8(text).unwrap().lines().map(str::to_owned).collect()
    }

    #[test]
    fn samples_that_are_not_equally_far_apart_are_told_apart() {
        let sampling = |mean_bytes, samples, relative_error| Sampling { mean_bytes, samples, relative_error };
        let mut profile = fixture::profile();
        assert_eq!(lines(&profile), [""; 0]);
        profile.quality.sampling = Some(sampling(1 << 15, 160, 0.1));
        let native = SeenHeap { heap: Heap::Native, mode: Mode::Sampled, sampling: Some(sampling(1 << 15, 100, 0.25)) };
        let go = SeenHeap { heap: Heap::Go, mode: Mode::Sampled, sampling: Some(sampling(1 << 15, 60, 0.5)) };
        profile.processes[0].heaps = vec![native, go];
        let of_go = StackEntry { heap: Heap::Go, ..profile.stacks[0].clone() };
        profile.stacks.push(of_go);
        let one = "  sampling     160 samples held, one every 32.0 KiB on average; standard error of all bytes 10.0%";
        assert_eq!(lines(&profile), [one]);
        profile.processes[0].heaps[1].sampling = Some(sampling(1 << 10, 60, 0.5));
        let apart = [
            "  sampling     C heap: 100 samples held, one every 32.0 KiB on average; standard error of its bytes 25.0%",
            "  sampling     Go heap: 60 samples held, one every 1.00 KiB on average; standard error of its bytes 50.0%",
        ];
        assert_eq!(lines(&profile), apart);
        // What has ended is not shown beside what lives.
        let mut ended = profile.processes[0].clone();
        (ended.image, ended.ended) = (9, Some(End { after: Duration::ZERO, signal: None }));
        profile.processes.push(ended);
        assert_eq!(lines(&profile), apart);
    }
}
