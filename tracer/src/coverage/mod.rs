//! How much of the memory that a process has come to have is explained by what was recorded: what the kernel says of it is
//! read when recording begins, now and then, at each report and at the end.
//!
//! Cheap counters tell whether there is anything to explain between reports; only then, and at reports, the mappings are
//! looked at one by one. New memory that recorded blocks have been in is explained, freed or not: allocators keep what is freed.

mod account;
pub mod reasons;
mod resident;
mod turns;

use std::{
    io,
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

use hashbrown::{HashMap, HashSet};

use self::{
    account::Account,
    turns::{Budget, Turns},
};
use crate::{
    clock::processor_time,
    collector::{Request, Requests},
    event::{Image, Pid},
    files::root::ProcessDirectory,
    mapped::Owner,
    profile::{Area, Memory, Reason},
    space::memory_map::{self, Region, Usage},
};

/// Least growth that is looked into between reports, bytes.
const WORTH_A_LOOK: u64 = 8 << 20;
/// How many times as long as a look at all mappings took the next one of that process waits, between reports.
const REST: u32 = 100;
/// Of a processor, between reports: what reading the counters of all processes takes in the long run, and what the looks at all mappings
/// do; 1 part of so many.
const SHARE_OF_COUNTERS: u32 = 200;
const SHARE_OF_LOOKS: u32 = 200;
/// How long they take at a time at most, where little was read before.
const BURST: Duration = Duration::from_millis(10);
/// How long a report looks at the mappings of processes.
const REPORT: Duration = Duration::from_millis(500);
/// How long the end of a trace waits for the searches for reasons.
const PATIENCE: Duration = Duration::from_secs(4);
/// The part of unexplained memory, as 1 of so many, that a kind of memory must have to be named.
const WORTH_A_WORD: u64 = 20;

/// The memory of all traced processes.
pub struct Coverage {
    requests: Requests,
    processes: HashMap<Image, Process>,
    /// The ids of those.
    pids: HashSet<Pid>,
    /// Images that may be gone by now are among them.
    turns: Turns,
    counters: Budget,
    looks: Budget,
    /// Images whose memory could not be read since the last tick.
    unread: Vec<Image>,
    started: Instant,
}

struct Process {
    pid: Pid,
    image: Image,
    /// Clock ticks since boot at its start. Its directory is opened for each look: thousands of processes would take all descriptors.
    started: u64,
    begin: Begin,
    last: Reading,
    /// Gone when it was looked at last.
    ended: bool,
    next_look: Instant,
    search: Option<Search>,
}

/// Memory when recording began.
struct Begin {
    usage: Usage,
    /// `None` when the mappings could not be read one by one.
    regions: Option<Vec<Region>>,
}

/// Memory at one moment.
struct Reading {
    at: Instant,
    usage: Usage,
    recorded: u64,
    account: Account,
    /// How much is resident of what it has mapped; `None` when that was not looked at, or could not be.
    resident: Option<HashMap<Owner, u64>>,
    /// Its children. What those allocate that are not traced is not recorded.
    children: Vec<Pid>,
}

/// A search for reasons, on a thread of its own.
enum Search {
    Running(mpsc::Receiver<Vec<Reason>>),
    Done(Vec<Reason>),
}

impl Coverage {
    /// Of no process yet. The collector that takes `requests` knows what is recorded.
    pub fn new(requests: Requests) -> Self {
        let now = Instant::now();
        let (counters, looks) = (Budget::new(SHARE_OF_COUNTERS, BURST, now), Budget::new(SHARE_OF_LOOKS, BURST, now));
        let (processes, pids, turns) = (HashMap::new(), HashSet::new(), Turns::default());
        Self { requests, processes, pids, turns, counters, looks, unread: Vec::new(), started: now }
    }

    /// An image has ended: what is known of its memory, as by [`memory`](Self::memory). Nothing is kept.
    pub fn end(&mut self, image: Image, probed: &[&str]) -> Option<Memory> {
        let mut process = self.remove(image)?;
        (process.ended, process.last.children) = (true, Vec::new());
        Some(process.memory(0, probed, self.started))
    }

    /// What became another program is of no interest any more.
    pub fn forget(&mut self, image: Image) {
        self.remove(image);
    }

    fn remove(&mut self, image: Image) -> Option<Process> {
        let process = self.processes.remove(&image)?;
        self.pids.remove(&process.pid);
        Some(process)
    }

    /// Recording of an image begins.
    pub fn begin(&mut self, pid: Pid, image: Image) {
        let now = Instant::now();
        if self.processes.is_empty() {
            self.started = now;
        }
        let read = ProcessDirectory::with_stat(pid)
            .and_then(|(directory, stat)| Ok((stat.start_time, memory_map::usage(&directory)?, directory)));
        let (started, usage, directory) = match read {
            Ok(read) => read,
            Err(error) => {
                self.unread.push(image);
                return tracing::debug!("cannot read the memory of process {pid}: {error}");
            }
        };
        let regions = memory_map::regions(&directory).inspect_err(|error| {
            tracing::debug!("cannot read the mappings of process {pid}: {error}");
        });
        let begin = Begin { usage, regions: regions.ok() };
        let account = Account::default();
        let last = Reading { at: now, usage, recorded: 0, account, resident: None, children: Vec::new() };
        let (ended, next_look, search) = (false, now, None);
        self.processes.insert(image, Process { pid, image, started, begin, last, ended, next_look, search });
        self.pids.insert(pid);
        self.turns.was_read(image);
    }

    /// Reads the counters of those that were read longest ago, and looks further where they cannot be explained: what is known when a
    /// process ends before it is read again. Call it a few times a second; where there are many processes, not all are read each
    /// time. Images that could not be read: their processes may have ended.
    pub fn tick(&mut self, follows_go: impl Fn(Pid) -> bool) -> Vec<Image> {
        let read = self.read_counters();
        let images: Vec<Image> = read.iter().map(|(image, ..)| *image).collect();
        let all = self.requests.ask(|reply| Request::Held { images, reply }).unwrap_or_default();
        for ((image, at, usage), recorded) in read.into_iter().zip(all) {
            let Some(process) = self.processes.get_mut(&image) else { continue };
            let to_be_explained = process.was_counted(at, usage, recorded);
            if to_be_explained && at >= process.next_look && self.looks.has_some(at) {
                let begun = processor_time();
                process.look(&self.requests, follows_go(process.pid), false);
                let used = processor_time().saturating_sub(begun);
                self.looks.spend(used);
                process.next_look = Instant::now() + used * REST;
            }
        }
        std::mem::take(&mut self.unread)
    }

    /// Reads counters, as long as the budget lasts.
    fn read_counters(&mut self) -> Vec<(Image, Instant, Usage)> {
        let mut read = Vec::new();
        let mut used = processor_time();
        for _ in 0..self.turns.len() {
            let at = Instant::now();
            if !self.counters.has_some(at) {
                break;
            }
            let Some(image) = self.turns.next() else { break };
            let Some(process) = self.processes.get_mut(&image) else { continue };
            match process.open().and_then(|directory| memory_map::counted(&directory)) {
                Ok(usage) => read.push((image, at, usage)),
                Err(_) => {
                    process.ended = true;
                    self.unread.push(image);
                }
            }
            self.turns.was_read(image);
            let before = std::mem::replace(&mut used, processor_time());
            self.counters.spend(used.saturating_sub(before));
        }
        read
    }

    /// Looks at all processes for a report: at their counters, and, until that has taken too long, at their mappings; at those first that
    /// have most to explain. `last`: there will be no other.
    pub fn look(&mut self, follows_go: impl Fn(Pid) -> bool, last: bool) {
        let until = Instant::now() + REPORT;
        let counted = self.count_all();
        let Self { requests, processes, .. } = self;
        let mut by_counters = 0;
        for (image, at, usage, recorded) in counted {
            let Some(process) = processes.get_mut(&image) else { continue };
            if Instant::now() < until {
                process.look(requests, follows_go(process.pid), true);
            } else {
                process.count(at, usage, recorded);
                by_counters += 1;
            }
        }
        if by_counters > 0 {
            tracing::debug!("of {by_counters} processes only the counters were read");
        }
        if last {
            let until = Instant::now() + PATIENCE;
            processes.values_mut().for_each(|process| process.finish_search(until));
        }
    }

    /// Reads the counters of all processes: of those that are alive when, what they say, and how much was held of what was recorded.
    /// Begins with the one that this leaves most to explain of.
    fn count_all(&mut self) -> Vec<(Image, Instant, Usage, u64)> {
        let mut read = Vec::new();
        for (image, process) in &mut self.processes {
            match process.open().and_then(|directory| memory_map::counted(&directory)) {
                Ok(usage) => read.push((*image, Instant::now(), usage)),
                Err(_) => process.ended = true,
            }
        }
        let images: Vec<Image> = read.iter().map(|(image, ..)| *image).collect();
        let held = self.requests.ask(|reply| Request::Held { images, reply });
        let held = held.unwrap_or_else(|_| vec![0; read.len()]);
        let counted = read.into_iter().zip(held).map(|((image, at, usage), held)| (image, at, usage, held));
        let mut counted: Vec<_> = counted.collect();
        counted.sort_by_cached_key(|(image, _, usage, recorded)| {
            let process = self.processes.get(image);
            std::cmp::Reverse(process.map(|process| process.by_counters(*usage, *recorded).unexplained()))
        });
        counted
    }

    /// How much is resident of what an image has mapped, by whom; `None` when that is not known.
    pub fn resident(&self, image: Image) -> Option<&HashMap<Owner, u64>> {
        let process = self.processes.get(&image)?;
        process.last.resident.as_ref().filter(|_| !process.ended)
    }

    /// What is known of a process, which holds `elsewhere` bytes in other heaps than that of an allocator, and whose allocator
    /// in the file `probed` is recorded.
    pub fn memory(&mut self, image: Image, elsewhere: u64, probed: &[&str]) -> Option<Memory> {
        let Self { processes, pids, started, .. } = self;
        let process = processes.get_mut(&image)?;
        process.last.children.retain(|child| !pids.contains(child));
        Some(process.memory(elsewhere, probed, *started))
    }
}

impl Process {
    /// Its directory in /proc.
    fn open(&self) -> io::Result<ProcessDirectory> {
        let (directory, stat) = ProcessDirectory::with_stat(self.pid)?;
        // Its id may be another one's by now.
        if stat.start_time == self.started { Ok(directory) } else { Err(io::ErrorKind::NotFound.into()) }
    }

    /// Its counters were read when `recorded` bytes were held of what was recorded. Whether more has come than that explains.
    fn was_counted(&mut self, at: Instant, usage: Usage, recorded: u64) -> bool {
        let grew = self.grew(usage);
        if grew >= recorded.saturating_add(WORTH_A_LOOK) {
            return true;
        }
        (self.last.at, self.last.usage, self.last.recorded, self.last.account.fresh) = (at, usage, recorded, grew);
        // What a look has shown stays, unless so much is not there any more: what is recorded may not be resident.
        if self.last.account.unexplained() > grew {
            self.last.account.unexplained.clear();
        }
        self.last.account.in_go = self.last.account.in_go.min(grew);
        false
    }

    /// Anonymous memory that has come since recording began, by the counters.
    fn grew(&self, usage: Usage) -> u64 {
        usage.anonymous.saturating_sub(self.begin.usage.anonymous)
    }

    /// Takes counters for what is known of its memory, unless a look at its mappings has shown more that is not explained.
    fn count(&mut self, at: Instant, usage: Usage, recorded: u64) {
        let counted = self.by_counters(usage, recorded);
        (self.last.at, self.last.usage, self.last.recorded) = (at, usage, recorded);
        if counted.unexplained() >= self.last.account.unexplained().saturating_add(self.last.account.in_go) {
            self.last.account = counted;
        }
    }

    /// Without knowing where it is, what is not held now is not known to have ever been.
    fn by_counters(&self, usage: Usage, recorded: u64) -> Account {
        let fresh = self.grew(usage);
        Account { fresh, unexplained: [(Area::Mapped, fresh.saturating_sub(recorded))].into(), in_go: 0 }
    }

    /// Looks at all mappings; `pages`: and at which pages there are of what was mapped.
    fn look(&mut self, requests: &Requests, go: bool, pages: bool) {
        let at = Instant::now();
        let read = self.open().and_then(|directory| Ok((memory_map::usage(&directory)?, directory)));
        let Ok((usage, directory)) = read else {
            self.ended = true;
            return;
        };
        let regions = memory_map::regions(&directory);
        let account = match (&self.begin.regions, regions) {
            // One that is about to end has no mappings any more, but does not say so.
            (_, Ok(end)) if end.is_empty() => {
                self.ended = true;
                return;
            }
            (Some(begin), Ok(end)) => {
                let pieces = account::pieces(begin, &end);
                let ranges = pieces.iter().map(|piece| piece.range.clone()).collect();
                let covered = requests.ask(|reply| Request::Covered { image: self.image, ranges, reply }).ok();
                account::account(begin, &end, &pieces, &covered.unwrap_or_default(), go)
            }
            _ => self.by_counters(usage, held(requests, self.image)),
        };
        // After the records up to now have been taken in, which the question for what is covered sees to.
        let recorded = held(requests, self.image);
        let mapped = pages.then(|| requests.ask(|reply| Request::Mapped { image: self.image, reply }).ok()).flatten();
        let resident = mapped.and_then(|ranges| resident::by_owner(&directory.file("pagemap").ok()?, &ranges));
        self.last = Reading { at, usage, recorded, account, resident, children: reasons::children(self.pid) };
        if self.search.is_none() && !self.figures(0).is_explained() {
            self.search();
        }
    }

    /// Searches for reasons, once.
    fn search(&mut self) {
        let (reply, answer) = mpsc::channel();
        let pid = self.pid;
        let search = thread::Builder::new().name("reasons".to_owned()).spawn(move || {
            // The trace may be over.
            let _ = reply.send(reasons::look(pid));
        });
        match search {
            Ok(_) => self.search = Some(Search::Running(answer)),
            Err(error) => tracing::debug!("cannot search for what takes memory: {error}"),
        }
    }

    fn finish_search(&mut self, until: Instant) {
        if let Some(Search::Running(answer)) = &self.search {
            let patience = until.saturating_duration_since(Instant::now());
            self.search = Some(Search::Done(answer.recv_timeout(patience).unwrap_or_default()));
        }
    }

    fn memory(&mut self, elsewhere: u64, probed: &[&str], started: Instant) -> Memory {
        if let Some(Search::Running(answer)) = &self.search
            && let Ok(reasons) = answer.try_recv()
        {
            self.search = Some(Search::Done(reasons));
        }
        let mut memory = self.figures(elsewhere);
        memory.as_of = self.ended.then(|| self.last.at.saturating_duration_since(started));
        if !memory.is_explained() {
            let mut areas: Vec<(Area, u64)> = self.last.account.unexplained.clone().into_iter().collect();
            areas.retain(|(_, bytes)| bytes.saturating_mul(WORTH_A_WORD) >= memory.unexplained);
            areas.sort_unstable_by_key(|(_, bytes)| std::cmp::Reverse(*bytes));
            memory.reasons = areas.into_iter().map(|(area, bytes)| Reason::Grown(area, bytes)).collect();
            if let Some(Search::Done(reasons)) = &self.search {
                let is_probed = |path: &str| probed.contains(&path);
                let unseen = |reason: &&Reason| !matches!(reason, Reason::Allocator(_, path) if is_probed(path));
                memory.reasons.extend(reasons.iter().filter(unseen).cloned());
            }
        }
        let children = self.last.children.len() as u64;
        if children > 0 && (memory.recorded == 0 || !memory.is_explained()) {
            memory.reasons.push(Reason::Children(children));
        }
        memory
    }

    fn figures(&self, elsewhere: u64) -> Memory {
        let Self { begin, last: Reading { usage, recorded, account, .. }, .. } = self;
        Memory {
            anonymous_begin: begin.usage.anonymous,
            anonymous_end: usage.anonymous,
            file: usage.file,
            shared: usage.shared,
            recorded: recorded.saturating_add(elsewhere),
            fresh: account.fresh,
            unexplained: account.unexplained(),
            in_go: account.in_go,
            goroutine_stacks: 0,
            is_partial: false,
            reasons: Vec::new(),
            as_of: None,
        }
    }
}

fn held(requests: &Requests, image: Image) -> u64 {
    let held = requests.ask(|reply| Request::Held { images: vec![image], reply }).ok();
    held.and_then(|held| held.first().copied()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;
    use crate::collector;

    #[test]
    fn counters_hide_nothing_that_a_look_has_shown() {
        let usage = |anonymous| Usage { anonymous, file: 0, shared: 0 };
        let at = Instant::now();
        let account = Account { fresh: 50, unexplained: [(Area::Mapped, 50)].into(), in_go: 0 };
        let last = Reading { at, usage: usage(100), recorded: 0, account, resident: None, children: Vec::new() };
        let begin = Begin { usage: usage(100), regions: None };
        let (image, search) = (Image(1), None);
        let mut process = Process { pid: 1, image, started: 0, begin, last, ended: false, next_look: at, search };
        process.count(at, usage(120), 5);
        assert_eq!((process.figures(0).anonymous_end, process.figures(0).unexplained), (120, 50));
        process.count(at, usage(200), 20);
        assert_eq!((process.figures(0).fresh, process.figures(0).unexplained), (100, 80));
        // Blocks that are not resident explain nothing, unless what was not explained is gone.
        assert!(!process.was_counted(at, usage(190), 1 << 30));
        assert_eq!((process.figures(0).fresh, process.figures(0).unexplained), (90, 80));
        assert!(!process.was_counted(at, usage(150), 1 << 30));
        assert_eq!((process.figures(0).fresh, process.figures(0).unexplained), (50, 0));
    }

    #[test]
    fn what_cannot_be_read_is_told() {
        let (requests, _) = collector::channel().unwrap();
        let mut coverage = Coverage::new(requests);
        let mut children: Vec<_> = (0..3).map(|_| Command::new("sleep").arg("1000").spawn().unwrap()).collect();
        children[0].kill().unwrap();
        children[0].wait().unwrap();
        for (child, image) in children.iter().zip(1..) {
            coverage.begin(child.id(), Image(image));
        }
        let no_go = |_| false;
        assert_eq!(coverage.tick(no_go), [Image(1)], "gone before it could be read");
        children[2].kill().unwrap();
        children[2].wait().unwrap();
        assert_eq!(coverage.tick(no_go), [Image(3)]);
        // One whose end was heard of is not asked for any more.
        coverage.forget(Image(3));
        assert_eq!(coverage.tick(no_go), []);
        children[1].kill().unwrap();
        children[1].wait().unwrap();
        assert_eq!(coverage.tick(no_go), [Image(2)]);
    }
}
