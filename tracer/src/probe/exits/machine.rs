//! One instruction, with what it writes.

use iced_x86::{FlowControl, Instruction, InstructionInfoFactory, Mnemonic, OpKind, Register};

use crate::probe::site::is_write;

/// What an instruction writes to memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stores {
    /// Nothing, or only what [`stack_change`] is about.
    Nothing,
    /// These bytes from the stack pointer on.
    Stack { from: i64, size: i64 },
    /// Something else, or it is not known what.
    Elsewhere,
}

/// A decoded instruction.
#[derive(Clone, Copy, Debug)]
pub(super) struct Step {
    pub(super) instruction: Instruction,
    /// General registers that it may write, a bit each as the machine numbers them.
    pub(super) writes: u16,
    pub(super) stores: Stores,
}

impl Step {
    pub(super) fn new(factory: &mut InstructionInfoFactory, instruction: Instruction) -> Self {
        let info = factory.info(&instruction);
        let mut writes = 0;
        for used in info.used_registers() {
            if is_write(used.access()) {
                writes |= number(used.register()).map_or(0, |number| 1 << number);
            }
        }
        if is_system_call(&instruction) {
            writes |= 1 << 0 | 1 << 1 | 1 << 11;
        }
        let mut stores = Stores::Nothing;
        for used in info.used_memory().iter().filter(|used| is_write(used.access())) {
            let plain = used.base() == Register::RSP && used.index() == Register::None;
            let from = used.displacement().cast_signed();
            stores = match stores {
                // What is pushed is below the stack pointer: no slot that anything can lie in.
                _ if plain && from < 0 && is_push(&instruction) => stores,
                Stores::Nothing if plain && used.segment() == Register::SS => {
                    Stores::Stack { from, size: used.memory_size().size() as i64 }
                }
                _ => Stores::Elsewhere,
            };
        }
        Self { instruction, writes, stores }
    }

    pub(super) fn may_write(&self, register: Register) -> bool {
        number(register).is_none_or(|number| self.writes & 1 << number != 0)
    }

    /// Whether it copies the stack pointer, or an address relative to it, so that something else may write to the stack.
    pub(super) fn exposes_stack(&self) -> bool {
        let i = &self.instruction;
        let into_other = |register: Register| register.is_gpr64() && register != Register::RSP;
        match i.mnemonic() {
            Mnemonic::Lea => {
                let of_stack = |register| matches!(register, Register::RSP | Register::RBP);
                into_other(i.op0_register()) && (of_stack(i.memory_base()) || of_stack(i.memory_index()))
            }
            Mnemonic::Test | Mnemonic::Cmp => false,
            Mnemonic::Add | Mnemonic::Sub | Mnemonic::And if i.op0_register() == Register::RSP => false,
            _ => (0..i.op_count()).any(|operand| {
                i.op_kind(operand) == OpKind::Register
                    && i.op_register(operand).full_register() == Register::RSP
                    && (operand > 0 || i.mnemonic() == Mnemonic::Push)
            }),
        }
    }
}

fn is_push(instruction: &Instruction) -> bool {
    matches!(instruction.mnemonic(), Mnemonic::Push | Mnemonic::Pushfq | Mnemonic::Call)
}

/// Whether the kernel is called: it gives its answer in rax.
pub(super) fn is_system_call(instruction: &Instruction) -> bool {
    matches!(instruction.mnemonic(), Mnemonic::Syscall | Mnemonic::Sysenter | Mnemonic::Int)
}

/// Whether a function is called, by whose convention registers are lost.
pub(super) fn is_call(instruction: &Instruction) -> bool {
    matches!(instruction.flow_control(), FlowControl::Call | FlowControl::IndirectCall) && !is_system_call(instruction)
}

/// The general register that holds this one, as the machine numbers it.
pub(super) fn number(register: Register) -> Option<u8> {
    let full = register.full_register();
    full.is_gpr64().then(|| full.number() as u8)
}

/// What an instruction other than a call does to the stack pointer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum StackChange {
    /// It is raised by so many bytes; 0: left alone.
    By(i64),
    /// It is not known where it is afterwards.
    Unknown,
}

/// See [`StackChange`]. Calls leave it alone: they return.
pub(super) fn stack_change(step: &Step) -> StackChange {
    let i = &step.instruction;
    let immediate = || i.immediate(1).cast_signed();
    match i.mnemonic() {
        Mnemonic::Call | Mnemonic::Syscall => StackChange::By(0),
        Mnemonic::Push | Mnemonic::Pushfq | Mnemonic::Popfq => StackChange::By(i64::from(i.stack_pointer_increment())),
        Mnemonic::Pop if i.op0_register() != Register::RSP => StackChange::By(i64::from(i.stack_pointer_increment())),
        Mnemonic::Add if i.op0_register() == Register::RSP && is_immediate(i, 1) => StackChange::By(immediate()),
        Mnemonic::Sub if i.op0_register() == Register::RSP && is_immediate(i, 1) => {
            StackChange::By(immediate().wrapping_neg())
        }
        Mnemonic::Lea
            if i.op0_register() == Register::RSP
                && i.memory_base() == Register::RSP
                && i.memory_index() == Register::None =>
        {
            StackChange::By(i.memory_displacement64().cast_signed())
        }
        _ if step.may_write(Register::RSP) => StackChange::Unknown,
        _ => StackChange::By(0),
    }
}

/// Whether an operand is a number in the instruction.
pub(super) fn is_immediate(instruction: &Instruction, operand: u32) -> bool {
    matches!(
        instruction.op_kind(operand),
        OpKind::Immediate8
            | OpKind::Immediate8to16
            | OpKind::Immediate8to32
            | OpKind::Immediate8to64
            | OpKind::Immediate16
            | OpKind::Immediate32
            | OpKind::Immediate32to64
            | OpKind::Immediate64
    )
}
