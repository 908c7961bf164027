//! Which files are known, what is to be looked at next, and by whom. Never waits for a file.

mod completing;

use std::{
    sync::{Arc, mpsc},
    time::{Duration, Instant},
};

use hashbrown::{HashMap, HashSet};

use super::{
    ask::{Ask, Input, Mapped, Then},
    next::next_job,
    processes::{PAUSE, PERIOD, Processes},
    queue::Queue,
    resolved::Resolved,
    rests::{Rests, Room},
    worker::{Done, Job, Opening},
};
use crate::{
    event::{Image, Pid},
    files::module::{Identity, Module},
    priority,
    profile::UnwindTable,
    unwinder::{Compiled, Unwinder},
};

/// How often opening a file is tried: it may be gone from where it was mapped each time, or another may be there.
const ATTEMPTS: u32 = 20;

/// Files that are known from which on it is looked which are in use.
const MAX_KNOWN: usize = 1024;
/// What nobody has met for so long is not in use, and how often that is looked for.
const IDLE: Duration = Duration::from_secs(2);
const RELIEF: Duration = Duration::from_secs(5);

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
    /// Tables of files that nobody has wanted yet.
    untold: HashMap<u32, UnwindTable>,
    /// Copies of files that processes had mapped when they began to be recorded, by where.
    copies: HashMap<Pid, Vec<Mapped>>,
    processes: Processes,
    /// Stacks to be unwound.
    rests: Rests,
    /// Reads the mappings for that.
    reader: mpsc::Sender<(Image, Pid)>,
    /// The memory that they do not take any more, and how much of that the BPF side has heard of.
    room: Room,
    given: u64,
    follows: Vec<(HashSet<u32>, Then)>,
    settles: Vec<u64>,
    /// Nothing is recorded any more.
    is_over: bool,
}

