//! What probes cost: how often programs of each kind run, and how long some of those runs take.

use aya_ebpf::{helpers::generated::bpf_get_current_task, macros::map, maps::PerCpuArray};
use tracer_ebpf::cost::{self, Cost, TimeFields};

use crate::{emit, kernel::kernel_word};

/// By [`cost`]. Of each processor apart: a program that is interrupted by another one's run on the same may lose a count, or be
/// taken for longer than it was.
#[map]
static COSTS: PerCpuArray<Cost> = PerCpuArray::with_max_entries(cost::KINDS, 0);

/// Set by user space before loading.
#[unsafe(no_mangle)]
static TIME_FIELDS: TimeFields = TimeFields { thread: 0, signal: 0, ended_threads: 0 };

/// A program of this kind begins.
#[inline(always)]
pub(crate) fn begin(kind: u32) {
    let Some(cost) = COSTS.get_ptr_mut(kind) else { return };
    // SAFETY: the pointer comes from a map lookup.
    let cost = unsafe { &mut *cost };
    cost.runs = cost.runs.wrapping_add(1);
    if cost.runs.is_multiple_of(cost::TIMED) {
        cost.begun = emit::now();
    }
}

/// It ends.
#[inline(always)]
pub(crate) fn end(kind: u32) {
    let Some(cost) = COSTS.get_ptr_mut(kind) else { return };
    // SAFETY: the pointer comes from a map lookup.
    let cost = unsafe { &mut *cost };
    if cost.begun != 0 {
        cost.time = cost.time.wrapping_add(emit::now().wrapping_sub(cost.begun));
        cost.timed = cost.timed.wrapping_add(1);
        cost.begun = 0;
    }
}

/// How long the current process has run, nanoseconds, but for those of its other threads that end at this moment and the last tick;
/// 0 when the kernel's types do not tell.
#[inline(always)]
pub(crate) fn ran() -> u64 {
    // SAFETY: a read of a global that user space wrote before loading.
    let at = unsafe { core::ptr::read_volatile(&raw const TIME_FIELDS) };
    if at.signal == 0 {
        return 0;
    }
    // SAFETY: no arguments.
    let task = unsafe { bpf_get_current_task() };
    let signal = kernel_word(task + u64::from(at.signal));
    kernel_word(task + u64::from(at.thread)).wrapping_add(kernel_word(signal + u64::from(at.ended_threads)))
}
