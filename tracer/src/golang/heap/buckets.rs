//! The heap profile that the Go runtime keeps of itself when `runtime.MemProfileRate` is not 0: a list of buckets, each a
//! stack and a size of objects, with counts of sampled allocations and frees (mprof.go in the runtime).
//!
//! Buckets are never moved, changed in their stack, or freed, and new ones come to the head of the list; so each is read
//! once, and after that only its counts are. The runtime holds counts back until the garbage collector has been through: the
//! allocations of a cycle and the frees that belong to them are published together (`mProf_Flush`). Only what is published
//! counts here, as in the runtime's own profiles: what is held back has allocations of objects that are garbage already, whose
//! frees are yet to come. As long as nothing has ever been published, all counts, there as here.

use std::sync::Arc;

use hashbrown::HashSet;

use super::{
    cycles::{FUTURES, layout},
    objects::Sampling,
};
use crate::{
    golang::{
        ReadMemory, Runtime, Unreadable,
        bytes::u64_at,
        executable::{BUCKETS, PROFILE_RATE},
        layout,
    },
    process::memory::Span,
};

/// Most buckets that are read.
const MAX_BUCKETS: usize = 1 << 20;
/// Most addresses in all of them together: 128 MiB.
const MAX_ADDRESSES: usize = 1 << 24;
/// Most addresses of a stack; the runtime keeps 128, or 1024 when it is told so.
const MAX_FRAMES: u64 = 1024;
/// Bytes that are read of a bucket at first: enough for most.
const FIRST_READ: usize = 512;
/// Buckets whose counts are read together.
const BATCH: usize = 4096;
/// Times that the counts are read until they are the same twice: the runtime may be publishing while they are read.
const ROUNDS: usize = 4;

/// What is held of one size by one stack, as sampled by the runtime.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bucket {
    /// Addresses of the calls, leaf first. Each stands for one function, inlined or not: its innermost.
    pub calls: Arc<[u64]>,
    /// Bytes of an object.
    pub size: u64,
    /// Sampled objects that were allocated.
    pub allocs: u64,
    /// Those of them that were freed.
    pub frees: u64,
}

impl Bucket {
    /// Estimated numbers of allocated and of held objects and their bytes, as `runtime/pprof` scales them
    /// (`scaleHeapSample`): (objects, bytes) each. `rate` is the mean of bytes between samples.
    pub fn estimate(&self, rate: u64) -> [(u64, u64); 2] {
        let scaled = |count: u64| {
            let bytes = count.saturating_mul(self.size);
            if count == 0 || self.size == 0 || rate <= 1 {
                return (count, bytes);
            }
            let scale = 1.0 / (1.0 - (-(self.size as f64) / rate as f64).exp());
            ((count as f64 * scale) as u64, (bytes as f64 * scale) as u64)
        };
        [scaled(self.allocs), scaled(self.allocs.saturating_sub(self.frees))]
    }
}

/// Mean of bytes between the runtime's own samples; 0 when it takes none.
///
/// # Errors
/// Not found, or not readable.
pub fn profile_rate(runtime: &Runtime, memory: &ReadMemory<'_>) -> Result<u64, Unreadable> {
    let mut bytes = [0; 8];
    let readable = memory(&[Span { addr: profile_rate_address(runtime)?, len: 8 }], &mut bytes)?;
    let rate = i64::from_le_bytes(bytes);
    if readable == [true] {
        Ok(u64::try_from(rate).unwrap_or(0))
    } else {
        Err(Unreadable::Nonsense("its profile rate"))
    }
}

/// Functions of the runtime without which the linker has it turn its profile off when it starts: the first up to Go 1.22, the
/// second from then on.
const PROFILE: [&str; 2] = ["runtime.MemProfile", "runtime.memProfileInternal"];
/// What functions begin with of programs that load plugins: those may need the profile, so it stays on.
const PLUGINS: &str = "plugin.";
/// Mean of bytes between samples in programs that say nothing of it.
const USUAL_RATE: u64 = 512 << 10;

/// Whether the program cannot have a profile of its own: its runtime has set the mean to 0 when it started.
pub fn is_turned_off(runtime: &Runtime) -> bool {
    let tables = &runtime.executable.tables;
    PROFILE.iter().all(|name| tables.function_named(name).is_none())
        && !tables.functions().any(|(name, ..)| name.starts_with(PLUGINS))
}

