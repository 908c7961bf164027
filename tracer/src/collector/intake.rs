//! Taking in one record after the other: what each changes, and whom it concerns.

use std::time::Duration;

use hashbrown::{HashMap, HashSet};

use super::{images::Images, notice::Notice, places::Places};
use crate::{
    bpf::LostBeginnings,
    clock::monotonic,
    event::{self, Beginning, Change, Event, GoSample, How, Image, Origin},
    go,
    golang::heap::Sample,
    heap::{Heap, StackIndex},
    mapped::Mapped,
};

/// A Go runtime whose sampled objects are passed on.
pub(super) struct GoHeap {
    samples: go::heap::Inbox,
    /// Those that have come since the last were passed on.
    batch: Vec<Sample>,
    pub(super) stacks: HashSet<StackIndex>,
}

impl GoHeap {
    pub(super) fn new(samples: go::heap::Inbox) -> Self {
        Self { samples, batch: Vec::new(), stacks: HashSet::new() }
    }

    pub(super) fn pass_on(&mut self) {
        if !self.batch.is_empty() {
            // Whoever follows it may have given up.
            let _ = self.samples.tell(go::heap::Input::Samples(std::mem::take(&mut self.batch)));
        }
    }
}

/// The parts of the collector that records change.
pub(super) struct Intake<'a> {
    pub(super) heap: &'a mut Heap,
    pub(super) mapped: &'a mut Mapped,
    pub(super) images: &'a mut Images,
    pub(super) lost_beginnings: &'a mut LostBeginnings,
    pub(super) late: &'a mut (u64, Duration),
    pub(super) places: &'a mut Places,
    pub(super) go: &'a mut HashMap<(Image, u8), GoHeap>,
    /// What is to be told.
    pub(super) notices: Vec<Notice>,
    /// The image of the last record, which is recorded.
    pub(super) last: Option<Image>,
}

impl Intake<'_> {
    pub(super) fn take(&mut self, origin: Origin, event: Event<'_>) {
        let Origin { image, tid, slot } = origin;
        if let Event::Began(beginning) = event {
            return self.begin(image, beginning);
        }
        // Records come in runs of one image.
        if self.last != Some(image) && !self.is_recorded(image) {
            // A process may outlive the owner of the memory that it shares. What others depend on is taken in.
            return match event {
                Event::Stack { id, frames, end } => self.heap.define(image, id, frames, end),
                Event::UnknownFile(unknown) => self.places.resolvers().retry(unknown.number),
                Event::StackRest(part) => self.places.resolvers().room().give(part.size()),
                Event::Alloc(block) | Event::ReallocDone(block) => self.heap.disown(image, block.addr),
                _ => {}
            };
        }
        self.last = Some(image);
        if let Event::Remapping(remapping) = event {
            // Where memory only goes, nobody is asked whose it is.
            let known = remapping.stack != 0;
            let stack = if known { self.heap.intern(image, remapping.stack) } else { StackIndex::from_raw(0) };
            let (is, was) = (remapping.range.0..remapping.range.1, remapping.old.0..remapping.old.1);
            match remapping.change {
                Change::Unmapped => self.heap.was_unmapped(image, &is),
                Change::Mapped if !remapping.by_allocator => self.heap.was_unmapped(image, &is),
                // What stays in its place is what it was.
                Change::Moved { .. } if is.start == was.start => self.heap.was_unmapped(image, &(is.end..was.end)),
                Change::Moved { .. } => self.heap.was_unmapped(image, &was),
                _ => {}
            }
            return self.mapped.apply(image, &remapping, stack);
        }
        self.heap.apply(origin, event);
        match event {
            Event::Stack { id, .. } => match self.heap.stacks().find(id) {
                Some(stack) => self.places.place(self.heap, stack),
                None => self.places.forget_rest(id),
            },
            Event::StackRest(part) => {
                if let Some(tracked) = self.images.get(image) {
                    self.places.add_rest(image, tracked.pid, &part);
                }
            }
            Event::GoSample(GoSample { addr, size, charge, stack, time, sweepgen, class }) => {
                let stack = self.heap.intern(image, stack);
                if let Some(process) = self.go.get_mut(&(image, slot)) {
                    process.stacks.insert(stack);
                    let stack = stack.raw();
                    process.batch.push(Sample { addr, size, charge, time, sweepgen, class, stack });
                }
            }
            Event::UnknownFile(unknown) => {
                if let Some(tracked) = self.images.get(image) {
                    self.places.resolvers().find(tracked.pid, unknown);
                }
            }
            Event::Loaded(file, time) => self.notices.push(Notice::Loaded(image, file, time)),
            Event::Ended { signal, ran } => {
                self.last = None;
                self.images.end(image);
                self.places.resolvers().ended(image);
                self.forget_notice(Notice::FirstThreadEnded(image));
                self.notices.push(Notice::Ended { image, signal, ran });
            }
            Event::ThreadExit { .. } if self.images.get(image).is_some_and(|tracked| tracked.pid == tid) => {
                self.notices.push(Notice::FirstThreadEnded(image));
            }
            Event::SharerEnded => self.notices.push(Notice::SharerEnded(image)),
            // Said once, however often it happens.
            Event::HeapEnded(_) if !self.notices.contains(&Notice::HeapEnded(image)) => {
                self.notices.push(Notice::HeapEnded(image));
            }
            _ => {}
        }
    }

    /// Whether an image is recorded; one whose beginning found the ring buffer full is from now on.
    fn is_recorded(&mut self, image: Image) -> bool {
        self.images.get(image).is_some() || (!self.images.is_known(image) && self.recover(image))
    }

    fn begin(&mut self, image: Image, beginning: Beginning) {
        let Beginning { pid, parent, how, program, .. } = beginning;
        self.last = None;
        if !self.images.is_known(parent) {
            self.recover(parent);
        }
        self.images.begin(image, &beginning, self.heap);
        let program = (!matches!(how, How::Fork)).then(|| program.unwrap_or_default());
        self.places.resolvers().began(image, pid, program);
        if matches!(how, How::Exec | How::ExecByOtherThread) {
            self.places.resolvers().ended(parent);
            self.mapped.forget(parent);
            self.go.retain(|(of, _), _| *of != parent);
            // The first thread has ended for this.
            self.forget_notice(Notice::FirstThreadEnded(parent));
        }
        self.notices.push(Notice::Began(image, beginning));
    }

    /// Begins to follow an image whose beginning found the ring buffer full, if it is one. That is kept before anything else is
    /// sent of the image.
    fn recover(&mut self, image: Image) -> bool {
        let Some(record) = self.lost_beginnings.take(image) else {
            self.images.disregard(image);
            return false;
        };
        let Ok((_, Event::Began(beginning))) = event::parse(&record) else { return false };
        let late = Duration::from_nanos(monotonic().saturating_sub(beginning.time));
        *self.late = (self.late.0 + 1, self.late.1.max(late));
        self.begin(image, Beginning { is_late: true, ..beginning });
        self.images.get(image).is_some()
    }

    /// The same for all, those first that began first.
    pub(super) fn recover_all(&mut self) {
        for image in self.lost_beginnings.images() {
            // Unless it was, as another one's parent.
            if !self.images.is_known(image) {
                self.recover(image);
            }
        }
    }

    fn forget_notice(&mut self, unwanted: Notice) {
        self.notices.retain(|notice| *notice != unwanted);
    }
}
