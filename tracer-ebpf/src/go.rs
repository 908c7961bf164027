//! Allocations of Go programs: some are sampled, and where each will be is read from the runtime's own structures, because
//! a return probe would crash a program that moves its stacks.
//!
//! Sampling is Poisson in bytes, per thread: a distance is drawn, sizes are taken off it, and the allocation that exhausts
//! it is sampled, with a fresh distance for the next. Allocation (`mallocgc` and what it is split into) takes the next free
//! object of its class's span in the thread's cache (`nextFreeFast`, `nextFreeIndex`), so its address is known at the entry.
//! When that span is full, or the object a large one, the sample waits for the span that the runtime gets
//! (`(*mcentral).cacheSpan`, `(*mcache).allocLarge`). When the goroutine must help the garbage collector first, it waits for
//! that.

use aya_ebpf::{
    EbpfContext as _,
    helpers::{
        bpf_get_current_pid_tgid, bpf_probe_read_user,
        generated::{bpf_get_attach_cookie, bpf_ktime_get_ns},
    },
    macros::map,
    maps::{HashMap, LruHashMap},
    programs::ProbeContext,
};
use tracer_ebpf::{
    Header,
    golang::{CLASSES, HEADER_FREE, MAX_SMALL, Runtime, Sample, TINY, cookie},
    kind, span,
};

use crate::{
    alloc,
    emit::{self, count_loss},
    registers, spacing, stack,
    thread::Thread,
    window,
};

/// Runtimes of traced processes, by tgid (upper half) and number.
#[map]
static GO_RUNTIMES: HashMap<u64, Runtime> = HashMap::with_max_entries(4096, 0);

/// Sampled objects whose address is not known yet, by goroutine.
#[map]
static WAITING: LruHashMap<u64, Pending> = LruHashMap::with_max_entries(1 << 14, 0);

/// A sampled object whose address is not known yet.
#[derive(Clone, Copy)]
struct Pending {
    /// Bytes asked for.
    size: u64,
    /// Bytes by which it was sampled.
    charge: u64,
    /// Id of its stack.
    stack: u64,
    /// Nanoseconds of CLOCK_MONOTONIC.
    time: u64,
    /// Twice its size class, which is 0 for large objects, and 1 for objects without pointers.
    class: u32,
    /// What it waits for.
    until: u32,
    /// Image of the process. What has been waited for is another sample's if this or what follows has changed meanwhile.
    image: u32,
    /// While it waits for a span: the thread, and what is left of its distance.
    thread: u32,
    left: u64,
    /// Bytes of the goroutine's stack that are in use.
    depth: u64,
}

/// What a [`Pending`] waits for: its goroutine to have helped the garbage collector, or a span.
const ASSISTED: u32 = 0;
const SPAN: u32 = 1;

/// Bits of the flags with which the check of the stack's end makes room for more of it, and begins the function anew.
const BELOW_OR_EQUAL: u64 = 1 | 1 << 6;
/// `g.stackguard0`, in all versions, and what is there when the goroutine is to leave its processor (`stackPreempt`).
const STACK_GUARD: u64 = 16;
const STACK_PREEMPT: u64 = -1314_i64 as u64;
/// `g.stack.hi`, the end of its stack, in all versions.
const STACK_END: u64 = 8;
/// Bytes of stack that the runtime takes from an allocation's entry to its help for the garbage collector: 450 at most; within
/// that help, where it may allocate itself, 680 at least.
const MAX_DEPTH: u64 = 512;
/// Words of a span's bits that are looked through for a free object: all that it can have.
const BIT_WORDS: u64 = 16;

/// Entry of a function that allocates: size in the first register, type in the second.
#[inline(always)]
pub(crate) fn allocate(ctx: &ProbeContext) {
    let registers = registers::go_registers(ctx.as_ptr());
    let size = registers.first;
    if size == 0 {
        return;
    }
    let pid_tgid = bpf_get_current_pid_tgid();
    let Some(thread) = alloc::current(ctx, pid_tgid) else { return };
    let charge = if size < TINY { TINY } else { size };
    // The thread's first: the distance begins right before it.
    let left = if thread.go_left == 0 { spacing::distance() } else { thread.go_left };
    if left > charge {
        thread.go_left = left - charge;
        return;
    }
    thread.go_left = spacing::distance();
    sample(ctx, thread, pid_tgid, charge);
}

/// What a probe was told when it was attached: its cookie.
#[inline(always)]
fn cookie(ctx: &ProbeContext) -> u64 {
    // SAFETY: the context is that of a uprobe.
    unsafe { bpf_get_attach_cookie(ctx.as_ptr()) }
}

