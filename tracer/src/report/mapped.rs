//! Memory that programs have mapped themselves, for people: a few lines in the header, and the stacks that have mapped most.

use std::io::{self, Write};

use super::{
    escape::shorten,
    frames::{self, LONGEST_NAME},
    index::Index,
    name,
    numbers::{count, duration, exact_size, number, share, size},
};
use crate::profile::{MappedStack, Profile};

/// The part of all memory, as 1 of so many, that a stack is shown for.
const WORTH_A_LINE: u64 = 100;

/// Writes how much there is of it, above the stacks.
pub(super) fn write_summary(profile: &Profile, out: &mut impl Write) -> io::Result<()> {
    let Some(mappings) = &profile.mappings else { return Ok(()) };
    let (own, resident) = mappings.totals(false);
    if own.mapped_bytes == 0 && own.reserved_bytes == 0 {
        return Ok(());
    }
    let resident = resident.map_or_else(|| "how much of it is resident is not known".to_owned(), in_memory);
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
        others.push(format!("{} more only reserved", size(own.reserved_bytes)));
    }
    if allocators.bytes > 0 {
        others.push(format!("{} by allocators, for what they are asked for", size(allocators.bytes)));
    }
    if others.is_empty() { Ok(()) } else { writeln!(out, "               {}", others.join("; ")) }
}

fn in_memory(bytes: u64) -> String {
    format!("{} of it resident", size(bytes))
}

/// Writes the stacks that have mapped most, at most `top`.
pub(super) fn write_stacks(profile: &Profile, index: &Index<'_>, top: usize, out: &mut impl Write) -> io::Result<()> {
    let Some(mappings) = &profile.mappings else { return Ok(()) };
    let (totals, _) = mappings.totals(false);
    let held: Vec<&MappedStack> = mappings.own().filter(|stack| stack.values.bytes > 0).collect();
    if held.is_empty() {
        return Ok(());
    }
    writeln!(out, "\nMapped by the program itself (mmap), no part of the heap above:")?;
    let memory = held.iter().map(|stack| stack.memory()).fold(0, u64::saturating_add);
    let many = held.iter().take_while(|stack| stack.memory() >= memory / WORTH_A_LINE).count();
    let (shown, rest) = held.split_at(top.min(many));
    for (place, stack) in shown.iter().enumerate() {
        let bytes = stack.values.bytes;
        let resident = stack.resident.map_or_else(String::new, |bytes| format!(", {}", in_memory(bytes)));
        let part = share(bytes, totals.bytes);
        let ranges = count(stack.values.ranges, "range");
        writeln!(out, "\nM{}  {} in {ranges}, {part} of all mapped bytes{resident}", place + 1, exact_size(bytes))?;
        write_stack(profile, index, stack, out)?;
    }
    if !rest.is_empty() {
        let bytes = rest.iter().map(|stack| stack.values.bytes).fold(0, u64::saturating_add);
        let more = if shown.is_empty() { "" } else { "more " };
        let stacks = count(rest.len() as u64, &format!("{more}mapping stack"));
        writeln!(out, "\n{stacks} not shown, with {}", exact_size(bytes))?;
    }
    Ok(())
}

fn write_stack(profile: &Profile, index: &Index<'_>, stack: &MappedStack, out: &mut impl Write) -> io::Result<()> {
    if profile.processes.len() != 1 {
        let process = index.of_image(stack.image);
        writeln!(out, "    process {} (pid {})", shorten(name::process(process, stack.pid), LONGEST_NAME), stack.pid)?;
    }
    let oldest = stack.oldest.map_or_else(|| "unknown".to_owned(), duration);
    writeln!(out, "    {}, oldest {oldest}", stack.kind.words())?;
    let values = &stack.values;
    let calls = number(values.mapped_ranges);
    writeln!(out, "    mapped {} by {calls} calls in total", exact_size(values.mapped_bytes))?;
    if values.reserved_bytes > 0 {
        writeln!(out, "    {} more only reserved", exact_size(values.reserved_bytes))?;
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
