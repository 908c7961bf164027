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
mod machine;
mod transfer;

use thiserror::Error;
use tracer_ebpf::exit::{Exit, Outcome, Place};

use super::allocators::Shape;
use crate::unwind::Frames;

pub use graph::Analysis;

/// An instruction at which the outcome of a call is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ExitSite {
    /// Its address, as the file was linked.
    pub address: u64,
    /// Of which call, and what its result is.
    pub exit: Exit,
    /// Whether the kernel emulates the instruction (cheap) or steps it.
    pub emulated: bool,
}

/// Where all outcomes of a function are known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Exits {
    /// Every path from the entry site to a return passes at least one of these that knows the outcome, and what each says
    /// is the result.
    Proven(Vec<ExitSite>),
    /// That could not be shown.
    Unproven(Unproven),
}

impl Exits {
    /// The instructions; none where they are not proven.
    pub fn sites(&self) -> &[ExitSite] {
        match self {
            Self::Proven(sites) => sites,
            Self::Unproven(_) => &[],
        }
    }

    /// Whether the whole function was seen, so that none of its returns is unknown.
    pub fn knows_all_returns(&self) -> bool {
        use Unproven::{ComputedJump, Leaves, TooLong, Unreadable};
        !matches!(self, Self::Unproven(ComputedJump(_) | Leaves(_) | Unreadable(_) | TooLong))
    }

    /// Whether they are proven, and calls of a function of this shape that give out a block are seen at instructions that the
    /// kernel emulates: not necessarily on every path.
    pub fn are_cheap(&self, shape: Shape) -> bool {
        let gives_block = |place| match place {
            Place::Register { .. } | Place::Stack(_) => true,
            Place::Constant(result) => shape == Shape::PosixMemalign && result == 0,
            Place::Unknown => false,
        };
        let Self::Proven(sites) = self else { return false };
        sites.iter().filter(|site| site.emulated).any(|site| match site.exit.outcome {
            Outcome::One(place) => gives_block(place),
            Outcome::Branch { taken, not_taken, .. } => gives_block(taken) || gives_block(not_taken),
        })
    }
}

/// Why the outcomes of a function are not known to be seen.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum Unproven {
    /// A jump through a register or a table.
    #[error("it jumps to a computed address at {0:#x}")]
    ComputedJump(u64),
    /// It ends in a function of another file.
    #[error("it ends in another file's function at {0:#x}")]
    Leaves(u64),
    /// Bytes that are no instruction, or one whose effect is not known.
    #[error("what it does at {0:#x} is not known")]
    Unreadable(u64),
    /// More instructions than are looked at.
    #[error("it has too many instructions")]
    TooLong,
    /// At a return the stack pointer is not where the return address is.
    #[error("its frame is not known at {0:#x}")]
    Frame(u64),
    /// A path on which no instruction knows the result.
    #[error("no instruction on the way to {0:#x} knows the result")]
    Unseen(u64),
    /// One instruction is a site of two functions, with different outcomes.
    #[error("its exit at {0:#x} means something else to another function")]
    Shared(u64),
}

/// A function whose name says what becomes of a call to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Known {
    /// It never returns.
    NoReturn,
    /// It returns its first argument: memset, memcpy.
    ReturnsFirst,
}

/// What a pointer in the global offset table is bound to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pointer {
    /// Code of the same file, at this address.
    Here(u64),
    /// A function known by its name, of whichever file.
    Known(Known),
    /// Code elsewhere.
    Elsewhere,
}

/// An ELF file as the analysis sees it. Addresses are those that it was linked for.
#[derive(Clone, Copy)]
pub struct Image<'a> {
    /// The executable bytes from an address on: at least 15, unless the file has fewer.
    pub code: &'a dyn Fn(u64) -> Option<&'a [u8]>,
    /// What the loader puts at an address, if that is a pointer that never changes.
    pub pointer: &'a dyn Fn(u64) -> Pointer,
    /// What the name of the file's own function at an address says.
    pub known: &'a dyn Fn(u64) -> Option<Known>,
    /// Where the functions of the allocator's interface begin.
    pub family: &'a [u64],
    /// Instructions that are probed as entries of those.
    pub entries: &'a [u64],
    /// What the file's unwind information says.
    pub frames: &'a Frames<'a>,
}

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
    let is_int = shape == Shape::PosixMemalign;
    let results = flow::Results::of(&graph, &depth::exposed(&graph, &depths), is_int);
    let sites = choice::choose(analysis.image(), &graph, &depths, &results)?;
    analysis.agree(&graph, is_int, &sites)?;
    Ok(sites)
}

#[cfg(test)]
mod tests;
