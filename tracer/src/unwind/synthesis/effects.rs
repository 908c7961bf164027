//! What an instruction does to a frame.

use iced_x86::{ConditionCode, Instruction, InstructionInfoFactory, Mnemonic, OpAccess, OpKind, Register};

use super::frame::{
    Frame, RBP, RSP, Value,
    Value::{Address, Cfa, Distance, Entry, Target, Unknown, Zero},
};

/// Size that is taken for what has none: states of the processor, say.
const LARGE: i32 = 1 << 12;

/// Applies instructions.
pub(super) struct Effects {
    factory: InstructionInfoFactory,
    /// What addresses are counted from.
    base: u64,
}

impl Effects {
    pub(super) fn new(base: u64) -> Self {
        Self { factory: InstructionInfoFactory::new(), base }
    }

    /// An address, from the base on.
    pub(super) fn near(&self, address: u64) -> Option<i32> {
        i32::try_from(address.wrapping_sub(self.base).cast_signed()).ok()
    }

    /// The address that [`Self::near`] was given.
    pub(super) fn address(&self, near: i32) -> u64 {
        self.base.wrapping_add_signed(near.into())
    }

    /// Changes the frame as an instruction does that goes on to the next one.
    pub(super) fn apply(&mut self, frame: &mut Frame, instruction: &Instruction) {
        let mnemonic = instruction.mnemonic();
        if matches!(mnemonic, Mnemonic::Nop | Mnemonic::Endbr64) {
            return;
        }
        frame.behind = 0;
        frame.if_equal = None;
        let to = instruction.op0_register();
        let into_register = instruction.op0_kind() == OpKind::Register;
        match mnemonic {
            Mnemonic::Push if instruction.stack_pointer_increment() == -8 => {
                let value = match instruction.op0_kind() {
                    OpKind::Register => frame.register(to),
                    OpKind::Memory => frame.place(instruction).map_or(Unknown, |at| frame.load(at)),
                    _ => Unknown,
                };
                frame.push(value);
            }
            Mnemonic::Pop if into_register && to.is_gpr64() => {
                let value = frame.pop();
                frame.set(to, value);
            }
            Mnemonic::Leave if instruction.stack_pointer_increment() == 0 => {
                frame.registers[RSP] = frame.frame_pointer();
                let value = frame.pop();
                frame.set(Register::RBP, value);
            }
            Mnemonic::Mov if into_register && to.is_gpr64() => {
                let value = self.moved(frame, instruction);
                frame.set(to, value);
            }
            Mnemonic::Mov if instruction.op0_kind() == OpKind::Memory => {
                let from = instruction.op1_register();
                let value = if instruction.op1_kind() == OpKind::Register { frame.register(from) } else { Unknown };
                write(frame, instruction, value);
            }
            Mnemonic::Lea => {
                let value = if instruction.is_ip_rel_memory_operand() {
                    self.near(instruction.ip_rel_memory_address()).map_or(Unknown, Address)
                } else {
                    frame.place(instruction).map_or(Unknown, Cfa)
                };
                frame.set(to, value);
            }
            Mnemonic::Movsxd if into_register => {
                let value = distances(frame, instruction).map_or(Unknown, Distance);
                frame.set(to, value);
            }
            // It is only looked at where code makes an address of it.
            Mnemonic::Mov if into_register && to.is_gpr32() && instruction.memory_index() != Register::None => {
                let value = distances(frame, instruction).map_or(Unknown, Distance);
                frame.set(to.full_register(), value);
            }
            Mnemonic::Cdqe => {
                let value = frame.register(Register::RAX);
                frame.set(Register::RAX, if let Distance(_) = value { value } else { Unknown });
            }
            Mnemonic::Add | Mnemonic::Sub if into_register => {
                let value = sum(frame, instruction);
                frame.set(to, value);
            }
            Mnemonic::Cmp => {
                let other = instruction.op1_register();
                if into_register && instruction.op1_kind() == OpKind::Register {
                    let other = if to == Register::RSP { other } else { to };
                    if [to, instruction.op1_register()].contains(&Register::RSP)
                        && let Cfa(at) = frame.register(other)
                    {
                        frame.if_equal = Some(at);
                    }
                } else if let Some(immediate) = immediate(instruction) {
                    frame.compared = Some(immediate as u32);
                }
            }
            Mnemonic::Test => {}
            Mnemonic::Xor
                if into_register && to == instruction.op1_register() && to.full_register() == Register::RBP =>
            {
                if to.is_gpr32() || to.is_gpr64() { frame.zero_frame_pointer() } else { frame.set(to, Unknown) }
            }
            _ if instruction.is_stack_instruction() => stack(frame, instruction),
            _ if writes_first(instruction) => {
                if into_register {
                    frame.set(to, Unknown)
                } else {
                    write(frame, instruction, Unknown)
                }
            }
            _ => self.other(frame, instruction),
        }
    }

