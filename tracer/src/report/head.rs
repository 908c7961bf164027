//! What stands above the stacks in a text report, and in the comments of pprof's: processes, modes, memory, quality.
//!
//! However many processes there are, it takes a bounded number of lines, and says how much it leaves out.

use std::{
    borrow::Cow,
    cmp::Reverse,
    io::{self, Write},
};

use hashbrown::HashMap;

use super::{
    escape::{shorten, visible},
    filters,
    frames::LONGEST_NAME,
    groups::{self, Group, MemorySum},
    index::Index,
    name,
    numbers::{count, number, size},
    options::By,
    words,
};
use crate::profile::{
    Process, Profile, Values,
    quality::{Collections, Quality},
};

/// Processes that are listed one by one, and groups of them. More are summed up.
pub const LISTED: usize = 8;

/// Writes which processes there are, and what those hold that have something in common.
pub(super) fn write_processes(profile: &Profile, index: &Index<'_>, by: By, out: &mut impl Write) -> io::Result<()> {
    if profile.processes.len() > LISTED || matches!(by, By::Cgroup | By::Container) {
        return write_groups(profile, index, by, out);
    }
    for process in &profile.processes {
        let comm = shorten(name::comm(&process.comm), LONGEST_NAME);
        let exe = shorten(visible(&process.exe), LONGEST_NAME);
        let told = format!("{comm} (pid {}) {exe}", process.pid);
        let ended = process.ended.map(words::end).unwrap_or_default();
        writeln!(out, "  process      {}{ended}", told.trim_end())?;
    }
    Ok(())
}

fn write_groups(profile: &Profile, index: &Index<'_>, by: By, out: &mut impl Write) -> io::Result<()> {
    let groups = groups::groups(profile, index, by);
    let ended = groups.iter().map(|group| group.ended).sum::<u64>();
    let total = profile.process_count();
    let what = match by {
        By::Program => format!("{} of {}", number(total), count(groups.len() as u64, "program")),
        By::Process => number(total),
        By::Cgroup | By::Container => format!("{} in {}", number(total), count(groups.len() as u64, by.name())),
    };
    writeln!(out, "  processes    {what}: {} alive, {} ended", number(total - ended), number(ended))?;
    let (listed, rest) = groups.split_at(groups.len().min(LISTED));
    for group in listed {
        write_group(group, index, out)?;
    }
    if !rest.is_empty() {
        let mut values = Values::default();
        rest.iter().for_each(|group| values += group.values);
        let live: u64 = rest.iter().map(|group| group.live).sum();
        let ended: u64 = rest.iter().map(|group| group.ended).sum();
        let processes = format!("{} alive, {} ended", number(live), number(ended));
        let more = match by {
            By::Process => format!("more processes ({processes})"),
            _ => format!("{} ({processes})", more(rest.len(), by.name())),
        };
        let at_end = rest.iter().map(|group| group.at_end.0).fold(0, u64::saturating_add);
        let at_end =
            if at_end > 0 { format!("; ended ones held {} at their end", size(at_end)) } else { String::new() };
        writeln!(out, "               - and {more}: {}{at_end}", held(&values))?;
    }
    let mut elsewhere = profile.totals();
    for group in &groups {
        elsewhere.outstanding_bytes = elsewhere.outstanding_bytes.saturating_sub(group.values.outstanding_bytes);
        elsewhere.outstanding_blocks = elsewhere.outstanding_blocks.saturating_sub(group.values.outstanding_blocks);
    }
    if elsewhere.outstanding_blocks > 0 {
        writeln!(out, "               - of processes of which nothing is known: {}", held(&elsewhere))?;
    }
    Ok(())
}

