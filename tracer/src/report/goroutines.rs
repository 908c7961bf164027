//! Goroutines as text, for people in a terminal: a header, then the largest groups, leaf first.

use std::{
    borrow::Cow,
    cmp::Reverse,
    io::{self, Write},
};

use jiff::Timestamp;

use super::{
    escape::{shorten, visible},
    frames::{self, LONGEST_NAME},
    head,
    index::Index,
    name, numbers,
    options::Options,
    words,
};
use crate::profile::{Frame, GoroutineGroup, Profile};

/// Packages of the runtime itself, and those whose functions others wait in.
const RUNTIME: [&str; 3] = ["runtime.", "runtime/internal/", "internal/runtime/"];
const WAITS: [&str; 2] = ["sync.", "internal/"];

/// Suspected leaks that the one line names.
const NAMED: usize = 2;
/// Most characters of a function's name in the one line.
const LONGEST_IN_LINE: usize = 100;

/// Writes the report.
pub(super) fn write(profile: &Profile, options: &Options, out: &mut impl Write) -> io::Result<()> {
    let read =
        Timestamp::try_from(profile.started).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
    let total = profile.goroutine_count();
    writeln!(out, "goroutine profile")?;
    let mut index = Index::new(profile);
    head::write_processes(profile, &index, options.by, out)?;
    writeln!(out, "  read         {read:.0}")?;
    head::write_modes(profile, out)?;
    let groups = numbers::count(profile.goroutines.len() as u64, "group");
    writeln!(out, "  goroutines   {} in {groups}", numbers::number(total))?;
    head::write_quality(&profile.quality, out)?;
    let (shown, rest) = profile.goroutines.split_at(options.top.min(profile.goroutines.len()));
    for (place, group) in shown.iter().enumerate() {
        let share = numbers::share(group.count, total);
        let suspected = if group.suspected_leak { ", suspected leak" } else { "" };
        writeln!(out, "\n#{}  {}, {share} of all{suspected}", place + 1, numbers::count(group.count, "goroutine"))?;
        write_group(profile, &mut index, group, out)?;
    }
    if !rest.is_empty() {
        let goroutines = rest.iter().map(|group| group.count).sum();
        let more = if shown.is_empty() { "group" } else { "more group" };
        let groups = numbers::count(rest.len() as u64, more);
        writeln!(out, "\n{groups} not shown, with {}", numbers::count(goroutines, "goroutine"))?;
    }
    Ok(())
}

/// Goroutines of a traced process, in one line: how many they are, and where they leak. `None` when there are none.
pub(super) fn summary(profile: &Profile) -> Option<String> {
    profile.first_goroutine_count()?;
    let total = profile.goroutine_count();
    let rate = match profile.goroutine_growth {
        Some(rate) if rate >= 0.05 => format!(" (+{}/s)", numbers::rate(rate)),
        Some(rate) if rate <= -0.05 => format!(" (-{}/s)", numbers::rate(-rate)),
        _ => String::new(),
    };
    let mut line = format!("{}{rate}", numbers::number(total));
    let suspected: Vec<&GoroutineGroup> = growing(profile).into_iter().filter(|group| group.suspected_leak).collect();
    for (index, group) in suspected.iter().take(NAMED).enumerate() {
        let lead = if index == 0 { ", suspected leak:" } else { "," };
        let place = group.frames.iter().rev().find(|frame| !is_of(frame, &[&RUNTIME[..], &WAITS].concat()));
        let place = place.or_else(|| group.frames.iter().next());
        let name = place.map_or(Cow::Borrowed("[no stack]"), |frame| shorten(name::frame(frame), LONGEST_IN_LINE));
        line.push_str(&format!("{lead} {} in {name}", numbers::number(group.count)));
    }
    if suspected.len() > NAMED {
        line.push_str(&format!(" and {}", numbers::count((suspected.len() - NAMED) as u64, "more group")));
    }
    Some(line)
}

/// Writes the groups of a traced process that grow, suspected leaks first; nothing when it has no goroutines.
pub(super) fn write_growing(profile: &Profile, options: &Options, out: &mut impl Write) -> io::Result<()> {
    let Some(first) = profile.first_goroutine_count() else { return Ok(()) };
    let mut index = Index::new(profile);
    let growing = growing(profile);
    let suspected = growing.iter().filter(|group| group.suspected_leak).count();
    let leaks = match suspected {
        0 => "no suspected leak".to_owned(),
        _ => numbers::count(suspected as u64, "suspected leak"),
    };
    let (first, total) = (numbers::number(first), numbers::count(profile.goroutine_count(), "goroutine"));
    writeln!(out, "\n{total}, {first} at the first look: {leaks}")?;
    let (shown, rest) = growing.split_at(options.top.min(growing.len()));
    for group in shown {
        let (first, per_second) = group.growth.map_or((0, None), |growth| (growth.first, growth.per_second));
        let lead = if group.suspected_leak { "suspected leak" } else { "growing" };
        let count = numbers::count(group.count, "goroutine");
        let change = match first == group.count {
            true => format!("{count} all along"),
            false => format!("from {} to {count}", numbers::number(first)),
        };
        writeln!(out, "\n{lead}: {change}, {}", words::goroutine_growth(per_second))?;
        write_group(profile, &mut index, group, out)?;
    }
    if !rest.is_empty() {
        let more = if shown.is_empty() { "" } else { "more " };
        let verb = if rest.len() == 1 { "grows" } else { "grow" };
        writeln!(out, "\n{} that {verb} not shown", numbers::count(rest.len() as u64, &format!("{more}group")))?;
    }
    Ok(())
}

