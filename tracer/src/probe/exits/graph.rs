//! The flow graph of a function, from its entry site to the returns of its calls.

use std::collections::VecDeque;

use hashbrown::{HashMap, HashSet};
use iced_x86::{Decoder, DecoderOptions, FlowControl, Instruction, InstructionInfoFactory, Mnemonic, OpKind, Register};
use tracer_ebpf::exit::Exit;

use super::{
    image::{Image, Known, Pointer},
    machine::Step,
    proof::{ExitSite, Tells, Unproven},
};
use crate::probe::thunks::takes_return_address;

/// Most instructions of one graph.
const MAX_NODES: usize = 20_000;
/// Most instructions of a function that is looked at because of whether it returns.
const MAX_CALLEE: usize = 600;
/// How many calls deep that is followed.
const MAX_DEPTH: usize = 6;
/// Most instructions of a file that are looked at for that.
const MAX_CALLEES: usize = 200_000;
/// Most stubs, one jumping to the next.
const MAX_STUBS: usize = 4;

/// What follows an instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Flow<To> {
    /// That one.
    Goes(To),
    /// One of two.
    Splits { taken: To, not_taken: To },
    /// The call returns, with what is in rax.
    Returns,
    /// The call returns what is in rdi: it ends in a function that returns its first argument.
    ReturnsFirst,
    /// The block in this register is stored for the caller; what follows does not matter. See [`handed_out`](super::handed_out).
    HandsOut(Register),
    /// Nothing: the call never returns.
    Ends,
    /// It is not known.
    Lost(Unproven),
}

impl<To: Copy> Flow<To> {
    /// Those that it may be.
    pub(super) fn targets(self) -> impl Iterator<Item = To> {
        let (first, second) = match self {
            Self::Goes(to) => (Some(to), None),
            Self::Splits { taken, not_taken } => (Some(taken), Some(not_taken)),
            _ => (None, None),
        };
        first.into_iter().chain(second)
    }
}

/// What is called.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Callee {
    /// A function that returns its first argument.
    ReturnsFirst,
    /// A function of the allocator's interface, which is probed itself.
    Family,
    /// Something else; also where nothing is called.
    Other,
}

/// An instruction in the graph.
#[derive(Clone, Debug)]
pub(super) struct Node {
    pub(super) address: u64,
    /// `None` where there is none.
    pub(super) step: Option<Step>,
    pub(super) flow: Flow<usize>,
    pub(super) callee: Callee,
}

/// Instructions and what follows each. The first is where paths begin.
#[derive(Debug)]
pub(super) struct Graph {
    pub(super) nodes: Vec<Node>,
    /// Those that each may follow.
    pub(super) before: Vec<Vec<usize>>,
}

/// What is known of a file's code, for several functions.
pub struct Analysis<'a> {
    image: Image<'a>,
    steps: HashMap<u64, Option<Step>>,
    factory: InstructionInfoFactory,
    never_returns: HashMap<u64, bool>,
    left: usize,
    /// What was proven so far: what each site says, and what that is.
    sites: HashMap<u64, (Exit, Tells)>,
    /// All code of the functions so far: a [bit](Tells::bit) for each kind of outcome.
    passed: HashMap<u64, u8>,
}

impl<'a> Analysis<'a> {
    /// Nothing is known yet of this file.
    pub fn new(image: Image<'a>) -> Self {
        let factory = InstructionInfoFactory::new();
        let (steps, never_returns) = (HashMap::new(), HashMap::new());
        let (sites, passed) = (HashMap::new(), HashMap::new());
        Self { image, steps, factory, never_returns, left: MAX_CALLEES, sites, passed }
    }

