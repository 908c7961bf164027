//! Which files are known, what is to be looked at next, and by whom. Never waits for a file.

use std::{
    collections::VecDeque,
    ops::Range,
    sync::{Arc, mpsc},
    time::{Duration, Instant},
};

use hashbrown::{HashMap, HashSet, hash_map::Entry};

use super::{
    Resolved,
    queue::Queue,
    worker::{Done, Job, Opening},
};
use crate::{
    event::{Image, Pid, UnknownFile},
    files::module::{Identity, Module},
    heap::StackIndex,
    profile::UnwindTable,
    space::address_space::AddressSpace,
    trails::Site,
    unwinder::{Compiled, Unwinder},
};

/// How often opening a file is tried: it may be gone from where it was mapped each time, or another may be there.
const ATTEMPTS: u32 = 20;
/// Least time between two looks into a process.
const PAUSE: Duration = Duration::from_millis(20);
/// How often it is looked whether mappings have changed.
const PERIOD: Duration = Duration::from_millis(250);
/// How many times as long as a look at mappings took the next one waits.
const REST: u32 = 20;
/// Most processes whose mappings are kept, for what lies in no file.
const MAX_KEPT: usize = 256;
/// Most stacks of an image that wait: others are told as what they are.
const MAX_STACKS: usize = 1 << 16;

/// Files that are known from which on it is looked which are in use.
const MAX_KNOWN: usize = 1024;
/// What nobody has met for so long is not in use, and how often that is looked for.
const IDLE: Duration = Duration::from_secs(2);
const RELIEF: Duration = Duration::from_secs(5);

/// What the desk hears of.
pub(super) enum Input {
    Ask(Ask),
    /// Work was done; unless `is_last`, there is more to come of it.
    Done {
        worker: usize,
        done: Done,
        is_last: bool,
    },
    /// Nobody asks any more.
    End,
}

/// What is asked.
pub(super) enum Ask {
    Follow(Box<AddressSpace>, Then),
    Began { image: Image, pid: Pid, is_program: bool },
    Ended(Image),
    Find(Pid, UnknownFile),
    Retry(u32),
    Locate(Image, Vec<(StackIndex, Vec<Site>)>),
    Machine,
    Settle(u64),
}

/// Where a file is mapped, and which.
type Mapped = (Range<u64>, Arc<Module>);

type Then = Box<dyn FnOnce() + Send>;

/// What is known of files, and the order of work.
pub(super) struct Desk {
    unwinder: Unwinder,
    tell: Box<dyn FnMut(Resolved) + Send>,
    workers: Vec<mpsc::Sender<Job>>,
    idle: Vec<usize>,
    queue: Queue,
    /// Files whose number is known, and numbers of which all is known that can be.
    numbers: HashMap<Identity, u32>,
    known: HashMap<u32, Option<Arc<Module>>>,
    /// When it was begun to look which of them are in use, and when that may be next.
    marked: Option<Instant>,
    relieve_next: Instant,
    /// Numbers of files whose tables are being compiled.
    in_work: HashSet<u32>,
    compiled: Vec<(u32, Compiled, bool)>,
    /// How many jobs to open files are under way.
    opening: usize,
    attempts: HashMap<u32, u32>,
    /// Copies of files that processes had mapped when they began to be recorded, by where.
    copies: HashMap<Pid, Vec<Mapped>>,
    processes: HashMap<Image, Process>,
    /// Those with stacks to be looked up.
    to_locate: VecDeque<Image>,
    /// How many have their mappings kept, and how many of them a worker has.
    kept: usize,
    lent: usize,
    /// Those whose mappings may have changed.
    to_compare: VecDeque<Image>,
    compared: Instant,
    compare_next: Instant,
    begun_comparing: Instant,
    follows: Vec<(HashSet<u32>, Then)>,
    settles: Vec<u64>,
}

/// An image.
struct Process {
    pid: Pid,
    space: Space,
    /// Stacks to be looked up.
    stacks: Vec<(StackIndex, Vec<Site>)>,
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

impl Desk {
    pub(super) fn new(
        unwinder: Unwinder,
        workers: Vec<mpsc::Sender<Job>>,
        tell: Box<dyn FnMut(Resolved) + Send>,
    ) -> Self {
        let now = Instant::now();
        Self {
            unwinder,
            tell,
            idle: (0..workers.len()).collect(),
            queue: Queue::default(),
            workers,
            numbers: HashMap::new(),
            known: HashMap::new(),
            marked: None,
            relieve_next: now,
            in_work: HashSet::new(),
            compiled: Vec::new(),
            opening: 0,
            attempts: HashMap::new(),
            copies: HashMap::new(),
            processes: HashMap::new(),
            to_locate: VecDeque::new(),
            kept: 0,
            lent: 0,
            to_compare: VecDeque::new(),
            compared: now,
            compare_next: now,
            begun_comparing: now,
            follows: Vec::new(),
            settles: Vec::new(),
        }
    }

