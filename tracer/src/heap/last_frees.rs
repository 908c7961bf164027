//! What the last frees of a thread were of: frees that are one call, and those that an interposer makes within others.

/// After how many frees of what lies right below a block that is the allocator's way.
pub(super) const HABIT: u64 = 16;
/// How long the headers are at most that interposers put before each block, bytes.
const LONGEST_HEADER: u64 = 256;

/// How a thread has freed last.
#[derive(Clone, Copy, Default)]
pub(super) struct LastFrees {
    pub(super) tid: u32,
    /// Address of the last one.
    pub(super) addr: u64,
    /// How many were of unknown blocks, one behind the other and with nothing else of this thread in between.
    pub(super) unknown: u32,
    /// What the last one was of, if the thread has done nothing since.
    pub(super) of: Freed,
    /// How far below the block of the one before the last one was, bytes, if that may be why: see [`InnerFrees`].
    pub(super) below: u16,
    /// Whether the thread has allocated nothing since, and the last one ended no block that lies above its address.
    pub(super) is_settled: bool,
}

impl LastFrees {
    /// How far an address is below that of the last free, bytes, if it may be freed within that; else 0.
    pub(super) fn distance_to(&self, addr: u64) -> u16 {
        let distance = self.addr.wrapping_sub(addr);
        let may_be_within = self.of != Freed::Other && distance <= LONGEST_HEADER;
        if may_be_within { u16::try_from(distance).unwrap_or(0) } else { 0 }
    }
}

/// What a free was of.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
pub(super) enum Freed {
    /// Of nothing that a free from within it may follow; or it is not the last thing that was done.
    #[default]
    Other,
    /// A block that is known.
    Known,
    /// One that is not.
    Unknown,
}

/// Frees that an interposer makes within others: it has put a header before each block, and gives its memory back, which begins at the header
/// and of which nobody was told. What is freed right below a block, right after that, may be a block of its own once; if it is so after most
/// frees, and always as far below, it is none.
#[derive(Default)]
pub(super) struct InnerFrees {
    /// How far below, bytes; and how often more than not that was so.
    pub(super) distance: u16,
    pub(super) times: u64,
    /// How many of those were counted as frees of blocks that are not known.
    counted: u64,
    /// Frees of known blocks.
    pub(super) of_known: u64,
}

impl InnerFrees {
    /// Whether that is what an interposer does.
    pub(super) fn is_habit(&self) -> bool {
        self.times >= HABIT && self.times.saturating_mul(2) > self.of_known
    }

    /// There was another one, which was counted as that of a block that is not known. How many of those that were are not to be.
    pub(super) fn learn(&mut self, distance: u16) -> u64 {
        if self.times == 0 {
            (self.distance, self.counted) = (distance, 0);
        }
        if distance != self.distance {
            self.times -= 1;
            return 0;
        }
        self.times += 1;
        self.counted += 1;
        if self.is_habit() { std::mem::take(&mut self.counted) } else { 0 }
    }
}
