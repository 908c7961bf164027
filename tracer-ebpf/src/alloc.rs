//! Entry and return of allocator functions: the rules by which calls become records.
//!
//! A free is recorded at the entry of free, an allocation at the return of malloc, so the order in the ring buffer is
//! causal: no address can be handed out again before its free is recorded.

use aya_ebpf::{
    EbpfContext,
    helpers::{bpf_get_current_pid_tgid, bpf_probe_read_user},
    programs::{ProbeContext, RetProbeContext},
};
use aya_log_ebpf::warn;
use tracer_ebpf::{Header, Target, cannot_be, entry, exit, kind};

use crate::{
    arguments, branchless,
    emit::{self, count_loss},
    inflight::{self, Entry},
    process, registers, samples, sampling, stack, strings,
    thread::{
        self, CALL_IN_PLACE, CALL_MAY_BE_INSIDE, CALL_MAY_VANISH, CALL_OR_MORE, CALL_PLAIN_RETURN, CALL_TAKE_LOST,
        CALL_UNMEASURED, CALL_UNWANTED, Call, Op, Thread,
    },
};

/// A call that came in, ready to be put in flight.
struct Entered<'a> {
    thread: &'a mut Thread,
    pid_tgid: u64,
    sp: u64,
    slot: u32,
    caller: u64,
}

/// Entry of a function that allocates, of which the cookie tells what [`entry`] says.
/// realloc takes the old block out, until the outcome is known. With `decides`, the kernel takes the return address out only
/// if this says so: the result.
#[inline(always)]
pub(crate) fn enter(ctx: &ProbeContext, cookie: u64, decides: bool) -> bool {
    // Without a branch: the verifier would go through all that follows once for each.
    let mut flags = (cookie >> entry::FUNCTION << 16) as u32
        | branchless::moved(cookie, entry::AT_INSTRUCTIONS, CALL_PLAIN_RETURN)
        | branchless::moved(cookie, entry::MAY_VANISH, CALL_MAY_VANISH)
        | branchless::moved(cookie, entry::IN_PLACE, CALL_IN_PLACE);
    if samples::is_on() {
        match judged(ctx, cookie) {
            sampling::NOTHING => return false,
            sampling::FOLLOW => flags |= CALL_UNWANTED,
            sampling::RECORD_OUTERMOST => flags |= CALL_MAY_BE_INSIDE,
            _ => {}
        }
    }
    let Some(entered) = entered(ctx, cookie, flags) else { return false };
    let size = arguments::size(entered.thread, cookie);
    let pointer = arguments::argument(entered.thread, cookie >> entry::BLOCK);
    flags |= arguments::unmeasured(entered.thread) | arguments::or_more(entered.thread);
    let mut op = Op::Returned;
    if cookie & entry::STORED != 0 {
        op = Op::Stored;
    } else if arguments::old_block(entered.thread, cookie) != 0 && samples::resize(&entered.thread.target, pointer) {
        op = Op::Realloc;
        let target = &entered.thread.target;
        let header = Header::new(kind::REALLOC_TAKE, target.image, entered.slot, entered.pid_tgid);
        if !emit::end_of_block(header, target, pointer) {
            flags |= CALL_TAKE_LOST;
        }
    }
    let mut taken = 0;
    if decides {
        let frame_pointer = registers::frame_pointer(ctx.as_ptr());
        let may = inflight::may_take(entered.thread, entered.caller, entered.sp, frame_pointer);
        // Without a branch, as above.
        taken = inflight::unknown(&mut entered.thread.search.found, u64::from(may)) as u32;
        let declined = (taken ^ 1) & 1;
        // Nobody sees how it ends.
        flags |= declined * (CALL_PLAIN_RETURN | CALL_MAY_VANISH);
        if declined != 0 {
            emit::outcome_unseen(entered.thread.target.image);
            count_loss!(returns_declined, 1);
        }
    }
    begin(ctx, entered, op, size, pointer, flags);
    taken != 0
}

/// What is to become of a call where allocations are sampled: see [`sampling::judge`].
#[inline(always)]
fn judged(ctx: &ProbeContext, cookie: u64) -> u32 {
    let Some(thread) = current(ctx, bpf_get_current_pid_tgid()) else { return sampling::NOTHING };
    arguments::read(ctx, thread, cookie);
    if arguments::unmeasured(thread) != 0 {
        // Nobody can say how likely it was to be taken.
        emit::outcome_unseen(thread.target.image);
        return sampling::NOTHING;
    }
    sampling::judge(cookie, registers::stack_pointer(ctx.as_ptr()))
}

/// Entry of free.
#[inline(always)]
pub(crate) fn free(addr: u64) {
    if addr == 0 {
        return;
    }
    let pid_tgid = bpf_get_current_pid_tgid();
    // Not of every thread: one that only frees needs no state.
    if let Some(thread) = thread::slot(pid_tgid) {
        // SAFETY: the pointer comes from a map lookup, and only this thread uses its slot.
        let thread = unsafe { &mut *thread };
        if process::refresh(thread, pid_tgid) {
            freed(&thread.target, pid_tgid, addr);
        }
        return;
    }
    let Some(target) = process::target(pid_tgid) else { return };
    freed(&target, pid_tgid, addr);
}