    /// Works until nobody asks any more.
    pub(super) fn run(mut self, inputs: &mpsc::Receiver<Input>) {
        loop {
            let first = match inputs.recv_timeout(self.patience()) {
                Ok(input) => Some(input),
                Err(mpsc::RecvTimeoutError::Timeout) => None,
                Err(mpsc::RecvTimeoutError::Disconnected) => return,
            };
            for input in first.into_iter().chain(inputs.try_iter()) {
                match input {
                    Input::Ask(ask) => self.obey(ask),
                    Input::Done { worker, done, is_last } => self.take(worker, done, is_last),
                    Input::End => return,
                }
            }
            self.make_known();
            self.relieve();
            self.compare();
            self.give_work();
            self.settle();
        }
    }

    /// How long to wait for inputs.
    fn patience(&self) -> Duration {
        if self.to_locate.is_empty() { PERIOD } else { PAUSE }
    }

    fn obey(&mut self, ask: Ask) {
        match ask {
            Ask::Follow(space, then) => {
                let code = space.code().filter_map(|(mapping, module)| Some((mapping.start..mapping.end, module?)));
                let code: Vec<Mapped> = code.map(|(range, module)| (range, Arc::clone(module))).collect();
                let left = code.iter().filter_map(|(_, module)| self.want(Arc::clone(module))).collect();
                self.follows.push((left, then));
                // They cannot be asked for a number, and may not answer any more when they are met.
                let copies: Vec<Mapped> = code.into_iter().filter(|(_, module)| module.original().is_some()).collect();
                if !copies.is_empty() {
                    self.copies.insert(space.pid(), copies);
                }
            }
            Ask::Began { image, pid, is_program } => {
                self.processes.entry(image).or_insert_with(|| Process::new(pid));
                if is_program {
                    self.queue.look_at_program(pid);
                }
            }
            Ask::Ended(image) => {
                if let Entry::Occupied(mut process) = self.processes.entry(image) {
                    process.get_mut().has_ended = true;
                    self.copies.remove(&process.get().pid);
                    if process.get().is_done() {
                        self.kept -= usize::from(process.remove().is_kept());
                    }
                }
            }
            Ask::Find(pid, unknown) => {
                if self.known.contains_key(&unknown.number) || self.in_work.contains(&unknown.number) {
                    return;
                }
                let is_there = |(range, _): &&Mapped| range.start < unknown.end && unknown.start < range.end;
                let copy = self.copies.get(&pid).and_then(|copies| copies.iter().find(is_there));
                if let Some((_, module)) = copy {
                    self.compile(unknown.number, Arc::clone(module));
                } else {
                    self.queue.open(pid, unknown);
                }
            }
            Ask::Retry(number) => self.retry(number),
            Ask::Locate(image, stacks) => {
                let Some(process) = self.processes.get_mut(&image) else {
                    let located =
                        stacks.into_iter().map(|(stack, sites)| super::Located { stack, sites, is_unproved: false });
                    return (self.tell)(Resolved::Located(located.collect()));
                };
                if process.stacks.is_empty() {
                    self.to_locate.push_back(image);
                }
                let room = MAX_STACKS.saturating_sub(process.stacks.len());
                process.stacks.extend(stacks.into_iter().take(room));
            }
            Ask::Machine => self.queue.look_at_machine(),
            Ask::Settle(number) => self.settles.push(number),
        }
    }

    /// Has a file compiled that is not known yet: the number under which it will be.
    fn want(&mut self, module: Arc<Module>) -> Option<u32> {
        if let Some(number) = self.numbers.get(module.identity()) {
            return Some(*number).filter(|number| !self.known.contains_key(number));
        }
        let number = self.unwinder.number_of(&module)?;
        self.numbers.insert(module.identity().clone(), number);
        if self.known.contains_key(&number) {
            // By another name: some file systems tell several of one file.
            return None;
        }
        self.compile(number, module);
        Some(number)
    }

    fn compile(&mut self, number: u32, module: Arc<Module>) {
        if self.in_work.insert(number) {
            self.queue.compile(number, module);
        }
    }

