//! Walking the stack of a goroutine that does not run, as the runtime does it itself: pclntab tells of every instruction
//! how far below its return address the stack pointer is (`unwinder` in the runtime's `traceback.go`). No frame pointers
//! are needed.

use hashbrown::HashMap;

use super::{Runtime, bytes::u64_at};
use crate::profile::quality::Truncation;

/// Most frames of a stack, inlined ones not counted.
pub(super) const MAX_FRAMES: usize = 256;
/// Most instructions that are remembered.
const MAX_KNOWN: usize = 1 << 20;

/// Functions whose caller did not call them: the address is that of the instruction itself, not behind a call.
const INJECTED: [&str; 3] = ["runtime.sigpanic", "runtime.asyncPreempt", "runtime.debugCallV2"];

/// Switches from a stack to another one, and leaves the frame that tables tell of on both.
const CALLBACK: &str = "runtime.cgocallback";

/// Where a goroutine stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Stop {
    /// Stack pointer.
    pub(super) sp: u64,
    /// Program counter.
    pub(super) pc: u64,
    /// Whether these were noted before a call into the system or C: what the function does to the stack pointer comes later.
    pub(super) syscall: bool,
}

/// A part of stack memory that has been read, and a way to read more of it.
pub(super) struct Window<'a> {
    /// Address of the first byte.
    pub(super) addr: u64,
    pub(super) bytes: &'a [u8],
    /// Behind the last byte of the stack.
    pub(super) end: u64,
    /// Reads the word at an address.
    pub(super) more: &'a dyn Fn(u64) -> Option<u64>,
}

impl Window<'_> {
    fn word(&self, addr: u64) -> Option<u64> {
        if addr > self.end.checked_sub(8)? {
            return None;
        }
        let inside = addr.checked_sub(self.addr).and_then(|at| u64_at(self.bytes, usize::try_from(at).ok()?));
        inside.or_else(|| (self.more)(addr))
    }
}

/// What is known of an instruction that calls.
#[derive(Clone, Copy)]
struct Step {
    entry: u64,
    stack_use: Option<u32>,
    root: bool,
    writes_sp: bool,
    injected: bool,
}

/// Walks stacks, and remembers what it has looked up for them.
pub(super) struct Walker<'a> {
    /// The runtime, and the plugins that run in it.
    modules: Vec<&'a Runtime>,
    known: HashMap<u64, Option<Step>>,
}

impl<'a> Walker<'a> {
    pub(super) fn new(modules: Vec<&'a Runtime>) -> Self {
        Self { modules, known: HashMap::new() }
    }

    /// Appends the addresses of the calls on a stack to `calls`, the leaf first; why it ends before the root, if it does.
    pub(super) fn walk(&mut self, stop: Stop, stack: &Window<'_>, calls: &mut Vec<u64>) -> Option<Truncation> {
        let Stop { mut sp, mut pc, syscall } = stop;
        if pc == 0 {
            // A nil function was called: its caller's address is on the stack.
            let Some(caller) = stack.word(sp) else { return Some(Truncation::BadMemory) };
            (pc, sp) = (caller, sp.wrapping_add(8));
        }
        let mut behind_call = true;
        for _ in 0..MAX_FRAMES {
            let Some(step) = self.step(pc) else { return Some(Truncation::NoMapping) };
            calls.push(if behind_call && pc > step.entry { pc - 1 } else { pc });
            if step.root {
                return None;
            }
            let known = !step.writes_sp || syscall && calls.len() == 1;
            let Some(stack_use) = step.stack_use.filter(|_| known) else { return Some(Truncation::NoRule) };
            let slot = sp.wrapping_add(u64::from(stack_use));
            let Some(caller) = stack.word(slot) else { return Some(Truncation::BadMemory) };
            (pc, sp) = (caller, slot.wrapping_add(8));
            behind_call = !step.injected;
        }
        Some(Truncation::Depth)
    }

    fn step(&mut self, pc: u64) -> Option<Step> {
        if let Some(known) = self.known.get(&pc) {
            return *known;
        }
        let step = self.modules.iter().find_map(|module| look_up(module, pc));
        if self.known.len() < MAX_KNOWN {
            self.known.insert(pc, step);
        }
        step
    }
}

fn look_up(runtime: &Runtime, pc: u64) -> Option<Step> {
    let offset = runtime.text_offset(pc)?;
    let tables = &runtime.executable.tables;
    let function = tables.function(offset)?;
    let name = tables.name(function)?;
    Some(Step {
        entry: runtime.text.0 + u64::from(function.entry),
        stack_use: tables.stack_use(function, offset),
        root: tables.is_root(function),
        writes_sp: tables.writes_stack_pointer(function) && name != CALLBACK,
        injected: INJECTED.contains(&&*name),
    })
}