    /// What a `mov` into a register brings.
    fn moved(&self, frame: &Frame, instruction: &Instruction) -> Value {
        match instruction.op1_kind() {
            OpKind::Register => frame.register(instruction.op1_register()),
            OpKind::Memory => match frame.place(instruction) {
                Some(at) => frame.load(at),
                None => self.table(frame, instruction).map_or(Unknown, Entry),
            },
            _ => Unknown,
        }
    }

    /// The table of addresses that the memory operand of an instruction is an entry of.
    pub(super) fn table(&self, frame: &Frame, instruction: &Instruction) -> Option<i32> {
        if instruction.memory_index() == Register::None || instruction.memory_index_scale() != 8 {
            return None;
        }
        match (instruction.memory_base(), frame.register(instruction.memory_base())) {
            (Register::None, _) => self.near(instruction.memory_displacement64()),
            (_, Address(table)) => displaced(table, instruction),
            _ => None,
        }
    }

    /// Any instruction, by what it is known to write.
    fn other(&mut self, frame: &mut Frame, instruction: &Instruction) {
        let info = self.factory.info(instruction);
        let is_written = |access| {
            matches!(access, OpAccess::Write | OpAccess::CondWrite | OpAccess::ReadWrite | OpAccess::ReadCondWrite)
        };
        for memory in info.used_memory() {
            let outside = [Register::FS, Register::GS].contains(&memory.segment());
            if let Cfa(base) = frame.register(memory.base())
                && is_written(memory.access())
                && !outside
            {
                let size = memory.memory_size().size();
                let size = if size == 0 { LARGE } else { size as i32 };
                let at = i32::try_from(memory.displacement().cast_signed()).ok().and_then(|by| base.checked_add(by));
                match at.filter(|_| memory.index() == Register::None) {
                    Some(at) => frame.store(at, size, Unknown),
                    None => frame.forget_slot(),
                }
            }
        }
        for register in info.used_registers() {
            if is_written(register.access()) && register.register().is_gpr() {
                frame.set(register.register().full_register(), Unknown);
            }
        }
    }
}

/// Pushes and pops of other things than whole registers.
fn stack(frame: &mut Frame, instruction: &Instruction) {
    match (instruction.stack_pointer_increment(), instruction.mnemonic()) {
        (-8, _) => frame.push(Unknown),
        (8, Mnemonic::Pop | Mnemonic::Popfq) => {
            frame.pop();
            if instruction.op_count() > 0 && instruction.op0_kind() == OpKind::Memory {
                write(frame, instruction, Unknown);
            }
        }
        // `enter` changes both.
        _ => (frame.registers[RSP], frame.registers[RBP]) = (Unknown, Unknown),
    }
}

/// The memory operand gets a value.
fn write(frame: &mut Frame, instruction: &Instruction, value: Value) {
    if let Some(at) = frame.place(instruction) {
        let size = instruction.memory_size().size();
        frame.store(at, if size == 0 { LARGE } else { size as i32 }, value);
    }
}

