//! What probes cost: how often programs of each kind run, and how long some of those runs take.

use aya_ebpf::{macros::map, maps::PerCpuArray};
use tracer_ebpf::cost::{self, Cost};

use crate::emit;

/// By [`cost`]. Of each processor apart: a program that is interrupted by another one's run on the same may lose a count, or be
/// taken for longer than it was.
#[map]
static COSTS: PerCpuArray<Cost> = PerCpuArray::with_max_entries(cost::KINDS, 0);

/// A program of this kind begins, at a probe with this cookie; 0 where that is none of an instruction: where it is counted.
#[inline(always)]
pub(crate) fn begin(kind: u32, cookie: u64) -> Option<*mut Cost> {
    let at = COSTS.get_ptr_mut(kind)?;
    // SAFETY: the pointer comes from a map lookup.
    let cost = unsafe { &mut *at };
    cost.runs = cost.runs.wrapping_add(1);
    // Without a branch, and not by another key: the kernel knows that a constant one is there.
    cost.stepped = cost.stepped.wrapping_add(cost::stepped(cookie));
    // Compared, not divided: that would take as long as all else here.
    if cost.runs >= cost.next {
        cost.next = cost.runs.wrapping_add(cost::TIMED);
        cost.begun = emit::now();
    }
    Some(at)
}

/// It ends.
#[inline(always)]
pub(crate) fn end(counted: Option<*mut Cost>) {
    let Some(cost) = counted else { return };
    // SAFETY: the pointer comes from a map lookup. A program stays on its processor.
    let cost = unsafe { &mut *cost };
    if cost.begun != 0 {
        cost.time = cost.time.wrapping_add(emit::now().wrapping_sub(cost.begun));
        cost.timed = cost.timed.wrapping_add(1);
        cost.begun = 0;
    }
}
