//! Memory that processes have mapped themselves, beside what they have from their allocators.

use std::time::Duration;

use super::Frames;

/// What memory is that a process has mapped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum MappedKind {
    /// Its own.
    Anonymous,
    /// Shared with whom it likes: anonymous, of a memfd, or of System V.
    Shared,
    /// That of the program break.
    Break,
    /// A stack.
    Stack,
}

impl MappedKind {
    /// Its name in reports.
    pub fn name(self) -> &'static str {
        match self {
            Self::Anonymous => "anonymous",
            Self::Shared => "shared",
            Self::Break => "brk",
            Self::Stack => "stack",
        }
    }

    /// What it is, for people.
    pub fn words(self) -> &'static str {
        match self {
            Self::Anonymous => "anonymous memory",
            Self::Shared => "shared memory",
            Self::Break => "the program break (brk)",
            Self::Stack => "a stack",
        }
    }
}

/// Amounts of one stack, or summed over several. Bytes are those of addresses: what is resident of them is another question.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MappedValues {
    /// Bytes that are mapped and may be used.
    pub bytes: u64,
    /// In how many ranges.
    pub ranges: u64,
    /// Bytes that are only reserved (PROT_NONE): no memory.
    pub reserved_bytes: u64,
    /// Bytes that were mapped since tracing began, unmapped or not.
    pub mapped_bytes: u64,
    /// By how many calls.
    pub mapped_ranges: u64,
}

impl std::ops::AddAssign for MappedValues {
    fn add_assign(&mut self, other: Self) {
        self.bytes = self.bytes.saturating_add(other.bytes);
        self.ranges = self.ranges.saturating_add(other.ranges);
        self.reserved_bytes = self.reserved_bytes.saturating_add(other.reserved_bytes);
        self.mapped_bytes = self.mapped_bytes.saturating_add(other.mapped_bytes);
        self.mapped_ranges = self.mapped_ranges.saturating_add(other.mapped_ranges);
    }
}

/// What one stack has mapped.
#[derive(Clone, Debug, PartialEq)]
pub struct MappedStack {
    /// Process that it belongs to.
    pub pid: u32,
    /// Its [`image`](super::Process::image).
    pub image: u32,
    /// What it is.
    pub kind: MappedKind,
    /// Whether an allocator has mapped it that is recorded: what of it is held is told of its heap, and not here again.
    pub by_allocator: bool,
    /// Frames, root first; the caller of the kernel last.
    pub frames: Frames,
    /// Amounts.
    pub values: MappedValues,
    /// How many bytes of them are resident, or swapped out; `None` when that could not be read.
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
    /// Sums of what programs have mapped, or allocators; how much of it is resident, as far as that is known.
    pub fn totals(&self, by_allocator: bool) -> (MappedValues, Option<u64>) {
        let mut totals = MappedValues::default();
        let mut resident = Some(0u64);
        for stack in self.stacks.iter().filter(|stack| stack.by_allocator == by_allocator) {
            totals += stack.values;
            if stack.values.bytes > 0 {
                resident = resident.zip(stack.resident).map(|(sum, bytes)| sum.saturating_add(bytes));
            }
        }
        (totals, resident)
    }
}
