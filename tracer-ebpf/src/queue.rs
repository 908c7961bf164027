//! The queue of records: one order for all of them, whichever processor they come from.
//!
//! It has slots of two words in memory that user space maps. Short records, which are most, lie in it, in one slot or two; of
//! a long one, which is in the ring buffer, it has the place. A slot is claimed by moving the end of the queue on, which takes
//! one atomic operation, and holds a record as soon as its first word is not 0: that is written last. User space makes it 0 again before it
//! gives the slot back.

use core::ffi::c_void;

use aya_ebpf::{bindings::BPF_F_MMAPABLE, helpers::generated::bpf_loop, macros::map, maps::Array};
use tracer_ebpf::{Header, Positions, Slot, kind};

/// Its slots. How many there are is set by user space before loading.
#[map]
static QUEUE: Array<Slot> = Array::with_max_entries(1, BPF_F_MMAPABLE);

/// Where it begins and ends.
#[map]
static POSITIONS: Array<Positions> = Array::with_max_entries(1, BPF_F_MMAPABLE);

/// How many slots there are, a power of two. Set by user space before loading.
#[unsafe(no_mangle)]
static QUEUE_SLOTS: u64 = 1;

/// How often a claim is tried while others make theirs.
const TRIES: u32 = 1 << 12;
/// Of a claim: there is no room; or others were faster.
const FULL: u64 = u64::MAX;
const AGAIN: u64 = u64::MAX - 1;

#[inline(always)]
pub(crate) fn slots() -> u64 {
    // SAFETY: a read of a global that user space wrote before loading.
    unsafe { core::ptr::read_volatile(&raw const QUEUE_SLOTS) }
}

/// Moves the end of the queue on by `count` slots, if there is room and nobody else does so at the same time.
#[inline(always)]
fn try_to_claim(count: u64) -> u64 {
    let Some(positions) = POSITIONS.get_ptr_mut(0) else { return FULL };
    // SAFETY: the pointer comes from a map lookup.
    unsafe {
        let end = core::ptr::read_volatile(&raw const (*positions).end);
        let begin = core::ptr::read_volatile(&raw const (*positions).begin);
        let used = end.wrapping_sub(begin);
        if used > i64::MAX as u64 {
            // Others have come, and were read, between the two looks.
            return AGAIN;
        }
        if used.wrapping_add(count) > slots() {
            return FULL;
        }
        let mut found = end;
        core::arch::asm!("r0 = cmpxchg_64({0} + 0, r0, {1})", in(reg) &raw mut (*positions).end,
            in(reg) end.wrapping_add(count), inout("r0") found, options(nostack));
        if found == end { end } else { AGAIN }
    }
}

/// As long as others are faster. A global function: it is verified once, and hardly ever called.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn claim_again(count: u64) -> u64 {
    let mut claim = [count, AGAIN];
    // SAFETY: the callback is given a pointer that outlives the loop.
    unsafe { bpf_loop(TRIES, claim_next as *mut c_void, (&raw mut claim).cast(), 0) };
    claim[1]
}

extern "C" fn claim_next(_index: u64, claim: *mut [u64; 2]) -> i64 {
    // SAFETY: the loop passes on what it was given.
    let claim = unsafe { &mut *claim };
    claim[1] = try_to_claim(claim[0]);
    i64::from(claim[1] != AGAIN)
}

/// Number of the first of `count` slots that are the caller's now, who must fill them.
#[inline(always)]
pub(crate) fn claim(count: u64) -> Option<u64> {
    let mut first = try_to_claim(count);
    if first == AGAIN {
        first = claim_again(count);
    }
    (first < AGAIN).then_some(first)
}

/// Writes one slot: its second word first.
#[inline(always)]
fn write(number: u64, words: Slot) {
    // It is there: there are as many as `slots` says.
    let Some(slot) = QUEUE.get_ptr_mut((number & slots().wrapping_sub(1)) as u32) else { return };
    // SAFETY: the pointer comes from a map lookup; the slot is the caller's.
    unsafe {
        core::ptr::write_volatile(&raw mut (*slot)[1], words[1]);
        core::ptr::write_volatile(&raw mut (*slot)[0], words[0]);
    }
}

/// Adds a record of one word behind its header, if there is room: the number of its slot.
#[inline(always)]
pub(crate) fn add(header: Header, word: u64) -> Option<u64> {
    let first = claim(1)?;
    write(first, [header.0, word]);
    Some(first)
}

/// Adds a record of three words behind its header, if there is room: the number of its second slot.
#[inline(always)]
pub(crate) fn add_long(header: Header, words: [u64; 3]) -> Option<u64> {
    let first = claim(2)?;
    let last = first.wrapping_add(1);
    write(last, [words[1], words[2]]);
    write(first, [header.0, words[0]]);
    Some(last)
}

/// Says what has become of the record for which a slot was claimed: whether it is in the ring buffer.
#[inline(always)]
pub(crate) fn fill(number: u64, header: Header, sent: bool) {
    let kind = if sent { kind::ELSEWHERE } else { kind::NOTHING };
    write(number, [u64::from(kind), header.0]);
}
