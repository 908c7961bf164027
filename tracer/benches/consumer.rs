//! The consuming side: events per second on one core from recorded bytes to an updated heap, memory per live block and
//! per stack.
#![expect(clippy::print_stdout, reason = "figures are what a bench is for")]

use std::time::Instant;

use tracer::{
    event,
    heap::{Heap, MAX_STACKS},
};
use tracer_ebpf::{Header, kind};

const PID_TGID: u64 = 77 << 32 | 78;
/// Live blocks of the throughput measurement.
const LIVE: u64 = 100_000;
const EVENTS: u64 = 20_000_000;
const STACKS: u64 = 1000;
/// Largest number of live blocks of the memory measurement.
const BLOCKS: u64 = 4_000_000;

fn main() {
    throughput();
    memory_per_block();
    memory_per_stack();
}

fn push(bytes: &mut Vec<u8>, kind: u8, words: &[u64]) {
    bytes.extend(Header::new(kind, 0, 0, PID_TGID).0.to_ne_bytes());
    bytes.extend(words.iter().flat_map(|word| word.to_ne_bytes()));
}

/// Addresses as allocators give them: 16-byte steps, in an order that jumps about.
fn addr(n: u64) -> u64 {
    0x5555_0000_0000 + n.wrapping_mul(0x9e37_79b1) % (1 << 26) * 16
}

fn throughput() {
    // A window of live blocks moves along: each event pair allocates one and frees the oldest.
    let mut bytes = Vec::new();
    let mut lengths = Vec::new();
    for n in 0..EVENTS / 2 {
        let start = bytes.len();
        push(&mut bytes, kind::ALLOC, &[addr(n), n % 512, n % STACKS * 0x1234_5677 + 1, n * 1000]);
        lengths.push((bytes.len() - start) as u8);
        if n >= LIVE {
            push(&mut bytes, kind::FREE, &[addr(n - LIVE)]);
            lengths.push(16);
        }
    }
    let mut heap = Heap::new(MAX_STACKS);
    let start = Instant::now();
    let mut at = 0;
    for length in &lengths {
        let end = at + usize::from(*length);
        if let Ok((origin, event)) = event::parse(&bytes[at..end]) {
            heap.apply(origin, event);
        }
        at = end;
    }
    let rate = lengths.len() as f64 / start.elapsed().as_secs_f64();
    assert_eq!(heap.counters().events, lengths.len() as u64);
    assert_eq!(heap.counters().unmatched_frees + heap.counters().missed_frees, 0);
    println!("consumer: {:.1} million events/s on one core, {LIVE} blocks live (goal: >= 5)", rate / 1e6);
}

fn memory_per_block() {
    let mut heap = Heap::new(MAX_STACKS);
    let mut worst = (0.0, 0);
    let before = resident();
    let mut next = 500_000;
    for n in 0..BLOCKS {
        let mut bytes = Vec::with_capacity(40);
        push(&mut bytes, kind::ALLOC, &[addr(n), 64, n % STACKS + 1, n * 1000]);
        if let Ok((origin, event)) = event::parse(&bytes) {
            heap.apply(origin, event);
        }
        if n + 1 == next {
            let each = (resident() - before) as f64 / next as f64;
            println!("consumer: {each:.1} bytes per live block at {next} blocks");
            worst = if each > worst.0 { (each, next) } else { worst };
            next += 500_000;
        }
    }
    println!("consumer: at most {:.1} bytes per live block, at {} blocks (goal: <= 48)", worst.0, worst.1);
    drop(heap);
}

fn memory_per_stack() {
    const FRAMES: u64 = 30;
    const COUNT: u64 = 100_000;
    let mut heap = Heap::new(MAX_STACKS);
    let before = resident();
    for id in 1..=COUNT {
        let mut bytes = Vec::new();
        let mut words = vec![id, FRAMES];
        words.extend((0..FRAMES).map(|frame| id * 64 + frame));
        push(&mut bytes, kind::STACK, &words);
        if let Ok((origin, event)) = event::parse(&bytes) {
            heap.apply(origin, event);
        }
    }
    assert_eq!(heap.stacks().len() as u64, COUNT);
    let each = (resident() - before) as f64 / COUNT as f64;
    println!("consumer: {each:.0} bytes per stack of {FRAMES} frames");
}

/// Resident memory of this process, bytes.
fn resident() -> u64 {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    let pages: u64 = statm.split_whitespace().nth(1).and_then(|pages| pages.parse().ok()).unwrap_or(0);
    pages * 4096
}
