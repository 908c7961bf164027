//! All goroutines of a process, grouped by stack and state, read from its memory while it runs.
//!
//! The runtime's own list (`allgs`) leads to the descriptors, those to where each goroutine stopped. Goroutines go on
//! while they are read: a descriptor is read again after the stack, and what has moved in between is tried again. One that
//! runs all the time has no stack that could be read; it is told as running.

mod descriptor;
mod list;

use std::sync::Arc;

use hashbrown::HashMap;

use self::{descriptor::Descriptor, list::list};
pub use self::{descriptor::State, list::stack_bytes};
use super::{
    ReadMemory, Runtime, Unreadable,
    bytes::u64_at,
    stack::{Stop, Walker, Window},
    waits::{self, Objects},
};
use crate::{
    process::memory::Span,
    profile::{WaitsOn, quality::Truncation},
};

/// Descriptors that are looked at together.
const BATCH: usize = 2048;
/// Bytes of a stack that are read at first. Most goroutines wait with less than that in use.
const FIRST_READ: u64 = 1024;
/// Bytes of a stack that are read when that was not enough.
const NEXT_READ: u64 = 4096;
/// Times that goroutines are tried which moved while they were read.
const ROUNDS: usize = 6;
/// Most addresses in all groups together: 128 MiB of them.
const MAX_ADDRESSES: usize = 1 << 24;

/// Goroutines with the same stack in the same state, created in the same place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Group {
    /// What they do.
    pub state: State,
    /// Addresses of the calls on their stack, the leaf first; that of the function they began with when they run.
    pub calls: Vec<u64>,
    /// Why the stack ends before the root, if it does.
    pub truncation: Option<Truncation>,
    /// Address of the `go` statement that created them; 0 for the first goroutine.
    pub created: u64,
    /// How many they are.
    pub count: u64,
    /// Earliest time at which one of them can have begun to wait, nanoseconds of the system's monotonic clock: the last
    /// garbage collection that had not met it waiting (`waitsince`). `None` when the runtime has not noted any.
    pub waiting_since: Option<u64>,
    /// The channels, mutexes and the like that they wait on. `None` when that of one of them is not known.
    pub waits_on: Option<WaitsOn>,
}

impl Group {
    /// What it has in common with the group of the same stack, state and creator of another moment, and with no other.
    pub fn key(&self) -> Box<[u64]> {
        key(self.state, self.created, self.truncation, &self.calls).into()
    }
}

/// What was found.
#[derive(Clone, Debug, Default)]
pub struct Goroutines {
    /// By number, largest first.
    pub groups: Vec<Group>,
    /// Goroutines that belong to the runtime and are in no group.
    pub system: u64,
    /// Goroutines in groups without a stack, because they ran or moved whenever they were looked at.
    pub running: u64,
    /// Descriptors that made no sense and are in no group.
    pub unreadable: u64,
    /// Goroutines in groups without a stack, because too many differ.
    pub too_many: u64,
}

/// Reads all goroutines. `pause` is called before those are tried again that moved.
///
/// # Errors
/// Memory cannot be read, or is not what it should be.
pub fn read(runtime: &Runtime, memory: &ReadMemory<'_>, pause: &dyn Fn()) -> Result<Goroutines, Unreadable> {
    read_with(runtime, &[], memory, pause)
}

/// The same of a runtime that has loaded plugins, whose code its goroutines run.
///
/// # Errors
/// As [`read`].
pub fn read_with(
    runtime: &Runtime,
    plugins: &[Arc<Runtime>],
    memory: &ReadMemory<'_>,
    pause: &dyn Fn(),
) -> Result<Goroutines, Unreadable> {
    let modules: Vec<&Runtime> = std::iter::once(runtime).chain(plugins.iter().map(|plugin| &**plugin)).collect();
    let mut reader = Reader {
        runtime,
        memory,
        walker: Walker::new(modules.clone()),
        modules,
        starts: HashMap::new(),
        found: HashMap::new(),
        objects: Vec::new(),
        addresses: 0,
        kept: 0,
        goroutines: Goroutines::default(),
    };
    let mut left = list(runtime, memory)?;
    for round in 0..ROUNDS {
        if left.is_empty() {
            break;
        }
        if round > 0 {
            pause();
        }
        let mut moved = Vec::new();
        for batch in left.chunks(BATCH) {
            reader.read(batch, round + 1 == ROUNDS, &mut moved)?;
        }
        left = moved;
    }
    Ok(reader.finish())
}

/// Whether a goroutine belongs to the runtime, by the function that it began with (`isSystemGoroutine`).
#[derive(Clone, Copy, PartialEq, Eq)]
enum Owner {
    Program,
    Runtime,
    /// The runtime, unless it has called into the program: finalizers and cleanups.
    Calls,
}

fn owner(start: &str) -> Owner {
    match start {
        "runtime.main" | "runtime.corostart" | "runtime.handleAsyncEvent" => Owner::Program,
        "runtime.runfinq" | "runtime.runFinalizers" | "runtime.runCleanups" => Owner::Calls,
        _ if start.starts_with("runtime.") => Owner::Runtime,
        _ => Owner::Program,
    }
}

