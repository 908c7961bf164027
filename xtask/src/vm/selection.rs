//! Which tests run in the guests, and why the others do not.

use std::collections::BTreeMap;

/// What is about kernels: what they take, the numbers, the stacks, how probes follow processes, and that no thread is harmed.
/// Of each kind the test that asks most: a trace takes ten seconds to begin there.
const CHOSEN: &[&str] = &[
    "kernels::",
    "exactness::family_on_jemalloc",
    "exactness::family_on_the_c_library_without_frame_pointers",
    "stacks::every_shape_",
    "stacks::code_without_rules_",
    "stacks::through_functions_whose_returns_another_",
    "processes::children_are_not_",
    "processes::code_that_is_dropped",
    "processes::exec_begins_anew",
    "processes::exec_by_another_thread",
    "processes::hundreds_of_mappings",
    "processes::libraries_that_take_turns_",
    "processes::the_first_thread_ends_with_",
    "returns::fibers_are_followed",
    "sampling::a_command_",
    "doctor::this_machine_",
    "privileges::enough_for_a_trace_",
];

/// Why the others are not among those.
const NOT_CHOSEN: &str = "little of it is about kernels, and emulation is slow; name them to run them there";

/// What cannot run there, by the beginning of its name.
const IMPOSSIBLE: &[(&str, &str)] = &[
    ("services::", "their servers are not in the guest"),
    ("harness::", "compiles, and there is no compiler in the guest"),
    ("launch::a_command_that_ends_while_it_is_loaded", "compiles, and there is no compiler in the guest"),
    ("refusals::a_32_bit_process", "compiles, and there is no compiler in the guest"),
    ("refusals::a_process_without_an_allocator", "compiles, and there is no compiler in the guest"),
];

/// What would not tell anything on kernels before 6.13, or fails there as it must.
const POINTLESS: &[(&str, &str)] = &[
    ("exactness::family_on_the_c_library_by_perf_events", "there all links are perf events"),
    ("processes::the_first_thread_ends", "it needs links that know a process by all its threads"),
];

/// The tests, divided.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Selection<'a> {
    pub(super) run: Vec<&'a str>,
    /// By reason.
    pub(super) left_out: BTreeMap<&'static str, Vec<&'a str>>,
}

impl<'a> Selection<'a> {
    /// Divides the tests that are named like one of `filters`; without filters, all tests.
    pub(super) fn new(tests: impl IntoIterator<Item = &'a str>, filters: &[&str]) -> Self {
        let mut selection = Self::default();
        for test in tests {
            if !filters.is_empty() && !filters.iter().any(|filter| test.contains(filter)) {
                continue;
            }
            match reason_against(test, !filters.is_empty()) {
                None => selection.run.push(test),
                Some(reason) => selection.left_out.entry(reason).or_default().push(test),
            }
        }
        selection
    }
}

fn reason_against(test: &str, is_asked_for: bool) -> Option<&'static str> {
    if let Some((_, reason)) = IMPOSSIBLE.iter().find(|(name, _)| test.starts_with(name)) {
        return Some(reason);
    }
    if is_asked_for {
        return None;
    }
    if let Some((_, reason)) = POINTLESS.iter().find(|(name, _)| test == *name) {
        return Some(reason);
    }
    let is_chosen = CHOSEN.iter().any(|name| test.starts_with(name));
    (!is_chosen).then_some(NOT_CHOSEN)
}

/// Names of tests in what the test harness lists.
pub(super) fn names(listing: &str) -> impl Iterator<Item = &str> {
    listing.lines().filter_map(|line| line.strip_suffix(": test"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const TESTS: [&str; 4] = ["kernels::a", "formats::b", "services::c", "stacks::every_shape_d"];

    #[test]
    fn what_is_about_kernels_runs() {
        let selection = Selection::new(TESTS, &[]);
        assert_eq!(selection.run, ["kernels::a", "stacks::every_shape_d"]);
        let left_out: Vec<_> = selection.left_out.into_values().collect();
        assert_eq!(left_out, [["formats::b"], ["services::c"]]);
    }

    #[test]
    fn what_is_asked_for_runs_if_it_can() {
        let selection = Selection::new(TESTS, &["formats", "::c"]);
        assert_eq!(selection.run, ["formats::b"]);
        assert_eq!(selection.left_out.into_values().collect::<Vec<_>>(), [["services::c"]]);
    }

    #[test]
    fn the_harness_lists_names() {
        assert_eq!(names("a::b: test\nc: benchmark\n\n1 test, 1 benchmark\n").collect::<Vec<_>>(), ["a::b"]);
    }
}
