//! Return addresses that return probes have taken out of their slots, by the kernel's own list.
//!
//! A return probe, of whichever tracer, puts the address of the kernel's trampoline into the return slot of the function.
//! What was there is in a list of the thread (`struct return_instance`, kernel/events/uprobes.c), innermost call first. Where
//! the fields are differs from kernel to kernel; user space says it.

use core::ffi::c_void;

use aya_ebpf::helpers::generated::{bpf_get_current_task, bpf_loop};
use tracer_ebpf::ReturnInstances;

use crate::{kernel::kernel_word, thread::Thread};

/// Set by user space before loading.
#[unsafe(no_mangle)]
static RETURN_INSTANCES: ReturnInstances = ReturnInstances { utask: 0, first: 0, slot: 0, original: 0, next: 0 };

/// As many as the kernel keeps of one thread (MAX_URETPROBE_DEPTH).
const MAX_INSTANCES: u32 = 64;

/// Value of `instance` in a walk that has not asked for any.
pub(crate) const NOT_ASKED: u64 = 1;

/// What the loop works on.
#[repr(C)]
struct Search {
    thread: *mut Thread,
    slot: u64,
}

/// The address that a return probe took out of the slot at `slot`; 0 when none did. The list is in the order of calls, as
/// the slots of a walk are: so the search goes on where it found the last one.
#[inline(always)]
pub(crate) fn original(thread: &mut Thread, slot: u64) -> u64 {
    let at = offsets();
    thread.walk.original = 0;
    if at.utask == 0 {
        return 0;
    }
    if thread.walk.instance == NOT_ASKED {
        thread.walk.instance = first();
    }
    let mut search = Search { thread, slot };
    let argument = (&raw mut search).cast::<c_void>();
    // SAFETY: the callback is given `search`, which outlives the loop.
    unsafe { bpf_loop(MAX_INSTANCES, next_instance as *mut c_void, argument, 0) };
    // SAFETY: only the current thread uses its state.
    unsafe { (*search.thread).walk.original }
}

/// The innermost call whose return address was taken out, of whichever tracer; 0: none.
#[inline(always)]
pub(crate) fn first() -> u64 {
    let at = offsets();
    if at.utask == 0 {
        return 0;
    }
    // SAFETY: no arguments.
    let task = unsafe { bpf_get_current_task() };
    let utask = kernel_word(task + u64::from(at.utask));
    if utask == 0 { 0 } else { kernel_word(utask + u64::from(at.first)) }
}

/// Whether the current thread has met a probe of whomever since it began: it may have if the kernel's types do not tell.
#[inline(always)]
pub(crate) fn may_have_met_probes() -> bool {
    let at = offsets();
    // SAFETY: no arguments.
    at.utask == 0 || kernel_word(unsafe { bpf_get_current_task() } + u64::from(at.utask)) != 0
}

/// The same of a thread that ends. Up to Linux 6.15 the kernel has let go of what tells (`mm_release`, kernel/fork.c) before anybody hears
/// of the end, and with it of the memory, whose place in the task is `mm`: then it may have.
#[inline(always)]
pub(crate) fn may_have_met_probes_by_its_end(mm: u32) -> bool {
    // SAFETY: no arguments.
    mm == 0 || kernel_word(unsafe { bpf_get_current_task() } + u64::from(mm)) == 0 || may_have_met_probes()
}

/// The slot of a call in that list, and the next one.
#[inline(always)]
pub(crate) fn slot_and_next(instance: u64) -> (u64, u64) {
    let at = offsets();
    (kernel_word(instance + u64::from(at.slot)), kernel_word(instance + u64::from(at.next)))
}

/// The address that was in a slot, without a walk.
#[inline(always)]
pub(crate) fn original_at(thread: &mut Thread, slot: u64) -> u64 {
    thread.walk.instance = NOT_ASKED;
    original(thread, slot)
}

/// Looks at one instance; 1 ends the loop.
extern "C" fn next_instance(_index: u64, search: *mut Search) -> i64 {
    // SAFETY: the loop passes on what it was given.
    let (walk, slot) = unsafe { (&mut (*(*search).thread).walk, (*search).slot) };
    let at = offsets();
    let instance = walk.instance;
    if instance == 0 {
        return 1;
    }
    if kernel_word(instance + u64::from(at.slot)) == slot {
        walk.original = kernel_word(instance + u64::from(at.original));
        return 1;
    }
    walk.instance = kernel_word(instance + u64::from(at.next));
    0
}

#[inline(always)]
fn offsets() -> ReturnInstances {
    // SAFETY: a read of a global that user space wrote before loading.
    unsafe { core::ptr::read_volatile(&raw const RETURN_INSTANCES) }
}
