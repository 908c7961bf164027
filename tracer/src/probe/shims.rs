//! The global allocator that a Rust program brings itself, where calls go around the functions that stand for it.
//!
//! Rust's compiler makes a function for each thing that a global allocator does (`__rust_alloc` and its like), and inlines it
//! where it optimises: calls go to what is behind it, or the whole of it is in its caller. What is behind it may have lost the
//! arguments that it does not read. Where the size and the block are is known by the way from the shim; that a register still
//! is an argument, by the function reading it: then each caller has to set it.

use std::{cell::OnceCell, ops::Range};

use hashbrown::HashSet;
use iced_x86::{
    Decoder, DecoderOptions, FlowControl, Instruction, InstructionInfoFactory, Mnemonic, OpAccess, OpKind, Register,
};

use super::{
    allocators::Known,
    asked::{CALL, JUMP, branches_of},
    catalogue::FAMILIES,
    family::Shape,
    image::{self, executable},
    reach::{Target, always_calls},
    symbols::{Candidate, Elf},
};
use crate::{files::elf::Bounded, unwind::Frames};

/// Registers of arguments, in their order (System V ABI).
const ARGUMENTS: [Register; 6] =
    [Register::RDI, Register::RSI, Register::RDX, Register::RCX, Register::R8, Register::R9];
/// Most shims of one file. It has four.
const MAX_SHIMS: usize = 16;
/// Most instructions of a shim that only passes a call on.
const MAX_SHIM: usize = 64;
/// Instructions that are looked at for one that reads an argument.
const MAX_INSTRUCTIONS: usize = 4096;
/// Calls inside of calls that an argument is followed through.
const DEEP: usize = 4;

/// What there is behind the shims of a file.
#[derive(Debug, Default)]
pub(super) struct Behind {
    /// Functions that others call, too, and of which it is proved what they take.
    pub(super) functions: Vec<Candidate>,
    /// What the allocator does by calls that cannot be seen.
    pub(super) unseen: Vec<&'static str>,
}

/// What is called around the shims that are among the functions which are taken for an allocator's.
pub(super) fn of<'data>(elf: &Elf<'data>, data: Bounded<'data>, accepted: &[Candidate]) -> Behind {
    let sections = OnceCell::new();
    let frames = OnceCell::new();
    behind(
        accepted,
        |address| executable(elf, data, address),
        |to| branches_of(elf, data, to, &[CALL, JUMP]),
        |address| {
            let sections = sections.get_or_init(|| image::sections(elf, data));
            frames.get_or_init(|| Frames::of(sections)).function(address)
        },
    )
}

