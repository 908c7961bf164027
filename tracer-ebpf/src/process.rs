//! Which processes are traced, and what happens to them.

use core::ffi::c_void;

use aya_ebpf::{
    bindings::{BPF_F_MMAPABLE, pt_regs},
    helpers::{bpf_get_current_pid_tgid, bpf_send_signal},
    macros::map,
    maps::{Array, HashMap},
    programs::RawTracePointContext,
};
use aya_log_ebpf::debug;
use tracer_ebpf::{ExecStops, Header, TARGETS_CHANGE, Target, kind};

use crate::{
    emit,
    thread::{self, Thread},
    walk,
};

/// Number of the signal that stops a process.
pub(crate) const SIGSTOP: u32 = 19;

/// Traced processes by tgid.
#[map]
static TARGETS: HashMap<u32, Target> = HashMap::with_max_entries(4096, 0);

/// Counts what user space changes in TARGETS: as long as it stands still there is nothing to look up, unless it is
/// [`TARGETS_CHANGE`].
#[map]
static TARGETS_EPOCH: Array<u64> = Array::with_max_entries(1, 0);

/// Shared with those who continue what was stopped.
#[map]
static EXEC_STOPS: Array<ExecStops> = Array::with_max_entries(1, BPF_F_MMAPABLE);

/// The present value of a count of changes. What it is a count of is to be read after it.
#[inline(always)]
pub(crate) fn epoch(counter: &Array<u64>) -> u64 {
    // SAFETY: the pointer comes from a map lookup.
    counter.get_ptr(0).map_or(0, |epoch| unsafe { core::ptr::read_volatile(epoch) })
}

/// The traced process that `pid_tgid` belongs to.
#[inline(always)]
pub(crate) fn target(pid_tgid: u64) -> Option<Target> {
    let tgid = (pid_tgid >> 32) as u32;
    TARGETS.get_ptr(tgid).map(|target| {
        // SAFETY: the pointer comes from a map lookup.
        unsafe { *target }
    })
}