struct Reader<'a> {
    runtime: &'a Runtime,
    /// That, and its plugins.
    modules: Vec<&'a Runtime>,
    memory: &'a ReadMemory<'a>,
    walker: Walker<'a>,
    /// By the address of a goroutine's first function.
    starts: HashMap<u64, Owner>,
    /// Indexes of groups, by state, place of creation, end and calls.
    found: HashMap<Box<[u64]>, usize>,
    /// What the goroutines of each group wait on, by the group's index.
    objects: Vec<Objects>,
    addresses: usize,
    /// How many different objects all groups have together.
    kept: usize,
    goroutines: Goroutines,
}

impl Reader<'_> {
    /// Reads the goroutines whose descriptors are at `addresses`. Those that moved go to `moved`, unless it is the `last`
    /// time that they are tried.
    fn read(&mut self, addresses: &[u64], last: bool, moved: &mut Vec<u64>) -> Result<(), Unreadable> {
        let mut alive: Vec<(u64, Descriptor)> = Vec::with_capacity(addresses.len());
        for (address, descriptor) in addresses.iter().zip(self.descriptors(addresses)?) {
            let Some(descriptor) = descriptor else {
                self.goroutines.unreadable += 1;
                continue;
            };
            if descriptor.is_unused() {
                continue;
            }
            if self.owner(descriptor.start_pc) == Owner::Runtime {
                self.goroutines.system += 1;
            } else {
                alive.push((*address, descriptor));
            }
        }
        let spans: Vec<Span> = alive.iter().map(|(_, descriptor)| first_read(descriptor)).collect();
        let mut bytes = vec![0; spans.iter().map(|span| span.len).sum()];
        let readable = (self.memory)(&spans, &mut bytes)?;
        let mut rest = &bytes[..];
        let mut stacks = Vec::with_capacity(alive.len());
        for (((_, descriptor), span), readable) in alive.iter().zip(&spans).zip(readable) {
            let (stack, behind) = rest.split_at(span.len);
            rest = behind;
            stacks.push(if readable { self.stack(descriptor, span.addr, stack) } else { None });
        }
        let objects = self.objects(&alive)?;
        let places: Vec<u64> = alive.iter().map(|(address, _)| *address).collect();
        let again = self.descriptors(&places)?;
        for ((((address, before), stack), objects), after) in alive.iter().zip(stacks).zip(objects).zip(again) {
            match (stack, after) {
                (Some((calls, end)), Some(after))
                    if after.is_still(before) && (last || !is_torn(end) && objects.is_some()) =>
                {
                    self.add(before, calls, end, &objects.unwrap_or_default());
                }
                (_, Some(after)) if last => self.add_running(&after),
                (_, Some(_)) => moved.push(*address),
                (_, None) => self.goroutines.unreadable += 1,
            }
        }
        Ok(())
    }

    fn descriptors(&self, addresses: &[u64]) -> Result<Vec<Option<Descriptor>>, Unreadable> {
        let g = self.runtime.executable.layout.g;
        let spans: Vec<Span> = addresses.iter().map(|addr| Span { addr: *addr, len: g.size }).collect();
        let mut bytes = vec![0; g.size * spans.len()];
        let readable = (self.memory)(&spans, &mut bytes)?;
        let decode = |(bytes, readable): (&[u8], bool)| {
            Descriptor::decode(bytes, &g).filter(|descriptor| readable && descriptor.makes_sense())
        };
        Ok(bytes.chunks_exact(g.size).zip(readable).map(decode).collect())
    }

    /// What each of some goroutines waits on; empty for those that do not wait, or do not say.
    fn objects(&self, alive: &[(u64, Descriptor)]) -> Result<Vec<Option<Vec<u64>>>, Unreadable> {
        let Some(sudog) = self.runtime.executable.layout.sudog else { return Ok(vec![Some(Vec::new()); alive.len()]) };
        let firsts: Vec<(u64, u64)> =
            alive.iter().map(|(address, descriptor)| (*address, descriptor.waits_with())).collect();
        Ok(waits::objects(&sudog, &firsts, self.memory)?)
    }

    /// The calls on a stack of which `bytes` from `addr` on have been read. `None` when it has none that could be read.
    fn stack(&mut self, descriptor: &Descriptor, addr: u64, bytes: &[u8]) -> Option<(Vec<u64>, Option<Truncation>)> {
        let stop = descriptor.stopped_at()?;
        let window = std::cell::RefCell::new((0, Vec::new()));
        let memory = self.memory;
        let more = |addr: u64| {
            let (begin, bytes) = &mut *window.borrow_mut();
            let known = |begin: u64, bytes: &[u8]| u64_at(bytes, usize::try_from(addr.checked_sub(begin)?).ok()?);
            if let Some(word) = known(*begin, bytes) {
                return Some(word);
            }
            let len = usize::try_from(descriptor.stack.1.checked_sub(addr)?.min(NEXT_READ)).ok()?;
            (*begin, *bytes) = (addr, vec![0; len]);
            if memory(&[Span { addr, len }], bytes).ok()? != [true] {
                bytes.clear();
            }
            known(*begin, bytes)
        };
        let window = Window { addr, bytes, end: descriptor.stack.1, more: &more };
        let mut calls = Vec::new();
        let end = self.walker.walk(stop, &window, &mut calls);
        Some((calls, end))
    }

    fn add(&mut self, descriptor: &Descriptor, calls: Vec<u64>, end: Option<Truncation>, objects: &[u64]) {
        if self.owner(descriptor.start_pc) == Owner::Calls && !self.has_called(&calls) {
            self.goroutines.system += 1;
            return;
        }
        let index = self.count(descriptor, descriptor.state(), calls, end);
        self.kept += self.objects[index].add(objects, self.kept < waits::MAX_KEPT);
    }

    fn add_running(&mut self, descriptor: &Descriptor) {
        if descriptor.is_unused() {
            return;
        }
        if self.owner(descriptor.start_pc) != Owner::Program {
            self.goroutines.system += 1;
            return;
        }
        self.goroutines.running += 1;
        self.count(descriptor, State::Running, vec![descriptor.start_pc], None);
    }

    /// Counts a goroutine; the index of its group.
    fn count(
        &mut self,
        descriptor: &Descriptor,
        state: State,
        mut calls: Vec<u64>,
        mut end: Option<Truncation>,
    ) -> usize {
        let since = Some(descriptor.wait_since)
            .filter(|since| *since != 0 && matches!(state, State::Waiting(_) | State::Leaked(_) | State::Syscall));
        // What creates the first goroutine is no `go` statement.
        let created = if descriptor.id == 1 { 0 } else { descriptor.go_pc.saturating_sub(1) };
        let mut key = key(state, created, end, &calls);
        if !self.found.contains_key(&*key) && self.addresses + key.len() > MAX_ADDRESSES {
            self.goroutines.too_many += 1;
            (calls, end) = (Vec::new(), None);
            key = self::key(state, 0, end, &calls);
        }
        let next = self.goroutines.groups.len();
        let index = match self.found.get(&*key) {
            Some(index) => *index,
            None => {
                self.addresses += key.len();
                self.found.insert(key.into(), next);
                next
            }
        };
        if index == next {
            let (waiting_since, waits_on) = (None, None);
            let group = Group { state, calls, truncation: end, created, count: 0, waiting_since, waits_on };
            self.goroutines.groups.push(group);
            self.objects.push(Objects::default());
        }
        let group = &mut self.goroutines.groups[index];
        group.count += 1;
        group.waiting_since = group.waiting_since.into_iter().chain(since).min();
        index
    }

    fn owner(&mut self, start: u64) -> Owner {
        let modules = &self.modules;
        *self.starts.entry(start).or_insert_with(|| owner(&function(modules, start).unwrap_or_default()))
    }

    /// Whether code of the program is on a stack.
    fn has_called(&self, calls: &[u64]) -> bool {
        let own = |call: &&u64| function(&self.modules, **call).is_some_and(|name| !name.starts_with("runtime."));
        calls.iter().find(own).is_some()
    }

    fn finish(mut self) -> Goroutines {
        for (group, objects) in self.goroutines.groups.iter_mut().zip(&self.objects) {
            group.waits_on = objects.waits_on();
        }
        self.goroutines.groups.sort_by(|a, b| b.count.cmp(&a.count).then_with(|| a.calls.cmp(&b.calls)));
        self.goroutines
    }
}

