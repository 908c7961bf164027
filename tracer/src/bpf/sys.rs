//! bpf(2) where aya has no call for it.

use std::{
    ffi::CStr,
    io,
    os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd},
};

use tracer_ebpf::{BlockKey, Target};

use super::site::Site;

/// Of the kernel's `enum bpf_cmd` (include/uapi/linux/bpf.h).
const UPDATE_ELEM: libc::c_long = 2;
const LOOKUP_AND_DELETE_ELEM: libc::c_long = 21;
const GET_NEXT_KEY: libc::c_long = 4;
pub(super) const PROG_LOAD: libc::c_long = 5;
const PROG_TEST_RUN: libc::c_long = 10;
const BTF_LOAD: libc::c_long = 18;
const LOOKUP_AND_DELETE_BATCH: libc::c_long = 25;
const LINK_CREATE: libc::c_long = 28;

/// Of `enum bpf_prog_type`: uprobes are kprobes there.
pub(super) const PROG_TYPE_KPROBE: u32 = 2;
/// Of `enum bpf_attach_type`.
const TRACE_UPROBE_MULTI: u32 = 48;
const TRACE_UPROBE_SESSION: u32 = 57;

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

/// The member of the kernel's `union bpf_attr` for loading BTF.
#[repr(C)]
struct BtfAttr {
    btf: u64,
    log: u64,
    size: u32,
    log_size: u32,
    log_level: u32,
    reserved: u32,
}

/// The begin of the member of the kernel's `union bpf_attr` for loading a program.
#[repr(C)]
#[derive(Default)]
pub(super) struct ProgramAttr {
    pub(super) kind: u32,
    pub(super) instruction_count: u32,
    pub(super) instructions: u64,
    pub(super) license: u64,
    pub(super) log_level: u32,
    pub(super) log_size: u32,
    pub(super) log: u64,
    pub(super) kernel_version: u32,
    pub(super) flags: u32,
    pub(super) name: [u8; 16],
    pub(super) interface: u32,
    pub(super) expected_attach_type: u32,
    pub(super) btf: u32,
    pub(super) function_info_size: u32,
    pub(super) function_info: u64,
    pub(super) function_info_count: u32,
    pub(super) line_info_size: u32,
    pub(super) line_info: u64,
    pub(super) line_info_count: u32,
    pub(super) reserved: u32,
}

/// The member of the kernel's `union bpf_attr` for uprobe-multi links.
#[repr(C)]
#[derive(Default)]
struct LinkAttr {
    program: u32,
    target: u32,
    attach_type: u32,
    flags: u32,
    path: u64,
    offsets: u64,
    reference_counters: u64,
    cookies: u64,
    count: u32,
    multi_flags: u32,
    pid: u32,
    reserved: u32,
}

/// The member of the kernel's `union bpf_attr` for running a program on the spot.
#[repr(C)]
#[derive(Default)]
struct RunAttr {
    program: u32,
    result: u32,
    data_size_in: u32,
    data_size_out: u32,
    data_in: u64,
    data_out: u64,
    repeat: u32,
    duration: u32,
    context_size_in: u32,
    context_size_out: u32,
    context_in: u64,
    context_out: u64,
    flags: u32,
    cpu: u32,
    batch_size: u32,
    reserved: u32,
}

/// When a program of a uprobe-multi link runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Moment {
    /// At the instructions.
    Instruction,
    /// At the returns of the functions that begin there.
    Return,
    /// At both; what it gives back at the first decides about the second.
    Session,
}

impl Moment {
    pub(super) fn attach_type(self) -> u32 {
        if self == Self::Session { TRACE_UPROBE_SESSION } else { TRACE_UPROBE_MULTI }
    }
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
    // SAFETY: the key is 4 bytes as the map's keys are, and the value is as long as the map's values.
    unsafe { entry(UPDATE_ELEM, map, &raw const key, (&raw const *value).cast::<u8>()) }
}

