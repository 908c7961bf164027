//! Unwinding one frame after the other, by the tables of [`tracer_ebpf::unwind`], with a cache of the thread's last stack.
//!
//! A frame whose registers, return slot and saved-frame-pointer slot are as they were in the last stack has the same caller as it had then, because a
//! caller is a function of exactly those; so most frames of most stacks need no table at all. Frames found through
//! other memory (signal frames, dereferenced frame addresses) are never replayed. Where the code of a frame lies is a
//! question for [`mappings`].

use core::ffi::c_void;

use aya_ebpf::helpers::bpf_get_current_pid_tgid;
use tracer_ebpf::{
    MAX_FRAMES, end,
    unwind::{fp, kind, place},
};

use crate::{
    cached::{check, compare, is_cached, list_checks},
    loaded, mappings, returns,
    rules::rule_at,
    thread::{Context, PLACES, Thread, Walk},
    window::word,
};

/// Slot of a frame that must not be replayed from the cache.
const NOT_REPLAYABLE: u64 = 1;

/// Statuses that no stack is sent with: the rest of the stack is that of the cache; or may be.
const JOINED: u32 = u32::MAX;
const MET: u32 = u32::MAX - 1;
/// The frame is none, and the one before it the outermost.
const MADE: u32 = u32::MAX - 2;

/// Walks the stack of a thread whose probed function was called from `pc`, with stack and frame pointer as they are in
/// the caller. Returns how it ended, one of [`end`]; the frames are in the thread's cache afterwards, root first.
#[inline(always)]
pub(crate) fn walk(thread: &mut Thread, tgid: u32, pc: u64, sp: u64, frame_pointer: u64) -> u32 {
    // Before anything is looked up: a change in between is seen the next time.
    mappings::begin(thread, tgid);
    let unchanged = thread.frames.tag == thread.walk.tag;
    if !unchanged {
        loaded::tell(thread, tgid);
    }
    let cached = thread.frames.cached;
    let image = thread.target.image;
    let walk = &mut thread.walk;
    // Of unknown value: the compiler would make a call of zeroing them, which goes byte by byte.
    let zero = core::hint::black_box(0u64);
    (walk.pc, walk.sp, walk.fp, walk.back, walk.fp_slot) = (pc, sp, frame_pointer, 1, zero);
    (walk.count, walk.replayed, walk.difference) = (zero, zero, zero);
    (walk.status, walk.tainted) = (zero as u32, zero as u32);
    walk.candidate = cached as i64 - 1;
    // A group is compared in the window only.
    walk.whole = u32::from(cached > 0 && thread.frames.cache[0].sp.wrapping_sub(walk.start) <= walk.len);
    walk.seed = u64::from(image);
    walk.instance = returns::NOT_ASKED;
    if unchanged && walk.whole != 0 && is_cached(thread, cached - 1) {
        // Most of the time it is the stack of the last call. The second time its slots are listed.
        let checks = thread.frames.checks;
        let mut context = Context { thread };
        if checks == 0 {
            compare(&mut context);
        } else {
            check(&mut context, checks);
        }
        // SAFETY: only this thread uses its state.
        let thread = unsafe { &mut *context.thread };
        if thread.walk.difference == 0 {
            if checks == 0 {
                list_checks(&mut context);
            }
            // SAFETY: as above.
            let thread = unsafe { &mut *context.thread };
            thread.walk.count = cached;
            thread.walk.hash = thread.frames.cache[(cached as usize - 1) & (MAX_FRAMES - 1)].hash;
            return end::ROOT;
        }
        (thread.walk.whole, thread.walk.difference) = (0, 0);
    }
    thread.frames.tag = thread.walk.tag;
    if !unchanged {
        thread.walk.candidate = -1;
    }
    let mut context = Context { thread };
    let argument = (&raw mut context).cast::<c_void>();
    // SAFETY: the callbacks are given `context`, which outlives the loops. Each frame takes an iteration, and so does each
    // cached frame that is passed over.
    unsafe { aya_ebpf::helpers::generated::bpf_loop(2 * MAX_FRAMES as u32, next_frame as *mut c_void, argument, 0) };
    // SAFETY: only this thread uses its state.
    let thread = unsafe { &mut *context.thread };
    if thread.walk.status == MET {
        compare(&mut context);
        // SAFETY: as above.
        let walk = unsafe { &mut (*context.thread).walk };
        if walk.difference == 0 {
            walk.status = JOINED;
            walk.replayed = walk.candidate as u64 + 1;
            walk.count += walk.replayed;
        } else {
            (walk.status, walk.whole) = (0, 0);
            // SAFETY: as above.
            unsafe {
                aya_ebpf::helpers::generated::bpf_loop(2 * MAX_FRAMES as u32, next_frame as *mut c_void, argument, 0)
            };
        }
    }
    // SAFETY: as above.
    let thread = unsafe { &mut *context.thread };
    let joined = thread.walk.status == JOINED;
    let kept = if joined { thread.walk.replayed } else { 0 };
    let count = thread.walk.count;
    thread.walk.fresh = count.wrapping_sub(kept);
    thread.walk.replayed = kept;
    thread.walk.hash = HASH;
    if kept > 0 {
        thread.walk.hash = thread.frames.cache[(kept as usize - 1) & (MAX_FRAMES - 1)].hash;
    }
    let status = if joined {
        end::ROOT
    } else if thread.walk.status == 0 {
        end::DEPTH
    } else {
        thread.walk.status
    };
    let keep = status == end::ROOT && thread.walk.tainted == 0;
    // SAFETY: as above.
    unsafe { aya_ebpf::helpers::generated::bpf_loop(MAX_FRAMES as u32, merge_frame as *mut c_void, argument, 0) };
    // SAFETY: as above.
    let thread = unsafe { &mut *context.thread };
    thread.frames.cached = if keep { count } else { 0 };
    thread.frames.checks = 0;
    status
}

