//! One function: its blocks, the frames in them, and whether they agree.

mod finish;

use std::{cmp::Reverse, collections::BTreeSet};

use hashbrown::HashSet;
use iced_x86::{FlowControl, Instruction, Mnemonic, OpKind, Register};

use super::{
    budget::Budget,
    caller::Exit,
    code::{Reader, Text, is_trap, mark},
    effects::{Effects, branch},
    frame::{
        Frame,
        Value::{Cfa, Unknown},
    },
    parts::{Block, Edge, Function, Parts, Piece},
    returns::Returns,
    switch::{self, Table},
};

/// How often a function is begun again, because a call in it was found not to return.
const ATTEMPTS: usize = 64;
/// Most blocks of a function.
const MAX_BLOCKS: usize = 1 << 16;
/// Most blocks that are gone back to find the call that is to blame.
const MAX_BACK: usize = 5000;

/// The program around functions.
pub(super) struct Program<'a, 'p> {
    pub(super) text: Text<'a>,
    pub(super) loaded: &'p dyn Fn(u64) -> Option<&'a [u8]>,
    pub(super) returns: Returns<'p>,
    /// Whether code beside this begins with its return address on top of the stack.
    pub(super) has_caller: &'p dyn Fn(u64) -> bool,
    pub(super) effects: Effects,
    pub(super) is_fixed: bool,
    /// Whether functions take arguments off the stack: where it is behind calls is not known.
    pub(super) pops: bool,
    pub(super) budget: Budget,
    /// Room that attempts take by turns.
    pub(super) parts: Parts,
    pub(super) reader: Reader<'a>,
}

/// What is known from attempts before.
#[derive(Default)]
struct Known {
    endless: HashSet<u64>,
    tables: BTreeSet<u64>,
    is_last: bool,
}

/// To be begun again.
struct Again;

/// One attempt.
struct Attempt<'k> {
    entry: u64,
    is_certain: bool,
    known: &'k mut Known,
    parts: Parts,
    /// Where something does not agree.
    bad: Vec<u32>,
    /// Blocks that end without the return address, each with its turn: more ways to a block may leave less known, and that open.
    lost: Vec<(u32, u32)>,
    /// Where it leaves, by blocks with their turns.
    exits: Vec<(u32, u32, Exit)>,
    function: Function,
    /// Whether it returns, to its caller.
    returns: bool,
    aligned_calls: usize,
    is_refused: bool,
    /// Addresses that it takes, of something else than code.
    addresses: Vec<u64>,
    has_tables: bool,
}

impl<'a, 'p> Program<'a, 'p> {
    /// Analyses what begins at `entry`. What is not certain to be a function has to show that it is.
    pub(super) fn analyze(&mut self, entry: u64, is_certain: bool) -> Function {
        let mut known = Known::default();
        for attempt in 0..ATTEMPTS {
            known.is_last = attempt + 1 == ATTEMPTS;
            let mut attempt = Attempt::new(entry, is_certain, &mut known, std::mem::take(&mut self.parts));
            let done = attempt.run(self);
            // What is left to do takes as long as a look at each block, and ends soon in what is no hostile code.
            self.budget.take(attempt.parts.blocks.len() as u64);
            let function = done.map(|()| attempt.finish(self));
            self.parts = attempt.parts;
            match function {
                Ok(function) => return function,
                Err(Again) if self.budget.is_spent() => break,
                Err(Again) => {}
            }
        }
        Function { entry, ..Function::default() }
    }
}

impl<'k> Attempt<'k> {
    fn new(entry: u64, is_certain: bool, known: &'k mut Known, mut parts: Parts) -> Self {
        parts.clear();
        Self {
            entry,
            is_certain,
            known,
            parts,
            bad: Vec::new(),
            lost: Vec::new(),
            exits: Vec::new(),
            function: Function { entry, ..Function::default() },
            returns: false,
            aligned_calls: 0,
            is_refused: false,
            addresses: Vec::new(),
            has_tables: false,
        }
    }

    fn run(&mut self, program: &mut Program<'_, '_>) -> Result<(), Again> {
        self.add_block(self.entry, program.text.at(self.entry), &Frame::at_entry(), (0, 0));
        while let Some(Reverse((_, index))) = self.parts.work.pop() {
            if self.parts.blocks.len() > MAX_BLOCKS || program.budget.is_spent() {
                self.is_refused = true;
                break;
            }
            self.walk(program, index)?;
        }
        // What was not looked at to its end says nothing.
        self.is_refused |= program.budget.is_spent();
        if self.has_tables && self.known.tables.is_empty() && !self.addresses.is_empty() && !self.known.is_last {
            // One table ends where the next one begins.
            self.known.tables = self.addresses.drain(..).collect();
            return Err(Again);
        }
        Ok(())
    }

