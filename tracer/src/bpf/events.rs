//! What the BPF programs send: records in the queue and in the ring buffer, counters of loss, the set of lost frees. And the
//! switch that makes them send: the map of traced processes.

use std::{
    os::fd::{AsFd, OwnedFd},
    time::Duration,
};

use aya::{
    Pod,
    maps::{Array, HashMap, MapData, MapError, RingBuf},
};
use rustix::event::{PollFd, PollFlags, poll};
use tracer_ebpf::{Began, BlockKey, Loss, NEWCOMERS_ASKED, TARGETS_CHANGE, Target, kind};

use super::{
    queue::{LongRecords, Queue, Record},
    sys,
};
use crate::event::Image;

/// Bytes of the queue that a thread fills in a second that does nothing but allocate, about.
pub(super) const FILLED: u64 = 30_000_000;
/// How long to wait for a record that is being written.
const MOMENT: Duration = Duration::from_micros(200);
/// Of an update of a map: what is there stays (BPF_NOEXIST in include/uapi/linux/bpf.h).
const NO_OTHER: u64 = 1;

#[repr(transparent)]
#[derive(Clone, Copy)]
pub(super) struct TargetValue(Target);
#[repr(transparent)]
#[derive(Clone, Copy)]
pub(super) struct LossValue(Loss);

#[repr(transparent)]
#[derive(Clone, Copy)]
pub(super) struct BlockValue(BlockKey);

// SAFETY: integers only, no padding (the ABI asserts the sizes), any bytes are a value.
unsafe impl Pod for TargetValue {}
// SAFETY: as above.
unsafe impl Pod for LossValue {}
// SAFETY: as above.
unsafe impl Pod for BlockValue {}

/// Words of a record of a beginning.
type BeganWords = [u64; size_of::<Began>() / 8];

/// Beginnings of images whose records found the ring buffer full. Belongs to one thread.
pub struct LostBeginnings(HashMap<MapData, u32, BeganWords>);

impl LostBeginnings {
    pub(super) fn new(map: HashMap<MapData, u32, BeganWords>) -> Self {
        Self(map)
    }

    /// Takes the record of an image out, as it would have come through the buffer.
    pub fn take(&mut self, image: Image) -> Option<Vec<u8>> {
        let words = self.0.get(&image.0, 0).ok()?;
        // Only here it is taken out.
        self.0.remove(&image.0).ok()?;
        Some(words.iter().flat_map(|word| word.to_ne_bytes()).collect())
    }

    /// The images that there are records of, in the order of their numbers.
    pub fn images(&self) -> Vec<Image> {
        let mut images: Vec<Image> = self.0.keys().filter_map(Result::ok).map(Image).collect();
        images.sort_unstable();
        images
    }
}

/// The reading side. Belongs to one thread.
pub struct Events {
    queue: Queue,
    /// The time of the blocks that come next.
    time: u64,
    /// Programs that are loaded later need the maps of the queue.
    _queue_maps: (MapData, MapData),
    ring: RingBuf<MapData>,
    long: LongRecords,
    loss: Array<MapData, LossValue>,
    unseen: HashMap<MapData, u32, u64>,
    /// Calls of dropped images whose outcome was not seen.
    disregarded: u64,
    lost_frees: MapData,
    targets: HashMap<MapData, u32, TargetValue>,
    /// The same map.
    targets_fd: OwnedFd,
    targets_epoch: Array<MapData, u64>,
    sent_stacks: HashMap<MapData, u64, u8>,
    stacks_epoch: Array<MapData, u64>,
    /// How often stacks were forgotten so far.
    forgotten: u64,
    paused: HashMap<MapData, u32, u8>,
    sampled: HashMap<MapData, BlockValue, u8>,
    /// Changes of `targets` so far.
    changes: u64,
}

