//! Memory that processes have mapped themselves, beside what they have from their allocators.

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
    /// Bytes of those that are resident all the same: they may not be used any more. As far as that is known.
    pub reserved_resident_bytes: u64,
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
        self.reserved_resident_bytes = self.reserved_resident_bytes.saturating_add(other.reserved_resident_bytes);
        self.mapped_bytes = self.mapped_bytes.saturating_add(other.mapped_bytes);
        self.mapped_ranges = self.mapped_ranges.saturating_add(other.mapped_ranges);
    }
}
