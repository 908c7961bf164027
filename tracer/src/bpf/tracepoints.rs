//! Attaching programs to what happens in the kernel: to raw tracepoints, and to changes of mappings in the best way that there is.

use aya::{
    Btf, Ebpf,
    programs::{FEntry, ProgramError, ProgramFd, RawTracePoint},
};
use tracer_ebpf::unwind::changes;

use super::{load_error::LoadError, refusal};

/// Has changes of mappings counted in the best way that this kernel allows: which it is, one of [`changes`], and whether the program
/// `placed` does it.
///
/// # Errors
/// [`LoadError::Mismatch`] when the object is of another version.
pub(super) fn attach_changes(ebpf: &mut Ebpf) -> Result<(u64, bool), LoadError> {
    match mapped(ebpf) {
        Ok(()) => {
            tracing::debug!("mappings of code are seen when they appear (perf_event_mmap)");
            return Ok((changes::COUNTED, false));
        }
        Err(error) => tracing::debug!("mappings of code are not seen when they appear: {error}"),
    }
    match raw_tracepoint(ebpf, "placed", "vm_unmapped_area") {
        Ok(()) => {
            tracing::debug!("mappings are seen when they are given room (vm_unmapped_area)");
            Ok((changes::COUNTED, true))
        }
        Err(error) => {
            tracing::debug!("mappings are not seen when they are given room: {error}");
            tracing::debug!("changes of mappings are counted by the kernel, if it does that (mm_lock_seq)");
            Ok((changes::BY_KERNEL, false))
        }
    }
}

pub(super) fn mapped(ebpf: &mut Ebpf) -> Result<(), LoadError> {
    let name = "mapped";
    let mismatch = |error: &dyn std::fmt::Display| LoadError::Mismatch(format!("program {name}: {error}"));
    let program = ebpf.program_mut(name).ok_or_else(|| LoadError::Mismatch(format!("no program {name}")))?;
    let program: &mut FEntry = program.try_into().map_err(|error: ProgramError| mismatch(&error))?;
    let btf = Btf::from_sys_fs().map_err(|error| mismatch(&error))?;
    program.load("perf_event_mmap", &btf).map_err(|error| LoadError::refused(name, &error))?;
    program.attach().map(drop).map_err(|error| LoadError::refused(name, &error))
}

/// The program that tells which file is mapped somewhere, loaded.
pub(super) fn load_identify(ebpf: &mut Ebpf) -> Result<ProgramFd, LoadError> {
    let name = "identify";
    let program = loaded(ebpf, name)?;
    let program = program.fd().and_then(|fd| Ok(fd.try_clone()?));
    program.map_err(|error| LoadError::refused(name, &error))
}

/// Loads the program `name`, and attaches it to a raw tracepoint.
///
/// # Errors
/// [`LoadError::Program`] when the kernel refuses.
pub(super) fn raw_tracepoint(ebpf: &mut Ebpf, name: &str, tracepoint: &str) -> Result<(), LoadError> {
    let program = loaded(ebpf, name)?;
    program.attach(tracepoint).map(drop).map_err(|error| LoadError::refused(name, &error))
}

/// The raw tracepoint's program `name`, loaded.
fn loaded<'a>(ebpf: &'a mut Ebpf, name: &str) -> Result<&'a mut RawTracePoint, LoadError> {
    let program = ebpf.program_mut(name).ok_or_else(|| LoadError::Mismatch(format!("no program {name}")))?;
    let program: &mut RawTracePoint =
        program.try_into().map_err(|error: ProgramError| LoadError::Mismatch(format!("program {name}: {error}")))?;
    refusal::again(|| program.load(), |error| refusal::number(error))
        .map_err(|error| LoadError::refused(name, &error))?;
    Ok(program)
}
