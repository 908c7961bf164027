//! Interning of stacks: 64-bit ids from the BPF side to small indexes, and the addresses that each stands for.

use hashbrown::{HashMap, HashSet};

use crate::event::{Frames, Image};

/// Most distinct stacks that a trace keeps. At 30 frames each they take about a gigabyte.
pub const MAX_STACKS: usize = 1 << 22;

/// Index of a stack in a [`Stacks`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct StackIndex(u32);

impl StackIndex {
    pub(super) fn new(index: usize) -> Self {
        Self(index as u32)
    }

    /// From [`raw`](Self::raw).
    pub fn from_raw(raw: u32) -> Self {
        Self(raw)
    }

    /// As a number, to be kept by those who do not know what it is of.
    pub fn raw(self) -> u32 {
        self.0
    }

    /// As an index into tables that are kept by stack.
    #[inline]
    pub fn index(self) -> usize {
        self.0 as usize
    }
}

/// What is known of a stack.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StackKind {
    /// Its addresses, leaf first.
    Addresses(Box<[u64]>),
    /// Its addresses are kept elsewhere, as places.
    Placed,
    /// Its addresses were forgotten, for want of memory. They are known again when it is sent again.
    Folded,
    /// Its record was lost, and it has not been sent again.
    Unknown,
    /// It came when the table was full.
    TableFull,
}

struct Stack {
    image: Image,
    kind: StackKind,
    end: u32,
}

/// All stacks of a trace.
pub struct Stacks {
    by_id: HashMap<u64, StackIndex, foldhash::fast::FixedState>,
    /// The stand-in for stacks that did not fit, per image.
    full: HashMap<Image, StackIndex>,
    stacks: Vec<Stack>,
    max: usize,
}

impl Stacks {
    pub(super) fn new(max: usize) -> Self {
        Self { by_id: HashMap::default(), full: HashMap::new(), stacks: Vec::new(), max }
    }

    /// Index of a stack id, which the BPF side made distinct for each image.
    #[inline]
    pub(super) fn intern(&mut self, image: Image, id: u64) -> StackIndex {
        if let Some(index) = self.by_id.get(&id) {
            return *index;
        }
        if self.by_id.len() >= self.max {
            let next = StackIndex::new(self.stacks.len());
            let index = *self.full.entry(image).or_insert(next);
            if index == next {
                self.stacks.push(Stack { image, kind: StackKind::TableFull, end: 0 });
            }
            return index;
        }
        let index = StackIndex::new(self.stacks.len());
        self.stacks.push(Stack { image, kind: StackKind::Unknown, end: 0 });
        self.by_id.insert(id, index);
        index
    }

    /// Learns what an id stands for. Never overwrites: an id that is sent again says the same.
    pub(super) fn define(&mut self, image: Image, id: u64, frames: Frames<'_>, end: u32) {
        let index = self.intern(image, id);
        let stack = &mut self.stacks[index.index()];
        if matches!(stack.kind, StackKind::Unknown | StackKind::Folded) {
            stack.kind = StackKind::Addresses(frames.iter().collect());
            stack.end = end;
        }
    }

    /// Forgets the addresses of a stack that are kept elsewhere from now on.
    pub(super) fn placed(&mut self, stack: StackIndex) {
        let kind = &mut self.stacks[stack.index()].kind;
        if matches!(kind, StackKind::Addresses(_)) {
            *kind = StackKind::Placed;
        }
    }

    /// Forgets the addresses of a stack altogether.
    pub(super) fn fold(&mut self, stack: StackIndex) {
        let kind = &mut self.stacks[stack.index()].kind;
        if matches!(kind, StackKind::Addresses(_) | StackKind::Placed) {
            *kind = StackKind::Folded;
        }
    }

    /// Index of an id, if that id is known.
    pub fn find(&self, id: u64) -> Option<StackIndex> {
        self.by_id.get(&id).copied()
    }

    /// Ids of these stacks.
    pub fn ids(&self, stacks: &HashSet<StackIndex>) -> Vec<u64> {
        self.by_id.iter().filter(|(_, stack)| stacks.contains(*stack)).map(|(id, _)| *id).collect()
    }

    /// Image that a stack belongs to.
    pub fn image(&self, stack: StackIndex) -> Image {
        self.stacks[stack.index()].image
    }

    /// What is known of a stack.
    pub fn kind(&self, stack: StackIndex) -> &StackKind {
        &self.stacks[stack.index()].kind
    }

    /// Why a stack has no further frame: one of [`tracer_ebpf::end`].
    pub fn end(&self, stack: StackIndex) -> u32 {
        self.stacks[stack.index()].end
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.stacks.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.stacks.is_empty()
    }
}
