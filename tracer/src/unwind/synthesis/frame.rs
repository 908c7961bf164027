//! What is known of a frame at an instruction: where the stack pointer is, and where the caller's frame pointer.

use iced_x86::{Instruction, Register};
use tracer_ebpf::unwind::{fp, kind, rule};

/// What a register, or a word of the frame, holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Value {
    /// Anything.
    Unknown,
    /// What the frame pointer held when the function was called.
    CallersFramePointer,
    /// What this one of [`KEPT`] held when the function was called.
    Callers(u8),
    /// Where the function returns to.
    ReturnAddress,
    /// 0, the ABI's mark of the outermost frame.
    Zero,
    /// The CFA plus this.
    Cfa(i32),
    /// This address, from the first one of the code on. So are those below.
    Address(i32),
    /// A number of a table of distances to code.
    Distance(i32),
    /// What is in such a table, as an address.
    Target(i32),
    /// What is in a table of addresses.
    Entry(i32),
}
use Value::{Callers, CallersFramePointer, Cfa, ReturnAddress, Unknown, Zero};

pub(super) const RSP: usize = 4;
pub(super) const RBP: usize = 5;

/// Registers that functions leave as they were, by the ABI of C, beside the frame pointer: rbx and r12 to r15.
const KEPT: [usize; 5] = [3, 12, 13, 14, 15];

/// Stack pointer, frame pointer, where the caller's was saved, and where the return address is.
pub(super) type Essence = (Value, Value, Option<i32>, i32);

/// Where a call puts the return address, from the CFA.
const AT_CALL: i32 = -8;

/// What is known before an instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Frame {
    pub(super) registers: [Value; 16],
    /// Where the caller's frame pointer was saved, from the CFA.
    pub(super) slot: Option<i32>,
    /// The same of [`KEPT`].
    kept: [Option<i32>; KEPT.len()],
    /// Where the return address is, from the CFA: code that puts arguments below it takes it off the stack and pushes it again.
    pub(super) home: i32,
    /// Whether the return address was changed, or taken off the stack.
    pub(super) is_lost: bool,
    /// Whether the stack pointer, of which no more is known, points at the return address.
    pub(super) is_returning: bool,
    /// The call that this lies right behind, padding aside; 0: none.
    pub(super) behind: u64,
    /// A call on the way behind which code begins that looks like another function; 0: none.
    pub(super) suspect: u64,
    /// What a register was compared with, and what that says of it on one way: it is not above.
    pub(super) compared: Option<u32>,
    pub(super) bound: Option<u32>,
    /// Where the stack pointer is if the last comparison says equal.
    pub(super) if_equal: Option<i32>,
    /// Words of the frame that hold addresses in it, or the return address.
    pub(super) spilled: [(i32, Value); 2],
}

impl Frame {
    /// What holds where a function begins.
    pub(super) fn at_entry() -> Self {
        let mut registers = [Unknown; 16];
        (registers[RSP], registers[RBP]) = (Cfa(AT_CALL), CallersFramePointer);
        (0..).zip(KEPT).for_each(|(index, number)| registers[number] = Callers(index));
        Self {
            registers,
            slot: None,
            kept: [None; KEPT.len()],
            home: AT_CALL,
            is_lost: false,
            is_returning: false,
            behind: 0,
            suspect: 0,
            compared: None,
            bound: None,
            if_equal: None,
            spilled: [(0, Unknown); 2],
        }
    }

    /// What a call leaves of it. `pops`: whether those that are called may take arguments off the stack.
    pub(super) fn after_call(mut self, call: u64, pops: bool) -> Self {
        for number in [0, 1, 2, 6, 7, 8, 9, 10, 11] {
            self.registers[number] = Unknown;
        }
        if pops {
            self.registers[RSP] = Unknown;
        }
        (self.compared, self.bound, self.if_equal, self.behind) = (None, None, None, call);
        self.is_returning = false;
        self
    }

    pub(super) fn stack_pointer(&self) -> Value {
        self.registers[RSP]
    }

    pub(super) fn frame_pointer(&self) -> Value {
        self.registers[RBP]
    }

    /// Whether all is as it was when the function was called.
    pub(super) fn is_as_called(&self) -> bool {
        !self.is_lost
            && !self.has_moved_home()
            && self.stack_pointer() == Cfa(AT_CALL)
            && self.frame_pointer() == CallersFramePointer
    }

    /// Whether all registers that are the caller's hold what they held.
    pub(super) fn keeps_registers(&self) -> bool {
        self.frame_pointer() == CallersFramePointer
            && (0..).zip(KEPT).all(|(index, number)| self.registers[number] == Callers(index))
    }

    /// Whether some of them were saved, below the return address: for a caller.
    pub(super) fn has_saved_registers(&self) -> bool {
        self.kept.iter().chain([&self.slot]).flatten().any(|at| *at < self.home)
    }

