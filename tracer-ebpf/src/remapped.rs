//! What a system call has done with mappings: by what it was asked for, what was there before, and the kernel's tree of them.

use core::ffi::c_void;

use aya_ebpf::helpers::{bpf_get_current_pid_tgid, generated::bpf_loop};
use tracer_ebpf::{MAX_IN_FLIGHT, remapping};

use crate::{
    inflight, mappings, returns,
    thread::{self, Thread},
};

/// File systems whose files are nothing but memory: tmpfs, of which shared anonymous memory, memfds and /dev/shm are, the one that takes its
/// place where the kernel has none, hugetlbfs, and what memfd_secret makes (include/uapi/linux/magic.h).
const MEMORY: [u64; 4] = [0x0102_1994, 0x8584_58f6, 0x9584_58f6, 0x5345_434d];

pub(crate) const PAGE: u64 = 4096;
/// Of huge pages, which the kernel aligns large anonymous mappings to (`PMD_SIZE`).
const HUGE_PAGE: u64 = 2 << 20;

/// What the kernel makes of a hint that is lower (`mmap_min_addr`, as it is set anywhere but for emulators of old machines).
const LEAST_HINT: u64 = 16 * PAGE;

/// Where addresses end for all but those who ask for more than 47 bits, and where they end for those (`TASK_SIZE_MAX`).
const USUAL_END: u64 = (1 << 47) - PAGE;
const LAST_END: u64 = (1 << 56) - PAGE;
/// Of a mapping (`vm_flags`): it may be shared, and it has huge pages of hugetlbfs.
const MAY_SHARE: u64 = 0x80;
const HUGETLB: u64 = 0x40_0000;
/// Most mappings that one call of mprotect is followed over: the kernel looks at each of them, too.
const MOST_AREAS: u32 = 4096;
/// Of shmat(2): in the place of what is there (SHM_REMAP).
const REPLACES: u64 = 0x4000;

/// System calls.
pub(crate) mod call {
    pub(crate) const MMAP: u64 = 9;
    pub(crate) const MPROTECT: u64 = 10;
    pub(crate) const MUNMAP: u64 = 11;
    pub(crate) const BRK: u64 = 12;
    pub(crate) const MREMAP: u64 = 25;
    pub(crate) const SHMAT: u64 = 30;
    pub(crate) const SHMDT: u64 = 67;
    pub(crate) const PKEY_MPROTECT: u64 = 329;
}

/// Flags of mmap(2), and what may be done with memory.
mod map {
    pub(super) const SHARED: u64 = 1;
    pub(super) const TYPE: u64 = 3;
    pub(super) const FIXED: u64 = 0x10;
    pub(super) const ANONYMOUS: u64 = 0x20;
    pub(super) const GROWSDOWN: u64 = 0x100;
    pub(super) const STACK: u64 = 0x2_0000;
    pub(super) const HUGETLB: u64 = 0x4_0000;
    pub(super) const HUGE_SHIFT: u32 = 26;
    pub(super) const FIXED_NOREPLACE: u64 = 0x10_0000;
    /// Reading, writing, execution.
    pub(super) const ANY_USE: u64 = 7;
}

/// Flags of mremap(2).
mod remap {
    pub(super) const FIXED: u64 = 2;
    pub(super) const DONTUNMAP: u64 = 4;
}

/// What is not a change, or is of no interest.
const NOTHING: u32 = 0;
/// A change by which memory only goes.
pub(crate) const GOES: u32 = 1;
/// One by which it comes.
pub(crate) const COMES: u32 = 2;
/// Where it has come cannot be told.
pub(crate) const UNKNOWN: u32 = 3;

