//! Amounts, times and quality in words, for the reports that people read.

use std::time::Duration;

use super::name;
use crate::{
    profile::{Heap, Kind, Mode, Profile},
    quality::Quality,
};

/// Bytes with three digits and a binary unit: `1.50 MiB`.
pub(super) fn size(bytes: u64) -> String {
    if bytes < 1024 {
        return count(bytes, "byte");
    }
    let mut value = bytes as f64;
    let mut unit = "bytes";
    for larger in ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"] {
        if value < 1023.5 {
            break;
        }
        value /= 1024.0;
        unit = larger;
    }
    let decimals = if value < 9.995 { 2 } else { usize::from(value < 99.95) };
    format!("{value:.decimals$} {unit}")
}

/// Bytes for people and to the byte: `1.50 MiB (1,572,864 bytes)`.
pub(super) fn exact_size(bytes: u64) -> String {
    if bytes < 1024 { size(bytes) } else { format!("{} ({})", size(bytes), count(bytes, "byte")) }
}

/// A number of things: `1 block`, `1,024 blocks`.
pub(super) fn count(number: u64, thing: &str) -> String {
    let plural = if number == 1 { "" } else { "s" };
    format!("{} {thing}{plural}", self::number(number))
}

/// A number with a comma after every three digits.
pub(super) fn number(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::with_capacity(digits.len() + digits.len() / 3);
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// A share in percent, 0 of nothing.
pub(super) fn share(part: u64, whole: u64) -> String {
    let percent = if whole == 0 { 0.0 } else { part as f64 * 100.0 / whole as f64 };
    format!("{percent:.1}%")
}

/// A time span: tenths of a second below a minute, whole seconds above.
pub(super) fn duration(span: Duration) -> String {
    let seconds = span.as_secs_f64();
    if seconds < 59.95 {
        return format!("{seconds:.1}s");
    }
    humantime::format_duration(Duration::from_secs(seconds.round() as u64)).to_string()
}

/// How fast held bytes grow; `bytes_per_second` as in [`StackEntry`](crate::profile::StackEntry).
pub(super) fn growth(bytes_per_second: Option<f64>) -> String {
    match bytes_per_second {
        Some(rate) if rate >= 0.5 => format!("growing {}/s", size(rate.round() as u64)),
        Some(rate) if rate <= -0.5 => format!("shrinking {}/s", size(-rate.round() as u64)),
        Some(rate) if rate.is_finite() => "steady".to_owned(),
        _ => "growth unknown".to_owned(),
    }
}

/// What a profile is about.
pub(super) fn kind(kind: Kind) -> &'static str {
    match kind {
        Kind::Heap => "heap",
        Kind::Goroutines => "goroutines",
    }
}

/// How the numbers came about, in one word and in a few.
pub(super) fn mode(mode: Mode) -> (&'static str, &'static str) {
    match mode {
        Mode::Exact => ("exact", "every allocation was recorded"),
        Mode::Sampled => ("sampled", "some allocations were recorded, the numbers are estimates"),
        Mode::GoBuckets => ("go-buckets", "the Go runtime's own heap profile, the numbers are its estimates"),
        Mode::Snapshot => ("snapshot", "read from memory while the process ran"),
    }
}

/// Where memory comes from.
pub(super) fn heap(heap: Heap) -> &'static str {
    match heap {
        Heap::Native => "C",
        Heap::Go => "Go",
    }
}

/// The processes, in one line: `leaky (pid 4711) and 2 more`.
pub(super) fn targets(profile: &Profile) -> String {
    match profile.targets.as_slice() {
        [] => "no process".to_owned(),
        [only] => format!("{} (pid {})", name::comm(&only.comm), only.pid),
        [first, more @ ..] => format!("{} (pid {}) and {} more", name::comm(&first.comm), first.pid, more.len()),
    }
}

