//! Trials of what the kernel lets this process do: the least thing of each kind is made, used once, and let go.

use std::{
    ffi::CString,
    io,
    os::{
        fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd},
        unix::ffi::OsStrExt as _,
    },
    path::Path,
};

use super::{
    kernel_types::{Layouts, VMLINUX},
    load_error::LoadError,
    loader::Programs,
    multi, refusal,
    site::Site,
    sys::{self, Moment, PROG_TYPE_KPROBE as KPROBE},
    tracepoints,
    trial_calls::{create_map, first_value, load, open_raw_tracepoint, open_uprobe, refuse_system_call},
};

/// Of `enum bpf_map_type` (include/uapi/linux/bpf.h).
const ARRAY: u32 = 2;
const RING_BUFFER: u32 = 27;
/// Of `enum bpf_prog_type`.
const RAW_TRACEPOINT: u32 = 17;

/// Number of the system call that return probes put at their trampoline (arch/x86/entry/syscalls/syscall_64.tbl of the kernel).
const URETPROBE: u32 = 335;

/// Helper functions of the kernel's, by their numbers in `enum bpf_func_id`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Helper {
    /// Loops.
    Loop = 181,
    /// Which mapping an address lies in.
    FindVma = 180,
    /// What a program is told where it was attached.
    AttachCookie = 174,
}

/// Ways to have a program run at an instruction of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Uprobe {
    /// A perf event at an instruction.
    Event,
    /// A perf event at the return of a function.
    ReturnEvent,
    /// A uprobe-multi link.
    Multi,
    /// A uprobe-multi link at a function's entry and return.
    Session,
}

/// What the kernel says of its own structures.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KernelTypes {
    /// Where it keeps mappings and files.
    pub mappings: bool,
    /// The shape of its tree of mappings.
    pub tree: bool,
    /// A count of changes of mappings.
    pub changes: bool,
    /// Where return addresses are that probes have taken away.
    pub return_instances: bool,
    /// What it knows of processes.
    pub tasks: bool,
}

/// Makes a map.
///
/// # Errors
/// The kernel refuses.
pub fn map() -> io::Result<()> {
    create_map(ARRAY, 4, 8, 1).map(drop)
}

/// Makes a ring buffer of so many bytes, a power of two.
///
/// # Errors
/// The kernel refuses.
pub fn ring_buffer(bytes: u32) -> io::Result<()> {
    create_map(RING_BUFFER, 0, 0, bytes).map(drop)
}

/// Loads a program of the kind that probes run, which does nothing.
///
/// # Errors
/// The kernel refuses.
pub fn program() -> io::Result<()> {
    nothing(KPROBE).map(drop)
}

/// Whether programs of the kind that probes run can call a helper function.
///
/// # Errors
/// The kernel refuses programs at all.
pub fn helper(helper: Helper) -> io::Result<bool> {
    // Called with arguments that are none: a kernel that has it complains about those.
    let call = [instruction(CALL, 0, 0, 0, helper as i32), instruction(EXIT, 0, 0, 0, 0)];
    match load(KPROBE, 0, &call) {
        Ok(_) => Ok(true),
        Err((error, log)) if matches!(error.raw_os_error(), Some(libc::EINVAL | libc::EACCES)) => {
            Ok(!["invalid func", "unknown func", "program of this type cannot use helper"]
                .iter()
                .any(|refusal| log.contains(refusal)))
        }
        Err((error, _)) => Err(error),
    }
}

/// Attaches to a raw tracepoint a program that does nothing.
///
/// # Errors
/// The kernel refuses, or has none of that name.
pub fn raw_tracepoint(name: &str) -> io::Result<()> {
    let name = CString::new(name)?;
    let program = nothing(RAW_TRACEPOINT)?;
    open_raw_tracepoint(&name, program.as_fd()).map(drop)
}

/// Has the kernel run a program on the spot.
///
/// # Errors
/// The kernel refuses.
pub fn run() -> io::Result<()> {
    let program = nothing(RAW_TRACEPOINT)?;
    sys::run(program.as_fd(), 0).map(drop)
}

/// How often a program runs that is attached to the function at `offset` of the file at `path`, for the process `pid` or this thread,
/// which `call` has called once.
///
/// # Errors
/// The kernel refuses.
pub fn uprobe(way: Uprobe, path: &Path, offset: u64, pid: Option<u32>, call: impl FnOnce()) -> io::Result<u64> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    let count = create_map(ARRAY, 4, 8, 1)?;
    let moment = match way {
        Uprobe::Event | Uprobe::ReturnEvent => None,
        Uprobe::Multi => Some(Moment::Instruction),
        Uprobe::Session => Some(Moment::Session),
    };
    let attach_type = moment.map_or(0, Moment::attach_type);
    let program = loaded(KPROBE, attach_type, &counting(count.as_fd()))?;
    let link = match moment {
        None => open_uprobe(&path, offset, way == Uprobe::ReturnEvent, pid.unwrap_or(0), program.as_fd())?,
        Some(moment) => {
            let site = Site { offset, cookie: 0 };
            sys::link_multi(program.as_fd(), &path, &[site], pid.unwrap_or_else(std::process::id), moment)?
        }
    };
    call();
    drop(link);
    first_value(count.as_fd())
}

