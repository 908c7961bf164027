//! The system calls of [trials](super::trials): objects of the kernel that are made of a few numbers, without aya's parser, so that what
//! the kernel says of each is heard as it says it.

use std::{
    ffi::CStr,
    fs, io,
    mem::offset_of,
    os::fd::{AsRawFd as _, BorrowedFd, OwnedFd},
};

use super::sys::{self, PROG_LOAD, ProgramAttr};

/// Of `enum bpf_cmd` (include/uapi/linux/bpf.h).
const MAP_CREATE: libc::c_long = 0;
const LOOKUP_ELEM: libc::c_long = 1;
const RAW_TRACEPOINT_OPEN: libc::c_long = 17;

/// Bytes of what the kernel's verifier says.
const LOG: usize = 4096;
/// What the kernel's objects of trials are called.
const NAME: [u8; 16] = *b"tracer_doctor\0\0\0";

/// Kinds of perf events that are uprobes: their number, and which bit of `config` has the return probed (documented in
/// Documentation/ABI/testing/sysfs-bus-event_source-devices-uprobe of the kernel).
const UPROBE_TYPE: &str = "/sys/bus/event_source/devices/uprobe/type";
const UPROBE_RETURN: &str = "/sys/bus/event_source/devices/uprobe/format/retprobe";

/// Of include/uapi/linux/perf_event.h.
const PERF_FLAG_FD_CLOEXEC: libc::c_ulong = 8;
const PERF_EVENT_IOC_ENABLE: libc::c_ulong = 0x2400;
const PERF_EVENT_IOC_SET_BPF: libc::c_ulong = 0x4004_2408;

/// The begin of the member of the kernel's `union bpf_attr` for making a map.
#[repr(C)]
#[derive(Default)]
struct MapAttr {
    kind: u32,
    key_size: u32,
    value_size: u32,
    entries: u32,
    flags: u32,
    inner: u32,
    node: u32,
    name: [u8; 16],
}

/// The member for attaching to a raw tracepoint.
#[repr(C)]
struct TracepointAttr {
    name: u64,
    program: u32,
    reserved: u32,
}

/// The kernel's `struct perf_event_attr` of its second version (PERF_ATTR_SIZE_VER1), as uprobes use it.
#[repr(C)]
#[derive(Default)]
struct EventAttr {
    kind: u32,
    size: u32,
    config: u64,
    period: u64,
    sample: u64,
    format: u64,
    flags: u64,
    wakeup: u32,
    breakpoint: u32,
    path: u64,
    offset: u64,
}

/// Makes a map.
pub(super) fn create_map(kind: u32, key_size: u32, value_size: u32, entries: u32) -> io::Result<OwnedFd> {
    let mut attr = MapAttr { kind, key_size, value_size, entries, name: NAME, ..MapAttr::default() };
    // SAFETY: the attribute has the kernel's layout, and holds numbers only.
    let result = unsafe { libc::syscall(libc::SYS_bpf, MAP_CREATE, &raw mut attr, size_of::<MapAttr>()) };
    sys::descriptor(result)
}

/// The first value of an array of 64-bit numbers.
pub(super) fn first_value(map: BorrowedFd<'_>) -> io::Result<u64> {
    let (key, mut value) = (0u32, 0u64);
    // SAFETY: key and value are as long as the map's.
    unsafe { sys::entry(LOOKUP_ELEM, map, &raw const key, &raw mut value)? };
    Ok(value)
}

/// Loads a program. With the error comes what the verifier says.
pub(super) fn load(kind: u32, attach_type: u32, instructions: &[u64]) -> Result<OwnedFd, (io::Error, String)> {
    let license = c"Dual MIT/GPL";
    let mut log = vec![0u8; LOG];
    let mut attr = ProgramAttr {
        kind,
        instruction_count: instructions.len() as u32,
        instructions: instructions.as_ptr() as u64,
        license: license.as_ptr() as u64,
        log_level: 1,
        log_size: LOG as u32,
        log: log.as_mut_ptr() as u64,
        name: NAME,
        expected_attach_type: attach_type,
        ..ProgramAttr::default()
    };
    // SAFETY: the attribute has the kernel's layout; instructions, licence and log are as long as it says, and outlive the call.
    let result = unsafe { libc::syscall(libc::SYS_bpf, PROG_LOAD, &raw mut attr, size_of::<ProgramAttr>()) };
    sys::descriptor(result).map_err(|error| {
        let text = CStr::from_bytes_until_nul(&log).map(|text| text.to_string_lossy().into_owned());
        (error, text.unwrap_or_default())
    })
}

