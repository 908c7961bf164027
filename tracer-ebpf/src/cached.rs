//! Whether the thread's last stack is still there: the words that hold it together, compared with what they hold now.
//!
//! They are listed by frames, root first: of each frame below the root its return slot, and the slot of the frame pointer that it has
//! saved, if that counts. Each by its distance from the outermost frame, so that a list holds wherever the window begins. Before the
//! first is a group of words that always are as expected, so that any number of words is whole groups.

use core::ffi::c_void;

use tracer_ebpf::MAX_FRAMES;

use crate::{
    branchless::{in_order, kept, less},
    frames::{CHECKS_AT_ONCE, Frame, LISTED, NEEDS_FP, WINDOW, WINDOW_WORDS},
    thread::{Context, Thread},
};

/// Makes ready for [`compare`]: whether the window holds all from the present stack pointer to the outermost cached frame.
#[inline(always)]
pub(crate) fn begin(thread: &mut Thread) -> bool {
    let depth = thread.frames.cache[0].sp.wrapping_sub(thread.walk.start);
    let whole = thread.frames.cached > 0 && depth <= thread.walk.len && depth < WINDOW;
    if whole {
        thread.walk.root = depth & !7;
        // The word that is no distance from the outermost frame: what stands for none.
        thread.walk.window[(depth >> 3) as usize & (WINDOW_WORDS - 1)] = 0;
    }
    whole
}

/// Whether the frame that is being looked at has the registers of the cached frame at `index`, as far as they count.
#[inline(always)]
pub(crate) fn is_cached(thread: &Thread, index: u64) -> bool {
    let frame = &thread.frames.cache[index as usize & (MAX_FRAMES - 1)];
    let walk = &thread.walk;
    frame.sp == walk.sp && frame.pc == walk.pc && (frame.fp ^ walk.fp) & needs_fp(frame) == 0 && walk.back == 1
}

/// All ones if the frame pointer counts in a cached frame.
#[inline(always)]
pub(crate) fn needs_fp(frame: &Frame) -> u64 {
    ((frame.flags / NEEDS_FP) & 1).wrapping_neg()
}

/// Compares the words that hold together the cached frames from the candidate to the root: `walk.difference` is 0 then, or else
/// `walk.limit` the last frame that may still hold with its callers.
#[inline(always)]
pub(crate) fn compare(context: &mut Context) {
    // SAFETY: only the current thread uses its state.
    let walk = unsafe { &mut (*context.thread).walk };
    walk.difference = core::hint::black_box(0);
    let candidate = walk.candidate as usize & (MAX_FRAMES - 1);
    // SAFETY: as above.
    walk.listed = listed(unsafe { &(*context.thread).frames.cache[candidate] });
    let groups = walk.listed.div_ceil(CHECKS_AT_ONCE as u64);
    let argument = (&raw mut *context).cast::<c_void>();
    // SAFETY: the callback is given `context`, which outlives the loop.
    unsafe { aya_ebpf::helpers::generated::bpf_loop(groups as u32, compare_group as *mut c_void, argument, 0) };
}

/// Compares a group of words, the first of the candidate's and then towards the root; 1 ends the loop.
extern "C" fn compare_group(index: u64, context: *mut Context) -> i64 {
    // SAFETY: the loop passes on what it was given.
    let thread = unsafe { &mut *(*context).thread };
    // One group stands before all.
    let first = core::hint::black_box(thread.walk.listed.wrapping_sub(index * CHECKS_AT_ONCE as u64));
    let root = thread.walk.root;
    let window = kept(thread.walk.window.as_ptr());
    let (words, expected) = lists(thread, first as usize);
    let mut difference = 0;
    for nth in 0..CHECKS_AT_ONCE {
        // SAFETY: there is a group, and the window has so many words.
        unsafe {
            difference |= at(window, root.wrapping_add(u64::from(*words.add(nth)))) ^ *expected.add(nth);
        }
        difference = in_order(difference);
    }
    thread.walk.difference = difference;
    // Only frames none of whose words were compared may hold still: those further out than the one that the first word of this group is of.
    // Before the first word is none's.
    let before = less(first, CHECKS_AT_ONCE as u64);
    let of = in_order(first & !before | CHECKS_AT_ONCE as u64 & before);
    thread.walk.limit = i64::from(thread.frames.of[of as usize & (2 * MAX_FRAMES - 1)]) - 1;
    i64::from(difference != 0)
}

/// The word of a window that is so many bytes from where it begins, a multiple of 8.
///
/// # Safety
/// The window has all its words.
#[inline(always)]
pub(crate) unsafe fn at(window: *const u64, bytes: u64) -> u64 {
    // Kept in bytes: a shift would be one instruction more of the few that a word takes.
    // SAFETY: the caller gives a whole window, and the mask keeps it within that.
    unsafe { *window.byte_add(bytes as usize & (WINDOW as usize - 8)) }
}

/// How many words are listed from the root to a cached frame.
#[inline(always)]
pub(crate) fn listed(frame: &Frame) -> u64 {
    frame.flags >> LISTED
}

/// The lists from a word on: a group of them, at the least.
#[inline(always)]
pub(crate) fn lists(thread: &Thread, first: usize) -> (*const u16, *const u64) {
    let first = first & (2 * MAX_FRAMES - 1);
    // SAFETY: the lists have room for a group from any such index on.
    unsafe { (kept(thread.frames.words.as_ptr().add(first)), kept(thread.frames.expected.as_ptr().add(first))) }
}

/// Lists the words that hold a cached frame and its caller together; nothing for the root. The frame's flags have no count yet.
#[inline(always)]
pub(crate) fn list(thread: &mut Thread, index: usize) {
    if index == 0 {
        return;
    }
    // The compiler knows that it is small enough, and the verifier would not.
    let index = in_order(index as u64) as usize;
    let root = thread.frames.cache[0].sp;
    let (sp, fp_slot) = {
        let frame = &thread.frames.cache[index & (MAX_FRAMES - 1)];
        (frame.sp, frame.fp_slot)
    };
    let (caller_sp, pc, fp, counts, before) = {
        let caller = &thread.frames.cache[(index - 1) & (MAX_FRAMES - 1)];
        (caller.sp, caller.pc, caller.fp, needs_fp(caller), listed(caller))
    };
    // Without a branch, as everywhere. A slot that may not be in the window, or not at a whole word: one that is never as expected.
    let has_slot = less(0, fp_slot) & counts;
    let height = fp_slot.wrapping_sub(root);
    let is_near = less(fp_slot, root) & !less(fp_slot, sp) & less(height & 7, 1);
    let at = CHECKS_AT_ONCE + (in_order(before) as usize & (2 * MAX_FRAMES - 1));
    thread.frames.words[at] = caller_sp.wrapping_sub(8).wrapping_sub(root) as u16 & !7;
    thread.frames.expected[at] = pc;
    // Where there is none it is not counted, and the next frame's is put in its place.
    let second = at + 1;
    thread.frames.words[second] = (height & is_near) as u16;
    thread.frames.expected[second] = fp & is_near | 1 & !is_near;
    (thread.frames.of[at], thread.frames.of[second]) = (index as u8, index as u8);
    let count = before + 1 + (has_slot & 1);
    thread.frames.cache[index & (MAX_FRAMES - 1)].flags |= count << LISTED;
}
