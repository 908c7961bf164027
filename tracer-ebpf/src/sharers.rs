//! Processes that work on the memory of another one (vfork, `CLONE_VM`): how many there are of each image. They are a part of it, and
//! what they do is recorded as such; when its own process ends before them, it ends without them.
//!
//! A process that has started another one by vfork goes on, and may end, as soon as that is about to become a program: the exec itself
//! comes to its end, and is told, later. Nothing was missed of one that becomes a program right after the end of its image.

use aya_ebpf::{bindings::BPF_NOEXIST, macros::map, maps::LruHashMap};

use crate::emit;

/// Sharers by image: how many, in the lower [`COUNT_BITS`]; above, when the image ended, in units of as many bits of nanoseconds of
/// CLOCK_MONOTONIC; 0: it lives. Images whose processes user space has given up, and those that ended before their sharers, stay until
/// others need the room.
#[map]
static SHARERS: LruHashMap<u32, u64> = LruHashMap::with_max_entries(1 << 14, 0);

/// Another process works on the memory of an image.
#[inline(always)]
pub(crate) fn begins(image: u32) {
    if !add(image, 1) && SHARERS.insert(image, 1, u64::from(BPF_NOEXIST)).is_err() {
        // Another thread came first.
        add(image, 1);
    }
}

const COUNT_BITS: u32 = 16;
const COUNT: u64 = (1 << COUNT_BITS) - 1;

/// How long after the end of its image a sharer that becomes a program was about to, at most: nanoseconds.
const ABOUT_TO: u64 = 100_000_000;

/// One that did has ended.
#[inline(always)]
pub(crate) fn ends(image: u32) {
    add(image, u64::MAX);
}

/// One that did has become a program of its own; whether it was counted by [`left`] although it was just about to.
#[inline(always)]
pub(crate) fn becomes_program(image: u32) -> bool {
    let Some(sharers) = SHARERS.get_ptr_mut(image) else { return false };
    // SAFETY: the pointer comes from a map lookup.
    let ended = unsafe {
        emit::atomic_add(sharers, u64::MAX);
        core::ptr::read_volatile(sharers) & !COUNT
    };
    ended != 0 && emit::now().wrapping_sub(ended) < ABOUT_TO + COUNT
}

#[inline(always)]
fn add(image: u32, difference: u64) -> bool {
    let Some(count) = SHARERS.get_ptr_mut(image) else { return false };
    // SAFETY: the pointer comes from a map lookup.
    unsafe { emit::atomic_add(count, difference) };
    true
}

/// An image has ended: how many are left of those that worked on its memory, which nobody follows from now on.
#[inline(always)]
pub(crate) fn left(image: u32) -> u64 {
    let Some(sharers) = SHARERS.get_ptr_mut(image) else { return 0 };
    // SAFETY: the pointer comes from a map lookup.
    let count = unsafe { core::ptr::read_volatile(sharers) } & COUNT;
    if count == 0 {
        let _ = SHARERS.remove(image);
    } else {
        // SAFETY: as above.
        unsafe { emit::atomic_add(sharers, emit::now() & !COUNT) };
    }
    count
}
