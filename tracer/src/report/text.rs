//! Text, for people in a terminal of 100 columns: a header, then the stacks that hold most, leaf first.

use std::{
    borrow::Cow,
    cmp::Reverse,
    io::{self, Write},
};

use jiff::Timestamp;

use super::{
    Options,
    escape::{shorten, visible},
    goroutines,
    groups::{self, Merged, Program},
    name, words,
};
use crate::{
    profile::{Frame, Profile, Target, Values},
    quality::{Quality, Sampling},
};

/// Most characters of one name or path.
pub(super) const LONGEST_NAME: usize = 400;

/// Processes that are listed one by one. More are summed up.
pub const LISTED: usize = 8;

/// Columns that a line with a frame and its place may take before the place moves to a line of its own.
const COLUMNS: usize = 100;

/// Writes the report.
pub(super) fn write(profile: &Profile, options: &Options, out: &mut impl Write) -> io::Result<()> {
    write_interval(profile, options, out)?;
    goroutines::write_growing(profile, options, out)
}

/// Writes the short report of a trace that goes on: of goroutines only what the header says.
pub(super) fn write_interval(profile: &Profile, options: &Options, out: &mut impl Write) -> io::Result<()> {
    let totals = profile.totals();
    let ranked = ranked(profile, options);
    write_header(profile, &totals, ranked.len(), out)?;
    write_quality(&profile.quality, out)?;
    if ranked.is_empty() {
        return write_nothing(&totals, out);
    }
    let (shown, rest) = ranked.split_at(options.top.min(ranked.len()));
    for (index, merged) in shown.iter().enumerate() {
        let total = options.value.of(&totals);
        let values = &merged.entry.values;
        let share = words::share(options.value.of(values), total);
        writeln!(out, "\n#{}  {}, {share} of all {}", index + 1, held(values), options.value.unit())?;
        write_stack(profile, merged, out)?;
    }
    write_rest(rest, !shown.is_empty(), out)
}

/// The stacks that hold blocks, most of the chosen value first.
fn ranked(profile: &Profile, options: &Options) -> Vec<Merged> {
    let mut ranked = groups::stacks(profile, options.by);
    ranked.retain(|merged| merged.entry.values.outstanding_blocks > 0);
    ranked
        .sort_by_key(|Merged { entry, .. }| Reverse((options.value.of(&entry.values), entry.values.outstanding_bytes)));
    ranked
}

fn write_header(profile: &Profile, totals: &Values, stacks: usize, out: &mut impl Write) -> io::Result<()> {
    let started =
        Timestamp::try_from(profile.started).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
    writeln!(out, "{} profile", words::kind(profile.kind))?;
    write_targets(profile, out)?;
    writeln!(out, "  traced       {} from {started:.0}", words::duration(profile.duration))?;
    write_modes(profile, out)?;
    if let Some(sampling) = &profile.quality.sampling {
        let Sampling { mean_bytes, samples, relative_error } = *sampling;
        let error = 100.0 * relative_error;
        let bytes = if profile.has_several_heaps() { "the Go heap's" } else { "all" };
        writeln!(
            out,
            "  sampling     {} held, one every {} on average; standard error of {bytes} bytes {error:.1}%",
            words::count(samples, "sample"),
            words::size(mean_bytes)
        )?;
    }
    for collections in &profile.quality.collections {
        let several = profile.quality.collections.len() > 1;
        let process = Some(format!("process {}", collections.pid)).filter(|_| several && profile.targets.len() > 1);
        let library = collections.library.as_deref().map(words::file_name);
        let of: Vec<String> = process.into_iter().chain(library).collect();
        let of = if of.is_empty() { String::new() } else { format!(" ({})", of.join(", ")) };
        writeln!(out, "  collections  {}{of}", words::collections(collections))?;
    }
    let ended = if profile.has_ended() { ", not freed by its end" } else { "" };
    writeln!(out, "  outstanding  {}, {}{ended}", held(totals), words::count(stacks as u64, "stack"))?;
    writeln!(out, "  allocated    {}", allocated(totals))?;
    writeln!(out, "  freed        {}", words::count(totals.freed_blocks, "block"))?;
    if let (bytes, blocks @ 1..) = profile.held_at_end() {
        let held = format!("{} in {}", words::exact_size(bytes), words::count(blocks, "block"));
        writeln!(out, "  ended        {held} were held by processes when they ended: not outstanding")?;
    }
    write_memory(profile, out)?;
    match goroutines::summary(profile) {
        Some(summary) => writeln!(out, "  goroutines   {summary}"),
        None => Ok(()),
    }
}

