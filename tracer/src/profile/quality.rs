//! `Quality`: every way in which a profile can be incomplete, as typed facts that travel with it.

use std::{collections::BTreeMap, sync::Arc};

use tracer_ebpf::end;

/// Why a stack ends before the thread's root.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Truncation {
    /// It has more frames than a record holds.
    Depth,
    /// An address lies in no known executable mapping.
    NoMapping,
    /// Code without unwind information.
    NoRule,
    /// Stack memory could not be read, or the frames do not go up.
    BadMemory,
    /// Unwind information of a kind that is not supported.
    UnsupportedRule,
    /// A return address is hidden by a probe.
    Trampoline,
    /// Code of a file that was met for the first time, before its unwind information was read.
    UnknownFile,
    /// The mappings were being changed.
    Busy,
    /// It went through a file that was met for the first time, and more memory than is kept of a stack there.
    LongRest,
    /// One that this version does not know.
    Unknown,
}

impl Truncation {
    /// The reason that the BPF side gave, one of [`end`]; `None` for a complete stack.
    pub fn of(end: u32) -> Option<Self> {
        Some(match end {
            end::ROOT => return None,
            end::DEPTH => Self::Depth,
            end::NO_MAPPING => Self::NoMapping,
            end::NO_RULE => Self::NoRule,
            end::BAD_MEMORY => Self::BadMemory,
            end::UNSUPPORTED_RULE => Self::UnsupportedRule,
            end::TRAMPOLINE => Self::Trampoline,
            end::UNKNOWN_FILE => Self::UnknownFile,
            end::BUSY => Self::Busy,
            end::LONG_REST => Self::LongRest,
            _ => Self::Unknown,
        })
    }

    /// Its name in saved profiles.
    pub fn name(self) -> &'static str {
        match self {
            Self::Depth => "depth",
            Self::NoMapping => "no_mapping",
            Self::NoRule => "no_rule",
            Self::BadMemory => "bad_memory",
            Self::UnsupportedRule => "unsupported_rule",
            Self::Trampoline => "trampoline",
            Self::UnknownFile => "unknown_file",
            Self::Busy => "busy",
            Self::LongRest => "long_rest",
            Self::Unknown => "unknown",
        }
    }

    /// It in words.
    pub fn words(self) -> &'static str {
        match self {
            Self::Depth => "more than 256 frames",
            Self::NoMapping => "an address outside all known code",
            Self::NoRule => "code without unwind information",
            Self::BadMemory => "a frame that leads to no readable memory further up the stack",
            Self::UnsupportedRule => "unwind information of an unsupported kind",
            Self::Trampoline => "a return address hidden by a probe",
            Self::UnknownFile => "code of a file that was just mapped for the first time",
            Self::Busy => "mappings that were being changed",
            Self::LongRest => "large frames above code of a file that was just mapped for the first time",
            Self::Unknown => "an unknown reason",
        }
    }
}

/// How estimates came about.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Sampling {
    /// Mean of bytes between samples.
    pub mean_bytes: u64,
    /// Samples that are held.
    pub samples: u64,
    /// One standard deviation of all bytes that are held, as a share of them.
    pub relative_error: f64,
}

/// The garbage collections of one Go heap, counted since its process began.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Collections {
    /// The process.
    pub pid: u32,
    /// The library whose Go runtime it is; `None` for that of the executable. Hostile text.
    pub library: Option<Arc<str>>,
    /// Those that had come to their end when tracing began.
    pub at_begin: u64,
    /// And at the end.
    pub at_end: u64,
    /// Whether the numbers are those of the runtime's own profile, which is as of a collection, and not of the end.
    pub own_profile: bool,
}

impl Collections {
    /// How many came in the time.
    pub fn while_traced(&self) -> u64 {
        // The runtime's count goes round.
        self.at_end.wrapping_sub(self.at_begin) & (u64::MAX >> 33)
    }
}

