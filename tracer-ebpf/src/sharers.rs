//! Processes that work on the memory of another one (vfork, `CLONE_VM`): how many there are of each image. They are a part of it, and
//! what they do is recorded as such; when its own process ends before them, it ends without them.

use aya_ebpf::{bindings::BPF_NOEXIST, macros::map, maps::LruHashMap};

use crate::emit;

/// Sharers by image. Images whose processes user space has given up stay until others need the room.
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

/// One that did has become a program of its own, or has ended.
#[inline(always)]
pub(crate) fn ends(image: u32) {
    add(image, u64::MAX);
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
    // SAFETY: the pointer comes from a map lookup.
    let Some(count) = SHARERS.get_ptr(image).map(|count| unsafe { core::ptr::read_volatile(count) }) else { return 0 };
    let _ = SHARERS.remove(image);
    count
}
