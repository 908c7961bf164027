//! Instructions at which the outcome of a call into the allocator is known: what the program there is told, packed into its
//! cookie.
//!
//! Such an instruction lies between the entry of a function and its return. It tells of which call the outcome is, by the
//! frame that it belongs to, and where the result lies: in a register, on the stack, or in the instruction that was reached.

/// Where the frame of the function begins at an instruction: its canonical frame address (DWARF's CFA), in which the return
/// address is the word below.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Frame {
    /// Whether it is counted from the frame pointer; from the stack pointer otherwise.
    pub from_frame_pointer: bool,
    /// Bytes from that register up, below [`MAX_FRAME_OFFSET`].
    pub offset: u32,
}

/// Where the result of a call lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Place {
    /// It is not known yet on this way.
    Unknown,
    /// In a general register, numbered as the machine encodes it (rax 0, rcx 1, rdx 2, rbx 3, rsp 4, rbp 5, rsi 6, rdi 7, r8
    /// to r15), plus a displacement.
    Register {
        /// Number of the register.
        register: u8,
        /// Bytes to be added, see [`MAX_DISPLACEMENT`].
        displacement: i16,
    },
    /// It is this number.
    Constant(i16),
    /// It is the word at the stack pointer plus this displacement, bytes.
    Stack(i16),
}

/// What is known at an instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Outcome {
    /// The result lies there.
    One(Place),
    /// The instruction is a conditional jump: the result lies there if it jumps, and elsewhere if it does not.
    Branch {
        /// Condition of the jump as the machine encodes it, 0 (overflow) to 15 (greater).
        condition: u8,
        /// Where the result lies if it jumps.
        taken: Place,
        /// Where it lies otherwise.
        not_taken: Place,
    },
}

/// All that the program at an exit is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Exit {
    /// The frame of the call.
    pub frame: Frame,
    /// Its result.
    pub outcome: Outcome,
}

/// Offsets of frames are below this, bytes.
pub const MAX_FRAME_OFFSET: u32 = 1 << 15;

/// Displacements lie between the negative of this and this, exclusive at the upper end, bytes.
pub const MAX_DISPLACEMENT: i16 = 1 << 11;

/// Places of the parts of a cookie: the first bit of each.
const OFFSET: u32 = 1;
const CONDITION: u32 = 17;
const IS_BRANCH: u32 = 21;
const TAKEN: (u32, u32) = (22, 36);
const NOT_TAKEN: (u32, u32) = (29, 48);

/// Kinds of places, three bits.
pub const UNKNOWN: u64 = 0;
/// A register plus a displacement.
pub const REGISTER: u64 = 1;
/// The displacement itself.
pub const CONSTANT: u64 = 2;
/// The word at the stack pointer plus the displacement.
pub const STACK: u64 = 3;

/// A place as the BPF side reads it from a cookie.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Packed {
    /// [`UNKNOWN`], [`REGISTER`], [`CONSTANT`] or [`STACK`].
    pub kind: u64,
    /// Number of the register.
    pub register: u64,
    /// Sign-extended displacement.
    pub displacement: u64,
}

impl Exit {
    /// As a cookie; `None` when a number in it is too large for that.
    pub fn pack(self) -> Option<u64> {
        if self.frame.offset >= MAX_FRAME_OFFSET {
            return None;
        }
        let frame = u64::from(self.frame.from_frame_pointer) | u64::from(self.frame.offset) << OFFSET;
        Some(match self.outcome {
            Outcome::One(place) => frame | pack_place(place, TAKEN)?,
            Outcome::Branch { condition, .. } if condition > 15 => return None,
            Outcome::Branch { condition, taken, not_taken } => {
                let branch = u64::from(condition) << CONDITION | 1 << IS_BRANCH;
                frame | branch | pack_place(taken, TAKEN)? | pack_place(not_taken, NOT_TAKEN)?
            }
        })
    }
}

fn pack_place(place: Place, (kind_at, displacement_at): (u32, u32)) -> Option<u64> {
    let (kind, register, displacement) = match place {
        Place::Unknown => (UNKNOWN, 0, 0),
        Place::Register { register, .. } if register > 15 => return None,
        Place::Register { register, displacement } => (REGISTER, register, displacement),
        Place::Constant(value) => (CONSTANT, 0, value),
        Place::Stack(displacement) => (STACK, 0, displacement),
    };
    if !(-MAX_DISPLACEMENT..MAX_DISPLACEMENT).contains(&displacement) {
        return None;
    }
    let displacement = u64::from(displacement as u16 & 0xfff);
    Some(kind << kind_at | u64::from(register) << (kind_at + 3) | displacement << displacement_at)
}

/// Address of the slot that holds the return address of the call, from stack and frame pointer.
#[inline(always)]
pub fn return_slot(cookie: u64, stack_pointer: u64, frame_pointer: u64) -> u64 {
    let base = if cookie & 1 != 0 { frame_pointer } else { stack_pointer };
    base.wrapping_add(cookie >> OFFSET & 0xffff).wrapping_sub(8)
}