/// Whether a stack looks as if it had been written to while it was read, by a goroutine that is back where it was.
fn is_torn(end: Option<Truncation>) -> bool {
    matches!(end, Some(Truncation::NoMapping | Truncation::BadMemory))
}

fn function(modules: &[&Runtime], pc: u64) -> Option<String> {
    modules.iter().find_map(|module| {
        let tables = &module.executable.tables;
        Some(tables.name(tables.function(module.text_offset(pc)?)?)?.into_owned())
    })
}

/// The part of a stack that is read at first; nothing when there is none.
fn first_read(descriptor: &Descriptor) -> Span {
    descriptor.stopped_at().map_or(Span { addr: descriptor.stack.0, len: 0 }, |Stop { sp, .. }| Span {
        addr: sp,
        len: FIRST_READ.min(descriptor.stack.1 - sp) as usize,
    })
}

fn key(state: State, created: u64, end: Option<Truncation>, calls: &[u64]) -> Vec<u64> {
    let state = match state {
        State::Waiting(reason) => u64::from(reason),
        State::Leaked(reason) => 1 << 8 | u64::from(reason),
        State::Runnable => 2 << 8,
        State::Running => 3 << 8,
        State::Syscall => 4 << 8,
        State::Preempted => 5 << 8,
    };
    let mut key = Vec::with_capacity(calls.len() + 3);
    key.extend([state, created, end.map_or(0, |end| 1 + end as u64)]);
    key.extend(calls);
    key
}