/// The same of a file that these look into: `code` gives the bytes from an address on, `calls` all calls and jumps to some addresses, as
/// the place and where it leads, or `None` where that cannot be told; `function` says which function an address is in.
fn behind<'a>(
    accepted: &[Candidate],
    code: impl Fn(u64) -> Option<&'a [u8]> + Copy,
    calls: impl FnOnce(&[u64]) -> Option<Vec<(u64, u64)>>,
    function: impl Fn(u64) -> Option<Range<u64>>,
) -> Behind {
    let shims: Vec<&Candidate> = accepted.iter().filter(|candidate| is_shim(candidate)).take(MAX_SHIMS).collect();
    // Where only what frees is taken for it, another allocator is behind it.
    if shims.iter().all(|shim| shim.known.shape.frees()) {
        return Behind::default();
    }
    let onward: Vec<Option<Onward>> = shims.iter().map(|shim| onward(shim.address, shim.size, code)).collect();
    let targets: Vec<u64> = onward.iter().flatten().map(|onward| onward.to).collect();
    // What is behind them calls each other, too: a realloc calls alloc.
    let own: Vec<Range<u64>> =
        shims.iter().map(|shim| shim.address).chain(targets.clone()).filter_map(function).collect();
    let is_own = |at: u64| own.iter().any(|own| own.contains(&at));
    let called: Option<HashSet<u64>> =
        calls(&targets).map(|calls| calls.into_iter().filter(|(at, _)| !is_own(*at)).map(|(_, to)| to).collect());
    // Where that cannot be told, it may be.
    let is_called = |function: u64| called.as_ref().is_none_or(|called| called.contains(&function));
    let allocates: Vec<u64> = shims
        .iter()
        .zip(&onward)
        .filter_map(|(shim, onward)| Some(onward.as_ref().filter(|_| shim.known.shape == Shape::Malloc)?.to))
        .collect();
    let mut found = Behind::default();
    // Every program has these, or all calls of them are inlined.
    let is_gone = |function: &&str| shims.iter().all(|shim| shim.known.function != *function);
    found.unseen.extend(["alloc", "dealloc"].iter().filter(|function| is_gone(function)));
    for (shim, onward) in shims.iter().zip(&onward) {
        let Known { family, function, shape } = shim.known;
        let Some(onward) = onward else {
            // What comes to another one that allocates is inlined as a call of that.
            let is_another = |at: u64| if allocates.contains(&at) { Target::Wanted } else { Target::Here(at) };
            let is_seen = !shape.frees() && always_calls(shim.address, code, |_| Target::Elsewhere, is_another);
            if !is_seen {
                found.unseen.push(function);
            }
            continue;
        };
        let is_known = |one: &Candidate| one.address == onward.to;
        if accepted.iter().any(is_known) || found.functions.iter().any(is_known) || !is_called(onward.to) {
            continue;
        }
        match onward.shape(shape, |register| reads(onward.to, register, code)) {
            Some(shape) => found.functions.push(Candidate {
                name: format!("what is behind __rust_{function}"),
                known: Known { family, shape, function },
                address: onward.to,
                size: 0,
                is_exported: false,
                chooses: false,
            }),
            None => found.unseen.push(function),
        }
    }
    // An allocator that has another one in the same file is most likely a wrapper of that, whose calls are seen wherever they are.
    let is_another = |one: &Candidate| FAMILIES[one.known.family].name != "Rust" && !one.known.shape.frees();
    if accepted.iter().any(is_another) {
        found.unseen.clear();
    }
    found
}

/// Whether a function is one of those that calls may go around: compilers that mangle their names inline them.
fn is_shim(candidate: &Candidate) -> bool {
    FAMILIES[candidate.known.family].name == "Rust" && candidate.name.starts_with("_R")
}

/// Where a shim passes all calls on to.
struct Onward {
    to: u64,
    /// Which of the shim's arguments each register of an argument has, from 1 on; 0: none. `None` where that is not known.
    arguments: Option<[u8; ARGUMENTS.len()]>,
}

impl Onward {
    /// How the function takes its arguments that one of such a shape passes its calls on to, if that can be told; `reads` says whether a
    /// register is one of its arguments.
    fn shape(&self, shim: Shape, reads: impl Fn(Register) -> bool) -> Option<Shape> {
        let arguments = self.arguments?;
        let number = |of_shim: u8| -> Option<usize> {
            let mut registers = (1..).zip(arguments.iter().zip(ARGUMENTS));
            registers.find_map(|(number, (held, register))| (*held == of_shim && reads(register)).then_some(number))
        };
        match shim {
            Shape::Malloc => [Shape::Malloc, Shape::Memalign, Shape::MemalignInHeap].get(number(1)? - 1).copied(),
            Shape::Free => [Shape::Free, Shape::FreeInHeap].get(number(1)? - 1).copied(),
            Shape::ReallocFrom => match (number(1)?, number(4)?) {
                (1, 2) => Some(Shape::Realloc),
                (1, 3) => Some(Shape::Realign),
                (1, 4) => Some(Shape::ReallocFrom),
                (2, 3) => Some(Shape::ReallocInHeap),
                (2, 4) => Some(Shape::RealignInHeap),
                _ => None,
            },
            _ => None,
        }
    }
}

