//! `Quality`: every way in which a profile can be incomplete, as typed facts that travel with it.

use std::collections::BTreeMap;

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
            Self::Unknown => "unknown",
        }
    }

    /// It in words.
    pub fn words(self) -> &'static str {
        match self {
            Self::Depth => "more than 256 frames",
            Self::NoMapping => "an address outside all known code",
            Self::NoRule => "code without unwind information",
            Self::BadMemory => "stack memory that could not be read",
            Self::UnsupportedRule => "unwind information of an unsupported kind",
            Self::Trampoline => "a return address hidden by a probe",
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

/// How far a profile can be trusted. All counts are 0 in a perfect trace, `unmatched_frees` excepted.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Quality {
    /// Allocations that could not be recorded (ring buffer full).
    pub lost_allocs: u64,
    /// Frees that could not be recorded. Their addresses were kept apart, so most of them still end their block.
    pub lost_frees: u64,
    /// Frees of blocks that are not known: from before the attach, or outside the size filter. Not an error.
    pub unmatched_frees: u64,
    /// Blocks whose address was handed out again although no free of it was seen.
    pub missed_frees: u64,
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
    /// Sampled objects of which it is not known whether they are still alive. They are shown.
    pub undecided_samples: u64,
    /// Sampled objects whose address did not come to be known. They are not shown.
    pub unresolved_samples: u64,
    /// Events that were recorded: the base that losses are compared with.
    pub recorded_events: u64,
    /// What else the reader should know, as sentences.
    pub notes: Vec<String>,
}

/// Share of lost events, or of uncertain bytes, above which a trace is reported as incomplete by the exit status.
pub const INCOMPLETE_SHARE: f64 = 0.001;

/// The same for samples that are not resolved or not decided, of all that are held.
const INCOMPLETE_SAMPLES: f64 = 0.05;
/// The same for cycles of a Go garbage collector that were not looked at in full.
const INCOMPLETE_CYCLES: f64 = 0.25;

impl Quality {
    /// Whether nothing at all is missing.
    pub fn complete(&self) -> bool {
        self.lost_events() == 0
            && self.missed_frees == 0
            && self.truncated_stacks() == 0
            && self.uncertain_bytes == 0
            && self.unknown_stack_bytes == 0
            && self.undecided_samples == 0
            && self.unresolved_samples == 0
    }

    /// Whether so much is missing that the exit status says so. `outstanding_bytes` is the profile's total.
    pub fn incomplete_beyond_threshold(&self, outstanding_bytes: u64) -> bool {
        let share = |part: u64, whole: u64| part > 0 && part as f64 > whole as f64 * INCOMPLETE_SHARE;
        share(self.lost_events(), self.recorded_events + self.lost_events())
            || share(self.missed_frees, self.recorded_events)
            || share(self.uncertain_bytes, outstanding_bytes)
            || share(self.unknown_stack_bytes, outstanding_bytes)
            || self.samples_are_incomplete()
    }

    /// Whether what sampling misses is more than chance makes of its numbers anyway.
    fn samples_are_incomplete(&self) -> bool {
        let samples = self.sampling.map_or(0, |sampling| sampling.samples);
        let beyond = |part: u64, whole: u64, most: f64| part > 0 && part as f64 > whole as f64 * most;
        beyond(self.unresolved_samples, samples + self.unresolved_samples, INCOMPLETE_SAMPLES)
            || beyond(self.undecided_samples, samples, INCOMPLETE_SAMPLES)
            || beyond(self.missed_cycles, self.cycles, INCOMPLETE_CYCLES)
    }

    /// Stacks that end before the thread's root.
    pub fn truncated_stacks(&self) -> u64 {
        self.truncated.values().sum()
    }

    /// Events of any kind that were not recorded.
    pub fn lost_events(&self) -> u64 {
        self.lost_allocs + self.lost_frees + self.untracked_calls + self.unknown_records
    }
}
