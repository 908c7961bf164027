//! The rests of stacks that end at a file of which nothing is known: as memory, for user space to unwind when it knows the file.
//!
//! Each is a stack of its own, for only unwinding tells whether two of them are the same. So there is a bound to what user space
//! has of them, and nothing is sent while other records might need the room.

use core::ffi::c_void;

use aya_ebpf::{
    helpers::{
        bpf_get_current_pid_tgid,
        generated::{bpf_loop, bpf_probe_read_user},
    },
    macros::map,
    maps::Array,
};
use tracer_ebpf::{Header, REST_BYTES, REST_RECORDS, StackRest, kind, rests};

use crate::{
    emit, epochs, mappings,
    thread::{self, Thread},
};

/// Counts of bytes by [`rests`]. Each has one side that writes it.
#[map]
static RESTS: Array<u64> = Array::with_max_entries(rests::ALL, 0);

/// Most bytes that user space may have of them. Set by user space before loading.
#[unsafe(no_mangle)]
static REST_LIMIT: u64 = 0;

const HEAD: u64 = size_of::<StackRest>() as u64;

/// What the loop over the records works on.
#[repr(C)]
struct Context {
    thread: *mut Thread,
    /// One past the last address that may hold anything of use.
    limit: u64,
    /// Bytes that were sent.
    sent: u64,
}

/// Sends the memory above the last frame of the current thread's walk, if there is room for it. The id of the stack: another one
/// than `id`, and than any other, if so. A global function, as [`mappings::look_up_mapping`] is.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn send_rest(id: u64) -> u64 {
    let pid_tgid = bpf_get_current_pid_tgid();
    // SAFETY: a read of a global that user space wrote before loading.
    let most = unsafe { core::ptr::read_volatile(&raw const REST_LIMIT) };
    let held = count(rests::SENT).wrapping_sub(count(rests::DONE));
    let room = u64::from(REST_RECORDS) * (HEAD + REST_BYTES as u64);
    let Some(changes) = epochs::changes((pid_tgid >> 32) as u32) else { return id };
    if held.wrapping_add(room) > most || !emit::has_much_room() {
        return id;
    }
    let Some(thread) = thread::existing(pid_tgid) else { return id };
    // SAFETY: the pointer comes from a map lookup, and only this thread uses its entry.
    let thread = unsafe { &mut *thread };
    if thread.walk.mapping.file == 0 {
        // One too many to have a number: nothing will ever be known of it.
        return id;
    }
    // Two threads may read the clock at once, and one thread not twice.
    let own = (id ^ emit::now()).wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ pid_tgid << 40 ^ pid_tgid;
    let walk = &mut thread.walk;
    // The window is overwritten.
    walk.len = 0;
    let rest = &mut walk.rest;
    (rest.header, rest.id) = (Header::new(kind::STACK_REST, thread.target.image, 0, pid_tgid), own);
    (rest.pc, rest.sp, rest.fp, rest.back) = (walk.pc, walk.sp, walk.fp, walk.back);
    (rest.changes, rest.start) = (changes, walk.sp & !7);
    let first = mappings::stack_start();
    let limit = if rest.start < first { first } else { u64::MAX };
    let mut context = Context { thread, limit, sent: 0 };
    let argument = (&raw mut context).cast::<c_void>();
    // SAFETY: the callback is given `context`, which outlives the loop.
    unsafe { bpf_loop(REST_RECORDS, send_page as *mut c_void, argument, 0) };
    if context.sent == 0 {
        return id;
    }
    if let Some(count) = RESTS.get_ptr_mut(rests::SENT) {
        // SAFETY: the pointer comes from a map lookup.
        unsafe { emit::atomic_add(count, context.sent) };
    }
    own
}

/// Sends what there is up to the end of a page of memory; 1 ends the loop.
extern "C" fn send_page(_index: u64, context: *mut Context) -> i64 {
    // SAFETY: the loop passes on what it was given.
    let context = unsafe { &mut *context };
    // SAFETY: only the current thread uses its state.
    let walk = unsafe { &mut (*context.thread).walk };
    let start = walk.rest.start;
    let mut len = REST_BYTES as u64 - (start & (REST_BYTES as u64 - 1));
    let left = context.limit.wrapping_sub(start);
    if left < len {
        len = left;
    }
    // For the verifier, which does not see it.
    len = core::hint::black_box(len);
    if len == 0 || len > REST_BYTES as u64 {
        return 1;
    }
    let to = walk.window.as_mut_ptr().cast::<c_void>();
    // SAFETY: the window has room for a page; the helper checks the address.
    if unsafe { bpf_probe_read_user(to, len as u32, start as *const c_void) } != 0 {
        return 1;
    }
    walk.rest.len = len;
    // What follows the head is the window.
    if !emit::send_for_now((&raw const walk.rest).cast(), HEAD + len) {
        return 1;
    }
    context.sent += HEAD + len;
    walk.rest.start = start + len;
    0
}

#[inline(always)]
fn count(of: u32) -> u64 {
    // SAFETY: the pointer comes from a map lookup.
    RESTS.get_ptr(of).map_or(0, |count| unsafe { core::ptr::read_volatile(count) })
}
