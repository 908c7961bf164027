//! What a function comes to call, as far as its code says so: whether another allocator is behind it whatever it does.

use hashbrown::{HashMap, HashSet};
use iced_x86::{
    ConditionCode, Decoder, DecoderOptions, FlowControl, Instruction, InstructionInfoFactory, Mnemonic, OpAccess,
    OpKind, Register,
};

use super::{returns::slot, thunks::is_thunk};

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
    Ways::new(code, pointer, target).around(entry, 0) == Around::None
}

/// Whether the function at `entry` does all of its work by what is looked for: it can come to that, and does whatever happens, or, if it
/// `may_rest`, has changed nothing but its stack where it returns without. What these registers of arguments have is never 0. The rest as
/// in [`always_calls`].
pub(super) fn leaves_work_to<'a>(
    entry: u64,
    not_zero: &[Register],
    may_rest: bool,
    code: impl Fn(u64) -> Option<&'a [u8]>,
    pointer: impl Fn(u64) -> Target,
    at: impl Fn(u64) -> Target,
) -> bool {
    let target = |address| if address == entry { Target::Here(address) } else { at(address) };
    let mut ways = Ways::new(code, pointer, target);
    ways.not_zero = not_zero.iter().fold(0, |all, register| all | bit(*register));
    let most = if may_rest { Around::Idle } else { Around::None };
    ways.around(entry, 0) <= most && ways.reached
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
    Ways::new(code, pointer, target).comes_to(entry, deep)
}

/// The ways from the begin of a function to its return that do not come to what is looked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Around {
    /// There is none.
    None,
    /// They change nothing but the stack.
    Idle,
    /// Some change other memory, or may.
    Working,
}

/// Ways through functions that do not come to what is looked for.
struct Ways<C, P, T> {
    code: C,
    pointer: P,
    target: T,
    /// Functions that were looked at; none while they are being looked at.
    known: HashMap<u64, Around>,
    /// Those that are being looked at, the innermost last, and how many of them are around one that has called them again.
    looked_at: Vec<u64>,
    assumed: usize,
    factory: InstructionInfoFactory,
    /// Registers that are not 0 when the first function begins, a bit for each.
    not_zero: u16,
    /// Whether some way comes to what is looked for.
    reached: bool,
    left: usize,
}

impl<'a, C: Fn(u64) -> Option<&'a [u8]>, P: Fn(u64) -> Target, T: Fn(u64) -> Target> Ways<C, P, T> {
    fn new(code: C, pointer: P, target: T) -> Self {
        let (known, factory) = (HashMap::new(), InstructionInfoFactory::new());
        let looked_at = Vec::new();
        Self {
            code,
            pointer,
            target,
            known,
            looked_at,
            assumed: usize::MAX,
            factory,
            not_zero: 0,
            reached: false,
            left: MAX_INSTRUCTIONS,
        }
    }

    /// Those through the function at `start`.
    fn around(&mut self, start: u64, depth: usize) -> Around {
        if let Some(known) = self.known.get(&start) {
            return *known;
        }
        // A way that calls the function itself is longer than one that does not.
        if let Some(outer) = self.looked_at.iter().position(|function| *function == start) {
            self.assumed = self.assumed.min(outer);
            return Around::None;
        }
        let own = self.looked_at.len();
        self.looked_at.push(start);
        let around = self.follow(start, depth);
        self.looked_at.pop();
        // What was found of one inside of such a call holds there only.
        if self.assumed >= own {
            self.assumed = usize::MAX;
            self.known.insert(start, around);
        }
        around
    }