/// Whether a mean was set from outside, as `--go-heap=enable` does, and never set back.
pub fn is_left_behind(runtime: &Runtime, rate: u64) -> bool {
    rate != 0 && rate != USUAL_RATE && is_turned_off(runtime)
}

/// Where that number is in the memory of the process.
///
/// # Errors
/// Not found.
pub fn profile_rate_address(runtime: &Runtime) -> Result<u64, Unreadable> {
    runtime.variable(PROFILE_RATE)
}

/// All buckets of a process.
#[derive(Default)]
pub struct Buckets {
    /// Oldest first.
    known: Vec<Known>,
    /// Addresses of the calls of all of them.
    addresses: usize,
}

struct Known {
    addr: u64,
    calls: Arc<[u64]>,
    size: u64,
    published: Counts,
    held_back: Counts,
    /// Sampled objects that were allocated when it was [marked](Buckets::mark), held back or not.
    marked: u64,
}

/// Sampled objects.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
struct Counts {
    allocs: u64,
    frees: u64,
}

impl Buckets {
    /// Reads what is new, and all counts.
    ///
    /// # Errors
    /// Memory cannot be read, or is no list of buckets.
    pub fn refresh(&mut self, runtime: &Runtime, memory: &ReadMemory<'_>) -> Result<(), Unreadable> {
        self.refresh_at(&layout(runtime)?.bucket, runtime.variable(BUCKETS)?, memory)
    }

    /// The same for buckets of this layout, with the variable that leads to them at the address `list`.
    ///
    /// # Errors
    /// Memory cannot be read, or is no list of buckets.
    pub fn refresh_at(
        &mut self,
        bucket: &layout::Bucket,
        list: u64,
        memory: &ReadMemory<'_>,
    ) -> Result<(), Unreadable> {
        let nonsense = || Unreadable::Nonsense("its heap profile");
        let newest = self.known.last().map(|known| known.addr);
        let mut head = [0; 8];
        if memory(&[Span { addr: list, len: 8 }], &mut head)? != [true] {
            return Err(nonsense());
        }
        let mut at = u64::from_le_bytes(head);
        let (mut new, mut seen, mut addresses) = (Vec::new(), HashSet::new(), self.addresses);
        while at != 0 && Some(at) != newest {
            if new.len() + self.known.len() >= MAX_BUCKETS || addresses >= MAX_ADDRESSES {
                break;
            }
            // The runtime's list has an end.
            if !seen.insert(at) {
                return Err(nonsense());
            }
            let bytes = prefix(memory, at, bucket.len)?.ok_or_else(nonsense)?;
            let field = |offset| u64_at(&bytes, offset).ok_or_else(nonsense);
            let frames = field(bucket.frames)?;
            if frames > MAX_FRAMES {
                return Err(nonsense());
            }
            let stack = calls(memory, at, bucket.len, frames as usize, &bytes)?.ok_or_else(nonsense)?;
            addresses += stack.len();
            new.push(Known {
                addr: at,
                calls: stack.into(),
                size: field(bucket.size)?,
                published: Counts::default(),
                held_back: Counts::default(),
                marked: 0,
            });
            at = field(bucket.next)?;
        }
        new.reverse();
        self.known.append(&mut new);
        self.addresses = addresses;
        for _ in 0..ROUNDS {
            let mut settled = true;
            for batch in self.known.chunks_mut(BATCH) {
                settled &= count(batch, bucket, memory)?;
            }
            if settled {
                break;
            }
        }
        Ok(())
    }

    /// All of them, oldest first; the counts are those of the last [`refresh`](Self::refresh).
    pub fn iter(&self) -> impl Iterator<Item = Bucket> {
        let is_published = self.is_published();
        self.known.iter().map(move |known| {
            let Known { calls, size, published, held_back, .. } = known;
            let Counts { allocs, frees } = if is_published { *published } else { *held_back };
            Bucket { calls: Arc::clone(calls), size: *size, allocs, frees }
        })
    }

    /// What has been allocated up to the last [`refresh`](Self::refresh) is no part of [`since_mark`](Self::since_mark).
    pub fn mark(&mut self) {
        for known in &mut self.known {
            known.marked = known.published.allocs.saturating_add(known.held_back.allocs);
        }
    }

