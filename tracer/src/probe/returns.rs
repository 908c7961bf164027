//! Where a function returns.
//!
//! The usual probe on a return puts the kernel's trampoline into the return slot. An exception cannot be thrown through
//! that: the unwinder finds no table for the trampoline and ends the process. A function that may throw (operator new) is
//! therefore probed at its `ret` instructions, which are found by following the code from its entry.

use std::collections::VecDeque;

use hashbrown::HashSet;
use iced_x86::{Decoder, DecoderOptions, FlowControl, Instruction, OpKind, Register};

use super::thunks::is_thunk;

/// Instructions that are looked at.
const MAX_INSTRUCTIONS: usize = 20_000;
/// Bytes of the longest instruction.
const LONGEST: usize = 15;
/// Most returns that a function may have: each is a probe.
const MAX_RETURNS: usize = 64;

/// What a pointer in the global offset table is bound to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bound {
    /// Code of the same file, at this address.
    Here(u64),
    /// Something that never returns.
    NoReturn,
    /// Code elsewhere.
    Elsewhere,
}

/// The `ret` instructions of a function.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Returns {
    /// Their addresses, as the file was linked. The nearest to the entry come first.
    pub addresses: Vec<u64>,
    /// Their offsets in the file, bytes.
    pub offsets: Vec<u64>,
    /// Whether these are all. Never so where a function has none and goes on nowhere: it may return in a way that is not known.
    pub complete: bool,
}

/// The `ret` instructions that end a call of the function at `entry`, those of functions that it jumps to at its end included,
/// but for jumps to an address that is `probed` by itself; without their offsets.
///
/// `code` gives the bytes from an address on, as many as there are; `bound` what the pointer at an address holds.
pub fn returns<'a>(
    entry: u64,
    code: impl Fn(u64) -> Option<&'a [u8]>,
    bound: impl Fn(u64) -> Bound,
    probed: impl Fn(u64) -> bool,
) -> Returns {
    let (mut found, mut complete) = (Vec::new(), true);
    let mut seen = HashSet::new();
    let mut paths = VecDeque::from([entry]);
    let mut left = MAX_INSTRUCTIONS;
    let mut goes_elsewhere = false;
    while let Some(start) = paths.pop_front() {
        let Some(bytes) = code(start) else {
            complete = false;
            continue;
        };
        let mut decoder = Decoder::with_ip(64, bytes, start, DecoderOptions::NONE);
        loop {
            if !decoder.can_decode() || decoder.max_position() - decoder.position() < LONGEST && decoder.ip() > start {
                // What follows is in the next piece.
                complete &= decoder.ip() > start;
                paths.extend(Some(decoder.ip()).filter(|next| *next > start));
                break;
            }
            let instruction = decoder.decode();
            if instruction.is_invalid() || left == 0 {
                complete = false;
                break;
            }
            if !seen.insert(instruction.ip()) {
                break;
            }
            left -= 1;
            match instruction.flow_control() {
                FlowControl::Return if found.len() < MAX_RETURNS => found.push(instruction.ip()),
                FlowControl::Return => complete = false,
                FlowControl::ConditionalBranch | FlowControl::UnconditionalBranch => {
                    let target = instruction.near_branch_target();
                    if target != entry && probed(target) {
                        goes_elsewhere = true;
                    } else {
                        paths.push_back(target);
                    }
                }
                FlowControl::IndirectBranch => match slot(&instruction).map(&bound) {
                    Some(Bound::Here(target)) if probed(target) => goes_elsewhere = true,
                    Some(Bound::Here(target)) => paths.push_back(target),
                    Some(Bound::NoReturn) => {}
                    _ => complete = false,
                },
                FlowControl::Call if comes_not_back(&instruction, &code) => {
                    complete = false;
                    break;
                }
                FlowControl::Call if never_returns(&instruction, &code, &bound) => break,
                FlowControl::IndirectCall if slot(&instruction).map(&bound) == Some(Bound::NoReturn) => break,
                _ => {}
            }
            let goes_on = matches!(
                instruction.flow_control(),
                FlowControl::Next
                    | FlowControl::ConditionalBranch
                    | FlowControl::Call
                    | FlowControl::IndirectCall
                    | FlowControl::XbeginXabortXend
            );
            if !goes_on {
                break;
            }
        }
    }
    complete &= !found.is_empty() || goes_elsewhere;
    Returns { addresses: found, offsets: Vec::new(), complete }
}

/// Address of the pointer that an indirect call or branch goes through: `jmp [rip + x]`.
pub(super) fn slot(instruction: &Instruction) -> Option<u64> {
    let relative = instruction.op0_kind() == OpKind::Memory && instruction.memory_base() == Register::RIP;
    relative.then(|| instruction.memory_displacement64())
}

/// Whether a call is a part of a thunk. What the function goes on to, or whether it returns, is not looked for there: the code is that of
/// all functions of the file, where it is not put into each.
fn comes_not_back<'a>(call: &Instruction, code: &impl Fn(u64) -> Option<&'a [u8]>) -> bool {
    call.op0_kind() == OpKind::NearBranch64 && is_thunk(call.near_branch_target(), code)
}

