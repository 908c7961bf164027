//! The processes that are recorded, as far as something is looked up in them: what lies in no file, and whether their mappings have
//! changed.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

use hashbrown::{HashMap, hash_map::Entry};

use super::worker::Job;
use crate::{
    event::{Image, Pid},
    heap::StackIndex,
    space::address_space::AddressSpace,
    trails::Site,
};

/// Least time between two looks into a process.
pub(super) const PAUSE: Duration = Duration::from_millis(20);
/// How often it is looked whether mappings have changed.
pub(super) const PERIOD: Duration = Duration::from_millis(250);
/// How many times as long as a look at mappings took the next one waits.
const REST: u32 = 20;
/// Most processes whose mappings are kept, for what lies in no file.
const MAX_KEPT: usize = 256;
/// Most stacks of an image that wait, and of all that have ended: others are told as what they are.
const MAX_STACKS: usize = 1 << 16;

/// A stack with mere addresses.
type Draft = (StackIndex, Vec<Site>);

/// All of them, by their images.
pub(super) struct Processes {
    all: HashMap<Image, Process>,
    /// Those with stacks to be looked up.
    to_locate: VecDeque<Image>,
    /// Stacks of images that had ended when they were to be looked up, and how many they are.
    orphans: VecDeque<(Image, Vec<Draft>)>,
    orphaned: usize,
    /// How many have their mappings kept, and how many of them a worker has.
    kept: usize,
    lent: usize,
    /// Those whose mappings may have changed.
    to_compare: VecDeque<Image>,
    compared: Instant,
    compare_next: Instant,
    /// When those were begun to be compared that a worker has.
    begun_comparing: Option<Instant>,
}

/// An image.
struct Process {
    pid: Pid,
    space: Space,
    /// Stacks to be looked up.
    stacks: Vec<Draft>,
    located: Option<Instant>,
    /// Changes of its mappings, as the BPF side counts them, before they were compared.
    changes: Option<u64>,
    mappings: Option<u64>,
    is_compared: bool,
    has_ended: bool,
}

/// The mappings of a process.
enum Space {
    /// Not known.
    None,
    Kept(Box<AddressSpace>),
    /// A worker has them.
    Lent,
}

impl Default for Processes {
    fn default() -> Self {
        let now = Instant::now();
        Self {
            all: HashMap::new(),
            to_locate: VecDeque::new(),
            orphans: VecDeque::new(),
            orphaned: 0,
            kept: 0,
            lent: 0,
            to_compare: VecDeque::new(),
            compared: now,
            compare_next: now,
            begun_comparing: None,
        }
    }
}

impl Processes {
    /// An image has begun.
    pub(super) fn begin(&mut self, image: Image, pid: Pid) {
        self.all.entry(image).or_insert_with(|| Process::new(pid));
    }

    /// An image has ended: its process, if it is known.
    pub(super) fn end(&mut self, image: Image) -> Option<Pid> {
        let Entry::Occupied(mut process) = self.all.entry(image) else { return None };
        process.get_mut().has_ended = true;
        let pid = process.get().pid;
        if process.get().is_done() {
            self.kept -= usize::from(process.remove().is_kept());
        }
        Some(pid)
    }

    /// The process of an image that is recorded.
    pub(super) fn pid(&self, image: Image) -> Option<Pid> {
        self.all.get(&image).map(|process| process.pid)
    }

    /// Has stacks of an image looked up: where it has ended, by what files tell of them.
    pub(super) fn add(&mut self, image: Image, mut stacks: Vec<Draft>) {
        let Some(process) = self.all.get_mut(&image) else {
            stacks.truncate(MAX_STACKS - self.orphaned);
            if !stacks.is_empty() {
                self.orphaned += stacks.len();
                self.orphans.push_back((image, stacks));
            }
            return;
        };
        if process.stacks.is_empty() {
            self.to_locate.push_back(image);
        }
        let room = MAX_STACKS.saturating_sub(process.stacks.len());
        process.stacks.extend(stacks.into_iter().take(room));
    }

    /// Whether stacks wait to be looked up.
    pub(super) fn has_stacks(&self) -> bool {
        !self.to_locate.is_empty() || !self.orphans.is_empty()
    }

    /// Whether stacks wait, or are being looked up.
    pub(super) fn is_busy(&self) -> bool {
        self.has_stacks() || self.lent > 0
    }

