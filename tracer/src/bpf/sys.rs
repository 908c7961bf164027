//! System calls on BPF maps that aya has no call for.

use std::{
    io,
    os::fd::{AsRawFd, BorrowedFd},
};

use tracer_ebpf::LostFree;

/// `BPF_MAP_UPDATE_ELEM` and `BPF_MAP_LOOKUP_AND_DELETE_BATCH` of the kernel's `enum bpf_cmd` (include/uapi/linux/bpf.h).
const UPDATE_ELEM: libc::c_long = 2;
const LOOKUP_AND_DELETE_BATCH: libc::c_long = 25;

/// Entries asked for at once. More than a hash bucket ever holds, or the kernel says ENOSPC.
const BATCH: usize = 4096;

/// The member of the kernel's `union bpf_attr` for operations on one entry.
#[repr(C)]
struct EntryAttr {
    map_fd: u32,
    reserved: u32,
    key: u64,
    value: u64,
    flags: u64,
}

/// The `batch` member of the kernel's `union bpf_attr`.
#[repr(C)]
struct BatchAttr {
    in_batch: u64,
    out_batch: u64,
    keys: u64,
    values: u64,
    count: u32,
    map_fd: u32,
    elem_flags: u64,
    flags: u64,
}

/// Values of a map: integers only, without padding, so that every byte of them may go to the kernel.
///
/// # Safety
/// As said.
pub(super) unsafe trait MapValue {}

// SAFETY: integers.
unsafe impl MapValue for [u64] {}
// SAFETY: integers.
unsafe impl MapValue for [u32] {}
// SAFETY: integers only; the ABI asserts the sizes.
unsafe impl MapValue for tracer_ebpf::unwind::Mappings {}

/// Sets the entry `key` of the map, whose values are `size_of_val(value)` bytes long. aya would take the value by copy:
/// those here are a quarter of a megabyte.
pub(super) fn update<V: MapValue + ?Sized>(
    map: BorrowedFd<'_>,
    value_size: u32,
    key: u32,
    value: &V,
) -> io::Result<()> {
    if size_of_val(value) != value_size as usize {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "a map value of another size"));
    }
    let mut attr = EntryAttr {
        map_fd: map.as_raw_fd() as u32,
        reserved: 0,
        key: (&raw const key) as u64,
        value: (&raw const *value).cast::<u8>() as u64,
        flags: 0,
    };
    // SAFETY: the attribute has the kernel's layout; the key is 4 bytes as the map's keys are, and the value is as long as
    // the map's values.
    let result = unsafe { libc::syscall(libc::SYS_bpf, UPDATE_ELEM, &raw mut attr, size_of::<EntryAttr>()) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Moves all entries of the set of lost frees to `frees`: address, process and time (ns of CLOCK_MONOTONIC) of each.
/// Look-up and removal are one step: a free that is lost in between would be removed unread otherwise.
pub(super) fn take_all(map: BorrowedFd<'_>, frees: &mut Vec<(LostFree, u64)>) -> io::Result<()> {
    let mut keys = vec![LostFree { addr: 0, tgid: 0, generation: 0 }; BATCH];
    let mut times = vec![0u64; BATCH];
    let mut position = 0u64;
    let mut next = 0u64;
    let mut first = true;
    loop {
        let mut attr = BatchAttr {
            in_batch: if first { 0 } else { (&raw mut position) as u64 },
            out_batch: (&raw mut next) as u64,
            keys: keys.as_mut_ptr() as u64,
            values: times.as_mut_ptr() as u64,
            count: BATCH as u32,
            map_fd: map.as_raw_fd() as u32,
            elem_flags: 0,
            flags: 0,
        };
        // SAFETY: the attribute has the kernel's layout; `keys` and `times` have room for `count` entries of the map's
        // key and value types, and `position` and `next` for the kernel's 32-bit place in the map.
        let result =
            unsafe { libc::syscall(libc::SYS_bpf, LOOKUP_AND_DELETE_BATCH, &raw mut attr, size_of::<BatchAttr>()) };
        let error = io::Error::last_os_error();
        let at_end = result != 0 && error.raw_os_error() == Some(libc::ENOENT);
        if result == 0 || at_end {
            let count = (attr.count as usize).min(BATCH);
            frees.extend(keys[..count].iter().copied().zip(times[..count].iter().copied()));
        }
        match result {
            _ if at_end => return Ok(()),
            0 => (position, first) = (next, false),
            _ => return Err(error),
        }
    }
}
