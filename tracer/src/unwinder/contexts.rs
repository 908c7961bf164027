//! Where stacks begin that a program makes itself: the first function's return address is that of code which nobody has called, and which
//! is not described: of the C library's (makecontext(3)), or of those who have something of their own in assembler (Boost's fcontext).

use iced_x86::{Code, Decoder, DecoderOptions, FlowControl};
use tracer_ebpf::unwind::{fp, kind, rule};

use crate::{
    files::elf::Elf,
    unwind::{LONGEST_CALL, Table, ends_with_call},
};

/// The function, which C libraries export that have it.
const MAKES: &str = "makecontext";
/// Most bytes of it that are looked at.
const MOST: u64 = 1 << 10;
/// How glibc's function begins that goes on with the next context: `mov rsp, rbx; mov rdi, [rsp]; test rdi, rdi`.
const BEGIN: [u8; 10] = [0x48, 0x89, 0xdc, 0x48, 0x8b, 0x3c, 0x24, 0x48, 0x85, 0xff];
/// What may be before that: `endbr64`.
const MARK: [u8; 4] = [0xf3, 0x0f, 0x1e, 0xfa];

/// Says that such stacks end there: what returns to its begin is looked up by the byte before it, which is of nobody else's use, unless it
/// ends a call.
pub(super) fn mark(elf: &Elf<'_>, table: &mut Table) {
    let before = |begin: u64| elf.loaded_range(begin.checked_sub(LONGEST_CALL as u64)?, LONGEST_CALL as u64);
    if let Some(begin) = begin(elf).filter(|begin| before(*begin).is_some_and(|code| !ends_with_call(code))) {
        table.replace(begin - 1..begin, rule(kind::STOP, fp::SAME, 0, 0));
    }
}

/// Where that function is, as the code that makes stacks says it.
fn begin(elf: &Elf<'_>) -> Option<u64> {
    let (address, size) = elf.exported(MAKES)?;
    let code = elf.loaded_range(address, size.min(MOST))?;
    let instructions = Decoder::with_ip(64, code, address, DecoderOptions::NONE).into_iter();
    let mut addresses = instructions
        .filter(|instruction| instruction.code() == Code::Lea_r64_m && instruction.is_ip_rel_memory_operand())
        .map(|instruction| instruction.ip_rel_memory_address());
    let is_begin = |address: &u64| {
        let code = elf.loaded_range(*address, (MARK.len() + BEGIN.len()) as u64);
        code.is_some_and(|code| code.strip_prefix(&MARK).unwrap_or(code).starts_with(&BEGIN))
    };
    addresses.find(is_begin)
}

/// Most places where what nobody describes makes stacks.
const MAX_MADE: usize = 16;
/// Most instructions of the code that a function returns to which has no caller.
const MAX_LAST: usize = 8;

/// Where the code ends, by its last byte, behind which the first functions return of stacks that are made in `code`, which nobody describes:
/// what that takes the address of, no call is before, and never returns.
pub(super) fn made(code: &[(u64, &[u8])]) -> Vec<u64> {
    let mut made: Vec<u64> = code.iter().flat_map(|(address, bytes)| made_in(bytes, *address)).collect();
    made.sort_unstable();
    made.dedup();
    made.truncate(MAX_MADE);
    made
}

/// Says so.
pub(super) fn mark_made(made: &[u64], table: &mut Table) {
    for last in made {
        table.replace(*last..*last + 1, rule(kind::MADE, fp::SAME, 0, 8));
    }
}

/// The same of the bytes of one gap, which begins at `start`: `lea` of an address relative to itself.
fn made_in(bytes: &[u8], start: u64) -> impl Iterator<Item = u64> {
    // The opcode is what most bytes are not.
    let candidates = bytes.windows(7).enumerate().filter(|(_, code)| code[1] == 0x8d);
    let taken = candidates.filter_map(|(at, code)| {
        let &[0x48 | 0x4c, 0x8d, register, a, b, c, d] = code else { return None };
        let distance = i64::from(i32::from_le_bytes([a, b, c, d]));
        let behind = (register & 0xc7 == 5).then_some(at as i64 + 7)?;
        usize::try_from(behind + distance).ok().filter(|to| *to > 0)
    });
    let is_last = |to: &usize| {
        let Some((before, code)) = bytes.split_at_checked(*to) else { return false };
        // `ret`, or `jmp` to where a register points.
        let is_end = matches!(before, [.., 0xc3] | [.., 0xff, 0xe0..=0xe7]);
        is_end && !ends_with_call(before) && never_returns(code)
    };
    taken.filter(is_last).map(move |to| start + to as u64 - 1)
}

/// Whether code calls somebody and traps if that returns, with nothing else that could lead elsewhere.
fn never_returns(code: &[u8]) -> bool {
    let mut has_called = false;
    for instruction in Decoder::new(64, code, DecoderOptions::NONE).into_iter().take(MAX_LAST) {
        if instruction.is_invalid() {
            return false;
        }
        if has_called {
            return [Code::Hlt, Code::Ud2, Code::Int3].contains(&instruction.code());
        }
        match instruction.flow_control() {
            FlowControl::Next => {}
            FlowControl::Call | FlowControl::IndirectCall => has_called = true,
            _ => return false,
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{unwind::fixture::build, unwinder::tests::rule_of};

    #[test]
    fn what_returns_where_no_call_is_has_no_caller() {
        let text = "
            .text
            described: .cfi_startproc
            ret
            .cfi_endproc
            .balign 32, 0x90
            .type make, @function
            make: lea -64(%rdi), %rax
            mov %rsi, 48(%rax)
            lea finish(%rip), %rcx
            mov %rcx, 56(%rax)
            lea other(%rip), %rcx
            mov %rcx, (%rax)
            made: ret
            finish: xor %edi, %edi
            call ends
            hlt
            .balign 32, 0x90
            .type before, @function
            before: xor %eax, %eax
            before_end: ret
            .type other, @function
            other: xor %eax, %eax
            ret
            .balign 32, 0x90
            .type ends, @function
            ends: ud2
            .section .note.GNU-stack, \"\", @progbits\n";
        let folder = tempfile::tempdir().unwrap();
        let output = folder.path().join("made.so");
        build(&folder.path().join("made.s"), text, &["-shared", "-nostdlib"], &output);
        let found = ["make", "made", "before_end"].map(|symbol| rule_of(&output, symbol));
        let usual = rule(kind::SP, fp::SAME, 0, 8);
        assert_eq!(found, [usual, rule(kind::MADE, fp::SAME, 0, 8), usual]);
    }
}
