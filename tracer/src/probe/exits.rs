//! Where the outcome of a call into the allocator is known before it returns.
//!
//! A probe on the return of a function changes the target's stack for as long as the call runs. A probe on an instruction
//! that every path to the return passes, behind the last one that may change the result, changes nothing. This finds such
//! instructions, among those that the kernel emulates where there are any: the flow graph of the function, with what it
//! jumps to at its end ([`graph`]); where the value that will be returned lies at each instruction ([`flow`]); how far the
//! stack pointer is from the frame ([`depth`]); and as few instructions as see every path ([`choice`]).
//!
//! What is taken for granted: calls keep the registers that the System V ABI says they keep, and return or do not; the
//! loader binds a name that the file defines to the file's own definition; memset and its like return their first argument;
//! and a function whose stack slots' addresses are never taken is the only one to write to them.

mod choice;
mod depth;
mod flow;
mod graph;
mod image;
mod machine;
mod proof;
mod transfer;

pub use self::{
    graph::Analysis,
    image::{Image, Known, Pointer},
    proof::{ExitSite, Exits, Unproven},
};
use super::family::Shape;

/// Exits of the function of this shape whose entry is probed at `site`: an instruction on its straight line, at which the
/// stack pointer is as it was at the first. No exit is an entry of `image`.
pub fn exits(analysis: &mut Analysis<'_>, site: u64, shape: Shape) -> Exits {
    match prove(analysis, site, shape) {
        Ok(sites) => Exits::Proven(sites),
        Err(why) => Exits::Unproven(why),
    }
}

fn prove(analysis: &mut Analysis<'_>, site: u64, shape: Shape) -> Result<Vec<ExitSite>, Unproven> {
    let graph = analysis.graph(site)?;
    let depths = depth::depths(&graph)?;
    let is_int = shape.stores();
    let results = flow::Results::of(&graph, &depth::exposed(&graph, &depths), is_int);
    let sites = choice::choose(analysis.image(), &graph, &depths, &results)?;
    analysis.agree(&graph, is_int, &sites)?;
    Ok(sites)
}

#[cfg(test)]
mod tests;
