//! Text, for people in a terminal of 100 columns: a header, then the stacks that hold most, leaf first.

use std::{
    cmp::Reverse,
    io::{self, Write},
};

use jiff::Timestamp;

use super::{
    filters, frames, goroutines, head,
    index::Index,
    mapped, numbers,
    options::Options,
    sampling,
    stacks::{self, Merged},
    words,
};
use crate::profile::{Profile, Values};

/// Writes the report.
pub(super) fn write(profile: &Profile, options: &Options, out: &mut impl Write) -> io::Result<()> {
    write_interval(profile, options, out)?;
    goroutines::write_growing(profile, options, out)
}

/// Writes the short report of a trace that goes on: of goroutines only what the header says.
pub(super) fn write_interval(profile: &Profile, options: &Options, out: &mut impl Write) -> io::Result<()> {
    let totals = profile.totals();
    let index = Index::new(profile);
    let ranked = ranked(profile, &index, options);
    write_header(profile, (&index, options), &totals, ranked.len(), out)?;
    head::write_quality(&profile.quality, out)?;
    if ranked.is_empty() {
        write_nothing(profile, out)?;
        return mapped::write_stacks(profile, &index, (options.top, options.by), out);
    }
    let (shown, rest) = ranked.split_at(options.top.min(ranked.len()));
    for (place, merged) in shown.iter().enumerate() {
        let total = options.value.of(&totals);
        let values = &merged.entry.values;
        let share = numbers::share(options.value.of(values), total);
        writeln!(out, "\n#{}  {}, {share} of all {}", place + 1, held(values), options.value.unit())?;
        write_stack(profile, &index, merged, out)?;
    }
    write_rest(rest, !shown.is_empty(), out)?;
    mapped::write_stacks(profile, &index, (options.top, options.by), out)
}

/// The stacks that hold blocks, most of the chosen value first.
fn ranked<'a>(profile: &'a Profile, index: &Index<'a>, options: &Options) -> Vec<Merged<'a>> {
    let mut ranked = stacks::merged(profile, index, options.by);
    ranked.retain(|merged| merged.entry.values.outstanding_blocks > 0);
    ranked
        .sort_by_key(|Merged { entry, .. }| Reverse((options.value.of(&entry.values), entry.values.outstanding_bytes)));
    ranked
}