    /// Bytes that have been allocated since the [`mark`](Self::mark), freed or not, as far as the counts of
    /// [`iter`](Self::iter) tell of them: estimated, with a mean of `rate` bytes between samples.
    pub fn since_mark(&self, rate: u64) -> u64 {
        let new = self.iter().zip(&self.known).map(|(bucket, known)| {
            let allocs = bucket.allocs.saturating_sub(known.marked);
            Bucket { allocs, ..bucket }.estimate(rate)[0].1
        });
        new.fold(0, u64::saturating_add)
    }

    /// Whether the counts are those of a garbage collection. Before the second one of a program nothing is, and all counts.
    pub fn is_published(&self) -> bool {
        self.known.iter().any(|known| known.published != Counts::default())
    }
}

/// Reads the counts of some buckets. Whether those that are published are as they were.
fn count(known: &mut [Known], bucket: &layout::Bucket, memory: &ReadMemory<'_>) -> Result<bool, Unreadable> {
    let records = known.iter().map(|known| Span {
        addr: known.addr.wrapping_add((bucket.len + 8 * known.calls.len()) as u64),
        len: bucket.record_len,
    });
    let spans: Vec<Span> = records.collect();
    let mut bytes = vec![0; bucket.record_len * spans.len()];
    let readable = memory(&spans, &mut bytes)?;
    let (active, future) = bucket.cycles;
    let mut same = true;
    for ((known, record), readable) in known.iter_mut().zip(bytes.chunks_exact(bucket.record_len)).zip(readable) {
        if !readable {
            return Err(Unreadable::Nonsense("its heap profile"));
        }
        let counts = |cycle: usize| {
            let field = |field: usize| u64_at(record, cycle + field).unwrap_or(0);
            Counts { allocs: field(bucket.counts.0), frees: field(bucket.counts.1) }
        };
        let published = counts(active);
        let held_back = (0..FUTURES).map(|nth| counts(future + nth * bucket.cycle_len));
        known.held_back = held_back.fold(Counts::default(), |sum, counts| Counts {
            allocs: sum.allocs.wrapping_add(counts.allocs),
            frees: sum.frees.wrapping_add(counts.frees),
        });
        same &= published == known.published;
        known.published = published;
    }
    Ok(same)
}

/// The first bytes of a bucket, at least `len`, more when they are there.
fn prefix(memory: &ReadMemory<'_>, at: u64, len: usize) -> Result<Option<Vec<u8>>, Unreadable> {
    for len in [FIRST_READ.max(len), len] {
        let mut bytes = vec![0; len];
        if memory(&[Span { addr: at, len }], &mut bytes)? == [true] {
            return Ok(Some(bytes));
        }
    }
    Ok(None)
}

/// The addresses of the calls of a bucket's stack; its first `bytes` have been read.
fn calls(
    memory: &ReadMemory<'_>,
    at: u64,
    begin: usize,
    frames: usize,
    bytes: &[u8],
) -> Result<Option<Vec<u64>>, Unreadable> {
    let read = bytes.get(begin..begin + 8 * frames).map(<[u8]>::to_vec);
    let stack = match read {
        Some(stack) => stack,
        None => {
            let mut stack = vec![0; 8 * frames];
            let span = Span { addr: at.wrapping_add(begin as u64), len: stack.len() };
            if memory(&[span], &mut stack)? != [true] {
                return Ok(None);
            }
            stack
        }
    };
    let returns = stack.chunks_exact(8).filter_map(|word| u64_at(word, 0));
    Ok(Some(returns.map(|address| address.wrapping_sub(1)).collect()))
}

/// How good the estimates of all buckets together are, at a mean of `rate` bytes between samples.
pub fn sampling_of(buckets: impl Iterator<Item = Bucket>, rate: u64) -> Sampling {
    let (mut sum, mut variance, mut samples) = (0.0, 0.0, 0_u64);
    for bucket in buckets {
        let held = bucket.allocs.saturating_sub(bucket.frees);
        let size = bucket.size as f64;
        let probability = if rate <= 1 { 1.0 } else { -(-size / rate as f64).exp_m1() };
        if held > 0 && probability > 0.0 {
            let bytes = size / probability;
            sum += held as f64 * bytes;
            variance += held as f64 * bytes * bytes * (1.0 - probability);
            samples = held.saturating_add(samples);
        }
    }
    let relative_error = if sum > 0.0 { variance.sqrt() / sum } else { 0.0 };
    Sampling { mean_bytes: rate, samples, relative_error, ..Sampling::default() }
}

#[cfg(test)]
mod tests;
