//! Where the result of a call lies at each instruction, and what still happens before it returns: from the returns
//! backwards.

use iced_x86::{Mnemonic, OpKind, Register};

use super::{
    graph::{Callee, Flow, Graph},
    machine::{Stores, is_immediate},
    proof::Tells,
    transfer::{Lies, Value},
};

/// How often a place may change until it is given up.
const MAX_CHANGES: u8 = 8;

/// What is known before each instruction of a graph.
pub(super) struct Results {
    /// Where the result lies.
    pub(super) lies: Vec<Lies>,
    /// Whether the outcome may be said there: nothing that follows is a call of the allocator's interface, which would be
    /// taken for a call of its own.
    pub(super) settled: Vec<bool>,
    /// Whether nothing has to be stored any more: where a number is returned, the block that is handed out through a pointer has been.
    pub(super) stored: Vec<bool>,
    /// Whether calls come there, too, whose outcome is known by then: behind what a graph was cut at. Where it is not, no call does.
    pub(super) behind: Vec<bool>,
    /// What the result is.
    pub(super) tells: Tells,
}

impl Results {
    /// Of a graph whose calls give their result in a register, or, of one that is [cut](super::handed_out), hand it out.
    pub(super) fn of(graph: &Graph, exposed: &[bool], tells: Tells) -> Self {
        let lies = solve(graph, exposed, tells);
        let returns = |number: usize| lies[number] != Lies::Nowhere;
        let calls = |number: usize| graph.nodes[number].callee == Callee::Family && returns(number);
        let stores = |number: usize| {
            let node = &graph.nodes[number];
            let store = |step: &super::machine::Step| {
                step.stores == Stores::Elsewhere || matches!(step.instruction.mnemonic(), Mnemonic::Call)
            };
            returns(number) && node.step.as_ref().is_none_or(store)
        };
        let settled = may_follow(graph, calls).into_iter().map(|follows| !follows).collect();
        let stored = may_follow(graph, stores).into_iter().map(|follows| !follows || tells != Tells::Status).collect();
        Self { lies, settled, stored, behind: vec![false; graph.nodes.len()], tells }
    }
}

/// For each instruction, whether it or one that may follow it is such a one.
fn may_follow(graph: &Graph, is: impl Fn(usize) -> bool) -> Vec<bool> {
    let mut follows: Vec<bool> = (0..graph.nodes.len()).map(is).collect();
    let mut paths: Vec<usize> = (0..follows.len()).filter(|number| follows[*number]).collect();
    while let Some(number) = paths.pop() {
        for before in &graph.before[number] {
            if !std::mem::replace(&mut follows[*before], true) {
                paths.push(*before);
            }
        }
    }
    follows
}

/// Where the result lies before each instruction. What is found holds whatever order it was found in: on the way to a
/// return, each place follows from the next one.
fn solve(graph: &Graph, exposed: &[bool], tells: Tells) -> Vec<Lies> {
    let value = Value { is_int: tells == Tells::Status };
    let mut lies = vec![Lies::Nowhere; graph.nodes.len()];
    let mut changes = vec![0; graph.nodes.len()];
    let mut paths: Vec<usize> = (0..graph.nodes.len()).collect();
    let mut queued = vec![true; graph.nodes.len()];
    while let Some(number) = paths.pop() {
        queued[number] = false;
        let node = &graph.nodes[number];
        let mut before = match node.flow {
            Flow::HandsOut(register) if tells == Tells::Stored => Lies::Register(register, 0),
            Flow::HandsOut(_) => Lies::Nowhere,
            Flow::Returns | Flow::ReturnsFirst if tells == Tells::Stored => Lies::Number(0),
            Flow::Returns => Lies::Register(Register::RAX, 0),
            Flow::ReturnsFirst if value.is_int => Lies::Unknown,
            Flow::ReturnsFirst => Lies::Register(Register::RDI, 0),
            Flow::Ends => Lies::Nowhere,
            Flow::Lost(_) => Lies::Unknown,
            Flow::Goes(to) => value.before(node, exposed[number], lies[to]),
            Flow::Splits { taken, not_taken } => {
                let after = either(graph, number, lies[taken], lies[not_taken], value);
                value.before(node, exposed[number], after)
            }
        };
        if lies[number] == before {
            continue;
        }
        changes[number] = u8::saturating_add(changes[number], 1);
        if changes[number] > MAX_CHANGES {
            if lies[number] == Lies::Unknown {
                continue;
            }
            before = Lies::Unknown;
        }
        lies[number] = before;
        for before in &graph.before[number] {
            if !std::mem::replace(&mut queued[*before], true) {
                paths.push(*before);
            }
        }
    }
    lies
}

/// Where the result lies before a conditional jump, from where it lies on its two ways.
fn either(graph: &Graph, jump: usize, taken: Lies, not_taken: Lies, value: Value) -> Lies {
    match (taken, not_taken) {
        (Lies::Nowhere, lies) | (lies, Lies::Nowhere) => lies,
        (taken, not_taken) if taken == not_taken => taken,
        // The way on which the register is 0 returns 0, the other one the register.
        (Lies::Number(0), lies) if is_zero(graph, jump, lies, Mnemonic::Je, value) => lies,
        (lies, Lies::Number(0)) if is_zero(graph, jump, lies, Mnemonic::Jne, value) => lies,
        _ => Lies::Unknown,
    }
}

/// Whether what lies there was compared with 0 right before the jump, which is of this kind.
fn is_zero(graph: &Graph, jump: usize, lies: Lies, kind: Mnemonic, value: Value) -> bool {
    let Lies::Register(register, 0) = lies else { return false };
    let is_kind = graph.nodes[jump].step.is_some_and(|step| step.instruction.mnemonic() == kind);
    let [before] = graph.before[jump][..] else { return false };
    let Some(step) = &graph.nodes[before].step else { return false };
    let i = &step.instruction;
    let compared = match i.mnemonic() {
        Mnemonic::Test => i.op1_kind() == OpKind::Register && i.op1_register() == i.op0_register(),
        Mnemonic::Cmp => is_immediate(i, 1) && i.immediate(1) == 0,
        _ => false,
    };
    let whole = i.op0_register() == register
        || (value.is_int && i.op0_register().is_gpr32() && i.op0_register().full_register() == register);
    is_kind && compared && i.op0_kind() == OpKind::Register && whole
}
