//! Memory that programs have mapped themselves, for people: a few lines in the header, and the stacks that have mapped most.

use std::io::{self, Write};

use super::{
    escape::shorten,
    frames::{self, LONGEST_NAME},
    index::Index,
    name,
    numbers::{count, duration, exact_size, number, share, size},
};
use crate::profile::{MappedStack, Mappings, Profile};

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
    writeln!(
        out,
        "  mapped       {} in {ranges} by the program itself, beside its heap; {resident}",
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
    let held: Vec<&MappedStack> = own(mappings).filter(|stack| stack.values.bytes > 0).collect();
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

fn own(mappings: &Mappings) -> impl Iterator<Item = &MappedStack> {
    mappings.stacks.iter().filter(|stack| !stack.by_allocator)
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