/// The groups that grow: suspected leaks first, then by growth.
fn growing(profile: &Profile) -> Vec<&GoroutineGroup> {
    let grows = |group: &&GoroutineGroup| {
        group.suspected_leak || group.growth.is_some_and(|growth| growth.only_grows) && group.count > 0
    };
    let mut growing: Vec<&GoroutineGroup> = profile.goroutines.iter().filter(grows).collect();
    let growth = |group: &GoroutineGroup| group.count.saturating_sub(group.growth.map_or(0, |growth| growth.first));
    growing.sort_by_key(|group| Reverse((group.suspected_leak, growth(group))));
    growing
}

fn write_group(
    profile: &Profile,
    index: &mut Index<'_>,
    group: &GoroutineGroup,
    out: &mut impl Write,
) -> io::Result<()> {
    if profile.processes.len() != 1 {
        let comm = shorten(name::process(index.of_pid(group.pid), group.pid), LONGEST_NAME);
        writeln!(out, "    process {comm} (pid {})", group.pid)?;
    }
    if let Some(library) = group.library.as_deref() {
        writeln!(out, "    of {}", words::file_name(library))?;
    }
    let reason = group.wait_reason.as_deref().map_or(Cow::Borrowed(group.state), visible);
    let mut reason = shorten(reason, LONGEST_NAME).into_owned();
    if group.state == "leaked" && group.wait_reason.is_some() {
        // As the runtime's own tracebacks have it.
        reason.push_str(" (leaked)");
    }
    if let Some(waits_on) = group.waits_on {
        let reason_of_runtime = group.wait_reason.as_deref().unwrap_or_default();
        reason.push_str(&format!(", {}", words::waits_on(waits_on, reason_of_runtime, group.count)));
    }
    if let Some(wait) = group.longest_wait {
        reason.push_str(&format!(", for up to {}", numbers::duration(wait)));
    }
    writeln!(out, "    {reason}")?;
    if let Some(reason) = group.truncated {
        writeln!(out, "    stack cut: {}", reason.words())?;
    }
    if let Some(creator) = &group.created_by {
        let name = shorten(name::frame(creator), LONGEST_NAME);
        let place = frames::place(creator).map_or_else(String::new, |place| format!("  {place}"));
        writeln!(out, "    created by {name}{place}")?;
    }
    let frames: Vec<&Frame> = group.frames.iter().rev().collect();
    if group.state == "running" {
        writeln!(out, "    stack not known; began with")?;
    }
    for frame in &frames[runtime_frames(&frames)..] {
        frames::write_frame(frame, out)?;
    }
    if frames.is_empty() {
        writeln!(out, "      [no stack]")?;
    }
    Ok(())
}

/// How many frames at the leaf are the runtime's own, which say no more than the reason does; none when all are.
fn runtime_frames(frames: &[&Frame]) -> usize {
    frames.iter().position(|frame| !is_of(frame, &RUNTIME)).unwrap_or(0)
}

