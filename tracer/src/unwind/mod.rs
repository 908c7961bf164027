//! Unwinding by tables: what compilers say about frames, compiled into the compact form that the BPF programs walk.
//!
//! [`compile`] turns the call frame information of one file (DWARF 5, section 6.4; `.eh_frame` after the LSB) into a
//! [`Table`], or looks up [`Frames`] of single functions; [`Packed`] puts the tables of all files into the layout of [`tracer_ebpf::unwind`]; [`step`] goes from one
//! frame to its caller by a rule, as the BPF programs do. x86-64 only. Reading files, mappings and memory is left to
//! others: all this is a function of its input, which is hostile.

mod call;
mod compile;
mod entries;
mod expression;
mod frames;
mod pack;
mod program;
mod rule;
mod step;
mod synthesis;
mod table;

#[cfg(test)]
pub(crate) mod fixture;
#[cfg(test)]
mod tests;

pub use call::{LONGEST_CALL, ends_a_call, ends_with_call};
pub use compile::{Sections, UnwindError, compile};
pub use frames::Frames;
pub use pack::{Changes, Full, PAGE_SHARDS, Packed, Placed, ROW_SHARDS};
pub use rule::Reason;
pub use step::{Registers, Step, Stop, step};
pub use synthesis::{MAX_CODE, Synthesized, Undescribed, synthesize};
pub use table::{Stats, Table};
