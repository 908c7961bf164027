//! Recording only some of the allocations of C, C++ and Rust, where that is asked for.
//!
//! Sampling is Poisson in bytes, per thread: a distance is drawn, sizes are taken off it, and the allocation that exhausts it is
//! recorded, with a fresh distance for the next. An allocation that is not taken is followed no further: neither its stack nor
//! its outcome is looked at. The blocks that were recorded are in a set, so that frees of all others end here.
//!
//! What one function asks another for on its behalf (`posix_memalign` that calls `malloc`) has one chance and not two: calls that
//! were left out are remembered for a while, and one that is taken is left out after all if it lies inside of one of these and
//! may be what that one's block is made of. The function of the outer one is known from then on for one that has others inside:
//! its calls are followed to their end, and what is inside of them is found as where all is recorded.

use aya_ebpf::{
    bindings::{BPF_ANY, BPF_F_NO_PREALLOC},
    helpers::bpf_get_current_pid_tgid,
    macros::map,
    maps::{Array, HashMap},
};
use tracer_ebpf::{BlockKey, Target, entry};

use crate::{
    alloc, inflight, mappings, spacing,
    thread::{self, LEFT_OUT, LeftOut, Thread},
    walk,
};

/// Whether allocations are sampled: 0 or 1. Set by user space before loading.
#[unsafe(no_mangle)]
static SAMPLES: u64 = 0;

/// The blocks that were recorded and have not ended. Its size is set by user space before loading.
#[map]
static SAMPLED: HashMap<BlockKey, u8> = HashMap::with_max_entries(1, BPF_F_NO_PREALLOC);

/// Whether a function was seen to have others inside, by the last bits of its number: one that has not may be followed, too.
#[map]
static WRAPPERS: Array<[u8; WRAPPER_MARKS]> = Array::with_max_entries(1, 0);

const WRAPPER_MARKS: usize = 1 << 12;

/// What [`judge`] says: nothing of the call is of interest; it is to be recorded; it is to be followed, but what it allocates is not.
pub(crate) const NOTHING: u32 = 0;
pub(crate) const RECORD: u32 = 1;
pub(crate) const FOLLOW: u32 = 2;

/// Whether only some allocations are recorded.
#[inline(always)]
pub(crate) fn is_on() -> bool {
    // SAFETY: a read of a global that user space wrote before loading.
    unsafe { core::ptr::read_volatile(&raw const SAMPLES) != 0 }
}

#[inline(always)]
fn key(target: &Target, addr: u64) -> BlockKey {
    BlockKey { addr, image: target.image, reserved: 0 }
}

/// A block is about to be recorded; whether there was room to remember it.
#[inline(always)]
pub(crate) fn begin(target: &Target, addr: u64) -> bool {
    SAMPLED.insert(key(target, addr), 0, u64::from(BPF_ANY)).is_ok()
}

/// Whether a block was recorded; it is forgotten.
#[inline(always)]
pub(crate) fn end(target: &Target, addr: u64) -> bool {
    let key = key(target, addr);
    // Looked up first: that takes no lock, and most are not there.
    SAMPLED.get_ptr(key).is_some() && SAMPLED.remove(key).is_ok()
}

/// Whether a function was seen to have others inside.
#[inline(always)]
fn is_wrapper(function: u64) -> bool {
    // SAFETY: the pointer comes from a map lookup; whoever reads a mark too early follows a call less.
    WRAPPERS.get(0).is_some_and(|marks| marks[function as usize & (WRAPPER_MARKS - 1)] != 0)
}

#[inline(always)]
fn mark_wrapper(function: u64) {
    if let Some(marks) = WRAPPERS.get_ptr_mut(0) {
        // SAFETY: the pointer comes from a map lookup; everybody writes the same.
        unsafe { core::ptr::write_volatile(&raw mut (*marks)[function as usize & (WRAPPER_MARKS - 1)], 1) };
    }
}