fn write_group(group: &Group<'_>, index: &Index<'_>, out: &mut impl Write) -> io::Result<()> {
    let Group { key, first, programs, live, ended, values, at_end, memory, .. } = group;
    let program = match programs.first() {
        Some(only) if programs.len() == 1 => shorten(index.name_of(*only), LONGEST_NAME),
        _ => Cow::Owned(count(programs.len() as u64, "program")),
    };
    let exe = programs.first().map_or(Cow::Borrowed(""), |program| shorten(visible(program.exe()), LONGEST_NAME));
    let ended_ones = format!("ended processes of {program}: {}{}", number(*ended), held_at_end(*at_end));
    let is_one = live + ended == 1;
    // What they had went with them.
    let is_past = *live == 0 && values.outstanding_blocks == 0;
    let many = if *live > 0 { count(*live, "process") } else { format!("{}, ended", count(*ended, "process")) };
    let line = match key.place() {
        Some(place) => format!("{} ({many} of {program})", shorten(place, LONGEST_NAME)),
        None if is_one => {
            let state = first.ended.map(words::end).unwrap_or_default();
            format!("{} (pid {}) {exe}{state}", shorten(name::comm(&first.comm), LONGEST_NAME), first.pid)
        }
        None if is_past => return writeln!(out, "               - {ended_ones}"),
        None => format!("{program} ({many}) {exe}"),
    };
    writeln!(out, "               - {}", line.trim_end())?;
    if !is_past {
        writeln!(out, "                 {}", held(values))?;
    }
    if memory.processes + memory.unread > 0 {
        writeln!(out, "                 {}", words::memory_of_several(memory))?;
    }
    if *ended > 0 && (*live > 0 || at_end.1 > 0) {
        writeln!(out, "                 {ended_ones}")?;
    }
    Ok(())
}

/// What ended processes held, to follow what they are.
fn held_at_end((bytes, blocks): (u64, u64)) -> String {
    match blocks {
        0 => String::new(),
        _ => format!(", which held {} in {} at their end", size(bytes), count(blocks, "block")),
    }
}

fn held(values: &Values) -> String {
    format!("{} in {}", size(values.outstanding_bytes), count(values.outstanding_blocks, "block"))
}

fn more(many: usize, thing: &str) -> String {
    count(many as u64, &format!("more {thing}"))
}

/// How the memory of each process grew, and what that may be which is not explained. Of many, all together, and those of which
/// most is not explained.
pub(super) fn write_memory(profile: &Profile, out: &mut impl Write) -> io::Result<()> {
    let mut told: Vec<&Process> = profile.processes.iter().collect();
    if told.len() > LISTED {
        let mut sum = MemorySum::default();
        told.iter().for_each(|process| sum.add(process));
        if sum.processes + sum.unread > 0 {
            let of = count(sum.processes, "process");
            writeln!(out, "  memory       of {of}: {}", words::memory_of_several(&sum))?;
        }
        let fresh = |process: &&Process| process.memory.as_ref().map_or(0, |memory| memory.fresh);
        told.retain(|process| fresh(process) > 0);
        told.sort_by_key(|process| Reverse(process.memory.as_ref().map(|memory| (memory.unexplained, memory.fresh))));
        let rest = told.split_off(told.len().min(LISTED));
        write_memory_of(profile, &told, out)?;
        if !rest.is_empty() {
            let fresh = rest.iter().map(fresh).fold(0, u64::saturating_add);
            let more = more(rest.len(), "process");
            writeln!(out, "               - of {more}: {} of new memory", size(fresh))?;
        }
        return Ok(());
    }
    write_memory_of(profile, &told, out)
}

fn write_memory_of(profile: &Profile, told: &[&Process], out: &mut impl Write) -> io::Result<()> {
    for process in told {
        let Some(memory) = &process.memory else { continue };
        let of = match profile.processes.len() {
            1 => String::new(),
            2..=LISTED => format!("of {}: ", process.pid),
            _ if process.count > 1 => {
                let comm = shorten(name::comm(&process.comm), LONGEST_NAME);
                format!(
                    "of those of {} ended processes of {comm} of which it is not explained: ",
                    number(process.count)
                )
            }
            _ => format!("of {} (pid {}): ", shorten(name::comm(&process.comm), LONGEST_NAME), process.pid),
        };
        writeln!(out, "  memory       {of}{}", words::memory(memory))?;
        for reason in &memory.reasons {
            writeln!(out, "               - {}", shorten(Cow::Owned(words::reason(reason)), LONGEST_NAME))?;
        }
    }
    Ok(())
}