    pub(super) fn image(&self) -> &Image<'a> {
        &self.image
    }

    /// The graph from an instruction on.
    pub(super) fn graph(&mut self, start: u64) -> Result<Graph, Unproven> {
        let mut numbers: HashMap<u64, usize> = HashMap::new();
        numbers.insert(start, 0);
        let mut addresses = vec![start];
        let mut nodes = Vec::new();
        while let Some(&address) = addresses.get(nodes.len()) {
            if nodes.len() >= MAX_NODES {
                return Err(Unproven::TooLong);
            }
            let (flow, callee) = self.follow(address, 0);
            let mut number = |to: u64| {
                *numbers.entry(to).or_insert_with(|| {
                    addresses.push(to);
                    addresses.len() - 1
                })
            };
            let flow = match flow {
                Flow::Goes(to) => Flow::Goes(number(to)),
                Flow::Splits { taken, not_taken } => {
                    Flow::Splits { taken: number(taken), not_taken: number(not_taken) }
                }
                Flow::Returns => Flow::Returns,
                Flow::ReturnsFirst => Flow::ReturnsFirst,
                Flow::HandsOut(register) => Flow::HandsOut(register),
                Flow::Ends => Flow::Ends,
                Flow::Lost(why) => Flow::Lost(why),
            };
            nodes.push(Node { address, step: self.step(address), flow, callee });
        }
        Ok(Graph::of(nodes))
    }

    /// Takes in the sites of one more function, unless one of them means something else to another that passes it. What lies where a function
    /// returns its block follows from the code behind that alone, so it holds for whoever comes there; what is handed out does not.
    pub(super) fn agree(&mut self, graph: &Graph, tells: Tells, sites: &[ExitSite]) -> Result<(), Unproven> {
        let accepted = tells.bit() | if tells == Tells::Status { Tells::Returned.bit() } else { 0 };
        for site in sites {
            let told = self.sites.get(&site.address).is_none_or(|told| *told == (site.exit, tells));
            if !told || self.passed.get(&site.address).is_some_and(|others| others & !accepted != 0) {
                return Err(Unproven::Shared(site.address));
            }
        }
        if tells != Tells::Returned {
            let passes = |node: &&Node| self.sites.get(&node.address).is_some_and(|(_, others)| *others != tells);
            if let Some(node) = graph.nodes.iter().find(passes) {
                return Err(Unproven::Shared(node.address));
            }
        }
        self.sites.extend(sites.iter().map(|site| (site.address, (site.exit, tells))));
        Ok(())
    }

    /// Takes down what a function's calls may pass, whose outcome is this, also if its sites are not known.
    pub(super) fn passes(&mut self, graph: &Graph, tells: Tells) {
        for node in &graph.nodes {
            *self.passed.entry(node.address).or_default() |= tells.bit();
        }
    }

    fn step(&mut self, address: u64) -> Option<Step> {
        let (code, factory) = (self.image.code, &mut self.factory);
        *self.steps.entry(address).or_insert_with(|| {
            let bytes = code(address)?;
            let instruction = Decoder::with_ip(64, bytes, address, DecoderOptions::NONE).decode();
            (!instruction.is_invalid()).then(|| Step::new(factory, instruction))
        })
    }

    /// What follows the instruction at an address, and what that calls.
    fn follow(&mut self, address: u64, depth: usize) -> (Flow<u64>, Callee) {
        let lost = |why| (Flow::Lost(why), Callee::Other);
        let Some(Step { instruction: i, .. }) = self.step(address) else {
            return lost(Unproven::Unreadable(address));
        };
        let next = i.next_ip();
        let near = matches!(i.op0_kind(), OpKind::NearBranch64);
        let flow = match i.flow_control() {
            FlowControl::Next if i.mnemonic() == Mnemonic::Hlt => Flow::Ends,
            FlowControl::Next => Flow::Goes(next),
            FlowControl::Return if i.code() == iced_x86::Code::Retnq => Flow::Returns,
            FlowControl::UnconditionalBranch if near => self.jump(i.near_branch_target()),
            FlowControl::ConditionalBranch if near => Flow::Splits { taken: i.near_branch_target(), not_taken: next },
            FlowControl::IndirectBranch => match slot(&i).map(self.image.pointer) {
                Some(Pointer::Here(target)) => self.jump(target),
                Some(Pointer::Known(Known::NoReturn)) => Flow::Ends,
                Some(Pointer::Known(Known::ReturnsFirst)) => Flow::ReturnsFirst,
                Some(Pointer::Elsewhere) => Flow::Lost(Unproven::Leaves(address)),
                None => Flow::Lost(Unproven::ComputedJump(address)),
            },
            FlowControl::Call if near => return self.call(&i, Some(i.near_branch_target()), depth),
            FlowControl::Call if i.mnemonic() == Mnemonic::Syscall => Flow::Goes(next),
            FlowControl::IndirectCall => return self.indirect_call(&i, depth),
            FlowControl::Exception => Flow::Ends,
            FlowControl::Interrupt if matches!(i.mnemonic(), Mnemonic::Int3 | Mnemonic::Int1) => Flow::Ends,
            _ => return lost(Unproven::Unreadable(address)),
        };
        (flow, Callee::Other)
    }

    fn jump(&self, target: u64) -> Flow<u64> {
        match (self.image.known)(target) {
            Some(Known::NoReturn) => Flow::Ends,
            Some(Known::ReturnsFirst) => Flow::ReturnsFirst,
            None => Flow::Goes(target),
        }
    }

    fn indirect_call(&mut self, call: &Instruction, depth: usize) -> (Flow<u64>, Callee) {
        match slot(call).map(self.image.pointer) {
            Some(Pointer::Here(target)) => self.call(call, Some(target), depth),
            Some(Pointer::Known(Known::NoReturn)) => (Flow::Ends, Callee::Other),
            Some(Pointer::Known(Known::ReturnsFirst)) => (self.after(call), Callee::ReturnsFirst),
            _ => self.call(call, None, depth),
        }
    }

    /// A call of what is at `target`, or of nobody knows what.
    fn call(&mut self, call: &Instruction, target: Option<u64>, depth: usize) -> (Flow<u64>, Callee) {
        let Some(target) = target else { return (self.after(call), Callee::Other) };
        if self.step(target).is_some_and(|first| takes_return_address(&first.instruction)) {
            // It goes on from there to wherever, or returns.
            return (Flow::Lost(Unproven::ComputedJump(call.ip())), Callee::Other);
        }
        match self.behind_stubs(target) {
            Pointer::Known(Known::NoReturn) => (Flow::Ends, Callee::Other),
            Pointer::Known(Known::ReturnsFirst) => (self.after(call), Callee::ReturnsFirst),
            Pointer::Elsewhere => (self.after(call), Callee::Other),
            Pointer::Here(target) if self.image.family.contains(&target) => (self.after(call), Callee::Family),
            Pointer::Here(target) if self.never_returns(target, depth + 1) => (Flow::Ends, Callee::Other),
            Pointer::Here(_) => (self.after(call), Callee::Other),
        }
    }

    /// What follows a call that returns. Nothing where the function has no more instructions: the compiler knew that the
    /// call does not return.
    fn after(&mut self, call: &Instruction) -> Flow<u64> {
        let mut next = call.next_ip();
        if let Some(function) = self.image.frames.function(call.ip()) {
            while next < function.end
                && let Some(step) = self.step(next)
                && step.instruction.mnemonic() == Mnemonic::Nop
            {
                next = step.instruction.next_ip();
            }
            if next >= function.end {
                return Flow::Ends;
            }
        }
        Flow::Goes(call.next_ip())
    }

    /// What a call to `target` reaches through stubs: `endbr64; jmp [rip + x]`.
    fn behind_stubs(&mut self, target: u64) -> Pointer {
        let mut target = target;
        for _ in 0..MAX_STUBS {
            if let Some(known) = (self.image.known)(target) {
                return Pointer::Known(known);
            }
            let Some(mut step) = self.step(target) else { break };
            if step.instruction.mnemonic() == Mnemonic::Endbr64 {
                let Some(next) = self.step(step.instruction.next_ip()) else { break };
                step = next;
            }
            if step.instruction.flow_control() != FlowControl::IndirectBranch {
                break;
            }
            match slot(&step.instruction).map(self.image.pointer) {
                Some(Pointer::Here(behind)) => target = behind,
                Some(other) => return other,
                None => break,
            }
        }
        Pointer::Here(target)
    }

    /// Whether no return can be reached from the start of a function. False when in doubt.
    fn never_returns(&mut self, start: u64, depth: usize) -> bool {
        if let Some(known) = self.never_returns.get(&start) {
            return *known;
        }
        if depth > MAX_DEPTH {
            return false;
        }
        // For calls of itself.
        self.never_returns.insert(start, false);
        let mut paths = vec![start];
        let mut seen: HashSet<u64> = HashSet::new();
        seen.insert(start);
        while let Some(address) = paths.pop() {
            if seen.len() > MAX_CALLEE || self.left == 0 {
                return false;
            }
            self.left -= 1;
            match self.follow(address, depth).0 {
                Flow::Ends => {}
                flow @ (Flow::Goes(_) | Flow::Splits { .. }) => {
                    paths.extend(flow.targets().filter(|to| seen.insert(*to)))
                }
                Flow::Returns | Flow::ReturnsFirst | Flow::HandsOut(_) | Flow::Lost(_) => return false,
            }
        }
        self.never_returns.insert(start, true);
        true
    }
}

