//! The way up from a call to another that may be around it: by the same steps as a stack that is recorded, but nothing is kept of it.

use core::ffi::c_void;

use aya_ebpf::helpers::bpf_get_current_pid_tgid;
use tracer_ebpf::{MAX_FRAMES, end};

use crate::{
    mappings, returns,
    thread::{Context, Thread},
    walk::{MADE, step, uncover},
};

/// What the way up a stack has shown.
#[derive(Clone, Copy)]
pub(crate) struct Approach {
    /// It came to the slot that was looked for.
    pub(crate) reached: bool,
    /// It came to the outermost frame and did not meet the slot.
    pub(crate) whole: bool,
    /// A signal handler lies on it.
    pub(crate) signal: bool,
    /// Stack pointer at its end.
    pub(crate) sp: u64,
}

/// Goes up from the function that was called from `pc` until it comes to a frame whose return slot is `slot`, or to the outermost.
/// A slot that a jump has left behind keeps its content, so content proves nothing.
#[inline(always)]
pub(crate) fn approach(thread: &mut Thread, pc: u64, sp: u64, frame_pointer: u64, slot: u64) -> Approach {
    go_up(thread, pc, sp, frame_pointer, slot);
    let walk = &thread.walk;
    Approach {
        reached: walk.status == 0 && walk.sp == walk.hash,
        whole: walk.status == end::ROOT,
        signal: walk.signals != 0,
        sp: walk.sp,
    }
}

/// The way of [`approach`]; what it has shown is in the walk. A global function: the verifier goes through it once, whatever is known of
/// who calls it.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn go_up(thread: *mut Thread, pc: u64, sp: u64, frame_pointer: u64, slot: u64) -> u32 {
    if thread.is_null() {
        return 0;
    }
    // SAFETY: only the current thread uses its state.
    let thread = unsafe { &mut *thread };
    mappings::begin(thread, (bpf_get_current_pid_tgid() >> 32) as u32);
    let walk = &mut thread.walk;
    (walk.pc, walk.sp, walk.fp, walk.back) = (pc, sp, frame_pointer, 1);
    (walk.status, walk.tainted, walk.signals) = (0, 0, 0);
    walk.instance = returns::NOT_ASKED;
    walk.hash = slot.wrapping_add(8);
    let mut context = Context { thread };
    let argument = (&raw mut context).cast::<c_void>();
    // SAFETY: the callback is given `context`, which outlives the loop.
    unsafe { aya_ebpf::helpers::generated::bpf_loop(MAX_FRAMES as u32, approach_frame as *mut c_void, argument, 0) };
    0
}

/// One frame up, unless the address in `walk.hash` is reached; 1 ends the loop. It may lie below: the way from a stack of
/// its own for signal handlers leads anywhere.
extern "C" fn approach_frame(_index: u64, context: *mut Context) -> i64 {
    // SAFETY: the loop passes on what it was given, and only the current thread uses its state.
    let thread = unsafe { &mut *(*context).thread };
    if thread.walk.sp == thread.walk.hash {
        return 1;
    }
    let status = step(thread);
    if status == end::NO_MAPPING && uncover(thread) {
        return 0;
    }
    thread.walk.status = if status == MADE { end::ROOT } else { status };
    i64::from(status != 0)
}
