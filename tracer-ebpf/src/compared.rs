//! The BPF object that tests and benches load: the programs of the product, and what they are compared with.
#![no_std]
#![no_main]
#![feature(asm_experimental_arch)]
#![expect(missing_docs, unreachable_pub, reason = "a program, not a library; entry points are exported by name")]

mod alloc;
mod approach;
mod arguments;
mod at_once;
mod branchless;
mod cached;
mod copies;
mod costs;
mod emit;
mod epochs;
mod frames;
mod go;
mod inflight;
mod kernel;
mod loaded;
mod mappings;
mod memo;
mod numbers;
mod process;
mod programs;
mod queue;
mod registers;
mod remapped;
mod remappings;
mod rests;
mod returns;
mod rules;
mod samples;
mod sampling;
mod sharers;
mod spacing;
mod stack;
mod strings;
mod thread;
mod walk;
mod window;

use aya_ebpf::{
    bindings::BPF_F_USER_STACK,
    macros::{map, uprobe, uretprobe},
    maps::StackTrace,
    programs::{ProbeContext, RetProbeContext, tracing::StackIdContext as _},
};

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
