//! The programs that trace: thin entry points. What they do is in one file per concern.
//!
//! One program at the entries of functions that allocate, which is told their shape (which arguments carry the size and the
//! old block), one for those that free, one at instructions that tell the outcome, one at returns and one for both entries and
//! returns where those instructions are not known, three for the life of threads and processes, three for Go. User space attaches
//! each to as many sites as there are.
//! Every program gives up silently when the process is not in TARGETS: probes of a file may fire for other processes.

use core::ffi::c_void;

use aya_ebpf::{
    EbpfContext as _,
    helpers::generated::{bpf_get_attach_cookie, bpf_get_func_ip},
    macros::{fentry, raw_tracepoint, uprobe, uretprobe},
    programs::{FEntryContext, ProbeContext, RawTracePointContext, RetProbeContext},
};

use tracer_ebpf::cost;

use crate::{alloc, at_once, costs, epochs, go, mappings, process, registers, remappings};

fn arg(ctx: &ProbeContext, n: usize) -> u64 {
    ctx.arg(n).unwrap_or(0)
}

/// What the program gets where it was attached: what it is [told](cost::told), and whether its instruction is dear.
fn cookie(ctx: &ProbeContext) -> u64 {
    // SAFETY: the context is that of a uprobe.
    unsafe { bpf_get_attach_cookie(ctx.as_ptr()) }
}

/// A function that allocates; the cookie tells what [`entry`](tracer_ebpf::entry) says. One program for all: each has the
/// unwinder in it, which takes the kernel longer to verify than all else.
#[uprobe]
pub fn enter(ctx: ProbeContext) -> u32 {
    let cookie = cookie(&ctx);
    let counted = costs::begin(cost::ENTRY, cookie);
    alloc::enter(&ctx, cost::told(cookie), false);
    costs::end(counted);
    0
}

/// The same and its return in one, as a session: what it gives back at the entry tells whether the kernel takes the return
/// address out (0) or leaves it alone (1).
///
/// Not by aya's macro: that gives back 0 whatever the function says.
#[unsafe(no_mangle)]
#[unsafe(link_section = "uprobe")]
pub extern "C" fn session(ctx: *mut c_void) -> u32 {
    let ctx = ProbeContext::new(ctx);
    // SAFETY: the context is that of a uprobe.
    if unsafe { bpf_get_func_ip(ctx.as_ptr()) } != registers::program_counter(ctx.as_ptr()) {
        return session_return(ctx.as_ptr());
    }
    let cookie = cookie(&ctx);
    let counted = costs::begin(cost::ENTRY, cookie);
    let taken = alloc::enter(&ctx, cost::told(cookie), true);
    costs::end(counted);
    u32::from(!taken)
}

/// Out of line: inlined, it would make the entry dearer.
#[inline(never)]
extern "C" fn session_return(ctx: *mut c_void) -> u32 {
    let counted = costs::begin(cost::RETURN, 0);
    alloc::leave(&RetProbeContext::new(ctx));
    costs::end(counted);
    0
}

/// free(block), cfree, operator delete, dallocx, sdallocx.
#[uprobe]
pub fn enter_free(ctx: ProbeContext) -> u32 {
    let cookie = cookie(&ctx);
    let counted = costs::begin(cost::FREE, cookie);
    alloc::free(arg(&ctx, 0));
    costs::end(counted);
    0
}

/// A function that frees, whose second argument is the block.
#[uprobe]
pub fn enter_free_second(ctx: ProbeContext) -> u32 {
    let cookie = cookie(&ctx);
    let counted = costs::begin(cost::FREE, cookie);
    alloc::free(arg(&ctx, 1));
    costs::end(counted);
    0
}

/// A function that may end all blocks of a heap at once; the cookie tells what [`at_once`](tracer_ebpf::entry::at_once) says.
#[uprobe]
pub fn enter_at_once(ctx: ProbeContext) -> u32 {
    let cookie = cookie(&ctx);
    let counted = costs::begin(cost::FREE, cookie);
    at_once::enter(&ctx, cost::told(cookie));
    costs::end(counted);
    0
}

/// A function of the Go runtime that allocates an object.
#[uprobe]
pub fn go_allocate(ctx: ProbeContext) -> u32 {
    let counted = costs::begin(cost::GO, 0);
    go::allocate(&ctx);
    costs::end(counted);
    0
}

