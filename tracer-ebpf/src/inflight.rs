//! Calls into the allocator that have been entered and not yet returned, per thread.
//!
//! A call is known by the stack pointer at its entry, which is where its return address lies. A thread may be on several
//! stacks in turn (fibers, signal handlers on stacks of their own), so an address says nothing of which call is inside of
//! which, and a call at a lower address has not returned for that: the calls are in no order. What is inside of a call is
//! found by what becomes of its block ([`take_back`]). A call that never returns (an exception, a longjmp, a cancelled thread) is dropped when its
//! return slot holds something else, or when the thread enters the allocator at its very address again.

use core::ffi::c_void;

use aya_ebpf::helpers::{bpf_get_current_pid_tgid, bpf_probe_read_user, generated::bpf_loop};
use tracer_ebpf::{Header, MAX_IN_FLIGHT, kind};

use crate::{
    approach::approach,
    emit, mappings, returns, samples,
    thread::{self, CALL_MAY_VANISH, CALL_PLAIN_RETURN, CALL_UNMEASURED, Call, Op, PARTS, PartBlock, Thread},
    window,
};

/// Value of an address or index that was not found.
pub(crate) const NONE: u64 = u64::MAX;
/// Values of `Search::same`: a call at the very stack pointer of the new one is none, one that the new one is a part of,
/// or one that the new one replaces, whose index is added to the last.
const APART: u64 = 0;
const PART: u64 = 1;
const REPLACED: u64 = 2;
/// All bits of `Thread::used`.
const ALL: u32 = (1 << MAX_IN_FLIGHT) - 1;

#[inline(always)]
pub(crate) fn read_word(addr: u64) -> Option<u64> {
    // SAFETY: the helper checks the address.
    unsafe { bpf_probe_read_user(addr as *const u64).ok() }
}

/// Where a new call goes.
pub(crate) enum Entry {
    /// It is a part of the call in flight: not recorded.
    Nested,
    /// It is a call of its own, for this slot; `caller` is its return address.
    Own { slot: u32, caller: u64 },
}

/// Decides what a call at stack pointer `sp` is, drops calls that can no longer be running, and makes room for it. `old` is the block
/// that it resizes; 0: none.
///
/// A call in flight at the same address has left the stack, unless it has jumped to this one at its end (`jmp realloc`):
/// then this one has its return address, or that of the kernel's trampoline. A call at a higher address may be an outer one. One that
/// resizes the very block that the outer one does is a part of that; any other is a call of its own until it is known what
/// becomes of its block.
#[inline(always)]
pub(crate) fn classify(thread: &mut Thread, old: u64, sp: u64, frame_pointer: u64, flags: u32) -> Entry {
    window::read_window(thread, sp);
    let in_slot = window::word(&mut thread.walk, sp);
    thread.search.outer = NONE;
    if thread.used == 0 {
        return Entry::Own { slot: 0, caller: in_slot };
    }
    if thread.trampoline == 0 {
        thread.trampoline = mappings::trampoline();
    }
    let mut caller = in_slot;
    if returns::first() != 0 {
        // A function that jumped here may have had its return address taken out, by us or by another tracer.
        let original = returns::original_at(thread, sp);
        caller = if original != 0 { original } else { in_slot };
    }
    let search = &mut thread.search;
    (search.sp, search.in_slot, search.caller, search.flags) = (sp, in_slot, caller, u64::from(flags));
    (search.same, search.outer_index) = (APART, NONE);
    let mut scanned: *mut Thread = thread;
    // SAFETY: the callback is given a pointer that outlives the loop.
    unsafe { bpf_loop(MAX_IN_FLIGHT as u32, scan as *mut c_void, (&raw mut scanned).cast(), 0) };
    // SAFETY: only this thread uses its state.
    let thread = unsafe { &mut *scanned };
    let (same, outer) = (thread.search.same, thread.search.outer);
    if same == PART {
        return Entry::Nested;
    }
    if same >= REPLACED {
        return Entry::Own { slot: (same - REPLACED) as u32, caller };
    }
    let resizes = outer != NONE && old != 0 && {
        let index = thread.search.outer_index as u32;
        let call = place(thread, index);
        call.op == Op::Realloc as u32 && call.pointer == old
    };
    let full = thread.used & ALL == ALL;
    if resizes || full {
        let oldest = thread.last.wrapping_add(1) & (MAX_IN_FLIGHT as u32 - 1);
        let looked_for = if resizes { thread.search.outer_index } else { u64::from(oldest) };
        let index = unknown(&mut thread.search.found, looked_for) as u32;
        let (slot, root) = {
            let call = place(thread, index);
            (call.sp, call.root)
        };
        let way = approach(thread, caller, sp.wrapping_add(8), frame_pointer, slot);
        if resizes && !way.signal && (way.reached || !way.whole) {
            return Entry::Nested;
        }
        let over = way.whole && !way.signal && way.sp == root && root != 0;
        if over && place(thread, index).flags & CALL_PLAIN_RETURN == 0 {
            drop_call(thread, index);
        } else if over || full {
            // As many that run at once are not kept: that is told.
            unseen(thread, if over { index } else { oldest });
        }
    }
    Entry::Own { slot: free_slot(thread), caller }
}