/// What the way up a stack has shown.
#[derive(Clone, Copy)]
pub(crate) struct Approach {
    /// It came to the slot that was looked for.
    pub(crate) reached: bool,
    /// It came to the outermost frame and did not meet the slot.
    pub(crate) whole: bool,
    /// A signal handler lies on it.
    pub(crate) signal: bool,
    /// Stack pointer at its end.
    pub(crate) sp: u64,
}

/// Goes up from the function that was called from `pc` until it comes to a frame whose return slot is `slot`, or to the outermost.
/// A slot that a jump has left behind keeps its content, so content proves nothing.
#[inline(always)]
pub(crate) fn approach(thread: &mut Thread, pc: u64, sp: u64, frame_pointer: u64, slot: u64) -> Approach {
    go_up(thread, pc, sp, frame_pointer, slot);
    let walk = &thread.walk;
    Approach {
        reached: walk.status == 0 && walk.sp == walk.hash,
        whole: walk.status == end::ROOT,
        signal: walk.signals != 0,
        sp: walk.sp,
    }
}

/// The way of [`approach`]; what it has shown is in the walk. A global function: the verifier goes through it once, whatever is known of
/// who calls it.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn go_up(thread: *mut Thread, pc: u64, sp: u64, frame_pointer: u64, slot: u64) -> u32 {
    if thread.is_null() {
        return 0;
    }
    // SAFETY: only the current thread uses its state.
    let thread = unsafe { &mut *thread };
    mappings::begin(thread, (bpf_get_current_pid_tgid() >> 32) as u32);
    let walk = &mut thread.walk;
    (walk.pc, walk.sp, walk.fp, walk.back) = (pc, sp, frame_pointer, 1);
    (walk.status, walk.tainted, walk.signals) = (0, 0, 0);
    walk.instance = returns::NOT_ASKED;
    walk.hash = slot.wrapping_add(8);
    let mut context = Context { thread };
    let argument = (&raw mut context).cast::<c_void>();
    // SAFETY: the callback is given `context`, which outlives the loop.
    unsafe { aya_ebpf::helpers::generated::bpf_loop(MAX_FRAMES as u32, approach_frame as *mut c_void, argument, 0) };
    0
}

/// One frame up, unless the address in `walk.hash` is reached; 1 ends the loop. It may lie below: the way from a stack of
/// its own for signal handlers leads anywhere.
extern "C" fn approach_frame(_index: u64, context: *mut Context) -> i64 {
    // SAFETY: the loop passes on what it was given, and only the current thread uses its state.
    let thread = unsafe { &mut *(*context).thread };
    if thread.walk.sp == thread.walk.hash {
        return 1;
    }
    let status = step(thread);
    if status == end::NO_MAPPING && uncover(thread) {
        return 0;
    }
    thread.walk.status = if status == MADE { end::ROOT } else { status };
    i64::from(status != 0)
}

