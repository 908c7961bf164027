//! What stacks are places of: as far as files tell it at once, and else as soon as the resolvers have looked.

use std::sync::Arc;

use hashbrown::{HashMap, HashSet};
use tracer_ebpf::unwind::place;

use super::snapshot::Trail;
use crate::{
    cow::Part,
    event::{Image, Pid, StackMemory},
    files::{module::Module, registry::Files},
    heap::{Heap, KnownStacks, StackIndex, StackKind},
    resolve::{Located, Resolvers, Rest},
    trails::{self, Draft, KnownTrails, Site, Trails},
};

/// Most stacks whose memory has come and whose own record has not: it may be lost.
const MAX_RESTS: usize = 1 << 10;

/// Most images of which it is known that their mappings were asked for: twice does no harm.
const MAX_ASKED: usize = 1 << 10;

/// The places of all stacks.
pub(super) struct Places {
    files: Part<Files>,
    pub(super) trails: Trails,
    resolvers: Resolvers,
    /// Stacks that wait for a file, by its number.
    waiting: HashMap<u32, Vec<StackIndex>>,
    /// Stacks with mere addresses that nobody was asked about yet.
    unasked: HashMap<Image, Vec<(StackIndex, Vec<Site>)>>,
    /// What the rests of stacks are in whose own record is yet to come, by id.
    rests: HashMap<u64, Rest>,
    /// Up to which change of the mappings of an image these were asked for.
    asked: HashMap<Image, u64>,
    /// All that wait for any of it.
    pending: HashSet<StackIndex>,
}

impl Places {
    pub(super) fn new(resolvers: Resolvers) -> Self {
        Self {
            files: Part::default(),
            trails: Trails::default(),
            resolvers,
            waiting: HashMap::new(),
            unasked: HashMap::new(),
            rests: HashMap::new(),
            asked: HashMap::new(),
            pending: HashSet::new(),
        }
    }

    pub(super) fn resolvers(&self) -> &Resolvers {
        &self.resolvers
    }

    /// Stacks whose places are not known yet, but may be.
    pub(super) fn pending(&self) -> &HashSet<StackIndex> {
        &self.pending
    }

    /// Turns what the BPF side tells of a new stack into places.
    pub(super) fn place(&mut self, heap: &mut Heap, stack: StackIndex) {
        let rest = self.rests.remove(&heap.stacks().id(stack));
        if self.trails.get(stack).is_some() || !self.pending.insert(stack) {
            return;
        }
        let cut_at = match heap.stacks().kind(stack) {
            StackKind::Recorded(places) => places.last().and_then(|place| place::file(*place)),
            _ => None,
        };
        match (rest, cut_at) {
            (Some(rest), Some((number, _))) => {
                self.resolvers.unwind(heap.stacks().image(stack), stack, number, rest);
            }
            _ => self.look_up(heap, stack),
        }
    }

    /// There is no room for the stack with this id.
    pub(super) fn forget_rest(&mut self, id: u64) {
        self.rests.remove(&id);
    }

    /// Memory of a stack of an image whose record is to follow, of the process `pid`.
    pub(super) fn add_rest(&mut self, image: Image, pid: Pid, part: &StackMemory<'_>) {
        if self.asked.get(&image).is_none_or(|changes| *changes < part.changes) {
            if self.asked.len() >= MAX_ASKED {
                self.asked.clear();
            }
            self.asked.insert(image, part.changes);
            self.resolvers.read_mappings(image, pid);
        }
        if self.rests.len() >= MAX_RESTS {
            self.rests.clear();
        }
        let room = self.resolvers.room();
        self.rests.entry(part.id).and_modify(|rest| rest.add(part)).or_insert_with(|| Rest::new(part, room));
    }

    /// The rest of a stack was found.
    pub(super) fn unwound(&mut self, heap: &mut Heap, stack: StackIndex, places: &[u64], end: u32) {
        heap.lengthen(stack, places, end);
        self.look_up(heap, stack);
    }

    fn look_up(&mut self, heap: &mut Heap, stack: StackIndex) {
        // It may have been folded meanwhile.
        let StackKind::Recorded(places) = heap.stacks().kind(stack) else {
            self.pending.remove(&stack);
            return;
        };
        match trails::draft(places, heap.stacks().end(stack), self.files.get()) {
            Draft::Waiting(number) => self.waiting.entry(number).or_default().push(stack),
            Draft::InFiles(sites) => self.keep(heap, stack, sites, false),
            Draft::Addresses(sites) => {
                self.unasked.entry(heap.stacks().image(stack)).or_default().push((stack, sites));
            }
        }
    }

    /// Asks about what was met since the last time; whether there was something.
    pub(super) fn ask(&mut self) -> bool {
        let any = !self.unasked.is_empty();
        for (image, stacks) in self.unasked.drain() {
            self.resolvers.locate(image, stacks);
        }
        any
    }

    /// A file is known by now; `None`: memory for generated code.
    pub(super) fn known(&mut self, heap: &mut Heap, number: u32, module: Option<Arc<Module>>) {
        match module {
            Some(module) => self.files.get_mut().add(number, module),
            None => self.files.get_mut().add_generated(number),
        }
        for stack in self.waiting.remove(&number).unwrap_or_default() {
            self.look_up(heap, stack);
        }
    }

    /// No new stack will be of files with these numbers.
    pub(super) fn forgotten(&mut self, numbers: Vec<u32>) {
        self.files.get_mut().retire(numbers);
    }

    /// The addresses of a stack were looked up.
    pub(super) fn located(&mut self, heap: &mut Heap, Located { stack, sites, is_unproved }: Located) {
        self.keep(heap, stack, sites, is_unproved);
    }

    fn keep(&mut self, heap: &mut Heap, stack: StackIndex, sites: Vec<Site>, is_unproved: bool) {
        self.pending.remove(&stack);
        if matches!(heap.stacks().kind(stack), StackKind::Recorded(_)) {
            self.trails.keep(stack, sites, is_unproved);
            heap.placed(stack);
        }
    }

    /// All places as they are now.
    pub(super) fn share(&mut self) -> KnownPlaces {
        KnownPlaces { files: self.files.share(), trails: self.trails.share() }
    }
}

/// The places of all stacks at one moment.
pub(super) struct KnownPlaces {
    files: Arc<Files>,
    trails: KnownTrails,
}

impl KnownPlaces {
    /// The places of one of these stacks, as far as they are known.
    pub(super) fn trail(&self, stacks: &KnownStacks, stack: StackIndex) -> Trail {
        match (stacks.kind(stack), self.trails.get(stacks.first(stack))) {
            (StackKind::TableFull, _) => Trail::TableFull,
            (StackKind::Recorded(_) | StackKind::Placed, Some(sites)) => Trail::Known(Arc::clone(sites)),
            (StackKind::Recorded(places), None) => {
                let site = |place: &u64| Arc::new(trails::site(*place, &self.files));
                Trail::Known(places.iter().map(site).collect())
            }
            (StackKind::Folded, _) => Trail::Folded,
            (StackKind::Unknown | StackKind::Placed, _) => Trail::Lost,
        }
    }

    /// Why one of them has no further place: one of [`tracer_ebpf::end`].
    pub(super) fn end(&self, stacks: &KnownStacks, stack: StackIndex) -> u32 {
        self.trails.end(stacks.first(stack), stacks.end(stack))
    }
}
