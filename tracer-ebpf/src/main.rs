//! The BPF programs: thin entry points. What they do is in one file per concern.
//!
//! One entry program per shape of allocator function (which arguments carry the size and the old block), one program
//! for all returns, two for the life of threads and processes. User space attaches each to as many sites as there are.
//! Every program gives up silently when the process is not in TARGETS: probes of a file may fire for other processes.
#![no_std]
#![no_main]
#![feature(asm_experimental_arch)]
#![expect(missing_docs, unreachable_pub, reason = "a program, not a library; entry points are exported by name")]

mod alloc;
mod copies;
mod emit;
mod go;
mod inflight;
mod process;
mod returns;
mod stack;
mod thread;
mod walk;

use aya_ebpf::{
    bindings::BPF_F_USER_STACK,
    macros::{map, raw_tracepoint, uprobe, uretprobe},
    maps::StackTrace,
    programs::{ProbeContext, RawTracePointContext, RetProbeContext, tracing::StackIdContext as _},
};
use tracer_ebpf::SIZE_OVERFLOW;

use crate::thread::Op;

fn arg(ctx: &ProbeContext, n: usize) -> u64 {
    ctx.arg(n).unwrap_or(0)
}

/// `count * size`, or [`SIZE_OVERFLOW`]. By halves: BPF has no 128-bit product, which a plain check compiles to.
fn product(count: u64, size: u64) -> u64 {
    let (count_high, count_low) = (count >> 32, count & 0xffff_ffff);
    let (size_high, size_low) = (size >> 32, size & 0xffff_ffff);
    if count_high != 0 && size_high != 0 {
        return SIZE_OVERFLOW;
    }
    let cross = count_high * size_low + count_low * size_high;
    if cross >> 32 != 0 {
        return SIZE_OVERFLOW;
    }
    let low = count_low * size_low;
    let sum = low.wrapping_add(cross << 32);
    if sum < low { SIZE_OVERFLOW } else { sum }
}

/// malloc(size), valloc, pvalloc, mallocx, operator new that does not throw.
#[uprobe]
pub fn enter_malloc(ctx: ProbeContext) -> u32 {
    alloc::enter(&ctx, Op::Returned, arg(&ctx, 0), 0);
    0
}

/// operator new(size), which may throw.
#[uprobe]
pub fn enter_new(ctx: ProbeContext) -> u32 {
    alloc::enter_new(&ctx, arg(&ctx, 0));
    0
}

/// calloc(count, size).
#[uprobe]
pub fn enter_calloc(ctx: ProbeContext) -> u32 {
    alloc::enter(&ctx, Op::Returned, product(arg(&ctx, 0), arg(&ctx, 1)), 0);
    0
}

/// memalign(alignment, size), aligned_alloc.
#[uprobe]
pub fn enter_memalign(ctx: ProbeContext) -> u32 {
    alloc::enter(&ctx, Op::Returned, arg(&ctx, 1), 0);
    0
}

/// posix_memalign(memptr, alignment, size).
#[uprobe]
pub fn enter_posix_memalign(ctx: ProbeContext) -> u32 {
    alloc::enter(&ctx, Op::Stored, arg(&ctx, 2), arg(&ctx, 0));
    0
}

/// realloc(old, size), rallocx.
#[uprobe]
pub fn enter_realloc(ctx: ProbeContext) -> u32 {
    alloc::enter_realloc(&ctx, arg(&ctx, 0), arg(&ctx, 1));
    0
}

/// reallocarray(old, count, size).
#[uprobe]
pub fn enter_reallocarray(ctx: ProbeContext) -> u32 {
    alloc::enter_realloc(&ctx, arg(&ctx, 0), product(arg(&ctx, 1), arg(&ctx, 2)));
    0
}

/// free(block), cfree, operator delete, dallocx, sdallocx.
#[uprobe]
pub fn enter_free(ctx: ProbeContext) -> u32 {
    alloc::free(arg(&ctx, 0));
    0
}

/// A function of the Go runtime that allocates an object.
#[uprobe]
pub fn go_allocate(ctx: ProbeContext) -> u32 {
    go::allocate(&ctx);
    0
}

/// Behind a call of `(*mcentral).cacheSpan` or `(*mcache).allocLarge` in the Go runtime.
#[uprobe]
pub fn go_new_span(ctx: ProbeContext) -> u32 {
    go::new_span(&ctx);
    0
}

/// Behind a call of `gcAssistAlloc` in the Go runtime.
#[uprobe]
pub fn go_after_assist(ctx: ProbeContext) -> u32 {
    go::after_assist(&ctx);
    0
}

/// A `ret` instruction of operator new.
#[uprobe]
pub fn leave_at_return(ctx: ProbeContext) -> u32 {
    alloc::leave_at_return(&ctx);
    0
}

/// Return of every other function that was entered above, free excepted.
#[uretprobe]
pub fn leave(ctx: RetProbeContext) -> u32 {
    alloc::leave(&ctx);
    0
}

/// A program that does nothing: the floor that benches compare with.
#[uprobe]
pub fn empty_entry(_ctx: ProbeContext) -> u32 {
    0
}

/// The same at a return.
#[uretprobe]
pub fn empty_return(_ctx: RetProbeContext) -> u32 {
    0
}

/// The kernel's own stack walk, by frame pointers: what benches compare unwinding with.
#[uprobe]
pub fn stackid_entry(ctx: ProbeContext) -> u32 {
    // Whether there was room for the stack does not matter here.
    let _ = ctx.get_stackid(&COMPARED_STACKS, u64::from(BPF_F_USER_STACK));
    0
}

/// The caller's stack with the memory that it was found in: what tests compare with.
#[uprobe]
pub fn copy_entry(ctx: ProbeContext) -> u32 {
    copies::copy(&ctx);
    0
}

/// Small: a bench has few stacks.
#[map]
static COMPARED_STACKS: StackTrace = StackTrace::with_max_entries(64, 0);

#[raw_tracepoint(tracepoint = "sched_process_exec")]
pub fn process_exec(ctx: RawTracePointContext) -> i32 {
    process::exec(&ctx);
    0
}

#[raw_tracepoint(tracepoint = "sched_process_exit")]
pub fn thread_exit(_ctx: RawTracePointContext) -> i32 {
    process::thread_exit();
    0
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