/// Takes down that a block was allocated inside of a call, if it may be what that call's block is made of: with others in front of it or
/// behind it, it is at least as large.
#[inline(always)]
pub(crate) fn allocated_inside(thread: &mut Thread, call: &Call, addr: u64) {
    if call.outer == NONE {
        return;
    }
    let slot = call.outer_slot;
    if thread.used >> (slot & 15) & 1 == 0 {
        return;
    }
    let count = {
        let outer = place(thread, slot);
        // How much a copy takes of what was not in memory is known when it is made.
        let least = if outer.flags & CALL_UNMEASURED != 0 { 0 } else { outer.size };
        if outer.sp != call.outer || call.size < least {
            return;
        }
        outer.parts = outer.parts.wrapping_add(1);
        outer.parts - 1
    };
    let last = PARTS as u32 - 1;
    // The first one stays, the others are kept in turn.
    let at = if count <= last { count } else { 1 + (count - 1) % last };
    *part(thread, slot, at) = PartBlock { addr, size: call.size };
}

/// A place for a block that was allocated inside of a call.
#[inline(always)]
fn part(thread: &mut Thread, slot: u32, at: u32) -> &mut PartBlock {
    &mut thread.parts[core::hint::black_box(slot * PARTS as u32 + at) as usize & (MAX_IN_FLIGHT * PARTS - 1)]
}

/// Takes back what was told of blocks that the block at `result` lies in, which the call in this slot is about to return: it is made of
/// those. Two blocks that live share no memory, so who called, and from where, does not matter; user space knows which of
/// them have ended since. A global function, as [`mappings::look_up_mapping`] is.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn take_back(slot: u32, result: u64) -> u32 {
    let pid_tgid = bpf_get_current_pid_tgid();
    let Some(thread) = thread::existing(pid_tgid) else { return 0 };
    // SAFETY: the pointer comes from a map lookup, and only this thread uses its entry.
    let thread = unsafe { &mut *thread };
    let (count, wanted) = {
        let call = place(thread, slot);
        (call.parts, call.size)
    };
    // A block of no bytes behind a header begins where the block ends that holds the header. Without a branch: the verifier would go
    // through all that follows once for each.
    let behind = unknown(&mut thread.search.found, u64::from(wanted == 0));
    let header = Header::new(kind::PART, thread.target.image, slot, pid_tgid);
    for at in 0..PARTS as u32 {
        let PartBlock { addr, size } = *part(thread, slot, at);
        let inside = result.wrapping_sub(addr);
        let is_part = at < count && (inside < size.wrapping_add(behind) || inside == 0);
        if is_part && samples::end(&thread.target, addr) {
            emit::part_of_a_block(header, &thread.target, addr, size);
        }
    }
    0
}

/// Looks at one call in flight; 1 ends the loop.
extern "C" fn scan(index: u64, thread: *mut *mut Thread) -> i64 {
    // SAFETY: the loop passes on what it was given, and only the current thread uses its state.
    let thread = unsafe { &mut **thread };
    let index = index as u32 & (MAX_IN_FLIGHT as u32 - 1);
    let rest = thread.used >> index;
    if rest == 0 {
        return 1;
    }
    if rest & 1 == 0 {
        return 0;
    }
    let trampoline = thread.trampoline;
    let (sp, caller, flags) = {
        let call = &thread.calls[index as usize & (MAX_IN_FLIGHT - 1)];
        (call.sp, call.caller, call.flags)
    };
    let plain = flags & CALL_PLAIN_RETURN != 0;
    if sp == thread.search.sp {
        let new = thread.search.flags as u32;
        let jumped = if plain {
            // The same function does not jump to itself: it has been left, and is called again.
            thread.search.caller == caller && (flags ^ new) >> 16 != 0 && new & CALL_PLAIN_RETURN != 0
        } else {
            trampoline != 0 && thread.search.in_slot == trampoline
        };
        if jumped {
            (thread.search.same, thread.search.outer_index) = (PART, u64::from(index));
            return 1;
        }
        // A function that jumps to one whose return is seen in another way is seen to its end as that.
        if plain && !(thread.search.caller == caller && (flags ^ new) >> 16 != 0) {
            unseen(thread, index);
        } else {
            drop_call(thread, index);
        }
        thread.search.same = REPLACED + u64::from(index);
        return 0;
    }
    let slot = read_word(sp).unwrap_or(0);
    let taken = trampoline != 0 && slot == trampoline;
    // One whose return address is taken out may be just returning: the trampoline itself uses the slot.
    let runs = if plain { slot == caller || taken || trampoline == 0 && returns::first() != 0 } else { taken };
    if plain && !runs {
        unseen(thread, index);
    } else if runs && sp > thread.search.sp && sp < thread.search.outer {
        (thread.search.outer, thread.search.outer_index) = (sp, u64::from(index));
    }
    0
}

