//! The global allocator that a Rust program brings itself, where calls go around the functions that stand for it.
//!
//! Rust's compiler makes a function for each thing that a global allocator does (`__rust_alloc` and its like), and inlines it
//! where it optimises: calls go to what is behind it, or the whole of it is in its caller. What is behind it may have lost the
//! arguments that it does not read. Where the size and the block are is known by the way from the shim; that a register still
//! is an argument, by the function reading it: then each caller has to set it.

use std::{cell::OnceCell, ops::Range};

use hashbrown::{HashMap, HashSet};
use iced_x86::{
    Decoder, DecoderOptions, FlowControl, Instruction, InstructionInfoFactory, Mnemonic, OpAccess, OpKind, Register,
};
use object::{
    Object as _, ObjectSymbol as _, ObjectSymbolTable as _, RelocationFlags, RelocationTarget,
    elf::{PT_GNU_RELRO, R_X86_64_GLOB_DAT, R_X86_64_JUMP_SLOT, R_X86_64_RELATIVE},
    read::elf::ProgramHeader as _,
};

use super::{
    allocators::{self, Known},
    asked::{CALL, JUMP, branches_of},
    catalogue::FAMILIES,
    family::Shape,
    image::{self, executable},
    reach::{Target, always_calls, leaves_work_to, writes},
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
    let pointers = OnceCell::new();
    let frames = OnceCell::new();
    behind(
        accepted,
        |address| executable(elf, data, address),
        |to| branches_of(elf, data, to, &[CALL, JUMP]),
        |address| {
            let sections = sections.get_or_init(|| image::sections(elf, data));
            frames.get_or_init(|| Frames::of(sections)).function(address)
        },
        |slot| pointers.get_or_init(|| self::pointers(elf)).get(&slot).copied(),
    )
}

/// What a pointer leads to that the loader fills.
#[derive(Clone, Copy)]
enum Pointer {
    /// Code of the same file, at this address.
    Here(u64),
    /// A function of an allocator, by its name: whether it frees.
    Allocator { frees: bool },
}

/// All of a file that lead to something which is known, by their addresses: those that are the loader's. Others may be written to.
fn pointers(elf: &Elf<'_>) -> HashMap<u64, Pointer> {
    // Where nothing can be written once the loader is done.
    let endian = elf.endian();
    let fixed = elf.elf_program_headers().iter().filter(|header| header.p_type(endian) == PT_GNU_RELRO);
    let fixed: Vec<Range<u64>> = fixed
        .map(|header| header.p_vaddr(endian)..header.p_vaddr(endian).saturating_add(header.p_memsz(endian)))
        .collect();
    let relocations = elf.dynamic_relocations().into_iter().flatten();
    let symbols = elf.dynamic_symbol_table();
    let pointer = |(slot, relocation): (u64, object::Relocation)| {
        let RelocationFlags::Elf { r_type } = relocation.flags() else { return None };
        let pointer = match relocation.target() {
            RelocationTarget::Symbol(index) => {
                let symbol = symbols.as_ref()?.symbol_by_index(index).ok()?;
                let is_bound = [R_X86_64_GLOB_DAT, R_X86_64_JUMP_SLOT].contains(&r_type);
                match allocators::known(symbol.name_bytes().unwrap_or_default()) {
                    _ if !is_bound => return None,
                    _ if symbol.is_definition() => Pointer::Here(symbol.address()),
                    Some(known) if FAMILIES[known.family].name != "Rust" => {
                        Pointer::Allocator { frees: known.shape.frees() }
                    }
                    _ => return None,
                }
            }
            _ if r_type == R_X86_64_RELATIVE && fixed.iter().any(|fixed| fixed.contains(&slot)) => {
                Pointer::Here(u64::try_from(relocation.addend()).ok()?)
            }
            _ => return None,
        };
        Some((slot, pointer))
    };
    relocations.filter_map(pointer).collect()
}

/// The same of a file that these look into: `code` gives the bytes from an address on, `calls` all calls and jumps to some addresses, as
/// the place and where it leads, or `None` where that cannot be told; `function` says which function an address is in, `pointer` what the
/// pointer at an address leads to.
fn behind<'a>(
    accepted: &[Candidate],
    code: impl Fn(u64) -> Option<&'a [u8]> + Copy,
    calls: impl FnOnce(&[u64]) -> Option<Vec<(u64, u64)>>,
    function: impl Fn(u64) -> Option<Range<u64>>,
    pointer: impl Fn(u64) -> Option<Pointer>,
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
    // What leaves the work to another allocator is seen there, wherever it was inlined. That the file has another one proves nothing: a
    // static executable has that of the C library, whoever uses it. To do nothing is how an arena frees, and no way to allocate.
    let is_wrapper = |shim: &Candidate| {
        let frees = shim.known.shape.frees();
        let is_another =
            |one: &Candidate| FAMILIES[one.known.family].name != "Rust" && one.known.shape.frees() == frees;
        let at = |address: u64| {
            let is_wanted = accepted.iter().any(|one| one.address == address && is_another(one));
            if is_wanted { Target::Wanted } else { Target::Here(address) }
        };
        let pointer = |slot| match pointer(slot) {
            Some(Pointer::Here(address)) => at(address),
            Some(Pointer::Allocator { frees: does }) if does == frees => Target::Wanted,
            _ => Target::Elsewhere,
        };
        // Nothing is ever asked for or of no bytes, and no block is at 0 (`GlobalAlloc`).
        let sizes: &[Register] = match shim.known.shape {
            Shape::Malloc => &[Register::RDI],
            Shape::ReallocFrom => &[Register::RDI, Register::RSI, Register::RCX],
            shape if shape.frees() => &[Register::RDI, Register::RSI],
            _ => &[],
        };
        leaves_work_to(shim.address, sizes, shim.known.shape == Shape::Malloc, code, pointer, at)
    };
    let mut found = Behind::default();
    // Every program has these, or all calls of them are inlined. What is left tells whether they are a wrapper's: where all blocks come
    // from another allocator, or all go there. Those that are zeroed may have a way of their own.
    let is_gone = |function: &&str| shims.iter().all(|shim| shim.known.function != *function);
    let mut gone = ["alloc", "dealloc"].into_iter().filter(is_gone).peekable();
    let tells_of_all = |shim: &&&Candidate| shim.known.function != "alloc_zeroed";
    if gone.peek().is_some() && !shims.iter().filter(tells_of_all).any(|shim| is_wrapper(shim)) {
        found.unseen.extend(gone);
    }
    for (shim, onward) in shims.iter().zip(&onward) {
        let Known { family, function, shape } = shim.known;
        let Some(onward) = onward else {
            // What comes to another one that allocates is inlined as a call of that.
            let is_another = |at: u64| if allocates.contains(&at) { Target::Wanted } else { Target::Here(at) };
            let is_seen = !shape.frees() && always_calls(shim.address, code, |_| Target::Elsewhere, is_another);
            if !is_seen && !is_wrapper(shim) {
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
            None if is_wrapper(shim) => {}
            None => found.unseen.push(function),
        }
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

#[cfg(test)]
mod tests;
