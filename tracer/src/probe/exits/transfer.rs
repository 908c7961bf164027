//! Where a value lies before an instruction, when it is known where it lies afterwards.

use iced_x86::{Mnemonic, OpKind, Register};

use super::{
    graph::{Callee, Node},
    machine::{StackChange, Step, Stores, is_call, is_immediate, is_system_call, stack_change},
};

/// Where the value lies that the call will return, or hand out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Lies {
    /// No return is reached.
    Nowhere,
    /// In a general register, plus so many bytes.
    Register(Register, i64),
    /// It is this number.
    Number(i64),
    /// It is the word so many bytes above the stack pointer.
    Stack(i64),
    /// It is not there yet, or not in one place.
    Unknown,
}

/// What the value is.
#[derive(Clone, Copy, Debug)]
pub(super) struct Value {
    /// Only the lower 32 bits count.
    pub(super) is_int: bool,
}

/// Registers that a call does not keep (System V ABI, figure 3.4).
pub(super) const LOST_IN_CALLS: [Register; 9] = [
    Register::RAX,
    Register::RCX,
    Register::RDX,
    Register::RSI,
    Register::RDI,
    Register::R8,
    Register::R9,
    Register::R10,
    Register::R11,
];

impl Value {
    /// Where the value lies before an instruction. `exposed`: other code may write to the stack there.
    pub(super) fn before(self, node: &Node, exposed: bool, after: Lies) -> Lies {
        let Some(step) = &node.step else { return Lies::Unknown };
        match after {
            Lies::Nowhere | Lies::Unknown | Lies::Number(_) => after,
            Lies::Register(register, bytes) => self.register(step, node.callee, register, bytes),
            Lies::Stack(at) => self.stack(step, exposed, at),
        }
    }

    fn register(self, step: &Step, callee: Callee, register: Register, bytes: i64) -> Lies {
        let i = &step.instruction;
        let same = Lies::Register(register, bytes);
        if is_call(i) {
            return match callee {
                Callee::ReturnsFirst if register == Register::RAX => Lies::Register(Register::RDI, bytes),
                _ if LOST_IN_CALLS.contains(&register) => Lies::Unknown,
                _ => same,
            };
        }
        if !step.may_write(register) {
            return same;
        }
        let moved = |by: i64| bytes.checked_add(by).map_or(Lies::Unknown, |bytes| Lies::Register(register, bytes));
        let target = i.op0_register();
        let whole = target == register || (self.is_int && bytes == 0 && target.is_gpr32());
        match i.mnemonic() {
            Mnemonic::Pop if target == register && bytes == 0 => Lies::Stack(0),
            _ if i.op0_kind() != OpKind::Register || target.full_register() != register => Lies::Unknown,
            Mnemonic::Mov if i.op1_kind() == OpKind::Register && whole => {
                Lies::Register(i.op1_register().full_register(), bytes)
            }
            Mnemonic::Mov if is_immediate(i, 1) && bytes == 0 => self.number(i.immediate(1), target.size()),
            Mnemonic::Mov if whole && bytes == 0 => match on_stack(step) {
                Some(at) => Lies::Stack(at),
                None => Lies::Unknown,
            },
            Mnemonic::Xor | Mnemonic::Sub if i.op1_kind() == OpKind::Register && i.op1_register() == target => {
                if bytes == 0 && target.size() >= 4 { Lies::Number(0) } else { Lies::Unknown }
            }
            Mnemonic::Lea if target == register && i.memory_index() == Register::None && i.memory_base().is_gpr64() => {
                let by = i.memory_displacement64().cast_signed();
                bytes.checked_add(by).map_or(Lies::Unknown, |bytes| Lies::Register(i.memory_base(), bytes))
            }
            Mnemonic::Add if target == register && is_immediate(i, 1) => moved(i.immediate(1).cast_signed()),
            Mnemonic::Sub if target == register && is_immediate(i, 1) => {
                moved(i.immediate(1).cast_signed().wrapping_neg())
            }
            _ => Lies::Unknown,
        }
    }

    /// A number that is moved to a register of so many bytes. One that is no address is no block either.
    fn number(self, number: u64, size: usize) -> Lies {
        match (self.is_int, size) {
            (true, 4 | 8) => Lies::Number(i64::from(number as u32)),
            (false, 4 | 8) if number == 0 => Lies::Number(0),
            _ => Lies::Unknown,
        }
    }

    fn stack(self, step: &Step, exposed: bool, at: i64) -> Lies {
        let i = &step.instruction;
        if is_call(i) || is_system_call(i) {
            return if exposed { Lies::Unknown } else { Lies::Stack(at) };
        }
        match stack_change(step) {
            StackChange::By(0) => {}
            StackChange::By(raised) => {
                return match at.checked_add(raised) {
                    Some(before) if before >= 0 => Lies::Stack(before),
                    Some(-8) if i.mnemonic() == Mnemonic::Push && raised == -8 => match i.op0_kind() {
                        OpKind::Register if i.op0_register().is_gpr64() => Lies::Register(i.op0_register(), 0),
                        _ => Lies::Unknown,
                    },
                    _ => Lies::Unknown,
                };
            }
            StackChange::Unknown => return Lies::Unknown,
        }
        match step.stores {
            Stores::Nothing => Lies::Stack(at),
            Stores::Elsewhere if exposed => Lies::Unknown,
            Stores::Elsewhere => Lies::Stack(at),
            Stores::Stack { from, size } if from == at && i.mnemonic() == Mnemonic::Mov => match i.op1_kind() {
                OpKind::Register if size == 8 || (size == 4 && self.is_int) => {
                    Lies::Register(i.op1_register().full_register(), 0)
                }
                _ if is_immediate(i, 1) => self.number(i.immediate(1), size as usize),
                _ => Lies::Unknown,
            },
            Stores::Stack { from, size } => {
                let apart = size > 0 && (from >= at.saturating_add(8) || from.saturating_add(size) <= at);
                if apart { Lies::Stack(at) } else { Lies::Unknown }
            }
        }
    }
}

/// Where on the stack the memory operand lies, bytes from the stack pointer up.
fn on_stack(step: &Step) -> Option<i64> {
    let i = &step.instruction;
    let plain = i.op1_kind() == OpKind::Memory
        && i.memory_base() == Register::RSP
        && i.memory_index() == Register::None
        && i.segment_prefix() == Register::None;
    let at = i.memory_displacement64().cast_signed();
    (plain && at >= 0).then_some(at)
}