    fn follow(&mut self, start: u64, depth: usize) -> Around {
        let mut found = Around::None;
        let mut seen = HashSet::new();
        // Where one is, what it has done, which registers are not 0, and whether the flags are those of such a one compared with 0.
        let not_zero = if depth == 0 { self.not_zero } else { 0 };
        let mut paths = vec![(start, Around::Idle, not_zero, false)];
        while let Some((start, mut so_far, mut not_zero, mut is_compared)) = paths.pop() {
            let Some(bytes) = (self.code)(start) else { return Around::Working };
            let mut decoder = Decoder::with_ip(64, bytes, start, DecoderOptions::NONE);
            loop {
                if !decoder.can_decode()
                    || decoder.max_position() - decoder.position() < LONGEST && decoder.ip() > start
                {
                    // What follows is in the next piece.
                    if decoder.ip() == start {
                        return Around::Working;
                    }
                    paths.push((decoder.ip(), so_far, not_zero, is_compared));
                    break;
                }
                let instruction = decoder.decode();
                if !seen.insert((instruction.ip(), so_far == Around::Idle, not_zero, is_compared)) {
                    break;
                }
                if instruction.is_invalid() || self.left == 0 {
                    return Around::Working;
                }
                self.left -= 1;
                let to = self.leads_to(&instruction);
                self.reached |= to == Target::Wanted;
                let goes_on = match (instruction.flow_control(), to) {
                    (FlowControl::Return, _) if so_far == Around::Working => return so_far,
                    (FlowControl::Return, _) => {
                        found = so_far;
                        false
                    }
                    (FlowControl::IndirectBranch, Target::Elsewhere) => return Around::Working,
                    // Where that leads to is not known.
                    (FlowControl::Call, Target::Here(to)) if is_thunk(to, &self.code) => return Around::Working,
                    (FlowControl::Call | FlowControl::IndirectCall, to) => {
                        let through = match to {
                            Target::Here(_) if depth == MAX_DEPTH => Around::Working,
                            Target::Here(to) => self.around(to, depth + 1),
                            Target::Elsewhere => Around::Working,
                            Target::Wanted | Target::Endless => Around::None,
                        };
                        so_far = so_far.max(through);
                        (not_zero, is_compared) = (not_zero & KEPT_BY_CALLS, false);
                        through != Around::None
                    }
                    (flow @ (FlowControl::ConditionalBranch | FlowControl::UnconditionalBranch), to) => {
                        let condition = instruction.condition_code();
                        if let Target::Here(to) = to
                            && !(is_compared && condition == ConditionCode::e)
                        {
                            paths.push((to, so_far, not_zero, is_compared));
                        }
                        flow == FlowControl::ConditionalBranch && !(is_compared && condition == ConditionCode::ne)
                    }
                    (FlowControl::IndirectBranch, to) => {
                        paths.extend(if let Target::Here(to) = to {
                            Some((to, so_far, not_zero, is_compared))
                        } else {
                            None
                        });
                        false
                    }
                    (FlowControl::Interrupt | FlowControl::Exception, _) => false,
                    _ => {
                        if self.changes_memory(&instruction) {
                            so_far = Around::Working;
                        }
                        is_compared = tests_itself(&instruction, not_zero);
                        not_zero = self.still_not_zero(&instruction, not_zero);
                        true
                    }
                };
                if !goes_on {
                    break;
                }
            }
        }
        found
    }

    /// Which registers are not 0 behind an instruction, if these are not before it: those that stay, and what one is moved to.
    fn still_not_zero(&mut self, instruction: &Instruction, before: u16) -> u16 {
        let is_move = instruction.mnemonic() == Mnemonic::Mov && instruction.op1_kind() == OpKind::Register;
        let moved = is_move && before & bit(instruction.op1_register()) != 0;
        let registers = self.factory.info(instruction).used_registers().iter();
        let written = registers.filter(|used| writes(used.access()));
        let left = written.fold(before, |left, used| left & !bit(used.register().full_register()));
        if moved && instruction.op0_kind() == OpKind::Register { left | bit(instruction.op0_register()) } else { left }
    }

