//! The goroutines of a process in memory that is the input, over and over, and with tables that are the input.

use std::collections::HashSet;

use tracer::{
    golang::{Pclntab, Runtime, read_goroutines},
    process::memory::Span,
};

use crate::{
    input::take,
    memory::{LAYOUTS, Memory},
};

/// Most goroutines: more take longer and do nothing else.
const MOST: u8 = 32;
/// Most addresses of a stack.
const MOST_CALLS: usize = 256;
/// Parts that are read of one goroutine each time that it is tried: its descriptor twice, its stack, what it waits on.
const MOST_READS: usize = 4096;

/// The input is the version, the number of goroutines, when and where memory changes, its holes, where the variables are, how
/// long the tables are, these, and memory.
pub fn run(data: &[u8]) {
    let ([version, count, when, low, high, holes, variables, length, longer], rest) = take(data);
    let (tables, bytes) = rest.split_at(usize::from(u16::from_le_bytes([length, longer])).min(rest.len()));
    let Some(tables) = Pclntab::parse(tables.to_vec()) else { return };
    if bytes.is_empty() {
        return;
    }
    let variables = 8 * u64::from(variables);
    let layout = LAYOUTS[usize::from(version % 2)].clone();
    let runtime = Runtime::made_up(layout, tables, variables).expect("a runtime");
    let memory = Memory::new(bytes, when, [low, high], holes);
    let count = u64::from(count % MOST);
    let read = |spans: &[Span], buffer: &mut [u8]| {
        let readable = memory.read(spans, buffer)?;
        if let [Span { addr, len: 8 }] = spans
            && *addr == variables
        {
            buffer.copy_from_slice(&count.to_le_bytes());
        }
        Ok(readable)
    };
    let found = match read_goroutines(&runtime, &read, &|| {}) {
        Ok(found) => found,
        // An error is an answer.
        Err(error) => return assert!(!error.to_string().is_empty()),
    };
    let grouped: u64 = found.groups.iter().map(|group| group.count).sum();
    assert!(grouped + found.system + found.unreadable <= count);
    assert!(found.running + found.too_many <= grouped);
    assert!(found.groups.iter().all(|group| group.count > 0 && group.calls.len() <= MOST_CALLS));
    assert!(found.groups.is_sorted_by(|a, b| a.count >= b.count));
    assert_eq!(found.groups.iter().map(|group| group.key()).collect::<HashSet<_>>().len(), found.groups.len());
    assert!(memory.reads() <= (1 + count as usize) * MOST_READS, "more is read than there is");
}
