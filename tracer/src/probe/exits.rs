//! Where the outcome of a call into the allocator is known before it returns.
//!
//! A probe on the return of a function changes the target's stack for as long as the call runs. A probe on an instruction
//! that every path to the return passes, behind the last one that may change the result, changes nothing. This finds such
//! instructions, among those that the kernel emulates where there are any: the flow graph of the function, with what it
//! jumps to at its end ([`graph`]); where the value that will be returned lies at each instruction ([`flow`]); how far the
//! stack pointer is from the frame ([`depth`]); and as few instructions as see every path ([`choice`]). A function that returns a
//! number and stores its block through a pointer may be seen where it is about to do that ([`handed_out`]).
//!
//! What is taken for granted: calls keep the registers that the System V ABI says they keep, and return or do not; the
//! loader binds a name that the file defines to the file's own definition; memset and its like return their first argument;
//! and a function whose stack slots' addresses are never taken is the only one to write to them.

mod choice;
mod depth;
mod flow;
mod graph;
mod handed_out;
mod image;
mod machine;
mod proof;
mod transfer;

use self::{flow::Results, graph::Graph};
pub use self::{
    graph::Analysis,
    image::{Image, Known, Pointer},
    proof::{ExitSite, Exits, Tells, Unproven},
};
use super::family::Shape;

/// Exits of the function of this shape whose entry is probed at `site`: an instruction on its straight line, at which the
/// stack pointer is as it was at the first. No exit is an entry of `image`.
pub fn exits(analysis: &mut Analysis<'_>, site: u64, shape: Shape) -> Exits {
    prove(analysis, site, shape).unwrap_or_else(Exits::Unproven)
}

fn prove(analysis: &mut Analysis<'_>, site: u64, shape: Shape) -> Result<Exits, Unproven> {
    let graph = analysis.graph(site)?;
    let tells = if shape.stores() { Tells::Status } else { Tells::Returned };
    let exits = prove_graph(analysis, &graph, tells);
    let tells = if exits.as_ref().is_ok_and(Exits::tell_stored) { Tells::Stored } else { tells };
    analysis.passes(&graph, tells);
    exits
}

fn prove_graph(analysis: &mut Analysis<'_>, graph: &Graph, tells: Tells) -> Result<Exits, Unproven> {
    let depths = depth::depths(graph)?;
    let exposed = depth::exposed(graph, &depths);
    let results = Results::of(graph, &exposed, tells);
    let returned = choice::choose(analysis.image(), graph, &depths, &results).map(|sites| Exits::Proven(sites, tells));
    if tells == Tells::Status
        && returned.as_ref().map_or(true, Exits::step_for_blocks)
        && let Some(handed_out::Cut { graph: cut, behind }) = handed_out::cut(graph, &exposed, &results)
    {
        let results = Results { behind, ..Results::of(&cut, &exposed, Tells::Stored) };
        if let Ok(sites) = choice::choose(analysis.image(), &cut, &depths, &results) {
            let stored = Exits::Proven(sites, Tells::Stored);
            if !stored.step_for_blocks() && analysis.agree(graph, Tells::Stored, stored.sites()).is_ok() {
                return Ok(stored);
            }
        }
    }
    let returned = returned?;
    analysis.agree(graph, tells, returned.sites())?;
    Ok(returned)
}

#[cfg(test)]
mod tests;