#[inline(always)]
fn freed(target: &Target, pid_tgid: u64, addr: u64) {
    if samples::end(target, addr) {
        emit::end_of_block(Header::new(kind::FREE, target.image, 0, pid_tgid), target, addr);
    }
}

/// Return of a function that allocates, through the kernel's trampoline.
#[inline(always)]
pub(crate) fn leave(ctx: &RetProbeContext) {
    let pid_tgid = bpf_get_current_pid_tgid();
    let Some(thread) = known(pid_tgid) else { return };
    // The return has popped the address off the stack.
    let sp = registers::stack_pointer(ctx.as_ptr()).wrapping_sub(8);
    thread.taken = thread.taken.saturating_sub(1);
    let Some((call, slot)) = inflight::pop(thread, sp) else { return };
    finish(thread, call, slot, ctx.ret::<u64>(), pid_tgid);
}

/// An instruction at which the outcome of a call is known, as the cookie tells. It may belong to several functions, and is
/// passed by calls that are parts of others.
#[inline(always)]
pub(crate) fn leave_at_exit(ctx: &ProbeContext, cookie: u64) {
    let pid_tgid = bpf_get_current_pid_tgid();
    let Some(thread) = known(pid_tgid) else { return };
    if thread.used == 0 {
        return;
    }
    let (registers, flags) = registers::machine_registers(ctx.as_ptr());
    let (rsp, rbp) = (registers[4], registers[5]);
    let place = exit::place(cookie, flags);
    let register = core::hint::black_box(place.register) as usize & 15;
    let result = match place.kind {
        exit::REGISTER => registers[register].wrapping_add(place.displacement),
        exit::CONSTANT => place.displacement,
        exit::STACK => {
            // SAFETY: the helper checks the address.
            unsafe { bpf_probe_read_user(rsp.wrapping_add(place.displacement) as *const u64).unwrap_or(0) }
        }
        // Seen further on.
        _ => return,
    };
    let Some((call, slot)) = inflight::pop_plain(thread, exit::return_slot(cookie, rsp, rbp)) else { return };
    finish(thread, call, slot, result, pid_tgid);
}

/// The outcome of a call.
#[inline(always)]
fn finish(thread: &mut Thread, mut call: Call, slot: u32, result: u64, pid_tgid: u64) {
    if call.flags & CALL_UNMEASURED != 0 && result != 0 {
        call.size = strings::measure(call.pointer, call.size);
        if call.size == strings::UNKNOWN {
            emit::outcome_unseen(thread.target.image);
            return;
        }
        if !arguments::is_wanted(call.size) {
            call.flags |= CALL_UNWANTED;
        }
    }
    let image = thread.target.image;
    let header = |kind| Header::new(kind, image, slot, pid_tgid);
    let mut addr = result;
    if call.op == Op::Stored as u32 {
        // An int: the upper half of the register means nothing.
        if result as u32 != 0 {
            return;
        }
        // SAFETY: the helper checks the address.
        let Ok(stored) = (unsafe { bpf_probe_read_user(call.pointer as *const u64) }) else {
            emit::outcome_unseen(image);
            return;
        };
        addr = stored;
    }
    if call.flags & CALL_IN_PLACE != 0 {
        addr = if result >= call.size { call.pointer } else { 0 };
        // How likely it was to be taken was told by what it asks for.
        if call.flags & CALL_OR_MORE != 0 && addr != 0 && !samples::is_on() {
            call.size = result;
        }
    }
    if addr != 0 && cannot_be(addr, call.size) {
        // Nobody can say how large the block is.
        emit::outcome_unseen(image);
        call.flags |= CALL_UNWANTED;
    }
    let unwanted = call.flags & CALL_UNWANTED != 0;
    if call.parts > 0 && addr != 0 {
        inflight::take_back(slot, addr);
    }
    let sent = if call.op == Op::Realloc as u32 {
        finish_realloc(thread, call, addr, unwanted, header)
    } else {
        let is_block = addr != 0 && !unwanted;
        is_block && send_block(thread, header(kind::ALLOC), addr, &call)
    };
    if sent {
        inflight::allocated_inside(thread, &call, addr);
    }
}

/// Tells of a new block. Where allocations are sampled its end is looked for from now on.
#[inline(always)]
fn send_block(thread: &mut Thread, header: Header, addr: u64, call: &Call) -> bool {
    if !samples::begin(&thread.target, addr) {
        emit::no_room_for_sample(call.size);
        return false;
    }
    // As old as another one, it could be taken for a block that a lost free has ended.
    let sent = thread.tell_time() && emit::block(header, addr, call.size, call.stack);
    if !sent {
        emit::lost_block(call.size);
        samples::end(&thread.target, addr);
    }
    sent
}