/// Where the function at `entry`, of so many bytes, passes all calls on to, if it does nothing else: at its end it jumps there, or
/// returns what that returns.
fn onward<'a>(entry: u64, size: u64, code: impl Fn(u64) -> Option<&'a [u8]>) -> Option<Onward> {
    let mut factory = InstructionInfoFactory::new();
    let mut held = [0u8; 16];
    for (number, register) in (1..).zip(ARGUMENTS) {
        held[register.number()] = number;
    }
    let mut is_first = true;
    let mut last: Option<Onward> = None;
    let end = entry.checked_add(size)?;
    for instruction in Decoder::with_ip(64, code(entry)?, entry, DecoderOptions::NONE).iter().take(MAX_SHIM) {
        let next = |held: &[u8; 16], is_first: bool| {
            let to = (instruction.op0_kind() == OpKind::NearBranch64).then(|| instruction.near_branch_target());
            let to = to.filter(|to| !(entry..end).contains(to))?;
            Some(Onward { to, arguments: is_first.then(|| ARGUMENTS.map(|register| held[register.number()])) })
        };
        match instruction.flow_control() {
            FlowControl::Next => {}
            FlowControl::Return => return last,
            FlowControl::UnconditionalBranch => return next(&held, is_first),
            FlowControl::Call => {
                last = Some(next(&held, is_first)?);
                (held, is_first) = ([0; 16], false);
                continue;
            }
            _ => return None,
        }
        let info = factory.info(&instruction);
        let is_on_stack = |base: Register| matches!(base, Register::RSP | Register::RBP);
        let memory = info.used_memory().iter();
        let mut memory = memory.filter(|used| used.access() != OpAccess::NoMemAccess);
        if instruction.is_invalid() || memory.any(|used| !is_on_stack(used.base())) {
            return None;
        }
        let moved = moved(&instruction).map(|(to, from)| (to, held[from]));
        for used in info.used_registers().iter().filter(|used| writes(used.access())) {
            let full = used.register().full_register();
            if full == Register::RAX {
                // It is not what the call has returned.
                last = None;
            }
            if full.is_gpr64() {
                held[full.number()] = 0;
            }
        }
        if let Some((to, what)) = moved {
            held[to] = what;
        }
    }
    None
}

/// The numbers of the registers that an instruction moves a word between: to, and from.
fn moved(instruction: &Instruction) -> Option<(usize, usize)> {
    let operands = [instruction.op0_register(), instruction.op1_register()];
    let is_move = instruction.mnemonic() == Mnemonic::Mov
        && instruction.op0_kind() == OpKind::Register
        && instruction.op1_kind() == OpKind::Register;
    (is_move && operands.iter().all(|register| register.is_gpr64()))
        .then(|| (operands[0].number(), operands[1].number()))
}

/// Whether the function at `entry` reads what a register has when it is called: it is one of its arguments.
fn reads<'a>(entry: u64, register: Register, code: impl Fn(u64) -> Option<&'a [u8]>) -> bool {
    let mut factory = InstructionInfoFactory::new();
    let mut left = MAX_INSTRUCTIONS;
    let mut seen = HashSet::new();
    let mut paths = vec![(entry, 0)];
    while let Some((start, depth)) = paths.pop() {
        let Some(bytes) = code(start) else { continue };
        for instruction in &mut Decoder::with_ip(64, bytes, start, DecoderOptions::NONE) {
            if instruction.is_invalid() || left == 0 || !seen.insert(instruction.ip()) {
                break;
            }
            left -= 1;
            let info = factory.info(&instruction);
            let mut of_it = info.used_registers().iter().filter(|used| used.register().full_register() == register);
            if of_it.clone().any(|used| is_read(used.access())) {
                return true;
            }
            if of_it.any(|used| writes(used.access())) {
                break;
            }
            let flow = instruction.flow_control();
            let to = (instruction.op0_kind() == OpKind::NearBranch64).then(|| instruction.near_branch_target());
            match flow {
                FlowControl::Next => {}
                FlowControl::ConditionalBranch => paths.extend(to.map(|to| (to, depth))),
                FlowControl::UnconditionalBranch => {
                    paths.extend(to.map(|to| (to, depth)));
                    break;
                }
                // It keeps no argument as it is.
                FlowControl::Call if depth < DEEP => {
                    paths.extend(to.map(|to| (to, depth + 1)));
                    break;
                }
                _ => break,
            }
        }
    }
    false
}