/// Asks something about an entry of a map: `key` is that of one, or null where the question allows it, and `value` what is read or
/// written.
///
/// # Safety
/// Both are as long as the question and the map have it, and may be written to where it writes.
pub(super) unsafe fn entry<K, V>(
    question: libc::c_long,
    map: BorrowedFd<'_>,
    key: *const K,
    value: *const V,
) -> io::Result<()> {
    let map_fd = map.as_raw_fd() as u32;
    let mut attr = EntryAttr { map_fd, reserved: 0, key: key as u64, value: value as u64, flags: 0 };
    // SAFETY: the attribute has the kernel's layout; who calls sees to the rest.
    let result = unsafe { libc::syscall(libc::SYS_bpf, question, &raw mut attr, size_of::<EntryAttr>()) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// The same of an entry that may not be there: whether it is.
///
/// # Safety
/// As [`entry`].
unsafe fn entry_if_there<K, V>(
    question: libc::c_long,
    map: BorrowedFd<'_>,
    key: *const K,
    value: *const V,
) -> io::Result<bool> {
    // SAFETY: as who calls says.
    match unsafe { entry(question, map, key, value) } {
        Ok(()) => Ok(true),
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(false),
        Err(error) => Err(error),
    }
}

/// Takes the entry of a process out of the map of those that are recorded; `None` when it is not there. Look-up and removal are one step.
pub(super) fn take_target(map: BorrowedFd<'_>, pid: u32) -> io::Result<Option<Target>> {
    let mut target = Target::default();
    // SAFETY: key and value are as long as those of the map.
    let is_there = unsafe { entry_if_there(LOOKUP_AND_DELETE_ELEM, map, &raw const pid, &raw mut target)? };
    Ok(is_there.then_some(target))
}

/// Moves all entries of the set of lost frees to `frees`: address, image and time (ns of CLOCK_MONOTONIC) of each.
/// Look-up and removal are one step: a free that is lost in between would be removed unread otherwise.
pub(super) fn take_all(map: BorrowedFd<'_>, frees: &mut Vec<(BlockKey, u64)>) -> io::Result<()> {
    let mut keys = vec![BlockKey { addr: 0, image: 0, reserved: 0 }; BATCH];
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

/// Loads BTF, the types that programs refer to.
pub(super) fn load_btf(btf: &[u8]) -> io::Result<OwnedFd> {
    let size = u32::try_from(btf.len()).map_err(io::Error::other)?;
    let mut attr = BtfAttr { btf: btf.as_ptr() as u64, log: 0, size, log_size: 0, log_level: 0, reserved: 0 };
    // SAFETY: the attribute has the kernel's layout, and `btf` is `size` bytes long.
    let result = unsafe { libc::syscall(libc::SYS_bpf, BTF_LOAD, &raw mut attr, size_of::<BtfAttr>()) };
    descriptor(result)
}

/// Loads a uprobe program for uprobe-multi links.
pub(super) fn load_multi(
    name: &str,
    function: &aya_obj::Function,
    license: &CStr,
    btf: Option<BorrowedFd<'_>>,
    moment: Moment,
) -> io::Result<OwnedFd> {
    let mut short = [0; 16];
    for (to, from) in short[..15].iter_mut().zip(name.bytes()) {
        *to = from;
    }
    let mut attr = ProgramAttr {
        kind: PROG_TYPE_KPROBE,
        instruction_count: function.instructions.len() as u32,
        instructions: function.instructions.as_ptr() as u64,
        license: license.as_ptr() as u64,
        name: short,
        expected_attach_type: moment.attach_type(),
        ..ProgramAttr::default()
    };
    if let Some(btf) = btf {
        attr.btf = btf.as_raw_fd() as u32;
        attr.function_info_size = function.func_info_rec_size as u32;
        attr.function_info = function.func_info.func_info.as_ptr() as u64;
        attr.function_info_count = function.func_info.func_info.len() as u32;
        attr.line_info_size = function.line_info_rec_size as u32;
        attr.line_info = function.line_info.line_info.as_ptr() as u64;
        attr.line_info_count = function.line_info.line_info.len() as u32;
    }
    // SAFETY: the attribute has the kernel's layout; the arrays are as long as it says and outlive the call.
    let result = unsafe { libc::syscall(libc::SYS_bpf, PROG_LOAD, &raw mut attr, size_of::<ProgramAttr>()) };
    descriptor(result)
}

/// Attaches a program to the instructions at the sites' offsets (bytes) into the file at `path`, for the process `pid`.
pub(super) fn link_multi(
    program: BorrowedFd<'_>,
    path: &CStr,
    sites: &[Site],
    pid: u32,
    moment: Moment,
) -> io::Result<OwnedFd> {
    let (offsets, cookies): (Vec<u64>, Vec<u64>) = sites.iter().map(|site| (site.offset, site.cookie)).unzip();
    let mut attr = LinkAttr {
        program: program.as_raw_fd() as u32,
        attach_type: moment.attach_type(),
        path: path.as_ptr() as u64,
        offsets: offsets.as_ptr() as u64,
        cookies: cookies.as_ptr() as u64,
        count: sites.len() as u32,
        multi_flags: u32::from(moment == Moment::Return),
        pid,
        ..LinkAttr::default()
    };
    // SAFETY: the attribute has the kernel's layout; `path` ends with a zero, and there are `count` offsets and cookies.
    let result = unsafe { libc::syscall(libc::SYS_bpf, LINK_CREATE, &raw mut attr, size_of::<LinkAttr>()) };
    descriptor(result)
}

/// Runs the program of a raw tracepoint once, in the calling thread, as if it had come to that with this argument: what the
/// program gives back.
pub(super) fn run(program: BorrowedFd<'_>, argument: u64) -> io::Result<u32> {
    let mut attr = RunAttr {
        program: program.as_raw_fd() as u32,
        context_size_in: size_of::<u64>() as u32,
        context_in: (&raw const argument) as u64,
        ..RunAttr::default()
    };
    // SAFETY: the attribute has the kernel's layout, and the argument is as long as it says.
    let result = unsafe { libc::syscall(libc::SYS_bpf, PROG_TEST_RUN, &raw mut attr, size_of::<RunAttr>()) };
    if result == 0 { Ok(attr.result) } else { Err(io::Error::last_os_error()) }
}

/// How many entries a map has whose keys are `key_size` bytes long.
pub(super) fn count_entries(map: BorrowedFd<'_>, key_size: u32) -> io::Result<u64> {
    let (mut key, mut next) = (vec![0u8; key_size as usize], vec![0u8; key_size as usize]);
    let mut count = 0;
    loop {
        let from = if count == 0 { std::ptr::null() } else { key.as_ptr() };
        // SAFETY: both keys are as long as the map's.
        if !unsafe { entry_if_there(GET_NEXT_KEY, map, from, next.as_mut_ptr())? } {
            return Ok(count);
        }
        count += 1;
        std::mem::swap(&mut key, &mut next);
    }
}

/// Waits until no BPF program runs that ran when this was called.
pub(super) fn grace_period() -> io::Result<()> {
    /// Of `enum membarrier_cmd` (include/uapi/linux/membarrier.h): waits for a grace period of RCU.
    const GLOBAL: libc::c_long = 1;
    // SAFETY: numbers only.
    let result = unsafe { libc::syscall(libc::SYS_membarrier, GLOBAL, 0, 0) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

pub(super) fn descriptor(result: libc::c_long) -> io::Result<OwnedFd> {
    match i32::try_from(result) {
        // SAFETY: the kernel has just made it for this call.
        Ok(fd) if fd >= 0 => Ok(unsafe { OwnedFd::from_raw_fd(fd) }),
        _ => Err(io::Error::last_os_error()),
    }
}
