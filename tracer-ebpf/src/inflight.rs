//! Calls into the allocator that have been entered and not yet returned, per thread.
//!
//! A call is known by the stack pointer at its entry. That tells its return from the return of a call inside it, and it
//! tells calls that never return (an exception, a longjmp, a cancelled thread) from those that still run: see
//! [`nested`].

use aya_ebpf::helpers::bpf_probe_read_user;
use tracer_ebpf::{MAX_IN_FLIGHT, Target};

use crate::{
    emit::count_loss,
    returns,
    thread::{CALL_PLAIN_RETURN, Call, Thread},
    walk,
};

#[inline(always)]
fn read_word(addr: u64) -> Option<u64> {
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

/// Decides what a call at stack pointer `sp` is, drops calls that can no longer be running, and makes room for it.
///
/// A call in flight at a lower or equal address has left the stack, except that a tail call (`jmp realloc`) enters at
/// the same address: then the return slot already holds the kernel's trampoline. A call at a higher address is the
/// outer one as long as its return slot still holds the trampoline. Within it, what the allocator's own file calls is a
/// part of it; what other files call (a new-handler that logs) is a call of its own.
///
/// The trampoline is not known for the first moments of a process. Then the last call in flight tells what it is.
#[inline(always)]
pub(crate) fn classify(thread: &mut Thread, tgid: u32, sp: u64, frame_pointer: u64) -> Entry {
    walk::read_window(thread, sp);
    let caller = walk::word(&mut thread.walk, sp);
    let mut depth = thread.depth;
    if thread.target.trampoline == 0 && depth > 0 {
        let last = thread.calls[(depth as usize - 1) & (MAX_IN_FLIGHT - 1)];
        let slot = read_word(last.sp).unwrap_or(0);
        if last.sp >= sp
            && slot != last.caller
            && (last.flags & CALL_PLAIN_RETURN == 0 || returns::original_at(thread, last.sp) == last.caller)
        {
            thread.target.trampoline = slot;
        }
    }
    let Target { trampoline, text_start, text_end, .. } = thread.target;
    for _ in 0..MAX_IN_FLIGHT {
        if depth == 0 {
            break;
        }
        let call = &thread.calls[(depth as usize - 1) & (MAX_IN_FLIGHT - 1)];
        let outer = call.sp;
        let running = if call.flags & CALL_PLAIN_RETURN != 0 {
            // One that is replaced at its own address by what it jumps to is seen to its end as that.
            // Another tracer may probe its return all the same.
            let slot = read_word(outer).unwrap_or(0);
            outer > sp && (slot == call.caller || slot == trampoline && trampoline != 0)
        } else {
            outer >= sp && trampoline != 0 && read_word(outer) == Some(trampoline)
        };
        if running {
            break;
        }
        depth -= 1;
    }
    thread.depth = depth;
    if depth > 0 {
        if trampoline != 0 && caller == trampoline {
            return Entry::Nested;
        }
        if caller >= text_start && caller < text_end {
            let slot = thread.calls[(depth as usize - 1) & (MAX_IN_FLIGHT - 1)].sp;
            if walk::runs_inside(thread, tgid, trampoline, caller, sp.wrapping_add(8), frame_pointer, slot) {
                return Entry::Nested;
            }
            // Then the others are left behind too, or are outer calls of something that was: counted if they return.
            thread.given_up += thread.depth - 1;
            thread.depth = 0;
        }
    }
    Entry::Own { slot: free_slot(thread), caller }
}

/// A slot for one more call. With too many in flight all are given up: that many are calls that never return. Those that
/// do return count as lost.
#[inline(always)]
fn free_slot(thread: &mut Thread) -> u32 {
    if thread.depth as usize >= MAX_IN_FLIGHT {
        thread.given_up += thread.depth;
        thread.depth = 0;
    }
    thread.depth
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
    thread.depth = slot + 1;
}

/// Takes out the call that returns by the `ret` instruction at stack pointer `sp`, with its slot. `None` when that ends
/// another function: not even one that was called from the same place.
#[inline(always)]
pub(crate) fn pop_plain(thread: &mut Thread, sp: u64) -> Option<(Call, u32)> {
    let mut depth = thread.depth;
    for _ in 0..MAX_IN_FLIGHT {
        if depth == 0 {
            return None;
        }
        depth -= 1;
        let outer = thread.calls[depth as usize & (MAX_IN_FLIGHT - 1)].sp;
        if outer > sp {
            return None;
        }
        if outer == sp {
            break;
        }
    }
    let call = thread.calls[depth as usize & (MAX_IN_FLIGHT - 1)];
    if call.sp != sp || call.flags & CALL_PLAIN_RETURN == 0 {
        return None;
    }
    // Another tracer may have probed its return.
    if read_word(sp) != Some(call.caller) && returns::original_at(thread, sp) != call.caller {
        return None;
    }
    thread.depth = depth;
    Some((call, depth))
}

/// Takes out the call that returns at stack pointer `sp` (of its return address) with its slot, and drops those
/// inside it that never returned. `None` for the return of a call that was a part of another.
#[inline(always)]
pub(crate) fn pop(thread: &mut Thread, sp: u64) -> Option<(Call, u32)> {
    let mut depth = thread.depth;
    for _ in 0..MAX_IN_FLIGHT {
        if depth == 0 {
            break;
        }
        depth -= 1;
        let call = &thread.calls[depth as usize & (MAX_IN_FLIGHT - 1)];
        if call.sp == sp && call.flags & CALL_PLAIN_RETURN == 0 {
            thread.depth = depth;
            return Some((*call, depth));
        }
        if call.sp > sp {
            return None;
        }
    }
    thread.depth = 0;
    if thread.given_up > 0 {
        thread.given_up -= 1;
        count_loss!(calls_too_deep, 1);
    }
    None
}
