//! Calls that do not come back: return thunks and thunks for indirect branches (`-mfunction-return=thunk`, `-mindirect-branch=thunk` of
//! GCC), where the call's return address is dropped or replaced by what is called, and nothing but a loop is behind the call.

use iced_x86::{Code, Decoder, DecoderOptions, Instruction, Mnemonic, OpKind, Register};

/// Whether a call to `target` is one: `code` gives the bytes from an address on.
pub(super) fn is_thunk<'a>(target: u64, code: impl Fn(u64) -> Option<&'a [u8]>) -> bool {
    let first = |bytes| Decoder::with_ip(64, bytes, target, DecoderOptions::NONE).decode();
    code(target).is_some_and(|bytes| takes_return_address(&first(bytes)))
}

/// Whether `instruction`, the first of what is called, drops the return address that the call has pushed, or writes another one over it.
pub(super) fn takes_return_address(instruction: &Instruction) -> bool {
    let at_stack_pointer = |displacement| {
        instruction.memory_base() == Register::RSP
            && instruction.memory_index() == Register::None
            && instruction.memory_displacement64() == displacement
    };
    let is_first = |register| instruction.op0_kind() == OpKind::Register && instruction.op0_register() == register;
    match instruction.mnemonic() {
        Mnemonic::Lea => is_first(Register::RSP) && at_stack_pointer(8),
        Mnemonic::Add => {
            is_first(Register::RSP)
                && matches!(instruction.code(), Code::Add_rm64_imm8 | Code::Add_rm64_imm32)
                && instruction.immediate(1) == 8
        }
        Mnemonic::Mov => instruction.op0_kind() == OpKind::Memory && at_stack_pointer(0),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn thunks_take_return_addresses() {
        for (what, code, expected) in [
            ("lea rsp, [rsp + 8]", &[0x48, 0x8d, 0x64, 0x24, 0x08][..], true),
            ("add rsp, 8", &[0x48, 0x83, 0xc4, 0x08], true),
            ("mov [rsp], rax", &[0x48, 0x89, 0x04, 0x24], true),
            ("lea rsp, [rsp - 8]", &[0x48, 0x8d, 0x64, 0x24, 0xf8], false),
            ("add rsp, 16", &[0x48, 0x83, 0xc4, 0x10], false),
            ("add rax, 8", &[0x48, 0x83, 0xc0, 0x08], false),
            ("mov [rsp - 8], rax", &[0x48, 0x89, 0x44, 0x24, 0xf8], false),
            ("mov rax, [rsp]", &[0x48, 0x8b, 0x04, 0x24], false),
            ("push rbx", &[0x53], false),
            ("sub rsp, 8", &[0x48, 0x83, 0xec, 0x08], false),
        ] {
            assert_eq!(is_thunk(0, |_| Some(code)), expected, "{what}");
        }
    }
}