fn is_read(access: OpAccess) -> bool {
    matches!(access, OpAccess::Read | OpAccess::CondRead | OpAccess::ReadWrite | OpAccess::ReadCondWrite)
}

fn writes(access: OpAccess) -> bool {
    matches!(access, OpAccess::Write | OpAccess::CondWrite | OpAccess::ReadWrite | OpAccess::ReadCondWrite)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::probe::allocators::known;

    const MOVE_AROUND: &[u8] = &[0x48, 0x89, 0xf8, 0x48, 0x89, 0xf7, 0x48, 0x89, 0xc6];
    const READS_FIRST: &[u8] = &[0x48, 0x89, 0xf8, 0xc3];
    const READS_SECOND: &[u8] = &[0x48, 0x89, 0xf0, 0xc3];
    const RETURNS: &[u8] = &[0x31, 0xff, 0xc3];
    /// Where functions begin: at multiples of this.
    const APART: usize = 0x40;

    /// Code that calls or jumps (`opcode`) to the function of this number, of one that has this number, and what comes before and behind.
    fn passing(own: usize, before: &[u8], opcode: u8, to: usize, behind: &[u8]) -> Vec<u8> {
        let from = own * APART + before.len() + 5;
        let relative = i32::try_from(to * APART).unwrap() - i32::try_from(from).unwrap();
        [before, &[opcode], &relative.to_le_bytes(), behind].concat()
    }

    /// Shapes and places of what is probed behind these shims, and what is not seen. `functions` lie in a row; shims are the first ones, by
    /// what they do, and `called` is which calls which, beside that.
    fn found(
        shims: &[&str],
        functions: &[Vec<u8>],
        called: &[(usize, usize)],
    ) -> (Vec<(Shape, usize)>, Vec<&'static str>) {
        let mut image = vec![0xcc; APART * functions.len()];
        for (function, place) in functions.iter().zip(image.chunks_mut(APART)) {
            place[..function.len()].copy_from_slice(function);
        }
        // What tests read is there until they end.
        let image: &[u8] = image.leak();
        let accepted: Vec<Candidate> = shims
            .iter()
            .zip(0u64..)
            .map(|(does, index)| {
                let name = format!("_RNvCsfLfy6EI15iL_7___rustc{}___rust_{does}", does.len() + 7);
                let known = known(name.as_bytes()).unwrap();
                let (address, size) = (0x1000 + index * APART as u64, APART as u64);
                Candidate { name, known, address, size, is_exported: false, chooses: false }
            })
            .collect();
        let code = |address: u64| image.get(usize::try_from(address.checked_sub(0x1000)?).ok()?..);
        let address = |index: &usize| 0x1000 + (index * APART) as u64;
        let calls = |targets: &[u64]| {
            let called = called.iter().map(|(from, to)| (address(from), address(to)));
            Some(called.filter(|(_, to)| targets.contains(to)).collect())
        };
        let function = |address: u64| {
            let start = address - address % APART as u64;
            Some(start..start + APART as u64)
        };
        let behind = behind(&accepted, code, calls, function);
        let place = |address: u64| usize::try_from(address - 0x1000).unwrap() / APART;
        let functions = behind.functions.iter().map(|one| (one.known.shape, place(one.address))).collect();
        (functions, behind.unseen)
    }

    #[test]
    fn what_others_call_around_shims_is_probed() {
        let functions = [
            passing(0, MOVE_AROUND, 0xe9, 3, &[]),
            passing(1, &[], 0xe9, 4, &[]),
            // Comes to the same as the first whatever it does.
            passing(2, &[0x53], 0xe8, 3, &[0x48, 0x85, 0xc0, 0x74, 0x00, 0x5b, 0xc3]),
            READS_SECOND.to_vec(),
            READS_FIRST.to_vec(),
        ];
        let shims = ["alloc", "dealloc", "alloc_zeroed"];
        assert_eq!(
            found(&shims, &functions, &[(9, 3), (9, 4)]),
            (vec![(Shape::Memalign, 3), (Shape::Free, 4)], vec![])
        );
        assert_eq!(found(&shims, &functions, &[]), (vec![], vec![]), "nobody goes around them");
        assert_eq!(found(&shims, &functions, &[(2, 3), (3, 4)]), (vec![], vec![]), "they call each other");
    }

    #[test]
    fn an_argument_that_nobody_need_pass_is_told() {
        let functions = [
            passing(0, MOVE_AROUND, 0xe9, 2, &[]),
            passing(1, &[], 0xe9, 3, &[]),
            READS_SECOND.to_vec(),
            RETURNS.to_vec(),
        ];
        let expected = (vec![(Shape::Memalign, 2)], vec!["dealloc"]);
        assert_eq!(found(&["alloc", "dealloc"], &functions, &[(9, 2), (9, 3)]), expected);
    }

    #[test]
    fn a_shim_that_has_the_allocator_in_it_is_told() {
        // Adds to a word of the file's.
        let adds = [&[0xb8, 0x10, 0, 0, 0][..], &[0xf0, 0x48, 0x0f, 0xc1, 0x05, 0, 1, 0, 0], &[0xc3]].concat();
        let functions = [adds, passing(1, &[], 0xe9, 2, &[]), READS_FIRST.to_vec()];
        assert_eq!(found(&["alloc", "dealloc"], &functions, &[]), (vec![], vec!["alloc"]));
    }

    #[test]
    fn arguments_are_followed_through_calls_and_on_all_ways() {
        for (what, code, expected) in [
            ("test esi, esi; je; ret; mov rax, rdi", &[0x85, 0xf6, 0x74, 1, 0xc3, 0x48, 0x89, 0xf8, 0xc3][..], true),
            ("xor edi, edi; mov rax, rdi", &[0x31, 0xff, 0x48, 0x89, 0xf8, 0xc3], false),
            ("call +0, which is mov rax, rdi", &[0xe8, 0, 0, 0, 0, 0x48, 0x89, 0xf8, 0xc3], true),
            ("call rax; mov rax, rdi", &[0xff, 0xd0, 0x48, 0x89, 0xf8, 0xc3], false),
            ("ret", &[0xc3], false),
        ] {
            let read = reads(0, Register::RDI, |address| code.get(usize::try_from(address).ok()?..));
            assert_eq!(read, expected, "{what}");
        }
    }

    #[test]
    fn a_shim_may_call_where_it_could_jump() {
        for (before, behind, expected) in [
            // push rax; call; pop rcx; ret
            (&[0x50][..], &[0x59, 0xc3][..], Some(true)),
            // call; call: what comes before is not known to leave arguments as they are.
            (&[0x50, 0xe8, 0, 1, 0, 0], &[0x59, 0xc3], Some(false)),
            // call; mov rax, rbx; ret
            (&[0x50], &[0x48, 0x89, 0xd8, 0xc3], None),
            // mov rdi, [rip]; call; ret
            (&[0x48, 0x8b, 0x3d, 0, 0, 0, 0], &[0xc3], None),
        ] {
            let code = passing(0, before, 0xe8, 2, behind);
            let onward = onward(0, APART as u64, |_| Some(&code));
            assert_eq!(onward.map(|onward| onward.arguments.is_some()), expected, "{before:x?}");
        }
    }
}
