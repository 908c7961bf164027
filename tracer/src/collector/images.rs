//! The images that are recorded, from their beginnings to their ends.

use hashbrown::{HashMap, HashSet};

use crate::{
    clock::monotonic,
    event::{Beginning, How, Image, Pid},
    heap::Heap,
};

/// An image that is recorded.
pub(super) struct Tracked {
    pub(super) pid: Pid,
    /// Whether its process was started by another one that is traced.
    pub(super) is_child: bool,
    /// Since when it is recorded, nanoseconds of CLOCK_MONOTONIC.
    pub(super) since: u64,
}

/// All images that are or were recorded.
#[derive(Default)]
pub(super) struct Images {
    live: HashMap<Image, Tracked>,
    /// Those that have ended: of which process, and since when they were recorded.
    ended: HashMap<Image, (Pid, u64)>,
    /// Those of processes that others have started, whose blocks are still kept, and when they ended.
    leaving: Vec<(Image, u64)>,
    /// Those that nothing is known of.
    strangers: HashSet<Image>,
}

impl Images {
    /// Whether nothing was ever recorded.
    pub(super) fn is_empty(&self) -> bool {
        self.live.is_empty() && self.ended.is_empty()
    }

    /// One that is recorded now.
    pub(super) fn get(&self, image: Image) -> Option<&Tracked> {
        self.live.get(&image)
    }

    /// Whether an image is or was recorded, or need not be asked for again.
    pub(super) fn is_known(&self, image: Image) -> bool {
        self.live.contains_key(&image) || self.ended.contains_key(&image) || self.strangers.contains(&image)
    }

    /// Nothing will be known of an image.
    pub(super) fn disregard(&mut self, image: Image) {
        self.strangers.insert(image);
    }

    /// Those that are recorded now.
    pub(super) fn live(&self) -> impl Iterator<Item = (Image, &Tracked)> {
        self.live.iter().map(|(image, tracked)| (*image, tracked))
    }

    /// Begins to record an image that user space has given its number; false when it is or was recorded.
    pub(super) fn add(&mut self, image: Image, pid: Pid) -> bool {
        let is_new = !self.live.contains_key(&image) && !self.ended.contains_key(&image);
        self.strangers.remove(&image);
        if is_new {
            self.live.insert(image, Tracked { pid, is_child: false, since: monotonic() });
        }
        is_new
    }

    /// Begins to follow an image that the BPF side has begun to record; false when what it came from is not known.
    pub(super) fn begin(&mut self, image: Image, beginning: &Beginning, heap: &mut Heap) -> bool {
        let Beginning { pid, parent, how, .. } = *beginning;
        let is_child = match how {
            How::Exec | How::ExecByOtherThread => {
                heap.forget(parent);
                let Some(before) = self.live.remove(&parent) else { return false };
                self.ended.insert(parent, (pid, before.since));
                before.is_child
            }
            How::Spawn | How::Newcomer => true,
            How::Fork if !self.live.contains_key(&parent) => return false,
            How::Fork => {
                heap.inherit(image);
                true
            }
        };
        self.live.insert(image, Tracked { pid, is_child, since: monotonic() });
        true
    }

    /// An image that is followed is recorded from a time on, nanoseconds of CLOCK_MONOTONIC.
    pub(super) fn is_recorded_since(&mut self, image: Image, since: u64) {
        self.live.entry(image).and_modify(|tracked| tracked.since = since);
    }

    /// Takes an image for one that never was: its process.
    pub(super) fn drop(&mut self, image: Image) -> Option<Pid> {
        let Tracked { pid, .. } = self.live.remove(&image)?;
        self.strangers.insert(image);
        Some(pid)
    }

    /// The process of an image has ended; false when it was not recorded.
    pub(super) fn end(&mut self, image: Image) -> bool {
        let Some(Tracked { pid, since, is_child }) = self.live.remove(&image) else { return false };
        self.ended.insert(image, (pid, since));
        if is_child {
            self.leaving.push((image, monotonic()));
        }
        true
    }

    /// Takes those out whose blocks are to be let go, and when they ended.
    pub(super) fn leaving(&mut self) -> impl Iterator<Item = (Image, u64)> {
        self.leaving.drain(..)
    }

    /// The process of an image, and since when it is recorded: nanoseconds of CLOCK_MONOTONIC.
    pub(super) fn of(&self, image: Image) -> (Pid, u64) {
        let live = self.live.get(&image).map(|tracked| (tracked.pid, tracked.since));
        live.or_else(|| self.ended.get(&image).copied()).unwrap_or_default()
    }
}
