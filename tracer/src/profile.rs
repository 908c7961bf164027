//! `Profile`: what was measured, ready to be presented. The waist of the program.
//!
//! Everything that measures produces one, everything that presents takes one, and neither side knows the other.
//! Plain values: no I/O, no clock.

mod cost;
mod filters;
mod heaps;
mod mapped;
mod memory;
mod process;
pub mod quality;

use std::{
    ops::Range,
    sync::Arc,
    time::{Duration, SystemTime},
};

use self::quality::{Quality, Truncation};
pub use self::{
    cost::Cost,
    filters::Filters,
    heaps::{Heap, Mode, SeenHeap},
    mapped::{MappedKind, MappedValues},
    memory::{Area, Memory, Reason, Runtime, Unexplained},
    process::{Container, End, Language, Parent, Place, Process, ProcessQuality},
};

/// What a profile is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Memory that is held.
    Heap,
    /// Goroutines, at one moment.
    Goroutines,
}

impl Kind {
    /// Where the instruction is that a frame with this [`offset`](Frame::offset) was in: stacks of the heap are made of
    /// return addresses, which are behind the calls, those of goroutines of the calls themselves.
    pub fn offset_of_call(self, offset: u64) -> u64 {
        match self {
            Self::Heap => offset.saturating_sub(1),
            Self::Goroutines => offset,
        }
    }
}

/// What stands for the module of code that a process generated.
pub const JIT: &str = "[jit]";

/// One frame of a symbolized stack. All text is hostile: it comes from the target's files.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Frame {
    /// Demangled name of the function; `None` when the address could not be symbolized.
    pub function: Option<String>,
    /// The whole name of the function where people read a shorter one: with the type arguments of a generic function of Go,
    /// as Go writes it to its own profiles.
    pub symbol: Option<Box<str>>,
    /// Source file.
    pub file: Option<String>,
    /// Line in it, from 1.
    pub line: Option<u32>,
    /// Path of the mapped file (or `[vdso]` and the like) that the address lies in.
    pub module: Option<String>,
    /// Offset of the address in that file; the address itself when there is no module, or it is [`JIT`]. Bytes.
    /// [`Kind::offset_of_call`] tells the call from it.
    pub offset: u64,
    /// Whether the compiler inlined this function into the frame next to it on the root side.
    pub inlined: bool,
}

/// The frames of one stack, root first. Kept as one shared list per address, because a hundred thousand stacks are made
/// of a few thousand addresses.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Frames(Arc<[Arc<[Frame]>]>);

impl Frames {
    /// Every frame, root first.
    pub fn iter(&self) -> impl DoubleEndedIterator<Item = &Frame> {
        self.0.iter().flat_map(|address| address.iter())
    }

    /// The frames of each address, root first; within an address the inlined functions come last.
    pub fn addresses(&self) -> impl DoubleEndedIterator<Item = &Arc<[Frame]>> {
        self.0.iter()
    }
}

impl FromIterator<Arc<[Frame]>> for Frames {
    /// From the frames of each address, root first; within an address the inlined functions come last.
    fn from_iter<I: IntoIterator<Item = Arc<[Frame]>>>(addresses: I) -> Self {
        Self(addresses.into_iter().collect())
    }
}

impl From<Vec<Frame>> for Frames {
    fn from(frames: Vec<Frame>) -> Self {
        Self(Arc::new([frames.into()]))
    }
}

/// What one stack holds.
#[derive(Clone, Debug, PartialEq)]
pub struct StackEntry {
    /// Process that the stack belongs to.
    pub pid: u32,
    /// Its [`image`](Process::image): an id may be used again.
    pub image: u32,
    /// What it allocated from.
    pub heap: Heap,
    /// Frames, root first, the direct caller of the allocator last.
    pub frames: Frames,
    /// What was allocated and is still held.
    pub values: Values,
    /// Bytes of `values.outstanding_bytes` that a lost free may have ended.
    pub uncertain_bytes: u64,
    /// Age of the oldest block that is held. `None` when none is.
    pub oldest: Option<Duration>,
    /// How what is held was estimated; `None` where it was counted, or the error is not known by stack.
    pub estimate: Option<Estimate>,
    /// How the held bytes change. `None` when that was not followed.
    pub growth: Option<Growth>,
    /// Bytes and blocks that it held when its process ended, where others live on: those are not outstanding any more.
    pub at_end: Option<(u64, u64)>,
    /// How many of the processes that its process [stands for](Process::count) held something by it.
    pub holders: u64,
    /// Why its frames do not begin at the root of the thread; `None` when they do.
    pub truncated: Option<Truncation>,
}

