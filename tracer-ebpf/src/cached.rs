//! Whether the thread's last stack is still there: its slots compared with what they hold now.

use core::ffi::c_void;

use tracer_ebpf::MAX_FRAMES;

use crate::{
    branchless::less,
    thread::{Context, MAX_CHECKS, Thread, WINDOW_WORDS},
};

/// Frames whose slots are compared at once.
const GROUP: u64 = 8;
/// Words that are compared at once.
const CHECKS_AT_ONCE: u64 = 16;

/// Whether the frame that is being looked at has the registers of the cached frame at `index`.
#[inline(always)]
pub(crate) fn is_cached(thread: &Thread, index: u64) -> bool {
    let frame = &thread.frames.cache[index as usize & (MAX_FRAMES - 1)];
    let walk = &thread.walk;
    frame.sp == walk.sp && frame.pc == walk.pc && frame.fp == walk.fp && walk.back == 1
}

/// Compares the slots of the cached frames from the candidate to the root with those in the window.
#[inline(always)]
pub(crate) fn compare(context: &mut Context) {
    // SAFETY: only the current thread uses its state.
    let groups = unsafe { ((*context.thread).walk.candidate as u64).div_ceil(GROUP) };
    let argument = (&raw mut *context).cast::<c_void>();
    // SAFETY: the callback is given `context`, which outlives the loop.
    unsafe { aya_ebpf::helpers::generated::bpf_loop(groups as u32, compare_group as *mut c_void, argument, 0) };
}

/// Compares the return slots and the slots of saved frame pointers of up to [`GROUP`] cached frames with the window, from
/// the one that was met towards the root. Without a branch for each: the verifier would follow both sides.
extern "C" fn compare_group(index: u64, context: *mut Context) -> i64 {
    // SAFETY: the loop passes on what it was given.
    let thread = unsafe { &mut *(*context).thread };
    let first = (thread.walk.candidate as u64).wrapping_sub(index * GROUP);
    let (start, len) = (thread.walk.start, thread.walk.len);
    let mut difference = 0;
    for nth in 0..GROUP {
        // The root has no caller. Those beyond it are compared with a frame that is compared anyway.
        let at = first.wrapping_sub(nth);
        let beyond = less(at.wrapping_sub(1), 0);
        let at = at & !beyond | 1 & beyond;
        let callee_slot = thread.frames.cache[at as usize & (MAX_FRAMES - 1)].fp_slot;
        let caller = &thread.frames.cache[(at as usize).wrapping_sub(1) & (MAX_FRAMES - 1)];
        let (pc, fp) = (caller.pc, caller.fp);
        let return_slot = caller.sp.wrapping_sub(8).wrapping_sub(start);
        let fp_slot = callee_slot.wrapping_sub(start);
        let has_slot = less(0, callee_slot);
        let window = &thread.walk.window;
        // It lies in the window, as all stack pointers between the present one and the root's do.
        difference |= window[(return_slot >> 3) as usize & (WINDOW_WORDS - 1)] ^ pc;
        difference |= (window[(fp_slot >> 3) as usize & (WINDOW_WORDS - 1)] ^ fp) & has_slot;
        difference |= !less(fp_slot, len) & has_slot;
    }
    thread.walk.difference |= difference;
    i64::from(difference != 0)
}

/// Compares the listed words with those in the window, which begins where it did when they were listed.
#[inline(always)]
pub(crate) fn check(context: &mut Context, checks: u64) {
    let argument = (&raw mut *context).cast::<c_void>();
    let times = checks / CHECKS_AT_ONCE;
    // SAFETY: the callback is given `context`, which outlives the loop.
    unsafe { aya_ebpf::helpers::generated::bpf_loop(times as u32, check_some as *mut c_void, argument, 0) };
}

/// Compares [`CHECKS_AT_ONCE`] listed words; 1 ends the loop.
extern "C" fn check_some(index: u64, context: *mut Context) -> i64 {
    // SAFETY: the loop passes on what it was given.
    let thread = unsafe { &mut *(*context).thread };
    let first = (core::hint::black_box(index * CHECKS_AT_ONCE) & (MAX_CHECKS as u64 - CHECKS_AT_ONCE)) as usize;
    let mut difference = 0;
    for nth in 0..CHECKS_AT_ONCE as usize {
        let word = thread.walk.window[usize::from(thread.frames.words[first + nth]) & (WINDOW_WORDS - 1)];
        difference |= word ^ thread.frames.expected[first + nth];
    }
    thread.walk.difference |= difference;
    i64::from(difference != 0)
}

/// Lists the words that hold the cached frames together, all of which lie in the window.
#[inline(always)]
pub(crate) fn list_checks(context: &mut Context) {
    // SAFETY: only the current thread uses its state.
    let thread = unsafe { &mut *context.thread };
    thread.frames.checks = 0;
    thread.walk.fresh = core::hint::black_box(0);
    if thread.frames.cached < 2 {
        return;
    }
    let argument = (&raw mut *context).cast::<c_void>();
    // SAFETY: the callback is given `context`, which outlives the loop.
    unsafe { aya_ebpf::helpers::generated::bpf_loop(MAX_CHECKS as u32, list_frame as *mut c_void, argument, 0) };
}

/// Lists the return slot of one cached frame, from the leaf's on, and the slot of its saved frame pointer. Beyond the root
/// the list is filled up with the last slot until it is a multiple of [`CHECKS_AT_ONCE`]; 1 ends the loop.
extern "C" fn list_frame(index: u64, context: *mut Context) -> i64 {
    // SAFETY: the loop passes on what it was given.
    let thread = unsafe { &mut *(*context).thread };
    let count = thread.walk.fresh;
    let frames = thread.frames.cached - 1;
    if index >= frames && count % CHECKS_AT_ONCE == 0 {
        thread.frames.checks = count;
        return 1;
    }
    let at = if index < frames { frames - index } else { 1 };
    let fp_slot = thread.frames.cache[at as usize & (MAX_FRAMES - 1)].fp_slot;
    let (sp, pc, fp) = {
        let caller = &thread.frames.cache[(at as usize).wrapping_sub(1) & (MAX_FRAMES - 1)];
        (caller.sp, caller.pc, caller.fp)
    };
    let start = thread.walk.start;
    put_check(thread, count, sp.wrapping_sub(8).wrapping_sub(start), pc);
    if fp_slot != 0 && index < frames {
        put_check(thread, count + 1, fp_slot.wrapping_sub(start), fp);
        thread.walk.fresh = count + 2;
    } else {
        thread.walk.fresh = count + 1;
    }
    0
}

#[inline(always)]
fn put_check(thread: &mut Thread, at: u64, offset: u64, expected: u64) {
    let at = core::hint::black_box(at) as usize & (MAX_CHECKS - 1);
    thread.frames.words[at] = (offset >> 3) as u16;
    thread.frames.expected[at] = expected;
}
