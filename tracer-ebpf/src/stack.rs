//! The stack of the caller, as an id; its places are sent once.

use aya_ebpf::{EbpfContext, bindings::BPF_ANY, macros::map, maps::LruHashMap, programs::ProbeContext};
use tracer_ebpf::{Header, MAX_FRAMES, end, kind};

use crate::{
    emit::{self, count_loss},
    frames::SENT,
    memo, registers, rests,
    thread::Thread,
    walk,
};

/// Ids of stacks whose places were sent, of whichever process. Only a filter: user space owns the stacks, so an evicted id costs one more
/// record, never a stack.
#[map]
static SENT_STACKS: LruHashMap<u64, u8> = LruHashMap::with_max_entries(1 << 16, 0);

/// A stack that was found; its frames are in the thread's cache, unless it is remembered.
pub(crate) struct Found {
    pub(crate) id: u64,
    pub(crate) count: u64,
    /// One of [`end`].
    pub(crate) end: u32,
    /// It was not walked, but is one that was sent before.
    pub(crate) remembered: bool,
}

/// Finds the stack of code that will go on at `pc`, with these registers; with `remembers` it may be one that the thread had before.
#[inline(always)]
pub(crate) fn find(thread: &mut Thread, pid_tgid: u64, (pc, sp, fp): (u64, u64, u64), remembers: bool) -> Found {
    let end = walk::walk(thread, (pid_tgid >> 32) as u32, (pc, sp, fp), remembers);
    if thread.walk.remembered != 0 {
        return Found { id: thread.walk.remembered, count: 0, end, remembered: true };
    }
    let (count, hash) = walk::result(thread);
    // One that ended elsewhere is another stack; where nobody could look, something else may have been there each time.
    let then = if end == end::BUSY { thread.walk.tag } else { 0 };
    Found { id: hash ^ u64::from(end) << 56 ^ then, count, end, remembered: false }
}

/// The stack at a probe whose direct caller is `caller`: its id. Its places are sent if they were not before.
#[inline(always)]
pub(crate) fn capture(ctx: &ProbeContext, thread: &mut Thread, pid_tgid: u64, caller: u64) -> u64 {
    let sp = registers::stack_pointer(ctx.as_ptr()).wrapping_add(8);
    capture_at(thread, pid_tgid, caller, sp, registers::frame_pointer(ctx.as_ptr()))
}

/// The same of code that was interrupted behind an instruction, with these registers. A global function: the verifier goes through it once,
/// whatever is known of who calls it. 0 for no thread.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn capture_at(thread: *mut Thread, pid_tgid: u64, pc: u64, sp: u64, fp: u64) -> u64 {
    if thread.is_null() {
        return 0;
    }
    // SAFETY: only the current thread uses its state.
    let thread = unsafe { &mut *thread };
    let found = find(thread, pid_tgid, (pc, sp, fp), true);
    if found.remembered { found.id } else { send(thread, pid_tgid, found) }
}

/// The id of a stack, whose places are sent if they were not before.
#[inline(always)]
fn send(thread: &mut Thread, pid_tgid: u64, found: Found) -> u64 {
    let Found { mut id, count, end, .. } = found;
    if end == end::UNKNOWN_FILE {
        id = rests::send_rest(id);
    }
    // What was sent before user space forgot stacks may be of those.
    let mark = memo::mark(id);
    let at = id as usize & (SENT - 1);
    if thread.frames.sent[at] != mark {
        if SENT_STACKS.get_ptr(id).is_none() && !send_places(thread, pid_tgid, id, count, end) {
            count_loss!(stacks, 1);
            return id;
        }
        thread.frames.sent[at] = mark;
    }
    memo::keep(thread, id, mark);
    id
}

/// Sends the places of the stack that was walked: whether there was room.
#[inline(always)]
fn send_places(thread: &mut Thread, pid_tgid: u64, id: u64, count: u64, end: u32) -> bool {
    walk::write_places(thread);
    let head = &mut thread.stack.head;
    head.header = Header::new(kind::STACK, thread.target.image, 0, pid_tgid);
    head.id = id;
    head.frames = count as u32;
    head.end = end;
    // Sent first and marked after, so that an id is never marked whose places were lost.
    let size = (24 + 8 * count).min(24 + 8 * MAX_FRAMES as u64);
    let sent = emit::send_bytes((&raw const thread.stack).cast(), size);
    if sent {
        let _ = SENT_STACKS.insert(id, 1, u64::from(BPF_ANY));
    }
    sent
}