/// What an addition, or a subtraction, leaves in its register.
fn sum(frame: &Frame, instruction: &Instruction) -> Value {
    let adds = instruction.mnemonic() == Mnemonic::Add;
    let value = frame.register(instruction.op0_register());
    if let (Cfa(at), Some(by)) = (value, immediate(instruction)) {
        let sum = if adds { i64::from(at).checked_add(by) } else { i64::from(at).checked_sub(by) };
        return sum.and_then(|sum| i32::try_from(sum).ok()).map_or(Unknown, Cfa);
    }
    if !adds || instruction.op1_kind() != OpKind::Register {
        return Unknown;
    }
    match (value, frame.register(instruction.op1_register())) {
        (Distance(table), Address(base)) | (Address(base), Distance(table)) if table == base => Target(table),
        (value, Zero) => value,
        _ => Unknown,
    }
}

/// The table of distances that the memory operand of an instruction is an entry of.
fn distances(frame: &Frame, instruction: &Instruction) -> Option<i32> {
    if instruction.op1_kind() != OpKind::Memory || instruction.memory_index() == Register::None {
        return None;
    }
    let scale = instruction.memory_index_scale();
    match (frame.register(instruction.memory_base()), frame.register(instruction.memory_index())) {
        (Address(table), _) if scale == 4 || scale == 1 => displaced(table, instruction),
        (_, Address(table)) if scale == 1 => displaced(table, instruction),
        _ => None,
    }
}

fn displaced(table: i32, instruction: &Instruction) -> Option<i32> {
    table.checked_add(i32::try_from(instruction.memory_displacement64().cast_signed()).ok()?)
}

fn immediate(instruction: &Instruction) -> Option<i64> {
    let kind = instruction.op1_kind();
    let is = matches!(
        kind,
        OpKind::Immediate8
            | OpKind::Immediate8to16
            | OpKind::Immediate8to32
            | OpKind::Immediate8to64
            | OpKind::Immediate16
            | OpKind::Immediate32
            | OpKind::Immediate32to64
    );
    is.then(|| instruction.immediate(1).cast_signed())
}

/// Whether an instruction writes its first operand, and nothing else. Those that are frequent are named: to ask what any
/// instruction does takes longer than all the rest.
fn writes_first(instruction: &Instruction) -> bool {
    let plain = matches!(instruction.op0_kind(), OpKind::Register | OpKind::Memory)
        && matches!(instruction.op1_kind(), OpKind::Register | OpKind::Memory)
        && !instruction.has_rep_prefix()
        && !instruction.has_repne_prefix();
    match instruction.mnemonic() {
        Mnemonic::Mov | Mnemonic::And | Mnemonic::Or | Mnemonic::Xor | Mnemonic::Add | Mnemonic::Sub => true,
        Mnemonic::Shl
        | Mnemonic::Shr
        | Mnemonic::Sar
        | Mnemonic::Inc
        | Mnemonic::Dec
        | Mnemonic::Neg
        | Mnemonic::Not => true,
        Mnemonic::Imul => instruction.op_count() > 1,
        Mnemonic::Movzx | Mnemonic::Movsx | Mnemonic::Movsxd => true,
        Mnemonic::Sete | Mnemonic::Setne | Mnemonic::Cmove | Mnemonic::Cmovne => true,
        Mnemonic::Movaps | Mnemonic::Movups | Mnemonic::Movdqa | Mnemonic::Movdqu | Mnemonic::Movq | Mnemonic::Movd => {
            plain
        }
        Mnemonic::Movss | Mnemonic::Movsd | Mnemonic::Pxor | Mnemonic::Xorps => plain,
        _ => false,
    }
}

/// Makes of what holds before a jump what holds where it is not taken; what does where it is.
pub(super) fn branch(not: &mut Frame, instruction: &Instruction) -> Frame {
    let (compared, if_equal) = (not.compared, not.if_equal.take());
    not.behind = 0;
    if matches!(instruction.mnemonic(), Mnemonic::Loop | Mnemonic::Loope | Mnemonic::Loopne) {
        not.set(Register::RCX, Unknown);
    }
    let mut taken = *not;
    match (instruction.condition_code(), if_equal) {
        (ConditionCode::e, Some(at)) => taken.registers[RSP] = Cfa(at),
        (ConditionCode::ne, Some(at)) => not.registers[RSP] = Cfa(at),
        (ConditionCode::a, _) => not.bound = compared,
        (ConditionCode::be, _) => taken.bound = compared,
        _ => {}
    }
    taken
}