    /// Whether an instruction writes elsewhere than to the stack.
    fn changes_memory(&mut self, instruction: &Instruction) -> bool {
        let mut memory = self.factory.info(instruction).used_memory().iter();
        memory.any(|used| writes(used.access()) && used.base() != Register::RSP)
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

/// The registers that calls leave as they are (System V ABI): rbx, rbp, r12 to r15.
const KEPT_BY_CALLS: u16 = 1 << 3 | 1 << 5 | 0xf << 12;

/// The bit of a whole register; 0 of what is none.
fn bit(register: Register) -> u16 {
    if register.is_gpr64() { 1 << register.number() } else { 0 }
}

/// Whether an instruction compares one of these registers with 0.
fn tests_itself(instruction: &Instruction, registers: u16) -> bool {
    let (first, second) = (instruction.op0_register(), instruction.op1_register());
    instruction.mnemonic() == Mnemonic::Test && first == second && registers & bit(first) != 0
}

/// Whether something is written, or may be.
pub(super) fn writes(access: OpAccess) -> bool {
    matches!(access, OpAccess::Write | OpAccess::CondWrite | OpAccess::ReadWrite | OpAccess::ReadCondWrite)
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
    fn who_leaves_the_work_to_others() {
        for (what, code, expected) in [
            ("jmp 100", &[0xe9, 95, 0, 0, 0][..], true),
            ("ret", &[0xc3], false),
            ("test; je to jmp 100; ret", &[0x85, 0xc0, 0x74, 0x01, 0xc3, 0xe9, 90, 0, 0, 0], true),
            ("push; test; je to jmp 100; ret", &[0x50, 0x85, 0xc0, 0x74, 0x01, 0xc3, 0xe9, 89, 0, 0, 0], true),
            ("mov [rdi], eax; jmp 100", &[0x89, 0x07, 0xe9, 93, 0, 0, 0], true),
            (
                "test; je to jmp 100; mov [rdi], eax; ret",
                &[0x85, 0xc0, 0x74, 0x03, 0x89, 0x07, 0xc3, 0xe9, 88, 0, 0, 0],
                false,
            ),
            (
                "mov [rdi], eax; test; je to jmp 100; ret",
                &[0x89, 0x07, 0x85, 0xc0, 0x74, 0x01, 0xc3, 0xe9, 88, 0, 0, 0],
                false,
            ),
            (
                "test; je to jmp 100; call to mov [rdi], eax; ret; ret",
                &[0x85, 0xc0, 0x74, 0x06, 0xe8, 6, 0, 0, 0, 0xc3, 0xe9, 85, 0, 0, 0, 0x89, 0x07, 0xc3],
                false,
            ),
            (
                "test rdi, rdi; je over jmp 100; mov [rdi], eax; ret",
                &[0x48, 0x85, 0xff, 0x74, 5, 0xe9, 90, 0, 0, 0, 0x89, 0x07, 0xc3],
                true,
            ),
            ("test rsi, rsi; the same", &[0x48, 0x85, 0xf6, 0x74, 5, 0xe9, 90, 0, 0, 0, 0x89, 0x07, 0xc3], false),
            (
                "mov rbx, rdi; call to ret; test rbx, rbx; jne to jmp 100; mov [rdi], eax; ret",
                &[
                    0x48, 0x89, 0xfb, 0xe8, 13, 0, 0, 0, 0x48, 0x85, 0xdb, 0x75, 3, 0x89, 0x07, 0xc3, 0xe9, 79, 0, 0,
                    0, 0xc3,
                ],
                true,
            ),
            (
                "mov edi, eax; test rdi, rdi; je over jmp 100; mov [rdi], eax; ret",
                &[0x89, 0xc7, 0x48, 0x85, 0xff, 0x74, 5, 0xe9, 88, 0, 0, 0, 0x89, 0x07, 0xc3],
                false,
            ),
            ("test; je to jmp 100; jmp rax", &[0x85, 0xc0, 0x74, 0x02, 0xff, 0xe0, 0xe9, 89, 0, 0, 0], false),
        ] {
            let found = leaves_work_to(
                0,
                &[Register::RDI],
                true,
                |address| code.get(usize::try_from(address).ok()?..).filter(|code| !code.is_empty()),
                |_| Target::Elsewhere,
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
            (
                "two that call each other, one of which returns: asked of that first, then of the other",
                // 0: test; 2: je 25; 4: call 32; 9: jmp 100; 25: call 40; 30: ret; 32: test; 34: je 31; 36: jmp 40; 40: call 32; 45: ret
                &[
                    0x85, 0xc0, 0x74, 21, 0xe8, 23, 0, 0, 0, 0xe9, 86, 0, 0, 0, 0x90, 0x90, 0x90, 0x90, 0x90, 0x90,
                    0x90, 0x90, 0x90, 0x90, 0x90, 0xe8, 10, 0, 0, 0, 0xc3, 0xc3, 0x85, 0xc0, 0x74, 0xfb, 0xeb, 2, 0x90,
                    0x90, 0xe8, 0xf3, 0xff, 0xff, 0xff, 0xc3,
                ],
                false,
            ),
            ("behind a return", &[0xc3, 0xe9, 94, 0, 0, 0], false),
            ("code that is not there", &[0xeb, 0x20], false),
        ] {
            assert_eq!(comes(code), expected, "{what}");
        }
    }
}