impl Events {
    pub(super) fn new(
        (queue, queue_maps, ring): (Queue, (MapData, MapData), RingBuf<MapData>),
        (loss, unseen): (Array<MapData, LossValue>, HashMap<MapData, u32, u64>),
        lost_frees: MapData,
        (targets, targets_fd): (HashMap<MapData, u32, TargetValue>, OwnedFd),
        targets_epoch: Array<MapData, u64>,
        (sent_stacks, stacks_epoch): (HashMap<MapData, u64, u8>, Array<MapData, u64>),
        (paused, sampled): (HashMap<MapData, u32, u8>, HashMap<MapData, BlockValue, u8>),
    ) -> Self {
        Self {
            queue,
            time: 0,
            _queue_maps: queue_maps,
            ring,
            long: LongRecords::default(),
            loss,
            unseen,
            disregarded: 0,
            lost_frees,
            targets,
            targets_fd,
            targets_epoch,
            sent_stacks,
            stacks_epoch,
            forgotten: 0,
            paused,
            sampled,
            changes: 0,
        }
    }

    /// How long it takes all processors to fill the queue at least, if nobody reads.
    pub fn room_lasts(&self) -> Duration {
        let processors = aya::util::nr_cpus().map_or(u64::MAX, |count| count as u64);
        Duration::from_secs_f64(self.queue.bytes() as f64 / FILLED.saturating_mul(processors) as f64)
    }

    /// Waits until many records are there, or `bell` can be read, or for `timeout`.
    pub fn wait(&mut self, bell: &OwnedFd, timeout: Duration) {
        // Whoever writes the next record may have woken for it already.
        let timeout = if self.unfinished() > 0 { timeout.min(MOMENT) } else { timeout };
        let Ok(timeout) = timeout.try_into() else { return };
        // What is there would be taken for something new for ever. Its turn comes now, or nearly so.
        let mut has_come = false;
        while let Some(record) = self.ring.next() {
            self.long.keep(record.to_vec());
            has_come = true;
        }
        if has_come {
            return;
        }
        let mut fds = [PollFd::new(&self.ring, PollFlags::IN), PollFd::new(bell, PollFlags::IN)];
        // Interrupted or not: the caller looks for records either way.
        let _ = poll(&mut fds, Some(&timeout));
    }

    /// How much there may be behind a record that is being written at this moment, in records; 0: none is.
    pub fn unfinished(&self) -> u64 {
        self.queue.unfinished()
    }

    /// Gives up to `limit` records to `f`, oldest first; returns how many there were.
    pub fn drain(&mut self, limit: usize, mut f: impl FnMut(&[u8])) -> usize {
        let mut count = 0;
        while count < limit
            && let Some(record) = self.queue.head()
            && self.give(&record, &mut f)
        {
            self.queue.advance(&record);
            count += 1;
        }
        self.queue.give_back();
        count
    }

    /// Gives the record that is at the head of the queue to `f`; whether it is there by now.
    fn give(&mut self, record: &Record, mut f: impl FnMut(&[u8])) -> bool {
        let [first, second, third] = record.words;
        match record.header.kind() {
            kind::TIME => self.time = self.time.max(first),
            kind::NOTHING => {}
            kind::ELSEWHERE => {
                let next = || self.ring.next().map(|record| record.to_vec());
                let Some(bytes) = self.long.take(first, next) else { return false };
                f(&bytes);
            }
            kind => {
                let words = [record.header.0, first, second, third, self.time].map(u64::to_ne_bytes);
                let has_time = kind == kind::ALLOC || kind == kind::REALLOC_DONE;
                let length = record.length() + usize::from(has_time);
                f(&words.as_flattened()[..8 * length]);
            }
        }
        true
    }

    /// What could not be recorded so far, without what images had a part in that were dropped.
    ///
    /// # Errors
    /// When the map cannot be read.
    pub fn loss(&self) -> Result<Loss, MapError> {
        let loss = self.loss.get(&0, 0)?.0;
        Ok(Loss { outcomes_unseen: loss.outcomes_unseen.saturating_sub(self.disregarded), ..loss })
    }

