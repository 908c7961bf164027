//! Code of which no table says anything, and what one pass over it tells: where instructions begin, where jumps and calls go.

use std::{cell::Cell, ops::Range};

use iced_x86::{Code, Decoder, DecoderOptions, FlowControl, Instruction, Mnemonic, OpKind};

/// Code of a file that no unwind information describes, and what the file tells about it. All of it may lie.
pub struct Undescribed<'a> {
    /// The code, by address: addresses go up, ranges do not overlap.
    pub code: Vec<(u64, &'a [u8])>,
    /// What is loaded from an address on: code of any kind, and constants.
    pub loaded: &'a dyn Fn(u64) -> Option<&'a [u8]>,
    /// Where functions begin.
    pub functions: Vec<u64>,
    /// Where functions may begin: what pointers hold.
    pub pointers: Vec<u64>,
    /// Functions that never return, and pointers to such functions.
    pub no_return: Vec<u64>,
    /// The function where the program begins; empty: nowhere.
    pub entry: Range<u64>,
    /// Whether code outside of this begins, at an address, with its return address on top of the stack, as far as is known.
    pub has_caller: &'a dyn Fn(u64) -> bool,
    /// Whether the code holds addresses: it was linked for one place.
    pub is_fixed: bool,
}

/// What an instruction leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Flow {
    Next,
    /// One that is there for alignment, or as a mark.
    Nothing,
    Branch(u64),
    Jump(u64),
    Call(u64),
    Return,
    JumpByPointer,
    CallByPointer,
    /// It does not go on.
    Trap,
}

/// What is known of an address in the code.
pub(super) mod mark {
    /// A function begins here.
    pub(crate) const ENTRY: u8 = 1;
    /// A jump leads here.
    pub(crate) const JUMPED: u8 = 2;
    /// A call leads here, as far as a sweep can tell.
    pub(crate) const CALLED: u8 = 4;
    /// A pointer leads here.
    pub(crate) const POINTED: u8 = 8;
    /// The function that begins here returns.
    pub(crate) const RETURNS: u8 = 16;
    /// Was looked at as a start that is not certain.
    pub(crate) const TRIED: u8 = 32;
    /// More than one jump leads here.
    pub(crate) const JUMPED_OFTEN: u8 = 64;
}

/// Bytes that are looked at together where something is looked for.
const AT_ONCE: usize = 32;

/// Reads instructions. To make a decoder takes as long as to decode an instruction.
pub(super) struct Reader<'a> {
    /// The range that it reads.
    of: Option<&'a [u8]>,
    pub(super) decoder: Decoder<'a>,
}

impl Reader<'_> {
    /// One of nothing.
    pub(super) fn new() -> Self {
        Self { of: None, decoder: Decoder::new(64, &[], DecoderOptions::NONE) }
    }
}

/// One range of the code.
struct Gap<'a> {
    address: u64,
    bytes: &'a [u8],
    /// Index of its first byte among all.
    first: usize,
}

/// The code, with what is known of each of its bytes, which have an index in all of them.
pub(super) struct Text<'a> {
    gaps: Vec<Gap<'a>>,
    /// Index of the range that was found last, which most often is that of the next address, too.
    found: Cell<usize>,
    /// Length (low half) and kind (high half) of the instruction that begins here; 0: none was read.
    flows: Vec<u8>,
    marks: Vec<u8>,
}

const NEXT: u8 = 1;
const NOTHING: u8 = 2;
const BRANCH: u8 = 3;
const BRANCH_FAR: u8 = 4;
const JUMP: u8 = 5;
const JUMP_FAR: u8 = 6;
const CALL: u8 = 7;
const RETURN: u8 = 8;
const JUMP_BY_POINTER: u8 = 9;
const CALL_BY_POINTER: u8 = 10;
const TRAP: u8 = 11;

