//! What has changed of the mappings of processes, and of what is known of files: counts, and where the latest mappings are.

use core::mem::offset_of as field_offset;

use aya_ebpf::{
    bindings::{BPF_F_MMAPABLE, pt_regs},
    helpers::{
        bpf_get_current_pid_tgid,
        generated::{bpf_get_current_task_btf, bpf_task_pt_regs},
    },
    macros::map,
    maps::Array,
};
use tracer_ebpf::unwind::{Appeared, MAX_APPEARED, changes, epoch};

use crate::{emit, kernel::kernel_word};

/// See [`epoch`].
#[map]
static EPOCHS: Array<u64> = Array::with_max_entries(epoch::ALL, BPF_F_MMAPABLE);

/// The latest mappings that have appeared, by the last bits of the ids of processes.
#[map]
static APPEARED: Array<[Appeared; MAX_APPEARED]> = Array::with_max_entries(epoch::PROCESSES, 0);

/// The count at an index of [`epoch`].
#[inline(always)]
pub(crate) fn count_of(index: u32) -> u64 {
    // SAFETY: the pointer comes from a map lookup.
    EPOCHS.get_ptr(index).map_or(0, |count| unsafe { core::ptr::read_volatile(count) })
}

/// Mappings of a process that may be code or become a file's, and of others, that were counted so far; `None` where nobody counts them.
#[inline(always)]
pub(crate) fn changes(tgid: u32) -> Option<u64> {
    (count_of(epoch::CHANGES) == changes::COUNTED).then(|| count_of(epoch::CODE + tgid % epoch::PROCESSES))
}

/// Memory may have appeared in the current process that is neither code nor a file's, nor mere room for either.
#[inline(always)]
pub(crate) fn memory_appeared() -> u32 {
    let index = (bpf_get_current_pid_tgid() >> 32) as u32 % epoch::PROCESSES;
    if let Some(count) = EPOCHS.get_ptr_mut(index) {
        // SAFETY: the pointer comes from a map lookup.
        unsafe { emit::atomic_add(count, 1) };
    }
    index
}

/// A mapping may have appeared in the current process, within these addresses.
#[inline(always)]
pub(crate) fn appeared(start: u64, end: u64) {
    let index = memory_appeared();
    let Some(count) = EPOCHS.get_ptr_mut(epoch::CODE + index) else { return };
    // SAFETY: the pointer comes from a map lookup.
    let count = unsafe { emit::atomic_next(count) };
    if let Some(latest) = APPEARED.get_ptr_mut(index) {
        // SAFETY: as above, and the index is below the length. The count makes the rest valid, so it is written last.
        unsafe {
            let slot = latest.cast::<Appeared>().add(count as usize % MAX_APPEARED);
            core::ptr::write_volatile(&raw mut (*slot).start, start);
            core::ptr::write_volatile(&raw mut (*slot).end, end);
            core::ptr::write_volatile(&raw mut (*slot).count, count);
        }
    }
}

/// Where the mapping begins that was the `count`th to appear in the current process; 0 where that is not known.
#[inline(always)]
pub(crate) fn place_of(count: u64) -> u64 {
    let index = (bpf_get_current_pid_tgid() >> 32) as u32 % epoch::PROCESSES;
    let Some(latest) = APPEARED.get_ptr(index) else { return 0 };
    // SAFETY: the pointer comes from a map lookup, and the index is below the length. The count is written last.
    unsafe {
        let slot = latest.cast::<Appeared>().add(count as usize % MAX_APPEARED);
        let start = core::ptr::read_volatile(&raw const (*slot).start);
        if core::ptr::read_volatile(&raw const (*slot).count) == count { start } else { 0 }
    }
}

/// Whether the current process is asking for memory of its own that it may read or write and that is no code: by mmap(2).
#[inline(always)]
pub(crate) fn asks_for_memory() -> bool {
    const MMAP: u64 = 9;
    const ANONYMOUS: u64 = 0x20;
    const WRITABLE: u64 = 2;
    const CODE: u64 = 4;
    // SAFETY: the task is the current one.
    let registers = unsafe { bpf_task_pt_regs(bpf_get_current_task_btf().cast()) } as u64;
    let register = |offset: usize| kernel_word(registers.wrapping_add(offset as u64));
    #[cfg(not(bpf_target_arch = "aarch64"))]
    {
        let (call, protection) = (register(field_offset!(pt_regs, orig_rax)), register(field_offset!(pt_regs, rdx)));
        let flags = register(field_offset!(pt_regs, r10));
        call == MMAP && flags & ANONYMOUS != 0 && protection & (WRITABLE | CODE) == WRITABLE
    }
    #[cfg(bpf_target_arch = "aarch64")]
    {
        let _ = (register, MMAP, ANONYMOUS, WRITABLE, CODE);
        false
    }
}
