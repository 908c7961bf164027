//! The consuming side: events per second on one core from recorded bytes to an updated heap, memory per live block and
//! per stack; and what a look at a million stacks takes of its time.
#![expect(clippy::print_stdout, reason = "figures are what a bench is for")]

use std::{
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use tracer::{
    event,
    files::module::{Location, Module},
    heap::{Heap, History, MAX_STACKS},
    space::address_space::Place,
    trails::{Site, Trails},
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
    view();
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
        take_in(&mut heap, &bytes[at..end]);
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
        take_in(&mut heap, &alloc(n, n % STACKS + 1));
        if n + 1 == next {
            let each = (resident() - before) as f64 / next as f64;
            println!("consumer: {each:.1} bytes per live block at {next} blocks");
            worst = if each > worst.0 { (each, next) } else { worst };
            next += 500_000;
        }
    }
    println!("consumer: at most {:.1} bytes per live block, at {} blocks (goal: <= 48)", worst.0, worst.1);
    // As many are live, and each is another one in the end.
    for n in BLOCKS..3 * BLOCKS {
        take_in(&mut heap, &alloc(n, n % STACKS + 1));
        let mut bytes = Vec::new();
        push(&mut bytes, kind::FREE, &[addr(n - BLOCKS)]);
        take_in(&mut heap, &bytes);
    }
    let each = (resident() - before) as f64 / BLOCKS as f64;
    println!("consumer: {each:.1} bytes per live block when all have come and gone twice (goal: <= 96)");
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
        take_in(&mut heap, &bytes);
    }
    assert_eq!(heap.stacks().len() as u64, COUNT);
    let each = (resident() - before) as f64 / COUNT as f64;
    println!("consumer: {each:.0} bytes per stack of {FRAMES} frames");
}

/// A million stacks of 20 places, four blocks each.
fn view() {
    const COUNT: u64 = 1 << 20;
    const ROUNDS: u64 = 3;
    let (mut heap, mut history, mut trails) = (Heap::new(MAX_STACKS), History::new(0), Trails::default());
    let module = Arc::new(Module::special("a program"));
    let place = |offset| Place::File(Location { module: Arc::clone(&module), offset });
    for id in 1..=COUNT {
        for block in 0..4 {
            take_in(&mut heap, &alloc(id * 4 + block, id));
        }
        let sites = (0..20).map(|at| Site { addr: 0, place: place(id >> at) });
        trails.keep(heap.stacks().find(id).unwrap_or_else(|| unreachable!("it has blocks")), sites.collect(), false);
    }
    heap.look(1 << 30, &mut history);
    // What goes on by these stacks, with and without somebody who looks.
    let goes_on = |heap: &mut Heap, from: u64| {
        let (start, mut longest) = (Instant::now(), Duration::ZERO);
        let mut last = start;
        for n in from..from + 2 * COUNT {
            take_in(heap, &alloc(n + 8 * COUNT, n.wrapping_mul(0x9e37_79b1) % COUNT + 1));
            if n % 10_000 == 0 {
                let now = Instant::now();
                longest = longest.max(now - last);
                last = now;
            }
        }
        (start.elapsed(), longest)
    };
    let (mut alone, mut takes) = ((Duration::ZERO, Duration::ZERO), Vec::new());
    for round in 0..ROUNDS {
        alone = goes_on(&mut heap, round * 2 * COUNT);
        heap.look(1 << 30, &mut history);
        let start = Instant::now();
        let all = (heap.view(), history.share(), trails.share());
        takes.push(start.elapsed());
        drop(all);
    }
    takes.sort_unstable();
    let mut view = heap.view();
    let (looked, beside) = thread::scope(|scope| {
        let looking = scope.spawn(move || {
            let start = Instant::now();
            (view.usage_at(|_| u64::MAX, 0).len() as u64, start.elapsed())
        });
        let beside = goes_on(&mut heap, ROUNDS * 2 * COUNT);
        (looking.join(), beside)
    });
    let (stacks, looked) = looked.unwrap_or((0, Duration::ZERO));
    assert_eq!(stacks, COUNT);
    let milliseconds = |time: Duration| time.as_secs_f64() * 1e3;
    let rate = |time: Duration| 2.0 * COUNT as f64 / time.as_secs_f64() / 1e6;
    println!(
        "consumer: a view of {COUNT} stacks takes {:.2} ms of the collector (goal: < 10), {:.0} ms to count of whoever looks",
        milliseconds(takes[takes.len() / 2]),
        milliseconds(looked),
    );
    println!(
        "consumer: {:.1} million events/s by as many stacks, 10,000 in {:.0} ms at most; from a view on {:.1}, in {:.0} ms",
        rate(alone.0),
        milliseconds(alone.1),
        rate(beside.0),
        milliseconds(beside.1),
    );
}

fn alloc(block: u64, stack: u64) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(40);
    push(&mut bytes, kind::ALLOC, &[addr(block), 64, stack, block * 1000]);
    bytes
}

fn take_in(heap: &mut Heap, record: &[u8]) {
    if let Ok((origin, event)) = event::parse(record) {
        heap.apply(origin, event);
    }
}

/// Resident memory of this process, bytes.
fn resident() -> u64 {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    let pages: u64 = statm.split_whitespace().nth(1).and_then(|pages| pages.parse().ok()).unwrap_or(0);
    pages * 4096
}
