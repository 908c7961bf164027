//! From a state of call frame information to the rule that the BPF programs know, or why there is none.

use std::fmt;

use gimli::{UnwindExpression, X86_64};
use tracer_ebpf::unwind::{
    fp,
    kind::{DEREF_FP, DEREF_SP, FP, PLT, SIGNAL, SP, STOP, UNSUPPORTED},
    rule,
};

use super::{
    expression::Shape,
    program::{Cfa, Cie, Saved, State},
};

/// Why a rule is [`UNSUPPORTED`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Reason {
    /// The return address is not right below the CFA.
    ReturnAddress,
    /// The caller's frame pointer is neither in its register nor in memory at a known place.
    FramePointer,
    /// The CFA depends on a register other than the stack pointer and the frame pointer.
    CfaRegister,
    /// The CFA is computed in a way that is not known.
    CfaExpression,
    /// An offset is too large.
    Offset,
    /// A signal frame that is laid out neither as the kernel does it nor as calls leave one.
    SignalFrame,
    /// The unwind information cannot be read.
    Malformed,
    /// The function has more rows than are kept.
    TooLong,
}

impl Reason {
    /// Every reason, in the order of their numbers.
    pub const ALL: [Self; 8] = [
        Self::ReturnAddress,
        Self::FramePointer,
        Self::CfaRegister,
        Self::CfaExpression,
        Self::Offset,
        Self::SignalFrame,
        Self::Malformed,
        Self::TooLong,
    ];

    /// Why this rule is unsupported; `None` when it is not.
    pub fn of(rule: u64) -> Option<Self> {
        if rule as u8 != UNSUPPORTED {
            return None;
        }
        Self::ALL.get((rule >> 32) as usize).copied()
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::ReturnAddress => "return address elsewhere",
            Self::FramePointer => "frame pointer elsewhere",
            Self::CfaRegister => "frame found by another register",
            Self::CfaExpression => "frame computed",
            Self::Offset => "large offset",
            Self::SignalFrame => "unknown signal frame",
            Self::Malformed => "malformed",
            Self::TooLong => "too many rows",
        })
    }
}

/// The rule that says that there is none; its CFA offset holds why.
pub(super) const fn unsupported(reason: Reason) -> u64 {
    rule(UNSUPPORTED, 0, 0, reason as i32)
}

impl State {
    /// The rule that does what this state says; `section` is what its expressions are in.
    pub(super) fn rule(&self, section: &[u8], cie: &Cie<'_>) -> u64 {
        let shape = |expression: UnwindExpression<usize>| {
            let end = expression.offset.checked_add(expression.length)?;
            Shape::of(section.get(expression.offset..end)?)
        };
        self.try_rule(cie, &shape).unwrap_or_else(unsupported)
    }

    fn try_rule(
        &self,
        cie: &Cie<'_>,
        shape: &impl Fn(UnwindExpression<usize>) -> Option<Shape>,
    ) -> Result<u64, Reason> {
        if cie.return_address_register() != X86_64::RA {
            return Err(Reason::ReturnAddress);
        }
        if self.return_address == Saved::Undefined {
            return Ok(rule(STOP, 0, 0, 0));
        }
        if !cie.is_signal_trampoline() {
            return self.usual_rule(shape, 0);
        }
        if self.is_ucontext(shape) {
            return Ok(rule(SIGNAL, 0, 0, 0));
        }
        self.usual_rule(shape, fp::EXACT).map_err(|_| Reason::SignalFrame)
    }

    /// The rule of a frame that is as calls leave it. `exact`: nothing, or [`fp::EXACT`].
    fn usual_rule(&self, shape: &impl Fn(UnwindExpression<usize>) -> Option<Shape>, exact: u8) -> Result<u64, Reason> {
        if self.return_address != Saved::Offset(-8) {
            return Err(Reason::ReturnAddress);
        }
        let (fp_kind, fp_offset) = match self.frame_pointer {
            // Undefined: unwinders leave the register alone.
            Saved::Default | Saved::Undefined | Saved::Same => (fp::SAME, 0),
            Saved::Offset(offset) => (fp::AT_CFA, offset),
            Saved::Expression(expression) => match shape(expression) {
                Some(Shape::Sum { register: X86_64::RBP, offset }) => (fp::AT_FP, offset),
                _ => return Err(Reason::FramePointer),
            },
            Saved::Other => return Err(Reason::FramePointer),
        };
        let (kind, offset) = match self.cfa {
            Cfa::Register { register: X86_64::RSP, offset } => (SP, i32::try_from(offset)),
            Cfa::Register { register: X86_64::RBP, offset } => (FP, i32::try_from(offset)),
            Cfa::Register { .. } => return Err(Reason::CfaRegister),
            Cfa::Expression(expression) => match shape(expression).ok_or(Reason::CfaExpression)? {
                Shape::Plt { threshold } => (PLT, Ok(i32::from(threshold))),
                Shape::Sum { register: X86_64::RSP, offset } => (SP, i32::try_from(offset)),
                Shape::Sum { register: X86_64::RBP, offset } => (FP, i32::try_from(offset)),
                Shape::Deref { register: X86_64::RBP, before, after } => (DEREF_FP, halves(before, after)),
                Shape::Deref { register: X86_64::RSP, before, after } => (DEREF_SP, halves(before, after)),
                Shape::Sum { .. } | Shape::Deref { .. } => return Err(Reason::CfaRegister),
            },
        };
        match (i16::try_from(fp_offset), offset) {
            (Ok(fp_offset), Ok(offset)) => Ok(rule(kind, fp_kind | exact, fp_offset, offset)),
            _ => Err(Reason::Offset),
        }
    }

    /// Whether this finds the caller in the ucontext that the kernel leaves at the stack pointer: general registers are at
    /// 40 in it, in the order of <sys/ucontext.h> (rbp is 10, rsp 15, rip 16).
    fn is_ucontext(&self, shape: &impl Fn(UnwindExpression<usize>) -> Option<Shape>) -> bool {
        let at = |expression, index: i64| {
            shape(expression) == Some(Shape::Sum { register: X86_64::RSP, offset: 40 + 8 * index })
        };
        let Cfa::Expression(cfa) = self.cfa else { return false };
        let stack_pointer = Shape::Deref { register: X86_64::RSP, before: 40 + 8 * 15, after: 0 };
        shape(cfa) == Some(stack_pointer)
            && matches!(self.frame_pointer, Saved::Expression(expression) if at(expression, 10))
            && matches!(self.return_address, Saved::Expression(expression) if at(expression, 16))
    }
}

/// Two offsets in one: the low half and the high half, both signed.
fn halves(before: i64, after: i64) -> Result<i32, std::num::TryFromIntError> {
    let (before, after) = (i16::try_from(before)?, i16::try_from(after)?);
    Ok(i32::from(before.cast_unsigned()) | i32::from(after) << 16)
}
