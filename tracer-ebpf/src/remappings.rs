//! Memory that processes map and unmap themselves: mmap, munmap, mremap, mprotect, brk, shmat, shmdt.
//!
//! Whoever changes mappings holds their lock (`mmap_lock`), so a change is looked at when that is given back, and not before it was
//! made nor after somebody else could make another one: records are in the order of the changes. What the call will return is
//! not known then, but the kernel's tree of mappings is there to be asked whether it was done, and where. The tracepoints of that lock cost
//! others next to nothing: a system call's would cost every call of the machine.

use core::mem::offset_of;

use aya_ebpf::{
    bindings::pt_regs,
    helpers::{
        bpf_get_current_pid_tgid,
        generated::{bpf_get_current_task_btf, bpf_task_pt_regs},
    },
    programs::RawTracePointContext,
};
use tracer_ebpf::{Header, kind, remapping};

use crate::{
    alloc,
    emit::{self, count_loss},
    kernel::kernel_word,
    mappings, process,
    remapped::{COMES, GOES, PAGE, UNKNOWN, call, reach_alike, settle_remapping},
    sampling, stack, thread, window,
};

/// Which argument of the lock's tracepoints says whether it is taken to write: 1, or 2 where a cgroup's path comes before. Set by
/// user space before loading.
#[unsafe(no_mangle)]
static LOCK_ARGUMENT: u32 = 1;

/// A register of the user's at the system call.
macro_rules! register {
    ($registers:expr, $name:ident) => {
        kernel_word($registers.wrapping_add(offset_of!(pt_regs, $name) as u64))
    };
}

#[inline(always)]
fn user_registers() -> u64 {
    // SAFETY: the task is the current one.
    unsafe { bpf_task_pt_regs(bpf_get_current_task_btf().cast()) as u64 }
}

/// Whether the lock was taken, and to write: who is to die may wait for it in vain, and gives nothing back.
macro_rules! has_lock_to_write {
    ($ctx:expr) => {{
        // SAFETY: a read of a global that user space wrote before loading.
        let second = unsafe { core::ptr::read_volatile(&raw const LOCK_ARGUMENT) } == 2;
        // Behind boxes: the compiler would choose the address to read from, which the verifier does not allow.
        let first: u64 = core::hint::black_box($ctx.arg(1));
        let next: u64 = core::hint::black_box($ctx.arg(2));
        // Only where there is such an argument: the program could not be attached.
        let (writes, success): (u64, u64) = if second { (next, $ctx.arg(3)) } else { (first, next) };
        writes & 0xff != 0 && success & 0xff != 0
    }};
}

/// The current thread has the lock of mappings: what it is about to do with them, and what there is before.
#[inline(always)]
pub(crate) fn begins(ctx: &RawTracePointContext) {
    if !has_lock_to_write!(ctx) {
        return;
    }
    let pid_tgid = bpf_get_current_pid_tgid();
    if process::target(pid_tgid).is_none() || mappings::mm() != ctx.arg::<u64>(0) {
        return;
    }
    #[cfg(not(bpf_target_arch = "aarch64"))]
    {
        let registers = user_registers();
        let number = register!(registers, orig_rax);
        let known = matches!(
            number,
            call::MMAP
                | call::MPROTECT
                | call::MUNMAP
                | call::BRK
                | call::MREMAP
                | call::SHMAT
                | call::SHMDT
                | call::PKEY_MPROTECT
        );
        if !known {
            return;
        }
        let Some(thread) = thread::of(pid_tgid) else {
            count_loss!(threads_full, 1);
            return;
        };
        // SAFETY: the pointer comes from a map lookup, and only this thread uses its entry.
        let thread = unsafe { &mut *thread };
        if !process::refresh(thread, pid_tgid) {
            return;
        }
        let remapper = &mut thread.remapper;
        remapper.arguments[0] = register!(registers, rdi);
        remapper.arguments[1] = register!(registers, rsi);
        remapper.arguments[2] = register!(registers, rdx);
        remapper.arguments[3] = register!(registers, r10);
        remapper.arguments[4] = register!(registers, r8);
        remapper.sp = register!(registers, rsp);
        remapper.rooms = [(0, 0), (0, 0)];
        (remapper.start, remapper.end, remapper.flags, remapper.area_at) = (0, 0, 0, 0);
        let address = match number {
            call::MMAP => remapper.arguments[0] & !(PAGE - 1),
            call::SHMAT => remapper.arguments[1] & !(PAGE - 1),
            call::BRK => 0,
            _ => remapper.arguments[0],
        };
        remapper.program_break = mappings::program_break();
        if address != 0 && mappings::look_up_area(address) != 0 {
            let area = &thread.walk.area;
            let (start, end, flags, at) = (area.start, area.end, area.flags, thread.walk.area_at);
            let offset = area.page.wrapping_mul(PAGE).wrapping_add(address.wrapping_sub(start));
            let remapper = &mut thread.remapper;
            (remapper.start, remapper.end, remapper.flags, remapper.area_at) = (start, end, flags, at);
            remapper.offset = offset;
        }
        if matches!(number, call::MPROTECT | call::PKEY_MPROTECT) {
            let [start, length, protection, ..] = thread.remapper.arguments;
            thread.remapper.alike = reach_alike(start, length, protection);
        }
        if let Some(remappers) = thread::remappers(pid_tgid) {
            // It is counted still if it was not seen to give the lock back: a program is not run within itself.
            if thread.remapper.call == 0 {
                // SAFETY: the pointer comes from a map lookup.
                unsafe { emit::atomic_add(remappers, 1) };
            }
            // Last: what is there holds.
            thread.remapper.call = number + 1;
        }
    }
}

