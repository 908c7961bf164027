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
    let depths = depth::depths(&graph)?;
    let exposed = depth::exposed(&graph, &depths);
    let tells = if shape.stores() { Tells::Status } else { Tells::Returned };
    let results = Results::of(&graph, &exposed, tells);
    let proven = |analysis: &mut Analysis<'_>, graph: &Graph, results: &Results| {
        let sites = choice::choose(analysis.image(), graph, &depths, results)?;
        Ok(Exits::Proven(sites, results.tells))
    };
    let mut exits = proven(analysis, &graph, &results);
    if shape.stores()
        && !exits.as_ref().is_ok_and(Exits::are_cheap)
        && let Some(cut) = handed_out::cut(&graph, &exposed, &results)
    {
        let stored = proven(analysis, &cut, &Results::of(&cut, &exposed, Tells::Stored));
        if stored.as_ref().is_ok_and(Exits::are_cheap) {
            exits = stored;
        }
    }
    let exits = exits?;
    if let Exits::Proven(sites, tells) = &exits {
        analysis.agree(&graph, *tells, sites)?;
    }
    Ok(exits)
}

#[cfg(test)]
mod tests;
