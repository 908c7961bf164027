//! Where C has called Go, on the way back from Go's stack to C's: `crosscall2` saves C's frame pointer, but what it
//! leaves in the register for its callees is, from Go 1.21 on, one frame of its own and not that of C. How much it puts on
//! the stack before it calls is in its code, and says all.

use std::ops::Range;

use iced_x86::{Code, Decoder, DecoderOptions, OpKind, Register};
use tracer_ebpf::unwind::{fp, kind, rule};

/// The function, which every executable that C may call into exports.
pub const CALLBACK: &str = "crosscall2";
/// Bytes of it that are looked at.
pub const WINDOW: usize = 128;
/// Most that it puts on the stack, bytes: it has six registers to save and three arguments to pass.
const MAX_FRAME: u64 = 1 << 10;

/// The call of Go in code of [`CALLBACK`] that was linked for `address`, and the rule that holds there. `None` when it is
/// not that function, as far as is known.
pub fn callback_rule(code: &[u8], address: u64) -> Option<(Range<u64>, u64)> {
    let mut depth = 0u64;
    for instruction in &mut Decoder::with_ip(64, code, address, DecoderOptions::NONE) {
        match instruction.code() {
            Code::Push_r64 => depth += 8,
            Code::Sub_rm64_imm8 | Code::Sub_rm64_imm32 if instruction.op0_register() == Register::RSP => {
                depth = depth.checked_add(instruction.immediate(1))?;
            }
            Code::Mov_rm64_r64 | Code::Mov_r64_rm64 | Code::Lea_r64_m
                if instruction.op0_kind() == OpKind::Memory || instruction.op0_register() != Register::RSP => {}
            Code::Call_rel32_64 if (16..=MAX_FRAME).contains(&depth) => {
                // C's frame pointer was saved first, right below the return address.
                let rule = rule(kind::SP, fp::AT_CFA, -16, i32::try_from(depth + 8).ok()?);
                return Some((instruction.ip()..instruction.next_ip(), rule));
            }
            _ => return None,
        }
        if depth > MAX_FRAME {
            return None;
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    /// From `sub rsp, 0x30` to the call, as of all versions: rbp to where it says, rbx, rdi, then the call.
    const BODY: [u8; 31] = [
        0x48, 0x83, 0xec, 0x30, // sub rsp, 0x30
        0x48, 0x89, 0x6c, 0x24, 0x28, // mov [rsp+0x28], rbp
        0x48, 0x8d, 0x6c, 0x24, 0x28, // lea rbp, [rsp+0x28]
        0x48, 0x89, 0x1c, 0x24, // mov [rsp], rbx
        0x48, 0x83, 0xec, 0x18, // sub rsp, 0x18
        0x48, 0x89, 0x3c, 0x24, // mov [rsp], rdi
        0xe8, 0, 0, 0, 0, // call
    ];

    #[test]
    fn what_is_on_the_stack_at_the_call_is_counted() {
        assert_eq!(callback_rule(&BODY, 0x1000), Some((0x101a..0x101f, rule(kind::SP, fp::AT_CFA, -16, 0x50))));
        let newer = [&[0x55, 0x48, 0x89, 0xe5][..], &BODY].concat();
        assert_eq!(callback_rule(&newer, 0x1000), Some((0x101e..0x1023, rule(kind::SP, fp::AT_CFA, -16, 0x58))));
    }

    #[test]
    fn other_code_has_no_such_rule() {
        let huge = [&[0x48, 0x81, 0xec, 0xff, 0xff, 0xff, 0x7f][..], &BODY].concat();
        let negative = [&[0x48, 0x83, 0xec, 0x80][..], &BODY].concat();
        let moved = [&[0x48, 0x89, 0xc4][..], &BODY].concat();
        for hostile in [&BODY[..26], &BODY[26..], &huge, &negative, &moved, &[0xc3], &[0xff; 64], &[]] {
            assert_eq!(callback_rule(hostile, 0x1000), None, "{hostile:x?}");
        }
        assert_eq!(callback_rule(&[0x50; 256], u64::MAX - 8), None);
    }
}
