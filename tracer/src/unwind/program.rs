//! The instructions of call frame information, run: for which addresses which state holds (DWARF 5, section 6.4.3).
//!
//! Only what x86-64 unwinding needs is kept: how the CFA, the frame pointer and the return address are found. So a state
//! is a few words, and running a function's instructions takes time in proportion to their length.

use std::ops::Range;

use gimli::{
    CallFrameInstruction, CallFrameInstructionIter, CommonInformationEntry, EndianSlice, LittleEndian, Register,
    UnwindExpression, X86_64,
};

/// Bytes as gimli reads them.
pub(super) type Bytes<'a> = EndianSlice<'a, LittleEndian>;
/// What functions have in common.
pub(super) type Cie<'a> = CommonInformationEntry<Bytes<'a>>;

/// Most states that can be remembered at once; compilers need two.
const MAX_REMEMBERED: usize = 8;

/// How the CFA is found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Cfa {
    /// A register's value and an offset.
    Register { register: Register, offset: i64 },
    /// The value of an expression.
    Expression(UnwindExpression<usize>),
}

/// How the value that a register had in the caller is found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Saved {
    /// Nothing was said: as the ABI has it.
    Default,
    /// It is not there any more.
    Undefined,
    /// It is in the register.
    Same,
    /// In the word at CFA + offset.
    Offset(i64),
    /// In the word whose address is the value of an expression.
    Expression(UnwindExpression<usize>),
    /// In some other way.
    Other,
}

/// A row of the table that the instructions stand for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct State {
    pub(super) cfa: Cfa,
    pub(super) frame_pointer: Saved,
    pub(super) return_address: Saved,
}

/// Before the first instruction: register 0 stands for none, as no caller's frame is found by rax.
const BLANK: State = State {
    cfa: Cfa::Register { register: X86_64::RAX, offset: 0 },
    frame_pointer: Saved::Default,
    return_address: Saved::Default,
};

/// An instruction that makes no sense where it stands, or cannot be read.
struct Malformed;

/// What runs instructions.
#[derive(Default)]
pub(super) struct Machine {
    remembered: Vec<State>,
}

impl Machine {
    /// The state that holds at the start of each function of `cie`; `None` when it cannot be made out.
    pub(super) fn initial(cie: &Cie<'_>, instructions: CallFrameInstructionIter<'_, Bytes<'_>>) -> Option<State> {
        let mut run = Run { machine: &mut Self::default(), cie, initial: None, state: BLANK };
        for instruction in instructions {
            run.execute(instruction.ok()?).ok()?;
        }
        Some(run.state)
    }

    /// Runs the instructions of a function at `addresses`. Tells from which address on which state holds; `None`: from
    /// there to the end nothing is known. Addresses never go down.
    pub(super) fn run(
        &mut self,
        initial: &State,
        cie: &Cie<'_>,
        instructions: CallFrameInstructionIter<'_, Bytes<'_>>,
        addresses: Range<u64>,
        mut row: impl FnMut(u64, Option<&State>),
    ) {
        self.remembered.clear();
        let mut run = Run { machine: self, cie, initial: Some(initial), state: *initial };
        let mut at = addresses.start;
        for instruction in instructions {
            let next = match instruction {
                Ok(CallFrameInstruction::AdvanceLoc { delta }) => {
                    u64::from(delta).checked_mul(cie.code_alignment_factor()).and_then(|delta| at.checked_add(delta))
                }
                Ok(CallFrameInstruction::SetLoc { address }) => Some(address).filter(|address| *address >= at),
                Ok(instruction) => match run.execute(instruction) {
                    Ok(()) => continue,
                    Err(Malformed) => None,
                },
                Err(_) => None,
            };
            let Some(next) = next else { return row(at, None) };
            if next > at {
                row(at, Some(&run.state));
            }
            if next >= addresses.end {
                return;
            }
            at = next;
        }
        row(at, Some(&run.state));
    }
}

/// A run of instructions under way.
struct Run<'a, 'b> {
    machine: &'a mut Machine,
    cie: &'a Cie<'b>,
    /// What registers are restored to; `None` while that is being made out.
    initial: Option<&'a State>,
    state: State,
}

impl Run<'_, '_> {
    /// Executes an instruction that stays at its address.
    fn execute(&mut self, instruction: CallFrameInstruction<usize>) -> Result<(), Malformed> {
        use CallFrameInstruction as I;
        match instruction {
            I::DefCfa { register, offset } => self.state.cfa = Cfa::Register { register, offset: offset.cast_signed() },
            I::DefCfaSf { register, factored_offset } => {
                self.state.cfa = Cfa::Register { register, offset: self.factored(factored_offset) };
            }
            I::DefCfaRegister { register } => match &mut self.state.cfa {
                Cfa::Register { register: own, .. } => *own = register,
                Cfa::Expression(_) => return Err(Malformed),
            },
            I::DefCfaOffset { offset } => self.set_cfa_offset(offset.cast_signed()),
            I::DefCfaOffsetSf { factored_offset } => self.set_cfa_offset(self.factored(factored_offset)),
            I::DefCfaExpression { expression } => self.state.cfa = Cfa::Expression(expression),
            I::Undefined { register } => self.save(register, Saved::Undefined),
            I::SameValue { register } => self.save(register, Saved::Same),
            I::Offset { register, factored_offset } => {
                self.save(register, Saved::Offset(self.factored(factored_offset.cast_signed())));
            }
            I::OffsetExtendedSf { register, factored_offset } => {
                self.save(register, Saved::Offset(self.factored(factored_offset)));
            }
            I::Expression { register, expression } => self.save(register, Saved::Expression(expression)),
            I::ValOffset { register, .. }
            | I::ValOffsetSf { register, .. }
            | I::ValExpression { register, .. }
            | I::Register { dest_register: register, .. } => self.save(register, Saved::Other),
            I::Restore { register } => self.restore(register)?,
            I::RememberState => self.remember()?,
            I::RestoreState => self.state = self.machine.remembered.pop().ok_or(Malformed)?,
            // Only a CIE's instructions come here with these two: there is no address to advance.
            I::AdvanceLoc { .. } | I::SetLoc { .. } => {}
            I::ArgsSize { .. } | I::Nop => {}
            I::NegateRaState => return Err(Malformed),
        }
        Ok(())
    }

    fn factored(&self, offset: i64) -> i64 {
        offset.wrapping_mul(self.cie.data_alignment_factor())
    }

    /// Of what an expression finds it says nothing: compilers track the stack pointer there, too, and unwinders leave it alone.
    fn set_cfa_offset(&mut self, to: i64) {
        if let Cfa::Register { offset, .. } = &mut self.state.cfa {
            *offset = to;
        }
    }

    fn save(&mut self, register: Register, saved: Saved) {
        match register {
            X86_64::RBP => self.state.frame_pointer = saved,
            X86_64::RA => self.state.return_address = saved,
            _ => {}
        }
    }

    fn restore(&mut self, register: Register) -> Result<(), Malformed> {
        let initial = self.initial.ok_or(Malformed)?;
        match register {
            X86_64::RBP => self.state.frame_pointer = initial.frame_pointer,
            X86_64::RA => self.state.return_address = initial.return_address,
            _ => {}
        }
        Ok(())
    }

    fn remember(&mut self) -> Result<(), Malformed> {
        if self.machine.remembered.len() >= MAX_REMEMBERED {
            return Err(Malformed);
        }
        self.machine.remembered.push(self.state);
        Ok(())
    }
}