pub(super) fn write_targets(profile: &Profile, out: &mut impl Write) -> io::Result<()> {
    if profile.targets.len() > LISTED {
        return write_programs(profile, out);
    }
    for target in &profile.targets {
        let comm = shorten(name::comm(&target.comm), LONGEST_NAME);
        let exe = shorten(visible(&target.exe), LONGEST_NAME);
        let process = format!("{comm} (pid {}) {exe}", target.pid);
        let ended = target.ended.map(words::end).unwrap_or_default();
        writeln!(out, "  process      {}{ended}", process.trim_end())?;
    }
    Ok(())
}

/// The processes, by program.
fn write_programs(profile: &Profile, out: &mut impl Write) -> io::Result<()> {
    let programs = groups::programs(profile);
    let ended = profile.targets.iter().filter(|target| target.ended.is_some()).count();
    writeln!(
        out,
        "  processes    {} of {}, {ended} of them ended",
        profile.targets.len(),
        words::count(programs.len() as u64, "program")
    )?;
    for Program { first, processes, ended, held: (bytes, blocks) } in programs.iter().take(LISTED) {
        let comm = shorten(name::comm(&first.comm), LONGEST_NAME);
        let exe = shorten(visible(&first.exe), LONGEST_NAME);
        let many = match processes {
            1 => format!("pid {}", first.pid),
            _ => format!("{processes} processes, {ended} ended"),
        };
        let held = format!("{} in {}", words::size(*bytes), words::count(*blocks, "block"));
        writeln!(out, "               - {comm} ({many}) {exe}: {held}")?;
    }
    if programs.len() > LISTED {
        writeln!(out, "               - and {} more", words::count((programs.len() - LISTED) as u64, "program"))?;
    }
    Ok(())
}

/// How the memory of each process grew, and what that may be which is not explained. Of many, those are told that have grown most.
pub(super) fn write_memory(profile: &Profile, out: &mut impl Write) -> io::Result<()> {
    let mut told: Vec<&Target> = profile.targets.iter().collect();
    if told.len() > LISTED {
        told.sort_by_key(|target| Reverse(target.memory.as_ref().map(|memory| (memory.unexplained, memory.fresh))));
        told.truncate(LISTED);
        told.retain(|target| target.memory.as_ref().is_some_and(|memory| memory.fresh > 0));
    }
    for target in told {
        let Some(memory) = &target.memory else { continue };
        let of = if profile.targets.len() == 1 { String::new() } else { format!("of {}: ", target.pid) };
        writeln!(out, "  memory       {of}{}", words::memory(memory))?;
        for reason in &memory.reasons {
            writeln!(out, "               - {}", shorten(Cow::Owned(words::reason(reason)), LONGEST_NAME))?;
        }
    }
    Ok(())
}

pub(super) fn write_modes(profile: &Profile, out: &mut impl Write) -> io::Result<()> {
    for (index, mode) in words::modes(profile).iter().enumerate() {
        let key = if index == 0 { "mode" } else { "" };
        writeln!(out, "  {key:<12} {mode}")?;
    }
    Ok(())
}

pub(super) fn write_quality(quality: &Quality, out: &mut impl Write) -> io::Result<()> {
    let missing = words::missing(quality);
    if missing.is_empty() {
        writeln!(out, "  quality      complete")?;
    } else {
        writeln!(out, "  quality      INCOMPLETE")?;
    }
    for words in missing {
        writeln!(out, "               - {words}")?;
    }
    if quality.unmatched_frees > 0 {
        let frees = words::count(quality.unmatched_frees, "free");
        writeln!(out, "  note         {frees} of blocks that are not known: from before, or outside the size filter")?;
    }
    if quality.inherited_frees > 0 {
        let frees = words::count(quality.inherited_frees, "free");
        writeln!(out, "  note         {frees} in forked processes of blocks that they had from their parents")?;
    }
    for note in &quality.notes {
        writeln!(out, "  note         {}", shorten(visible(note), LONGEST_NAME))?;
    }
    Ok(())
}