/// The runtime that a probe lies in.
#[inline(always)]
fn runtime(ctx: &ProbeContext, pid_tgid: u64) -> Option<&'static Runtime> {
    let key = pid_tgid & !0xffff_ffff | cookie::number(cookie(ctx));
    // SAFETY: the pointer comes from a map lookup; user space replaces the value, it does not change it in place.
    GO_RUNTIMES.get_ptr(key).map(|runtime| unsafe { &*runtime })
}

/// Samples the allocation of `charge` bytes.
#[inline(always)]
fn sample(ctx: &ProbeContext, thread: &mut Thread, pid_tgid: u64, charge: u64) {
    let registers = registers::go_registers(ctx.as_ptr());
    let Some(runtime) = runtime(ctx, pid_tgid) else { return };
    if runtime.at_check != 0 && registers.flags & BELOW_OR_EQUAL != 0 {
        return;
    }
    let sp = registers::stack_pointer(ctx.as_ptr());
    window::read_window(thread, sp);
    let caller = window::word(&mut thread.walk, sp);
    // The caller's probe has counted it. That it took from the distance here does not matter: what is left of it is
    // distributed as before.
    if caller >= runtime.whole && caller < runtime.whole_end {
        return;
    }
    // Before anything that the rest depends on: the verifier would go through all of it once for each outcome.
    let stack = stack::capture(ctx, thread, pid_tgid, caller);
    sampled(ctx, thread, pid_tgid, charge, stack);
}

/// Follows a sample that comes from `stack`. Out of line: what this needs of the BPF stack, unwinding need not have.
#[inline(never)]
extern "C" fn sampled(ctx: &ProbeContext, thread: &mut Thread, pid_tgid: u64, charge: u64, stack: u64) {
    let registers = registers::go_registers(ctx.as_ptr());
    let size = registers.first;
    let sp = registers::stack_pointer(ctx.as_ptr());
    let Some(runtime) = runtime(ctx, pid_tgid) else { return };
    // SAFETY: no arguments.
    let time = unsafe { bpf_ktime_get_ns() };
    let pointers = registers.second != 0 && word(registers.second + 8) != 0;
    let class = small_class(runtime, size, pointers);
    let m = word(registers.g + u64::from(runtime.g_m));
    // The goroutine that the scheduler runs on helps nobody, and stays.
    let assists = runtime.assist != 0 && !runtime.assisted.contains(&registers.pc) && word(m) != registers.g;
    let must_assist = assists && must_assist(runtime, registers.g, size);
    // If it has to leave its processor before it has a small object, it gets that of another one, and nothing tells.
    if assists && !must_assist && class >> 1 != 0 && word(registers.g + STACK_GUARD) == STACK_PREEMPT {
        count_loss!(unresolved, 1);
        return;
    }
    let depth = word(registers.g + STACK_END).wrapping_sub(sp);
    let image = thread.target.image;
    let pending = Pending { size, charge, stack, time, class, until: ASSISTED, image, thread: 0, left: 0, depth };
    if must_assist && class >> 1 != 0 {
        wait(pid_tgid, registers.g, &pending);
    } else {
        place(thread, pid_tgid, runtime, registers.g, pending);
    }
}

/// Keeps a sample until its address can be known.
#[inline(always)]
fn wait(pid_tgid: u64, g: u64, pending: &Pending) {
    let key = goroutine(pid_tgid, g);
    // What it waited for has not come.
    if WAITING.get_ptr(key).is_some() {
        count_loss!(unresolved, 1);
    }
    if WAITING.insert(key, pending, 0).is_err() {
        count_loss!(unresolved, 1);
    }
}

/// Takes what the current goroutine waits with, if it is `until` that.
#[inline(always)]
fn waited<'a>(ctx: &ProbeContext, pid_tgid: u64, until: u32) -> Option<(&'a mut Thread, &'a Runtime, Pending)> {
    let key = goroutine(pid_tgid, registers::go_registers(ctx.as_ptr()).g);
    let pending = WAITING.get_ptr(key)?;
    // SAFETY: the pointer comes from a map lookup, and only this goroutine's thread uses its entry.
    let pending = unsafe { *pending };
    if pending.until != until {
        return None;
    }
    let thread = alloc::current(ctx, pid_tgid)?;
    if pending.image != thread.target.image {
        let _ = WAITING.remove(key);
        return None;
    }
    Some((thread, runtime(ctx, pid_tgid)?, pending))
}

