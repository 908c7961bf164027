//! The stack of the caller, as an id; its addresses are sent once.
//!
//! [`capture`] is the one place that knows how stacks come about. Today: the kernel's frame-pointer walk, with the
//! direct caller read from the return slot, because a walk that starts at a function's first instruction misses it.

use aya_ebpf::{
    EbpfContext,
    bindings::{BPF_ANY, BPF_F_USER_STACK},
    helpers::generated::bpf_get_stack,
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
    let frames = &mut thread.stack.frames;
    // SAFETY: the buffer is WALK_FRAMES words of map memory.
    let bytes = unsafe {
        bpf_get_stack(ctx.as_ptr(), frames.as_mut_ptr().cast(), (WALK_FRAMES * 8) as u32, u64::from(BPF_F_USER_STACK))
    };
    // The walk's first entry is the probe itself: it becomes the caller, unless the walk (newer kernels) gives the
    // caller as its second entry already.
    let mut count = if bytes > 0 { bytes as usize / 8 } else { 0 };
    if count > 1 && frames[1] == caller {
        frames[0] = caller;
        count = drop_second(frames, count);
    } else {
        frames[0] = caller;
        if count == 0 {
            count = 1;
        }
    }
    let mut id = u64::from(target.generation) << 32 ^ pid_tgid >> 32;
    for i in 0..MAX_FRAMES {
        if i >= count {
            break;
        }
        id = fold(id, frames[i]);
    }
    thread.stack.head.header = Header::new(kind::STACK, target.generation, 0, pid_tgid);
    thread.stack.head.id = id;
    thread.stack.head.frames = count as u32;
    thread.stack.head.end = end::UNKNOWN;
    send_once(thread, id, count);
    id
}

/// Removes the entry at index 1; returns the new count.
#[inline(always)]
fn drop_second(frames: &mut [u64; MAX_FRAMES], count: usize) -> usize {
    for i in 1..WALK_FRAMES - 1 {
        if i + 1 >= count {
            break;
        }
        frames[i] = frames[i + 1];
    }
    count - 1
}

/// One step of the 64-bit fold over the addresses.
#[inline(always)]
fn fold(hash: u64, addr: u64) -> u64 {
    let mixed = (hash ^ addr).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    mixed ^ mixed >> 29
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
