//! Which blocks are recorded: all, or, where allocations are sampled, those in a set, and ends of others are of no interest.

use aya_ebpf::{
    bindings::{BPF_ANY, BPF_F_NO_PREALLOC},
    macros::map,
    maps::HashMap,
};
use tracer_ebpf::{BlockKey, Target};

/// Whether allocations are sampled: 0 or 1. Set by user space before loading.
#[unsafe(no_mangle)]
static SAMPLES: u64 = 0;

/// Values of [`SAMPLED`].
const HELD: u8 = 0;
const RESIZED: u8 = 1;

/// The blocks that were recorded and have not ended, and whether a realloc of which the outcome is not known has each: that may never
/// be, and then the block lives on. The size of the set is set by user space before loading.
#[map]
static SAMPLED: HashMap<BlockKey, u8> = HashMap::with_max_entries(1, BPF_F_NO_PREALLOC);

/// Whether only some allocations are recorded.
#[inline(always)]
pub(crate) fn is_on() -> bool {
    // SAFETY: a read of a global that user space wrote before loading.
    unsafe { core::ptr::read_volatile(&raw const SAMPLES) != 0 }
}

#[inline(always)]
fn key(target: &Target, addr: u64) -> BlockKey {
    BlockKey { addr, image: target.image, reserved: 0 }
}

/// A block is about to be recorded; whether there was room to remember it, where that is to be.
#[inline(always)]
pub(crate) fn begin(target: &Target, addr: u64) -> bool {
    !is_on() || SAMPLED.insert(key(target, addr), HELD, u64::from(BPF_ANY)).is_ok()
}

/// Whether a block is in the set.
#[inline(always)]
pub(crate) fn has(target: &Target, addr: u64) -> bool {
    SAMPLED.get_ptr(key(target, addr)).is_some()
}

/// Whether the end of a block is of interest; it is forgotten.
#[inline(always)]
pub(crate) fn end(target: &Target, addr: u64) -> bool {
    // Looked up first: that takes no lock, and most are not there.
    !is_on() || has(target, addr) && SAMPLED.remove(key(target, addr)).is_ok()
}

/// A realloc has a block: whether that is of interest.
#[inline(always)]
pub(crate) fn resize(target: &Target, addr: u64) -> bool {
    if !is_on() {
        return true;
    }
    let Some(state) = SAMPLED.get_ptr_mut(key(target, addr)) else { return false };
    // SAFETY: the pointer comes from a map lookup.
    unsafe { core::ptr::write_volatile(state, RESIZED) };
    true
}

/// The realloc that has a block has ended it. Another one may have been told at its address since.
#[inline(always)]
pub(crate) fn end_resized(target: &Target, addr: u64) {
    if !is_on() {
        return;
    }
    if let Some(state) = SAMPLED.get_ptr(key(target, addr))
        // SAFETY: the pointer comes from a map lookup.
        && unsafe { core::ptr::read_volatile(state) } == RESIZED
    {
        let _ = SAMPLED.remove(key(target, addr));
    }
}