/// Behind a call that gives a span in the Go runtime: the cookie tells where (`span`).
#[uprobe]
pub fn go_new_span(ctx: ProbeContext) -> u32 {
    let counted = costs::begin(cost::GO, 0);
    go::new_span(&ctx);
    costs::end(counted);
    0
}

/// Behind a call of `gcAssistAlloc` in the Go runtime.
#[uprobe]
pub fn go_after_assist(ctx: ProbeContext) -> u32 {
    let counted = costs::begin(cost::GO, 0);
    go::after_assist(&ctx);
    costs::end(counted);
    0
}

/// An instruction at which the outcome of a call is known; the cookie tells what [`exit`](tracer_ebpf::exit) says.
#[uprobe]
pub fn leave_at_exit(ctx: ProbeContext) -> u32 {
    let cookie = cookie(&ctx);
    let counted = costs::begin(cost::EXIT, cookie);
    alloc::leave_at_exit(&ctx, cost::told(cookie));
    costs::end(counted);
    0
}

/// Return, through the kernel's trampoline, of a function whose entry has `enter`.
#[uretprobe]
pub fn leave(ctx: RetProbeContext) -> u32 {
    let counted = costs::begin(cost::RETURN, 0);
    alloc::leave(&ctx);
    costs::end(counted);
    0
}

#[raw_tracepoint(tracepoint = "sched_process_exec")]
pub fn process_exec(ctx: RawTracePointContext) -> i32 {
    process::exec(&ctx);
    0
}

/// Before the process loses what its parent's memory and it have met in each other; from Linux 6.10 on.
#[raw_tracepoint(tracepoint = "sched_prepare_exec")]
pub fn process_prepares_exec(_ctx: RawTracePointContext) -> i32 {
    process::prepares_exec();
    0
}

#[raw_tracepoint(tracepoint = "sched_process_fork")]
pub fn process_fork(ctx: RawTracePointContext) -> i32 {
    process::fork(&ctx);
    0
}

#[raw_tracepoint(tracepoint = "sched_process_exit")]
pub fn thread_exit(_ctx: RawTracePointContext) -> i32 {
    process::thread_exit();
    0
}

/// The kernel has made a mapping (`perf_event_mmap`, which it calls for that).
#[fentry(function = "perf_event_mmap")]
pub fn mapped(ctx: FEntryContext) -> i32 {
    if mappings::is_code(ctx.arg(0)) {
        mappings::area_appeared(ctx.arg(0));
    }
    0
}

/// The kernel has found room for a mapping, of whatever: where [`mapped`] is not allowed. In place of [`remapping_room`], too: two
/// programs would cost those twice who are not traced.
#[raw_tracepoint(tracepoint = "vm_unmapped_area")]
pub fn placed(ctx: RawTracePointContext) -> i32 {
    remappings::room(ctx.arg(0), ctx.arg(1));
    if epochs::asks_for_memory() {
        epochs::memory_appeared();
    } else {
        mappings::room_appeared(ctx.arg(0), ctx.arg(1));
    }
    0
}

/// A thread has got the lock of the mappings of some process.
#[raw_tracepoint(tracepoint = "mmap_lock_acquire_returned")]
pub fn remapping_begins(ctx: RawTracePointContext) -> i32 {
    remappings::begins(&ctx);
    0
}

/// The kernel has found room for a mapping.
#[raw_tracepoint(tracepoint = "vm_unmapped_area")]
pub fn remapping_room(ctx: RawTracePointContext) -> i32 {
    remappings::room(ctx.arg(0), ctx.arg(1));
    0
}

/// A thread gives the lock of mappings back.
#[raw_tracepoint(tracepoint = "mmap_lock_released")]
pub fn remapping_ends(ctx: RawTracePointContext) -> i32 {
    remappings::ends(&ctx);
    0
}

/// Never attached: user space has it run, for what it has mapped itself at the address that is the first argument.
///
/// Not by aya's macro: that gives back 0 whatever the function says.
#[unsafe(no_mangle)]
#[unsafe(link_section = "raw_tp/identify")]
pub extern "C" fn identify(ctx: *mut c_void) -> u32 {
    mappings::identify(RawTracePointContext::new(ctx).arg(0))
}

#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    // Never reached: nothing here can panic, and the verifier would refuse a program that could loop.
    loop {}
}

/// The kernel offers the helpers used here (user memory, stacks) to GPL-compatible programs only.
/// The project's own licence stays MIT or Apache-2.0; "Dual MIT/GPL" is how the kernel spells a compatible dual licence.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
