//! The heap of a Go program: the profile that its runtime keeps itself ([`Buckets`]), or sampled allocations and what has
//! become of them ([`Objects`]).

mod arenas;
mod buckets;
mod cycles;
#[cfg(test)]
mod fixture;
mod liveness;
mod objects;
mod sample;
mod sites;

pub use arenas::arenas;
pub use buckets::{Bucket, Buckets, is_left_behind, is_turned_off, profile_rate, profile_rate_address, sampling_of};
pub use cycles::collections;
pub use objects::{Objects, SampledUsage, Sampling};
pub use sample::Sample;
pub use sites::{ProbeSites, probe_sites};

use tracer_ebpf::golang::{PARTS, Runtime as RuntimeValue};

use self::cycles::layout;
use super::{
    Runtime, Unreadable,
    executable::{ASSIST, HEAP},
};

/// What the BPF programs must know of a runtime, the one of this number in its process, that is probed at `sites`.
///
/// # Errors
/// Something of it is not known.
pub fn runtime_value(runtime: &Runtime, sites: &ProbeSites, number: u32) -> Result<RuntimeValue, Unreadable> {
    let heap = layout(runtime)?;
    let mheap = runtime.variable(HEAP)?;
    let headers = runtime.executable.version.minor.is_none_or(|minor| minor >= 22);
    let mut assisted = [0; PARTS];
    if sites.assisted.len() > assisted.len() {
        return Err(Unreadable::Nonsense("functions that allocate"));
    }
    assisted[..sites.assisted.len()].copy_from_slice(&sites.assisted);
    Ok(RuntimeValue {
        sweepgen: mheap.wrapping_add(heap.mheap.0 as u64),
        g_m: heap.cache_of_g.0 as u32,
        m_p: heap.cache_of_g.1 as u32,
        p_mcache: heap.cache_of_g.2 as u32,
        mcache_alloc: heap.mcache.0 as u32,
        mcache_tiny: heap.mcache.1 as u32,
        mcache_tiny_offset: heap.mcache.2 as u32,
        span_start: heap.span.start as u32,
        span_free_index: heap.span.free_index as u32,
        span_elements: heap.span.elements as u32,
        span_cache: heap.span.cache as u32,
        span_bits: heap.span.bits as u32,
        span_element_size: heap.span.element_size as u32,
        span_class: heap.span.class as u32,
        wide: heap.span.wide.into(),
        header: if headers { 8 } else { 0 },
        number,
        assist: if sites.after_assist.is_empty() { 0 } else { runtime.variable(ASSIST)? },
        g_assist: heap.assist as u32,
        at_check: sites.at_check.into(),
        whole: sites.whole.0,
        whole_end: sites.whole.1,
        assisted,
    })
}
