//! How far the stack pointer is from the frame, by following what instructions do to it.

use tracer_ebpf::{exit::Frame, unwind::kind};

use super::{
    graph::{Flow, Graph, Node},
    machine::{StackChange, stack_change},
    proof::Unproven,
};
use crate::unwind::Frames;

/// Bytes from the stack pointer up to the frame, before an instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Depth {
    /// No path leads there.
    Unreached,
    /// So many on every path.
    Known(i64),
    /// It is found by a frame pointer, if at all.
    Unknown,
}

/// The depth before each instruction.
pub(super) fn depths(graph: &Graph) -> Result<Vec<Depth>, Unproven> {
    let mut depths = vec![Depth::Unreached; graph.nodes.len()];
    let mut paths = vec![0];
    depths[0] = Depth::Known(8);
    while let Some(number) = paths.pop() {
        let node = &graph.nodes[number];
        let Some(step) = &node.step else { continue };
        let after = match (depths[number], stack_change(step)) {
            (Depth::Known(depth), StackChange::By(raised)) => {
                depth.checked_sub(raised).map_or(Depth::Unknown, Depth::Known)
            }
            _ => Depth::Unknown,
        };
        for to in node.flow.targets() {
            let merged = match depths[to] {
                Depth::Unreached => after,
                known if known == after => known,
                _ => Depth::Unknown,
            };
            if depths[to] != merged {
                depths[to] = merged;
                paths.push(to);
            }
        }
    }
    // Where a call returns, the stack pointer is at the return address.
    for (node, depth) in graph.nodes.iter().zip(&depths) {
        let ends = matches!(node.flow, Flow::Returns | Flow::ReturnsFirst);
        if ends && matches!(depth, Depth::Known(depth) if *depth != 8) {
            return Err(Unproven::Frame(node.address));
        }
    }
    Ok(depths)
}

/// The frame at an instruction; `None` when it is not known, or when the unwind information says another.
pub(super) fn frame(node: &Node, depth: Depth, frames: &Frames<'_>) -> Option<Frame> {
    let followed = match (depth, node.flow) {
        (_, Flow::Returns | Flow::ReturnsFirst) => Some(8),
        (Depth::Known(depth), _) => Some(depth),
        _ => None,
    };
    let on_stack = |offset: i64| {
        let offset = u32::try_from(offset).ok().filter(|offset| *offset >= 8)?;
        Some(Frame { from_frame_pointer: false, offset })
    };
    let told = frames.rule_at(node.address);
    match (told.map(|rule| (rule as u8, (rule >> 32) as i32)), followed) {
        (Some((kind::SP, told)), followed) if followed.is_none_or(|followed| followed == i64::from(told)) => {
            on_stack(told.into())
        }
        (Some((kind::FP, told)), None) => {
            let offset = u32::try_from(told).ok().filter(|offset| *offset >= 8)?;
            Some(Frame { from_frame_pointer: true, offset })
        }
        (Some((kind::FP | kind::PLT, _)) | None, Some(followed)) => on_stack(followed),
        _ => None,
    }
}

/// By instruction, whether something else may hold an address within the frame: it was taken on a way there.
pub(super) fn exposed(graph: &Graph, depths: &[Depth]) -> Vec<bool> {
    let exposes = |number: usize| graph.nodes[number].step.is_some_and(|step| step.exposes_stack());
    let mut exposed: Vec<bool> = (0..graph.nodes.len()).map(exposes).collect();
    let mut paths: Vec<usize> = (0..exposed.len()).filter(|number| exposed[*number]).collect();
    while let Some(number) = paths.pop() {
        for to in graph.nodes[number].flow.targets() {
            // Where nothing is left of the frame, another one begins.
            if depths[to] != Depth::Known(8) && !std::mem::replace(&mut exposed[to], true) {
                paths.push(to);
            }
        }
    }
    exposed
}
