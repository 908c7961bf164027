//! The images that are recorded, from their beginnings to their ends.

use hashbrown::{HashMap, HashSet};

use crate::{
    clock::monotonic,
    event::{Beginning, How, Image, Pid},
    heap::Heap,
};

/// Most images that are remembered of which nothing is known.
const MAX_STRANGERS: usize = 1 << 16;

/// An image that is recorded.
#[derive(Clone)]
pub(super) struct Tracked {
    pub(super) pid: Pid,
    /// Whether its process was started by another one that is traced.
    pub(super) is_child: bool,
    /// Since when it is recorded, nanoseconds of CLOCK_MONOTONIC.
    pub(super) since: u64,
}

/// An image that was recorded.
#[derive(Clone)]
struct Over {
    pid: Pid,
    /// From when to when, nanoseconds of CLOCK_MONOTONIC.
    since: u64,
    until: u64,
}

impl Over {
    fn now(pid: Pid, since: u64) -> Self {
        Self { pid, since, until: monotonic() }
    }
}

/// What is known of each image that is or was recorded.
#[derive(Clone, Default)]
pub(super) struct KnownImages {
    live: HashMap<Image, Tracked>,
    ended: HashMap<Image, Over>,
    /// Newcomers, and what they have started, of which nobody has said yet whether they are wanted.
    undecided: HashSet<Image>,
}

impl KnownImages {
    /// Whether an image belongs to the trace.
    pub(super) fn is_wanted(&self, image: Image) -> bool {
        !self.undecided.contains(&image) && (self.live.contains_key(&image) || self.ended.contains_key(&image))
    }

    /// The process of an image, and since when it is recorded: nanoseconds of CLOCK_MONOTONIC.
    pub(super) fn of(&self, image: Image) -> (Pid, u64) {
        let live = self.live.get(&image).map(|tracked| (tracked.pid, tracked.since));
        live.or_else(|| self.ended.get(&image).map(|over| (over.pid, over.since))).unwrap_or_default()
    }

    /// Until when what an image holds grows older: `now`, unless it has ended.
    pub(super) fn until(&self, image: Image, now: u64) -> u64 {
        self.ended.get(&image).map_or(now, |over| over.until.min(now))
    }
}

/// All images that are or were recorded.
#[derive(Default)]
pub(super) struct Images {
    known: KnownImages,
    /// Those of processes that others have started, whose blocks are still kept.
    leaving: Vec<Image>,
    /// Those that nothing is known of.
    strangers: HashSet<Image>,
    /// Those that others have taken the place of, and whether they were wanted: of one of which nobody has said so nobody will.
    replaced: Vec<(Image, bool)>,
}

impl Images {
    /// What is known of each.
    pub(super) fn known(&self) -> &KnownImages {
        &self.known
    }

    /// Whether nothing was ever recorded.
    pub(super) fn is_empty(&self) -> bool {
        self.known.live.is_empty() && self.known.ended.is_empty()
    }

    /// One that is recorded now.
    pub(super) fn get(&self, image: Image) -> Option<&Tracked> {
        self.known.live.get(&image)
    }

    /// Whether an image is or was recorded, or need not be asked for again.
    pub(super) fn is_known(&self, image: Image) -> bool {
        self.known.live.contains_key(&image) || self.known.ended.contains_key(&image) || self.strangers.contains(&image)
    }

    /// Nothing will be known of an image.
    pub(super) fn disregard(&mut self, image: Image) {
        // They would only be asked for again.
        if self.strangers.len() >= MAX_STRANGERS {
            self.strangers.clear();
        }
        self.strangers.insert(image);
    }

    /// What is told of as another image's is forgotten.
    pub(super) fn merged(&mut self, image: Image) {
        self.known.ended.remove(&image);
    }

    /// Those that are recorded now.
    pub(super) fn live(&self) -> impl Iterator<Item = (Image, &Tracked)> {
        self.known.live.iter().map(|(image, tracked)| (*image, tracked))
    }

    /// Begins to record an image that user space has given its number; false when it is or was recorded.
    pub(super) fn add(&mut self, image: Image, pid: Pid) -> bool {
        let is_new = !self.known.live.contains_key(&image) && !self.known.ended.contains_key(&image);
        self.strangers.remove(&image);
        if is_new {
            self.known.live.insert(image, Tracked { pid, is_child: false, since: monotonic() });
        }
        is_new
    }

    /// Begins to follow an image that the BPF side has begun to record. Of one that comes from nothing that is recorded (it has just been
    /// dropped, perhaps) somebody has to say whether it is wanted, as of a newcomer.
    pub(super) fn begin(&mut self, image: Image, beginning: &Beginning, heap: &mut Heap) {
        let Beginning { pid, parent, how, .. } = *beginning;
        let comes_from_nothing = !self.known.live.contains_key(&parent);
        let was_undecided = self.known.undecided.contains(&parent);
        let is_undecided = was_undecided || comes_from_nothing || how == How::Newcomer;
        let mut is_child = true;
        match how {
            How::Exec | How::ExecByOtherThread => {
                if was_undecided {
                    self.known.undecided.remove(&parent);
                    heap.remove(parent);
                } else {
                    heap.forget(parent);
                }
                self.replaced.push((parent, !was_undecided));
                if let Some(before) = self.known.live.remove(&parent) {
                    is_child = before.is_child;
                    if was_undecided {
                        self.disregard(parent);
                    } else {
                        self.known.ended.insert(parent, Over::now(pid, before.since));
                    }
                }
            }
            How::Fork if !comes_from_nothing => heap.inherit(image),
            How::Fork | How::Spawn | How::Newcomer => {}
        }
        if is_undecided {
            self.known.undecided.insert(image);
        }
        self.known.live.insert(image, Tracked { pid, is_child, since: monotonic() });
    }

