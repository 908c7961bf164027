//! The descriptor of one goroutine, as the runtime keeps it: what it says, and whether it can be one.

use crate::golang::{
    bytes::{u32_at, u64_at},
    layout::G,
    stack::Stop,
};

/// What goroutines do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// They wait, for the reason of this number.
    Waiting(u8),
    /// The garbage collector has found that nothing can ever wake them; the number is what they wait for.
    Leaked(u8),
    /// They can run and wait for a processor.
    Runnable,
    /// They ran whenever they were looked at.
    Running,
    /// They are in the kernel, or in C.
    Syscall,
    /// They were interrupted.
    Preempted,
}

/// A goroutine's descriptor.
#[derive(Clone, Copy, Debug)]
pub(super) struct Descriptor {
    pub(super) stack: (u64, u64),
    pub(super) sched: (u64, u64),
    pub(super) syscall: (u64, u64),
    pub(super) status: u32,
    pub(super) id: u64,
    pub(super) wait_since: u64,
    pub(super) wait_reason: u8,
    pub(super) go_pc: u64,
    pub(super) start_pc: u64,
    /// First of what it waits with, while it waits.
    pub(super) waiting: u64,
}

impl Descriptor {
    /// Reads it where the runtime of this layout keeps what.
    pub(super) fn decode(bytes: &[u8], g: &G) -> Option<Self> {
        let pair = |(first, second)| Some((u64_at(bytes, first)?, u64_at(bytes, second)?));
        Some(Self {
            stack: pair(g.stack)?,
            sched: pair(g.sched)?,
            syscall: pair(g.syscall)?,
            status: u32_at(bytes, g.status)? & !status::SCAN,
            id: u64_at(bytes, g.id)?,
            wait_since: u64_at(bytes, g.wait_since)?,
            wait_reason: *bytes.get(g.wait_reason)?,
            go_pc: u64_at(bytes, g.go_pc)?,
            start_pc: u64_at(bytes, g.start_pc)?,
            waiting: u64_at(bytes, g.waiting)?,
        })
    }

    /// Whether there is no goroutine that it is of.
    pub(super) fn is_unused(&self) -> bool {
        matches!(self.status, status::IDLE | status::DEAD | status::DEAD_EXTRA)
    }

    /// Whether it can be that of a goroutine.
    pub(super) fn makes_sense(&self) -> bool {
        match self.status {
            _ if self.is_unused() => true,
            status::RUNNABLE
            | status::RUNNING
            | status::SYSCALL
            | status::WAITING
            | status::COPYING_STACK
            | status::PREEMPTED
            | status::LEAKED => self.stack.0 < self.stack.1 && (self.stack.0 | self.stack.1).is_multiple_of(8),
            _ => false,
        }
    }

    /// Whether the goroutine is where it was.
    pub(super) fn is_still(&self, before: &Self) -> bool {
        let place = |g: &Self| (g.stack, g.sched, g.syscall, g.status, g.id, g.wait_reason, g.waiting);
        place(self) == place(before)
    }

    /// Where it stopped, when it has.
    pub(super) fn stopped_at(&self) -> Option<Stop> {
        let stopped = [status::RUNNABLE, status::SYSCALL, status::WAITING, status::PREEMPTED, status::LEAKED];
        let syscall = self.syscall.0 != 0;
        let (sp, pc) = if syscall { self.syscall } else { self.sched };
        (stopped.contains(&self.status) && self.stack.0 < sp && sp < self.stack.1 && sp.is_multiple_of(8))
            .then_some(Stop { sp, pc, syscall })
    }

    /// What the goroutine does.
    pub(super) fn state(&self) -> State {
        match self.status {
            status::WAITING => State::Waiting(self.wait_reason),
            status::LEAKED => State::Leaked(self.wait_reason),
            status::RUNNABLE => State::Runnable,
            status::SYSCALL => State::Syscall,
            status::PREEMPTED => State::Preempted,
            _ => State::Running,
        }
    }

    /// First of what the goroutine waits with; 0 when it does not wait.
    pub(super) fn waits_with(&self) -> u64 {
        if matches!(self.status, status::WAITING | status::LEAKED) { self.waiting } else { 0 }
    }
}

/// Statuses of goroutines (`_Gidle` and following, runtime2.go), without the bit that says that their stack is being scanned.
mod status {
    pub(super) const SCAN: u32 = 0x1000;
    pub(super) const IDLE: u32 = 0;
    pub(super) const RUNNABLE: u32 = 1;
    pub(super) const RUNNING: u32 = 2;
    pub(super) const SYSCALL: u32 = 3;
    pub(super) const WAITING: u32 = 4;
    pub(super) const DEAD: u32 = 6;
    pub(super) const COPYING_STACK: u32 = 8;
    pub(super) const PREEMPTED: u32 = 9;
    pub(super) const LEAKED: u32 = 10;
    pub(super) const DEAD_EXTRA: u32 = 11;
}
