//! Where a program begins: code that nobody has called. Most loaders have it in assembler, which they describe nothing of.

use std::ops::Range;

use iced_x86::{Code, Decoder, DecoderOptions, FlowControl, Instruction, OpKind, Register};

use crate::{files::elf::Elf, unwind::Table};

/// Most bytes of it that are looked at where no symbol tells its size.
const MOST: u64 = 1 << 10;
/// Numbers of the system calls exit and exit_group.
const EXITS: [u64; 2] = [60, 231];

/// Says that the function has no caller that the kernel starts, unless something is said of it already.
pub(super) fn mark(elf: &Elf<'_>, table: &mut Table) {
    let is_described = elf.start().is_none_or(|start| table.gaps(start..start.saturating_add(1)).is_empty());
    if is_described || !elf.is_x86_64() {
        return;
    }
    if let Some(code) = function(elf) {
        table.mark_entry(code);
    }
}

/// That function: as a symbol tells it, or what runs one instruction after the other.
pub(super) fn function(elf: &Elf<'_>) -> Option<Range<u64>> {
    let start = elf.start()?;
    let code = elf.code().into_iter().find(|code| start.wrapping_sub(code.address) < code.size)?;
    let end = code.address.saturating_add(code.size);
    let (size, next) = elf.function(start);
    if let Some(size) = size {
        return Some(start..start.saturating_add(size).min(end));
    }
    let most = next.unwrap_or(end).min(end) - start;
    let bytes = elf.loaded_range(start, most.min(MOST))?;
    Some(start..start + straight(bytes, start))
}

/// Bytes of `code` up to its first jump that is always taken, trap or exit, with that.
fn straight(code: &[u8], address: u64) -> u64 {
    let mut decoder = Decoder::with_ip(64, code, address, DecoderOptions::NONE);
    let mut instruction = Instruction::default();
    // What was put into rax.
    let mut number = None;
    let mut length = 0;
    while decoder.can_decode() {
        decoder.decode_out(&mut instruction);
        if instruction.is_invalid() {
            break;
        }
        length = decoder.position() as u64;
        match instruction.flow_control() {
            FlowControl::Next if [Code::Hlt, Code::Ud2].contains(&instruction.code()) => break,
            FlowControl::Next | FlowControl::ConditionalBranch => {}
            FlowControl::Call if instruction.code() == Code::Syscall => {
                if number.is_some_and(|number| EXITS.contains(&number)) {
                    break;
                }
            }
            FlowControl::Call | FlowControl::IndirectCall => number = None,
            _ => break,
        }
        if instruction.op0_kind() == OpKind::Register && instruction.op0_register().full_register() == Register::RAX {
            let is_number =
                [Code::Mov_r32_imm32, Code::Mov_r64_imm64, Code::Mov_rm64_imm32].contains(&instruction.code());
            number = is_number.then(|| instruction.immediate(1));
        }
    }
    length
}

#[cfg(test)]
mod tests;