/// Whether `thread` belongs to a process that is still traced; what is known of that process is brought up to date.
#[inline(always)]
pub(crate) fn refresh(thread: &mut Thread, pid_tgid: u64) -> bool {
    let epoch = epoch(&TARGETS_EPOCH);
    if epoch != TARGETS_CHANGE && thread.epoch == epoch {
        return true;
    }
    let Some(target) = target(pid_tgid) else { return false };
    (thread.target, thread.epoch) = (target, epoch);
    true
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

/// Address of the probed instruction, or of the one that a function returns to; `ctx` is the context of a uprobe.
#[inline(always)]
pub(crate) fn program_counter(ctx: *mut c_void) -> u64 {
    // SAFETY: the context of a uprobe is the registers at the probe.
    unsafe {
        #[cfg(bpf_target_arch = "aarch64")]
        return (*ctx.cast::<pt_regs>()).pc;
        #[cfg(not(bpf_target_arch = "aarch64"))]
        return (*ctx.cast::<pt_regs>()).rip;
    }
}

/// General registers as the machine numbers them (x86-64: rax, rcx, rdx, rbx, rsp, rbp, rsi, rdi, r8 to r15), and its flags;
/// `ctx` is the context of a uprobe. Nothing on other machines than x86-64.
#[inline(always)]
pub(crate) fn machine_registers(ctx: *mut c_void, to: &mut [u64; 16]) -> u64 {
    // SAFETY: the context of a uprobe is the registers at the probe.
    #[cfg(not(bpf_target_arch = "aarch64"))]
    unsafe {
        let regs = &*ctx.cast::<pt_regs>();
        (to[0], to[1], to[2], to[3]) = (regs.rax, regs.rcx, regs.rdx, regs.rbx);
        (to[4], to[5], to[6], to[7]) = (regs.rsp, regs.rbp, regs.rsi, regs.rdi);
        (to[8], to[9], to[10], to[11]) = (regs.r8, regs.r9, regs.r10, regs.r11);
        (to[12], to[13], to[14], to[15]) = (regs.r12, regs.r13, regs.r14, regs.r15);
        regs.eflags
    }
    #[cfg(bpf_target_arch = "aarch64")]
    {
        let _ = (ctx, to);
        0
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

/// Registers that Go passes arguments in, and keeps its goroutine in, at an entry.
pub(crate) struct GoRegisters {
    pub(crate) first: u64,
    pub(crate) second: u64,
    /// Address of the goroutine's descriptor.
    pub(crate) g: u64,
    /// Flags of the processor.
    pub(crate) flags: u64,
    /// Address of the probe.
    pub(crate) pc: u64,
}

/// As Go's calling convention has them (ABIInternal); `ctx` is the context of a uprobe.
#[inline(always)]
pub(crate) fn go_registers(ctx: *mut c_void) -> GoRegisters {
    // SAFETY: the context of a uprobe is the registers at the probe.
    unsafe {
        let regs = &*ctx.cast::<pt_regs>();
        #[cfg(bpf_target_arch = "aarch64")]
        return GoRegisters { first: regs.regs[0], second: regs.regs[1], g: regs.regs[28], flags: 0, pc: regs.pc };
        #[cfg(not(bpf_target_arch = "aarch64"))]
        return GoRegisters { first: regs.rax, second: regs.rbx, g: regs.r14, flags: regs.eflags, pc: regs.rip };
    }
}

/// All registers of the probed code in the order of DWARF; `ctx` is the context of a uprobe. Nothing on other machines than
/// x86-64.
#[inline(always)]
pub(crate) fn registers(ctx: *mut c_void, to: &mut [u64; 17]) {
    // SAFETY: the context of a uprobe is the registers at the probe.
    #[cfg(not(bpf_target_arch = "aarch64"))]
    unsafe {
        let regs = &*ctx.cast::<pt_regs>();
        (to[0], to[1], to[2], to[3]) = (regs.rax, regs.rdx, regs.rcx, regs.rbx);
        (to[4], to[5], to[6], to[7]) = (regs.rsi, regs.rdi, regs.rbp, regs.rsp);
        (to[8], to[9], to[10], to[11]) = (regs.r8, regs.r9, regs.r10, regs.r11);
        (to[12], to[13], to[14], to[15]) = (regs.r12, regs.r13, regs.r14, regs.r15);
        to[16] = regs.rip;
    }
    #[cfg(bpf_target_arch = "aarch64")]
    let _ = (ctx, to);
}

/// The current process has become another program: its blocks, threads and addresses are gone.
#[inline(always)]
pub(crate) fn exec(ctx: &RawTracePointContext) {
    let pid_tgid = bpf_get_current_pid_tgid();
    let tgid = (pid_tgid >> 32) as u32;
    let Some(target) = TARGETS.get_ptr_mut(tgid) else { return };
    thread::forget(pid_tgid);
    // The thread that called exec has taken the id of the first one.
    let old_tid: i32 = ctx.arg(1);
    thread::forget(u64::from(tgid) << 32 | u64::from(old_tid as u32));
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
    let sent = emit::moment(Header::new(kind::EXEC, generation, 0, pid_tgid));
    // SAFETY: as above.
    let stop = unsafe { (*target).stop_at_exec != 0 };
    // Nobody would continue one whose exec nobody has heard of.
    if sent && stop {
        stop_current();
    }
}

/// Stops the current process before it is back in user space, if that is still wanted. Told first: whoever sees the stop
/// knows that it is ours.
#[inline(always)]
fn stop_current() {
    let Some(stops) = EXEC_STOPS.get_ptr_mut(0) else { return };
    // SAFETY: the pointer comes from a map lookup; user space shares that memory, and only ever clears `allowed`.
    unsafe {
        if core::ptr::read_volatile(&raw const (*stops).allowed) == 0 {
            return;
        }
        emit::atomic_add(&raw mut (*stops).sent, 1);
        bpf_send_signal(SIGSTOP);
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
