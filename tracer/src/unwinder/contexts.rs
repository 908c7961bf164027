//! Where stacks begin that a program makes itself (makecontext(3)): the first function's return address is that of a function which nobody
//! has called, and which its C library describes nothing of.

use iced_x86::{Code, Decoder, DecoderOptions};
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