    fn lose(&mut self, block: u32) {
        self.lost.push((block, self.parts.blocks[block as usize].turn));
    }

    fn note(&mut self, block: u32, exit: Exit) {
        self.exits.push((block, self.parts.blocks[block as usize].turn, exit));
    }

    fn add_block(&mut self, start: u64, at: Option<usize>, frame: &Frame, via: (u32, u64)) {
        let at = at.unwrap_or(usize::MAX);
        self.parts.add(Block {
            start,
            at,
            end: start,
            frame: *frame,
            via,
            turn: 0,
            is_waiting: true,
            is_end: false,
            is_loop: false,
        });
    }

    /// Something does not agree: if a call is to blame that was taken to return, it does not.
    fn disagree(&mut self, program: &mut Program<'_, '_>, block: u32, frame: &Frame) -> Result<(), Again> {
        let is_new = |call: &u64| *call != 0 && !self.known.endless.contains(call);
        let mut blamed = Some(frame.suspect).filter(is_new);
        let mut at = block;
        for _ in 0..MAX_BACK {
            if blamed.is_some() || at == 0 || !program.budget.take(1) {
                break;
            }
            let (from, call) = self.parts.blocks[at as usize].via;
            blamed = Some(call).filter(is_new);
            at = from;
        }
        match blamed.filter(|_| !self.known.is_last) {
            Some(call) => {
                self.known.endless.insert(call);
                Err(Again)
            }
            None => {
                self.bad.push(block);
                Ok(())
            }
        }
    }

    /// Applies the instructions of a block, up to where another one begins.
    fn walk(&mut self, program: &mut Program<'_, '_>, index: u32) -> Result<(), Again> {
        let block = &mut self.parts.blocks[index as usize];
        block.turn += 1;
        (block.is_waiting, block.is_end) = (false, false);
        let (start, turn, mut frame) = (block.start, block.turn, block.frame);
        let Some(first) = program.text.read_from(start, &mut program.reader) else { return Ok(()) };
        let mut instruction = Instruction::default();
        let mut last: Option<Piece> = None;
        loop {
            let decoder = &mut program.reader.decoder;
            let address = decoder.ip();
            let at = first + address.wrapping_sub(start) as usize;
            let begins = at > first && program.text.marks(at) & (mark::JUMPED | mark::ENTRY) != 0;
            if begins || !decoder.can_decode() {
                self.parts.pieces.extend(last.map(|piece| (index, turn, piece)));
                self.parts.blocks[index as usize].end = address;
                return self.follow(program, index, (address, false, 0), &frame);
            }
            if !program.budget.take(1) {
                return Ok(());
            }
            program.reader.decoder.decode_out(&mut instruction);
            if instruction.is_invalid() {
                return self.disagree(program, index, &frame);
            }
            let holds = program.pops || !frame.has_moved_home();
            let (rule, length) = (frame.rule().filter(|_| holds), instruction.len() as u32);
            match &mut last {
                Some(last) if last.rule == rule => last.length += length,
                _ => {
                    let piece = Piece { address, length, rule };
                    self.parts.pieces.extend(last.replace(piece).map(|piece| (index, turn, piece)));
                }
            }
            let goes_on = instruction.flow_control() == FlowControl::Next && !is_trap(&instruction);
            if goes_on {
                if turn == 1 {
                    self.note_addresses(program, &instruction);
                }
                program.effects.apply(&mut frame, &instruction);
                continue;
            }
            self.parts.blocks[index as usize].end = instruction.next_ip();
            if is_trap(&instruction) || !self.leave(program, index, &mut frame, &instruction)? {
                self.parts.pieces.extend(last.map(|piece| (index, turn, piece)));
                return Ok(());
            }
        }
    }