/// How an amount was estimated from samples.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Estimate {
    /// Samples that are held.
    pub samples: u64,
    /// Variance of the estimated bytes that are held, bytes squared.
    pub variance: f64,
}

impl Estimate {
    /// Takes what was estimated by other samples to it.
    pub fn absorb(&mut self, other: &Self) {
        self.samples += other.samples;
        self.variance += other.variance;
    }

    /// The same for what may have been counted instead.
    pub fn absorb_into(one: &mut Option<Self>, other: Option<Self>) {
        match (one.as_mut(), other) {
            (Some(one), Some(other)) => one.absorb(&other),
            _ => *one = one.or(other),
        }
    }

    /// One standard deviation of the bytes that are held, as far as samples tell: as of one more than there are, without which
    /// those that are few would seem surer than they are.
    pub fn standard_error(&self) -> f64 {
        let samples = self.samples.max(1) as f64;
        (self.variance * (samples + 1.0) / samples).sqrt()
    }
}

/// How something that is held changes with time.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Growth {
    /// What can be said for sure.
    pub trend: Trend,
    /// How fast, as well as it can be told; `None` when there is too little to tell.
    pub rate: Option<Rate>,
}

/// A change that differs from 0 beyond its error, or not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trend {
    /// It becomes more, and still does.
    Growing,
    /// It becomes less, and still does.
    Shrinking,
    /// It stays, or comes and goes.
    Steady,
    /// It may be growing; more time will show.
    TooEarly,
}

impl Trend {
    /// Its name in reports.
    pub fn name(self) -> &'static str {
        match self {
            Self::Growing => "growing",
            Self::Shrinking => "shrinking",
            Self::Steady => "steady",
            Self::TooEarly => "too-early",
        }
    }
}

/// Bytes per second, negative when they become less.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rate {
    /// The slope.
    pub per_second: f64,
    /// Its standard error: the truth is within twice of it in 95 of 100 cases.
    pub error: f64,
}

impl Rate {
    /// How many errors it must differ from 0 by to be called growth.
    pub const CERTAIN: f64 = 3.0;
    /// And to be no reason to wait.
    pub const DOUBTFUL: f64 = 2.0;

    /// Whether it is above 0 by more than so many errors; `sign`: -1 for below.
    pub fn is_beyond(&self, errors: f64, sign: f64) -> bool {
        sign * self.per_second > errors * self.error
    }
}

/// Goroutines with the same stack, in the same state, created in the same place.
#[derive(Clone, Debug, PartialEq)]
pub struct GoroutineGroup {
    /// Process that they belong to.
    pub pid: u32,
    /// The library whose Go runtime they belong to; `None` for that of the executable. Hostile text.
    pub library: Option<Arc<str>>,
    /// Frames, root first. Of running goroutines only the function that they began with is known.
    pub frames: Frames,
    /// How many they are.
    pub count: u64,
    /// What they do: `waiting`, `runnable`, `running`, `syscall` and the like.
    pub state: &'static str,
    /// What they wait for, in the words of the Go runtime: hostile text.
    pub wait_reason: Option<String>,
    /// How long the one that has waited longest has waited at most. Of a goroutine that its garbage collector meets waiting
    /// for the first time, the runtime notes the time of the collection before: at the real time or earlier. `None` when
    /// there have not been two collections.
    pub longest_wait: Option<Duration>,
    /// The `go` statement that created them; `None` for the first goroutine of a process.
    pub created_by: Option<Frame>,
    /// The channels, mutexes and the like that they wait on; `None` when they do not, or when it is not known of all.
    pub waits_on: Option<WaitsOn>,
    /// How they have grown; `None` when they were looked at only once.
    pub growth: Option<GoroutineGrowth>,
    /// Whether they look like a leak, or the Go runtime itself calls them leaked.
    pub suspected_leak: bool,
    /// Why their frames do not begin at the root, so that those below may differ; `None` when they do.
    pub truncated: Option<Truncation>,
}

/// What all goroutines of a group wait on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WaitsOn {
    /// The same channel, or semaphore of a mutex and the like: its address in the process.
    One(u64),
    /// So many different ones.
    Several(u64),
}

