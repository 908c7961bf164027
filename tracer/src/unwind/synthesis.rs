//! Rules for code that no unwind information describes, from its instructions.
//!
//! A function leaves the stack pointer where it was, and the frame pointer what it was. So from where it begins every
//! instruction is applied to what is known of the frame: where the stack pointer is, counted from the CFA, and where the
//! caller's frame pointer is. A rule is given where all ways through the function agree, and where it ends as functions do.
//! What is not proved has no rule, and stacks end there; nothing is guessed.
//!
//! - [`code`]: the instructions, read once; [`returns`]: which calls return;
//! - [`frame`], [`effects`], [`switch`]: what holds at an instruction, what it changes, where jumps by tables lead;
//! - [`function`], [`parts`], [`proof`]: one function; [`caller`], [`callers`]: whether it has a caller; [`search`]: which functions there are.

mod budget;
mod caller;
mod callers;
mod code;
mod effects;
mod frame;
mod function;
mod parts;
mod proof;
mod returns;
mod search;
mod switch;

#[cfg(test)]
mod tests;

pub use code::Undescribed;
pub use search::{MAX_CODE, Synthesized, synthesize};
