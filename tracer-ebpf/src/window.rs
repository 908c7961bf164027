//! Stack memory, read once, in bulk: a read costs the same for a word and for pages.

use core::ffi::c_void;

use aya_ebpf::helpers::generated::bpf_probe_read_user;

use crate::{
    frames::{WINDOW, WINDOW_WORDS, Walk},
    thread::Thread,
};

/// What is read when nothing is known of the stack's size.
const FIRST_READ: u64 = 4096;
/// Reads the stack from `sp` on into the window: as far as the cached root, or a page's worth. To be done before anything
/// else is asked of a walk.
#[inline(always)]
pub(crate) fn read_window(thread: &mut Thread, sp: u64) {
    let start = sp & !7;
    let mut len = FIRST_READ;
    if thread.frames.cached > 0 {
        len = thread.frames.cache[0].sp.wrapping_sub(start);
        if len > WINDOW {
            len = WINDOW;
        }
    }
    thread.walk.start = start;
    thread.walk.len = 0;
    let to = thread.walk.window.as_mut_ptr().cast::<c_void>();
    // SAFETY: the window has room for `len` bytes; the helper checks the address.
    if len > 0 && len <= WINDOW && unsafe { bpf_probe_read_user(to, len as u32, start as *const c_void) } == 0 {
        thread.walk.len = len;
    }
}

/// The word at `addr`, from the window if it is there; 0, and `unreadable` set, when it cannot be read. Not an `Option`:
/// the compiler may copy the value of a `None`, which the verifier takes for the use of an unset register.
#[inline(always)]
pub(crate) fn word(walk: &mut Walk, addr: u64) -> u64 {
    let offset = addr.wrapping_sub(walk.start);
    if offset < walk.len && addr & 7 == 0 {
        return walk.window[(offset >> 3) as usize & (WINDOW_WORDS - 1)];
    }
    let mut value = 0u64;
    // SAFETY: the helper checks the address; on failure it zeroes the value.
    if unsafe { bpf_probe_read_user((&raw mut value).cast(), 8, addr as *const c_void) } != 0 {
        walk.unreadable = 1;
        return 0;
    }
    value
}