    /// An image is wanted.
    pub(super) fn keep(&mut self, image: Image) {
        self.known.undecided.remove(&image);
    }

    /// An image that is followed is recorded from a time on, nanoseconds of CLOCK_MONOTONIC.
    pub(super) fn is_recorded_since(&mut self, image: Image, since: u64) {
        self.known.live.entry(image).and_modify(|tracked| tracked.since = since);
    }

    /// Takes an image for one that never was: its process, if that lives.
    pub(super) fn drop(&mut self, image: Image) -> Option<Pid> {
        self.disregard(image);
        self.known.undecided.remove(&image);
        self.known.ended.remove(&image);
        self.leaving.retain(|leaving| *leaving != image);
        self.known.live.remove(&image).map(|tracked| tracked.pid)
    }

    /// The process of an image has ended; false when it was not recorded.
    pub(super) fn end(&mut self, image: Image) -> bool {
        let Some(Tracked { pid, since, is_child }) = self.known.live.remove(&image) else { return false };
        self.known.ended.insert(image, Over::now(pid, since));
        if is_child {
            self.leaving.push(image);
        }
        true
    }

    /// Takes those out whose blocks are to be let go, and when they ended. What may not be wanted stays, with its blocks.
    pub(super) fn leaving(&mut self) -> Vec<(Image, u64)> {
        let Self { leaving, known: KnownImages { undecided, ended, .. }, .. } = self;
        let leaving = leaving.extract_if(.., |image| !undecided.contains(image));
        leaving.filter_map(|image| Some((image, ended.get(&image)?.until))).collect()
    }

    /// Takes those out that others have taken the place of, and whether they belonged to the trace.
    pub(super) fn take_replaced(&mut self) -> Vec<(Image, bool)> {
        std::mem::take(&mut self.replaced)
    }
}

#[cfg(test)]
mod tests {
    use tracer_ebpf::{Whose, unwind::FileKey};

    use super::*;
    use crate::{
        event::{Event, Origin},
        heap::Counters,
    };

    fn begin(images: &mut Images, image: u32, parent: u32, how: How) {
        begin_in(&mut Heap::with_room(16, 16), images, image, parent, how);
    }

    fn begin_in(heap: &mut Heap, images: &mut Images, image: u32, parent: u32, how: How) {
        let program = Some(FileKey::default());
        let beginning = Beginning {
            pid: image,
            parent: Image(parent),
            how,
            comm: [0; 16],
            time: 1,
            is_late: false,
            program,
            whose: Whose::default(),
        };
        images.begin(Image(image), &beginning, heap);
    }

    #[test]
    fn newcomers_and_what_they_start_wait_until_somebody_says_that_they_are_wanted() {
        let mut images = Images::default();
        begin(&mut images, 1, 0, How::Newcomer);
        begin(&mut images, 2, 1, How::Fork);
        begin(&mut images, 3, 2, How::Exec);
        images.keep(Image(1));
        let wanted = |images: &Images| (1..=3).map(|image| images.known().is_wanted(Image(image))).collect::<Vec<_>>();
        assert_eq!(wanted(&images), [true, false, false]);
        // What ends meanwhile keeps its blocks until it is known.
        assert!(images.end(Image(1)) && images.end(Image(3)));
        assert_eq!(images.leaving().iter().map(|(image, _)| *image).collect::<Vec<_>>(), [Image(1)]);
        images.keep(Image(3));
        assert_eq!(images.leaving().iter().map(|(image, _)| *image).collect::<Vec<_>>(), [Image(3)]);
        begin(&mut images, 4, 0, How::Newcomer);
        assert!(images.end(Image(4)));
        assert_eq!((images.drop(Image(4)), images.leaving().len(), images.is_known(Image(4))), (None, 0, true));
        assert!(!images.known().is_wanted(Image(4)));
    }

    #[test]
    fn what_comes_from_what_was_just_dropped_waits_too() {
        for (image, how) in [(2, How::Exec), (3, How::Fork), (4, How::Spawn)] {
            let mut images = Images::default();
            begin(&mut images, 1, 0, How::Newcomer);
            images.drop(Image(1));
            begin(&mut images, image, 1, how);
            assert!(images.get(Image(image)).is_some() && !images.known().is_wanted(Image(image)), "{how:?}");
            images.keep(Image(image));
            assert!(images.known().is_wanted(Image(image)), "{how:?}");
            assert_eq!(images.drop(Image(image)), Some(image), "to be recorded no more: {how:?}");
        }
    }

    #[test]
    fn what_goes_through_images_that_nobody_wants_is_not_counted() {
        let (mut heap, mut images) = (Heap::with_room(16, 16), Images::default());
        let free = |heap: &mut Heap, image| {
            heap.apply(Origin { image: Image(image), tid: image, slot: 0 }, Event::Free(0x10));
            heap.counters().unmatched_frees
        };
        begin_in(&mut heap, &mut images, 1, 0, How::Newcomer);
        assert_eq!(free(&mut heap, 1), 1);
        begin_in(&mut heap, &mut images, 2, 1, How::Exec);
        assert_eq!((images.take_replaced(), images.take_replaced()), (vec![(Image(1), false)], Vec::new()));
        assert_eq!(free(&mut heap, 2), 1, "only the second one's");
        images.drop(Image(2));
        heap.remove(Image(2));
        assert_eq!(heap.counters(), Counters::default());
        begin_in(&mut heap, &mut images, 3, 0, How::Newcomer);
        images.keep(Image(3));
        free(&mut heap, 3);
        begin_in(&mut heap, &mut images, 4, 3, How::Exec);
        assert_eq!((images.take_replaced(), heap.counters().unmatched_frees), (vec![(Image(3), true)], 1));
    }
}