    fn retry(&mut self, number: u32) {
        if !self.known.contains_key(&number) && !self.in_work.contains(&number) {
            self.unwinder.retry(number);
        }
    }

    fn take(&mut self, worker: usize, done: Done, is_last: bool) {
        if is_last {
            self.idle.push(worker);
        }
        match done {
            Done::Compiled(Some(number), compiled) => {
                self.queue.has_compiled(&compiled.module);
                self.compiled.push((number, *compiled, true));
            }
            Done::Compiled(None, compiled) => {
                self.queue.is_done_in_background();
                let number = self.unwinder.number_of(&compiled.module);
                // Somebody may have met it meanwhile.
                if let Some(number) = number.filter(|number| !self.known.contains_key(number))
                    && self.in_work.insert(number)
                {
                    self.numbers.insert(compiled.module.identity().clone(), number);
                    self.compiled.push((number, *compiled, false));
                }
            }
            Done::Opened(files) => {
                self.opening -= 1;
                files.into_iter().for_each(|(unknown, opening)| self.has_opened(unknown.number, opening));
            }
            Done::Located(image, space, stacks) => {
                (self.tell)(Resolved::Located(stacks));
                self.keep(image, space);
            }
            Done::Mappings(image, mappings) => {
                self.queue.is_done_in_background();
                let now = Instant::now();
                self.compare_next = now + (now - self.begun_comparing) * REST;
                if let (Some(process), Some(mappings)) = (self.processes.get_mut(&image), mappings) {
                    process.is_compared = false;
                    if process.mappings.replace(mappings) != Some(mappings) {
                        (self.tell)(Resolved::Mapped(image));
                    }
                }
            }
            Done::Found(module) => {
                self.want(module);
            }
            Done::Seen(module) => self.queue.compile_later(module),
            Done::Searched => {}
            Done::Surveyed => self.queue.is_done_in_background(),
        }
    }

    /// A file that was met was opened, or what is there now.
    fn has_opened(&mut self, number: u32, opening: Opening) {
        if self.known.contains_key(&number) || self.in_work.contains(&number) {
            return;
        }
        match opening {
            Opening::File(module) => {
                // Another file may be there by now. Where a file cannot be asked for its number, it is taken for the one.
                let found = self.unwinder.number_of(&module);
                let is_it = match found {
                    Some(found) => found == number,
                    None => module.file().is_some() && module.original().is_some(),
                };
                let attempts = self.attempts.entry(number).or_default();
                *attempts += 1;
                if is_it {
                    self.numbers.insert(module.identity().clone(), number);
                    return self.compile(number, module);
                }
                let is_last = *attempts >= ATTEMPTS;
                let special = Arc::new(Module::special(module.path()));
                // Who has the other one was told that it would be known.
                if let Some(found) = found.filter(|found| !self.known.contains_key(found)) {
                    self.compile(found, module);
                }
                if is_last { self.compile(number, special) } else { self.unwinder.retry(number) }
            }
            Opening::Generated => {
                self.unwinder.know_generated(number);
                self.known.insert(number, None);
                (self.tell)(Resolved::Known { number, module: None, table: None });
            }
            Opening::Gone => self.unwinder.retry(number),
        }
    }

    /// Writes the tables that were compiled, and tells of them.
    fn make_known(&mut self) {
        if !self.compiled.is_empty() {
            let told: Vec<(u32, Arc<Module>, bool)> = self
                .compiled
                .iter()
                .map(|(number, compiled, is_met)| (*number, Arc::clone(&compiled.module), *is_met))
                .collect();
            let compiled = self.compiled.drain(..).map(|(number, compiled, _)| (number, compiled));
            let tables: Vec<UnwindTable> = self.unwinder.know(compiled);
            for ((number, module, is_met), table) in told.into_iter().zip(tables) {
                self.in_work.remove(&number);
                self.attempts.remove(&number);
                self.known.insert(number, Some(Arc::clone(&module)));
                (self.tell)(Resolved::Known { number, module: Some(module), table: Some(table).filter(|_| is_met) });
            }
        }
        let known = &self.known;
        for (left, _) in &mut self.follows {
            left.retain(|number| !known.contains_key(number));
        }
        for (_, then) in self.follows.extract_if(.., |(left, _)| left.is_empty()) {
            then();
        }
    }