    /// Applies an instruction that may lead elsewhere: whether the block goes on behind it.
    fn leave(
        &mut self,
        program: &mut Program<'_, '_>,
        index: u32,
        frame: &mut Frame,
        instruction: &Instruction,
    ) -> Result<bool, Again> {
        let next = instruction.next_ip();
        if frame.has_saved_registers() {
            self.note(index, if frame.is_standard() { Exit::Frame } else { Exit::Save });
        }
        match instruction.flow_control() {
            _ if matches!(
                instruction.mnemonic(),
                Mnemonic::Syscall | Mnemonic::Int | Mnemonic::Xend | Mnemonic::Xabort
            ) =>
            {
                program.effects.apply(frame, instruction);
                [Register::RAX, Register::RCX, Register::R11]
                    .into_iter()
                    .for_each(|register| frame.set(register, Unknown));
                return Ok(true);
            }
            FlowControl::ConditionalBranch => {
                let taken = branch(frame, instruction);
                self.follow(program, index, (next, false, 0), frame)?;
                self.jump(program, index, &[instruction.near_branch_target()], &taken)?;
            }
            FlowControl::UnconditionalBranch => {
                frame.behind = 0;
                self.jump(program, index, &[instruction.near_branch_target()], frame)?;
            }
            FlowControl::Return => {
                if instruction.op_count() > 0 {
                    self.function.popping.push(instruction.ip());
                }
                if frame.is_as_called() {
                    self.returns = true;
                    self.note(index, Exit::Return);
                    self.parts.blocks[index as usize].is_end = true;
                } else if frame.takes_arguments_off() {
                    self.take_arguments_off(index, instruction);
                } else if frame.is_lost {
                    self.lose(index);
                } else if frame.stack_pointer() != Unknown {
                    self.disagree(program, index, frame)?;
                }
            }
            FlowControl::IndirectBranch => match self.jump_table(program, frame, instruction) {
                Some(targets) => {
                    frame.behind = 0;
                    self.jump(program, index, &targets, frame)?;
                }
                None if frame.takes_arguments_off_by(instruction.op0_register()) => {
                    self.take_arguments_off(index, instruction);
                }
                None if frame.is_lost && !frame.takes_arguments_off() => self.lose(index),
                None => {
                    self.note(index, Exit::jump(frame, None));
                    self.parts.blocks[index as usize].is_end = frame.takes_arguments_off() || frame.is_as_called();
                }
            },
            FlowControl::Call | FlowControl::IndirectCall => {
                let target = instruction.is_call_near().then(|| instruction.near_branch_target());
                if target == Some(next) {
                    frame.push(Unknown);
                    return Ok(true);
                }
                if let Some(after) = self.call(program, frame, instruction, target) {
                    self.follow(program, index, (next, false, instruction.ip()), &after)?;
                }
            }
            FlowControl::XbeginXabortXend => {
                frame.behind = 0;
                self.follow(program, index, (next, false, 0), frame)?;
                self.jump(program, index, &[instruction.near_branch_target()], frame)?;
            }
            _ => {}
        }
        Ok(false)
    }

    /// The function returns there as one does whose caller had put arguments on the stack.
    fn take_arguments_off(&mut self, block: u32, instruction: &Instruction) {
        self.function.popping.push(instruction.ip());
        self.returns = true;
        self.note(block, Exit::Return);
        self.parts.blocks[block as usize].is_end = true;
    }

    fn jump(&mut self, program: &mut Program<'_, '_>, from: u32, targets: &[u64], frame: &Frame) -> Result<(), Again> {
        // Where jumps go that the sweep has not seen, other blocks may go on.
        if self.begin_blocks(program, targets) {
            return Err(Again);
        }
        targets.iter().try_for_each(|target| self.follow(program, from, (*target, true, 0), frame))
    }

    /// Marks where blocks begin; whether one goes on there so far.
    fn begin_blocks(&self, program: &mut Program<'_, '_>, targets: &[u64]) -> bool {
        let mut new: Vec<u64> =
            targets.iter().copied().filter(|target| program.text.add(*target, mark::JUMPED)).collect();
        new.sort_unstable();
        // Whoever has no work left to do is done anyway.
        !new.is_empty()
            && program.budget.take(self.parts.blocks.len() as u64 / 4)
            && self.parts.blocks.iter().any(|block| {
                let after = new.partition_point(|target| *target <= block.start);
                new.get(after).is_some_and(|target| *target < block.end)
            })
    }