/// Address of the pointer that an indirect branch goes through: `jmp [rip + x]`.
fn slot(instruction: &Instruction) -> Option<u64> {
    let relative = instruction.op0_kind() == OpKind::Memory
        && instruction.memory_base() == Register::RIP
        && instruction.segment_prefix() == Register::None;
    relative.then(|| instruction.memory_displacement64())
}

impl Graph {
    /// Of these instructions.
    pub(super) fn of(nodes: Vec<Node>) -> Self {
        let mut before = vec![Vec::new(); nodes.len()];
        for (number, node) in nodes.iter().enumerate() {
            for to in node.flow.targets() {
                before[to].push(number);
            }
        }
        Self { nodes, before }
    }

    /// For each instruction, how far it is from the first at least.
    pub(super) fn in_order(&self) -> Vec<usize> {
        let mut order = vec![usize::MAX; self.nodes.len()];
        let mut paths = VecDeque::from([0]);
        order[0] = 0;
        while let Some(number) = paths.pop_front() {
            for to in self.nodes[number].flow.targets() {
                if order[to] == usize::MAX {
                    order[to] = order[number] + 1;
                    paths.push_back(to);
                }
            }
        }
        order
    }

    /// For each instruction, a number that it shares with those that it reaches and that reach it.
    pub(super) fn cycles(&self) -> Vec<usize> {
        // Kosaraju: in the order in which the search forwards leaves them, the last first, search backwards.
        let mut left = Vec::with_capacity(self.nodes.len());
        let mut seen = vec![false; self.nodes.len()];
        let mut path = vec![(0, 0)];
        seen.iter_mut().take(1).for_each(|seen| *seen = true);
        while let Some((node, tried)) = path.last_mut() {
            match self.nodes[*node].flow.targets().nth(*tried) {
                Some(to) => {
                    *tried += 1;
                    if !std::mem::replace(&mut seen[to], true) {
                        path.push((to, 0));
                    }
                }
                None => {
                    left.push(*node);
                    path.pop();
                }
            }
        }
        let mut cycle = vec![usize::MAX; self.nodes.len()];
        for root in left.into_iter().rev() {
            let mut paths = vec![root];
            while let Some(node) = paths.pop() {
                if cycle[node] == usize::MAX {
                    cycle[node] = root;
                    paths.extend(self.before[node].iter().copied().filter(|before| cycle[*before] == usize::MAX));
                }
            }
        }
        cycle
    }
}