/// Whether a goroutine must help the garbage collector before it gets an object.
#[inline(always)]
fn must_assist(runtime: &Runtime, g: u64, size: u64) -> bool {
    word(runtime.assist) as u32 != 0 && (word(g + u64::from(runtime.g_assist)).wrapping_sub(size)).cast_signed() < 0
}

/// A goroutine of a process, as a key. Descriptors lie below the ids, but for that of the first thread's scheduler.
#[inline(always)]
fn goroutine(pid_tgid: u64, g: u64) -> u64 {
    g ^ (pid_tgid >> 32) << 42
}

/// Where a goroutine goes on that has helped the garbage collector.
#[inline(always)]
pub(crate) fn after_assist(ctx: &ProbeContext) {
    let pid_tgid = bpf_get_current_pid_tgid();
    let Some((thread, runtime, pending)) = waited(ctx, pid_tgid, ASSISTED) else { return };
    let g = registers::go_registers(ctx.as_ptr()).g;
    let depth = word(g + STACK_END).wrapping_sub(registers::stack_pointer(ctx.as_ptr()));
    if depth > pending.depth + MAX_DEPTH {
        // Of an allocation within the help for the one that waits.
        return;
    }
    let _ = WAITING.remove(goroutine(pid_tgid, g));
    // Another allocation's help, for its own came to nothing; or it has to leave its processor in a part that is called next.
    if depth < pending.depth || runtime.whole != 0 && word(g + STACK_GUARD) == STACK_PREEMPT {
        count_loss!(unresolved, 1);
        return;
    }
    place(thread, pid_tgid, runtime, g, pending);
}

/// Finds out where a sampled object that is to be allocated now will be.
#[inline(always)]
fn place(thread: &mut Thread, pid_tgid: u64, runtime: &Runtime, g: u64, mut pending: Pending) {
    if pending.class >> 1 != 0 {
        let mcache = mcache(runtime, g);
        if pending.size < TINY && pending.class & 1 != 0 && fits_tiny(mcache, runtime, pending.size) {
            return;
        }
        let span = cached_span(mcache, runtime, pending.class);
        if let Some(addr) = next_free(span, runtime) {
            return send(thread, pid_tgid, span, runtime, addr, &pending);
        }
    }
    (pending.until, pending.thread, pending.left) = (SPAN, pid_tgid as u32, thread.go_left);
    wait(pid_tgid, g, &pending);
}

/// The cache that a goroutine allocates from.
#[inline(always)]
fn mcache(runtime: &Runtime, g: u64) -> u64 {
    let m = word(g + u64::from(runtime.g_m));
    let p = word(m + u64::from(runtime.m_p));
    word(p + u64::from(runtime.p_mcache))
}

/// The span of this class in it.
#[inline(always)]
fn cached_span(mcache: u64, runtime: &Runtime, class: u32) -> u64 {
    word(mcache + u64::from(runtime.mcache_alloc) + 8 * u64::from(class))
}

/// The span class of an object: twice its size class, and 1 if it has no pointers. 0 or 1 for large ones.
#[inline(always)]
fn small_class(runtime: &Runtime, size: u64, pointers: bool) -> u32 {
    let header = u64::from(runtime.header);
    let class = if size > MAX_SMALL - header {
        0
    } else if !pointers && size < TINY {
        class_of(TINY)
    } else if pointers && size > HEADER_FREE {
        class_of(size + header)
    } else {
        class_of(size)
    };
    u32::from(class) << 1 | u32::from(!pointers)
}

/// Behind a call that gives a span: a fresh one for small objects of its class, or all of a large object.
#[inline(always)]
pub(crate) fn new_span(ctx: &ProbeContext) {
    let pid_tgid = bpf_get_current_pid_tgid();
    let Some((thread, runtime, mut pending)) = waited(ctx, pid_tgid, SPAN) else { return };
    let registers = registers::go_registers(ctx.as_ptr());
    let span = match cookie::told(cookie(ctx)) {
        span::CACHED => cached_span(mcache(runtime, registers.g), runtime, pending.class),
        _ => registers.first,
    };
    let class = class_of_span(span, runtime);
    let small = pending.class >> 1 != 0;
    // Nothing else is allocated here until a small object is, unless that got its place elsewhere.
    if small && (pending.thread != pid_tgid as u32 || pending.left != thread.go_left) {
        let _ = WAITING.remove(goroutine(pid_tgid, registers.g));
        count_loss!(unresolved, 1);
        return;
    }
    let addr = if !small && class >> 1 == 0 {
        Some(address(span, runtime, 0))
    } else if small && class == pending.class {
        next_free(span, runtime)
    } else {
        None
    };
    let Some(addr) = addr else { return };
    let _ = WAITING.remove(goroutine(pid_tgid, registers.g));
    pending.class = class;
    send(thread, pid_tgid, span, runtime, addr, &pending);
}

