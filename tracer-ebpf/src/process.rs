//! Which processes are traced, and what happens to them.

use core::ffi::c_void;

use aya_ebpf::{
    bindings::pt_regs,
    helpers::{bpf_get_current_pid_tgid, bpf_send_signal},
    macros::map,
    maps::HashMap,
    programs::RawTracePointContext,
};
use aya_log_ebpf::debug;
use tracer_ebpf::{Header, Target, kind};

use crate::{emit, thread, walk};

/// Number of the signal that stops a process.
const SIGSTOP: u32 = 19;

/// Traced processes by tgid.
#[map]
static TARGETS: HashMap<u32, Target> = HashMap::with_max_entries(4096, 0);

/// The traced process that `pid_tgid` belongs to.
#[inline(always)]
pub(crate) fn target(pid_tgid: u64) -> Option<Target> {
    let tgid = (pid_tgid >> 32) as u32;
    TARGETS.get_ptr(tgid).map(|target| {
        // SAFETY: the pointer comes from a map lookup.
        unsafe { *target }
    })
}

/// Stack pointer of the probed code; `ctx` is the context of a uprobe.
#[inline(always)]
pub(crate) fn stack_pointer(ctx: *mut c_void) -> u64 {
    // SAFETY: the context of a uprobe is the registers at the probe.
    unsafe {
        #[cfg(bpf_target_arch = "aarch64")]
        return (*ctx.cast::<pt_regs>()).sp;
        #[cfg(not(bpf_target_arch = "aarch64"))]
        return (*ctx.cast::<pt_regs>()).rsp;
    }
}

/// What a function that returns at the probed instruction gives back; `ctx` is the context of a uprobe.
#[inline(always)]
pub(crate) fn return_value(ctx: *mut c_void) -> u64 {
    // SAFETY: the context of a uprobe is the registers at the probe.
    unsafe {
        #[cfg(bpf_target_arch = "aarch64")]
        return (*ctx.cast::<pt_regs>()).regs[0];
        #[cfg(not(bpf_target_arch = "aarch64"))]
        return (*ctx.cast::<pt_regs>()).rax;
    }
}

/// Frame pointer of the probed code; `ctx` is the context of a uprobe.
#[inline(always)]
pub(crate) fn frame_pointer(ctx: *mut c_void) -> u64 {
    // SAFETY: the context of a uprobe is the registers at the probe.
    unsafe {
        #[cfg(bpf_target_arch = "aarch64")]
        return (*ctx.cast::<pt_regs>()).regs[29];
        #[cfg(not(bpf_target_arch = "aarch64"))]
        return (*ctx.cast::<pt_regs>()).rbp;
    }
}

/// The current process has become another program: its blocks, threads and addresses are gone.
#[inline(always)]
pub(crate) fn exec(ctx: &RawTracePointContext) {
    let pid_tgid = bpf_get_current_pid_tgid();
    let tgid = (pid_tgid >> 32) as u32;
    let Some(target) = TARGETS.get_ptr_mut(tgid) else { return };
    thread::forget(pid_tgid);
    walk::forget(tgid);
    // SAFETY: the pointer comes from a map lookup; at an exec the process has one thread left, this one.
    let generation = unsafe {
        (*target).generation += 1;
        (*target).trampoline = 0;
        (*target).text_start = 0;
        (*target).text_end = 0;
        (*target).generation
    };
    debug!(ctx, "process {} became another program", tgid);
    emit::moment(Header::new(kind::EXEC, generation, 0, pid_tgid));
    // SAFETY: as above; the helper stops the current process before its first instruction.
    unsafe {
        if (*target).stop_at_exec != 0 {
            bpf_send_signal(SIGSTOP);
        }
    }
}

/// The current thread ends.
#[inline(always)]
pub(crate) fn thread_exit() {
    let pid_tgid = bpf_get_current_pid_tgid();
    let Some(target) = target(pid_tgid) else { return };
    thread::forget(pid_tgid);
    emit::moment(Header::new(kind::THREAD_EXIT, target.generation, 0, pid_tgid));
}
