//! Registers of the probed code, as the context of a uprobe has them.

use core::ffi::c_void;

use aya_ebpf::bindings::pt_regs;

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
pub(crate) fn machine_registers(ctx: *mut c_void) -> ([u64; 16], u64) {
    // SAFETY: the context of a uprobe is the registers at the probe.
    #[cfg(not(bpf_target_arch = "aarch64"))]
    unsafe {
        let pt_regs { rax, rcx, rdx, rbx, rsp, rbp, rsi, rdi, r8, r9, r10, r11, r12, r13, r14, r15, eflags, .. } =
            *ctx.cast::<pt_regs>();
        ([rax, rcx, rdx, rbx, rsp, rbp, rsi, rdi, r8, r9, r10, r11, r12, r13, r14, r15], eflags)
    }
    #[cfg(bpf_target_arch = "aarch64")]
    {
        let _ = ctx;
        ([0; 16], 0)
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