    /// Counts no calls of an image that is not recorded any more and was none of the trace.
    pub fn disregard(&mut self, image: Image) {
        self.disregarded += self.unseen.get(&image.0, 0).unwrap_or(0);
        self.forget_unseen(image);
    }

    /// An image has ended, whose calls count.
    pub fn forget_unseen(&mut self, image: Image) {
        // Hardly any has some.
        let _ = self.unseen.remove(&image.0);
    }

    /// Has the places of these stacks sent again when they are next met.
    pub fn forget_stacks(&mut self, ids: impl IntoIterator<Item = u64>) {
        for id in ids {
            // Most are not there any more: the kernel keeps the last few ten thousand.
            let _ = self.sent_stacks.remove(&id);
        }
        // What threads know of them is of the time before.
        self.forgotten += 1;
        if let Err(error) = self.stacks_epoch.set(0, self.forgotten, 0) {
            tracing::warn!("stacks that were forgotten may not come again: {error}");
        }
    }

    /// Has the ends of these blocks no longer looked for, where only samples are recorded: their images are no more.
    pub fn forget_blocks(&mut self, blocks: impl IntoIterator<Item = (Image, u64)>) {
        for (image, addr) in blocks {
            // Not there: it has ended, and the record of that is lost or yet to come.
            let _ = self.sampled.remove(&BlockValue(BlockKey { addr, image: image.0, reserved: 0 }));
        }
    }

    /// Takes the addresses of lost frees out of their set, with the time of each.
    ///
    /// # Errors
    /// When the kernel refuses; what was taken until then is returned all the same, in `frees`.
    pub fn take_lost_frees(&mut self, frees: &mut Vec<(BlockKey, u64)>) -> std::io::Result<()> {
        sys::take_all(self.lost_frees.fd().as_fd(), frees)
    }

    /// Turns recording on for a process.
    ///
    /// # Errors
    /// When the map is full: more than 32768 processes.
    pub fn enable(&mut self, pid: u32, target: Target) -> Result<(), MapError> {
        self.targets.insert(pid, TargetValue(target), 0)?;
        self.announce_change()
    }

    /// Has an image recorded that the BPF side has begun, and paused. Whether it was.
    pub fn resume(&mut self, image: Image) -> bool {
        // Threads ask anew as long as it is paused: no change has to be told.
        self.paused.remove(&image.0).is_ok()
    }

    /// What the BPF side knows of a process, if this image of it is being recorded.
    pub fn target(&self, pid: u32, image: Image) -> Option<Target> {
        self.targets.get(&pid, 0).ok().map(|value| value.0).filter(|target| target.image == image.0)
    }

    /// Turns recording off for an image.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn disable(&mut self, pid: u32, image: Image) -> Result<(), MapError> {
        if self.target(pid, image).is_none() {
            return Ok(());
        }
        self.targets_epoch.set(0, TARGETS_CHANGE, 0)?;
        let taken = sys::take_target(self.targets_fd.as_fd(), pid);
        // It has become another program at this very moment, and has not come to its first instruction yet: that one goes on, unless
        // it is yet another one already.
        if let Ok(Some(next)) = taken
            && next.image != image.0
        {
            let _ = self.targets.insert(pid, TargetValue(next), NO_OTHER);
        }
        self.announce_change()?;
        Ok(taken.map(drop)?)
    }

    /// After every change of `targets`: threads keep what they know of their process until the count moves on.
    fn announce_change(&mut self) -> Result<(), MapError> {
        self.changes += 1;
        self.targets_epoch.set(0, self.changes, 0)
    }
}

/// Which processes that are not traced the BPF side tells of, when they become other programs.
pub struct Newcomers(pub(super) Array<MapData, u64>);

impl Newcomers {
    /// Has all of them begun as images with these [`tracer_ebpf::target`] bits; `None`: none of them.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn ask_for(&mut self, flags: Option<u32>) -> Result<(), MapError> {
        self.0.set(0, flags.map_or(0, |flags| NEWCOMERS_ASKED | u64::from(flags)), 0)
    }
}
