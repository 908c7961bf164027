//! The list of all goroutines of a process, and how much memory their stacks are.

use crate::{
    golang::{ReadMemory, Runtime, Unreadable, bytes::u64_at, executable::GOROUTINES, layout::G},
    process::memory::Span,
};

/// Most goroutines: each takes at least 2 KiB of the process's memory.
const MAX_GOROUTINES: u64 = 1 << 24;
/// Times that the list is read until it is not moved meanwhile.
const LIST_ROUNDS: usize = 16;
/// Descriptors that are looked at together.
const BATCH: usize = 4096;
/// Largest stack of a goroutine, bytes: twice what the runtime allows them (`maxstacksize`), for whoever sets another limit.
const MAX_STACK: u64 = 2 << 30;

/// Bytes of the stacks of all goroutines, those included that ended ones have left for the next: memory that the runtime takes from
/// where its heap is, and that no allocation is made for.
///
/// # Errors
/// Memory cannot be read, or is not what it should be.
pub fn stack_bytes(runtime: &Runtime, memory: &ReadMemory<'_>) -> Result<u64, Unreadable> {
    bytes_of(&list(runtime, memory)?, &runtime.executable.layout.g, memory)
}

/// Of those whose descriptors are at these addresses. What cannot be a stack counts nothing.
fn bytes_of(descriptors: &[u64], g: &G, memory: &ReadMemory<'_>) -> Result<u64, Unreadable> {
    let (low, high) = g.stack;
    let (first, len) = (low.min(high), low.abs_diff(high) + 8);
    let mut sum: u64 = 0;
    for batch in descriptors.chunks(BATCH) {
        let spans: Vec<Span> = batch.iter().map(|addr| Span { addr: addr.wrapping_add(first as u64), len }).collect();
        let mut bytes = vec![0; len * spans.len()];
        let readable = memory(&spans, &mut bytes)?;
        for (stack, _) in bytes.chunks_exact(len).zip(readable).filter(|(_, readable)| *readable) {
            let end = |at: usize| u64_at(stack, at - first).unwrap_or(0);
            let size = end(high).saturating_sub(end(low));
            sum = sum.saturating_add(if size <= MAX_STACK { size } else { 0 });
        }
    }
    Ok(sum)
}

/// Addresses of all descriptors. The runtime stores the list before its length, and never shortens it, so the length is
/// read first.
pub(super) fn list(runtime: &Runtime, memory: &ReadMemory<'_>) -> Result<Vec<u64>, Unreadable> {
    let [length, list] = GOROUTINES;
    let (length, list) = (runtime.variable(length)?, runtime.variable(list)?);
    for _ in 0..LIST_ROUNDS {
        let (Some(count), Some(begin)) = (word(memory, length)?, word(memory, list)?) else {
            return Err(Unreadable::Nonsense("the variables of its list are not mapped"));
        };
        if count == 0 {
            return Err(Unreadable::Nonsense("the list is empty"));
        }
        if count > MAX_GOROUTINES || !begin.is_multiple_of(8) {
            return Err(Unreadable::Nonsense("its length is not a number of goroutines"));
        }
        let mut bytes = vec![0; 8 * count as usize];
        let readable = memory(&[Span { addr: begin, len: bytes.len() }], &mut bytes)?;
        // A list that grows is copied, and the old one may become something else.
        if readable == [true] && word(memory, list)? == Some(begin) {
            return Ok(bytes.chunks_exact(8).filter_map(|word| u64_at(word, 0)).collect());
        }
    }
    Err(Unreadable::Nonsense("the list cannot be read"))
}

fn word(memory: &ReadMemory<'_>, addr: u64) -> Result<Option<u64>, Unreadable> {
    let mut bytes = [0; 8];
    let readable = memory(&[Span { addr, len: 8 }], &mut bytes)?;
    Ok((readable == [true]).then_some(u64::from_le_bytes(bytes)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::golang::known_layout;

    #[test]
    fn stacks_of_all_goroutines_are_added_up_and_what_is_none_is_not() {
        let g = known_layout(27).unwrap().g;
        let descriptors = [0x1000, 0x2000, 0x3000, 0x4000, 0x5000];
        // One that has ended has none, one cannot be read, and one is no descriptor.
        let stacks = [(0xc000_0000, 0xc000_2000), (0xc010_0000, 0xc018_0000), (0, 0), (1, 1), (0x10, u64::MAX)];
        let memory = |spans: &[Span], buffer: &mut [u8]| {
            let mut rest = buffer;
            let mut readable = Vec::new();
            for span in spans {
                let (into, behind) = rest.split_at_mut(span.len);
                rest = behind;
                let which = descriptors.iter().position(|addr| *addr == span.addr & !0xfff).unwrap();
                let inside = (span.addr & 0xfff) as usize;
                let (low, high) = stacks[which];
                into[g.stack.0 - inside..][..8].copy_from_slice(&u64::to_le_bytes(low));
                into[g.stack.1 - inside..][..8].copy_from_slice(&u64::to_le_bytes(high));
                readable.push(which != 3);
            }
            Ok(readable)
        };
        assert_eq!(bytes_of(&descriptors, &g, &memory).unwrap(), 0x8_2000);
        assert_eq!(bytes_of(&[], &g, &memory).unwrap(), 0);
    }
}
