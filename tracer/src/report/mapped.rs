//! Memory that programs have mapped themselves, for people: a few lines in the header, and the stacks that have mapped most.

use std::{
    cmp::Reverse,
    collections::BTreeSet,
    io::{self, Write},
};

use hashbrown::HashMap;

use super::{
    frames,
    groups::Key,
    index::{Index, Program},
    numbers::{self, count, duration, exact_size, share, size},
    options::By,
    stacks,
};
use crate::profile::{Frames, MappedKind, MappedStack, MappedValues, Mappings, Profile};

/// The part of all memory, as 1 of so many, that a stack is shown for.
const WORTH_A_LINE: u64 = 100;

/// Writes how much there is of it, above the stacks.
pub(super) fn write_summary(profile: &Profile, out: &mut impl Write) -> io::Result<()> {
    let Some(mappings) = &profile.mappings else { return Ok(()) };
    let (own, resident) = mappings.totals(false);
    if own.mapped_bytes == 0 && own.reserved_bytes == 0 {
        return Ok(());
    }
    let resident = resident.map(|bytes| in_memory(bytes, &own));
    let resident = resident.unwrap_or_else(|| "how much of it is resident is not known".to_owned());
    let ranges = count(own.ranges, "range");
    let ended = if profile.has_ended() { ", not unmapped by its end" } else { "" };
    writeln!(
        out,
        "  mapped       {} in {ranges} by the program itself, beside its heap{ended}; {resident}",
        exact_size(own.bytes)
    )?;
    let (allocators, _) = mappings.totals(true);
    let mut others = Vec::new();
    if own.reserved_bytes > 0 {
        others.push(reserved(&own, size));
    }
    if allocators.bytes > 0 {
        others.push(format!("{} by allocators, for what they are asked for", size(allocators.bytes)));
    }
    if others.is_empty() { Ok(()) } else { writeln!(out, "               {}", others.join("; ")) }
}

/// What is resident of what may be used.
fn in_memory(bytes: u64, values: &MappedValues) -> String {
    format!("{} of it resident", size(bytes.saturating_sub(values.reserved_resident_bytes)))
}

fn reserved(values: &MappedValues, size: fn(u64) -> String) -> String {
    let words = format!("{} more only reserved", size(values.reserved_bytes));
    match values.reserved_resident_bytes {
        0 => words,
        resident => format!("{words}, {} of that resident", numbers::size(resident)),
    }
}

/// Equal stacks of some processes.
struct Merged<'a> {
    /// What they have mapped together; the process is the one whose stack came first.
    stack: MappedStack,
    program: Option<Program<'a>>,
    group: Key<'a>,
    /// Those that have something of it.
    images: BTreeSet<u32>,
}

/// The stacks that have mapped something that is there, merged where they are equal and so are programs and groups of the processes; those
/// first that have most in memory.
fn merged<'a>(profile: &'a Profile, index: &Index<'a>, by: By) -> Vec<Merged<'a>> {
    let all = profile.mappings.iter().flat_map(Mappings::own);
    let held = all.filter(|stack| stack.values.bytes > 0 || stack.values.reserved_resident_bytes > 0);
    let mut places: HashMap<(Key<'a>, Option<Program<'a>>, MappedKind, &Frames), usize> = HashMap::new();
    let mut merged: Vec<Merged<'a>> = Vec::new();
    for stack in held {
        let process = index.of_image(stack.image);
        let program = process.map(|process| index.program(process));
        let group = process.map_or(Key::Process(stack.image), |process| Key::of(process, index, by));
        let next = merged.len();
        let place = *places.entry((group, program, stack.kind, &stack.frames)).or_insert(next);
        if place == next {
            let images = [stack.image].into();
            merged.push(Merged { stack: stack.clone(), program, group, images });
            continue;
        }
        let Merged { stack: sum, images, .. } = &mut merged[place];
        images.insert(stack.image);
        sum.values += stack.values;
        sum.resident = sum.resident.zip(stack.resident).map(|(sum, bytes)| sum.saturating_add(bytes));
        sum.oldest = sum.oldest.max(stack.oldest);
    }
    // Of equal ones those stay first that came first.
    merged.sort_by_key(|merged| Reverse(merged.stack.memory()));
    merged
}