#[inline(always)]
fn send(thread: &mut Thread, pid_tgid: u64, span: u64, runtime: &Runtime, addr: u64, pending: &Pending) {
    let Pending { charge, stack, time, class, .. } = *pending;
    let size = word(span + u64::from(runtime.span_element_size));
    // Not that of the sample: who has helped the garbage collector may get the object after its cycle.
    let sweepgen = word(runtime.sweepgen) as u32;
    let header = Header::new(kind::GO_SAMPLE, thread.target.image, runtime.number, pid_tgid);
    emit::sample(&Sample { header, addr, size, charge, stack, time, sweepgen, class });
}

/// Whether a tiny object fits into the block that is there for those: it makes no new one then.
#[inline(always)]
fn fits_tiny(mcache: u64, runtime: &Runtime, size: u64) -> bool {
    let block = word(mcache + u64::from(runtime.mcache_tiny));
    let used = word(mcache + u64::from(runtime.mcache_tiny_offset));
    let mask = if size & 7 == 0 {
        7
    } else if size & 3 == 0 {
        3
    } else if size & 1 == 0 {
        1
    } else {
        0
    };
    block != 0 && ((used + mask) & !mask) + size <= TINY
}

/// Where the next object of a span will be (`nextFreeIndex`); `None` when it is full.
#[inline(always)]
fn next_free(span: u64, runtime: &Runtime) -> Option<u64> {
    let (mut free, elements) = bounds(span, runtime);
    let mut cache = word(span + u64::from(runtime.span_cache));
    let bits = word(span + u64::from(runtime.span_bits));
    for _ in 0..BIT_WORDS {
        if cache != 0 || free >= elements {
            break;
        }
        free = (free + 64) & !63;
        if free < elements {
            cache = !word(bits + free / 8);
        }
    }
    let index = free + trailing_zeros(cache);
    (cache != 0 && free < elements && index < elements).then(|| address(span, runtime, index))
}

/// Index of the first object of a span that may be free, and how many it has.
#[inline(always)]
fn bounds(span: u64, runtime: &Runtime) -> (u64, u64) {
    let mask = if runtime.wide != 0 { u64::MAX } else { 0xffff };
    (word(span + u64::from(runtime.span_free_index)) & mask, word(span + u64::from(runtime.span_elements)) & mask)
}

#[inline(always)]
fn address(span: u64, runtime: &Runtime, index: u64) -> u64 {
    let size = word(span + u64::from(runtime.span_element_size));
    word(span + u64::from(runtime.span_start)).wrapping_add(index.wrapping_mul(size))
}

#[inline(always)]
fn class_of_span(span: u64, runtime: &Runtime) -> u32 {
    (word(span + u64::from(runtime.span_class)) & 0xff) as u32
}

#[inline(always)]
fn class_of(size: u64) -> u8 {
    let (table, index) = if size <= 1024 {
        (&CLASS_TABLES.small, (size + 7) >> 3)
    } else {
        (&CLASS_TABLES.large, (size - 1024 + 127) >> 7)
    };
    let index = core::hint::black_box(index) as usize & 255;
    // SAFETY: the index is below the table's length.
    unsafe { core::ptr::read_volatile(table.as_ptr().add(index)) }
}

static CLASS_TABLES: tracer_ebpf::golang::Classes = CLASSES;

/// The word at an address of the process; 0 when it cannot be read.
#[inline(always)]
fn word(addr: u64) -> u64 {
    // SAFETY: the helper checks the address.
    unsafe { bpf_probe_read_user(addr as *const u64) }.unwrap_or(0)
}

/// The processor has no instruction for it.
#[inline(always)]
fn trailing_zeros(bits: u64) -> u64 {
    ones((bits & bits.wrapping_neg()).wrapping_sub(1))
}

#[inline(always)]
fn ones(bits: u64) -> u64 {
    let pairs = bits - (bits >> 1 & 0x5555_5555_5555_5555);
    let fours = (pairs & 0x3333_3333_3333_3333) + (pairs >> 2 & 0x3333_3333_3333_3333);
    let eights = (fours + (fours >> 4)) & 0x0f0f_0f0f_0f0f_0f0f;
    eights.wrapping_mul(0x0101_0101_0101_0101) >> 56
}