impl Desk {
    pub(super) fn new(
        unwinder: Unwinder,
        room: Room,
        workers: Vec<mpsc::Sender<Job>>,
        reader: mpsc::Sender<(Image, Pid)>,
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
            untold: HashMap::new(),
            copies: HashMap::new(),
            processes: Processes::default(),
            rests: Rests::default(),
            reader,
            room,
            given: 0,
            follows: Vec::new(),
            settles: Vec::new(),
            is_over: false,
        }
    }

    /// Works until nobody asks any more.
    pub(super) fn run(mut self, inputs: &mpsc::Receiver<Input>) {
        priority::set_own(priority::URGENT);
        loop {
            let first = match inputs.recv_timeout(self.patience()) {
                Ok(input) => Some(input),
                Err(mpsc::RecvTimeoutError::Timeout) => None,
                Err(mpsc::RecvTimeoutError::Disconnected) => return,
            };
            for input in first.into_iter().chain(inputs.try_iter()) {
                match input {
                    Input::Ask(ask) => self.obey(ask),
                    Input::Read(reading) => self.has_read(reading),
                    Input::Done { worker, done, is_last } => self.take(worker, done, is_last),
                    Input::End => return,
                }
            }
            self.make_known();
            self.unwind();
            self.relieve();
            self.processes.find_changed(|pid| self.unwinder.changes_of(pid));
            self.give_work();
            self.settle();
        }
    }

    /// How long to wait for inputs.
    fn patience(&self) -> Duration {
        let most = if self.rests.has_ready() {
            Duration::ZERO
        } else if self.processes.has_stacks() {
            PAUSE
        } else {
            PERIOD
        };
        let rest = self.queue.rest();
        if rest.is_zero() { most } else { most.min(rest) }
    }

    fn obey(&mut self, ask: Ask) {
        match ask {
            Ask::Follow(pid, code, then) => {
                let left = code.iter().filter_map(|(_, module)| self.want(Arc::clone(module))).collect();
                self.follows.push((left, then));
                // They cannot be asked for a number, and may not answer any more when they are met.
                let copies: Vec<Mapped> = code.into_iter().filter(|(_, module)| module.original().is_some()).collect();
                if !copies.is_empty() {
                    self.copies.insert(pid, copies);
                }
            }
            Ask::Began { image, pid, program } => {
                self.processes.begin(image, pid);
                if let Some(program) = program {
                    self.queue.look_at_program(pid, program);
                }
            }
            Ask::Ended(image) => {
                self.rests.ended(image);
                if let Some(pid) = self.processes.end(image) {
                    self.copies.remove(&pid);
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
            Ask::Locate(image, stacks) => self.processes.add(image, stacks),
            Ask::Reads(image, pid) => {
                if self.processes.pid(image).is_some() {
                    self.rests.reads(image, pid);
                }
            }
            Ask::Unwind(image, number, cut) => {
                let (stack, rest) = *cut;
                let is_known = self.known.contains_key(&number);
                match self.processes.pid(image) {
                    Some(pid) => self.rests.add(image, pid, (number, is_known), stack, rest),
                    None => (self.tell)(Resolved::stays_cut(stack)),
                }
            }
            Ask::Machine { at_once } => self.queue.look_at_machine(at_once),
            Ask::Settle { number, is_last } => {
                self.is_over |= is_last;
                self.settles.push(number);
            }
        }
    }

    /// Has a file compiled that is not known yet: the number under which it will be.
    fn want(&mut self, module: Arc<Module>) -> Option<u32> {
        if let Some(&number) = self.numbers.get(module.identity()) {
            self.tell_table(number);
            return Some(number).filter(|number| !self.known.contains_key(number));
        }
        let number = self.unwinder.number_of(&module)?;
        self.numbers.insert(module.identity().clone(), number);
        if self.known.contains_key(&number) {
            // By another name: some file systems tell several of one file.
            self.tell_table(number);
            return None;
        }
        self.compile(number, module);
        Some(number)
    }

    /// Tells of the table of a file that was compiled before anybody wanted it.
    fn tell_table(&mut self, number: u32) {
        if let Some(Some(module)) = self.known.get(&number)
            && let Some(table) = self.untold.remove(&number)
        {
            (self.tell)(Resolved::Known { number, module: Some(Arc::clone(module)), table: Some(table) });
        }
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
                self.processes.give_back(image, space);
            }
            Done::Mappings(image, mappings) => {
                if self.processes.has_changed(image, mappings) {
                    (self.tell)(Resolved::Mapped(image));
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
                tracing::debug!(
                    number,
                    found,
                    is_last,
                    "{} is another file than was met",
                    module.path().escape_debug()
                );
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
                self.rests.known(number);
                (self.tell)(Resolved::Known { number, module: None, table: None });
            }
            Opening::Gone => {
                tracing::debug!(number, "a file that was met is not mapped any more, or its process has ended");
                self.unwinder.retry(number);
            }
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
                self.rests.known(number);
                let table = if is_met {
                    Some(table)
                } else {
                    self.untold.insert(number, table);
                    None
                };
                (self.tell)(Resolved::Known { number, module: Some(module), table });
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
        self.untold.retain(|number, _| !idle.contains(number));
        self.numbers.retain(|_, number| !idle.contains(number));
        (self.tell)(Resolved::Forgotten(idle.into_iter().collect()));
    }

    fn give_work(&mut self) {
        // The first worker is given what is short, and the others what is left.
        self.idle.sort_unstable();
        for worker in std::mem::take(&mut self.idle) {
            let Some(job) = self.next_job(worker == 0) else {
                self.idle.push(worker);
                continue;
            };
            // A worker ends after the desk.
            let _ = self.workers[worker].send(job);
        }
    }

    fn next_job(&mut self, is_short: bool) -> Option<Job> {
        let numbers = &self.numbers;
        let may_work_in_background = self.settles.is_empty();
        let is_known = |module: &Module| numbers.contains_key(module.identity());
        let job = next_job(&mut self.queue, &mut self.processes, is_short, may_work_in_background, is_known);
        self.opening += usize::from(matches!(job, Some(Job::Open(..))));
        job
    }

    /// Tells when nothing is left to do that somebody may wait for.
    fn settle(&mut self) {
        let is_at_work =
            !self.in_work.is_empty() || self.queue.has_files_to_open() || self.opening > 0 || self.processes.is_busy();
        if self.settles.is_empty() || is_at_work {
            return;
        }
        // A worker may be about to find a file that was met.
        if self.is_over && self.idle.len() == self.workers.len() {
            let tell = &mut self.tell;
            self.rests.give_up_on_files(|stack| tell(Resolved::stays_cut(stack)));
        }
        if self.rests.is_empty() {
            self.settles.drain(..).map(Resolved::Settled).for_each(&mut self.tell);
        }
    }
}