/// How far a profile can be trusted. All counts are 0 in a perfect trace, `unmatched_frees` and the bases excepted.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Quality {
    /// Allocations that could not be recorded (ring buffer full).
    pub lost_allocs: u64,
    /// Allocations that there was no room for: as many blocks as tracer's memory holds were outstanding.
    pub refused_allocs: u64,
    /// Sampled allocations that there was no room for: as many samples as the kernel remembers were held.
    pub refused_samples: u64,
    /// Frees that could not be recorded. Their addresses were kept apart, so most of them still end their block.
    pub lost_frees: u64,
    /// Ends of threads and processes, and libraries that were loaded, that could not be recorded.
    pub lost_moments: u64,
    /// Processes that were started by traced ones and could not be followed. Nothing of them is shown.
    pub unfollowed_processes: u64,
    /// Events of processes that were over before it could be seen whether they are to be traced. Nothing of them is shown.
    pub undecided_events: u64,
    /// Frees of blocks that are not known: from before the attach, or outside the size filter. Not an error.
    pub unmatched_frees: u64,
    /// The same in processes that were forked while they were traced: mostly of blocks that they have from their parents.
    pub inherited_frees: u64,
    /// Blocks whose address was handed out again although no free of it was seen, or that a free of what lies right below has ended.
    pub missed_frees: u64,
    /// Changes of what programs have mapped themselves that could not be recorded: where that is told, it may be wrong.
    pub lost_remappings: u64,
    /// Those that were recorded: with them the base of the former.
    pub recorded_remappings: u64,
    /// Files that were written to after they had been mapped: what is in them does not name what ran.
    pub rewritten_files: u64,
    /// Stacks that end before the thread's root, by the reason. No entry is 0.
    pub truncated: BTreeMap<Truncation, u64>,
    /// Outstanding bytes that a lost free may have ended.
    pub uncertain_bytes: u64,
    /// Outstanding bytes whose stack is not known.
    pub unknown_stack_bytes: u64,
    /// Calls into the allocator that could not be followed (too many threads, too deep).
    pub untracked_calls: u64,
    /// Records that the tracer did not understand: a bug in it.
    pub unknown_records: u64,
    /// How estimates came about; `None` when all numbers are counts.
    pub sampling: Option<Sampling>,
    /// Cycles of a Go garbage collector in which not all sampled objects were looked at: what ended then may still be shown,
    /// if its place was given to another object at once. A note tells of them.
    pub missed_cycles: u64,
    /// Cycles of Go garbage collectors altogether.
    pub cycles: u64,
    /// The same of each Go heap.
    pub collections: Vec<Collections>,
    /// Go heaps of which what is shown may be garbage: no collection has come that would tell.
    pub uncollected_heaps: u64,
    /// Sampled objects of which it is not known whether they are still alive. They are shown.
    pub undecided_samples: u64,
    /// Sampled objects whose address did not come to be known. They are not shown.
    pub unresolved_samples: u64,
    /// Samples of all Go heaps, also of those that have ended and are not shown.
    pub all_samples: u64,
    /// Bytes of new memory of processes of which not enough is explained: those in which no recorded block has been.
    pub unexplained_bytes: u64,
    /// New memory of those processes: the base of the former.
    pub fresh_bytes: u64,
    /// Times that a process ran without its probes, or as a program that cannot be probed. Notes tell of each.
    pub unseen_spans: u64,
    /// Go heaps that are not seen, or not in full. Notes tell of each.
    pub unseen_heaps: u64,
    /// Processes of which no allocation was seen.
    pub silent_targets: u64,
    /// Processes altogether: the base of the former.
    pub targets: u64,
    /// Events that were recorded: the base that losses are compared with.
    pub recorded_events: u64,
    /// Bytes that are held in all: the base of those of them that are not certain.
    pub outstanding_bytes: u64,
    /// What else the reader should know, as sentences.
    pub notes: Vec<String>,
}

