//! Functions that store their block through a pointer that is their first argument, and return a number (posix_memalign): where that is
//! stored, and from which register.
//!
//! What they return is often put together at instructions that the kernel steps over, while whether there is a block was decided by a jump
//! before. So the graph is cut where the block is stored, and what is looked for is what lies in that register there. That holds if every call
//! that stores it returns 0, and stores and calls nothing between that and its return; and if every call that does not store it says that it
//! has failed.

use iced_x86::{Mnemonic, OpKind, Register};

use super::{
    flow::Results,
    graph::{Flow, Graph},
    machine::{Step, is_call, number},
    proof::Tells,
    transfer::{LOST_IN_CALLS, Lies},
};

/// A graph with [`Flow::HandsOut`] where the block is stored.
pub(super) struct Cut {
    pub(super) graph: Graph,
    /// By instruction, whether calls go on there that have stored their block.
    pub(super) behind: Vec<bool>,
}

/// See [`Cut`]; `None` where it is not known where the block is stored. `results` are those of what is returned.
pub(super) fn cut(graph: &Graph, exposed: &[bool], results: &Results) -> Option<Cut> {
    let mut nodes = graph.nodes.clone();
    let mut paths = Vec::new();
    for (node, holders) in nodes.iter_mut().zip(holders(graph)) {
        let (Some(step), Flow::Goes(next)) = (&node.step, node.flow) else { continue };
        let Some(block) = stored(step, holders) else { continue };
        if results.lies[next] == Lies::Number(0) && results.stored[next] {
            node.flow = Flow::HandsOut(block);
            paths.push(next);
        }
    }
    if paths.is_empty() {
        return None;
    }
    let mut behind = vec![false; nodes.len()];
    while let Some(number) = paths.pop() {
        if !std::mem::replace(&mut behind[number], true) {
            paths.extend(graph.nodes[number].flow.targets());
        }
    }
    let cut = Graph::of(nodes);
    fails(&cut, &Results::of(&cut, exposed, Tells::Status)).then_some(Cut { graph: cut, behind })
}

/// By instruction, the general registers that hold the first argument before it whatever way led there, a bit each as the machine numbers
/// them.
fn holders(graph: &Graph) -> Vec<u16> {
    let mut holders: Vec<Option<u16>> = vec![None; graph.nodes.len()];
    let mut paths = vec![0];
    if let Some(first) = holders.first_mut() {
        *first = Some(bit(Register::RDI));
    }
    while let Some(from) = paths.pop() {
        let node = &graph.nodes[from];
        let (Some(step), Some(held)) = (&node.step, holders[from]) else { continue };
        let after = after(step, held);
        for to in node.flow.targets() {
            let both = holders[to].unwrap_or(u16::MAX) & after;
            if holders[to] != Some(both) {
                holders[to] = Some(both);
                paths.push(to);
            }
        }
    }
    holders.into_iter().map(Option::unwrap_or_default).collect()
}

/// Which registers hold it after an instruction.
fn after(step: &Step, held: u16) -> u16 {
    let i = &step.instruction;
    if is_call(i) {
        return LOST_IN_CALLS.iter().fold(held, |held, register| held & !bit(*register));
    }
    let copies = i.mnemonic() == Mnemonic::Mov
        && i.op0_kind() == OpKind::Register
        && i.op1_kind() == OpKind::Register
        && i.op0_register().is_gpr64()
        && held & bit(i.op1_register()) != 0;
    let copy = if copies { bit(i.op0_register()) } else { 0 };
    held & !step.writes | copy
}

/// The register whose content an instruction stores to where the first argument points.
fn stored(step: &Step, holders: u16) -> Option<Register> {
    let i = &step.instruction;
    let there = i.mnemonic() == Mnemonic::Mov
        && i.op0_kind() == OpKind::Memory
        && i.op1_kind() == OpKind::Register
        && i.op1_register().is_gpr64()
        && i.memory_index() == Register::None
        && i.segment_prefix() == Register::None
        && i.memory_displacement64() == 0
        && i.memory_base().is_gpr64()
        && holders & bit(i.memory_base()) != 0;
    there.then(|| i.op1_register())
}

/// Whether every way to a return passes where it is known that a number other than 0 is returned.
fn fails(cut: &Graph, results: &Results) -> bool {
    let mut seen = vec![false; cut.nodes.len()];
    let mut paths = vec![0];
    while let Some(number) = paths.pop() {
        if std::mem::replace(&mut seen[number], true) || matches!(results.lies[number], Lies::Number(1..)) {
            continue;
        }
        if matches!(cut.nodes[number].flow, Flow::Returns | Flow::ReturnsFirst | Flow::Lost(_)) {
            return false;
        }
        paths.extend(cut.nodes[number].flow.targets());
    }
    true
}

fn bit(register: Register) -> u16 {
    number(register).map_or(0, |number| 1 << number)
}