/// What the fold over the places begins with.
const HASH: u64 = 0x51ed_2701_8c5b_d7a3;

/// One step of the 64-bit fold over the places. An address means something in its process only.
#[inline(always)]
fn fold(hash: u64, place: u64, seed: u64) -> u64 {
    let addresses = (place >> 63).wrapping_sub(1);
    let mixed = (hash ^ place ^ (seed << 20 & addresses)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    mixed ^ mixed >> 29
}

/// Number of frames of the last walk, and the fold over their places.
#[inline(always)]
pub(crate) fn result(thread: &Thread) -> (u64, u64) {
    (thread.walk.count, thread.walk.hash)
}

/// Writes the places of the last walk, leaf first, into the stack record.
#[inline(always)]
pub(crate) fn write_places(thread: &mut Thread) {
    write(thread, write_place as *mut c_void);
}

/// Has `one` called for every frame of the last walk, leaf first: with its number, and a [`Context`].
#[inline(always)]
pub(crate) fn write(thread: &mut Thread, one: *mut c_void) {
    let mut context = Context { thread };
    let argument = (&raw mut context).cast::<c_void>();
    // SAFETY: the callback is given `context`, which outlives the loop.
    unsafe { aya_ebpf::helpers::generated::bpf_loop(MAX_FRAMES as u32, one, argument, 0) };
}

extern "C" fn write_place(index: u64, context: *mut Context) -> i64 {
    // SAFETY: the loop passes on what it was given.
    let thread = unsafe { &mut *(*context).thread };
    let Some(from) = counted(thread, index) else { return 1 };
    thread.stack.frames[index as usize & (MAX_FRAMES - 1)] = thread.frames.cache[from].place;
    0
}

/// Where the frame is in the cache that is `index` frames above the leaf.
#[inline(always)]
pub(crate) fn counted(thread: &Thread, index: u64) -> Option<usize> {
    let count = thread.walk.count;
    (index < count).then(|| (count - 1 - index) as usize & (MAX_FRAMES - 1))
}

/// Takes one frame in, from the cache or by the tables; 1 ends the walk.
extern "C" fn next_frame(_index: u64, context: *mut Context) -> i64 {
    // SAFETY: the loop passes on what it was given, and only the current thread uses its state.
    let thread = unsafe { &mut *(*context).thread };
    if thread.walk.count >= MAX_FRAMES as u64 {
        return 1;
    }
    let candidate = thread.walk.candidate;
    if candidate >= 0 {
        let at = candidate as usize & (MAX_FRAMES - 1);
        let (sp, pc, fp, fp_slot) = {
            let frame = &thread.frames.cache[at];
            (frame.sp, frame.pc, frame.fp, frame.fp_slot)
        };
        if sp < thread.walk.sp {
            thread.walk.candidate = candidate - 1;
            return 0;
        }
        let same = sp == thread.walk.sp && pc == thread.walk.pc && fp == thread.walk.fp && thread.walk.back == 1;
        if same && thread.walk.whole != 0 {
            thread.walk.status = MET;
            return 1;
        }
        if same && candidate == 0 {
            thread.walk.place = thread.frames.cache[at].place;
            push(thread, fp_slot);
            thread.walk.replayed += 1;
            thread.walk.status = JOINED;
            return 1;
        }
        if same && fp_slot != NOT_REPLAYABLE {
            let (caller_sp, caller_pc, caller_fp) = {
                let caller = &thread.frames.cache[(at.wrapping_sub(1)) & (MAX_FRAMES - 1)];
                (caller.sp, caller.pc, caller.fp)
            };
            let holds = word(&mut thread.walk, caller_sp.wrapping_sub(8)) == caller_pc
                && (fp_slot == 0 || word(&mut thread.walk, fp_slot) == caller_fp);
            if holds {
                thread.walk.place = thread.frames.cache[at].place;
                push(thread, fp_slot);
                thread.walk.replayed += 1;
                (thread.walk.sp, thread.walk.pc, thread.walk.fp) = (caller_sp, caller_pc, caller_fp);
                thread.walk.candidate = candidate - 1;
                return 0;
            }
        }
    }
    let slot = push(thread, 0);
    thread.walk.replayed = 0;
    let mut status = step(thread);
    if status == end::NO_MAPPING {
        if uncover(thread) {
            // The same frame again, as what it is.
            thread.walk.count = slot as u64;
            return 0;
        }
        if thread.walk.pc == mappings::trampoline() && thread.walk.pc != 0 {
            status = end::TRAMPOLINE;
        }
    } else if status == MADE {
        status = end::ROOT;
        thread.walk.tainted = 1;
        // A stack has one frame at the least.
        if slot > 0 {
            thread.walk.count = slot as u64;
        }
    }
    let frame = &mut thread.frames.fresh[slot & (MAX_FRAMES - 1)];
    (frame.fp_slot, frame.place) = (thread.walk.fp_slot, thread.walk.place);
    thread.walk.status = status;
    i64::from(status != 0)
}

/// Adds the frame that is being looked at; returns its index.
#[inline(always)]
fn push(thread: &mut Thread, fp_slot: u64) -> usize {
    let at = thread.walk.count as usize;
    let frame = &mut thread.frames.fresh[at & (MAX_FRAMES - 1)];
    (frame.sp, frame.pc, frame.fp, frame.fp_slot) = (thread.walk.sp, thread.walk.pc, thread.walk.fp, fp_slot);
    frame.place = thread.walk.place;
    thread.walk.count = at as u64 + 1;
    at
}

/// Moves one fresh frame to its place in the cache and folds it in; 1 ends the loop.
extern "C" fn merge_frame(index: u64, context: *mut Context) -> i64 {
    // SAFETY: the loop passes on what it was given.
    let thread = unsafe { &mut *(*context).thread };
    if index >= thread.walk.fresh {
        return 1;
    }
    let from = (thread.walk.fresh - 1 - index) as usize & (MAX_FRAMES - 1);
    let to = (thread.walk.replayed + index) as usize & (MAX_FRAMES - 1);
    let (sp, pc, fp, fp_slot, place) = {
        let frame = &thread.frames.fresh[from];
        (frame.sp, frame.pc, frame.fp, frame.fp_slot, frame.place)
    };
    let hash = fold(thread.walk.hash, place, thread.walk.seed);
    thread.walk.hash = hash;
    let frame = &mut thread.frames.cache[to];
    (frame.sp, frame.pc, frame.fp, frame.fp_slot) = (sp, pc, fp, fp_slot);
    (frame.place, frame.hash) = (place, hash);
    0
}

/// Finds place and rule of the frame: 0, or why there is no rule. What was found before holds as long as the mappings do, which a tag
/// stands for, and so do the tables that it was found in.
#[inline(always)]
fn look_up(thread: &mut Thread) -> u32 {
    let (address, tag) = (thread.walk.pc, thread.walk.tag);
    let key = address << 1 | thread.walk.back;
    let at = (address ^ address >> 7) as usize & (PLACES - 1);
    let known = &thread.places[at];
    if known.key == key && known.tag == tag {
        (thread.walk.place, thread.walk.rule) = (known.place, known.rule);
        return 0;
    }
    let pc = address.wrapping_sub(thread.walk.back);
    // Code is named by the byte before its place: where it was interrupted, that is the first of the instruction.
    let place = pc.wrapping_add(1);
    thread.walk.place = place::at(place);
    let found = mappings::find(thread, pc);
    if mappings::is_told(found) {
        thread.walk.place = mappings::place_of(&thread.walk.mapping, place);
    }
    if found != 0 {
        return found;
    }
    let rule = rule_at(&thread.walk.mapping, pc);
    thread.walk.rule = rule;
    let place = thread.walk.place;
    let known = &mut thread.places[at];
    (known.tag, known.key, known.place, known.rule) = (tag, key, place, rule);
    0
}

/// One step by the tables: the frame becomes its caller. 0, or how the walk ended.
#[inline(always)]
fn step(thread: &mut Thread) -> u32 {
    thread.walk.fp_slot = 0;
    thread.walk.unreadable = 0;
    let found = look_up(thread);
    if found != 0 {
        return found;
    }
    let rule = thread.walk.rule;
    let offset = ((rule as i64) >> 32) as u64;
    let fp_kind = (rule >> 8) as u8 & !fp::EXACT;
    let exact = rule >> 15 & 1;
    let fp_offset = ((rule << 32) as i64 >> 48) as u64;
    let walk = &mut thread.walk;
    let mut saved_fp = 0;
    let cfa = match rule as u8 {
        kind::SP => walk.sp.wrapping_add(offset),
        kind::FP | kind::SWITCHED => walk.fp.wrapping_add(offset),
        kind::PLT => walk.sp.wrapping_add(if walk.pc & 15 >= offset { 16 } else { 8 }),
        kind::STOP => return end::ROOT,
        // The ABI's mark of the outermost frame, where code is known to keep it.
        kind::GO if walk.fp == 0 => return end::ROOT,
        kind::FRAME_POINTERS if walk.fp == 0 => return end::NO_RULE,
        kind::FRAME_POINTERS | kind::GO => {
            saved_fp = walk.fp;
            walk.fp.wrapping_add(16)
        }
        kind::SIGNAL => return step_signal(walk),
        kind::MADE if walk.back != 0 => return MADE,
        kind::MADE => walk.sp.wrapping_add(offset),
        kind::DEREF_FP | kind::DEREF_SP => {
            let base = if rule as u8 == kind::DEREF_FP { walk.fp } else { walk.sp };
            let before = ((offset << 48) as i64 >> 48) as u64;
            let after = ((offset << 32) as i64 >> 48) as u64;
            walk.tainted = 1;
            word(walk, base.wrapping_add(before)).wrapping_add(after)
        }
        kind::NONE => return end::NO_RULE,
        _ => return end::UNSUPPORTED_RULE,
    };
    if cfa & 7 != 0 {
        return end::BAD_MEMORY;
    }
    // The stack grows down: a caller's frame lies above, unless it is on another stack.
    if cfa < walk.sp.wrapping_add(8) {
        if !kind::may_lead_elsewhere(rule as u8) || cfa == walk.sp {
            // Where a thread begins, with the frame pointer's mark of the outermost frame, some tables say that it has no frame.
            let is_first = rule as u8 == kind::SP && offset == 0 && walk.fp == 0;
            return if is_first { end::ROOT } else { end::BAD_MEMORY };
        }
        walk.tainted = 1;
    }
    if fp_kind == fp::AT_CFA {
        saved_fp = cfa.wrapping_add(fp_offset);
    } else if fp_kind == fp::AT_FP {
        saved_fp = walk.fp.wrapping_add(fp_offset);
    }
    let mut caller_fp = walk.fp;
    if saved_fp != 0 {
        caller_fp = word(walk, saved_fp);
    }
    let caller = word(walk, cfa - 8);
    if walk.unreadable != 0 {
        return end::BAD_MEMORY;
    }
    walk.fp = caller_fp;
    walk.fp_slot = saved_fp;
    walk.sp = cfa;
    // Without a branch: hardly any frame is of a signal, and those of the kernel's have a rule of their own.
    walk.back = exact ^ 1;
    walk.tainted |= exact as u32;
    walk.signals |= exact as u32;
    walk.pc = caller;
    match (caller, rule as u8) {
        (0, kind::FRAME_POINTERS) => end::NO_RULE,
        (0, _) => end::ROOT,
        _ => 0,
    }
}

/// Out of a signal frame: the kernel put all registers into a ucontext at the stack pointer + 40 (general registers in
/// the order of <sys/ucontext.h>: rbp is 10, rsp 15, rip 16).
#[inline(always)]
fn step_signal(walk: &mut Walk) -> u32 {
    let registers = walk.sp.wrapping_add(40);
    (walk.tainted, walk.signals) = (1, 1);
    let fp = word(walk, registers.wrapping_add(10 * 8));
    let sp = word(walk, registers.wrapping_add(15 * 8));
    let pc = word(walk, registers.wrapping_add(16 * 8));
    if walk.unreadable != 0 {
        return end::BAD_MEMORY;
    }
    (walk.fp, walk.sp, walk.pc) = (fp, sp, pc);
    // Where it was interrupted, not where it will return to.
    walk.back = 0;
    walk.fp_slot = NOT_REPLAYABLE;
    0
}

/// Puts the address that a return probe has taken out of the frame's return slot in the place of the kernel's trampoline. That is
/// at the very beginning of its mapping, so the call that it would return from lies in none. Whether there was one.
#[inline(always)]
fn uncover(thread: &mut Thread) -> bool {
    let slot = thread.walk.sp.wrapping_sub(8);
    let original = returns::original(thread, slot);
    if original == 0 || original == thread.walk.pc {
        return false;
    }
    // What the slot holds does not tell the caller.
    (thread.walk.pc, thread.walk.back, thread.walk.tainted) = (original, 1, 1);
    true
}