/// What is missing from a profile.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Missing {
    /// Allocations of a process of which none was seen.
    AllAllocations,
    /// What new memory is for.
    Memory,
    /// All that a process did for some time.
    Spans,
    /// Go heaps, or parts of them.
    Heaps,
    /// Processes that traced ones have started.
    Processes,
    /// Allocations.
    Allocations,
    /// Memory for more blocks.
    Room,
    /// The same for more samples.
    SampleRoom,
    /// Frees.
    Frees,
    /// Ends of threads and processes, and libraries that were loaded.
    Moments,
    /// Events of processes that may be none of the trace.
    Undecided,
    /// Calls of the allocator that could not be followed.
    Calls,
    /// Records that make no sense.
    Records,
    /// Changes of what programs have mapped themselves.
    Remappings,
    /// Frees that a later allocation shows.
    UnseenFrees,
    /// Whether bytes are still held.
    Certainty,
    /// Stacks of bytes that are held.
    Stacks,
    /// Ends of stacks.
    Roots,
    /// Files that are as they were when they were mapped.
    Files,
    /// Addresses of sampled objects.
    Samples,
    /// Whether sampled objects are still alive.
    Ends,
    /// Cycles of Go garbage collectors.
    Cycles,
    /// Any cycle of the garbage collector of a Go heap.
    AllCycles,
}

impl Missing {
    /// Its name in saved profiles.
    pub fn name(self) -> &'static str {
        match self {
            Self::AllAllocations => "silent_targets",
            Self::Memory => "unexplained_bytes",
            Self::Spans => "unseen_spans",
            Self::Heaps => "unseen_heaps",
            Self::Processes => "unfollowed_processes",
            Self::Allocations => "lost_allocs",
            Self::Room => "refused_allocs",
            Self::SampleRoom => "refused_samples",
            Self::Frees => "lost_frees",
            Self::Moments => "lost_moments",
            Self::Undecided => "undecided_events",
            Self::Calls => "untracked_calls",
            Self::Records => "unknown_records",
            Self::Remappings => "lost_remappings",
            Self::UnseenFrees => "missed_frees",
            Self::Certainty => "uncertain_bytes",
            Self::Stacks => "unknown_stack_bytes",
            Self::Roots => "truncated_stacks",
            Self::Files => "rewritten_files",
            Self::Samples => "unresolved_samples",
            Self::Ends => "undecided_samples",
            Self::Cycles => "missed_cycles",
            Self::AllCycles => "uncollected_heaps",
        }
    }

    /// Whether allocations may be missing from the profile, so that it does not hold every one.
    pub fn hides_allocations(self) -> bool {
        match self {
            Self::AllAllocations
            | Self::Memory
            | Self::Spans
            | Self::Heaps
            | Self::Processes
            | Self::Allocations
            | Self::Room
            | Self::SampleRoom
            | Self::Undecided
            | Self::Calls
            | Self::Records
            | Self::Samples => true,
            Self::Moments
            | Self::Remappings
            | Self::Frees
            | Self::UnseenFrees
            | Self::Certainty
            | Self::Stacks
            | Self::Roots
            | Self::Files
            | Self::Ends
            | Self::Cycles
            | Self::AllCycles => false,
        }
    }
}

/// One way in which a profile is not complete.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Gap {
    /// What is missing.
    pub what: Missing,
    /// How much of it, more than 0.
    pub amount: u64,
    /// What that is a part of; 0 where nothing is comparable.
    pub of: u64,
    /// The share of `of` above which the exit status says so; `None` when it never does.
    tolerated: Option<f64>,
}

impl Gap {
    /// Whether so much is missing that the exit status says so.
    pub fn is_beyond_threshold(&self) -> bool {
        self.tolerated.is_some_and(|share| self.amount as f64 > self.of as f64 * share)
    }
}

/// Share of lost events, or of uncertain bytes, above which a trace is reported as incomplete by the exit status.
pub const INCOMPLETE_SHARE: f64 = 0.001;

/// The same of changes of mappings, of which there are few.
const INCOMPLETE_CHANGES: f64 = 0.01;
/// The same for samples that are not resolved or not decided, of all that are held: chance makes more of their numbers anyway.
const INCOMPLETE_SAMPLES: f64 = 0.05;
/// Share of the cycles of Go garbage collectors that need not have been looked at in full.
const INCOMPLETE_CYCLES: f64 = 0.25;
/// Share of the processes of which nothing may have been seen: not all of them.
const SILENT_TARGETS: f64 = 0.999;

