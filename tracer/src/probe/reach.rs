//! What a function comes to call, as far as its code says so: whether another allocator is behind it.

use hashbrown::HashSet;
use iced_x86::{Decoder, DecoderOptions, FlowControl};

use super::returns::slot;

/// Instructions that are looked at.
const MAX_INSTRUCTIONS: usize = 20_000;

/// Bytes of the longest instruction.
const LONGEST: usize = 15;

/// What a call or a jump leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Target {
    /// Code of the same file, at this address.
    Here(u64),
    /// What is looked for.
    Wanted,
    /// Code elsewhere.
    Elsewhere,
}

/// Whether the function at `entry`, or what it calls or jumps to in the same file, comes to what is looked for. `code` gives the
/// bytes from an address on; `pointer` says what the pointer at an address leads to, `wanted` whether the function at an address is
/// looked for.
pub(super) fn reaches<'a>(
    entry: u64,
    code: impl Fn(u64) -> Option<&'a [u8]>,
    pointer: impl Fn(u64) -> Target,
    wanted: impl Fn(u64) -> bool,
) -> bool {
    let mut seen = HashSet::new();
    let mut paths = vec![entry];
    let mut left = MAX_INSTRUCTIONS;
    while let Some(start) = paths.pop() {
        let Some(bytes) = code(start) else { continue };
        let mut decoder = Decoder::with_ip(64, bytes, start, DecoderOptions::NONE);
        loop {
            if !decoder.can_decode() || decoder.max_position() - decoder.position() < LONGEST && decoder.ip() > start {
                // What follows is in the next piece.
                paths.extend(Some(decoder.ip()).filter(|next| *next > start));
                break;
            }
            let instruction = decoder.decode();
            if instruction.is_invalid() || left == 0 || !seen.insert(instruction.ip()) {
                break;
            }
            left -= 1;
            let target = match instruction.flow_control() {
                FlowControl::Call | FlowControl::ConditionalBranch | FlowControl::UnconditionalBranch => {
                    Target::Here(instruction.near_branch_target())
                }
                FlowControl::IndirectCall | FlowControl::IndirectBranch => {
                    slot(&instruction).map_or(Target::Elsewhere, &pointer)
                }
                _ => Target::Elsewhere,
            };
            match target {
                Target::Wanted => return true,
                Target::Here(target) if target != entry && wanted(target) => return true,
                Target::Here(target) => paths.push(target),
                Target::Elsewhere => {}
            }
            let goes_on = !matches!(
                instruction.flow_control(),
                FlowControl::UnconditionalBranch
                    | FlowControl::IndirectBranch
                    | FlowControl::Return
                    | FlowControl::Interrupt
                    | FlowControl::Exception
            );
            if !goes_on {
                break;
            }
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whether `code`, at address 0, comes to the function at 100 or through the pointer at 200.
    fn comes(code: &'static [u8]) -> bool {
        reaches(
            0,
            |address| code.get(usize::try_from(address).ok()?..),
            |slot| if slot == 200 { Target::Wanted } else { Target::Elsewhere },
            |address| address == 100,
        )
    }

    #[test]
    fn what_is_behind_a_function() {
        for (what, code, expected) in [
            ("ret", &[0xc3][..], false),
            ("call 100", &[0xe8, 95, 0, 0, 0, 0xc3], true),
            ("jmp 100", &[0xe9, 95, 0, 0, 0], true),
            ("test; je to jmp 100", &[0x85, 0xc0, 0x74, 0x01, 0xc3, 0xe9, 90, 0, 0, 0], true),
            ("call +1, which jumps to 100", &[0xe8, 1, 0, 0, 0, 0xc3, 0xe9, 89, 0, 0, 0], true),
            ("call through the pointer at 200", &[0xff, 0x15, 194, 0, 0, 0, 0xc3], true),
            ("jmp through another one", &[0xff, 0x25, 195, 0, 0, 0, 0xc3], false),
            ("a loop", &[0xeb, 0xfe], false),
            ("behind a return", &[0xc3, 0xe9, 94, 0, 0, 0], false),
        ] {
            assert_eq!(comes(code), expected, "{what}");
        }
    }
}