/// Writes the stacks that have mapped most, at most `top`.
pub(super) fn write_stacks<'a>(
    profile: &'a Profile,
    index: &Index<'a>,
    (top, by): (usize, By),
    out: &mut impl Write,
) -> io::Result<()> {
    let Some(mappings) = &profile.mappings else { return Ok(()) };
    let (totals, _) = mappings.totals(false);
    let held = merged(profile, index, by);
    if held.is_empty() {
        return Ok(());
    }
    writeln!(out, "\nMapped by the program itself (mmap), no part of the heap above:")?;
    let memory = held.iter().map(|merged| merged.stack.memory()).fold(0, u64::saturating_add);
    let many = held.iter().take_while(|merged| merged.stack.memory() >= memory / WORTH_A_LINE).count();
    let (shown, rest) = held.split_at(top.min(many));
    for (place, merged) in shown.iter().enumerate() {
        let MappedStack { values, resident, .. } = &merged.stack;
        let resident = resident.map_or_else(String::new, |bytes| format!(", {}", in_memory(bytes, values)));
        let part = share(values.bytes, totals.bytes);
        let ranges = count(values.ranges, "range");
        let bytes = exact_size(values.bytes);
        writeln!(out, "\nM{}  {bytes} in {ranges}, {part} of all mapped bytes{resident}", place + 1)?;
        write_stack(profile, index, merged, out)?;
    }
    if !rest.is_empty() {
        let bytes = rest.iter().map(|merged| merged.stack.values.bytes).fold(0, u64::saturating_add);
        let more = if shown.is_empty() { "" } else { "more " };
        let stacks = count(rest.len() as u64, &format!("{more}mapping stack"));
        writeln!(out, "\n{stacks} not shown, with {}", exact_size(bytes))?;
    }
    Ok(())
}

