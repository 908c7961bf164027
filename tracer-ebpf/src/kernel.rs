//! Reading the kernel's memory.

use core::ffi::c_void;

use aya_ebpf::helpers::generated::bpf_probe_read_kernel;

/// The word at an address of the kernel's; 0 when it cannot be read.
#[inline(always)]
pub(crate) fn kernel_word(addr: u64) -> u64 {
    let mut value = 0u64;
    // SAFETY: the helper checks the address; on failure it zeroes the value.
    unsafe { bpf_probe_read_kernel((&raw mut value).cast(), 8, addr as *const c_void) };
    value
}