fn write_nothing(totals: &Values, out: &mut impl Write) -> io::Result<()> {
    match totals.allocated_blocks {
        0 => writeln!(out, "\nNothing is outstanding: no allocation was seen."),
        _ => writeln!(out, "\nNothing is outstanding."),
    }
}

fn write_stack(profile: &Profile, Merged { entry, processes }: &Merged, out: &mut impl Write) -> io::Result<()> {
    if profile.targets.len() != 1 {
        let comm = shorten(name::process(profile, entry.pid), LONGEST_NAME);
        match processes.len() {
            0 | 1 => writeln!(out, "    process {comm} (pid {})", entry.pid)?,
            many => writeln!(out, "    {many} processes of {comm}")?,
        }
    }
    if profile.has_several_heaps() {
        writeln!(out, "    {}", words::heap(&entry.heap))?;
    }
    let oldest = entry.oldest.map_or_else(|| "unknown".to_owned(), words::duration);
    let is_over = |pid: &u32| profile.target(*pid).is_some_and(|target| target.ended.is_some());
    let growth =
        if processes.iter().all(is_over) { "not freed by its end".to_owned() } else { words::growth(entry.growth) };
    writeln!(out, "    oldest {oldest}, {growth}")?;
    writeln!(out, "    allocated {} in total", allocated(&entry.values))?;
    if entry.uncertain_bytes > 0 {
        writeln!(out, "    uncertain {} (a lost free may have ended them)", words::exact_size(entry.uncertain_bytes))?;
    }
    for frame in entry.frames.iter().rev() {
        write_frame(frame, out)?;
    }
    if entry.frames.iter().next().is_none() {
        writeln!(out, "      [no stack]")?;
    }
    Ok(())
}

pub(super) fn write_frame(frame: &Frame, out: &mut impl Write) -> io::Result<()> {
    let mut line = shorten(name::frame(frame), LONGEST_NAME).into_owned();
    if frame.inlined {
        line.push_str(" (inlined)");
    }
    let Some(place) = place(frame) else { return writeln!(out, "      {line}") };
    if 6 + line.chars().count() + 2 + place.chars().count() <= COLUMNS {
        writeln!(out, "      {line}  {place}")
    } else {
        writeln!(out, "      {line}\n          {place}")
    }
}

/// Where a frame's code is: `file:line`, else the module. `None` when the frame's name says it already.
pub(super) fn place(frame: &Frame) -> Option<String> {
    frame.function.as_ref()?;
    let short = |text| shorten(text, LONGEST_NAME);
    match (frame.file.as_deref(), frame.line) {
        (Some(file), Some(line)) => Some(format!("{}:{line}", short(visible(file)))),
        (Some(file), None) => Some(short(visible(file)).into_owned()),
        (None, _) => name::module(frame).map(|module| format!("[{}]", short(module))),
    }
}

fn write_rest(rest: &[Merged], after_others: bool, out: &mut impl Write) -> io::Result<()> {
    if rest.is_empty() {
        return Ok(());
    }
    let mut values = Values::default();
    for merged in rest {
        values += merged.entry.values;
    }
    let more = if after_others { "more " } else { "" };
    let stacks = words::count(rest.len() as u64, &format!("{more}stack"));
    writeln!(out, "\n{stacks} not shown, with {}", held(&values))
}

fn held(values: &Values) -> String {
    let blocks = words::count(values.outstanding_blocks, "block");
    format!("{} in {blocks}", words::exact_size(values.outstanding_bytes))
}

fn allocated(values: &Values) -> String {
    let blocks = words::count(values.allocated_blocks, "block");
    format!("{} in {blocks}", words::exact_size(values.allocated_bytes))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::{
        profile::End,
        report::{Format, Value, fixture},
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
        assert!(text.lines().all(|line| line.chars().count() < 2 * LONGEST_NAME));
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
    fn what_ended_processes_held_is_not_outstanding_and_does_not_grow() {
        let mut profile = fixture::profile();
        profile.targets[0].ended = Some(End { after: Duration::from_secs(2), signal: Some(11) });
        let ended = text(&profile, 10, Value::Bytes);
        assert!(ended.contains("(pid 4711) /usr/bin/leaky, ended after 2.0s, by SIGSEGV\n"), "{ended}");
        assert!(ended.contains("3 stacks, not freed by its end\n") && !ended.contains("growing"), "{ended}");
        profile.targets.push(profile.targets[0].clone());
        profile.targets[1].ended = None;
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