    fn call(
        &mut self,
        program: &mut Program<'_, '_>,
        frame: &Frame,
        instruction: &Instruction,
        target: Option<u64>,
    ) -> Option<Frame> {
        let (address, next) = (instruction.ip(), instruction.next_ip());
        if !self.is_certain
            && let Cfa(at) = frame.stack_pointer()
        {
            // The ABI: calls are made with a stack pointer that 16 divides.
            if at & 15 == 0 { self.aligned_calls += 1 } else { self.is_refused = true }
        }
        let is_endless = match target {
            Some(target) => {
                if program.text.contains(target) {
                    self.function.calls.push(target);
                }
                program.returns.is_endless(&program.text, program.loaded, target)
            }
            None if instruction.is_ip_rel_memory_operand() => {
                program.returns.is_endless_pointer(instruction.ip_rel_memory_address())
            }
            None => false,
        };
        if is_endless || self.known.endless.contains(&address) {
            return None;
        }
        let mut after = frame.after_call(address, program.pops);
        if program.text.looks_like_start(next) {
            after.suspect = address;
        }
        Some(after)
    }

    /// Addresses that an instruction takes.
    fn note_addresses(&mut self, program: &Program<'_, '_>, instruction: &Instruction) {
        let address = match instruction.mnemonic() {
            Mnemonic::Lea if instruction.is_ip_rel_memory_operand() => instruction.ip_rel_memory_address(),
            Mnemonic::Mov if program.is_fixed => match instruction.op1_kind() {
                OpKind::Immediate32 | OpKind::Immediate32to64 => instruction.immediate(1),
                _ => return,
            },
            _ => return,
        };
        if program.text.contains(address) {
            self.function.pointers.push(address);
        } else {
            self.addresses.push(address);
        }
    }

    fn jump_table(
        &mut self,
        program: &mut Program<'_, '_>,
        frame: &Frame,
        instruction: &Instruction,
    ) -> Option<Vec<u64>> {
        let table = Table::of(&program.effects, frame, instruction)?;
        self.has_tables |= table.bound.is_none();
        program.budget.take(switch::steps(&table));
        let targets = switch::targets(&table, &program.text, program.loaded, self.entry, &self.known.tables)?;
        // Each is a way to be remembered.
        program.budget.take(targets.len() as u64).then_some(targets)
    }

    /// Takes a way out of a block, to where, by a jump or the return of a call (0: neither).
    fn follow(
        &mut self,
        program: &mut Program<'_, '_>,
        from: u32,
        (to, is_jump, call): (u64, bool, u64),
        frame: &Frame,
    ) -> Result<(), Again> {
        let falls_behind_call = !is_jump && frame.behind != 0;
        let at = program.text.at(to);
        if to != self.entry && at.is_none_or(|at| program.text.marks(at) & mark::ENTRY != 0) {
            // Another function, whose caller is this one's.
            if !falls_behind_call {
                self.note(from, Exit::jump(frame, Some(to)));
            }
            if frame.takes_arguments_off() {
                self.parts.blocks[from as usize].is_end |= is_jump;
                return Ok(());
            }
            if frame.is_lost && is_jump {
                self.lose(from);
            }
            if frame.is_lost || frame.stack_pointer() == Unknown {
                return Ok(());
            }
            if frame.is_as_called() {
                self.parts.blocks[from as usize].is_end |= is_jump;
            } else if !falls_behind_call {
                self.disagree(program, from, frame)?;
            }
            return Ok(());
        }
        let turn = self.parts.blocks[from as usize].turn;
        let known = at.and_then(|at| self.parts.block(at));
        let index = known.unwrap_or(self.parts.blocks.len() as u32);
        let essence = frame.essence();
        self.parts.edges.push(Edge { from, turn, to: index, essence, is_jump, is_return: call != 0 });
        if known.is_none() {
            self.add_block(to, at, frame, (from, call));
            return Ok(());
        }
        let old = &self.parts.blocks[index as usize].frame;
        if let (Cfa(one), Cfa(other)) = (old.stack_pointer(), frame.stack_pointer())
            && one != other
            && !old.is_lost
            && !frame.is_lost
        {
            match (old.behind, frame.behind) {
                (0, behind) if behind != 0 => {
                    self.known.endless.insert(behind);
                    return Ok(());
                }
                (behind, 0) if behind != 0 && !self.known.is_last => {
                    self.known.endless.insert(behind);
                    return Err(Again);
                }
                // All that matters is found by the frame pointer.
                _ if old.is_standard() && frame.is_standard() => {}
                _ => {
                    let suspicious = if old.suspect != 0 { *old } else { *frame };
                    self.disagree(program, index, &suspicious)?;
                }
            }
        }
        let block = &mut self.parts.blocks[index as usize];
        if block.frame.merge(frame) && !std::mem::replace(&mut block.is_waiting, true) {
            self.parts.work.push(Reverse((to, index)));
        }
        Ok(())
    }
}