/// How the numbers came about.
pub(super) fn write_modes(profile: &Profile, out: &mut impl Write) -> io::Result<()> {
    for (index, mode) in words::modes(profile).iter().enumerate() {
        let key = if index == 0 { "mode" } else { "" };
        writeln!(out, "  {key:<12} {mode}")?;
    }
    match filters::confined(&profile.filters) {
        Some(words) => writeln!(out, "  filters      {words}"),
        None => Ok(()),
    }
}

/// How often the garbage collectors of Go heaps have come.
pub(super) fn write_collections(profile: &Profile, out: &mut impl Write) -> io::Result<()> {
    let all = &profile.quality.collections;
    let (listed, rest) = all.split_at(all.len().min(LISTED));
    for collections in listed {
        let of_process = all.len() > 1 && profile.processes.len() > 1;
        let process = Some(format!("process {}", collections.pid)).filter(|_| of_process);
        let library = collections.library.as_deref().map(words::file_name);
        let of: Vec<String> = process.into_iter().chain(library).collect();
        let of = if of.is_empty() { String::new() } else { format!(" ({})", of.join(", ")) };
        writeln!(out, "  collections  {}{of}", words::collections(collections))?;
    }
    if !rest.is_empty() {
        let sum = rest.iter().map(Collections::while_traced).fold(0, u64::saturating_add);
        let heaps = more(rest.len(), "Go heap");
        writeln!(out, "  collections  {} while traced ({heaps})", number(sum))?;
    }
    Ok(())
}

/// What is missing, and what the reader should know.
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
        let frees = count(quality.unmatched_frees, "free");
        writeln!(out, "  note         {frees} of blocks that are not known: from before, or outside the size filter")?;
    }
    if quality.inherited_frees > 0 {
        let frees = count(quality.inherited_frees, "free");
        writeln!(out, "  note         {frees} in forked processes of blocks that they had from their parents")?;
    }
    for note in notes(&quality.notes) {
        writeln!(out, "  note         {note}")?;
    }
    Ok(())
}

/// Notes as they are shown. Of many, those that differ only in their numbers are one, with how many they are.
fn notes(all: &[String]) -> Vec<String> {
    if all.len() <= LISTED {
        return all.iter().map(|note| shorten(visible(note), LONGEST_NAME).into_owned()).collect();
    }
    let mut places: HashMap<String, usize> = HashMap::new();
    let mut alike: Vec<(&String, usize)> = Vec::new();
    for note in all {
        let next = alike.len();
        let shape = note.chars().filter(|c| !c.is_ascii_digit()).collect();
        match *places.entry(shape).or_insert(next) {
            place if place == next => alike.push((note, 0)),
            place => alike[place].1 += 1,
        }
    }
    let (shown, rest) = alike.split_at(alike.len().min(2 * LISTED));
    let words = shown.iter().map(|(note, others)| match others {
        0 => shorten(visible(note), LONGEST_NAME).into_owned(),
        _ => format!("{} (and {} like it)", shorten(visible(note), LONGEST_NAME), more(*others, "note")),
    });
    let rest: usize = rest.iter().map(|(_, others)| 1 + others).sum();
    words.chain((rest > 0).then(|| format!("{} (JSON has all)", more(rest, "note")))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn notes_that_differ_in_numbers_only_are_one_where_there_are_many() {
        let note = |number: usize| format!("process {number} ended");
        let few: Vec<String> = (0..LISTED).map(note).collect();
        assert_eq!(notes(&few), few);
        let mut many: Vec<String> = (0..5_000).map(note).collect();
        many.push("another".to_owned());
        assert_eq!(notes(&many), ["process 0 ended (and 4,999 more notes like it)", "another"]);
        let different: Vec<String> = (0..100).map(|number| "x".repeat(number)).collect();
        assert_eq!(notes(&different).len(), 2 * LISTED + 1);
        assert_eq!(notes(&different).last().unwrap(), "84 more notes (JSON has all)");
    }
}