fn write_header(
    profile: &Profile,
    (index, options): (&Index<'_>, &Options),
    totals: &Values,
    stacks: usize,
    out: &mut impl Write,
) -> io::Result<()> {
    let started =
        Timestamp::try_from(profile.started).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
    writeln!(out, "{} profile", words::kind(profile.kind))?;
    head::write_processes(profile, index, options.by, out)?;
    writeln!(out, "  traced       {} from {started:.0}", numbers::duration(profile.duration))?;
    head::write_modes(profile, out)?;
    sampling::write(profile, index, out)?;
    head::write_collections(profile, out)?;
    let ended = if profile.has_ended() { ", not freed by its end" } else { "" };
    writeln!(out, "  outstanding  {}, {}{ended}", held(totals), numbers::count(stacks as u64, "stack"))?;
    writeln!(out, "  allocated    {}", allocated(totals))?;
    writeln!(out, "  freed        {}", numbers::count(totals.freed_blocks, "block"))?;
    if let (bytes, blocks @ 1..) = profile.held_at_end() {
        let held = format!("{} in {}", numbers::exact_size(bytes), numbers::count(blocks, "block"));
        writeln!(out, "  ended        {held} were held by processes when they ended: not outstanding")?;
    }
    head::write_memory(profile, out)?;
    mapped::write_summary(profile, out)?;
    if let Some(cost) = &profile.cost {
        writeln!(out, "  cost         {}", words::cost(cost))?;
    }
    match goroutines::summary(profile) {
        Some(summary) => writeln!(out, "  goroutines   {summary}"),
        None => Ok(()),
    }
}

fn write_nothing(profile: &Profile, out: &mut impl Write) -> io::Result<()> {
    let words = filters::nothing(profile);
    let (first, rest) = words.split_at(1);
    writeln!(out, "\n{}{rest}.", first.to_uppercase())
}

fn write_stack(profile: &Profile, index: &Index<'_>, merged: &Merged<'_>, out: &mut impl Write) -> io::Result<()> {
    let Merged { entry, program, group, lives, .. } = merged;
    let id = (entry.pid, entry.image);
    if let Some(whose) = stacks::whose((profile, index), id, merged.holders(), program.as_ref(), group) {
        writeln!(out, "    {whose}")?;
    }
    if index.has_several_heaps {
        writeln!(out, "    {}", words::heap(&entry.heap))?;
    }
    let oldest = entry.oldest.map_or_else(|| "unknown".to_owned(), numbers::duration);
    let growth = if *lives { words::growth(entry.growth) } else { "not freed by its end".to_owned() };
    writeln!(out, "    oldest {oldest}, {growth}")?;
    if let Some(estimate) = &entry.estimate {
        let (samples, error) = (numbers::count(estimate.samples, "sample"), estimate.standard_error());
        let share = 100.0 * error / (entry.values.outstanding_bytes as f64).max(1.0);
        writeln!(out, "    estimated from {samples}, standard error {} ({share:.0}%)", numbers::size(error as u64))?;
    }
    writeln!(out, "    allocated {} in total", allocated(&entry.values))?;
    if entry.uncertain_bytes > 0 {
        writeln!(
            out,
            "    uncertain {} (a lost free may have ended them)",
            numbers::exact_size(entry.uncertain_bytes)
        )?;
    }
    frames::write_stack(&entry.frames, out)
}

fn write_rest(rest: &[Merged<'_>], after_others: bool, out: &mut impl Write) -> io::Result<()> {
    if rest.is_empty() {
        return Ok(());
    }
    let mut values = Values::default();
    for merged in rest {
        values += merged.entry.values;
    }
    let more = if after_others { "more " } else { "" };
    let stacks = numbers::count(rest.len() as u64, &format!("{more}stack"));
    writeln!(out, "\n{stacks} not shown, with {}", held(&values))
}

fn held(values: &Values) -> String {
    let blocks = numbers::count(values.outstanding_blocks, "block");
    format!("{} in {blocks}", numbers::exact_size(values.outstanding_bytes))
}

fn allocated(values: &Values) -> String {
    let blocks = numbers::count(values.allocated_blocks, "block");
    format!("{} in {blocks}", numbers::exact_size(values.allocated_bytes))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::{
        profile::{End, Estimate},
        report::{By, Format, Value, fixture, frames::COLUMNS},
    };

    fn text(profile: &Profile, top: usize, value: Value) -> String {
        fixture::rendered(Format::Text, profile, &Options { top, value, ..fixture::OPTIONS })
    }

    #[test]
    fn golden() {
        fixture::check_golden("report_bytes.txt", &text(&fixture::profile(), 10, Value::Bytes));
        fixture::check_golden("report_count.txt", &text(&fixture::profile(), 1, Value::Count));
        fixture::check_golden("report_nothing.txt", &text(&fixture::nothing_outstanding(), 10, Value::Bytes));
        fixture::check_golden("report_hostile.txt", &text(&fixture::hostile(), 10, Value::Bytes));
    }

    #[test]
    fn golden_of_a_crowd() {
        let crowd = fixture::crowd(5_000);
        for by in [By::Program, By::Process, By::Cgroup, By::Container] {
            let options = Options { top: 3, by, ..fixture::OPTIONS };
            let text = fixture::rendered(Format::Text, &crowd, &options);
            fixture::check_golden(&format!("crowd_{}.txt", by.name()), &text);
            assert!(text.lines().count() < 100, "{} lines: {text}", text.lines().count());
            let rest: u64 = text.lines().filter(|line| line.contains(" more")).count() as u64;
            assert!(rest > 0, "what is left out is said: {text}");
        }
    }

    /// What groups hold, as it is shown, and what is left out, are all.
    #[test]
    fn groups_add_up() {
        let crowd = fixture::crowd(997);
        let index = Index::new(&crowd);
        for by in [By::Program, By::Process, By::Cgroup, By::Container] {
            let groups = crate::report::groups::groups(&crowd, &index, by);
            let mut sum = Values::default();
            groups.iter().for_each(|group| sum += group.values);
            assert_eq!(sum, crowd.totals(), "{by:?}");
            let processes: u64 = groups.iter().map(|group| group.live + group.ended).sum();
            assert_eq!(processes, 997, "{by:?}");
        }
    }

    #[test]
    fn an_ordinary_report_fits_into_its_columns() {
        for line in text(&fixture::profile(), 10, Value::Bytes).lines() {
            assert!(line.chars().count() <= COLUMNS, "{line}");
        }
    }

    #[test]
    fn a_terminal_obeys_no_name() {
        let text = text(&fixture::hostile(), 10, Value::Bytes);
        let obeyed = |c: char| c.is_control() || matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
        assert_eq!(text.chars().find(|&c| c != '\n' && obeyed(c)), None);
        assert!(text.lines().all(|line| line.chars().count() < 2 * frames::LONGEST_NAME));
    }

    #[test]
    fn stacks_are_ranked_by_the_chosen_value_and_the_rest_is_summed() {
        let profile = fixture::profile();
        let amounts = |top, value| -> Vec<String> {
            let text = text(&profile, top, value);
            let amount = |line: &str| line.starts_with('#') || line.contains("not shown");
            text.lines().filter(|line| amount(line)).map(str::to_owned).collect()
        };
        assert_eq!(
            amounts(2, Value::Count),
            [
                "#1  1.00 MiB (1,048,576 bytes) in 1,024 blocks, 99.5% of all blocks",
                "#2  0 bytes in 3 blocks, 0.3% of all blocks",
                "1 more stack not shown, with 512 KiB (524,288 bytes) in 2 blocks",
            ]
        );
        assert_eq!(amounts(0, Value::Bytes), ["3 stacks not shown, with 1.50 MiB (1,572,864 bytes) in 1,029 blocks"]);
        assert_eq!(amounts(3, Value::Bytes).len(), 3, "none is left over, and the freed one holds nothing");
    }

    #[test]
    fn what_is_missing_is_said_in_the_header() {
        let mut profile = fixture::profile();
        profile.quality = fixture::everything_missing();
        profile.stacks[0].uncertain_bytes = 4_096;
        let text = text(&profile, 1, Value::Bytes);
        assert!(text.contains("  quality      INCOMPLETE\n               - no allocation of 1 process"), "{text}");
        for words in words::missing(&profile.quality) {
            assert!(text.contains(&format!("  - {words}\n")), "{words}: {text}");
        }
        assert!(text.contains("    uncertain 4.00 KiB (4,096 bytes)"), "{text}");
    }

    #[test]
    fn estimates_have_their_error() {
        let mut profile = fixture::profile();
        profile.stacks[0].estimate = Some(Estimate { samples: 1, variance: f64::from(1 << 30) * 128.0 });
        let text = text(&profile, 1, Value::Bytes);
        assert!(text.contains("    estimated from 1 sample, standard error 512 KiB (50%)\n"), "{text}");
    }

    #[test]
    fn what_ended_processes_held_is_not_outstanding_and_does_not_grow() {
        let mut profile = fixture::profile();
        profile.processes[0].ended = Some(End { after: Duration::from_secs(2), signal: Some(11) });
        let ended = text(&profile, 10, Value::Bytes);
        assert!(ended.contains("(pid 4711) /usr/bin/leaky, ended after 2.0s, by SIGSEGV\n"), "{ended}");
        assert!(ended.contains("3 stacks, not freed by its end\n") && !ended.contains("growing"), "{ended}");
        profile.processes.push(profile.processes[0].clone());
        profile.processes[1].ended = None;
        for stack in &mut profile.stacks {
            stack.at_end = Some((stack.values.outstanding_bytes, stack.values.outstanding_blocks));
            (stack.values.outstanding_bytes, stack.values.outstanding_blocks) = (0, 0);
        }
        let others = text(&profile, 10, Value::Bytes);
        let held = "  ended        1.50 MiB (1,572,864 bytes) in 1,029 blocks were held by processes when they ended";
        assert!(others.contains(held) && !others.contains("by its end"), "{others}");
    }

    #[test]
    fn nothing_seen_is_told_from_all_freed() {
        let mut profile = fixture::nothing_outstanding();
        assert!(text(&profile, 10, Value::Bytes).ends_with("\n\nNothing is outstanding.\n"));
        let filters = profile.filters;
        (profile.filters.min_age, profile.filters.younger) = (Duration::from_secs(300), Some((9 << 20, 300)));
        let old = text(&profile, 10, Value::Bytes);
        assert!(old.contains("\n  filters      only blocks held for 5m or longer\n"), "{old}");
        assert!(
            old.ends_with(
                "\n\nNothing was held for 5m or longer; 9.00 MiB (9,437,184 bytes) in 300 younger blocks are.\n"
            ),
            "{old}"
        );
        profile.filters = filters;
        profile.stacks.clear();
        assert!(text(&profile, 10, Value::Bytes).ends_with("\n\nNothing is outstanding: no allocation was seen.\n"));
    }

    #[test]
    fn a_long_frame_has_its_place_on_the_next_line() {
        let mut profile = fixture::profile();
        let long = "f".repeat(COLUMNS);
        let frame = fixture::frame(&long, "/m", Some(("a.c", 1)));
        profile.stacks = vec![fixture::entry(&[&frame], (1, 1), (1, 1), 0), fixture::entry(&[], (1, 1), (1, 1), 0)];
        let text = text(&profile, 10, Value::Bytes);
        assert!(text.contains(&format!("      {long}\n          a.c:1\n")), "{text}");
        assert!(text.ends_with("      [no stack]\n"), "{text}");
    }
}
