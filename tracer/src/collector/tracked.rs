//! The images that are recorded: their mappings, their beginnings and ends, and the places of their stacks.

use std::time::{Duration, Instant};

use hashbrown::HashMap;

use crate::{
    clock::monotonic,
    event::{Beginning, How, Image, Pid, UnknownFile},
    heap::{Heap, StackIndex},
    process::address_space::AddressSpace,
    trails::{Located, Trails},
    unwinder::Unwinder,
};

/// Least time between two looks at the mappings of a process.
const REFRESH_PAUSE: Duration = Duration::from_millis(20);

/// An image that is recorded.
pub(super) struct Tracked {
    pub(super) pid: Pid,
    /// Whether its process was started by another one that is traced.
    pub(super) is_child: bool,
    pub(super) space: AddressSpace,
    /// Since when it is recorded, nanoseconds of CLOCK_MONOTONIC.
    pub(super) since: u64,
    pub(super) refreshed: Instant,
    /// Changes of its mappings, as the BPF side counts them, before that look.
    pub(super) changes: Option<u64>,
    /// Files that it has met and nobody knows.
    pub(super) unknown: Vec<UnknownFile>,
    /// Stacks with a place that is not known, waiting for the next look at the mappings.
    pub(super) unplaced: Vec<StackIndex>,
    /// Whether executable mappings have come or gone of which nobody was told.
    pub(super) is_changed: bool,
}

/// Begins to follow an image that the BPF side has begun to record.
pub(super) fn begin(
    image: Image,
    Beginning { pid, parent, how, .. }: Beginning,
    images: &mut HashMap<Image, Tracked>,
    ended: &mut HashMap<Image, (Pid, u64)>,
    heap: &mut Heap,
    unwinder: &mut Unwinder,
    trails: &mut Trails,
) {
    let tracked = match how {
        How::Exec | How::ExecByOtherThread => {
            heap.forget(parent);
            let Some(before) = images.remove(&parent) else { return };
            ended.insert(parent, (pid, before.since));
            let mut tracked = Tracked::new(pid, AddressSpace::new(pid), before.is_child);
            tracked.refresh(heap, unwinder, trails);
            tracked
        }
        How::Spawn | How::Newcomer => {
            let mut tracked = Tracked::new(pid, AddressSpace::new(pid), true);
            tracked.refresh(heap, unwinder, trails);
            tracked
        }
        How::Fork => {
            let Some(parent) = images.get(&parent) else { return };
            heap.inherit(image);
            Tracked::new(pid, parent.space.forked(pid), true)
        }
    };
    images.insert(image, tracked);
}

/// The process of an image has ended.
pub(super) fn end(
    image: Image,
    images: &mut HashMap<Image, Tracked>,
    ended: &mut HashMap<Image, (Pid, u64)>,
    leaving: &mut Vec<(Image, u64)>,
    heap: &mut Heap,
    unwinder: &Unwinder,
    trails: &mut Trails,
) {
    let Some(mut tracked) = images.remove(&image) else { return };
    tracked.place_the_rest(heap, unwinder, trails);
    ended.insert(image, (tracked.pid, tracked.since));
    if tracked.is_child {
        leaving.push((image, monotonic()));
    }
}

impl Tracked {
    /// Of a process that is recorded from now on.
    pub(super) fn new(pid: Pid, space: AddressSpace, is_child: bool) -> Self {
        let (since, refreshed) = (monotonic(), Instant::now());
        let (unknown, unplaced) = (Vec::new(), Vec::new());
        Self { pid, is_child, space, since, refreshed, changes: None, unknown, unplaced, is_changed: false }
    }

    /// Looks at the mappings again, finds files that were not known, and places what had no place.
    pub(super) fn refresh(&mut self, heap: &mut Heap, unwinder: &mut Unwinder, trails: &mut Trails) {
        self.refreshed = Instant::now();
        self.changes = unwinder.changes_of(self.pid);
        let refreshed = self.space.refresh();
        if !self.unknown.is_empty() {
            self.space.reopen();
        }
        for unknown in std::mem::take(&mut self.unknown) {
            unwinder.resolve(unknown, &self.space);
        }
        match refreshed {
            Ok(true) => {
                self.is_changed = true;
                unwinder.follow(&self.space);
            }
            Ok(false) => {}
            Err(error) => {
                // Gone: what was known stays.
                tracing::debug!("cannot read mappings: {error}");
                return;
            }
        }
        self.place_the_rest(heap, unwinder, trails);
    }

    /// What has no place now never will: the frame-pointer walk also yields words that are no addresses. What lies in a file that
    /// nobody knows yet will have.
    pub(super) fn place_the_rest(&mut self, heap: &mut Heap, unwinder: &Unwinder, trails: &mut Trails) {
        self.unplaced.retain(|stack| {
            let waits = trails.locate(heap, unwinder.files(), &self.space, *stack) == Located::Waiting;
            if !waits {
                heap.placed(*stack);
            }
            waits
        });
    }
}

/// Turns what the BPF side tells of a new stack into places.
pub(super) fn place(
    heap: &mut Heap,
    process: &mut Tracked,
    unwinder: &mut Unwinder,
    trails: &mut Trails,
    stack: StackIndex,
) {
    if trails.get(stack).is_some() {
        return;
    }
    match trails.locate(heap, unwinder.files(), &process.space, stack) {
        Located::All => heap.placed(stack),
        // The file was told of before, and is looked at when the records are taken in.
        Located::Waiting => process.unplaced.push(stack),
        Located::Doubtful => {
            process.unplaced.push(stack);
            if process.refreshed.elapsed() >= REFRESH_PAUSE {
                process.refresh(heap, unwinder, trails);
            }
        }
    }
}