fn write_stack(profile: &Profile, index: &Index<'_>, merged: &Merged<'_>, out: &mut impl Write) -> io::Result<()> {
    let Merged { stack, program, group, images } = merged;
    let (id, many) = ((stack.pid, stack.image), images.len() as u64);
    if let Some(whose) = stacks::whose((profile, index), id, many, program.as_ref(), group) {
        writeln!(out, "    {whose}")?;
    }
    let oldest = stack.oldest.map_or_else(|| "unknown".to_owned(), duration);
    writeln!(out, "    {}, oldest {oldest}", stack.kind.words())?;
    let values = &stack.values;
    let calls = count(values.mapped_ranges, "call");
    writeln!(out, "    mapped {} by {calls} in total", exact_size(values.mapped_bytes))?;
    if values.reserved_bytes > 0 {
        writeln!(out, "    {}", reserved(values, exact_size))?;
    }
    frames::write_stack(&stack.frames, out)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use crate::{
        profile::{End, MappedKind, MappedStack, MappedValues, Mappings, Profile},
        report::{Format, Value, fixture},
    };

    const MIB: u64 = 1 << 20;

    fn stack(function: &str, mib: u64, resident: Option<u64>, by_allocator: bool) -> MappedStack {
        MappedStack {
            pid: 4711,
            image: 4711,
            kind: MappedKind::Anonymous,
            by_allocator,
            frames: fixture::entry(&[&fixture::frame(function, "/usr/bin/leaky", None)], (0, 0), (0, 0), 0).frames,
            values: MappedValues {
                bytes: mib * MIB,
                ranges: 2,
                reserved_bytes: MIB,
                reserved_resident_bytes: 0,
                mapped_bytes: 3 * mib * MIB,
                mapped_ranges: 5,
            },
            resident: resident.map(|mib| mib * MIB),
            oldest: Some(Duration::from_secs(3)),
        }
    }

    fn profile() -> Profile {
        let stacks = vec![
            stack("fills", 64, Some(60), false),
            stack("touches", 900, Some(1), false),
            stack("malloc", 128, None, true),
        ];
        Profile { mappings: Some(Mappings { stacks }), ..fixture::profile() }
    }

    #[test]
    fn what_is_mapped_is_no_part_of_the_heap() {
        let (with, without) = (profile(), fixture::profile());
        assert_eq!(with.totals(), without.totals());
        for format in [Format::Folded, Format::Svg] {
            let of = |profile| fixture::rendered(format, profile, &fixture::OPTIONS);
            assert_eq!(of(&with), of(&without), "{format:?}");
        }
        let text = fixture::rendered(Format::Text, &with, &fixture::OPTIONS);
        let head = "  mapped       964 MiB (1,010,827,264 bytes) in 4 ranges by the program itself, beside its heap; 61.0 MiB of it \
                    resident\n               2.00 MiB more only reserved; 128 MiB by allocators, for what they are asked for\n";
        assert!(text.contains(head), "{text}");
        let first =
            "\nM1  64.0 MiB (67,108,864 bytes) in 2 ranges, 6.6% of all mapped bytes, 60.0 MiB of it resident\n";
        assert!(text.contains(first) && text.contains("\nM2  900 MiB") && !text.contains("malloc\n"), "{text}");
        assert!(text.contains("    mapped 192 MiB (201,326,592 bytes) by 5 calls in total\n"), "{text}");
        let mut ended = profile();
        let end = End { after: Duration::ZERO, signal: None };
        ended.processes.iter_mut().for_each(|process| process.ended = Some(end));
        let ended = fixture::rendered(Format::Text, &ended, &fixture::OPTIONS);
        assert!(ended.contains(", beside its heap, not unmapped by its end; 61.0 MiB"), "{ended}");
        let plain = fixture::rendered(Format::Text, &without, &fixture::OPTIONS);
        let rest: String = text.split_once("\n\nMapped by").unwrap().0.replace(head, "");
        assert_eq!(rest.trim_end(), plain.trim_end(), "nothing else differs");
    }

    #[test]
    fn equal_stacks_of_equal_programs_are_one() {
        let mut profile = fixture::three_processes();
        let images: Vec<u32> = profile.processes.iter().map(|process| process.image).collect();
        let of = |image: u32, mib| MappedStack { image, pid: image, ..stack("fills", mib, Some(mib), false) };
        let mut stacks: Vec<MappedStack> = images.iter().map(|image| of(*image, 10)).collect();
        stacks.push(MappedStack { kind: MappedKind::Shared, ..of(images[0], 10) });
        profile.mappings = Some(Mappings { stacks });
        let text = fixture::rendered(Format::Text, &profile, &fixture::OPTIONS);
        let shown: Vec<&str> =
            text.split("\nM").filter(|part| part.starts_with(|c: char| c.is_ascii_digit())).collect();
        // Two processes are of one program.
        assert_eq!(shown.len(), 3, "{text}");
        assert!(
            shown[0].starts_with("1  20.0 MiB (20,971,520 bytes) in 4 ranges, 50.0% of all mapped bytes, 20.0 MiB"),
            "{text}"
        );
        assert!(shown[0].contains("\n    2 processes of "), "{text}");
        assert!(shown[0].contains("\n    mapped 60.0 MiB (62,914,560 bytes) by 10 calls in total\n"), "{text}");
        let apart = crate::report::Options { by: crate::report::By::Process, ..fixture::OPTIONS };
        let text = fixture::rendered(Format::Text, &profile, &apart);
        assert!(text.contains("\nM4  ") && !text.contains("\nM5  "), "{text}");
    }

    #[test]
    fn memory_that_may_not_be_used_any_more_has_an_owner() {
        let mut closed = stack("closes", 0, Some(100), false);
        closed.values = MappedValues {
            reserved_bytes: 100 * MIB,
            reserved_resident_bytes: 100 * MIB,
            mapped_bytes: MIB,
            mapped_ranges: 1,
            ..MappedValues::default()
        };
        let profile = Profile { mappings: Some(Mappings { stacks: vec![closed] }), ..fixture::profile() };
        let text = fixture::rendered(Format::Text, &profile, &fixture::OPTIONS);
        for line in [
            "0 bytes of it resident\n               100 MiB more only reserved, 100 MiB of that resident\n",
            "\nM1  0 bytes in 0 ranges, 0.0% of all mapped bytes, 0 bytes of it resident\n",
            "\n    mapped 1.00 MiB (1,048,576 bytes) by 1 call in total\n",
            "\n    100 MiB (104,857,600 bytes) more only reserved, 100 MiB of that resident\n",
        ] {
            assert!(text.contains(line), "{line}: {text}");
        }
    }

    #[test]
    fn what_is_mapped_is_drawn_when_it_is_asked_for() {
        let options = crate::report::Options { value: Value::Mapped, ..fixture::OPTIONS };
        let folded = fixture::rendered(Format::Folded, &profile(), &options);
        assert_eq!(folded, format!("leaky;fills {}\nleaky;touches {}\n", 64 * MIB, 900 * MIB));
        let svg = fixture::rendered(Format::Svg, &profile(), &options);
        assert!(svg.contains("964 MiB (1,010,827,264 bytes) mapped in 4 ranges"), "{svg}");
        let none = Profile { mappings: Some(Mappings::default()), ..fixture::profile() };
        let nothing = fixture::rendered(Format::Svg, &none, &options);
        assert!(nothing.contains("nothing is mapped by the program itself"), "{nothing}");
        let unknown = fixture::rendered(Format::Svg, &fixture::profile(), &options);
        assert!(unknown.contains("what the program maps itself was not recorded"), "{unknown}");
        assert!(!unknown.contains("0 bytes mapped"), "{unknown}");
    }
}