/// Where the result lies, when the processor's flags are these.
#[inline(always)]
pub fn place(cookie: u64, flags: u64) -> Packed {
    let (mut kind_at, mut displacement_at) = TAKEN;
    if cookie >> IS_BRANCH & 1 != 0 && !jumps(cookie >> CONDITION & 15, flags) {
        (kind_at, displacement_at) = NOT_TAKEN;
    }
    let displacement = cookie >> displacement_at & 0xfff;
    Packed {
        kind: cookie >> kind_at & 7,
        register: cookie >> (kind_at + 3) & 15,
        displacement: ((displacement << 52) as i64 >> 52) as u64,
    }
}

/// Whether a conditional jump jumps (Intel's manual, volume 1, appendix B): conditions come in pairs, the odd one negates.
#[inline(always)]
pub fn jumps(condition: u64, flags: u64) -> bool {
    let (carry, parity, zero) = (flags & 1, flags >> 2 & 1, flags >> 6 & 1);
    let (sign, overflow) = (flags >> 7 & 1, flags >> 11 & 1);
    let less = sign ^ overflow;
    let holds = overflow
        | carry << 1
        | zero << 2
        | (carry | zero) << 3
        | sign << 4
        | parity << 5
        | less << 6
        | (zero | less) << 7;
    (holds >> (condition >> 1) ^ condition) & 1 != 0
}

#[cfg(test)]
mod tests {
    use super::*;

    const FRAME: Frame = Frame { from_frame_pointer: false, offset: 48 };

    fn unpacked(exit: Exit, flags: u64) -> Packed {
        place(exit.pack().unwrap(), flags)
    }

    #[test]
    fn what_was_packed_comes_back() {
        for place in [
            Place::Unknown,
            Place::Register { register: 0, displacement: 0 },
            Place::Register { register: 15, displacement: -MAX_DISPLACEMENT },
            Place::Register { register: 8, displacement: MAX_DISPLACEMENT - 1 },
            Place::Constant(0),
            Place::Constant(-1),
            Place::Stack(8),
        ] {
            let (kind, register, displacement) = match place {
                Place::Unknown => (UNKNOWN, 0, 0),
                Place::Register { register, displacement } => (REGISTER, register, displacement),
                Place::Constant(value) => (CONSTANT, 0, value),
                Place::Stack(displacement) => (STACK, 0, displacement),
            };
            let expected = Packed { kind, register: register.into(), displacement: i64::from(displacement) as u64 };
            assert_eq!(unpacked(Exit { frame: FRAME, outcome: Outcome::One(place) }, 0), expected);
            // je: with the zero flag one way, without it the other.
            let other = Place::Stack(-8);
            let taken = Outcome::Branch { condition: 4, taken: place, not_taken: other };
            assert_eq!(unpacked(Exit { frame: FRAME, outcome: taken }, 1 << 6), expected);
            let not_taken = Outcome::Branch { condition: 4, taken: other, not_taken: place };
            assert_eq!(unpacked(Exit { frame: FRAME, outcome: not_taken }, 0), expected);
        }
    }

    #[test]
    fn return_slots_lie_below_frames() {
        let outcome = Outcome::One(Place::Constant(0));
        let cookie = Exit { frame: FRAME, outcome }.pack().unwrap();
        assert_eq!(return_slot(cookie, 0x1000, 0x2000), 0x1000 + 40);
        let frame = Frame { from_frame_pointer: true, offset: MAX_FRAME_OFFSET - 1 };
        let cookie = Exit { frame, outcome }.pack().unwrap();
        assert_eq!(return_slot(cookie, 0x1000, 0x2000), 0x2000 + u64::from(MAX_FRAME_OFFSET) - 9);
    }

    #[test]
    fn numbers_that_are_too_large_are_refused() {
        let exit = |offset, outcome| Exit { frame: Frame { from_frame_pointer: false, offset }, outcome }.pack();
        let one = |place| exit(8, Outcome::One(place));
        assert_eq!(exit(MAX_FRAME_OFFSET, Outcome::One(Place::Unknown)), None);
        assert_eq!(one(Place::Register { register: 16, displacement: 0 }), None);
        assert_eq!(one(Place::Register { register: 0, displacement: MAX_DISPLACEMENT }), None);
        assert_eq!(one(Place::Stack(-MAX_DISPLACEMENT - 1)), None);
        let branch = Outcome::Branch { condition: 16, taken: Place::Unknown, not_taken: Place::Unknown };
        assert_eq!(exit(8, branch), None);
    }

    #[test]
    fn conditions_are_those_of_the_machine() {
        let (carry, parity, zero, sign, overflow) = (1, 1 << 2, 1 << 6, 1 << 7, 1 << 11);
        for (condition, name, jumping, staying) in [
            (0, "jo", overflow, carry | parity | zero | sign),
            (2, "jb", carry, zero | sign | overflow | parity),
            (4, "je", zero, carry | sign | overflow | parity),
            (6, "jbe", carry, sign),
            (6, "jbe", zero, overflow),
            (8, "js", sign, zero),
            (10, "jp", parity, zero),
            (12, "jl", sign, sign | overflow),
            (12, "jl", overflow, 0),
            (14, "jle", zero, sign | overflow),
        ] {
            assert!(jumps(condition, jumping) && !jumps(condition, staying), "{name}");
            assert!(!jumps(condition | 1, jumping) && jumps(condition | 1, staying), "{name} negated");
        }
    }
}