/// Forgets a call in flight.
#[inline(always)]
fn drop_call(thread: &mut Thread, index: u32) {
    thread.used &= !(1 << (index & 15));
}

/// Forgets a call in flight of which nobody can tell how it ended. Counted, unless it may end in such a way without having
/// allocated anything; one that returns through the trampoline is counted if it does.
#[inline(always)]
fn unseen(thread: &mut Thread, index: u32) {
    let flags = place(thread, index).flags;
    if flags & CALL_PLAIN_RETURN == 0 {
        thread.given_up += 1;
    } else if flags & CALL_MAY_VANISH == 0 {
        emit::outcome_unseen(thread.target.image);
    }
    drop_call(thread, index);
}

/// The value as the verifier cannot know it.
#[inline(always)]
pub(crate) fn unknown(memory: &mut u64, value: u64) -> u64 {
    // SAFETY: a reference.
    unsafe {
        core::ptr::write_volatile(memory, value);
        core::ptr::read_volatile(memory)
    }
}

/// A slot for one more call, of which one is free.
#[inline(always)]
fn free_slot(thread: &mut Thread) -> u32 {
    let used = core::hint::black_box(thread.used) & ALL;
    let free = !used & (used + 1);
    let slot = u64::from(free & 0xff00 != 0) << 3
        | u64::from(free & 0xf0f0 != 0) << 2
        | u64::from(free & 0xcccc != 0) << 1
        | u64::from(free & 0xaaaa != 0);
    unknown(&mut thread.search.found, slot) as u32
}

/// The slot that [`classify`] gave a call.
#[inline(always)]
pub(crate) fn place(thread: &mut Thread, slot: u32) -> &mut Call {
    // Without the box the compiler leaves the mask out, and the verifier does not know why it may.
    &mut thread.calls[core::hint::black_box(slot) as usize & (MAX_IN_FLIGHT - 1)]
}

/// Puts the call in this slot in flight.
#[inline(always)]
pub(crate) fn push(thread: &mut Thread, slot: u32) {
    thread.used |= 1 << (slot & 15);
    thread.last = slot;
}

/// Takes out the call that returns at the stack pointer `sp` (of its return address) and is seen at an instruction, with its
/// slot. `None` when that ends another function: not even one that was called from the same place.
#[inline(always)]
pub(crate) fn pop_plain(thread: &mut Thread, sp: u64) -> Option<(Call, u32)> {
    if thread.used == 0 {
        return None;
    }
    let slot = find(thread, sp, CALL_PLAIN_RETURN)?;
    let call = *place(thread, slot);
    // Another tracer may have probed its return.
    if read_word(sp) != Some(call.caller) && returns::original_at(thread, sp) != call.caller {
        return None;
    }
    drop_call(thread, slot);
    Some((call, slot))
}

/// Takes out the call that returns through the kernel's trampoline at the stack pointer `sp` (of its return address), with its
/// slot. `None` for the return of a call that was a part of another.
#[inline(always)]
pub(crate) fn pop(thread: &mut Thread, sp: u64) -> Option<(Call, u32)> {
    let Some(slot) = find(thread, sp, 0) else {
        if thread.given_up > 0 {
            thread.given_up -= 1;
            emit::outcome_unseen(thread.target.image);
        }
        return None;
    };
    drop_call(thread, slot);
    Some((*place(thread, slot), slot))
}

