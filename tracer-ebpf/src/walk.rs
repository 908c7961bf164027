//! Unwinding one frame after the other, by the tables of [`tracer_ebpf::unwind`], with a cache of the thread's last stack.
//!
//! A frame whose registers, return slot and saved-frame-pointer slot are as they were in the last stack has the same caller as it had then, because a
//! caller is a function of exactly those, or of fewer: a frame pointer counts only where it was used ([`NEEDS_FP`]). So most frames of most stacks need
//! no table at all. Frames found through
//! other memory (signal frames, dereferenced frame addresses) are never replayed. Where the code of a frame lies is a
//! question for [`mappings`].

use core::ffi::c_void;

use tracer_ebpf::{
    MAX_FRAMES, end,
    unwind::{fp, kind, place},
};

use crate::{
    branchless::less,
    cached::{self, compare, is_cached},
    frames::{NEEDS_FP, PLACES, Place, USES_FP, Walk},
    loaded, mappings, memo, returns,
    rules::rule_at,
    thread::{Context, Thread},
    window::word,
};

/// Slot of a frame that must not be replayed from the cache.
const NOT_REPLAYABLE: u64 = 1;

/// A status that no stack is sent with: the rest of the stack is that of the cache.
const JOINED: u32 = u32::MAX;
/// The frame is none, and the one before it the outermost.
pub(crate) const MADE: u32 = u32::MAX - 1;

/// Walks the stack of a thread whose probed function was called from `pc`, with stack and frame pointer as they are in
/// the caller. Returns how it ended, one of [`end`]; the frames are in the thread's cache afterwards, root first, unless it
/// `remembers` the stack: then its id is in `walk.remembered`.
#[inline(always)]
pub(crate) fn walk(thread: &mut Thread, tgid: u32, (pc, sp, frame_pointer): (u64, u64, u64), remembers: bool) -> u32 {
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
    walk.seed = u64::from(image);
    walk.instance = returns::NOT_ASKED;
    (walk.remembered, walk.is_like_last) = (zero, zero);
    // All but the outermost frame are compared in the window only.
    let whole = cached::begin(thread);
    thread.walk.limit = if whole { cached as i64 - 1 } else { 0 };
    if unchanged && whole {
        // Most often it is the stack of the last call, or one of the latest.
        let mut joint = cached - 1;
        let is_last = is_cached(thread, joint);
        if !is_last {
            joint = if remembers { memo::joint_of(thread) } else { memo::NONE };
        }
        if joint != memo::NONE {
            thread.walk.candidate = joint as i64;
            let mut context = Context { thread };
            compare(&mut context);
            // SAFETY: only this thread uses its state.
            let thread = unsafe { &mut *context.thread };
            if thread.walk.difference == 0 {
                if is_last {
                    thread.walk.count = cached;
                    thread.walk.hash = thread.frames.cache[(cached as usize - 1) & (MAX_FRAMES - 1)].hash;
                }
                return end::ROOT;
            }
            thread.walk.remembered = 0;
            thread.walk.candidate = cached as i64 - 1;
        }
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
    if whole && keep && kept > 0 && thread.walk.fresh <= memo::MOST_FRAMES {
        thread.walk.is_like_last = 1;
    }
    // SAFETY: as above.
    unsafe { aya_ebpf::helpers::generated::bpf_loop(MAX_FRAMES as u32, merge_frame as *mut c_void, argument, 0) };
    // SAFETY: as above.
    let thread = unsafe { &mut *context.thread };
    thread.frames.cached = if keep { count } else { 0 };
    status
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
        let (sp, fp_slot, place, flags) = {
            let frame = &thread.frames.cache[at];
            (frame.sp, frame.fp_slot, frame.place, frame.flags)
        };
        if sp < thread.walk.sp {
            thread.walk.candidate = candidate - 1;
            return 0;
        }
        let same = is_cached(thread, candidate as u64);
        // A deeper stack than there is room for is cut where it is.
        let fits = thread.walk.count + (candidate as u64) < MAX_FRAMES as u64;
        if same && fits && candidate <= thread.walk.limit {
            // SAFETY: as above.
            compare(unsafe { &mut *context });
            // SAFETY: as above.
            let walk = unsafe { &mut (*(*context).thread).walk };
            if walk.difference == 0 {
                walk.status = JOINED;
                walk.replayed += candidate as u64 + 1;
                walk.count += candidate as u64 + 1;
                return 1;
            }
        }
        // SAFETY: as above.
        let thread = unsafe { &mut *(*context).thread };
        if same && candidate > 0 && fp_slot != NOT_REPLAYABLE {
            let (caller_sp, caller_pc) = {
                let caller = &thread.frames.cache[(at.wrapping_sub(1)) & (MAX_FRAMES - 1)];
                (caller.sp, caller.pc)
            };
            thread.walk.unreadable = 0;
            let return_to = word(&mut thread.walk, caller_sp.wrapping_sub(8));
            let mut caller_fp = thread.walk.fp;
            if fp_slot != 0 {
                caller_fp = word(&mut thread.walk, fp_slot);
            }
            if return_to == caller_pc && thread.walk.unreadable == 0 {
                thread.walk.place = place;
                push(thread, fp_slot, flags);
                thread.walk.replayed += 1;
                (thread.walk.sp, thread.walk.pc, thread.walk.fp) = (caller_sp, caller_pc, caller_fp);
                thread.walk.candidate = candidate - 1;
                return 0;
            }
        }
    }
    // SAFETY: as above.
    let thread = unsafe { &mut *(*context).thread };
    let slot = push(thread, 0, 0);
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
    (frame.fp_slot, frame.place, frame.flags) = (thread.walk.fp_slot, thread.walk.place, thread.walk.uses);
    thread.walk.status = status;
    i64::from(status != 0)
}