/// Everything that is missing, most important first; empty when the profile is complete.
pub(super) fn missing(quality: &Quality) -> Vec<String> {
    let mut missing = Vec::new();
    let mut say = |number: u64, words: String| {
        if number > 0 {
            missing.push(words);
        }
    };
    let q = quality;
    say(q.lost_allocs, format!("{} lost (the ring buffer was full)", count(q.lost_allocs, "allocation")));
    say(q.lost_frees, format!("{} lost (the ring buffer was full)", count(q.lost_frees, "free")));
    say(q.uncertain_bytes, format!("{} uncertain (a lost free may have ended them)", exact_size(q.uncertain_bytes)));
    say(q.unresolved_samples, format!("{} whose address is not known", count(q.unresolved_samples, "sampled object")));
    say(q.undecided_samples, format!("{} that may have ended", count(q.undecided_samples, "sampled object")));
    say(
        q.missed_cycles,
        format!(
            "{} not looked at in full (objects that ended may still be shown)",
            count(q.missed_cycles, "garbage collection")
        ),
    );
    let truncated = q.truncated_stacks();
    say(truncated, format!("{} cut before the root of the thread", count(truncated, "stack")));
    missing.append(&mut missing_without_number(quality));
    missing
}

/// The part of [`missing`] that has no field of its own in the saved form.
pub(super) fn missing_without_number(quality: &Quality) -> Vec<String> {
    let q = quality;
    [
        (q.missed_frees, format!("{} missed (the address was handed out again)", count(q.missed_frees, "free"))),
        (q.unknown_stack_bytes, format!("{} held by stacks that are not known", exact_size(q.unknown_stack_bytes))),
        (q.untracked_calls, format!("{} into the allocator not followed", count(q.untracked_calls, "call"))),
        (q.unknown_records, format!("{} not understood (a bug in tracer)", count(q.unknown_records, "record"))),
    ]
    .into_iter()
    .filter(|(number, _)| *number > 0)
    .map(|(_, words)| words)
    .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::fixture;

    #[test]
    fn sizes_have_three_digits_and_the_right_unit() {
        for (bytes, text) in [
            (0, "0 bytes"),
            (1, "1 byte"),
            (1023, "1023 bytes"),
            (1024, "1.00 KiB"),
            (10_230, "9.99 KiB"),
            (10_239, "10.0 KiB"),
            (102_400, "100 KiB"),
            (1_048_575, "1.00 MiB"),
            (1_572_864, "1.50 MiB"),
            (u64::MAX, "16.0 EiB"),
        ] {
            assert_eq!(size(bytes).replace(',', ""), text);
        }
        assert_eq!(exact_size(1_572_864), "1.50 MiB (1,572,864 bytes)");
        assert_eq!(exact_size(512), "512 bytes");
    }

    #[test]
    fn numbers_are_grouped_and_counted() {
        assert_eq!(count(1, "block"), "1 block");
        assert_eq!(count(0, "block"), "0 blocks");
        assert_eq!(count(999, "block"), "999 blocks");
        assert_eq!(count(1_234_567, "block"), "1,234,567 blocks");
        assert_eq!(share(1, 3), "33.3%");
        assert_eq!(share(0, 0), "0.0%");
    }

    #[test]
    fn spans_and_rates_suit_their_size() {
        for (seconds, text) in
            [(0.04, "0.0s"), (55.24, "55.2s"), (59.96, "1m"), (63.4, "1m 3s"), (3_700.0, "1h 1m 40s")]
        {
            assert_eq!(duration(Duration::from_secs_f64(seconds)), text);
        }
        for (rate, text) in [
            (Some(17_920.0), "growing 17.5 KiB/s"),
            (Some(-2_048.4), "shrinking 2.00 KiB/s"),
            (Some(0.4), "steady"),
            (Some(f64::NAN), "growth unknown"),
            (None, "growth unknown"),
        ] {
            assert_eq!(growth(rate), text);
        }
    }

    #[test]
    fn each_way_of_being_incomplete_is_said() {
        assert_eq!(missing(&Quality { unmatched_frees: 9, ..Quality::default() }), Vec::<String>::new());
        let all = missing(&fixture::everything_missing());
        assert_eq!(
            all,
            [
                "1 allocation lost (the ring buffer was full)",
                "2 frees lost (the ring buffer was full)",
                "4.00 KiB (4,096 bytes) uncertain (a lost free may have ended them)",
                "5 stacks cut before the root of the thread",
                "3 frees missed (the address was handed out again)",
                "77 bytes held by stacks that are not known",
                "8 calls into the allocator not followed",
                "1 record not understood (a bug in tracer)",
            ]
        );
    }
}
