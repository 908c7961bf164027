//! Folded stacks: `comm;root;...;leaf NUMBER`, one line per distinct stack, as inferno and flamegraph.pl read them.

use std::io::{self, Write};

use super::{merge::Merged, options::Options};
use crate::profile::Profile;

/// Writes the stacks that hold something, sorted by their names.
pub(super) fn write(profile: &Profile, options: &Options, out: &mut impl Write) -> io::Result<()> {
    let merged = Merged::new(profile, options, usize::MAX);
    for (stack, amount) in merged.stacks() {
        writeln!(out, "{} {amount}", merged.line(stack))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use inferno::flamegraph;

    use super::*;
    use crate::report::{By, Format, Value, fixture};

    fn folded(profile: &Profile, value: Value) -> String {
        fixture::rendered(Format::Folded, profile, &Options { value, ..fixture::OPTIONS })
    }

    #[test]
    fn golden() {
        fixture::check_golden("report_bytes.folded", &folded(&fixture::profile(), Value::Bytes));
        fixture::check_golden("report_count.folded", &folded(&fixture::profile(), Value::Count));
    }

    #[test]
    fn nothing_outstanding_is_no_line() {
        assert_eq!(folded(&fixture::nothing_outstanding(), Value::Bytes), "");
        assert_eq!(folded(&fixture::nothing_outstanding(), Value::Count), "");
    }

    #[test]
    fn numbers_add_up_to_the_totals() {
        for profile in [fixture::profile(), fixture::hostile()] {
            let sum = |value| -> u64 {
                let text = folded(&profile, value);
                text.lines().map(|line| line.rsplit_once(' ').unwrap().1.parse::<u64>().unwrap()).sum()
            };
            assert_eq!(sum(Value::Bytes), profile.totals().outstanding_bytes);
            assert_eq!(sum(Value::Count), profile.totals().outstanding_blocks);
        }
    }

    #[test]
    fn stacks_that_read_the_same_are_one_line_and_lines_are_sorted() {
        let mut profile = fixture::profile();
        let twin = profile.stacks[0].clone();
        profile.stacks.push(twin);
        profile.stacks.reverse();
        let text = folded(&profile, Value::Bytes);
        assert_eq!(
            text.lines().collect::<Vec<_>>(),
            [
                "leaky;libc.so.6+0x271c9;main;serve(int);accept_one 2097152",
                "leaky;libc.so.6+0x271c9;main;xmlNewNode 524288",
            ]
        );
    }

    #[test]
    fn roots_are_those_that_processes_are_put_together_by() {
        let profile = fixture::three_processes();
        let roots = |by| -> Vec<String> {
            let text = fixture::rendered(Format::Folded, &profile, &Options { by, ..fixture::OPTIONS });
            let root = |line: &str| line.split_once(";libc.so.6").unwrap().0.to_owned();
            let mut roots: Vec<String> = text.lines().map(root).collect();
            roots.dedup();
            roots
        };
        assert_eq!(roots(By::Program), ["leaky"]);
        assert_eq!(roots(By::Process), ["leaky (4711)", "leaky (5000)", "leaky (5001)"]);
        assert_eq!(
            roots(By::Cgroup),
            ["/docker/3f4a;leaky", "/system.slice/leaky.service;leaky", "[unknown cgroup];leaky"]
        );
        assert_eq!(
            roots(By::Container),
            ["[no container];leaky", "[unknown container];leaky", "web (docker 3f4a);leaky"]
        );
    }

    #[test]
    fn hostile_names_keep_to_their_line_and_element() {
        let profile = fixture::hostile();
        let text = folded(&profile, Value::Bytes);
        assert_eq!(text.lines().count(), 2);
        assert!(text.chars().all(|character| character == '\n' || !character.is_control()), "{text:?}");
        let mut elements: Vec<usize> = text.lines().map(|line| line.split(';').count()).collect();
        elements.sort_unstable();
        assert_eq!(elements, [2, 5]);
    }

    #[test]
    fn readers_take_every_line_as_it_was_meant() {
        let mut profile = fixture::profile();
        for (comm, function) in [
            ("# x", "f"),
            ("sh", "call 5"),
            ("sh", "call 5."),
            ("a 1", ""),
            ("sh", " f "),
            ("", "\u{a0}"),
            ("a", "x 1;2"),
        ] {
            profile.processes[0].comm = comm.to_owned();
            profile.stacks = vec![fixture::entry(&[&fixture::frame(function, "/m", None)], (7, 1), (7, 1), 0)];
            if function.is_empty() {
                profile.stacks[0].frames = Vec::new().into();
            }
            let text = folded(&profile, Value::Bytes);
            let mut options = flamegraph::Options::default();
            options.no_javascript = true;
            let mut svg = Vec::new();
            flamegraph::from_lines(&mut options, text.lines(), &mut svg).unwrap();
            let svg = String::from_utf8(svg).unwrap();
            assert!(svg.contains("all (7 samples, 100%)"), "{text} was read as {svg}");
            assert!(!svg.contains("%; "), "{text} was read as a difference");
        }
    }
}
