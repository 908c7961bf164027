//! The memory of one process: when recording began, and as it was looked at last.

use std::{io, sync::mpsc, thread, time::Instant};

use super::{
    account::{self, Account},
    begin::{Begin, Had},
    go::GoMemory,
    reasons,
    resident::Resident,
};
use crate::{
    clock::monotonic,
    collector::{Request, Requests},
    event::{Image, Pid},
    files::root::ProcessDirectory,
    profile::{Area, Memory, Reason},
    space::memory_map::{self, Region, Usage},
};

/// Least growth that is looked into between reports, bytes.
const WORTH_A_LOOK: u64 = 8 << 20;
/// The part of unexplained memory, as 1 of so many, that a kind of memory must have to be named.
const WORTH_A_WORD: u64 = 20;

pub(super) struct Process {
    pub(super) pid: Pid,
    pub(super) image: Image,
    /// Clock ticks since boot at its start. Its directory is opened for each look: thousands of processes would take all descriptors.
    pub(super) started: u64,
    pub(super) begin: Begin,
    pub(super) last: Reading,
    /// Gone when it was looked at last.
    pub(super) ended: bool,
    pub(super) next_look: Instant,
    pub(super) search: Option<Search>,
}

/// Memory at one moment.
pub(super) struct Reading {
    pub(super) at: Instant,
    pub(super) usage: Usage,
    pub(super) recorded: u64,
    pub(super) account: Account,
    /// How much is resident of what it has mapped; `None` when that was not looked at, or could not be.
    pub(super) resident: Option<Resident>,
    /// Its children. What those allocate that are not traced is not recorded.
    pub(super) children: Vec<Pid>,
}

/// A search for reasons, on a thread of its own.
pub(super) enum Search {
    Running(mpsc::Receiver<Vec<Reason>>),
    Done(Vec<Reason>),
}

impl Process {
    /// Its directory in /proc.
    pub(super) fn open(&self) -> io::Result<ProcessDirectory> {
        let (directory, stat) = ProcessDirectory::with_stat(self.pid)?;
        // Its id may be another one's by now.
        if stat.start_time == self.started { Ok(directory) } else { Err(io::ErrorKind::NotFound.into()) }
    }

    /// Its counters were read when `recorded` bytes were held of what was recorded. Whether more has come than that explains.
    pub(super) fn was_counted(&mut self, at: Instant, usage: Usage, recorded: u64) -> bool {
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
    pub(super) fn grew(&self, usage: Usage) -> u64 {
        usage.anonymous.saturating_sub(self.begin.usage.anonymous)
    }

    /// Takes counters for what is known of its memory, unless a look at its mappings has shown more that is not explained.
    pub(super) fn count(&mut self, at: Instant, usage: Usage, recorded: u64) {
        let counted = self.by_counters(usage, recorded);
        (self.last.at, self.last.usage, self.last.recorded) = (at, usage, recorded);
        if counted.unexplained() >= self.last.account.unexplained().saturating_add(self.last.account.in_go) {
            self.last.account = counted;
        }
    }

    /// Without knowing where it is, what is not held now is not known to have ever been.
    pub(super) fn by_counters(&self, usage: Usage, recorded: u64) -> Account {
        let fresh = self.grew(usage);
        let unexplained = [(Area::Mapped, fresh.saturating_sub(recorded))].into();
        Account { fresh, unexplained, by_stacks: 0, in_go: 0, is_counted: true }
    }

    /// Looks at all mappings, among which `go` tells where Go heaps are; `pages`: and at which pages there are of what was mapped.
    pub(super) fn look(&mut self, requests: &Requests, go: &dyn Fn(Pid, &[Region]) -> GoMemory, pages: bool) {
        let at = Instant::now();
        let read = self.open().and_then(|directory| Ok((memory_map::usage(&directory)?, directory)));
        let Ok((usage, directory)) = read else {
            self.ended = true;
            return;
        };
        let regions = memory_map::regions(&directory);
        let read = monotonic();
        let own = requests.ask(|reply| Request::Mapped { image: self.image, reply }).ok();
        if let Some(own) = &own {
            self.begin.learn(own, read);
        }
        let resident = own.filter(|_| pages).and_then(|own| {
            let regions = regions.as_deref().unwrap_or_default();
            Resident::of(&directory.file("pagemap").ok()?, &own.parts, regions)
        });
        let account = match (&self.begin.before, &regions) {
            // One that is about to end has no mappings any more, but does not say so.
            (_, Ok(end)) if end.is_empty() => {
                self.ended = true;
                return;
            }
            (Some(before), Ok(end)) => {
                let pieces = account::pieces(before.regions(), end);
                let ranges = pieces.iter().map(|piece| piece.range.clone()).collect();
                let covered = requests.ask(|reply| Request::Covered { image: self.image, ranges, reply }).ok();
                let covered = covered.unwrap_or_default();
                // No earlier: an arena that has come since the mappings were read does no harm.
                let go = go(self.pid, end);
                let by_region = resident.as_ref().map(|resident| &resident.by_region);
                let mut account = account::account(before.regions(), end, (&pieces, &covered), by_region, &go);
                if self.begin.had == Had::Parents {
                    account.be_inherited();
                }
                if self.begin.has_strayed {
                    account.be_at_most(self.grew(usage));
                }
                account
            }
            _ => self.by_counters(usage, held(requests, self.image)),
        };
        // After the records up to now have been taken in, which the question for what is covered sees to.
        let recorded = held(requests, self.image);
        self.last = Reading { at, usage, recorded, account, resident, children: reasons::children(self.pid) };
        if self.search.is_none() && !self.figures(0).is_explained() {
            self.search();
        }
    }

    /// Searches for reasons, once.
    pub(super) fn search(&mut self) {
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

    pub(super) fn finish_search(&mut self, until: Instant) {
        if let Some(Search::Running(answer)) = &self.search {
            let patience = until.saturating_duration_since(Instant::now());
            self.search = Some(Search::Done(answer.recv_timeout(patience).unwrap_or_default()));
        }
    }

    pub(super) fn memory(&mut self, elsewhere: u64, probed: &[&str], started: Instant) -> Memory {
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

    pub(super) fn figures(&self, elsewhere: u64) -> Memory {
        let Self { begin, last: Reading { usage, recorded, account, .. }, .. } = self;
        Memory {
            anonymous_begin: begin.usage.anonymous,
            anonymous_end: usage.anonymous,
            file: usage.file,
            shared: usage.shared,
            recorded: recorded.saturating_add(elsewhere),
            fresh: account.fresh,
            unexplained: account.unexplained(),
            by_stacks: account.by_stacks.min(account.unexplained()),
            in_go: account.in_go,
            goroutine_stacks: 0,
            is_partial: false,
            is_counted: account.is_counted,
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
    use super::*;

    #[test]
    fn counters_hide_nothing_that_a_look_has_shown() {
        let usage = |anonymous| Usage { anonymous, file: 0, shared: 0 };
        let at = Instant::now();
        let account = Account { fresh: 50, unexplained: [(Area::Mapped, 50)].into(), ..Account::default() };
        let last = Reading { at, usage: usage(100), recorded: 0, account, resident: None, children: Vec::new() };
        let begin = Begin::unread(Had::All, usage(100));
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
}
