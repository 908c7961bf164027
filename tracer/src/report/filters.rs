//! What a profile leaves out because it was asked to, in words; and what is said where nothing is left.

use std::time::Duration;

use super::numbers::{count, exact_size, size};
use crate::profile::{Filters, Mode, Profile};

/// What a profile is confined to; `None` where it is not.
pub(super) fn confined(filters: &Filters) -> Option<String> {
    let age = (filters.min_age > Duration::ZERO).then(|| format!("blocks held for {}", age(filters)));
    let sizes = filters.leaves_out_sizes().then(|| format!("allocations{}", sizes(filters)));
    let both: Vec<String> = age.into_iter().chain(sizes).collect();
    (!both.is_empty()).then(|| format!("only {}", both.join(", only ")))
}

/// The sizes of what is recorded, to follow what has them; nothing where it is all.
pub(super) fn sizes(filters: &Filters) -> String {
    match filters.sizes {
        (0, u64::MAX) => String::new(),
        (least, u64::MAX) => format!(" of {} or more", size(least)),
        (0, most) => format!(" of at most {}", size(most)),
        (least, most) if least == most => format!(" of {}", size(least)),
        (least, most) => format!(" of {} to {}", size(least), size(most)),
    }
}

fn age(filters: &Filters) -> String {
    format!("{} or longer", humantime::format_duration(filters.min_age))
}

/// What is said where no stack holds anything that was asked for.
pub(super) fn nothing(profile: &Profile) -> String {
    let filters = &profile.filters;
    let mut heaps = profile.processes.iter().flat_map(|process| &process.heaps);
    let is_sampled = profile.quality.sampling.is_some() && !heaps.any(|heap| heap.mode == Mode::Exact);
    let what = if is_sampled { "no sampled block" } else { "nothing" };
    let (held, younger) = match filters.younger {
        _ if filters.min_age.is_zero() => ("is outstanding".to_owned(), String::new()),
        Some((bytes, blocks @ 1..)) => {
            let are = if blocks == 1 { "is" } else { "are" };
            let younger = format!("; {} in {} {are}", exact_size(bytes), count(blocks, "younger block"));
            (format!("was held for {}", age(filters)), younger)
        }
        Some(_) => (format!("was held for {}", age(filters)), String::new()),
        None => (format!("was held for {}", age(filters)), "; what is younger is not shown".to_owned()),
    };
    let rest = match profile.totals().allocated_blocks {
        0 => {
            let sizes = if filters.leaves_out_sizes() { " of that size" } else { "" };
            format!(": no allocation{sizes} was {}", if is_sampled { "sampled" } else { "seen" })
        }
        _ => younger,
    };
    format!("{what}{} {held}{rest}", sizes(filters))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{profile::quality::Sampling, report::fixture};

    #[test]
    fn nothing_is_said_of_what_was_asked_for_only() {
        let mut profile = fixture::nothing_outstanding();
        assert_eq!((nothing(&profile), confined(&profile.filters)), ("nothing is outstanding".to_owned(), None));
        profile.filters =
            Filters { min_age: Duration::from_secs(300), younger: Some((9 << 20, 300)), ..profile.filters };
        assert_eq!(
            nothing(&profile),
            "nothing was held for 5m or longer; 9.00 MiB (9,437,184 bytes) in 300 younger blocks are"
        );
        profile.filters.younger = None;
        assert_eq!(nothing(&profile), "nothing was held for 5m or longer; what is younger is not shown");
        profile.filters.sizes = (1 << 30, u64::MAX);
        let both = "only blocks held for 5m or longer, only allocations of 1.00 GiB or more";
        assert_eq!(confined(&profile.filters).as_deref(), Some(both));
        (profile.filters.min_age, profile.filters.younger) = (Duration::ZERO, None);
        assert_eq!(nothing(&profile), "nothing of 1.00 GiB or more is outstanding");
        profile.stacks.clear();
        assert_eq!(
            nothing(&profile),
            "nothing of 1.00 GiB or more is outstanding: no allocation of that size was seen"
        );
        profile.filters.sizes = (0, u64::MAX);
        profile.quality.sampling = Some(Sampling::default());
        assert_eq!(nothing(&profile), "nothing is outstanding: no allocation was seen", "there is an exact heap");
        profile.processes.iter_mut().flat_map(|process| &mut process.heaps).for_each(|heap| heap.mode = Mode::Sampled);
        assert_eq!(nothing(&profile), "no sampled block is outstanding: no allocation was sampled");
    }

    #[test]
    fn sizes_are_what_is_recorded() {
        let of = |sizes| super::sizes(&Filters { sizes, ..Filters::default() });
        assert_eq!(of((0, 4096)), " of at most 4.00 KiB");
        assert_eq!(of((64, 4096)), " of 64 bytes to 4.00 KiB");
        assert_eq!((of((64, 64)), of((0, u64::MAX))), (" of 64 bytes".to_owned(), String::new()));
    }
}
