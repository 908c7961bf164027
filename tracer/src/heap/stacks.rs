//! Interning of stacks: 64-bit ids from the BPF side to small indexes, one for each process that has the stack, and the places
//! that each stands for, kept once for all of them.

use std::ops::Deref;

use hashbrown::{HashMap, HashSet};

use tracer_ebpf::{MAX_FRAMES, end};

use crate::{
    cow::Chunks,
    event::{Frames, Image},
};

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
    /// Its places as the BPF side tells them ([`tracer_ebpf::unwind::place`]), leaf first.
    Recorded(Box<[u64]>),
    /// They are kept elsewhere, as what they stand for.
    Placed,
    /// They were forgotten, for want of memory. They are known again when it is sent again.
    Folded,
    /// Its record was lost, and it has not been sent again.
    Unknown,
    /// It came when the table was full.
    TableFull,
}

#[derive(Clone)]
struct Stack {
    /// Its id; 0 of a stand-in.
    id: u64,
    image: Image,
    /// The one with the same id that came first. What is known of all of them is kept there.
    first: StackIndex,
    kind: StackKind,
    end: u32,
    /// How many stacks have this as their first, this one included.
    users: u32,
}

/// What is known of each stack, by its index.
#[derive(Default)]
pub struct KnownStacks(Chunks<Stack>);

impl KnownStacks {
    /// The stack with the same id that came first, of whichever process: what is known of it is known of both.
    pub fn first(&self, stack: StackIndex) -> StackIndex {
        self.0[stack.index()].first
    }

    /// Image that a stack belongs to.
    pub fn image(&self, stack: StackIndex) -> Image {
        self.0[stack.index()].image
    }

    /// What is known of a stack.
    pub fn kind(&self, stack: StackIndex) -> &StackKind {
        &self.0[self.first(stack).index()].kind
    }

    /// Why a stack has no further frame: one of [`tracer_ebpf::end`].
    pub fn end(&self, stack: StackIndex) -> u32 {
        self.0[self.first(stack).index()].end
    }
}

/// All stacks of a trace.
pub struct Stacks {
    by_id: HashMap<(Image, u64), StackIndex, foldhash::fast::FixedState>,
    /// By id, the first one with it.
    firsts: HashMap<u64, StackIndex, foldhash::fast::FixedState>,
    /// The stand-in for stacks that did not fit, per image.
    full: HashMap<Image, StackIndex>,
    /// Those of each image, the stand-in left out.
    own: HashMap<Image, Vec<StackIndex>>,
    known: KnownStacks,
    /// Indexes that are nobody's.
    free: Vec<StackIndex>,
    max: usize,
}

impl Deref for Stacks {
    type Target = KnownStacks;

    fn deref(&self) -> &KnownStacks {
        &self.known
    }
}

impl Stacks {
    /// What is known of each, as it is now.
    pub(super) fn share(&mut self) -> KnownStacks {
        KnownStacks(self.known.0.share())
    }

    pub(super) fn new(max: usize) -> Self {
        Self {
            by_id: HashMap::default(),
            firsts: HashMap::default(),
            full: HashMap::new(),
            own: HashMap::new(),
            known: KnownStacks::default(),
            free: Vec::new(),
            max,
        }
    }

    /// Index of a stack of an image by its id. Equal stacks of equal programs have the same one.
    #[inline]
    pub(super) fn intern(&mut self, image: Image, id: u64) -> StackIndex {
        if let Some(index) = self.by_id.get(&(image, id)) {
            return *index;
        }
        if self.by_id.len() >= self.max {
            return self.stand_in(image);
        }
        let next = self.free.pop().unwrap_or(StackIndex::new(self.known.0.len()));
        let first = *self.firsts.entry(id).or_insert(next);
        self.put(next, Stack { id, image, first, kind: StackKind::Unknown, end: 0, users: 0 });
        self.known.0[first.index()].users += 1;
        self.by_id.insert((image, id), next);
        self.own.entry(image).or_default().push(next);
        next
    }

    /// What stands for stacks of an image that did not fit.
    pub(super) fn stand_in(&mut self, image: Image) -> StackIndex {
        if let Some(index) = self.full.get(&image) {
            return *index;
        }
        let next = self.free.pop().unwrap_or(StackIndex::new(self.known.0.len()));
        let (kind, first) = (StackKind::TableFull, next);
        self.put(next, Stack { id: 0, image, first, kind, end: 0, users: 1 });
        self.full.insert(image, next);
        next
    }

    /// The same stack of another image.
    pub(super) fn counterpart(&mut self, stack: StackIndex, of: Image) -> StackIndex {
        match self.kind(stack) {
            StackKind::TableFull => self.stand_in(of),
            _ => self.intern(of, self.id(stack)),
        }
    }

    fn put(&mut self, index: StackIndex, stack: Stack) {
        match self.known.0.get_mut(index.index()) {
            Some(place) => *place = stack,
            None => self.known.0.push(stack),
        }
    }

