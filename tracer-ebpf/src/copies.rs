//! Stacks with the memory that they were found in: what tests of unwinding compare with. No part of tracing.

use core::ffi::c_void;

use aya_ebpf::{
    EbpfContext as _,
    bindings::pt_regs,
    helpers::{
        bpf_get_current_pid_tgid, bpf_send_signal,
        generated::{bpf_probe_read_kernel, bpf_probe_read_user},
    },
    macros::map,
    maps::{Array, RingBuf},
    programs::ProbeContext,
};
use tracer_ebpf::{COPIED_BYTES, Header, MAX_FRAMES, StackCopy, kind};

use crate::{alloc, memo, process, registers, stack, thread::Context, walk, window};

/// Its size is set by user space before loading.
#[map]
static STACK_COPIES: RingBuf = RingBuf::with_byte_size(4096, 0);

/// At how many more calls the process is to be stopped, for debuggers to look at it.
#[map]
static STOPS: Array<u32> = Array::with_max_entries(1, 0);

const PAGE: u64 = 4096;

/// Entry of an allocator function: its caller's stack is found as for a record, and sent with the thread's stack memory if
/// there is room.
#[inline(always)]
pub(crate) fn copy(ctx: &ProbeContext) {
    let pid_tgid = bpf_get_current_pid_tgid();
    let Some(thread) = alloc::current(ctx, pid_tgid) else { return };
    let sp = registers::stack_pointer(ctx.as_ptr());
    window::read_window(thread, sp);
    let caller = window::word(&mut thread.walk, sp);
    let fp = registers::frame_pointer(ctx.as_ptr());
    let registers = (caller, sp.wrapping_add(8), fp);
    let first = stack::find(thread, pid_tgid, registers, true);
    let remembered = if first.remembered { first.id } else { 0 };
    let found = if first.remembered { stack::find(thread, pid_tgid, registers, false) } else { first };
    memo::keep(thread, found.id, memo::mark(found.id));
    let Some(mut entry) = STACK_COPIES.reserve::<StackCopy>(0) else { return };
    walk::write(thread, write_address as *mut c_void);
    let copy = entry.as_mut_ptr();
    // SAFETY: the entry has room for a copy, all of which is written or not looked at; the helpers check addresses.
    unsafe {
        let head = &raw mut (*copy).head;
        (*head).header = Header::new(kind::STACK, thread.target.image, 0, pid_tgid);
        ((*head).id, (*head).frames, (*head).end) = (found.id, found.count as u32, found.end);
        all_registers(ctx.as_ptr(), &mut (*copy).registers);
        let addresses: *mut c_void = (&raw mut (*copy).addresses).cast();
        bpf_probe_read_kernel(addresses, 8 * MAX_FRAMES as u32, (&raw const thread.stack.frames).cast());
        let start = sp & !(PAGE - 1);
        let memory: *mut u8 = (&raw mut (*copy).memory).cast();
        let mut len = 0;
        for page in 0..COPIED_BYTES as u64 / PAGE {
            let to = memory.add((page * PAGE) as usize).cast();
            if bpf_probe_read_user(to, PAGE as u32, (start + page * PAGE) as *const c_void) != 0 {
                break;
            }
            len += PAGE;
        }
        ((*copy).start, (*copy).len) = (start, len);
        (*copy).remembered = remembered;
        (*copy).stopped = u64::from(stop());
    }
    entry.submit(0);
}

/// Stops the process if that was asked for.
#[inline(always)]
fn stop() -> bool {
    let Some(left) = STOPS.get_ptr_mut(0) else { return false };
    // SAFETY: the pointer comes from a map lookup. One process is looked at, by one test.
    unsafe {
        let wanted = *left > 0;
        if wanted {
            *left -= 1;
            bpf_send_signal(process::SIGSTOP);
        }
        wanted
    }
}

/// Writes the address of a frame into the stack record.
extern "C" fn write_address(index: u64, context: *mut Context) -> i64 {
    // SAFETY: the loop passes on what it was given.
    let thread = unsafe { &mut *(*context).thread };
    let Some(from) = walk::counted(thread, index) else { return 1 };
    thread.stack.frames[index as usize & (MAX_FRAMES - 1)] = thread.frames.cache[from].pc;
    0
}

/// All registers of the probed code in the order of DWARF; `ctx` is the context of a uprobe. Nothing on other machines than
/// x86-64.
#[inline(always)]
fn all_registers(ctx: *mut c_void, to: &mut [u64; 17]) {
    // SAFETY: the context of a uprobe is the registers at the probe.
    #[cfg(not(bpf_target_arch = "aarch64"))]
    unsafe {
        let regs = &*ctx.cast::<pt_regs>();
        (to[0], to[1], to[2], to[3]) = (regs.rax, regs.rdx, regs.rcx, regs.rbx);
        (to[4], to[5], to[6], to[7]) = (regs.rsi, regs.rdi, regs.rbp, regs.rsp);
        (to[8], to[9], to[10], to[11]) = (regs.r8, regs.r9, regs.r10, regs.r11);
        (to[12], to[13], to[14], to[15]) = (regs.r12, regs.r13, regs.r14, regs.r15);
        to[16] = regs.rip;
    }
    #[cfg(bpf_target_arch = "aarch64")]
    let _ = (ctx, to);
}