/// The slot of the call at `sp` whose return is seen in this way: at an instruction ([`CALL_PLAIN_RETURN`]) or not (0).
#[inline(always)]
fn find(thread: &mut Thread, sp: u64, plain: u32) -> Option<u32> {
    let last = thread.last;
    let call = place(thread, last);
    if call.sp == sp && call.flags & CALL_PLAIN_RETURN == plain && thread.used >> (last & 15) & 1 != 0 {
        return Some(last);
    }
    (thread.search.sp, thread.search.flags, thread.search.found) = (sp, u64::from(plain), NONE);
    let mut searched: *mut Thread = thread;
    // SAFETY: the callback is given a pointer that outlives the loop.
    unsafe { bpf_loop(MAX_IN_FLIGHT as u32, find_next as *mut c_void, (&raw mut searched).cast(), 0) };
    // SAFETY: only this thread uses its state.
    let found = unsafe { (*searched).search.found };
    if found == NONE { None } else { Some(found as u32) }
}

/// Looks whether a call in flight is the one that returns; 1 ends the loop.
extern "C" fn find_next(index: u64, thread: *mut *mut Thread) -> i64 {
    // SAFETY: the loop passes on what it was given, and only the current thread uses its state.
    let thread = unsafe { &mut **thread };
    let index = index as u32 & (MAX_IN_FLIGHT as u32 - 1);
    let rest = thread.used >> index;
    if rest == 0 {
        return 1;
    }
    let call = &thread.calls[index as usize & (MAX_IN_FLIGHT - 1)];
    let plain = u64::from(call.flags & CALL_PLAIN_RETURN);
    if rest & 1 != 0 && call.sp == thread.search.sp && plain == thread.search.flags {
        (thread.search.found, thread.search.wanted_root) = (u64::from(index), call.root);
        return 1;
    }
    0
}

/// How many calls with their return address taken out are looked at.
const LOOKED_AT: u32 = 8;
/// Values of `Search::wanted`, beside the return slot of a call: nothing is to be looked for; the way to the root.
const NOTHING: u64 = 0;
const ROOT: u64 = u64::MAX - 15;

/// Whether the kernel may take the return address of the call at `sp` out: not while it holds that of another call of this
/// thread, unless that is over for certain, or an outer one on the same stack. The kernel takes what is further down the
/// stack than a return that it sees for over, forgets it, and then has nowhere to return to.
#[inline(always)]
pub(crate) fn may_take(thread: &mut Thread, caller: u64, sp: u64, frame_pointer: u64) -> bool {
    if thread.taken == 0 {
        thread.taken = 1;
        return true;
    }
    let first = returns::first();
    if first == 0 {
        thread.taken = 1;
        return true;
    }
    let search = &mut thread.search;
    (search.sp, search.instance, search.wanted) = (sp, first, NOTHING);
    let mut looked: *mut Thread = thread;
    // SAFETY: the callback is given a pointer that outlives the loop.
    unsafe { bpf_loop(LOOKED_AT, look as *mut c_void, (&raw mut looked).cast(), 0) };
    // SAFETY: only this thread uses its state.
    let thread = unsafe { &mut *looked };
    let (instance, wanted) = (thread.search.instance, thread.search.wanted);
    if wanted == NOTHING && instance == 0 {
        thread.taken = 1;
        return true;
    }
    if wanted == NOTHING || wanted == ROOT && instance != 0 {
        // More than can be looked at.
        return false;
    }
    thread.search.wanted_root = 0;
    if wanted != ROOT {
        // Where its stack begins, if it is one of ours.
        let _ = find(thread, wanted, 0);
    }
    let root = thread.search.wanted_root;
    let way = approach(thread, caller, sp.wrapping_add(8), frame_pointer, wanted);
    let outer = way.reached & (wanted > sp);
    let over = way.whole & !way.signal & (wanted == ROOT || way.sp == root && root != 0);
    let may = outer | over;
    thread.taken += u64::from(may);
    may
}

/// Looks at one call whose return address the kernel holds, innermost first; 1 ends the loop.
extern "C" fn look(_index: u64, thread: *mut *mut Thread) -> i64 {
    // SAFETY: the loop passes on what it was given, and only the current thread uses its state.
    let thread = unsafe { &mut **thread };
    if thread.search.instance == 0 {
        return 1;
    }
    let (slot, next) = returns::slot_and_next(thread.search.instance);
    let trampoline = thread.trampoline;
    let sp = thread.search.sp;
    // The slot of this call holds its own return address by now.
    let over = slot == sp || trampoline != 0 && read_word(slot).unwrap_or(trampoline) != trampoline;
    if !over {
        thread.search.wanted = slot;
        return 1;
    }
    if slot < sp {
        // It may be just returning, interrupted in the trampoline, which uses the slot.
        thread.search.wanted = ROOT;
    }
    thread.search.instance = next;
    0
}
