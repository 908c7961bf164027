//! One function: its blocks, the frames in them, and whether they agree.

use std::{cmp::Reverse, collections::BTreeSet};

use hashbrown::HashSet;
use iced_x86::{Decoder, DecoderOptions, FlowControl, Instruction, Mnemonic, OpKind, Register};

use super::{
    budget::Budget,
    code::{Flow, Text, is_trap, mark},
    effects::{Effects, branches},
    frame::{
        Frame,
        Value::{Cfa, Unknown},
    },
    parts::{Block, Edge, Function, Parts, Piece},
    proof::{Way, proven},
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
    pub(super) effects: Effects,
    pub(super) is_fixed: bool,
    /// Whether functions take arguments off the stack: where it is behind calls is not known.
    pub(super) pops: bool,
    pub(super) budget: Budget,
    /// Room that attempts take by turns.
    pub(super) parts: Parts,
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
    function: Function,
    returns: HashSet<u64>,
    aligned_calls: usize,
    is_refused: bool,
    addresses: BTreeSet<u64>,
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
            function: Function { entry, ..Function::default() },
            returns: HashSet::new(),
            aligned_calls: 0,
            is_refused: false,
            addresses: BTreeSet::new(),
            has_tables: false,
        }
    }

    fn run(&mut self, program: &mut Program<'_, '_>) -> Result<(), Again> {
        self.add_block(self.entry, Frame::at_entry(), (0, 0));
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
            self.known.tables = std::mem::take(&mut self.addresses);
            return Err(Again);
        }
        Ok(())
    }

    fn lose(&mut self, block: u32) {
        self.lost.push((block, self.parts.blocks[block as usize].turn));
    }

    fn add_block(&mut self, start: u64, frame: Frame, via: (u32, u64)) {
        let index = self.parts.blocks.len() as u32;
        self.parts.blocks.push(Block { start, end: start, frame, via, turn: 0, is_waiting: true, is_end: false });
        self.parts.by_address.insert(start, index);
        self.parts.work.push(Reverse((start, index)));
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
        let Some((bytes, first)) = program.text.from(start) else { return Ok(()) };
        let mut decoder = Decoder::with_ip(64, bytes, start, DecoderOptions::NONE);
        let mut instruction = Instruction::default();
        let mut last: Option<Piece> = None;
        loop {
            let at = decoder.position();
            let address = start.wrapping_add(at as u64);
            let begins = at > 0 && program.text.marks(first + at) & (mark::JUMPED | mark::ENTRY) != 0;
            if begins || !decoder.can_decode() {
                self.parts.pieces.extend(last.map(|piece| (index, turn, piece)));
                self.parts.blocks[index as usize].end = address;
                return self.follow(program, index, (address, false, 0), &frame);
            }
            if !program.budget.take(1) {
                return Ok(());
            }
            decoder.decode_out(&mut instruction);
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
                self.note_addresses(program, &instruction);
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
                let (not, taken) = branches(frame, instruction);
                self.follow(program, index, (next, false, 0), &not)?;
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
                    self.returns.insert(instruction.ip());
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
                None if frame.takes_arguments_off() => self.parts.blocks[index as usize].is_end = true,
                None if frame.is_lost => self.lose(index),
                None => self.parts.blocks[index as usize].is_end = frame.is_as_called(),
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
        self.returns.insert(instruction.ip());
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
            self.addresses.insert(address);
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
        if to != self.entry && program.text.at(to).is_none_or(|at| program.text.marks(at) & mark::ENTRY != 0) {
            // Another function, whose caller is this one's.
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
        self.parts.edges.push(Edge { from, turn, to, essence: frame.essence(), is_jump, is_return: call != 0 });
        let Some(&index) = self.parts.by_address.get(&to) else {
            self.add_block(to, *frame, (from, call));
            return Ok(());
        };
        let old = self.parts.blocks[index as usize].frame;
        if old == *frame {
            return Ok(());
        }
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
                _ => self.disagree(program, index, if old.suspect != 0 { &old } else { frame })?,
            }
        }
        let merged = old.merge(frame);
        if merged != old {
            let block = &mut self.parts.blocks[index as usize];
            block.frame = merged;
            if !std::mem::replace(&mut block.is_waiting, true) {
                self.parts.work.push(Reverse((to, index)));
            }
        }
        Ok(())
    }

    fn finish(&mut self, program: &Program<'_, '_>) -> Function {
        let mut ways = Vec::with_capacity(self.parts.edges.len());
        for edge in &self.parts.edges {
            let Some(&to) = self.parts.by_address.get(&edge.to) else { continue };
            if edge.turn == self.parts.blocks[edge.from as usize].turn {
                let confirms = edge.is_jump && self.parts.blocks[to as usize].frame.essence() == edge.essence;
                ways.push(Way { from: edge.from, to, is_return: edge.is_return, confirms });
            }
        }
        let ends =
            self.parts.blocks.iter().enumerate().filter(|(_, block)| block.is_end).map(|(index, _)| index as u32);
        let blocks = &self.parts.blocks;
        let mut is_loop = vec![false; blocks.len()];
        ways.iter().filter(|way| way.confirms).for_each(|way| is_loop[way.to as usize] = true);
        let only_behind = |block: u32| {
            let (start, text) = (blocks[block as usize].start, &program.text);
            // Of a loop that never ends, its own jump may be the only one.
            let elsewhere = if is_loop[block as usize] && !text.looks_like_start(start) {
                mark::JUMPED_OFTEN | mark::CALLED
            } else {
                mark::JUMPED
            };
            !text.is(start, elsewhere | mark::ENTRY | mark::POINTED)
                && !matches!(text.flow(start), Some((Flow::Nothing | Flow::Trap, _)))
        };
        let parts = proven(self.parts.blocks.len(), &ways, ends.collect(), only_behind);
        let is_last_of = |&(block, turn): &(u32, u32)| parts[block as usize] && blocks[block as usize].turn == turn;
        self.is_refused |= self.bad.iter().any(|block| parts[*block as usize]) || self.lost.iter().any(is_last_of);
        let shown = self.aligned_calls > 0 && program.text.is(self.entry, mark::POINTED | mark::CALLED);
        self.is_refused |= !self.is_certain && self.returns.is_empty() && !shown;
        let of_part = |index: usize| parts[index].then_some(&self.parts.blocks[index]);
        let mut ranges: Vec<(u64, u64)> =
            (0..parts.len()).filter_map(of_part).map(|block| (block.start, block.end)).collect();
        ranges.sort_unstable();
        // One byte in two instructions.
        self.is_refused |= ranges.windows(2).any(|pair| pair[1].0 < pair[0].1);
        if !self.is_refused {
            let is_last = |&&(block, turn, _): &&(u32, u32, Piece)| is_last_of(&(block, turn));
            self.function.pieces = self.parts.pieces.iter().filter(is_last).map(|(.., piece)| *piece).collect();
        }
        std::mem::take(&mut self.function)
    }
}
