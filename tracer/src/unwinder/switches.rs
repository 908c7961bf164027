//! Functions that go on with another stack, whose caller's frame may lie anywhere: those that keep a frame pointer and move the stack pointer
//! from another register, as those do that run a closure on a stack of its own (Rust's psm).

use iced_x86::{Code, Decoder, DecoderOptions, OpKind, Register};

use super::window::Window;
use crate::unwind::Table;

/// Most bytes of what is looked at: who changes stacks does little else.
const MOST: u64 = 1 << 10;

/// Says so of the code behind the move.
pub(super) fn mark(code: &mut Window<'_>, table: &mut Table) {
    table.mark_switches(|part| {
        if part.end - part.start > MOST {
            return None;
        }
        moved(code.code(&part)?, part.start)
    });
}

/// The address behind the first instruction that moves the stack pointer from a register other than the frame pointer.
fn moved(code: &[u8], address: u64) -> Option<u64> {
    // Most code has none.
    code.windows(3).find(|code| may_move(code))?;
    let instructions = Decoder::with_ip(64, code, address, DecoderOptions::NONE).into_iter();
    let moves = instructions.filter(|instruction| {
        let is_move = [Code::Mov_rm64_r64, Code::Mov_r64_rm64].contains(&instruction.code());
        is_move && instruction.op0_kind() == OpKind::Register && instruction.op0_register() == Register::RSP
    });
    let mut moves = moves.filter(|instruction| {
        instruction.op1_kind() == OpKind::Register
            && ![Register::RBP, Register::RSP].contains(&instruction.op1_register())
    });
    moves.next().map(|instruction| instruction.next_ip())
}

/// Whether these bytes may be such an instruction (Intel's manual, volume 2, MOV): opcodes 89 and 8B between two registers.
fn may_move(code: &[u8]) -> bool {
    match *code {
        [0x48 | 0x4c, 0x89, registers] => registers & 0xc7 == 0xc4,
        [0x48 | 0x49, 0x8b, registers] => registers & 0xf8 == 0xe0,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use tracer_ebpf::unwind::{fp, kind, rule};

    use super::*;
    use crate::{unwind::fixture::build, unwinder::tests::rule_of};

    #[test]
    fn moves_from_registers_are_found_where_they_are_instructions() {
        for (code, behind) in [
            (&[0x48, 0x89, 0xcc, 0xff, 0xd2][..], Some(3)), // mov rsp, rcx; call rdx
            (&[0x90, 0x4c, 0x89, 0xc4, 0x90], Some(4)),     // mov rsp, r8
            (&[0x49, 0x8b, 0xe3], Some(3)),                 // mov rsp, r11 in its other form
            (&[0x48, 0x89, 0xec, 0x5d, 0xc3], None),        // mov rsp, rbp
            (&[0x48, 0x8b, 0xe5, 0x5d, 0xc3], None),        // the same in its other form
            (&[0x48, 0x89, 0xe0], None),                    // mov rax, rsp
            (&[0x48, 0x8b, 0x67, 0x08], None),              // mov rsp, [rdi+8]
            (&[0x48, 0xb8, 0x48, 0x89, 0xcc, 0, 0, 0, 0, 0], None), // in the middle of another one
            (&[], None),
        ] {
            assert_eq!(moved(code, 0x1000), behind.map(|behind: u64| 0x1000 + behind), "{code:02x?}");
        }
    }

    #[test]
    fn what_changes_stacks_may_have_its_caller_anywhere() {
        let text = "
            .text
            on_stack: .cfi_startproc
            push %rbp
            .cfi_def_cfa %rsp, 16
            .cfi_offset %rbp, -16
            mov %rsp, %rbp
            .cfi_def_cfa_register %rbp
            before: mov %rcx, %rsp
            after: call *%rdx
            mov %rbp, %rsp
            pop %rbp
            .cfi_def_cfa %rsp, 8
            done: ret
            .cfi_endproc
            .section .note.GNU-stack, \"\", @progbits\n";
        let folder = tempfile::tempdir().unwrap();
        let output = folder.path().join("switches.so");
        build(&folder.path().join("switches.s"), text, &["-shared", "-nostdlib"], &output);
        let found = ["before", "after", "done"].map(|symbol| rule_of(&output, symbol));
        let by_frame_pointer = |kind| rule(kind, fp::AT_CFA, -16, 16);
        let done = rule(kind::SP, fp::AT_CFA, -16, 8);
        assert_eq!(found, [by_frame_pointer(kind::FP), by_frame_pointer(kind::SWITCHED), done]);
    }
}