/// What the system call of the current thread has done: one of the above, and the record of it. A global function, as
/// [`mappings::look_up_mapping`] is.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn settle_remapping() -> u32 {
    let Some(thread) = thread::existing(bpf_get_current_pid_tgid()) else { return NOTHING };
    // SAFETY: the pointer comes from a map lookup, and only this thread uses its entry.
    let thread = unsafe { &mut *thread };
    let number = thread.remapper.call - 1;
    thread.remapper.call = 0;
    let remapper = &mut thread.remapper;
    let record = &mut remapper.record;
    (record.old_start, record.old_end, record.stack) = (0, 0, 0);
    let found = match number {
        call::MMAP => mmap(thread),
        call::MUNMAP => {
            let (start, bytes) = (remapper.arguments[0], remapper.arguments[1]);
            let end = if start < USUAL_END { USUAL_END } else { LAST_END };
            let is_sound = start < end && bytes != 0 && bytes <= end - start;
            if !is_sound || !start.is_multiple_of(PAGE) || mappings::look_up_area(start) != 0 {
                return NOTHING;
            }
            tell(thread, remapping::UNMAPPED, start, start.wrapping_add(pages(bytes)));
            GOES
        }
        call::BRK => brk(thread),
        call::MREMAP => mremap(thread),
        call::SHMAT => shmat(thread),
        call::SHMDT => {
            let (start, end) = (remapper.start, remapper.end);
            if end == 0 || mappings::look_up_area(start) != 0 {
                return NOTHING;
            }
            tell(thread, remapping::UNMAPPED, start, end);
            GOES
        }
        _ => mprotect(thread),
    };
    if found == COMES {
        tell_call_in_flight(thread);
    }
    found
}

#[inline(always)]
fn tell(thread: &mut Thread, what: u64, start: u64, end: u64) {
    let record = &mut thread.remapper.record;
    (record.what, record.start, record.end) = (what, start, end);
}

#[inline(always)]
fn pages(bytes: u64) -> u64 {
    bytes.wrapping_add(PAGE - 1) & !(PAGE - 1)
}

/// Whether the file that was found to be mapped is nothing but memory.
#[inline(always)]
fn is_of_memory(thread: &Thread) -> bool {
    let kind = mappings::file_system(&thread.walk);
    kind == MEMORY[0] || kind == MEMORY[1] || kind == MEMORY[2] || kind == MEMORY[3]
}

/// Whether all of a range lies in one mapping; that is `walk.area` then.
#[inline(always)]
fn is_mapped(thread: &mut Thread, start: u64, length: u64) -> bool {
    mappings::look_up_area(start) != 0 && thread.walk.area.end.wrapping_sub(start) >= length
}

/// Whether there is anything at the begin of a range, or at its end.
#[inline(always)]
fn is_anywhere(start: u64, length: u64) -> bool {
    mappings::look_up_area(start) != 0 || mappings::look_up_area(start.wrapping_add(length - PAGE)) != 0
}

/// Whether a mapping begins at `start`, within room that was found from `room` on.
#[inline(always)]
fn begins_at(thread: &mut Thread, room: u64, start: u64, length: u64) -> bool {
    // Where nothing was, what begins later begins a mapping; at the very begin it may have become one with what was before.
    is_mapped(thread, start, length) && (start == room || thread.walk.area.start == start)
}

/// Where in the room that was found a new mapping of that length lies; 0: nowhere. The kernel may ask for more than it needs, to
/// align the mapping in it, or this offset.
#[inline(always)]
fn placed(thread: &mut Thread, length: u64, offset: u64) -> u64 {
    for at in 0..2 {
        let (room, wanted) = thread.remapper.rooms[at];
        if wanted == 0 {
            continue;
        }
        if begins_at(thread, room, room, length) {
            return room;
        }
        if wanted > length {
            let aligned = |offset: u64| room.wrapping_add(offset.wrapping_sub(room) & (HUGE_PAGE - 1));
            if begins_at(thread, room, aligned(offset), length) {
                return aligned(offset);
            }
            if begins_at(thread, room, aligned(0), length) {
                return aligned(0);
            }
            if begins_at(thread, room, room.wrapping_add(HUGE_PAGE), length) {
                return room.wrapping_add(HUGE_PAGE);
            }
        }
    }
    0
}