impl<'a> Text<'a> {
    /// Reads all instructions, one after the other.
    pub(super) fn new(code: &[(u64, &'a [u8])]) -> Self {
        let mut gaps: Vec<Gap<'a>> = Vec::with_capacity(code.len());
        let (mut first, mut end) = (0, 0);
        for &(address, bytes) in code {
            let Some(next) = address.checked_add(bytes.len() as u64) else { continue };
            if address < end || bytes.is_empty() {
                continue;
            }
            gaps.push(Gap { address, bytes, first });
            (first, end) = (first + bytes.len(), next);
        }
        let mut text = Self { gaps, found: Cell::new(0), flows: vec![0; first], marks: vec![0; first] };
        text.sweep();
        text
    }

    fn sweep(&mut self) {
        let mut instruction = Instruction::default();
        for index in 0..self.gaps.len() {
            let Gap { address, bytes, first } = self.gaps[index];
            let mut decoder = Decoder::with_ip(64, bytes, address, DecoderOptions::NONE);
            while decoder.can_decode() {
                let at = decoder.position();
                decoder.decode_out(&mut instruction);
                self.flows[first + at] = pack(&instruction);
                let target = match unpack(self.flows[first + at], address + at as u64, &bytes[at..]) {
                    _ if instruction.is_invalid() => {
                        // Data among the code, perhaps.
                        if decoder.set_position(at + 1).is_err() {
                            break;
                        }
                        decoder.set_ip(address + at as u64 + 1);
                        continue;
                    }
                    Some((Flow::Branch(target) | Flow::Jump(target), _)) => (target, mark::JUMPED),
                    Some((Flow::Call(target), _)) => (target, mark::CALLED),
                    _ => continue,
                };
                if !self.add(target.0, target.1) && target.1 == mark::JUMPED {
                    self.add(target.0, mark::JUMPED_OFTEN);
                }
            }
        }
    }

    /// Bytes of code.
    pub(super) fn len(&self) -> usize {
        self.marks.len()
    }

    /// Index of an address; `None` outside of the code.
    pub(super) fn at(&self, address: u64) -> Option<usize> {
        let (gap, inside) = self.find(address)?;
        Some(gap.first + inside)
    }

    /// Whether an address lies in the code.
    pub(super) fn contains(&self, address: u64) -> bool {
        self.find(address).is_some()
    }

    /// The code from an address on, to the end of its range, and the index of its first byte.
    pub(super) fn from(&self, address: u64) -> Option<(&'a [u8], usize)> {
        let (gap, inside) = self.find(address)?;
        Some((&gap.bytes[inside..], gap.first + inside))
    }

    fn find(&self, address: u64) -> Option<(&Gap<'a>, usize)> {
        let inside = |gap: &Gap<'a>| {
            let inside = usize::try_from(address.wrapping_sub(gap.address)).ok()?;
            Some(inside).filter(|inside| *inside < gap.bytes.len())
        };
        if let Some(gap) = self.gaps.get(self.found.get())
            && let Some(inside) = inside(gap)
        {
            return Some((gap, inside));
        }
        let index = self.gaps.partition_point(|gap| gap.address <= address).checked_sub(1)?;
        let gap = self.gaps.get(index)?;
        let inside = inside(gap)?;
        self.found.set(index);
        Some((gap, inside))
    }

    /// Has instructions read from an address on, to the end of its range, by `reader`; the index of its first byte.
    pub(super) fn read_from(&self, address: u64, reader: &mut Reader<'a>) -> Option<usize> {
        let (gap, inside) = self.find(address)?;
        if !reader.of.is_some_and(|of| std::ptr::eq(of, gap.bytes)) {
            *reader = Reader {
                of: Some(gap.bytes),
                decoder: Decoder::with_ip(64, gap.bytes, gap.address, DecoderOptions::NONE),
            };
        }
        reader.decoder.set_position(inside).ok()?;
        reader.decoder.set_ip(address);
        Some(gap.first + inside)
    }

    /// Ranges of addresses, each with the index of its first byte.
    pub(super) fn ranges(&self) -> impl Iterator<Item = (u64, usize, usize)> {
        self.gaps.iter().map(|gap| (gap.address, gap.bytes.len(), gap.first))
    }

    /// What is known of the byte with this index.
    pub(super) fn marks(&self, at: usize) -> u8 {
        self.marks.get(at).copied().unwrap_or(0)
    }

    /// The first byte among these of which something of this is known.
    pub(super) fn next(&self, among: Range<usize>, mark: u8) -> Option<usize> {
        let marks = self.marks.get(among.clone())?;
        // Without a branch for each: most bytes have none.
        let has = |marks: &[u8]| marks.iter().fold(0, |all, marks| all | marks) & mark != 0;
        let chunk = marks.chunks(AT_ONCE).position(has)? * AT_ONCE;
        let found = marks.iter().skip(chunk).position(|marks| marks & mark != 0)?;
        Some(among.start + chunk + found)
    }

    /// Whether something of this is known of an address.
    pub(super) fn is(&self, address: u64, mark: u8) -> bool {
        self.at(address).is_some_and(|at| self.marks(at) & mark != 0)
    }

    /// Adds something that is known of an address: whether that is new.
    pub(super) fn add(&mut self, address: u64, mark: u8) -> bool {
        let Some(marks) = self.at(address).and_then(|at| self.marks.get_mut(at)) else { return false };
        let is_new = *marks & mark == 0;
        *marks |= mark;
        is_new
    }

    /// Takes it back.
    pub(super) fn remove(&mut self, address: u64, mark: u8) {
        if let Some(marks) = self.at(address).and_then(|at| self.marks.get_mut(at)) {
            *marks &= !mark;
        }
    }

    /// What the instruction at an address leads to, and its length; `None` for none.
    pub(super) fn flow(&self, address: u64) -> Option<(Flow, u64)> {
        let (bytes, at) = self.from(address)?;
        match self.flows[at] {
            // Not where the sweep found instructions: it came across data before.
            0 => {
                let mut decoder = Decoder::with_ip(64, bytes, address, DecoderOptions::NONE);
                unpack(pack(&decoder.decode()), address, bytes)
            }
            packed => unpack(packed, address, bytes),
        }
    }

    /// Whether an instruction begins at an address where all are read one after the other.
    pub(super) fn is_instruction(&self, address: u64) -> bool {
        self.at(address).is_some_and(|at| self.flows[at] != 0)
    }

    /// Whether what begins at an address looks like the start of a function: a mark, padding before it, or what makes a frame.
    pub(super) fn looks_like_start(&self, address: u64) -> bool {
        let Some((bytes, _)) = self.from(address) else { return true };
        address.is_multiple_of(16)
            || matches!(self.flow(address), Some((Flow::Nothing | Flow::Trap, _)) | None)
            || matches!(bytes, [0x50..=0x57, ..] | [0x41, 0x50..=0x57, ..] | [0x48, 0x81 | 0x83, 0xec, ..])
    }
}

/// Kind and length of an instruction; 0 when it is none, or one that only the kernel may run.
fn pack(instruction: &Instruction) -> u8 {
    if instruction.is_invalid() {
        return 0;
    }
    let short = matches!(instruction.op0_kind(), OpKind::NearBranch64) && instruction.len() <= 3;
    let kind = match instruction.flow_control() {
        _ if is_trap(instruction) => TRAP,
        FlowControl::Next if matches!(instruction.mnemonic(), Mnemonic::Nop | Mnemonic::Endbr64) => NOTHING,
        FlowControl::ConditionalBranch if is_near(instruction) && short => BRANCH,
        FlowControl::ConditionalBranch if is_near(instruction) => BRANCH_FAR,
        FlowControl::UnconditionalBranch if is_near(instruction) && short => JUMP,
        FlowControl::UnconditionalBranch if is_near(instruction) => JUMP_FAR,
        FlowControl::Call if is_near(instruction) => CALL,
        FlowControl::Return if matches!(instruction.code(), Code::Retnq | Code::Retnq_imm16) => RETURN,
        FlowControl::IndirectBranch if instruction.is_jmp_near_indirect() => JUMP_BY_POINTER,
        FlowControl::IndirectCall if instruction.is_call_near_indirect() => CALL_BY_POINTER,
        FlowControl::Next => NEXT,
        _ if matches!(instruction.mnemonic(), Mnemonic::Syscall | Mnemonic::Int | Mnemonic::Xabort) => NEXT,
        _ => TRAP,
    };
    kind << 4 | instruction.len() as u8 & 15
}

/// Whether it jumps, or calls, within 2 GiB: not by a prefix to somewhere in the first 64 KiB.
fn is_near(instruction: &Instruction) -> bool {
    instruction.op0_kind() == OpKind::NearBranch64 && instruction.mnemonic() != Mnemonic::Xbegin
}

/// Whether an instruction is none that user space goes on behind.
pub(super) fn is_trap(instruction: &Instruction) -> bool {
    matches!(
        instruction.mnemonic(),
        Mnemonic::Int3 | Mnemonic::Int1 | Mnemonic::Ud0 | Mnemonic::Ud1 | Mnemonic::Ud2 | Mnemonic::Hlt
    )
}

fn unpack(packed: u8, address: u64, bytes: &[u8]) -> Option<(Flow, u64)> {
    let length = usize::from(packed & 15);
    let bytes = bytes.get(..length).filter(|bytes| !bytes.is_empty())?;
    let end = address.wrapping_add(length as u64);
    let short = || end.wrapping_add_signed(bytes.last().map_or(0, |byte| i64::from(byte.cast_signed())));
    let far = || end.wrapping_add_signed(bytes.last_chunk().map_or(0, |bytes| i64::from(i32::from_le_bytes(*bytes))));
    let flow = match packed >> 4 {
        NOTHING => Flow::Nothing,
        BRANCH => Flow::Branch(short()),
        BRANCH_FAR => Flow::Branch(far()),
        JUMP => Flow::Jump(short()),
        JUMP_FAR => Flow::Jump(far()),
        CALL => Flow::Call(far()),
        RETURN => Flow::Return,
        JUMP_BY_POINTER => Flow::JumpByPointer,
        CALL_BY_POINTER => Flow::CallByPointer,
        TRAP => Flow::Trap,
        _ => Flow::Next,
    };
    Some((flow, length as u64))
}
