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

/// The blocks that were recorded and have not ended. Its size is set by user space before loading.
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
    !is_on() || SAMPLED.insert(key(target, addr), 0, u64::from(BPF_ANY)).is_ok()
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