/// The outcome of a realloc with an old block: whether there is a new one that was told.
#[inline(always)]
fn finish_realloc(thread: &mut Thread, call: Call, result: u64, unwanted: bool, header: impl Fn(u8) -> Header) -> bool {
    let target = &{ thread.target };
    let take_lost = call.flags & CALL_TAKE_LOST != 0;
    if result == 0 && call.size > 0 {
        if take_lost {
            emit::not_lost(target, call.pointer);
        } else {
            samples::begin(target, call.pointer);
            emit::survivor(header(kind::REALLOC_FAILED), target, call.pointer);
        }
        return false;
    }
    samples::end_resized(target, call.pointer);
    if result == 0 || unwanted {
        if !take_lost {
            emit::end_of_block(header(kind::REALLOC_FREED), target, call.pointer);
        }
        return false;
    }
    let sent = send_block(thread, header(kind::REALLOC_DONE), result, &call);
    if !sent && !take_lost {
        // User space still holds the old block in suspense: it must learn that it is gone.
        emit::lost_free(target, call.pointer);
    }
    sent
}

/// Thread, process and slot of a call that is its own, or `None` when there is nothing to record.
#[inline(always)]
fn entered<'a>(ctx: &ProbeContext, cookie: u64, flags: u32) -> Option<Entered<'a>> {
    let pid_tgid = bpf_get_current_pid_tgid();
    let thread = current(ctx, pid_tgid)?;
    arguments::read(ctx, thread, cookie);
    let old = arguments::old_block(thread, cookie);
    let sp = registers::stack_pointer(ctx.as_ptr());
    let frame_pointer = registers::frame_pointer(ctx.as_ptr());
    match inflight::classify(thread, old, sp, frame_pointer, flags) {
        Entry::Nested => None,
        Entry::Own { slot, caller } => Some(Entered { thread, pid_tgid, sp, slot, caller }),
    }
}

/// State of the current thread, if its process is traced and there is room.
#[inline(always)]
pub(crate) fn current<'a>(ctx: &ProbeContext, pid_tgid: u64) -> Option<&'a mut Thread> {
    if let Some(thread) = known(pid_tgid) {
        return Some(thread);
    }
    let _ = process::target(pid_tgid)?;
    let Some(thread) = thread::of(pid_tgid) else {
        no_room(ctx);
        return None;
    };
    // SAFETY: the pointer comes from a map lookup, and only this thread uses its entry.
    let thread = unsafe { &mut *thread };
    process::refresh(thread, pid_tgid).then_some(thread)
}

/// State of the current thread, if it has called before and its process is still traced.
#[inline(always)]
pub(crate) fn known<'a>(pid_tgid: u64) -> Option<&'a mut Thread> {
    let thread = thread::existing(pid_tgid)?;
    // SAFETY: the pointer comes from a map lookup, and only this thread uses its entry.
    let thread = unsafe { &mut *thread };
    process::refresh(thread, pid_tgid).then_some(thread)
}

/// A thread found the table of threads full: counted, and said once.
#[inline(always)]
fn no_room(ctx: &ProbeContext) {
    let Some(loss) = emit::loss() else { return };
    // SAFETY: the pointer comes from a map lookup.
    if unsafe { (*loss).threads_full } == 0 {
        warn!(ctx, "there is no room for more threads: calls of further ones are not followed (--max-memory)");
    }
    count_loss!(threads_full, 1);
}

#[inline(always)]
fn begin(ctx: &ProbeContext, entered: Entered<'_>, op: Op, size: u64, pointer: u64, mut flags: u32) {
    let Entered { thread, pid_tgid, sp, slot, caller } = entered;
    // Where allocations are sampled, most are not.
    let is_measured = flags & CALL_UNMEASURED == 0;
    let wanted = flags & CALL_UNWANTED == 0 && (!is_measured || arguments::is_wanted(size));
    if !wanted {
        flags |= CALL_UNWANTED;
    }
    // Before the stack is looked for: with these in registers the verifier would go through that once for each shape.
    let op = op as u32;
    let (outer, outer_slot) = (thread.search.outer, thread.search.outer_index as u32);
    // Of unknown value: the compiler would make a call of zeroing two, which goes byte by byte.
    let zero = core::hint::black_box(0);
    *inflight::place(thread, slot) =
        Call { sp, size, pointer, caller, stack: zero, root: zero, outer, outer_slot, parts: 0, op, flags };
    if wanted {
        let stack = stack::capture(ctx, thread, pid_tgid, caller);
        let root = thread.frames.cache[0].sp;
        let call = inflight::place(thread, slot);
        (call.stack, call.root) = (stack, root);
        if samples::is_on() && flags & CALL_MAY_BE_INSIDE != 0 && sampling::is_left_out(thread, sp) {
            inflight::place(thread, slot).flags |= CALL_UNWANTED;
        }
    }
    inflight::push(thread, slot);
}