    /// Stacks of an image, its stand-in included.
    pub fn of(&self, image: Image) -> impl Iterator<Item = StackIndex> {
        self.own.get(&image).into_iter().flatten().chain(self.full.get(&image)).copied()
    }

    /// The images that have stacks of their own.
    pub fn images(&self) -> impl Iterator<Item = Image> {
        self.own.keys().copied()
    }

    /// Whether so many eighths of the room for stacks are taken.
    pub fn fill(&self, eighths: usize) -> bool {
        self.by_id.len() >= self.max / 8 * eighths
    }

    /// Gives up stacks of an image, whose indexes others may have from now on: those that are free by that. A stack whose places
    /// others have by its index stays as long as they do.
    pub(super) fn release(&mut self, image: Image, unwanted: &HashSet<StackIndex>) -> Vec<StackIndex> {
        let Some(own) = self.own.get_mut(&image) else { return Vec::new() };
        own.retain(|stack| !unwanted.contains(stack));
        if own.is_empty() {
            self.own.remove(&image);
        }
        let mut freed = Vec::new();
        for &stack in unwanted {
            let Stack { id, first, .. } = self.known.0[stack.index()];
            self.by_id.remove(&(image, id));
            self.known.0[first.index()].users -= 1;
            if first != stack {
                freed.push(stack);
            }
            if self.known.0[first.index()].users == 0 {
                self.firsts.remove(&id);
                freed.push(first);
            }
        }
        for stack in &freed {
            self.known.0[stack.index()].kind = StackKind::Unknown;
        }
        self.free.extend(&freed);
        freed
    }

    /// Gives up stacks of an image as [`release`](Self::release) does, its stand-in if that is among them.
    pub(super) fn release_all(&mut self, image: Image, mut unwanted: HashSet<StackIndex>) -> Vec<StackIndex> {
        let stand_in = self.full.get(&image).copied().filter(|stand_in| unwanted.remove(stand_in));
        let mut freed = self.release(image, &unwanted);
        if let Some(stand_in) = stand_in {
            self.full.remove(&image);
            self.known.0[stand_in.index()].kind = StackKind::Unknown;
            self.free.push(stand_in);
            freed.push(stand_in);
        }
        freed
    }

    /// Learns what an id stands for. Never overwrites: an id that is sent again says the same.
    pub(super) fn define(&mut self, image: Image, id: u64, frames: Frames<'_>, end: u32) {
        let stack = self.intern(image, id);
        let first = self.first(stack);
        let stack = &mut self.known.0[first.index()];
        if matches!(stack.kind, StackKind::Unknown | StackKind::Folded) {
            stack.kind = StackKind::Recorded(frames.iter().collect());
            stack.end = end;
        }
    }

    /// Learns what follows the places of a stack, leaf first, and how it ends.
    pub(super) fn lengthen(&mut self, stack: StackIndex, more: &[u64], end: u32) {
        let first = self.first(stack);
        let stack = &mut self.known.0[first.index()];
        let StackKind::Recorded(places) = &mut stack.kind else { return };
        let known = places.iter().chain(more).copied();
        let (all, most) = (places.len() + more.len(), MAX_FRAMES);
        (*places, stack.end) = (known.take(most).collect(), if all > most { end::DEPTH } else { end });
    }

    /// Forgets the places of a stack, which are kept elsewhere from now on.
    pub(super) fn placed(&mut self, stack: StackIndex) {
        let kind = self.kind_mut(stack);
        if matches!(kind, StackKind::Recorded(_)) {
            *kind = StackKind::Placed;
        }
    }

    /// Forgets the places of a stack altogether, in all processes.
    pub(super) fn fold(&mut self, stack: StackIndex) {
        let kind = self.kind_mut(stack);
        if matches!(kind, StackKind::Recorded(_) | StackKind::Placed) {
            *kind = StackKind::Folded;
        }
    }

    /// The first stack with an id, if that is known.
    pub fn find(&self, id: u64) -> Option<StackIndex> {
        self.firsts.get(&id).copied()
    }

    /// Every stack, by index, as the first one with its id.
    pub fn firsts(&self) -> impl Iterator<Item = StackIndex> {
        self.known.0.iter().map(|stack| stack.first)
    }

    /// Ids of these stacks, which are the first ones with them.
    pub fn ids(&self, firsts: &HashSet<StackIndex>) -> Vec<u64> {
        self.firsts.iter().filter(|(_, stack)| firsts.contains(*stack)).map(|(id, _)| *id).collect()
    }

    /// Id of a stack.
    pub fn id(&self, stack: StackIndex) -> u64 {
        self.known.0[stack.index()].id
    }

    fn kind_mut(&mut self, stack: StackIndex) -> &mut StackKind {
        let first = self.first(stack);
        &mut self.known.0[first.index()].kind
    }

    /// Whether other images have the same stack.
    pub(super) fn is_shared(&self, stack: StackIndex) -> bool {
        self.known.0[self.first(stack).index()].users > 1
    }

    /// How many there are that are somebody's.
    pub fn taken(&self) -> usize {
        self.known.0.len() - self.free.len()
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.known.0.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.known.0.is_empty()
    }
}
