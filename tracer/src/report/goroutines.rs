//! Goroutines as text, for people in a terminal: a header, then the largest groups, leaf first.

use std::{
    borrow::Cow,
    io::{self, Write},
};

use jiff::Timestamp;

use super::{
    Options,
    escape::{shorten, visible},
    name, text, words,
};
use crate::profile::{Frame, GoroutineGroup, Profile};

/// Writes the report.
pub(super) fn write(profile: &Profile, options: &Options, out: &mut impl Write) -> io::Result<()> {
    let read =
        Timestamp::try_from(profile.started).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
    let (mode, meaning) = words::mode(profile.mode);
    let total = profile.goroutine_count();
    writeln!(out, "goroutine profile")?;
    text::write_targets(profile, out)?;
    writeln!(out, "  read         {read:.0}")?;
    writeln!(out, "  mode         {mode}: {meaning}")?;
    let groups = words::count(profile.goroutines.len() as u64, "group");
    writeln!(out, "  goroutines   {} in {groups}", words::number(total))?;
    text::write_quality(&profile.quality, out)?;
    let (shown, rest) = profile.goroutines.split_at(options.top.min(profile.goroutines.len()));
    for (index, group) in shown.iter().enumerate() {
        let share = words::share(group.count, total);
        writeln!(out, "\n#{}  {}, {share} of all", index + 1, words::count(group.count, "goroutine"))?;
        write_group(profile, group, out)?;
    }
    if !rest.is_empty() {
        let goroutines = rest.iter().map(|group| group.count).sum();
        let more = if shown.is_empty() { "group" } else { "more group" };
        let groups = words::count(rest.len() as u64, more);
        writeln!(out, "\n{groups} not shown, with {}", words::count(goroutines, "goroutine"))?;
    }
    Ok(())
}

fn write_group(profile: &Profile, group: &GoroutineGroup, out: &mut impl Write) -> io::Result<()> {
    if profile.targets.len() != 1 {
        let comm = shorten(name::process(profile, group.pid), text::LONGEST_NAME);
        writeln!(out, "    process {comm} (pid {})", group.pid)?;
    }
    let reason = group.wait_reason.as_deref().map_or(Cow::Borrowed(group.state), visible);
    let reason = shorten(reason, text::LONGEST_NAME);
    match group.longest_wait {
        Some(wait) => writeln!(out, "    {reason}, for up to {}", words::duration(wait))?,
        None => writeln!(out, "    {reason}")?,
    }
    if let Some(creator) = &group.created_by {
        let name = shorten(name::frame(creator), text::LONGEST_NAME);
        let place = text::place(creator).map_or_else(String::new, |place| format!("  {place}"));
        writeln!(out, "    created by {name}{place}")?;
    }
    let frames: Vec<&Frame> = group.frames.iter().rev().collect();
    if group.state == "running" {
        writeln!(out, "    stack not known; began with")?;
    }
    for frame in &frames[runtime_frames(&frames)..] {
        text::write_frame(frame, out)?;
    }
    if frames.is_empty() {
        writeln!(out, "      [no stack]")?;
    }
    Ok(())
}

/// How many frames at the leaf are the runtime's own, which say no more than the reason does; none when all are.
fn runtime_frames(frames: &[&Frame]) -> usize {
    let own = |frame: &&Frame| {
        let name = frame.function.as_deref().unwrap_or_default();
        !["runtime.", "runtime/internal/", "internal/runtime/"].iter().any(|own| name.starts_with(own))
    };
    frames.iter().position(own).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::{Format, fixture};

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
    fn what_is_not_shown_is_summed() {
        let text = rendered(Format::Text, &fixture::goroutines(), 1);
        assert!(text.ends_with("\n3 more groups not shown, with 4 goroutines\n"), "{text}");
        assert!(
            rendered(Format::Text, &fixture::goroutines(), 0).contains("\n4 groups not shown, with 12,349 goroutines")
        );
    }

    #[test]
    fn a_terminal_obeys_no_name() {
        let text = rendered(Format::Text, &fixture::hostile_goroutines(), 10);
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