impl Quality {
    /// Everything that is missing, the worst first: the one list that decides whether a profile is complete, what reports say
    /// of it, and the exit status.
    pub fn gaps(&self) -> Vec<Gap> {
        let q = self;
        let events =
            q.recorded_events + q.lost_allocs + q.lost_frees + q.lost_moments + q.untracked_calls + q.unknown_records;
        let samples = q.sampling.map_or(0, |sampling| sampling.samples);
        // Few of them are told by a note only.
        let cycles = if q.missed_cycles as f64 > q.cycles as f64 * INCOMPLETE_CYCLES { q.missed_cycles } else { 0 };
        let (share, of_samples) = (Some(INCOMPLETE_SHARE), Some(INCOMPLETE_SAMPLES));
        let all = [
            (Missing::AllAllocations, q.silent_targets, q.targets, Some(SILENT_TARGETS)),
            // What need not be explained is none of it.
            (Missing::Memory, q.unexplained_bytes, q.fresh_bytes, Some(0.0)),
            (Missing::Spans, q.unseen_spans, 0, Some(0.0)),
            (Missing::Heaps, q.unseen_heaps, 0, Some(0.0)),
            (Missing::Processes, q.unfollowed_processes, 0, Some(0.0)),
            (Missing::Allocations, q.lost_allocs, events, share),
            (Missing::Room, q.refused_allocs, q.recorded_events, share),
            (Missing::SampleRoom, q.refused_samples, q.recorded_events + q.refused_samples, share),
            (Missing::Frees, q.lost_frees, events, share),
            (Missing::Certainty, q.uncertain_bytes, q.outstanding_bytes, share),
            (Missing::Samples, q.unresolved_samples, samples.max(q.all_samples) + q.unresolved_samples, of_samples),
            (Missing::Ends, q.undecided_samples, samples, of_samples),
            (Missing::AllCycles, q.uncollected_heaps, 0, Some(0.0)),
            (Missing::Cycles, cycles, q.cycles, Some(INCOMPLETE_CYCLES)),
            (Missing::Roots, q.truncated_stacks(), 0, None),
            (Missing::Files, q.rewritten_files, 0, None),
            (Missing::UnseenFrees, q.missed_frees, q.recorded_events, share),
            (Missing::Stacks, q.unknown_stack_bytes, q.outstanding_bytes, share),
            (Missing::Calls, q.untracked_calls, events, share),
            (Missing::Undecided, q.undecided_events, q.recorded_events + q.undecided_events, share),
            (Missing::Moments, q.lost_moments, events, share),
            (Missing::Records, q.unknown_records, events, share),
            (
                Missing::Remappings,
                q.lost_remappings,
                q.recorded_remappings + q.lost_remappings,
                Some(INCOMPLETE_CHANGES),
            ),
        ];
        let gaps = all.into_iter().map(|(what, amount, of, tolerated)| Gap { what, amount, of, tolerated });
        gaps.filter(|gap| gap.amount > 0).collect()
    }

    /// Whether nothing at all is missing.
    pub fn complete(&self) -> bool {
        self.gaps().is_empty()
    }

    /// Whether so much is missing that the exit status says so.
    pub fn is_beyond_threshold(&self) -> bool {
        self.gaps().iter().any(Gap::is_beyond_threshold)
    }

    /// Whether every allocation is in the profile, or stood a chance to be where they are sampled.
    pub fn has_every_allocation(&self) -> bool {
        !self.gaps().iter().any(|gap| gap.what.hides_allocations())
    }

    /// Counts stacks that end before the root for these reasons, and notes how many do for each, as those of `what`.
    pub fn add_truncated(&mut self, reasons: impl Iterator<Item = Truncation>, what: &str) {
        let mut truncated: BTreeMap<Truncation, u64> = BTreeMap::new();
        for reason in reasons {
            *truncated.entry(reason).or_default() += 1;
        }
        for (reason, count) in truncated {
            self.notes.push(format!("{count} of the {what}: {}", reason.words()));
            *self.truncated.entry(reason).or_default() += count;
        }
    }

    /// Stacks that end before the thread's root.
    pub fn truncated_stacks(&self) -> u64 {
        self.truncated.values().sum()
    }
}

#[cfg(test)]
mod tests;
