//! How much of the memory that a process has come to have is explained by what was recorded: what the kernel says of it is
//! read when recording begins, now and then, at each report and at the end.
//!
//! Cheap counters tell whether there is anything to explain between reports; only then, and at reports, the mappings are
//! looked at one by one. New memory that recorded blocks have been in is explained, freed or not: allocators keep what is freed.

mod account;
mod before;
mod begin;
mod go;
mod process;
pub mod reasons;
mod resident;
mod split;
mod turns;

use std::time::{Duration, Instant};

use hashbrown::{HashMap, HashSet};

use self::{
    account::Account,
    begin::Begin,
    process::{Process, Reading},
    turns::Turns,
};
pub use self::{
    begin::Had,
    go::{GoMemory, may_be_heap},
    resident::Resident,
};
use crate::{
    clock::processor_time,
    collector::{Request, Requests},
    event::{Image, Pid},
    files::root::ProcessDirectory,
    profile::Memory,
    share::Share,
    space::memory_map::{self, Region, Usage},
};

/// How many times as long as a look at all mappings took the next one of that process waits, between reports.
const REST: u32 = 100;
/// Of a processor, between reports: what reading the counters of all processes takes in the long run, and what the looks at all mappings
/// do; 1 part of so many.
const SHARE_OF_COUNTERS: u32 = 400;
const SHARE_OF_LOOKS: u32 = 200;
/// How long they take at a time at most, where little was read before.
const BURST: Duration = Duration::from_millis(10);
/// How long a report looks at the mappings of processes.
const REPORT: Duration = Duration::from_millis(500);
/// How long the end of a trace waits for the searches for reasons.
const PATIENCE: Duration = Duration::from_secs(4);

/// The memory of all traced processes.
pub struct Coverage {
    requests: Requests,
    /// Whether memory from before is looked for page by page.
    by_page: bool,
    processes: HashMap<Image, Process>,
    /// The ids of those.
    pids: HashSet<Pid>,
    /// Images that may be gone by now are among them.
    turns: Turns,
    counters: Share,
    looks: Share,
    /// Images whose memory could not be read since the last tick.
    unread: Vec<Image>,
    started: Instant,
}

impl Coverage {
    /// Of no process yet. The collector that takes `requests` knows what is recorded. `by_page`: memory from before is looked for page by
    /// page, which says something only where it is recorded what processes map, and huge pages do not come unasked.
    pub fn new(requests: Requests, by_page: bool) -> Self {
        let now = Instant::now();
        let (counters, looks) = (Share::new(SHARE_OF_COUNTERS, BURST, now), Share::new(SHARE_OF_LOOKS, BURST, now));
        let (processes, pids, turns) = (HashMap::new(), HashSet::new(), Turns::default());
        Self { requests, by_page, processes, pids, turns, counters, looks, unread: Vec::new(), started: now }
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

    /// Recording of an image begins, or has begun: then it is known what of its memory is [new](Had).
    pub fn begin(&mut self, pid: Pid, image: Image, had: Had) {
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
        let mut begin = Begin::new(had, usage, &directory, self.by_page).unwrap_or_else(|(begin, error)| {
            tracing::debug!("cannot read the mappings of process {pid}: {error}");
            begin
        });
        if had != Had::Nothing
            && let Some(before) = &begin.before
        {
            // The collector's end shows elsewhere.
            let _ = self.requests.send(Request::Reserved { image, ranges: before.reserved() });
        }
        if had == Had::Parents {
            begin.leave_out(&self.requests.ask(|reply| Request::Mapped { image, reply }).unwrap_or_default());
        }
        let fresh = usage.anonymous.saturating_sub(begin.usage.anonymous);
        let account = Account { fresh, ..Account::default() };
        let last = Reading { at: now, usage, recorded: 0, account, resident: None, children: Vec::new() };
        let (ended, next_look, search) = (false, now, None);
        self.processes.insert(image, Process { pid, image, started, begin, last, ended, next_look, search });
        self.pids.insert(pid);
        self.turns.was_read(image);
    }

    /// Reads the counters of those that were read longest ago, and looks further where they cannot be explained: what is known when a
    /// process ends before it is read again. Call it a few times a second; where there are many processes, not all are read each
    /// time. `go` tells where among a process's mappings Go heaps are. Images that could not be read: their processes may have ended.
    pub fn tick(&mut self, go: impl Fn(Pid, &[Region]) -> GoMemory) -> Vec<Image> {
        let read = self.read_counters();
        let images: Vec<Image> = read.iter().map(|(image, ..)| *image).collect();
        let all = self.requests.ask(|reply| Request::Held { images, reply }).unwrap_or_default();
        for ((image, at, usage), recorded) in read.into_iter().zip(all) {
            let Some(process) = self.processes.get_mut(&image) else { continue };
            let to_be_explained = process.was_counted(at, usage, recorded);
            if to_be_explained && at >= process.next_look && self.looks.has_some(at) {
                let begun = processor_time();
                process.look(&self.requests, &go, false);
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
    /// have most to explain. `go` is as in [`tick`](Self::tick). `last`: there will be no other.
    pub fn look(&mut self, go: impl Fn(Pid, &[Region]) -> GoMemory, last: bool) {
        let until = Instant::now() + REPORT;
        let counted = self.count_all();
        let Self { requests, processes, .. } = self;
        let mut by_counters = 0;
        for (image, at, usage, recorded) in counted {
            let Some(process) = processes.get_mut(&image) else { continue };
            if Instant::now() < until {
                process.look(requests, &go, true);
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
    pub fn resident(&self, image: Image) -> Option<&Resident> {
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

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;
    use crate::collector;

    #[test]
    fn what_cannot_be_read_is_told() {
        let (requests, _) = collector::channel().unwrap();
        let mut coverage = Coverage::new(requests, true);
        let mut children: Vec<_> = (0..3).map(|_| Command::new("sleep").arg("1000").spawn().unwrap()).collect();
        children[0].kill().unwrap();
        children[0].wait().unwrap();
        for (child, image) in children.iter().zip(1..) {
            coverage.begin(child.id(), Image(image), Had::All);
        }
        let no_go = |_, _: &[Region]| GoMemory::Nowhere;
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
