//! Emptying the set of lost frees: look-up and removal must be one step, or a free that is lost in between would be
//! removed unread. The kernel has such a batch operation (5.6) for hash maps; aya has no call for it.

use std::{
    io,
    os::fd::{AsRawFd, BorrowedFd},
};

use tracer_ebpf::LostFree;

/// `BPF_MAP_LOOKUP_AND_DELETE_BATCH` of the kernel's `enum bpf_cmd` (include/uapi/linux/bpf.h).
const LOOKUP_AND_DELETE_BATCH: libc::c_long = 25;

/// Entries asked for at once. More than a hash bucket ever holds, or the kernel says ENOSPC.
const BATCH: usize = 4096;

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

/// Moves all entries of the set at `map` to `frees`: address, process and time (ns of CLOCK_MONOTONIC) of each.
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
