//! Reading the kernel's memory, and where in it things are.

use core::ffi::c_void;

use aya_ebpf::helpers::generated::bpf_probe_read_kernel;
use tracer_ebpf::unwind::KernelMappings;

/// Set by user space before loading.
#[unsafe(no_mangle)]
pub(crate) static KERNEL_MAPPINGS: KernelMappings = KernelMappings {
    task_mm: 0,
    mm_xol_area: 0,
    xol_address: 0,
    area_start: 0,
    area_end: 0,
    area_page: 0,
    area_flags: 0,
    area_operations: 0,
    area_file: 0,
    area_mm: 0,
    file_inode: 0,
    inode_number: 0,
    inode_generation: 0,
    inode_super: 0,
    super_device: 0,
    super_magic: 0,
    mm_tree: 0,
    mm_changes: 0,
    mm_program: 0,
    mm_start_stack: 0,
    wanted_length: 0,
    mm_break: 0,
    area_lock: 0,
    replaces_late: 0,
};

/// The word at an address of the kernel's; 0 when it cannot be read.
#[inline(always)]
pub(crate) fn kernel_word(addr: u64) -> u64 {
    let mut value = 0u64;
    // SAFETY: the helper checks the address; on failure it zeroes the value.
    unsafe { bpf_probe_read_kernel((&raw mut value).cast(), 8, addr as *const c_void) };
    value
}

macro_rules! offset_of {
    ($field:ident) => {
        // SAFETY: a read of a global that user space wrote before loading.
        unsafe { core::ptr::read_volatile(&raw const $crate::kernel::KERNEL_MAPPINGS.$field) }
    };
}

/// A field of a structure of the kernel's whose type the verifier knows.
macro_rules! load {
    ($type:ty, $pointer:expr, $field:ident) => {{
        let offset = $crate::kernel::offset_of!($field) as usize;
        // SAFETY: the verifier has checked that the field is there; the kernel survives addresses that are not.
        unsafe { core::ptr::read_volatile($pointer.cast::<u8>().add(offset).cast::<$type>()) }
    }};
}

/// The same of one whose type it does not know; 0 when it cannot be read.
macro_rules! read {
    ($pointer:expr, $field:ident) => {
        $crate::kernel::kernel_word($pointer.wrapping_add(u64::from($crate::kernel::offset_of!($field))))
    };
}
pub(crate) use {load, offset_of, read};
