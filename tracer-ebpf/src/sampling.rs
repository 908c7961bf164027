//! Recording only some of the allocations of C, C++ and Rust, where that is asked for.
//!
//! Sampling is Poisson in bytes, per thread: a distance is drawn, sizes are taken off it, and the allocation that exhausts it is
//! recorded, with a fresh distance for the next. An allocation that is not taken is followed no further: neither its stack nor
//! its outcome is looked at. The blocks that were recorded are in a set, so that frees of all others end here.
//!
//! What one function asks another for on its behalf (`posix_memalign` that calls `malloc`) has one chance and not two: calls that
//! were left out are remembered for a while, and one that is taken is left out after all if it lies inside of one of these and
//! may be what that one's block is made of. The function of the outer one is known from then on for one that has others inside:
//! its calls are followed to their end, and what is inside of them is found as where all is recorded; what is still remembered of
//! them is over, and nothing lies inside of that.
//! Whether one lies inside of another its stack tells, but not for certain: what was called before from the same place has left the same
//! there. So at most one sample of each function is left out that should not be, and none that stands for itself: large ones are recorded.

use core::ffi::c_void;

use aya_ebpf::{
    helpers::{bpf_get_current_pid_tgid, generated::bpf_loop},
    macros::map,
    maps::Array,
};
use tracer_ebpf::{MAX_FRAMES, entry};

use crate::{
    arguments, inflight, mappings, samples, spacing,
    thread::{self, LEFT_OUT, LeftOut, Thread},
};

/// Whether a function was seen to have others inside, by the last bits of its number: one that has not may be followed, too.
#[map]
static WRAPPERS: Array<[u8; WRAPPER_MARKS]> = Array::with_max_entries(1, 0);

const WRAPPER_MARKS: usize = 1 << 12;

/// What [`judge`] says: nothing of the call is of interest; it is to be recorded; it is to be followed, but what it allocates is not.
pub(crate) const NOTHING: u32 = 0;
pub(crate) const RECORD: u32 = 1;
pub(crate) const FOLLOW: u32 = 2;
/// It is to be recorded unless it is [left out](is_left_out).
pub(crate) const RECORD_OUTERMOST: u32 = 3;

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

/// What is to become of a call of which the arguments are in [`Thread::arguments`], unless it is to be recorded and
/// [`is_left_out`] says otherwise when its stack is known; `cookie` is that of its probe, `sp` its stack pointer. A global function, as
/// [`mappings::look_up_mapping`] is.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn judge(cookie: u64, sp: u64) -> u32 {
    let pid_tgid = bpf_get_current_pid_tgid();
    let Some(thread) = thread::existing(pid_tgid) else { return NOTHING };
    // SAFETY: the pointer comes from a map lookup, and only this thread uses its entry.
    let thread = unsafe { &mut *thread };
    let size = arguments::size(thread, cookie);
    let taken = arguments::is_wanted(size) && is_taken(thread, size);
    let old = arguments::old_block(thread, cookie);
    let ends = old != 0 && samples::has(&thread.target, old);
    let function = (cookie >> entry::FUNCTION) & 0xffff;
    // A call that is in flight may be over, or this one a part of it.
    if thread.used != 0 || ends {
        return if taken { RECORD } else { FOLLOW };
    }
    let last = thread.left_out[thread.left_out_next.wrapping_sub(1) as usize & (LEFT_OUT - 1)];
    let is_other = last.function != function && !is_wrapper(last.function);
    if is_other && last.sp == sp && size >= last.size && holds(sp, last.caller) {
        // That one has jumped to this, most likely. It stays the last: the next call from there is not one that this jumps to.
        mark_wrapper(last.function);
        return if taken && size >= spacing::mean() { RECORD } else { NOTHING };
    }
    if taken {
        thread.asked = size;
        return RECORD_OUTERMOST;
    }
    if is_wrapper(function) {
        return FOLLOW;
    }
    let caller = inflight::read_word(sp).unwrap_or(0);
    let at = thread.left_out_next;
    thread.left_out_next = at.wrapping_add(1);
    thread.left_out[at as usize & (LEFT_OUT - 1)] = LeftOut { sp, caller, size, function };
    NOTHING
}

/// Whether a return slot holds this address, or, where all returns are taken, the kernel's for that.
#[inline(always)]
fn holds(slot: u64, caller: u64) -> bool {
    let word = inflight::read_word(slot).unwrap_or(0);
    word == caller || word != 0 && word == mappings::trampoline()
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

/// Frames of a stack that are looked at, from the leaf on: calls that are parts of each other are near each other.
const LOOKED_AT: u32 = 32;

/// Whether the call at `sp`, whose stack has been found, is a part of one that was left out: it asks for as much or more, and that
/// one's return slot lies in its stack, or further up than that was found; 0: it is not. The function of that is marked, if it
/// `marks`. A global function, as [`judge`] is.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn lies_inside(sp: u64, marks: u32) -> u32 {
    let Some(thread) = thread::existing(bpf_get_current_pid_tgid()) else { return 0 };
    // SAFETY: the pointer comes from a map lookup, and only this thread uses its entry.
    let thread = unsafe { &mut *thread };
    let found_to = thread.frames.cache[0].sp;
    let mut candidates = 0;
    for at in 0..LEFT_OUT {
        let LeftOut { sp: slot, caller, size, function } = thread.left_out[at];
        thread.outer_frames[at] = 0;
        if slot > sp && thread.asked >= size && !is_wrapper(function) && holds(slot, caller) {
            let frame = slot.wrapping_add(8);
            if found_to < frame {
                if marks != 0 {
                    mark_wrapper(function);
                }
                return 1;
            }
            thread.outer_frames[at] = frame;
            candidates += 1;
        }
    }
    if candidates == 0 {
        return 0;
    }
    thread.outer_found = 0;
    let mut looked: *mut Thread = thread;
    // SAFETY: the callback is given a pointer that outlives the loop.
    unsafe { bpf_loop(LOOKED_AT, compare_frame as *mut c_void, (&raw mut looked).cast(), 0) };
    // SAFETY: only this thread uses its state.
    let found = unsafe { (*looked).outer_found };
    if found != 0 && marks != 0 {
        mark_wrapper(found - 1);
    }
    u32::from(found != 0)
}

/// Looks whether a frame is that of a caller of one that was left out; 1 ends the loop.
extern "C" fn compare_frame(index: u64, thread: *mut *mut Thread) -> i64 {
    // SAFETY: the loop passes on what it was given, and only the current thread uses its state.
    let thread = unsafe { &mut **thread };
    let count = thread.walk.count;
    if index >= count {
        return 1;
    }
    let sp = thread.frames.cache[core::hint::black_box(count - 1 - index) as usize & (MAX_FRAMES - 1)].sp;
    for at in 0..LEFT_OUT {
        if thread.outer_frames[at] == sp {
            thread.outer_found = 1 + thread.left_out[at].function;
            return 1;
        }
    }
    0
}

/// Whether the call at `sp`, which was taken and whose stack has been found, is left out for being a part of one that was.
#[inline(always)]
pub(crate) fn is_left_out(thread: &Thread, sp: u64) -> bool {
    let asked = thread.asked;
    lies_inside(sp, 1) != 0 && asked < spacing::mean()
}

/// Whether code at `sp`, whose stack has been found, runs inside of a call that was left out.
#[inline(always)]
pub(crate) fn is_inside(thread: &mut Thread, sp: u64) -> bool {
    if !samples::is_on() {
        return false;
    }
    thread.asked = u64::MAX;
    lies_inside(sp, 0) != 0
}