/// Whether a frame's function is of one of these packages.
fn is_of(frame: &Frame, packages: &[&str]) -> bool {
    let name = frame.function.as_deref().unwrap_or_default();
    packages.iter().any(|package| name.starts_with(package))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        profile::quality::Truncation,
        report::{Format, fixture},
    };

    fn rendered(format: Format, profile: &Profile, top: usize) -> String {
        fixture::rendered(format, profile, &Options { top, ..fixture::OPTIONS })
    }

    #[test]
    fn golden() {
        let profile = fixture::goroutines();
        fixture::check_golden("goroutines.txt", &rendered(Format::Text, &profile, 10));
        fixture::check_golden("goroutines.folded", &rendered(Format::Folded, &profile, 10));
        fixture::check_golden("goroutines.svg", &rendered(Format::Svg, &profile, 10));
        fixture::check_golden("goroutines.json", &rendered(Format::Json, &profile, 10));
    }

    #[test]
    fn golden_of_a_process_that_leaks() {
        let profile = fixture::leaking_goroutines();
        fixture::check_golden("leaks.txt", &rendered(Format::Text, &profile, 2));
        let short = |profile: &Profile| {
            let mut out = Vec::new();
            crate::report::write_interval(profile, &fixture::OPTIONS, &mut out).unwrap();
            String::from_utf8(out).unwrap()
        };
        let text = short(&profile);
        let line = "\n  goroutines   13,107 (+204/s), suspected leak: 12,345 in main.next, 700 in main.next\n";
        assert!(text.contains(line) && !text.contains("\nsuspected leak"), "{text}");
        // Heaps without goroutines have no such line.
        assert!(!short(&fixture::profile()).contains("goroutine"));
        assert!(!rendered(Format::Text, &fixture::profile(), 10).contains("goroutine"));
    }

    #[test]
    fn stacks_that_are_cut_are_told() {
        let mut profile = fixture::leaking_goroutines();
        // The last one is gone.
        for index in [0, 5] {
            profile.goroutines[index].truncated = Some(Truncation::Depth);
        }
        assert!(profile.quality.complete());
        profile.count_cut_goroutines();
        assert_eq!((profile.quality.truncated_stacks(), profile.quality.complete()), (1, false));
        assert_eq!(profile.processes[0].quality.truncated_stacks, 1);
        let text = rendered(Format::Text, &profile, 10);
        for told in
            ["1 of the cut stacks of goroutines: more than 256 frames", "\n    stack cut: more than 256 frames\n"]
        {
            assert_eq!(text.matches(told).count(), 1, "{text}");
        }
        assert_eq!(rendered(Format::Json, &profile, 10).matches(r#""truncated":"depth""#).count(), 2);
    }

    #[test]
    fn the_line_of_an_interval_is_short() {
        let mut profile = fixture::leaking_goroutines();
        let leak = profile.goroutines[0].clone();
        profile.goroutines.extend([leak.clone(), GoroutineGroup { frames: Vec::new().into(), ..leak }]);
        assert!(summary(&profile).unwrap().ends_with(" and 2 more groups"), "{:?}", summary(&profile));
        profile.goroutines.truncate(1);
        profile.goroutine_growth = None;
        assert_eq!(summary(&profile).unwrap(), "12,345, suspected leak: 12,345 in main.next");
        // Who waits in a lock is named, not the lock.
        let lock = fixture::frame("sync.(*Mutex).Lock", "/srv/gateway", None);
        let frames = [&fixture::frame("main.serve", "/srv/gateway", None), &lock];
        profile.goroutines[0].frames = frames.iter().map(|&frame| std::sync::Arc::from([frame.clone()])).collect();
        assert!(summary(&profile).unwrap().ends_with("12,345 in main.serve"));
        profile.goroutines[0].suspected_leak = false;
        assert_eq!(summary(&profile).unwrap(), "12,345");
    }

    #[test]
    fn leaks_that_the_runtime_knows_are_named() {
        let mut profile = fixture::goroutines();
        (profile.goroutines[0].state, profile.goroutines[0].suspected_leak) = ("leaked", true);
        let text = rendered(Format::Text, &profile, 1);
        assert!(
            text.contains("100.0% of all, suspected leak\n    chan receive (leaked), on 12,345 different"),
            "{text}"
        );
    }

    #[test]
    fn what_is_not_shown_is_summed() {
        let text = rendered(Format::Text, &fixture::goroutines(), 1);
        assert!(text.ends_with("\n3 more groups not shown, with 4 goroutines\n"), "{text}");
        assert!(
            rendered(Format::Text, &fixture::goroutines(), 0).contains("\n4 groups not shown, with 12,349 goroutines")
        );
    }

    #[test]
    fn a_terminal_obeys_no_name() {
        let mut text = rendered(Format::Text, &fixture::hostile_goroutines(), 10);
        let mut leaking = fixture::hostile_goroutines();
        leaking.kind = crate::profile::Kind::Heap;
        for group in &mut leaking.goroutines {
            group.suspected_leak = true;
            group.growth = fixture::leaking_goroutines().goroutines[0].growth;
        }
        text.push_str(&rendered(Format::Text, &leaking, 10));
        let obeyed = |c: char| c.is_control() || matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
        assert_eq!(text.chars().find(|&c| c != '\n' && obeyed(c)), None);
        assert!(text.lines().all(|line| line.chars().count() < 1_000));
    }

    #[test]
    fn stacks_of_nothing_but_the_runtime_are_shown() {
        let mut profile = fixture::goroutines();
        let park = profile.goroutines[0].frames.iter().last().unwrap().clone();
        profile.goroutines[0].frames = vec![park].into();
        assert!(rendered(Format::Text, &profile, 1).contains("      runtime.gopark  runtime/proc.go:398\n"));
    }
}