/// What is to become of a call of which the arguments are in [`Thread::arguments`]; `cookie` is that of its probe, `sp` and
/// `frame_pointer` are its registers. A global function, as [`mappings::look_up_mapping`](crate::mappings) is.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn judge(cookie: u64, sp: u64, frame_pointer: u64) -> u32 {
    let pid_tgid = bpf_get_current_pid_tgid();
    let Some(thread) = thread::existing(pid_tgid) else { return NOTHING };
    // SAFETY: the pointer comes from a map lookup, and only this thread uses its entry.
    let thread = unsafe { &mut *thread };
    let size = alloc::size(thread, cookie);
    let taken = alloc::is_wanted(size) && is_taken(thread, size);
    let old = if cookie & entry::STORED != 0 { 0 } else { alloc::argument(thread, cookie >> entry::BLOCK) };
    let ends = old != 0 && SAMPLED.get_ptr(key(&thread.target, old)).is_some();
    let function = (cookie >> entry::FUNCTION) & 0xffff;
    // A call that is in flight may be over, or this one a part of it.
    if thread.used != 0 || ends || is_wrapper(function) {
        return if taken && (thread.used != 0 || ends || !is_inside(sp, frame_pointer, size, function)) {
            RECORD
        } else {
            FOLLOW
        };
    }
    if taken {
        return if is_inside(sp, frame_pointer, size, function) { NOTHING } else { RECORD };
    }
    let caller = inflight::read_word(sp).unwrap_or(0);
    let at = thread.left_out_next;
    thread.left_out_next = at.wrapping_add(1);
    thread.left_out[at as usize & (LEFT_OUT - 1)] = LeftOut { sp, caller, size, function };
    NOTHING
}

/// Whether an allocation of so many bytes is a sample.
#[inline(always)]
fn is_taken(thread: &mut Thread, size: u64) -> bool {
    // A block of no bytes is one, too.
    let charge = if size == 0 { 1 } else { size };
    let left = if thread.left == 0 { spacing::distance() } else { thread.left };
    let taken = charge >= left;
    thread.left = if taken { spacing::distance() } else { left - charge };
    taken
}

/// Whether a call is a part of one that was left out: it lies inside of that, or has been jumped to at its end, and asks for as
/// much or more. The function of that is marked.
#[inline(always)]
fn is_inside(sp: u64, frame_pointer: u64, size: u64, function: u64) -> bool {
    let Some(thread) = thread::existing(bpf_get_current_pid_tgid()) else { return false };
    // SAFETY: the pointer comes from a map lookup, and only this thread uses its entry.
    let thread = unsafe { &mut *thread };
    let trampoline = mappings::trampoline();
    // Where all returns are taken, a return slot holds the kernel's address for that, once it is.
    let holds = |slot: u64, caller: u64| {
        let word = inflight::read_word(slot).unwrap_or(0);
        word == caller || trampoline != 0 && word == trampoline
    };
    let caller = inflight::read_word(sp).unwrap_or(0);
    let last = thread.left_out[thread.left_out_next.wrapping_sub(1) as usize & (LEFT_OUT - 1)];
    if last.sp == sp && holds(sp, last.caller) && last.function != function && size >= last.size {
        // Which of them jumps to the other this does not tell.
        mark_wrapper(last.function);
        mark_wrapper(function);
        return true;
    }
    for at in 0..LEFT_OUT {
        let outer = thread.left_out[at];
        if outer.sp > sp
            && size >= outer.size
            && holds(outer.sp, outer.caller)
            && lies_below(caller, sp, frame_pointer, outer.sp) != 0
        {
            mark_wrapper(outer.function);
            return true;
        }
    }
    false
}

/// Whether the way up from the call at `sp`, which returns to `caller`, comes to the return slot `slot`, or does not get far enough to
/// tell; 0: it does not. A global function, as [`judge`] is.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn lies_below(caller: u64, sp: u64, frame_pointer: u64, slot: u64) -> u32 {
    let pid_tgid = bpf_get_current_pid_tgid();
    let Some(thread) = thread::existing(pid_tgid) else { return 0 };
    // SAFETY: as above.
    let thread = unsafe { &mut *thread };
    let way = walk::approach(thread, (pid_tgid >> 32) as u32, caller, sp.wrapping_add(8), frame_pointer, slot);
    u32::from(!way.signal && (way.reached || !way.whole))
}
