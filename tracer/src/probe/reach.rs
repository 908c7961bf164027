//! What a function comes to call, as far as its code says so: whether another allocator is behind it whatever it does.

use hashbrown::{HashMap, HashSet};
use iced_x86::{Decoder, DecoderOptions, FlowControl, Instruction, OpKind};

use super::{returns::slot, thunks::takes_return_address};

/// Instructions that are looked at.
const MAX_INSTRUCTIONS: usize = 20_000;

/// Calls inside of calls that are followed.
const MAX_DEPTH: usize = 24;

/// Bytes of the longest instruction.
const LONGEST: usize = 15;

/// What a call or a jump leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Target {
    /// Code of the same file, at this address.
    Here(u64),
    /// What is looked for.
    Wanted,
    /// Code from which nothing comes back: what throws, or ends the process.
    Endless,
    /// Code elsewhere.
    Elsewhere,
}

/// Whether the function at `entry` calls what is looked for, or jumps to it, on every way to its return: by itself or in what it calls in
/// the same file. `code` gives the bytes from an address on; `pointer` says what the pointer at an address leads to, `at` what the
/// function at an address is. What cannot be followed may be a way without.
pub(super) fn always_calls<'a>(
    entry: u64,
    code: impl Fn(u64) -> Option<&'a [u8]>,
    pointer: impl Fn(u64) -> Target,
    at: impl Fn(u64) -> Target,
) -> bool {
    let target = |address| if address == entry { Target::Here(address) } else { at(address) };
    !Ways { code, pointer, target, known: HashMap::new(), left: MAX_INSTRUCTIONS }.lead_around(entry, 0)
}

/// Whether the function at `entry` can come to what is looked for: by itself, or in what it calls in the same file, so many calls deep.
/// The rest as in [`always_calls`]; what cannot be followed is no way.
pub(super) fn may_call<'a>(
    entry: u64,
    deep: usize,
    code: impl Fn(u64) -> Option<&'a [u8]>,
    pointer: impl Fn(u64) -> Target,
    at: impl Fn(u64) -> Target,
) -> bool {
    let target = |address| if address == entry { Target::Here(address) } else { at(address) };
    Ways { code, pointer, target, known: HashMap::new(), left: MAX_INSTRUCTIONS }.comes_to(entry, deep)
}

/// Ways through functions that do not come to what is looked for.
struct Ways<C, P, T> {
    code: C,
    pointer: P,
    target: T,
    /// Functions that were looked at, and whether there is such a way to their return; not while they are being looked at.
    known: HashMap<u64, bool>,
    left: usize,
}

impl<'a, C: Fn(u64) -> Option<&'a [u8]>, P: Fn(u64) -> Target, T: Fn(u64) -> Target> Ways<C, P, T> {
    /// Whether one leads through the function at `start` to its return.
    fn lead_around(&mut self, start: u64, depth: usize) -> bool {
        if let Some(known) = self.known.get(&start) {
            return *known;
        }
        // A way that calls the function itself is longer than one that does not.
        self.known.insert(start, false);
        let around = self.follow(start, depth);
        self.known.insert(start, around);
        around
    }

    fn follow(&mut self, start: u64, depth: usize) -> bool {
        let mut seen = HashSet::new();
        let mut paths = vec![start];
        while let Some(start) = paths.pop() {
            let Some(bytes) = (self.code)(start) else { return true };
            let mut decoder = Decoder::with_ip(64, bytes, start, DecoderOptions::NONE);
            loop {
                if !decoder.can_decode()
                    || decoder.max_position() - decoder.position() < LONGEST && decoder.ip() > start
                {
                    // What follows is in the next piece.
                    if decoder.ip() == start {
                        return true;
                    }
                    paths.push(decoder.ip());
                    break;
                }
                let instruction = decoder.decode();
                if !seen.insert(instruction.ip()) {
                    break;
                }
                if instruction.is_invalid() || self.left == 0 {
                    return true;
                }
                self.left -= 1;
                let goes_on = match (instruction.flow_control(), self.leads_to(&instruction)) {
                    (FlowControl::Return, _) | (FlowControl::IndirectBranch, Target::Elsewhere) => return true,
                    // Where that leads to is not known.
                    (FlowControl::Call, Target::Here(to)) if self.is_thunk(to) => return true,
                    (FlowControl::Call | FlowControl::IndirectCall, to) => match to {
                        Target::Here(to) => depth == MAX_DEPTH || self.lead_around(to, depth + 1),
                        Target::Elsewhere => true,
                        Target::Wanted | Target::Endless => false,
                    },
                    (flow @ (FlowControl::ConditionalBranch | FlowControl::UnconditionalBranch), to) => {
                        paths.extend(if let Target::Here(to) = to { Some(to) } else { None });
                        flow == FlowControl::ConditionalBranch
                    }
                    (FlowControl::IndirectBranch, to) => {
                        paths.extend(if let Target::Here(to) = to { Some(to) } else { None });
                        false
                    }
                    (FlowControl::Interrupt | FlowControl::Exception, _) => false,
                    _ => true,
                };
                if !goes_on {
                    break;
                }
            }
        }
        false
    }

