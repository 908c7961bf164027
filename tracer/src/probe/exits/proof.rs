//! What is proven of a function, or why that could not be.

use thiserror::Error;
use tracer_ebpf::exit::{Exit, Outcome, Place};

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

/// What the outcome that is known at a function's exits is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tells {
    /// What it returns: its block, or NULL.
    Returned,
    /// What it returns: a number that says whether there is a block, which has been stored through a pointer by then (posix_memalign).
    Status,
    /// The block that is going to be stored through that pointer, or NULL.
    Stored,
}

impl Tells {
    /// One of its own.
    pub(super) fn bit(self) -> u8 {
        1 << self as u8
    }
}

/// Where all outcomes of a function are known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Exits {
    /// Every path from the entry site to a return passes at least one of these that knows the outcome, and what each says
    /// is the result.
    Proven(Vec<ExitSite>, Tells),
    /// That could not be shown.
    Unproven(Unproven),
}

impl Exits {
    /// The instructions; none where they are not proven.
    pub fn sites(&self) -> &[ExitSite] {
        match self {
            Self::Proven(sites, _) => sites,
            Self::Unproven(_) => &[],
        }
    }

    /// Whether they tell the block itself where the function returns a number.
    pub fn tell_stored(&self) -> bool {
        matches!(self, Self::Proven(_, Tells::Stored))
    }

    /// Whether the whole function was seen, so that none of its returns is unknown.
    pub fn knows_all_returns(&self) -> bool {
        use Unproven::{ComputedJump, Leaves, TooLong, Unreadable};
        !matches!(self, Self::Unproven(ComputedJump(_) | Leaves(_) | Unreadable(_) | TooLong))
    }

    /// Whether they are proven, and calls that give out a block are seen at instructions that the kernel emulates: not necessarily on
    /// every path.
    pub fn are_cheap(&self) -> bool {
        self.of_blocks().any(|site| site.emulated)
    }

    /// Whether calls that give out a block may be seen at an instruction that the kernel steps, or are not seen.
    pub(super) fn step_for_blocks(&self) -> bool {
        matches!(self, Self::Unproven(_)) || self.of_blocks().any(|site| !site.emulated)
    }

    /// Those at which there may be a block.
    fn of_blocks(&self) -> impl Iterator<Item = &ExitSite> {
        let status = matches!(self, Self::Proven(_, Tells::Status));
        let gives_block = move |place| match place {
            Place::Register { .. } | Place::Stack(_) => true,
            Place::Constant(result) => status && result == 0,
            Place::Unknown => false,
        };
        self.sites().iter().filter(move |site| match site.exit.outcome {
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
