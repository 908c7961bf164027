//! Stacks that end at a file of which nothing was known, with the memory that the rest of each is in: unwound as soon as the file is
//! known, by the mappings that the process had.
//!
//! Those are read at once, for a process may end before its files are known. Nothing is unwound by others than those of the moment
//! that the stack is of: it is counted what appears, and known where, so that what has not appeared since was there.

use std::{
    collections::VecDeque,
    ops::Range,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use hashbrown::HashMap;
use tracer_ebpf::{
    MAX_FRAMES, REST_RECORDS, end,
    unwind::{Appeared, MAX_APPEARED, place},
};

use crate::{
    event::{Image, Pid, StackMemory},
    heap::StackIndex,
    unwind::{Registers, Step, Stop, step},
};

/// How long a stack may wait for its file: as long as its process lives, and after that. A table is compiled in a second at the worst.
const PATIENCE: Duration = Duration::from_secs(20);
const LAST_PATIENCE: Duration = Duration::from_secs(2);
/// How often that is looked at.
const PERIOD: Duration = Duration::from_millis(250);
/// How often mappings are read again at once that have changed meanwhile.
const MAX_ATTEMPTS: u32 = 16;
/// How often the mappings of one image may have changed for stacks from before to be unwound.
const MAX_KNOWN: usize = 8;

/// Bytes of the rests of stacks that are done with.
#[derive(Clone, Debug, Default)]
pub struct Room(Arc<AtomicU64>);

impl Room {
    /// So many more bytes are.
    pub fn give(&self, bytes: u64) {
        self.0.fetch_add(bytes, Ordering::Relaxed);
    }

    /// All so far.
    pub(super) fn given(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// The memory of one stack. Its room is given back with it.
#[derive(Debug)]
pub struct Rest {
    registers: Registers,
    changes: u64,
    start: u64,
    memory: Vec<u8>,
    /// How many parts it came in: the most that there may be, where there is more of the stack.
    parts: u32,
    size: u64,
    room: Room,
}

impl Rest {
    /// The first part of one.
    pub fn new(part: &StackMemory<'_>, room: &Room) -> Self {
        let StackMemory { registers, changes, start, bytes, .. } = *part;
        Self { registers, changes, start, memory: bytes.to_owned(), parts: 1, size: part.size(), room: room.clone() }
    }

    /// Adds what follows.
    pub fn add(&mut self, part: &StackMemory<'_>) {
        self.size += part.size();
        self.parts += 1;
        if self.start.checked_add(self.memory.len() as u64) == Some(part.start) {
            self.memory.reserve_exact(part.bytes.len());
            self.memory.extend_from_slice(part.bytes);
        }
    }

    /// Whether an address lies behind what was sent, and more was not because it was too much.
    fn is_cut_before(&self, address: u64) -> bool {
        let behind = address.checked_sub(self.start).is_some_and(|at| at.saturating_add(8) > self.memory.len() as u64);
        self.parts >= REST_RECORDS && behind
    }

    /// The word at an address.
    fn word(&self, address: u64) -> Option<u64> {
        let at = usize::try_from(address.checked_sub(self.start)?).ok()?;
        self.memory.get(at..)?.first_chunk().map(|word| u64::from_ne_bytes(*word))
    }
}

impl Drop for Rest {
    fn drop(&mut self) {
        self.room.give(self.size);
    }
}

/// An executable mapping.
#[derive(Clone, Debug)]
pub(super) struct Code {
    /// Its addresses.
    pub(super) range: Range<u64>,
    /// Offset of its first byte in the file.
    pub(super) offset: u64,
    /// Number of the file; `None`: it is none, or has none.
    pub(super) number: Option<u32>,
}

/// The mappings of an image that are code.
pub(super) struct Known {
    /// How many changes of them had been counted.
    changes: u64,
    /// The latest that had appeared.
    appeared: Vec<Appeared>,
    /// By address.
    code: Vec<Code>,
}

/// What came of reading mappings.
pub(super) enum Found<T> {
    /// They were these all the time.
    These {
        /// How many changes of them have been counted.
        changes: u64,
        /// The latest that have appeared.
        appeared: Vec<Appeared>,
        /// The mappings.
        mappings: T,
    },
    /// They were changed meanwhile.
    Changed,
    /// There is no such process any more, or nobody counts changes.
    Nothing,
}

impl<T> Found<T> {
    pub(super) fn map<U>(self, change: impl FnOnce(T) -> U) -> Found<U> {
        match self {
            Self::These { changes, appeared, mappings } => {
                Found::These { changes, appeared, mappings: change(mappings) }
            }
            Self::Changed => Found::Changed,
            Self::Nothing => Found::Nothing,
        }
    }
}

impl Known {
    /// Those that have appeared when more than so many changes had been counted; `None` when not all of them are known.
    fn since(&self, changes: u64) -> Option<Vec<&Appeared>> {
        if self.changes.saturating_sub(changes) > MAX_APPEARED as u64 {
            return None;
        }
        let counts = (changes..self.changes).map(|count| count + 1);
        counts.map(|count| self.appeared.iter().find(|appeared| appeared.count == count)).collect()
    }
}

impl Code {
    fn offset_of(&self, address: u64) -> u64 {
        (address - self.range.start).saturating_add(self.offset)
    }
}

/// One that waits.
pub(super) struct Cut {
    image: Image,
    pub(super) stack: StackIndex,
    /// Of the file that it ends at.
    number: u32,
    rest: Rest,
    since: Instant,
    /// Whether mappings were read once more for it, because those that were known could not be all.
    is_second: bool,
}

/// The mappings of an image.
struct Space {
    pid: Pid,
    /// What was read of them, the latest last.
    known: VecDeque<Arc<Known>>,
    readings: u32,
    /// Stacks that wait for them to be read.
    waiting: Vec<Cut>,
    /// How many stacks there are.
    stacks: usize,
    /// Since they were read for the last time, they have been read so often in vain.
    attempts: u32,
    /// They cannot be read any more: the process has ended, is another program, or changes them all the time.
    is_gone: bool,
    has_ended: bool,
}

/// All stacks that wait.
#[derive(Default)]
pub(super) struct Rests {
    spaces: HashMap<Image, Space>,
    /// Whose mappings are to be read.
    unread: VecDeque<(Image, Pid)>,
    /// Those that wait for a file, by its number.
    waiting: HashMap<u32, Vec<Cut>>,
    /// Those whose file is known.
    ready: VecDeque<Cut>,
    /// How many there are.
    stacks: usize,
    /// When it was looked which of them have waited for too long.
    looked: Option<Instant>,
}

/// What is known of an address of a file.
pub(super) enum Rule {
    /// The rule that holds there.
    At(u64),
    /// Nothing yet.
    NotYet,
    /// Nothing ever: the file cannot be read.
    Never,
}

/// What has come of one.
pub(super) enum Outcome {
    /// Its places, leaf first, and one of [`end`].
    Done(Vec<u64>, u32),
    /// It goes on in the file with this number.
    Wants(u32),
}

impl Rests {
    pub(super) fn is_empty(&self) -> bool {
        self.stacks == 0
    }

    /// Takes one in, of the process `pid`.
    pub(super) fn add(
        &mut self,
        image: Image,
        pid: Pid,
        (number, is_known): (u32, bool),
        stack: StackIndex,
        rest: Rest,
    ) {
        let space = self.spaces.entry(image).or_insert_with(|| Space::of(pid));
        space.stacks += 1;
        self.stacks += 1;
        // They were never read, or have changed since.
        if !space.is_gone && space.known.back().is_none_or(|known| known.changes < rest.changes) {
            space.ask(image, &mut self.unread);
        }
        let cut = Cut { image, stack, number, rest, since: Instant::now(), is_second: false };
        if is_known { self.ready.push_back(cut) } else { self.waiting.entry(number).or_default().push(cut) }
    }

    /// The mappings of an image, of the process `pid`, are about to be read.
    pub(super) fn reads(&mut self, image: Image, pid: Pid) {
        self.spaces.entry(image).or_insert_with(|| Space::of(pid)).readings += 1;
    }

    /// An image has ended.
    pub(super) fn ended(&mut self, image: Image) {
        if let Some(space) = self.spaces.get_mut(&image) {
            (space.is_gone, space.has_ended) = (true, true);
            self.drop_unused(image);
        }
    }

    /// Gives up those that wait for a file that nobody will know any more, it seems.
    pub(super) fn give_up(&mut self, now: Instant, mut tell: impl FnMut(StackIndex)) {
        if self.looked.is_some_and(|looked| now.saturating_duration_since(looked) < PERIOD) {
            return;
        }
        self.looked = Some(now);
        let Self { spaces, waiting, .. } = self;
        let mut given_up: Vec<Cut> = Vec::new();
        waiting.retain(|_, cuts| {
            given_up.extend(cuts.extract_if(.., |cut| {
                let is_gone = spaces.get(&cut.image).is_none_or(|space| space.is_gone);
                now.saturating_duration_since(cut.since) >= if is_gone { LAST_PATIENCE } else { PATIENCE }
            }));
            !cuts.is_empty()
        });
        for cut in given_up {
            self.done(&cut);
            tell(cut.stack);
        }
    }

    /// Gives up those that wait for files, of which none is being looked for, unless something is still to come of others: those files were
    /// gone when they were to be opened.
    pub(super) fn give_up_on_files(&mut self, mut tell: impl FnMut(StackIndex)) {
        if self.has_ready() || self.spaces.values().any(|space| space.readings > 0) {
            return;
        }
        for cut in std::mem::take(&mut self.waiting).into_values().flatten() {
            self.done(&cut);
            tell(cut.stack);
        }
    }

    /// Has mappings read once more for one that goes on where there are none: they were read while a library was being mapped, piece
    /// by piece. Gives it back where that was done, or cannot be.
    pub(super) fn again(&mut self, mut cut: Cut, known: &Known) -> Option<Cut> {
        let space = self.spaces.get_mut(&cut.image).filter(|space| !space.is_gone && !cut.is_second);
        let Some(space) = space else { return Some(cut) };
        space.ask(cut.image, &mut self.unread);
        space.known.retain(|other| other.changes != known.changes);
        cut.is_second = true;
        space.waiting.push(cut);
        None
    }

    /// The file with this number is known.
    pub(super) fn known(&mut self, number: u32) {
        self.ready.extend(self.waiting.remove(&number).unwrap_or_default());
    }

    /// Whose mappings are to be read next.
    pub(super) fn next_unread(&mut self) -> Option<(Image, Pid)> {
        self.unread.pop_front()
    }

    /// The mappings of an image were read.
    pub(super) fn has_read(&mut self, image: Image, found: Found<Vec<Code>>) {
        let Some(space) = self.spaces.get_mut(&image) else { return };
        match found {
            Found::These { changes, appeared, mappings: code } => {
                space.attempts = 0;
                space.known.retain(|known| known.changes != changes);
                space.known.push_back(Arc::new(Known { changes, appeared, code }));
                if space.known.len() > MAX_KNOWN {
                    space.known.pop_front();
                }
            }
            Found::Changed if !space.is_gone && space.attempts < MAX_ATTEMPTS => {
                space.attempts += 1;
                return self.unread.push_back((image, space.pid));
            }
            Found::Changed | Found::Nothing => space.is_gone = true,
        }
        space.readings = space.readings.saturating_sub(1);
        self.ready.extend(space.waiting.drain(..));
    }

    /// Whether there is something to unwind.
    pub(super) fn has_ready(&self) -> bool {
        !self.ready.is_empty()
    }

    /// The next one to unwind, with the mappings to do it by; without, when nobody can.
    pub(super) fn next(&mut self) -> Option<(Cut, Option<Arc<Known>>)> {
        while let Some(cut) = self.ready.pop_front() {
            let Some(space) = self.spaces.get_mut(&cut.image) else { continue };
            // The first look at or after its moment.
            let known = space.known.iter().filter(|known| known.changes >= cut.rest.changes);
            match known.min_by_key(|known| known.changes) {
                Some(known) => {
                    let known = Arc::clone(known);
                    return Some((cut, Some(known)));
                }
                None if space.readings > 0 => space.waiting.push(cut),
                None => return Some((cut, None)),
            }
        }
        None
    }

    /// One is done with.
    pub(super) fn done(&mut self, cut: &Cut) {
        if let Some(space) = self.spaces.get_mut(&cut.image) {
            space.stacks -= 1;
            self.stacks -= 1;
            self.drop_unused(cut.image);
        }
    }

    /// One waits for another file.
    pub(super) fn put_back(&mut self, cut: Cut, number: u32) {
        self.waiting.entry(number).or_default().push(cut);
    }

    fn drop_unused(&mut self, image: Image) {
        if self.spaces.get(&image).is_some_and(|space| space.has_ended && space.stacks == 0) {
            self.spaces.remove(&image);
        }
    }
}

impl Space {
    /// One whose mappings were not read yet.
    fn of(pid: Pid) -> Self {
        Self {
            pid,
            known: VecDeque::new(),
            readings: 0,
            waiting: Vec::new(),
            stacks: 0,
            attempts: 0,
            is_gone: false,
            has_ended: false,
        }
    }

    /// Has its mappings read, unless somebody is about to.
    fn ask(&mut self, image: Image, unread: &mut VecDeque<(Image, Pid)>) {
        if self.readings == 0 {
            self.readings = 1;
            unread.push_back((image, self.pid));
        }
    }
}

impl Cut {
    /// Goes on from the last frame, by the `rule` of a file's number, its mapping and an offset in it.
    pub(super) fn unwind(&self, known: &Known, rule: impl Fn(u32, &Code, u64) -> Rule) -> Outcome {
        let mut places = Vec::new();
        let Some(since) = known.since(self.rest.changes) else { return Outcome::Done(places, end::UNKNOWN_FILE) };
        let was_there =
            |code: &&Code| !since.iter().any(|new| new.start < code.range.end && code.range.start < new.end);
        let find = |address: u64| {
            let at = known.code.partition_point(|code| code.range.end <= address);
            known.code.get(at).filter(|code| code.range.contains(&address))
        };
        let mut frame = self.rest.registers;
        // It has one already, at the least.
        while places.len() + 1 < MAX_FRAMES {
            let Some(code) = find(frame.code()) else { return Outcome::Done(places, end::NO_MAPPING) };
            // Something else may have been there. And what the BPF side has found.
            if !was_there(&code) || places.is_empty() && code.number != Some(self.number) {
                return Outcome::Done(places, end::UNKNOWN_FILE);
            }
            let Some(number) = code.number else { return Outcome::Done(places, end::NO_RULE) };
            let rule = match rule(number, code, code.offset_of(frame.code())) {
                Rule::At(rule) => rule,
                Rule::NotYet => return Outcome::Wants(number),
                Rule::Never => return Outcome::Done(places, end::UNKNOWN_FILE),
            };
            let mut is_long = false;
            let word = |address| {
                is_long |= self.rest.is_cut_before(address);
                self.rest.word(address)
            };
            match step(rule, frame, word) {
                Step::Caller(caller) => frame = caller,
                Step::Root => return Outcome::Done(places, end::ROOT),
                Step::Made => {
                    places.pop();
                    return Outcome::Done(places, end::ROOT);
                }
                Step::Stopped(Stop::NoRule) => return Outcome::Done(places, end::NO_RULE),
                Step::Stopped(Stop::Unsupported) => return Outcome::Done(places, end::UNSUPPORTED_RULE),
                Step::Stopped(Stop::BadMemory) if is_long => return Outcome::Done(places, end::LONG_REST),
                Step::Stopped(Stop::BadMemory) => return Outcome::Done(places, end::BAD_MEMORY),
            }
            let in_file = |code: &Code| Some(place::in_file(code.number?, code.offset_of(frame.place())));
            places.push(find(frame.code()).filter(was_there).and_then(in_file).unwrap_or(place::at(frame.place())));
        }
        Outcome::Done(places, end::DEPTH)
    }
}

#[cfg(test)]
mod tests;