/// Adds the frame that is being looked at; returns its index.
#[inline(always)]
fn push(thread: &mut Thread, fp_slot: u64, flags: u64) -> usize {
    let at = thread.walk.count as usize;
    let frame = &mut thread.frames.fresh[at & (MAX_FRAMES - 1)];
    (frame.sp, frame.pc, frame.fp, frame.fp_slot) = (thread.walk.sp, thread.walk.pc, thread.walk.fp, fp_slot);
    (frame.place, frame.flags) = (thread.walk.place, flags);
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
    let (sp, pc, fp, fp_slot, place, mut flags) = {
        let frame = &thread.frames.fresh[from];
        (frame.sp, frame.pc, frame.fp, frame.fp_slot, frame.place, frame.flags & USES_FP)
    };
    // Without a branch, as elsewhere.
    let caller = thread.frames.cache[to.wrapping_sub(1) & (MAX_FRAMES - 1)].flags;
    flags |= (flags * NEEDS_FP) | (caller & NEEDS_FP & less(fp_slot, 1) & less(0, to as u64));
    let hash = fold(thread.walk.hash, place, thread.walk.seed);
    thread.walk.hash = hash;
    let frame = &mut thread.frames.cache[to];
    (frame.sp, frame.pc, frame.fp, frame.fp_slot) = (sp, pc, fp, fp_slot);
    (frame.place, frame.hash, frame.flags) = (place, hash, flags);
    cached::list(thread, to);
    0
}

/// Finds place and rule of the frame: 0, or why there is no rule. What was found before holds as long as the mappings do, which a tag
/// stands for, and so do the tables that it was found in.
#[inline(always)]
fn look_up(thread: &mut Thread) -> u32 {
    let (address, tag) = (thread.walk.pc, thread.walk.tag);
    let key = address << 1 | thread.walk.back;
    let first = (address ^ address >> 8) as usize % (PLACES / 2) * 2;
    let [latest, before] = [&thread.places[first], &thread.places[first + 1]];
    if latest.key == key && latest.tag == tag {
        (thread.walk.place, thread.walk.rule) = (latest.place, latest.rule);
        return 0;
    }
    if before.key == key && before.tag == tag {
        (thread.walk.place, thread.walk.rule) = (before.place, before.rule);
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
    let Place { tag: old_tag, key: old_key, place: old_place, rule: old_rule } = thread.places[first];
    let before = &mut thread.places[first + 1];
    (before.tag, before.key, before.place, before.rule) = (old_tag, old_key, old_place, old_rule);
    let latest = &mut thread.places[first];
    (latest.tag, latest.key, latest.place, latest.rule) = (tag, key, place, rule);
    0
}

/// One step by the tables: the frame becomes its caller. 0, or how the walk ended.
#[inline(always)]
pub(crate) fn step(thread: &mut Thread) -> u32 {
    thread.walk.fp_slot = 0;
    (thread.walk.unreadable, thread.walk.uses) = (0, 0);
    let found = look_up(thread);
    if found != 0 {
        return found;
    }
    let rule = thread.walk.rule;
    let offset = ((rule as i64) >> 32) as u64;
    let fp_kind = (rule >> 8) as u8 & !fp::EXACT;
    let exact = rule >> 15 & 1;
    if fp_kind == fp::AT_FP || !matches!(rule as u8, kind::SP | kind::PLT | kind::STOP) {
        thread.walk.uses = USES_FP;
    }
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
            walk.uses = USES_FP;
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
pub(crate) fn uncover(thread: &mut Thread) -> bool {
    let slot = thread.walk.sp.wrapping_sub(8);
    let original = returns::original(thread, slot);
    if original == 0 || original == thread.walk.pc {
        return false;
    }
    // What the slot holds does not tell the caller.
    (thread.walk.pc, thread.walk.back, thread.walk.tainted) = (original, 1, 1);
    true
}