    /// Whether the function returns, if it does now, to its caller, with the stack pointer elsewhere: arguments that the caller had
    /// put on the stack are taken off. How many these are its own instructions need not tell.
    pub(super) fn takes_arguments_off(&self) -> bool {
        let is_next = match self.stack_pointer() {
            Cfa(at) => self.load(at) == ReturnAddress,
            _ => self.is_returning,
        };
        is_next && self.has_moved()
    }

    /// The same, by a jump to what the register holds.
    pub(super) fn takes_arguments_off_by(&self, register: Register) -> bool {
        self.register(register) == ReturnAddress && self.has_moved()
    }

    fn has_moved(&self) -> bool {
        self.frame_pointer() == CallersFramePointer
            && (self.is_lost || self.has_moved_home() || self.stack_pointer() == Unknown)
    }

    /// Whether the return address is elsewhere than where the call has put it. Where the caller's stack pointer was is told by nothing then: it
    /// is to be one that does not need it.
    pub(super) fn has_moved_home(&self) -> bool {
        self.home != AT_CALL
    }

    /// A frame as compilers make it to keep frame pointers.
    pub(super) fn is_standard(&self) -> bool {
        let saved = self.home.checked_sub(8);
        saved.is_some_and(|saved| self.frame_pointer() == Cfa(saved) && self.slot == Some(saved))
    }

    /// What unwinding needs of it.
    pub(super) fn essence(&self) -> Essence {
        (self.stack_pointer(), self.frame_pointer(), self.slot, self.home)
    }

    pub(super) fn register(&self, register: Register) -> Value {
        number(register).map_or(Unknown, |number| self.registers[number])
    }

    /// Where in the frame the memory operand of an instruction is.
    pub(super) fn place(&self, instruction: &Instruction) -> Option<i32> {
        if instruction.memory_index() != Register::None || instruction.segment_prefix() != Register::None {
            return None;
        }
        match self.register(instruction.memory_base()) {
            Cfa(base) => base.checked_add(i32::try_from(instruction.memory_displacement64().cast_signed()).ok()?),
            _ => None,
        }
    }

    /// Puts a value of so many bytes into the frame.
    pub(super) fn store(&mut self, at: i32, size: i32, value: Value) {
        let (at, end) = (i64::from(at), i64::from(at) + i64::from(size));
        let overlaps = |word: i32| i64::from(word) < end && at < i64::from(word) + 8;
        for spilled in &mut self.spilled {
            if spilled.1 != Unknown && overlaps(spilled.0) {
                *spilled = (0, Unknown);
            }
        }
        if self.slot.is_some_and(|slot| overlaps(slot) && !(value == CallersFramePointer && i64::from(slot) == at)) {
            self.slot = None;
        }
        self.kept.iter_mut().for_each(|kept| *kept = kept.filter(|at| !overlaps(*at)));
        self.is_lost |= overlaps(self.home);
        if size != 8 {
            return;
        }
        match value {
            CallersFramePointer if self.slot.is_none() => self.slot = Some(at as i32),
            Callers(index) => {
                if let Some(kept @ None) = self.kept.get_mut(usize::from(index)) {
                    *kept = Some(at as i32);
                }
            }
            Cfa(_) | ReturnAddress => {
                if let Some(free) = self.spilled.iter_mut().find(|spilled| spilled.1 == Unknown) {
                    *free = (at as i32, value);
                }
            }
            _ => {}
        }
    }

    /// The word at a place in the frame.
    pub(super) fn load(&self, at: i32) -> Value {
        if self.slot == Some(at) {
            return CallersFramePointer;
        }
        if at == self.home && !self.is_lost {
            return ReturnAddress;
        }
        if let Some((index, _)) = (0..).zip(self.kept).find(|(_, kept)| *kept == Some(at)) {
            return Callers(index);
        }
        let spilled = self.spilled.iter().find(|spilled| spilled.1 != Unknown && spilled.0 == at);
        spilled.map_or(Unknown, |spilled| spilled.1)
    }

    /// Puts a value into a register. A part of one is not known afterwards.
    pub(super) fn set(&mut self, register: Register, value: Value) {
        let Some(at) = number(register.full_register()) else { return };
        self.registers[at] = match value {
            // Of these two all that matters is where they point at.
            Callers(_) if [RSP, RBP].contains(&at) => Unknown,
            value if register.is_gpr64() => value,
            _ => Unknown,
        };
        self.is_returning &= at != RSP;
        if let (RSP, Cfa(to)) = (at, self.registers[at]) {
            self.is_lost |= to > self.home;
            // What lies below may be written by a signal handler.
            if self.frame_pointer() == CallersFramePointer && self.slot.is_some_and(|slot| slot < to) {
                self.slot = None;
            }
            self.leave_below(to);
        }
    }

