//! What a function shows of its caller: whether it begins with its return address on top of the stack.
//!
//! What returns, or is called, does. Code may be made of pieces that are only jumped at and go on in others by jumps (as GHC makes it, with
//! a stack of its own): a frame that it leaves as it was proves no caller then.

use super::frame::Frame;

/// What a block tells of its function's caller.
#[derive(Clone, Copy, Debug)]
pub(super) enum Exit {
    /// It returns, or has moved its return address.
    Return,
    /// It leaves by a jump.
    Jump {
        /// Where to, with the stack as it was; `None` where that is not known, or the stack is not.
        to: Option<u64>,
        /// Whether the caller's registers are as they were.
        keeps: bool,
    },
    /// It has saved registers for its caller.
    Save,
    /// The same, and made a frame with a frame pointer, behind the return address.
    Frame,
}

impl Exit {
    /// A jump out of the function.
    pub(super) fn jump(frame: &Frame, to: Option<u64>) -> Self {
        if frame.takes_arguments_off() {
            return Self::Return;
        }
        Self::Jump { to: to.filter(|_| frame.is_as_called()), keeps: frame.keeps_registers() }
    }
}

/// What a function shows by itself.
#[derive(Debug, Default)]
pub(super) struct Shown {
    /// It returns.
    pub(super) returns: bool,
    /// It does something for a caller, or never leaves: who does not was called, if only by a pointer.
    pub(super) has_caller: bool,
    /// Functions that it goes on in with the stack as it was: they have the same caller.
    pub(super) goes_on: Vec<u64>,
}

impl Shown {
    /// By all that its blocks tell, each with whether it is in a proved part. `described`: whether code that is described has its return
    /// address on top of the stack there.
    pub(super) fn of(exits: impl Iterator<Item = (Exit, bool)>, described: impl Fn(u64) -> bool) -> Self {
        let mut shown = Self::default();
        let (mut jumps, mut keeps, mut is_for_caller, mut has_frame) = (false, true, false, false);
        for (exit, is_part) in exits {
            match exit {
                Exit::Return => shown.returns |= is_part,
                Exit::Save => is_for_caller |= is_part,
                Exit::Frame => has_frame |= is_part,
                // Behind a call it need not be in a proved part: that is what the jump would prove.
                Exit::Jump { to, keeps: does } => {
                    (jumps, keeps) = (true, keeps && does);
                    is_for_caller |= is_part && to.is_some_and(&described);
                    shown.goes_on.extend(to.filter(|_| is_part));
                }
            }
        }
        // Frame pointers are a chain of frames whose return addresses lie beside them, whatever becomes of the registers otherwise.
        shown.has_caller = !jumps || has_frame || (keeps && is_for_caller);
        shown
    }
}
