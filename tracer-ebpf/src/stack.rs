//! The stack of the caller, as an id; its addresses are sent once.
//!
//! [`capture`] is the one place that knows how stacks come about. Today: the direct caller from the return slot, and the
//! rest by frame pointers. Stack memory is read in pieces of a page, not by the word: a read costs the same for either.

use core::ffi::c_void;

use aya_ebpf::{
    EbpfContext,
    bindings::BPF_ANY,
    helpers::generated::{bpf_loop, bpf_probe_read_user},
    macros::map,
    maps::LruHashMap,
    programs::ProbeContext,
};
use tracer_ebpf::{Header, MAX_FRAMES, Target, end, kind};

use crate::{emit, emit::count_loss, inflight::Thread, process};

/// Ids of stacks whose addresses were sent. Only a filter: user space owns the stacks, so an evicted id costs one more
/// record, never a stack.
#[map]
static SENT_STACKS: LruHashMap<u64, u8> = LruHashMap::with_max_entries(1 << 16, 0);

/// Words of stack memory that are read at once.
const WINDOW: usize = 512;

/// How far from the stack pointer a frame may be, bytes. Beyond it, a frame pointer is no frame pointer.
const REACH: u64 = 1 << 26;

/// Progress of a walk. In map memory: on the BPF stack the verifier would tell every iteration from every other.
#[repr(C)]
pub(crate) struct Walk {
    /// Address of the frame that is to be read next: where the caller's frame pointer and a return address lie.
    frame: u64,
    /// One past the last address at which a frame may be.
    limit: u64,
    /// Address and bytes of what `window` holds.
    start: u64,
    len: u64,
    window: [u64; WINDOW],
}

/// The stack at a probe whose direct caller is `caller`: its id. Its addresses are sent if they were not before.
#[inline(always)]
pub(crate) fn capture(ctx: &ProbeContext, thread: &mut Thread, target: &Target, pid_tgid: u64, caller: u64) -> u64 {
    let sp = process::stack_pointer(ctx.as_ptr());
    let head = &mut thread.stack.head;
    head.header = Header::new(kind::STACK, target.generation, 0, pid_tgid);
    head.id = fold(u64::from(target.generation) << 32 ^ pid_tgid >> 32, caller);
    head.frames = 1;
    head.end = end::UNKNOWN;
    thread.stack.frames[0] = caller;
    thread.walk.frame = process::frame_pointer(ctx.as_ptr());
    thread.walk.limit = sp + REACH;
    thread.walk.start = sp & !7;
    thread.walk.len = 0;
    // A frame lies above the return slot of the call that is probed.
    if thread.walk.frame > sp {
        let mut thread: *mut Thread = thread;
        // SAFETY: the callback is given a pointer to `thread`, which outlives the loop.
        unsafe { bpf_loop(MAX_FRAMES as u32, next_frame as *mut c_void, (&raw mut thread).cast(), 0) };
    }
    let (id, count) = (thread.stack.head.id, thread.stack.head.frames);
    send_once(thread, id, u64::from(count));
    id
}

/// Takes one frame in; 1 ends the walk.
extern "C" fn next_frame(_index: u64, thread: *mut *mut Thread) -> i64 {
    // SAFETY: the loop passes on what it was given, and only the current thread uses its state.
    let thread = unsafe { &mut **thread };
    let Some((next, caller)) = read_frame(&mut thread.walk) else { return 1 };
    if caller == 0 {
        return 1;
    }
    let count = thread.stack.head.frames as usize;
    if count >= MAX_FRAMES {
        thread.stack.head.end = end::DEPTH;
        return 1;
    }
    thread.stack.frames[count & (MAX_FRAMES - 1)] = caller;
    thread.stack.head.frames = count as u32 + 1;
    thread.stack.head.id = fold(thread.stack.head.id, caller);
    // Callers' frames are further up, or the chain is broken.
    if next <= thread.walk.frame || next >= thread.walk.limit {
        return 1;
    }
    thread.walk.frame = next;
    0
}

/// The saved frame pointer and the return address at the frame that is next, through the window.
#[inline(always)]
fn read_frame(walk: &mut Walk) -> Option<(u64, u64)> {
    if walk.frame & 7 != 0 {
        return None;
    }
    let mut offset = walk.frame.wrapping_sub(walk.start);
    if offset >= walk.len || offset + 16 > walk.len {
        let size = (WINDOW * 8) as u64;
        walk.start = if offset < size - 16 { walk.start } else { walk.frame };
        walk.len = read(walk, size);
        offset = walk.frame.wrapping_sub(walk.start);
        if offset >= walk.len || offset + 16 > walk.len {
            return None;
        }
    }
    let word = (offset >> 3) as usize;
    Some((walk.window[word & (WINDOW - 1)], walk.window[(word + 1) & (WINDOW - 1)]))
}

/// Fills the window from its start on with `size` bytes, or as far as the page goes when the stack ends before that;
/// returns how many bytes it has.
#[inline(always)]
fn read(walk: &mut Walk, size: u64) -> u64 {
    let to = walk.window.as_mut_ptr().cast::<c_void>();
    // SAFETY: the window has room for `size` bytes; the helper checks the address.
    if unsafe { bpf_probe_read_user(to, size as u32, walk.start as *const c_void) } == 0 {
        return size;
    }
    let rest = (4096 - (walk.start & 4095)) & 0xfff;
    // SAFETY: as above, at most a page.
    if rest != 0 && unsafe { bpf_probe_read_user(to, rest as u32, walk.start as *const c_void) } == 0 {
        return rest;
    }
    0
}

/// One step of the 64-bit fold over the addresses.
#[inline(always)]
fn fold(hash: u64, addr: u64) -> u64 {
    let mixed = (hash ^ addr).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    mixed ^ mixed >> 29
}

#[inline(always)]
fn send_once(thread: &mut Thread, id: u64, count: u64) {
    if SENT_STACKS.get_ptr(id).is_some() {
        return;
    }
    // Sent first and marked after, so that an id is never marked whose addresses were lost.
    let size = (24 + 8 * count).min(24 + 8 * MAX_FRAMES as u64);
    if emit::send_bytes((&raw const thread.stack).cast(), size) {
        let _ = SENT_STACKS.insert(id, 1, u64::from(BPF_ANY));
    } else {
        count_loss!(stacks, 1);
    }
}