    /// The next stacks to look up, which lends the mappings of their process. Those of ended ones come last: they wait for nothing that
    /// may change.
    pub(super) fn next_to_locate(&mut self) -> Option<Job> {
        self.next_of_living().or_else(|| {
            let (image, stacks) = self.orphans.pop_front()?;
            self.orphaned -= stacks.len();
            self.lent += 1;
            Some(Job::Locate(image, Box::new(AddressSpace::of_ended()), stacks))
        })
    }

    fn next_of_living(&mut self) -> Option<Job> {
        let is_due = |image: &Image| {
            self.all.get(image).is_some_and(|process| {
                !matches!(process.space, Space::Lent) && process.located.is_none_or(|at| at.elapsed() >= PAUSE)
            })
        };
        let at = self.to_locate.iter().position(is_due)?;
        let image = self.to_locate.remove(at)?;
        let process = self.all.get_mut(&image)?;
        self.kept -= usize::from(process.is_kept());
        self.lent += 1;
        let space = match std::mem::replace(&mut process.space, Space::Lent) {
            Space::Kept(space) => space,
            _ => Box::new(AddressSpace::new(process.pid)),
        };
        Some(Job::Locate(image, space, std::mem::take(&mut process.stacks)))
    }

    /// Takes mappings back that were lent. They are kept where code may be looked up in them again.
    pub(super) fn give_back(&mut self, image: Image, space: Box<AddressSpace>) {
        self.lent -= 1;
        if space.is_of_ended() {
            return;
        }
        let Entry::Occupied(mut entry) = self.all.entry(image) else { return };
        let process = entry.get_mut();
        process.located = Some(Instant::now());
        process.space = Space::None;
        if process.is_done() {
            entry.remove();
        } else if space.has_generated_code() && self.kept < MAX_KEPT {
            process.space = Space::Kept(space);
            self.kept += 1;
        }
    }

    /// Finds those whose mappings may have changed, by how often they have. Nothing that is recorded waits for this.
    pub(super) fn find_changed(&mut self, changes_of: impl Fn(Pid) -> Option<u64>) {
        if self.compared.elapsed() < PERIOD {
            return;
        }
        self.compared = Instant::now();
        for (image, process) in &mut self.all {
            let changes = changes_of(process.pid);
            if !process.is_compared && !process.has_ended && (changes.is_none() || changes != process.changes) {
                (process.changes, process.is_compared) = (changes, true);
                self.to_compare.push_back(*image);
            }
        }
    }

    /// As if all had been compared long ago.
    #[cfg(test)]
    pub(super) fn may_compare(&mut self) {
        (self.compared, self.compare_next) = (Instant::now() - PERIOD, Instant::now());
    }

    /// The next mappings to compare, when it is time: one after the other.
    pub(super) fn next_to_compare(&mut self) -> Option<Job> {
        let now = Instant::now();
        if now < self.compare_next || self.begun_comparing.is_some() {
            return None;
        }
        let all = &self.all;
        let mut live = std::iter::from_fn(|| self.to_compare.pop_front())
            .filter_map(|image| Some(Job::Mappings(image, all.get(&image)?.pid)));
        let job = live.next()?;
        self.begun_comparing = Some(now);
        Some(job)
    }

    /// Mappings were looked at: `mappings` tells them from others. Whether they have changed.
    pub(super) fn has_changed(&mut self, image: Image, mappings: Option<u64>) -> bool {
        let now = Instant::now();
        self.compare_next = now + self.begun_comparing.take().map_or(Duration::ZERO, |begun| now - begun) * REST;
        let Some(process) = self.all.get_mut(&image) else { return false };
        process.is_compared = false;
        let Some(mappings) = mappings else { return false };
        process.mappings.replace(mappings) != Some(mappings)
    }
}

impl Process {
    fn new(pid: Pid) -> Self {
        Self {
            pid,
            space: Space::None,
            stacks: Vec::new(),
            located: None,
            changes: None,
            mappings: None,
            is_compared: false,
            has_ended: false,
        }
    }

    fn is_kept(&self) -> bool {
        matches!(self.space, Space::Kept(_))
    }

    /// Whether it has ended, and nothing is left to do.
    fn is_done(&self) -> bool {
        self.has_ended && self.stacks.is_empty() && !matches!(self.space, Space::Lent)
    }
}