/// How a group of goroutines has grown while tracing.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct GoroutineGrowth {
    /// How many they were at the first look at the process: when tracing began, or as soon as a launched one could be read.
    pub first: u64,
    /// How fast they have been growing of late, goroutines per second. Negative when they shrink; `None` when the trace is
    /// too short to tell.
    pub per_second: Option<f64>,
    /// Whether they have only grown, for long enough to say so, and still do.
    pub only_grows: bool,
}

/// Amounts of one stack, or summed over all.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Values {
    /// Bytes held at the end.
    pub outstanding_bytes: u64,
    /// Blocks held at the end.
    pub outstanding_blocks: u64,
    /// Bytes allocated since tracing began, freed or not.
    pub allocated_bytes: u64,
    /// Blocks allocated since tracing began, freed or not.
    pub allocated_blocks: u64,
    /// Blocks of `allocated_blocks` that were freed.
    pub freed_blocks: u64,
}

impl std::ops::AddAssign for Values {
    fn add_assign(&mut self, other: Self) {
        // Sizes are what the target asked for, which can be more than there is; counts may be what it says itself.
        self.outstanding_bytes = self.outstanding_bytes.saturating_add(other.outstanding_bytes);
        self.outstanding_blocks = self.outstanding_blocks.saturating_add(other.outstanding_blocks);
        self.allocated_bytes = self.allocated_bytes.saturating_add(other.allocated_bytes);
        self.allocated_blocks = self.allocated_blocks.saturating_add(other.allocated_blocks);
        self.freed_blocks = self.freed_blocks.saturating_add(other.freed_blocks);
    }
}

/// What one stack has mapped.
#[derive(Clone, Debug, PartialEq)]
pub struct MappedStack {
    /// Process that it belongs to.
    pub pid: u32,
    /// Its [`image`](Process::image).
    pub image: u32,
    /// What it is.
    pub kind: MappedKind,
    /// Whether an allocator has mapped it that is recorded: what of it is held is told of its heap, and not here again.
    pub by_allocator: bool,
    /// Frames, root first; the caller of the kernel last.
    pub frames: Frames,
    /// Amounts.
    pub values: MappedValues,
    /// How many bytes of them are resident, or swapped out, those that are only reserved included; `None` when that could not be read.
    pub resident: Option<u64>,
    /// Age of the oldest range.
    pub oldest: Option<Duration>,
}

impl MappedStack {
    /// Bytes in memory, as far as that is known: else it may be all that is mapped.
    pub fn memory(&self) -> u64 {
        self.resident.unwrap_or(self.values.bytes)
    }
}

/// Everything that was mapped.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Mappings {
    /// By stack, the one with most in memory first.
    pub stacks: Vec<MappedStack>,
}

impl Mappings {
    /// What programs have mapped, and no allocator.
    pub fn own(&self) -> impl Iterator<Item = &MappedStack> {
        self.stacks.iter().filter(|stack| !stack.by_allocator)
    }

    /// Sums of what programs have mapped, or allocators; how much of it is resident, as far as that is known.
    pub fn totals(&self, by_allocator: bool) -> (MappedValues, Option<u64>) {
        let mut totals = MappedValues::default();
        let mut resident = Some(0u64);
        for stack in self.stacks.iter().filter(|stack| stack.by_allocator == by_allocator) {
            totals += stack.values;
            if stack.values.bytes > 0 || stack.resident.is_some() {
                resident = resident.zip(stack.resident).map(|(sum, bytes)| sum.saturating_add(bytes));
            }
        }
        (totals, resident)
    }
}

/// Everything that one trace found.
#[derive(Clone, Debug, PartialEq)]
pub struct Profile {
    /// What it is about.
    pub kind: Kind,
    /// When tracing began.
    pub started: SystemTime,
    /// How long it lasted.
    pub duration: Duration,
    /// How the numbers came about, as a whole: estimates if one of the heaps is estimated. Each heap of
    /// [`processes`](Self::processes) has its own.
    pub mode: Mode,
    /// What it leaves out because it was asked to.
    pub filters: Filters,
    /// The processes, those that were alive at the end first.
    pub processes: Vec<Process>,
    /// What each stack holds, most outstanding bytes first. Those that hold nothing any more are there too.
    pub stacks: Vec<StackEntry>,
    /// What processes have mapped themselves; `None` when that was not recorded. No part of it is in `stacks`.
    pub mappings: Option<Mappings>,
    /// Goroutines, largest group first; of a heap those of Go processes. Groups of the first look that
    /// are gone are there too.
    pub goroutines: Vec<GoroutineGroup>,
    /// How fast all of them together have been growing of late, goroutines per second, as each group's
    /// [`per_second`](GoroutineGrowth::per_second); `None` when that cannot be told.
    pub goroutine_growth: Option<f64>,
    /// How far it can be trusted.
    pub quality: Quality,
    /// What tracing has cost so far; `None` when that was not measured.
    pub cost: Option<Cost>,
    /// What stacks were unwound by, file by file.
    pub unwind_tables: Vec<UnwindTable>,
    /// The files that frames lie in, by path.
    pub modules: Vec<Module>,
}