/// Whether the current thread may have the lock, and have been looked at.
#[inline(always)]
fn may_remap(pid_tgid: u64) -> bool {
    // SAFETY: the pointer comes from a map lookup.
    thread::remappers(pid_tgid).is_some_and(|remappers| unsafe { core::ptr::read_volatile(remappers) } != 0)
}

/// The kernel has found room for `wanted` (`vm_unmapped_area_info`).
#[inline(always)]
pub(crate) fn room(start: u64, wanted: u64) {
    let pid_tgid = bpf_get_current_pid_tgid();
    if !may_remap(pid_tgid) {
        return;
    }
    let Some(thread) = thread::existing(pid_tgid) else { return };
    // SAFETY: the pointer comes from a map lookup, and only this thread uses its entry.
    let remapper = unsafe { &mut (*thread).remapper };
    if remapper.call == 0 || !start.is_multiple_of(PAGE) {
        return;
    }
    remapper.rooms[1] = remapper.rooms[0];
    remapper.rooms[0] = (start, mappings::wanted_length(wanted));
}

/// The current thread is about to give the lock of mappings back: tells what it has done.
#[inline(always)]
pub(crate) fn ends(ctx: &RawTracePointContext) {
    let pid_tgid = bpf_get_current_pid_tgid();
    if !may_remap(pid_tgid) {
        return;
    }
    let Some(thread) = thread::existing(pid_tgid) else { return };
    // SAFETY: the pointer comes from a map lookup, and only this thread uses its entry.
    if unsafe { (*thread).remapper.call } == 0 || mappings::mm() != ctx.arg::<u64>(0) {
        return;
    }
    if let Some(remappers) = thread::remappers(pid_tgid) {
        // SAFETY: as above.
        unsafe { emit::atomic_add(remappers, u64::MAX) };
    }
    let found = settle_remapping();
    let Some(thread) = alloc::known(pid_tgid) else { return };
    if found == UNKNOWN {
        count_loss!(remappings, 1);
    }
    if found != GOES && found != COMES {
        return;
    }
    #[cfg(not(bpf_target_arch = "aarch64"))]
    if found == COMES {
        let registers = user_registers();
        let (pc, sp, fp) = (register!(registers, rip), register!(registers, rsp), register!(registers, rbp));
        window::read_window(thread, sp);
        let stack = stack::capture_at(thread, pid_tgid, pc, sp, fp);
        thread.remapper.record.stack = stack;
        // Calls into an allocator that are not recorded are not in flight.
        if sampling::is_inside(thread, sp) {
            thread.remapper.record.what |= remapping::BY_ALLOCATOR;
        }
    }
    let time = thread.now();
    let record = &mut thread.remapper.record;
    record.header = Header::new(kind::REMAPPING, thread.target.image, 0, pid_tgid);
    record.time = time;
    emit::remapping(record);
}
