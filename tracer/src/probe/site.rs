//! Which instruction of a function to probe.
//!
//! A uprobe on an instruction that the kernel emulates costs one trap; on any other it costs a second one, ten times
//! as dear under a hypervisor. The kernel's x86 code (arch/x86/kernel/uprobes.c, push_setup_xol_ops and
//! branch_setup_xol_ops) emulates push of a register, nop, jmp, call and jcc. So the straight line from the entry is
//! searched for the first of those at which everything that the probe reads is still as it was at the entry.

use iced_x86::{
    Decoder, DecoderOptions, FlowControl, Instruction, InstructionInfoFactory, Mnemonic, OpAccess, OpKind, Register,
};

/// Bytes of a function that are looked at.
pub const WINDOW: usize = 4096;

/// Instructions of the straight line that are looked at.
const LINE: usize = 32;

/// Integer argument registers of the System V ABI.
const ARGUMENTS: [Register; 6] =
    [Register::RDI, Register::RSI, Register::RDX, Register::RCX, Register::R8, Register::R9];

/// A probe site within a function.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Site {
    /// Bytes from the function's first instruction.
    pub offset: u64,
    /// Whether the kernel emulates the instruction there.
    pub emulated: bool,
}

/// The cheapest instruction of the x86-64 function `code` at which its first `arguments` integer arguments and its
/// return slot are untouched; the entry when there is none better. `code` starts at the function's first instruction and
/// should reach to its end, so that jumps back into the line are seen.
pub fn choose(code: &[u8], arguments: usize) -> Site {
    let code = &code[..code.len().min(WINDOW)];
    let line = line(code, &ARGUMENTS[..arguments.min(ARGUMENTS.len())]);
    let targets = if line.len() > 1 { branch_targets(code) } else { Vec::new() };
    for instruction in &line {
        let offset = instruction.ip();
        if offset > 0 && targets.iter().any(|target| (1..=offset).contains(target)) {
            break;
        }
        if is_emulated(instruction) {
            return Site { offset, emulated: true };
        }
    }
    Site { offset: 0, emulated: false }
}

/// Instructions that are reached from the entry in a straight line with the given registers and the stack untouched.
fn line(code: &[u8], arguments: &[Register]) -> Vec<Instruction> {
    let mut factory = InstructionInfoFactory::new();
    let mut line = Vec::new();
    for instruction in &mut Decoder::new(64, code, DecoderOptions::NONE) {
        if instruction.is_invalid() || line.len() == LINE {
            break;
        }
        line.push(instruction);
        let info = factory.info(&instruction);
        let disturbs = info.used_registers().iter().any(|used| {
            let register = used.register().full_register();
            is_write(used.access()) && (register == Register::RSP || arguments.contains(&register))
        });
        if disturbs || instruction.flow_control() != FlowControl::Next {
            break;
        }
    }
    line
}

/// Whether an operand is written, or may be.
pub(super) fn is_write(access: OpAccess) -> bool {
    !matches!(access, OpAccess::None | OpAccess::Read | OpAccess::CondRead | OpAccess::NoMemAccess)
}

/// Offsets that direct branches in the function go to.
fn branch_targets(code: &[u8]) -> Vec<u64> {
    let mut targets = Vec::new();
    for instruction in &mut Decoder::new(64, code, DecoderOptions::NONE) {
        if matches!(instruction.op0_kind(), OpKind::NearBranch64 | OpKind::NearBranch32 | OpKind::NearBranch16) {
            targets.push(instruction.near_branch_target());
        }
    }
    targets
}

/// Whether the kernel emulates the instruction.
pub(super) fn is_emulated(instruction: &Instruction) -> bool {
    // It refuses some prefixes and looks through none: bnd, notrack, lock, rep, segments, operand size.
    let prefixed = instruction.has_lock_prefix()
        || instruction.has_rep_prefix()
        || instruction.has_repne_prefix()
        || instruction.segment_prefix() != Register::None;
    if prefixed {
        return false;
    }
    match instruction.mnemonic() {
        Mnemonic::Push => instruction.op0_kind() == OpKind::Register && instruction.op0_register().is_gpr64(),
        // The long nop with an operand-size prefix is decoded with a 16-bit operand.
        Mnemonic::Nop => instruction.op_count() == 0 && instruction.len() == 1 || is_long_nop(instruction),
        _ => {
            instruction.op0_kind() == OpKind::NearBranch64
                && (instruction.is_jcc_short_or_near()
                    || instruction.is_jmp_short_or_near()
                    || instruction.is_call_near())
        }
    }
}

/// `0f 1f /0` without prefix.
fn is_long_nop(instruction: &Instruction) -> bool {
    instruction.op_count() == 1 && instruction.code() == iced_x86::Code::Nop_rm32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sites_of_real_prologues() {
        for (what, code, arguments, expected) in [
            ("glibc malloc: push", &[0x41, 0x54, 0x55][..], 1, Site { offset: 0, emulated: true }),
            ("glibc free: test rdi,rdi; je", &[0x48, 0x85, 0xff, 0x74, 0x10], 1, Site { offset: 3, emulated: true }),
            ("endbr64; push rbp", &[0xf3, 0x0f, 0x1e, 0xfa, 0x55, 0xc3], 1, Site { offset: 4, emulated: true }),
            ("nopw cs prefix is not emulated; push rbx is", &[0x66, 0x90, 0x53], 1, Site { offset: 2, emulated: true }),
            ("5-byte nop", &[0x0f, 0x1f, 0x44, 0x00, 0x00, 0x53], 1, Site { offset: 0, emulated: true }),
            ("mov edi,eax writes an argument", &[0x89, 0xc7, 0x55], 1, Site { offset: 0, emulated: false }),
            ("xor esi,esi writes one that is not read", &[0x31, 0xf6, 0x55], 1, Site { offset: 2, emulated: true }),
            ("xor esi,esi writes one that is read", &[0x31, 0xf6, 0x55], 2, Site { offset: 0, emulated: false }),
            (
                "sub rsp,8 moves the return slot",
                &[0x48, 0x83, 0xec, 0x08, 0x55],
                1,
                Site { offset: 0, emulated: false },
            ),
            ("xor eax,eax; ret: the line ends", &[0x31, 0xc0, 0xc3, 0x55], 1, Site { offset: 0, emulated: false }),
            (
                "mov eax,1; push; jmp back to +5",
                &[0xb8, 1, 0, 0, 0, 0x55, 0xeb, 0xfd],
                1,
                Site { offset: 0, emulated: false },
            ),
            ("push; jmp back to the entry", &[0x55, 0xeb, 0xfd], 1, Site { offset: 0, emulated: true }),
            ("push imm is stepped, not emulated", &[0x6a, 0x01], 1, Site { offset: 0, emulated: false }),
            ("bnd jmp is not emulated", &[0xf2, 0xe9, 0, 0, 0, 0], 1, Site { offset: 0, emulated: false }),
            ("nothing", &[], 1, Site { offset: 0, emulated: false }),
            ("garbage", &[0x06, 0xff, 0xff], 1, Site { offset: 0, emulated: false }),
        ] {
            assert_eq!(choose(code, arguments), expected, "{what}");
        }
    }
}
