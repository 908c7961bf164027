//! One step up a stack, by a rule: the twin of what the BPF programs do, for tests and for stacks that user space unwinds.

use tracer_ebpf::unwind::{fp, kind};

/// The registers of a frame that unwinding needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Registers {
    /// rip.
    pub pc: u64,
    /// rsp.
    pub sp: u64,
    /// rbp.
    pub fp: u64,
    /// Whether `pc` is where the thread is (innermost frame) or was interrupted (below a signal frame), not where a call
    /// returns to.
    pub exact: bool,
}

impl Registers {
    /// The address whose rule and whose function are those of the frame: of a return address it is the one before, as a
    /// call may be the last instruction of its function.
    pub fn code(&self) -> u64 {
        self.pc.wrapping_sub(u64::from(!self.exact))
    }

    /// What the frame is told as ([`tracer_ebpf::unwind::place`]): the address behind that.
    pub fn place(&self) -> u64 {
        self.code().wrapping_add(1)
    }
}

/// What a step leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// The caller.
    Caller(Registers),
    /// There is none: this was the thread's outermost frame.
    Root,
    /// There is none, and this is no frame: the one before it is the outermost of a stack that a program has made.
    Made,
    /// It cannot be found.
    Stopped(Stop),
}

/// Why a caller cannot be found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    /// The code has no unwind information.
    NoRule,
    /// The unwind information is of a kind that is not supported.
    Unsupported,
    /// Stack memory could not be read, or the frames do not go up.
    BadMemory,
}

/// Goes to the caller of a frame by the rule that holds at its [`Registers::code`]. `read` gives the word at an address,
/// or nothing when it cannot be read.
pub fn step(rule: u64, frame: Registers, mut read: impl FnMut(u64) -> Option<u64>) -> Step {
    let offset = i64::from((rule >> 32) as u32 as i32);
    let cfa = match rule as u8 {
        // Where a thread begins, with the frame pointer's mark of the outermost frame, some tables say that it has no frame.
        kind::SP if offset == 0 && frame.fp == 0 => return Step::Root,
        kind::MADE if !frame.exact => return Step::Made,
        kind::SP | kind::MADE => Some(frame.sp.wrapping_add_signed(offset)),
        kind::FP | kind::SWITCHED => Some(frame.fp.wrapping_add_signed(offset)),
        kind::PLT => Some(frame.sp.wrapping_add(if (frame.pc & 15).cast_signed() >= offset { 16 } else { 8 })),
        kind::DEREF_FP => deref(frame.fp, offset, &mut read),
        kind::DEREF_SP => deref(frame.sp, offset, &mut read),
        kind::GO if frame.fp == 0 => return Step::Root,
        kind::FRAME_POINTERS if frame.fp == 0 => return Step::Stopped(Stop::NoRule),
        kind::FRAME_POINTERS | kind::GO => Some(frame.fp.wrapping_add(16)),
        kind::STOP => return Step::Root,
        kind::SIGNAL => return signal(frame, read).map_or(Step::Stopped(Stop::BadMemory), Step::Caller),
        kind::NONE => return Step::Stopped(Stop::NoRule),
        _ => return Step::Stopped(Stop::Unsupported),
    };
    match cfa.and_then(|cfa| caller(rule, frame, cfa, read)) {
        Some(Registers { pc: 0, .. }) if rule as u8 == kind::FRAME_POINTERS => Step::Stopped(Stop::NoRule),
        Some(Registers { pc: 0, .. }) => Step::Root,
        Some(caller) => Step::Caller(caller),
        None => Step::Stopped(Stop::BadMemory),
    }
}

/// The word at base + low half of the offset, + high half.
fn deref(base: u64, offset: i64, read: &mut impl FnMut(u64) -> Option<u64>) -> Option<u64> {
    let before = i64::from(offset as i16);
    let after = i64::from((offset >> 16) as i16);
    Some(read(base.wrapping_add_signed(before))?.wrapping_add_signed(after))
}

/// The caller's registers, from the CFA.
fn caller(rule: u64, frame: Registers, cfa: u64, mut read: impl FnMut(u64) -> Option<u64>) -> Option<Registers> {
    // The stack grows down: a caller's frame lies above, unless it is on another stack.
    let is_below = cfa < frame.sp.wrapping_add(8);
    if is_below && (!kind::may_lead_elsewhere(rule as u8) || cfa == frame.sp) || !cfa.is_multiple_of(8) {
        return None;
    }
    let fp_offset = i64::from((rule >> 16) as u16 as i16);
    let how = (rule >> 8) as u8;
    let saved = match (rule as u8, how & !fp::EXACT) {
        (kind::FRAME_POINTERS | kind::GO, _) => Some(frame.fp),
        (_, fp::AT_CFA) => Some(cfa.wrapping_add_signed(fp_offset)),
        (_, fp::AT_FP) => Some(frame.fp.wrapping_add_signed(fp_offset)),
        _ => None,
    };
    let fp = match saved {
        Some(slot) => read(slot)?,
        None => frame.fp,
    };
    Some(Registers { pc: read(cfa.wrapping_sub(8))?, sp: cfa, fp, exact: how & fp::EXACT != 0 })
}

/// Out of a signal frame: the kernel left a ucontext at the stack pointer, whose general registers are at 40 (in the order
/// of <sys/ucontext.h>: rbp is 10, rsp 15, rip 16).
fn signal(frame: Registers, mut read: impl FnMut(u64) -> Option<u64>) -> Option<Registers> {
    let mut register = |index: u64| read(frame.sp.wrapping_add(40 + 8 * index));
    let (fp, sp, pc) = (register(10)?, register(15)?, register(16)?);
    Some(Registers { pc, sp, fp, exact: true })
}

#[cfg(test)]
mod tests;