/// A file that frames lie in. Two files have one path when one was replaced, or when they are in different containers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Module {
    /// Path, as the process sees it: hostile text.
    pub path: String,
    /// What tells this build from others: in hexadecimal as linkers leave it, else as Go does. Hostile text.
    pub build_id: Option<String>,
    /// The parts of the file that are loaded as code, bytes.
    pub code: Vec<Range<u64>>,
}

/// The unwinding table of one file.
#[derive(Clone, Debug, PartialEq)]
pub struct UnwindTable {
    /// Path of the file: hostile text.
    pub path: String,
    /// Rows of the table.
    pub rows: usize,
    /// Bytes that it added in the kernel. Rules that an earlier table has too are shared.
    pub bytes: usize,
    /// How long it took to read the file and to compile the table.
    pub build_time: Duration,
    /// Bytes of code in the file.
    pub code_bytes: u64,
    /// Bytes of those at which no rule says who called.
    pub uncovered_bytes: u64,
    /// Bytes of code whose rules come from the code itself: no unwind information describes them.
    pub synthesized_bytes: u64,
    /// Why there is no table, or a part of it only.
    pub problem: Option<String>,
}

impl Profile {
    /// Sums over all stacks; there is no other source of totals, so they cannot differ.
    pub fn totals(&self) -> Values {
        let mut totals = Values::default();
        for stack in &self.stacks {
            totals += stack.values;
        }
        totals
    }

    /// Whether no process was left at the end. What it did not free by then is what is outstanding.
    pub fn has_ended(&self) -> bool {
        !self.processes.is_empty() && self.processes.iter().all(|process| process.ended.is_some())
    }

    /// How many processes there were.
    pub fn process_count(&self) -> u64 {
        self.processes.iter().map(|process| process.count).sum()
    }

    /// Bytes and blocks that processes held when they ended, while others live on.
    pub fn held_at_end(&self) -> (u64, u64) {
        let held = self.stacks.iter().filter_map(|stack| stack.at_end);
        held.fold((0, 0), |sum: (u64, u64), held| (sum.0.saturating_add(held.0), sum.1.saturating_add(held.1)))
    }

    /// How many goroutines there are.
    pub fn goroutine_count(&self) -> u64 {
        self.goroutines.iter().map(|group| group.count).sum()
    }

    /// Whether the processes have heaps of several kinds, or of several libraries.
    pub fn has_several_heaps(&self) -> bool {
        let seen = self.processes.iter().flat_map(|process| &process.heaps).map(|seen| &seen.heap);
        let mut heaps = seen.chain(self.stacks.iter().map(|stack| &stack.heap));
        heaps.next().is_some_and(|first| heaps.any(|heap| heap != first))
    }

    /// How many goroutines there were at the first look; `None` when they were looked at only once.
    pub fn first_goroutine_count(&self) -> Option<u64> {
        let mut growths = self.goroutines.iter().filter_map(|group| group.growth).peekable();
        growths.peek().is_some().then(|| growths.map(|growth| growth.first).sum())
    }

    /// Counts the stacks of goroutines that do not reach the root, of all and of their processes.
    pub fn count_cut_goroutines(&mut self) {
        let cut = self.goroutines.iter().filter(|group| group.count > 0);
        let cut: Vec<(u32, Truncation)> = cut.filter_map(|group| Some((group.pid, group.truncated?))).collect();
        for (pid, _) in &cut {
            if let Some(process) = self.processes.iter_mut().rev().find(|process| process.pid == *pid) {
                process.quality.truncated_stacks += 1;
            }
        }
        self.quality.add_truncated(cut.into_iter().map(|(_, reason)| reason), "cut stacks of goroutines");
    }

    /// The process with this id: of several the one that lives, else the last.
    pub fn process_of_pid(&self, pid: u32) -> Option<&Process> {
        let with_id = || self.processes.iter().filter(|process| process.pid == pid);
        with_id().find(|process| process.ended.is_none()).or_else(|| with_id().next_back())
    }
}