#[inline(always)]
fn mmap(thread: &mut Thread) -> u32 {
    let [hint, length, protection, flags, _] = thread.remapper.arguments;
    let mut length = pages(length);
    if flags & map::HUGETLB != 0 {
        let shift = flags >> map::HUGE_SHIFT & 63;
        let size = if shift == 0 { HUGE_PAGE } else { 1 << (shift & 63) };
        length = length.wrapping_add(size - 1) & !(size - 1);
    }
    if length == 0 {
        return NOTHING;
    }
    let fixed = flags & (map::FIXED | map::FIXED_NOREPLACE) != 0;
    let replaces = flags & (map::FIXED | map::FIXED_NOREPLACE) == map::FIXED;
    let mut asked = if fixed { hint } else { hint & !(PAGE - 1) };
    if !fixed && asked != 0 && asked < LEAST_HINT {
        asked = LEAST_HINT;
    }
    let found_room = thread.remapper.rooms[0].1 != 0;
    let start = if !fixed && found_room {
        placed(thread, length, 0)
    } else if (replaces || thread.remapper.end == 0) && is_mapped(thread, asked, length) {
        // What is there may be what was there: a call that was to replace it has failed then.
        if mappings::was_made(&thread.walk, thread.remapper.area_at) { asked } else { 0 }
    } else if replaces && thread.remapper.end != 0 && mappings::look_up_area(asked) == 0 {
        // It has failed when what was there had gone.
        tell(thread, remapping::UNMAPPED, asked, asked.wrapping_add(length));
        return GOES;
    } else {
        // What was there before is there still.
        0
    };
    if start == 0 {
        // It has failed, or, where room was found, been placed in a way that is not known.
        return if found_room && mappings::look_up_area(thread.remapper.rooms[0].0) != 0 { UNKNOWN } else { NOTHING };
    }
    let area = &thread.walk.area;
    let used = area.flags & map::ANY_USE != 0;
    let of_file = area.is_file != 0;
    let in_memory = of_file && is_of_memory(thread);
    let is_shared = flags & map::TYPE == map::SHARED || flags & map::TYPE == map::TYPE;
    let is_anonymous = flags & map::ANONYMOUS != 0;
    // Where something is to be replaced, what is there may be older: the call has failed.
    let is_alike = used == (protection & map::ANY_USE != 0)
        && protection & map::ANY_USE & !area.flags == 0
        && (area.flags & MAY_SHARE != 0) == is_shared
        && (of_file || is_anonymous && !is_shared)
        && (!of_file || !is_anonymous || is_shared || area.flags & HUGETLB != 0);
    if !is_alike {
        return NOTHING;
    }
    let end = start.wrapping_add(length);
    // A file of which the kernel knows nothing more than of memory: /dev/zero.
    let is_memory = is_anonymous || is_shared && in_memory || thread.walk.area.operations == 0;
    if !is_memory {
        tell(thread, remapping::UNMAPPED, start, end);
        return if fixed { GOES } else { NOTHING };
    }
    let mut what = remapping::MAPPED;
    if is_shared {
        what |= remapping::SHARED;
    }
    if !used {
        what |= remapping::RESERVED;
    }
    if flags & (map::STACK | map::GROWSDOWN) != 0 {
        what |= remapping::STACK;
    }
    tell(thread, what, start, end);
    COMES
}

#[inline(always)]
fn brk(thread: &mut Thread) -> u32 {
    let (before, now) = (pages(thread.remapper.program_break), pages(mappings::program_break()));
    if before == 0 || now == before {
        return NOTHING;
    }
    if now > before {
        tell(thread, remapping::MAPPED | remapping::BREAK, before, now);
        return COMES;
    }
    tell(thread, remapping::UNMAPPED, now, before);
    GOES
}