    fn comes_to(&mut self, entry: u64, deep: usize) -> bool {
        let mut seen = HashSet::new();
        let mut paths = vec![(entry, 0)];
        while let Some((start, depth)) = paths.pop() {
            let Some(bytes) = (self.code)(start) else { continue };
            for instruction in &mut Decoder::with_ip(64, bytes, start, DecoderOptions::NONE) {
                if instruction.is_invalid() || self.left == 0 || !seen.insert(instruction.ip()) {
                    break;
                }
                self.left -= 1;
                let flow = instruction.flow_control();
                let calls = matches!(flow, FlowControl::Call | FlowControl::IndirectCall);
                if calls
                    || matches!(
                        flow,
                        FlowControl::ConditionalBranch | FlowControl::UnconditionalBranch | FlowControl::IndirectBranch
                    )
                {
                    match self.leads_to(&instruction) {
                        Target::Wanted => return true,
                        Target::Here(to) if depth < deep || !calls => paths.push((to, depth + usize::from(calls))),
                        _ => {}
                    }
                }
                if !calls && flow != FlowControl::Next && flow != FlowControl::ConditionalBranch {
                    break;
                }
            }
        }
        false
    }

    /// Whether a call to an address does not come back, for the return address is taken.
    fn is_thunk(&self, to: u64) -> bool {
        let first = |bytes| Decoder::with_ip(64, bytes, to, DecoderOptions::NONE).decode();
        (self.code)(to).is_some_and(|bytes| takes_return_address(&first(bytes)))
    }

    fn leads_to(&self, instruction: &Instruction) -> Target {
        if instruction.op0_kind() == OpKind::NearBranch64 {
            return (self.target)(instruction.near_branch_target());
        }
        match slot(instruction).map_or(Target::Elsewhere, &self.pointer) {
            Target::Here(to) => (self.target)(to),
            other => other,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whether `code`, at address 0, always comes to the function at 100 or through the pointer at 200; that at 120 never returns.
    fn comes(code: &'static [u8]) -> bool {
        always_calls(
            0,
            |address| code.get(usize::try_from(address).ok()?..).filter(|code| !code.is_empty()),
            |slot| if slot == 200 { Target::Wanted } else { Target::Elsewhere },
            |address| match address {
                100 => Target::Wanted,
                120 => Target::Endless,
                _ => Target::Here(address),
            },
        )
    }

    #[test]
    fn what_a_function_can_come_to() {
        for (what, code, deep, expected) in [
            ("test; je to jmp 100; ret", &[0x85, 0xc0, 0x74, 0x01, 0xc3, 0xe9, 90, 0, 0, 0][..], 0, true),
            ("call through the pointer at 200", &[0xff, 0x15, 194, 0, 0, 0, 0xc3], 0, true),
            ("call +1, which jumps to 100; ret", &[0xe8, 1, 0, 0, 0, 0xc3, 0xe9, 89, 0, 0, 0], 1, true),
            ("the same, too deep", &[0xe8, 1, 0, 0, 0, 0xc3, 0xe9, 89, 0, 0, 0], 0, false),
            ("behind a return", &[0xc3, 0xe9, 94, 0, 0, 0], 1, false),
            ("code that is not there", &[0xeb, 0x20], 1, false),
        ] {
            let found = may_call(
                0,
                deep,
                |address| code.get(usize::try_from(address).ok()?..).filter(|code| !code.is_empty()),
                |slot| if slot == 200 { Target::Wanted } else { Target::Elsewhere },
                |address| if address == 100 { Target::Wanted } else { Target::Here(address) },
            );
            assert_eq!(found, expected, "{what}");
        }
    }

    #[test]
    fn what_is_behind_a_function() {
        for (what, code, expected) in [
            ("ret", &[0xc3][..], false),
            ("call 100", &[0xe8, 95, 0, 0, 0, 0xc3], true),
            ("jmp 100", &[0xe9, 95, 0, 0, 0], true),
            ("test; je to jmp 100; ret", &[0x85, 0xc0, 0x74, 0x01, 0xc3, 0xe9, 90, 0, 0, 0], false),
            ("test; je over call 100; ret", &[0x85, 0xc0, 0x74, 0x05, 0xe8, 91, 0, 0, 0, 0xc3], false),
            (
                "test; je to call 120; call 100; ret",
                &[0x85, 0xc0, 0x74, 0x06, 0xe8, 91, 0, 0, 0, 0xc3, 0xe8, 105, 0, 0, 0, 0xc3],
                true,
            ),
            ("call +1, which jumps to 100; ret", &[0xe8, 1, 0, 0, 0, 0xc3, 0xe9, 89, 0, 0, 0], true),
            ("call +6, which returns; jmp 100", &[0xe8, 5, 0, 0, 0, 0xe9, 90, 0, 0, 0, 0xc3], true),
            ("call through the pointer at 200", &[0xff, 0x15, 194, 0, 0, 0, 0xc3], true),
            ("jmp through another one", &[0xff, 0x25, 195, 0, 0, 0, 0xc3], false),
            ("jmp rax", &[0xff, 0xe0], false),
            (
                "a return thunk",
                &[0xe8, 7, 0, 0, 0, 0xf3, 0x90, 0x0f, 0xae, 0xe8, 0xeb, 0xf9, 0x48, 0x8d, 0x64, 0x24, 0x08, 0xc3],
                false,
            ),
            ("call itself, ret", &[0xe8, 0xfb, 0xff, 0xff, 0xff, 0xc3], true),
            ("behind a return", &[0xc3, 0xe9, 94, 0, 0, 0], false),
            ("code that is not there", &[0xeb, 0x20], false),
        ] {
            assert_eq!(comes(code), expected, "{what}");
        }
    }
}