/// Attaches a program to a raw tracepoint, until what is given back is dropped.
pub(super) fn open_raw_tracepoint(name: &CStr, program: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    let mut attr = TracepointAttr { name: name.as_ptr() as u64, program: program.as_raw_fd() as u32, reserved: 0 };
    // SAFETY: the attribute has the kernel's layout, and the name ends with a zero.
    let result =
        unsafe { libc::syscall(libc::SYS_bpf, RAW_TRACEPOINT_OPEN, &raw mut attr, size_of::<TracepointAttr>()) };
    sys::descriptor(result)
}

/// Has a program run whenever the thread `pid`, or this one if it is 0, comes to the instruction at `offset` of the file at `path`, or at the return of the function
/// that begins there, by a perf event, until what is given back is dropped.
pub(super) fn open_uprobe(
    path: &CStr,
    offset: u64,
    at_return: bool,
    pid: u32,
    program: BorrowedFd<'_>,
) -> io::Result<OwnedFd> {
    let kind = fs::read_to_string(UPROBE_TYPE)?.trim().parse().map_err(io::Error::other)?;
    let config = if at_return {
        let place = fs::read_to_string(UPROBE_RETURN)?;
        let bit: u32 = place.trim().trim_start_matches("config:").parse().map_err(io::Error::other)?;
        1u64.checked_shl(bit).unwrap_or_default()
    } else {
        0
    };
    let attr = EventAttr {
        kind,
        size: size_of::<EventAttr>() as u32,
        config,
        path: path.as_ptr() as u64,
        offset,
        ..EventAttr::default()
    };
    // SAFETY: the attribute has the kernel's layout and says its size; the path ends with a zero.
    let result =
        unsafe { libc::syscall(libc::SYS_perf_event_open, &raw const attr, pid, -1, -1, PERF_FLAG_FD_CLOEXEC) };
    let event = sys::descriptor(result)?;
    for (request, argument) in [(PERF_EVENT_IOC_SET_BPF, program.as_raw_fd()), (PERF_EVENT_IOC_ENABLE, 0)] {
        // SAFETY: both take a number.
        if unsafe { libc::ioctl(event.as_raw_fd(), request, argument) } != 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(event)
}

/// Has this thread's system calls of that number fail with EPERM from now on.
pub(super) fn refuse_system_call(number: u32) -> io::Result<()> {
    let step =
        |code: u32, if_so: u8, if_not: u8, k: u32| libc::sock_filter { code: code as u16, jt: if_so, jf: if_not, k };
    let mut filter = [
        // The number is what comes first in `struct seccomp_data`.
        step(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0, 0),
        step(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, 0, 1, number),
        step(libc::BPF_RET | libc::BPF_K, 0, 0, libc::SECCOMP_RET_ERRNO | libc::EPERM as u32),
        step(libc::BPF_RET | libc::BPF_K, 0, 0, libc::SECCOMP_RET_ALLOW),
    ];
    let program = libc::sock_fprog { len: filter.len() as u16, filter: filter.as_mut_ptr() };
    // SAFETY: numbers only.
    if unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) } != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the program is as long as it says, and outlives the call.
    match unsafe { libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const program) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

// The kernel counts bytes of attributes.
const _: () = assert!(size_of::<EventAttr>() == 72 && offset_of!(EventAttr, path) == 56);
const _: () = assert!(offset_of!(MapAttr, name) == 28 && offset_of!(ProgramAttr, expected_attach_type) == 68);