#[inline(always)]
fn mremap(thread: &mut Thread) -> u32 {
    let [old, old_length, new_length, flags, new] = thread.remapper.arguments;
    let (old_length, new_length) = (pages(old_length), pages(new_length));
    let before = thread.remapper.end;
    if !old.is_multiple_of(PAGE) || new_length == 0 || before == 0 {
        return NOTHING;
    }
    let stays = flags & remap::DONTUNMAP != 0;
    let found_room = thread.remapper.rooms[0].1 != 0;
    let start;
    if flags & remap::FIXED != 0 {
        // Nothing of what is mapped twice goes, of which the old length is 0.
        let left = !stays && old_length != 0 && mappings::look_up_area(old) != 0;
        // Of one length, they may be several, with nothing in between.
        let has_come = if new_length == old_length {
            mappings::look_up_area(new) != 0
        } else {
            is_mapped(thread, new, new_length)
        };
        let was_made = old_length != 0 || mappings::was_made(&thread.walk, 0);
        start = if !left && has_come && was_made { new } else { 0 };
        if start == 0 && !has_come && new.is_multiple_of(PAGE) && !is_anywhere(new, new_length) {
            // It has failed when what was there had gone.
            tell(thread, remapping::UNMAPPED, new, new.wrapping_add(new_length));
            return GOES;
        }
    } else if found_room && (stays || new_length > old_length) {
        // The offset is that of anonymous memory before Linux 6.10: where it was once; later ones take none.
        start = placed(thread, new_length, thread.remapper.offset);
        if start == 0 && !stays && mappings::look_up_area(old) == 0 {
            return UNKNOWN;
        }
    } else if new_length > old_length {
        // In place, which is possible for a whole mapping only.
        let grew = old.wrapping_add(old_length) == before && is_mapped(thread, old, new_length);
        start = if grew { old } else { 0 };
    } else if new_length < old_length {
        let left = mappings::look_up_area(old.wrapping_add(new_length)) != 0;
        start = if left { 0 } else { old };
    } else {
        return NOTHING;
    }
    if start == 0 {
        return NOTHING;
    }
    let area = &thread.walk.area;
    let in_memory = area.flags & MAY_SHARE != 0 && is_of_memory(thread);
    if new_length > old_length && area.is_file != 0 && !in_memory && area.flags & HUGETLB == 0 {
        // What there is more of it is the file's, as the rest is.
        tell(thread, remapping::UNMAPPED, start, start.wrapping_add(new_length));
        return GOES;
    }
    let left = if stays { remapping::LEFT } else { 0 };
    tell(thread, remapping::MOVED | left, start, start.wrapping_add(new_length));
    let record = &mut thread.remapper.record;
    (record.old_start, record.old_end) = (old, old.wrapping_add(old_length));
    if new_length < old_length && !stays { GOES } else { COMES }
}

#[inline(always)]
fn shmat(thread: &mut Thread) -> u32 {
    let asked = thread.remapper.arguments[1] & !(PAGE - 1);
    let (room, wanted) = thread.remapper.rooms[0];
    let mut start = asked;
    if wanted != 0 {
        start = placed(thread, PAGE, 0);
        if start == 0 {
            return if mappings::look_up_area(room) != 0 { UNKNOWN } else { NOTHING };
        }
    }
    // Where something was it fails, unless it is told to replace it.
    let is_free = wanted != 0 || thread.remapper.end == 0 || thread.remapper.arguments[2] & REPLACES != 0;
    if start == 0 || !is_free || mappings::look_up_area(start) == 0 || thread.walk.area.start != start {
        return NOTHING;
    }
    let end = thread.walk.area.end;
    tell(thread, remapping::MAPPED | remapping::SHARED, start, end);
    COMES
}

/// Only what makes reserved addresses memory, or memory reserved addresses; from where that was not so before, and as far as it has come.
#[inline(always)]
fn mprotect(thread: &mut Thread) -> u32 {
    let [start, length, protection, ..] = thread.remapper.arguments;
    let before = thread.remapper.alike;
    if before == start.wrapping_add(pages(length)) {
        return NOTHING;
    }
    let reached = reach_alike(start, length, protection);
    if before == FAR || reached == FAR {
        return UNKNOWN;
    }
    if reached <= before {
        return NOTHING;
    }
    let is_used = protection & map::ANY_USE != 0;
    let of_file = if thread.remapper.files != 0 { remapping::OF_FILE } else { 0 };
    tell(thread, if is_used { remapping::OPENED | of_file } else { remapping::CLOSED }, before, reached);
    if is_used { COMES } else { GOES }
}

