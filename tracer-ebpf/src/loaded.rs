//! Which files' code a process has mapped, told at the next call of the thread that has, or at its end: the process may be gone before
//! anybody looks at what it has mapped. At a thread's end the kernel has its mappings still from Linux 6.16 on; but a library is hardly ever
//! loaded without a call into the allocator after its code is there.

use core::ffi::c_void;

use aya_ebpf::helpers::{bpf_get_current_pid_tgid, generated::bpf_loop};
use tracer_ebpf::{
    Header, kind,
    unwind::{Loaded, MAX_APPEARED},
};

use crate::{
    emit, epochs, mappings,
    thread::{self, Thread},
};

/// Tells what code has appeared in the process since the thread looked last.
#[inline(always)]
pub(crate) fn tell(thread: &Thread, tgid: u32) {
    if let Some(changes) = epochs::changes(tgid)
        && changes != thread.looked_for_code
    {
        look_for_code();
    }
}

/// [`tell`] where something has appeared. A global function, as [`mappings::look_up_mapping`] is.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn look_for_code() -> u32 {
    let pid_tgid = bpf_get_current_pid_tgid();
    let Some(thread) = thread::existing(pid_tgid) else { return 0 };
    let Some(changes) = epochs::changes((pid_tgid >> 32) as u32) else { return 0 };
    // SAFETY: the pointer comes from a map lookup, and only this thread uses its entry.
    let count = unsafe { changes.wrapping_sub((*thread).looked_for_code) };
    if count == 0 {
        return 0;
    }
    // SAFETY: as above.
    unsafe { (*thread).looked_for_code = changes };
    let times = if count > MAX_APPEARED as u64 { MAX_APPEARED as u64 } else { count };
    let mut latest = changes;
    // SAFETY: the callback is given a pointer that outlives the loop.
    unsafe { bpf_loop(times as u32, look_at as *mut c_void, (&raw mut latest).cast(), 0) };
    0
}

/// Looks at what is in one of the latest places where mappings have appeared.
extern "C" fn look_at(index: u64, latest: *mut u64) -> i64 {
    // SAFETY: the loop passes on what it was given.
    let place = epochs::place_of(unsafe { *latest }.wrapping_sub(index));
    look_at_place(place);
    0
}

/// If code of a file begins here, it is told which: in the first mapping, or in the one behind that. A global function, as above.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn look_at_place(start: u64) -> u32 {
    let pid_tgid = bpf_get_current_pid_tgid();
    let Some(thread) = thread::existing(pid_tgid) else { return 0 };
    if start == 0 || !mappings::look_up_any(thread, start) {
        return 0;
    }
    // SAFETY: the pointer comes from a map lookup, and only this thread uses its entry.
    let area = unsafe { &(*thread).walk.area };
    if !mappings::is_code_of_file(area) {
        let behind = area.end;
        // SAFETY: as above.
        if !mappings::look_up_any(thread, behind) || !mappings::is_code_of_file(unsafe { &(*thread).walk.area }) {
            return 0;
        }
    }
    // SAFETY: as above.
    let (key, image) = unsafe { ((*thread).walk.area.key, (*thread).target.image) };
    emit::loaded(&Loaded { header: Header::new(kind::LOADED, image, 0, pid_tgid), key, time: emit::now() });
    0
}