    /// What was saved below an address may be written by a signal handler.
    fn leave_below(&mut self, to: i32) {
        self.kept.iter_mut().for_each(|kept| *kept = kept.filter(|at| *at >= to));
    }

    fn move_stack_pointer(&mut self, by: i32) {
        self.is_returning = false;
        let Cfa(from) = self.stack_pointer() else {
            self.registers[RSP] = Unknown;
            return;
        };
        self.registers[RSP] = from.checked_add(by).map_or(Unknown, Cfa);
        if let Cfa(to) = self.stack_pointer() {
            self.is_lost |= to > self.home;
            if by > 0 {
                self.slot = self.slot.filter(|slot| *slot >= to);
                self.leave_below(to);
            }
        }
    }

    pub(super) fn push(&mut self, value: Value) {
        self.move_stack_pointer(-8);
        if let Cfa(at) = self.stack_pointer() {
            self.store(at, 8, value);
            if self.is_lost && value == ReturnAddress {
                (self.home, self.is_lost) = (at, false);
            }
        }
        self.is_returning = value == ReturnAddress && self.stack_pointer() == Unknown;
    }

    pub(super) fn pop(&mut self) -> Value {
        let value = match self.stack_pointer() {
            Cfa(at) => self.load(at),
            _ => Unknown,
        };
        self.move_stack_pointer(8);
        value
    }

    /// Says that nobody knows where the frame pointer was saved.
    pub(super) fn forget_slot(&mut self) {
        self.slot = None;
    }

    /// The frame pointer is set to 0. Whoever keeps a copy of it has a caller.
    pub(super) fn zero_frame_pointer(&mut self) {
        let copies = self.registers.iter().filter(|value| **value == CallersFramePointer).count();
        let is_mark = self.slot.is_none() && copies == 1 && self.frame_pointer() == CallersFramePointer;
        self.registers[RBP] = if is_mark { Zero } else { Unknown };
    }

    /// Leaves what holds where two ways meet: whether that is less.
    pub(super) fn merge(&mut self, other: &Self) -> bool {
        /// Leaves nothing where they differ: whether there was something.
        fn same<T: PartialEq + Copy>(value: &mut T, other: &T, nothing: T) -> bool {
            let is_less = *value != *other && *value != nothing;
            if is_less {
                *value = nothing;
            }
            is_less
        }
        let mut is_less = false;
        for (value, other) in self.registers.iter_mut().zip(&other.registers) {
            is_less |= same(value, other, Unknown);
        }
        for (spilled, other) in self.spilled.iter_mut().zip(&other.spilled) {
            is_less |= same(spilled, other, (0, Unknown));
        }
        for (kept, other) in self.kept.iter_mut().zip(&other.kept) {
            is_less |= same(kept, other, None);
        }
        is_less |= same(&mut self.slot, &other.slot, None);
        is_less |= same(&mut self.behind, &other.behind, 0);
        is_less |= same(&mut self.suspect, &other.suspect, 0);
        is_less |= same(&mut self.compared, &other.compared, None);
        is_less |= same(&mut self.bound, &other.bound, None);
        is_less |= same(&mut self.if_equal, &other.if_equal, None);
        let is_lost = self.is_lost || other.is_lost || self.home != other.home;
        is_less |= is_lost != self.is_lost;
        self.is_lost = is_lost;
        is_less |= self.is_returning && !other.is_returning;
        self.is_returning &= other.is_returning;
        is_less
    }

    /// The rule that holds here, if any.
    pub(super) fn rule(&self) -> Option<u64> {
        if self.frame_pointer() == Zero && self.slot.is_none() {
            return Some(rule(kind::STOP, fp::SAME, 0, 0));
        }
        if self.is_lost {
            return None;
        }
        // The unwinder has the return address right below the CFA.
        let cfa = self.home.checked_add(8)?;
        // What was saved holds whatever the register is used for meanwhile.
        let (fp_kind, fp_offset) = match (self.slot, self.frame_pointer()) {
            (Some(slot), _) => (fp::AT_CFA, i16::try_from(slot.checked_sub(cfa)?).ok()?),
            (None, CallersFramePointer) => (fp::SAME, 0),
            (None, _) => return None,
        };
        match (self.stack_pointer(), self.frame_pointer()) {
            _ if self.is_standard() => Some(rule(kind::FP, fp_kind, fp_offset, 16)),
            (Cfa(at), _) => Some(rule(kind::SP, fp_kind, fp_offset, cfa.checked_sub(at)?)),
            (_, Cfa(at)) => Some(rule(kind::FP, fp_kind, fp_offset, cfa.checked_sub(at)?)),
            _ => None,
        }
    }
}

/// Number of a whole register.
fn number(register: Register) -> Option<usize> {
    register.is_gpr64().then(|| register.number())
}