/// What [`reach_alike`] says of more mappings than it looks at.
const FAR: u64 = u64::MAX;

/// Up to where, in a range, mappings follow each other that may be used if `protection` says so, or may not; [`FAR`] where they are too
/// many. A global function, as [`mappings::look_up_mapping`] is.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn reach_alike(start: u64, length: u64, protection: u64) -> u64 {
    let Some(thread) = thread::existing(bpf_get_current_pid_tgid()) else { return start };
    // SAFETY: the pointer comes from a map lookup, and only this thread uses its entry.
    let remapper = unsafe { &mut (*thread).remapper };
    let end = start.wrapping_add(pages(length));
    if end <= start {
        return end;
    }
    (remapper.at, remapper.last, remapper.over, remapper.files) = (start, end, 0, 0);
    remapper.used = u64::from(protection & map::ANY_USE != 0);
    let mut searched: *mut Thread = thread;
    // SAFETY: the callback is given a pointer that outlives the loop.
    unsafe { bpf_loop(MOST_AREAS, next_area as *mut c_void, (&raw mut searched).cast(), 0) };
    // SAFETY: only this thread uses its state.
    let remapper = unsafe { &(*searched).remapper };
    if remapper.over == 0 { FAR } else { remapper.at }
}

/// Looks at the next mapping; 1 ends the loop.
extern "C" fn next_area(_index: u64, thread: *mut *mut Thread) -> i64 {
    // SAFETY: the loop passes on what it was given, and only the current thread uses its state.
    let thread = unsafe { &mut **thread };
    let is_there = mappings::look_up_area(thread.remapper.at) != 0;
    let used = u64::from(thread.walk.area.flags & map::ANY_USE != 0);
    if !is_there || used != thread.remapper.used {
        thread.remapper.over = 1;
        return 1;
    }
    thread.remapper.files |= thread.walk.area.is_file;
    let (next, last) = (thread.walk.area.end, thread.remapper.last);
    if next >= last {
        (thread.remapper.at, thread.remapper.over) = (last, 1);
        return 1;
    }
    thread.remapper.at = next;
    0
}

/// Tells whether the caller is in a call into an allocator.
#[inline(always)]
fn tell_call_in_flight(thread: &mut Thread) {
    if thread.used == 0 {
        return;
    }
    let mut searched: *mut Thread = thread;
    // SAFETY: the callback is given a pointer that outlives the loop.
    unsafe { bpf_loop(MAX_IN_FLIGHT as u32, is_in_flight as *mut c_void, (&raw mut searched).cast(), 0) };
}

/// Looks at one call; 1 ends the loop.
extern "C" fn is_in_flight(index: u64, thread: *mut *mut Thread) -> i64 {
    // SAFETY: the loop passes on what it was given, and only the current thread uses its state.
    let thread = unsafe { &mut **thread };
    let index = index as u32 & (MAX_IN_FLIGHT as u32 - 1);
    let call = &thread.calls[index as usize & (MAX_IN_FLIGHT - 1)];
    if thread.used >> index & 1 == 0 || call.sp < thread.remapper.sp {
        return 0;
    }
    let slot = inflight::read_word(call.sp).unwrap_or(0);
    // One that has not returned: a call that was left (longjmp) has its return address overwritten sooner or later.
    let taken = thread.trampoline != 0 && slot == thread.trampoline;
    let runs = slot == call.caller || taken || thread.trampoline == 0 && returns::first() != 0;
    if runs {
        thread.remapper.record.what |= remapping::BY_ALLOCATOR;
        return 1;
    }
    0
}