    /// Forgets files that nobody uses when there are many, or their tables take all the room. One that is forgotten wrongly is merely
    /// met again.
    fn relieve(&mut self) {
        let now = Instant::now();
        if (self.known.len() <= MAX_KNOWN && !self.unwinder.is_full()) || now < self.relieve_next {
            return;
        }
        let Some(marked) = self.marked else {
            self.unwinder.take_met(&self.known.keys().copied().collect());
            self.marked = Some(now);
            return;
        };
        if now - marked < IDLE {
            return;
        }
        (self.marked, self.relieve_next) = (None, now + RELIEF);
        // What a stack, a probe or a report refers to stays: the desk and the collector have one each.
        let is_referred_to =
            |module: &Option<Arc<Module>>| module.as_ref().is_none_or(|module| Arc::strong_count(module) > 2);
        let idle = self.known.iter().filter(|(_, module)| !is_referred_to(module));
        let mut idle: HashSet<u32> = idle.map(|(number, _)| *number).collect();
        let met = self.unwinder.take_met(&idle);
        idle.retain(|number| !met.contains(number));
        tracing::debug!(forgotten = idle.len(), of = self.known.len(), "files that nobody uses");
        if idle.is_empty() {
            return;
        }
        self.unwinder.forget(&idle);
        self.known.retain(|number, _| !idle.contains(number));
        self.numbers.retain(|_, number| !idle.contains(number));
        (self.tell)(Resolved::Forgotten(idle.into_iter().collect()));
    }

    /// Finds the processes whose mappings may have changed. Nothing that is recorded waits for this.
    fn compare(&mut self) {
        if self.compared.elapsed() < PERIOD {
            return;
        }
        self.compared = Instant::now();
        for (image, process) in &mut self.processes {
            let changes = self.unwinder.changes_of(process.pid);
            if !process.is_compared && !process.has_ended && (changes.is_none() || changes != process.changes) {
                (process.changes, process.is_compared) = (changes, true);
                self.to_compare.push_back(*image);
            }
        }
    }

    fn give_work(&mut self) {
        while let Some(worker) = self.idle.pop() {
            let Some(job) = self.next_job() else { return self.idle.push(worker) };
            // A worker ends after the desk.
            let _ = self.workers[worker].send(job);
        }
    }

    /// What is to be done next, the most urgent first.
    fn next_job(&mut self) -> Option<Job> {
        if let Some(job) = self.queue.next_urgent() {
            self.opening += usize::from(matches!(job, Job::Open(..)));
            return Some(job);
        }
        self.next_to_locate().or_else(|| self.next_in_background())
    }

    fn next_to_locate(&mut self) -> Option<Job> {
        let is_due = |image: &Image| {
            self.processes.get(image).is_some_and(|process| {
                !matches!(process.space, Space::Lent) && process.located.is_none_or(|at| at.elapsed() >= PAUSE)
            })
        };
        let at = self.to_locate.iter().position(is_due)?;
        let image = self.to_locate.remove(at)?;
        let process = self.processes.get_mut(&image)?;
        self.kept -= usize::from(process.is_kept());
        self.lent += 1;
        let space = match std::mem::replace(&mut process.space, Space::Lent) {
            Space::Kept(space) => space,
            _ => Box::new(AddressSpace::new(process.pid)),
        };
        Some(Job::Locate(image, space, std::mem::take(&mut process.stacks)))
    }

    /// What keeps one worker busy at most, and not all the time.
    fn next_in_background(&mut self) -> Option<Job> {
        if !self.settles.is_empty() {
            return None;
        }
        let numbers = &self.numbers;
        let job = self.queue.next_in_background(|module| numbers.contains_key(module.identity()));
        if job.is_some() || Instant::now() < self.compare_next || !self.queue.may_work_in_background() {
            return job;
        }
        let processes = &self.processes;
        let mut live = std::iter::from_fn(|| self.to_compare.pop_front())
            .filter_map(|image| Some((image, processes.get(&image)?.pid)));
        let (image, pid) = live.next()?;
        self.begun_comparing = Instant::now();
        self.queue.begin_in_background();
        Some(Job::Mappings(image, pid))
    }

    /// Takes mappings back that were lent. They are kept where code may be looked up in them again.
    fn keep(&mut self, image: Image, space: Box<AddressSpace>) {
        self.lent -= 1;
        let Entry::Occupied(mut entry) = self.processes.entry(image) else { return };
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

    /// Tells when nothing is left to do that somebody may wait for.
    fn settle(&mut self) {
        let is_waiting = !self.in_work.is_empty()
            || self.queue.has_files_to_open()
            || self.opening > 0
            || !self.to_locate.is_empty()
            || self.lent > 0;
        if !self.settles.is_empty() && !is_waiting {
            self.settles.drain(..).map(Resolved::Settled).for_each(&mut self.tell);
        }
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