/// Gives this process a filter of system calls that refuses the trampoline of return probes, as filters do that do not know it.
///
/// # Errors
/// The kernel has no filters, or a filter forbids them.
pub fn refuse_trampolines() -> io::Result<()> {
    refuse_system_call(URETPROBE)
}

/// Whether traces use uprobe-multi links on this kernel, where it has them.
pub fn uses_multi(release: &str) -> bool {
    multi::is_supported(release)
}

/// What the running kernel says of its structures.
///
/// # Errors
/// It says nothing.
pub fn kernel_types() -> io::Result<KernelTypes> {
    std::fs::File::open(VMLINUX)?;
    let Layouts { return_instances, task_fields, mappings, .. } = Layouts::read();
    Ok(KernelTypes {
        mappings: mappings.is_some(),
        tree: mappings.is_some_and(|mappings| mappings.mm_tree != 0),
        changes: mappings.is_some_and(|mappings| mappings.mm_changes != 0),
        return_instances: return_instances.utask != 0,
        tasks: task_fields.signal != 0,
    })
}

impl Programs {
    /// Attaches the programs that see mappings appear, each for a moment: at the kernel's own function, and at a tracepoint.
    pub fn try_changes(&mut self) -> [Result<(), LoadError>; 2] {
        let placed = tracepoints::raw_tracepoint(&mut self.ebpf, "placed", "vm_unmapped_area");
        [tracepoints::mapped(&mut self.ebpf), placed]
    }
}

/// Of the kernel's instruction set (Documentation/bpf/standardization/instruction-set.rst).
const STORE_WORD: u8 = 0x62;
const MOVE: u8 = 0xbf;
const MOVE_NUMBER: u8 = 0xb7;
const ADD_NUMBER: u8 = 0x07;
const LOAD_WIDE: u8 = 0x18;
const CALL: u8 = 0x85;
const JUMP_IF_EQUAL: u8 = 0x15;
const ADD_ATOMICALLY: u8 = 0xdb;
const EXIT: u8 = 0x95;
/// As the source of [`LOAD_WIDE`]: the number is a map's descriptor.
const MAP: u8 = 1;
/// Number of the helper that finds an entry of a map.
const LOOK_UP: i32 = 1;
/// The register that points to the stack.
const STACK: u8 = 10;

fn instruction(code: u8, to: u8, from: u8, offset: i16, number: i32) -> u64 {
    let bytes = [code, from << 4 | to];
    let [offset_low, offset_high] = offset.to_le_bytes();
    let [a, b, c, d] = number.to_le_bytes();
    u64::from_le_bytes([bytes[0], bytes[1], offset_low, offset_high, a, b, c, d])
}

/// A program that gives back 0.
fn nothing(kind: u32) -> io::Result<OwnedFd> {
    loaded(kind, 0, &[instruction(MOVE_NUMBER, 0, 0, 0, 0), instruction(EXIT, 0, 0, 0, 0)])
}

/// A program that adds one to the first value of a map, and gives back 0.
fn counting(map: BorrowedFd<'_>) -> [u64; 11] {
    [
        instruction(STORE_WORD, STACK, 0, -4, 0),
        instruction(MOVE, 2, STACK, 0, 0),
        instruction(ADD_NUMBER, 2, 0, 0, -4),
        instruction(LOAD_WIDE, 1, MAP, 0, map.as_raw_fd()),
        instruction(0, 0, 0, 0, 0),
        instruction(CALL, 0, 0, 0, LOOK_UP),
        instruction(JUMP_IF_EQUAL, 0, 0, 2, 0),
        instruction(MOVE_NUMBER, 1, 0, 0, 1),
        instruction(ADD_ATOMICALLY, 0, 1, 0, 0),
        instruction(MOVE_NUMBER, 0, 0, 0, 0),
        instruction(EXIT, 0, 0, 0, 0),
    ]
}

fn loaded(kind: u32, attach_type: u32, instructions: &[u64]) -> io::Result<OwnedFd> {
    let load = || load(kind, attach_type, instructions).map_err(|(error, _)| error);
    refusal::again(load, io::Error::raw_os_error)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn instructions_are_as_the_kernel_reads_them() {
        // r1 = 1; *(u64 *)(r0 + 0) += r1; *(u32 *)(r10 - 4) = 0, as llvm-objdump shows them.
        for (bytes, found) in [
            ([0xb7, 0x01, 0, 0, 1, 0, 0, 0], instruction(MOVE_NUMBER, 1, 0, 0, 1)),
            ([0xdb, 0x10, 0, 0, 0, 0, 0, 0], instruction(ADD_ATOMICALLY, 0, 1, 0, 0)),
            ([0x62, 0x0a, 0xfc, 0xff, 0, 0, 0, 0], instruction(STORE_WORD, STACK, 0, -4, 0)),
        ] {
            assert_eq!(found.to_le_bytes(), bytes);
        }
    }
}
