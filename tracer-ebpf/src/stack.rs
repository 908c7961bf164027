//! The stack of the caller, as an id; its addresses are sent once.
//!
//! [`capture`] is the one place that knows how stacks come about. Today: the kernel's frame-pointer walk, with the
//! direct caller read from the return slot, because a walk that starts at a function's first instruction misses it.

use core::ffi::c_void;

use aya_ebpf::{
    EbpfContext,
    bindings::{BPF_ANY, BPF_F_USER_STACK},
    helpers::generated::{bpf_get_stack, bpf_loop},
    macros::map,
    maps::LruHashMap,
    programs::ProbeContext,
};
use tracer_ebpf::{Header, MAX_FRAMES, Target, end, kind};

use crate::{emit, emit::count_loss, inflight::Thread};

/// Ids of stacks whose addresses were sent. Only a filter: user space owns the stacks, so an evicted id costs one more
/// record, never a stack.
#[map]
static SENT_STACKS: LruHashMap<u64, u8> = LruHashMap::with_max_entries(1 << 16, 0);

/// Frames that the kernel's walk gives at most (kernel.perf_event_max_stack).
const WALK_FRAMES: usize = 127;

/// The stack at a probe whose direct caller is `caller`: its id. Its addresses are sent if they were not before.
#[inline(always)]
pub(crate) fn capture(ctx: &ProbeContext, thread: &mut Thread, target: &Target, pid_tgid: u64, caller: u64) -> u64 {
    let stack = &mut thread.stack;
    // SAFETY: the buffer is WALK_FRAMES words of map memory.
    let bytes = unsafe {
        bpf_get_stack(
            ctx.as_ptr(),
            stack.frames.as_mut_ptr().cast(),
            (WALK_FRAMES * 8) as u32,
            u64::from(BPF_F_USER_STACK),
        )
    };
    // The walk's first entry is the probe itself: it becomes the caller. Newer kernels give the caller as the second
    // entry already: it becomes 0, which the fold and user space pass over.
    let count = if bytes >= 8 { bytes as u32 / 8 } else { 1 };
    stack.frames[0] = caller;
    if count > 1 && stack.frames[1] == caller {
        stack.frames[1] = 0;
    }
    stack.head.header = Header::new(kind::STACK, target.generation, 0, pid_tgid);
    stack.head.id = u64::from(target.generation) << 32 ^ pid_tgid >> 32;
    stack.head.frames = count;
    stack.head.end = end::UNKNOWN;
    let mut walk = Walk { thread };
    // SAFETY: the callback is given `walk`, which outlives the loop.
    unsafe {
        bpf_loop(WALK_FRAMES as u32, fold_next as *mut c_void, (&raw mut walk).cast(), 0);
    }
    let id = walk.thread.stack.head.id;
    send_once(walk.thread, id, count as usize);
    id
}

/// What a loop over the frames works on. Its progress is kept in map memory: on the BPF stack the verifier would tell
/// every iteration from every other.
struct Walk<'a> {
    thread: &'a mut Thread,
}

/// Folds frame `index` into the id; 1 ends the loop.
extern "C" fn fold_next(index: u64, walk: *mut Walk<'_>) -> i64 {
    // SAFETY: the loop passes on what it was given.
    let stack = unsafe { &mut (*walk).thread.stack };
    if index >= u64::from(stack.head.frames) {
        return 1;
    }
    let addr = stack.frames[index as usize & (MAX_FRAMES - 1)];
    if addr != 0 {
        let mixed = (stack.head.id ^ addr).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        stack.head.id = mixed ^ mixed >> 29;
    }
    0
}

#[inline(always)]
fn send_once(thread: &mut Thread, id: u64, count: usize) {
    if SENT_STACKS.get_ptr(&id).is_some() {
        return;
    }
    // Sent first and marked after, so that an id is never marked whose addresses were lost.
    let size = (24 + 8 * count as u64).min(24 + 8 * MAX_FRAMES as u64);
    if emit::send_bytes((&raw const thread.stack).cast(), size) {
        let _ = SENT_STACKS.insert(&id, &1, u64::from(BPF_ANY));
    } else {
        count_loss!(stacks, 1);
    }
}