/// Whether a call goes to a stub that jumps to something that never returns.
fn never_returns<'a>(
    call: &Instruction,
    code: &impl Fn(u64) -> Option<&'a [u8]>,
    bound: &impl Fn(u64) -> Bound,
) -> bool {
    let target = call.near_branch_target();
    let Some(bytes) = code(target) else { return false };
    let mut stub = Decoder::with_ip(64, bytes, target, DecoderOptions::NONE);
    // endbr64 comes first where the stubs are built for it.
    let jump = stub.iter().take(2).find(|instruction| instruction.flow_control() == FlowControl::IndirectBranch);
    jump.and_then(|jump| slot(&jump)).map(bound) == Some(Bound::NoReturn)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Functions at 0x1000; the pointers at 0x2000 and 0x2008 go to 0x1040 and to something that never returns.
    fn check(what: &str, code: &[u8], expected: &[u64]) {
        let mut text = code.to_vec();
        text.resize(0x40, 0xcc);
        // At 0x1040: ret. At 0x1050: a stub, jmp [rip + x] to the pointer at 0x2008. At 0x1060: a probed function.
        text.extend([0xc3]);
        text.resize(0x50, 0xcc);
        text.extend([0xf3, 0x0f, 0x1e, 0xfa, 0xff, 0x25, 0xae, 0x0f, 0, 0]);
        text.resize(0x60, 0xcc);
        text.extend([0xc3]);
        let bytes = |address: u64| text.get(usize::try_from(address.checked_sub(0x1000)?).ok()?..);
        let bound = |slot| match slot {
            0x2000 => Bound::Here(0x1040),
            0x2008 => Bound::NoReturn,
            _ => Bound::Elsewhere,
        };
        let found = returns(0x1000, bytes, bound, |address| address == 0x1060);
        assert_eq!(found.addresses, expected, "{what}");
    }

    #[test]
    fn returns_are_found() {
        check("push; pop; ret", &[0x53, 0x5b, 0xc3], &[0x1002]);
        check("je +1; ret; nop; ret", &[0x74, 0x01, 0xc3, 0x90, 0xc3], &[0x1002, 0x1004]);
        check("a loop", &[0x90, 0x75, 0xfd, 0xc3], &[0x1003]);
        check("jmp to a function that returns", &[0xeb, 0x3e], &[0x1040]);
        check("jmp through a pointer", &[0xff, 0x25, 0xfa, 0x0f, 0, 0], &[0x1040]);
        check("jmp through another", &[0xff, 0x25, 0xf2, 0x0f, 0, 0], &[]);
        check("jmp to a function with probes", &[0xeb, 0x5e], &[]);
        check("call, then ret", &[0xe8, 0x3b, 0, 0, 0, 0xc3], &[0x1005]);
        check("call of what never returns", &[0xe8, 0x4b, 0, 0, 0, 0xc3], &[]);
        check("jne +1; call of what never returns", &[0x75, 0x05, 0xe8, 0x49, 0, 0, 0, 0xc3], &[0x1007]);
        check("ud2", &[0x0f, 0x0b, 0xc3], &[]);
        check("jmp to itself", &[0xeb, 0xfe], &[]);
        check("jmp out of the file", &[0xe9, 0, 0, 0, 0x40], &[]);
        check("garbage", &[0x06, 0xc3], &[]);
        check("jmp rax", &[0xff, 0xe0, 0xc3], &[]);
    }

    #[test]
    fn all_returns_are_known_where_there_are_some() {
        // call +7; pause; lfence; jmp back to that; lea rsp, [rsp + 8]; ret
        let thunk = [0xe8, 7, 0, 0, 0, 0xf3, 0x90, 0x0f, 0xae, 0xe8, 0xeb, 0xf9, 0x48, 0x8d, 0x64, 0x24, 0x08, 0xc3];
        // The same with mov [rsp], rax.
        let indirect = [&thunk[..12], &[0x48, 0x89, 0x04, 0x24, 0xc3]].concat();
        for (what, code, expected) in [
            ("ret", &[0xc3][..], (1, true)),
            ("a return thunk", &thunk, (0, false)),
            ("jmp to a return thunk", &[&[0xeb, 0][..], &thunk].concat(), (0, false)),
            ("je to a ret; a return thunk", &[&[0x74, 18][..], &thunk, &[0xc3]].concat(), (1, false)),
            ("a thunk that jumps", &indirect, (0, false)),
            ("jmp to a function with probes", &[0xeb, 0x7e], (0, true)),
            ("jmp to itself", &[0xeb, 0xfe], (0, false)),
        ] {
            let bytes = |address: u64| code.get(usize::try_from(address).ok()?..);
            let found = returns(0, bytes, |_| Bound::Elsewhere, |address| address == 0x80);
            assert_eq!((found.addresses.len(), found.complete), expected, "{what}");
        }
    }

    #[test]
    fn many_returns_are_bounded() {
        // je +1; ret, again and again.
        let code = [0x74, 0x01, 0xc3].repeat(10_000);
        let bytes = |address: u64| code.get(usize::try_from(address).ok()?..);
        let found = returns(0, bytes, |_| Bound::Elsewhere, |_| false);
        assert_eq!((found.addresses.len(), found.complete), (MAX_RETURNS, false));
    }
}
