//! The goroutines of traced Go processes, looked at now and then while they are traced: which groups grow, and which of
//! those look like a leak.

use std::{
    collections::HashSet,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::Result;

use super::{goroutines, process};
use crate::{
    event::Pid,
    golang::{Group, Growth, Home, Runtime, pause},
    process::status::{self, NotTraceable, Status},
    profile::GoroutineGroup,
    report::visible,
};

/// Times that the runtime of a process is looked for which has just begun.
const ATTEMPTS: u32 = 10;
/// Longest time between looks that is for the sake of others.
const LONGEST: Duration = Duration::from_secs(60);

/// One Go process.
pub struct GoWatch {
    pid: Pid,
    status: Status,
    runtime: Arc<Runtime>,
    /// Plugins that run in it.
    plugins: Vec<Arc<Runtime>>,
    opened: Instant,
    growth: Growth<Box<[u64]>>,
    /// Groups of the first look: those that are gone are reported too.
    first: Vec<Group>,
    last: Vec<Group>,
}

impl GoWatch {
    /// Of process `pid`; `None` when it is no Go program.
    ///
    /// # Errors
    /// Its runtime cannot be found, perhaps because it has just begun.
    pub fn open(pid: Pid) -> Result<Option<Self>> {
        let status = status::look(pid)?;
        let runtime = match goroutines::open(pid, &status) {
            Err(error) if process::is_not_go(&error) => return Ok(None),
            found => found?,
        };
        Ok(Some(Self::of(pid, status, runtime)))
    }

    /// Of a process whose runtime is known.
    pub fn of(pid: Pid, status: Status, runtime: Arc<Runtime>) -> Self {
        let (opened, growth) = (Instant::now(), Growth::default());
        Self { pid, status, runtime, plugins: Vec::new(), opened, growth, first: Vec::new(), last: Vec::new() }
    }

    /// Looks at the goroutines; `now` is the time at which.
    ///
    /// # Errors
    /// They cannot be read. What was seen before stays.
    pub fn look(&mut self, now: Instant) -> Result<()> {
        self.allow();
        let groups = goroutines::read(self.pid, &self.status, &self.runtime, &self.plugins)?.groups;
        let time = now.saturating_duration_since(self.opened).as_nanos();
        let time = u64::try_from(time).unwrap_or(u64::MAX);
        self.growth.look(time, groups.iter().map(|group| (group.key(), group.count)));
        if self.first.is_empty() {
            self.first.clone_from(&groups);
        }
        self.last = groups;
        Ok(())
    }

    /// Tables may be read for as long as one look takes.
    fn allow(&self) {
        let runtimes = self.plugins.iter().chain([&self.runtime]);
        runtimes.for_each(|runtime| runtime.executable.tables.allow_a_look());
    }

    /// The groups of the last look, largest first, and those of the first one that are gone.
    pub fn groups(&self) -> Vec<GoroutineGroup> {
        self.allow();
        let there: HashSet<Box<[u64]>> = self.last.iter().map(Group::key).collect();
        let gone = self.first.iter().filter(|group| !there.contains(&group.key()));
        let gone: Vec<Group> =
            gone.map(|group| Group { count: 0, waiting_since: None, waits_on: None, ..group.clone() }).collect();
        let trend = |group: &Group| self.growth.trend(&group.key());
        let process = (self.pid, &*self.status.exe);
        goroutines::named(&self.runtime, &self.plugins, process, self.last.iter().chain(&gone), trend)
    }
}

/// All processes of a session.
#[derive(Default)]
pub struct GoWatches {
    watched: Vec<Watched>,
    /// Plugins in the runtimes of executables, by process.
    plugins: Vec<(Pid, Arc<Runtime>)>,
}

struct Watched {
    pid: Pid,
    since: Instant,
    /// When to look next; `None`: not any more.
    next: Option<Instant>,
    stage: Stage,
}

enum Stage {
    /// Its runtime has been looked for so often, in vain, because of that.
    Searching(u32, Option<String>),
    Go(Box<GoWatch>),
    Other,
}

impl GoWatches {
    /// Looks at a process from now on, and again when it has become another program. Its Go runtime is looked for where it is
    /// not known.
    pub fn watch(&mut self, pid: Pid, known: Option<Arc<Runtime>>) {
        self.watched.retain(|watched| watched.pid != pid || watched.is_library());
        let now = Instant::now();
        let watch = known.and_then(|runtime| Some(GoWatch::of(pid, status::look(pid).ok()?, runtime)));
        let stage = watch.map_or(Stage::Searching(0, None), |watch| Stage::Go(Box::new(watch)));
        let mut watched = Watched { pid, since: now, next: Some(now), stage };
        watched.look(&self.plugins, self.looked_at() + 1);
        self.watched.push(watched);
    }

    /// A process has become another program: looks at none of its goroutines any more.
    pub fn forget(&mut self, pid: Pid) {
        self.watched.retain(|watched| watched.pid != pid);
        self.plugins.retain(|(other, _)| *other != pid);
    }

    /// Looks at the goroutines of a library of the process from now on, too.
    pub fn add_library(&mut self, pid: Pid, runtime: Arc<Runtime>) {
        let Ok(status) = status::look(pid) else { return };
        let now = Instant::now();
        let stage = Stage::Go(Box::new(GoWatch::of(pid, status, runtime)));
        let mut watched = Watched { pid, since: now, next: Some(now), stage };
        watched.look(&[], self.looked_at() + 1);
        self.watched.push(watched);
    }

    /// Knows the code of a plugin of the process from now on.
    pub fn add_plugin(&mut self, pid: Pid, plugin: Arc<Runtime>) {
        self.plugins.push((pid, plugin));
    }

    /// How many are looked at again and again.
    fn looked_at(&self) -> u32 {
        self.watched.iter().filter(|watched| watched.next.is_some()).count() as u32
    }

    /// Looks at those for which it is time.
    pub fn tick(&mut self, now: Instant) {
        let all = self.looked_at();
        for watched in self.watched.iter_mut().filter(|watched| watched.next.is_some_and(|next| next <= now)) {
            watched.look(&self.plugins, all);
        }
    }

    /// Looks at all, for the last time.
    pub fn finish(&mut self) {
        let all = self.looked_at();
        for watched in self.watched.iter_mut().filter(|watched| watched.next.is_some()) {
            watched.look(&self.plugins, all);
        }
    }

    /// The groups of all processes, largest first.
    pub fn groups(&self) -> Vec<GoroutineGroup> {
        let go = self.watched.iter().filter_map(|watched| match &watched.stage {
            Stage::Go(watch) => Some(watch.groups()),
            Stage::Searching(..) | Stage::Other => None,
        });
        let mut groups: Vec<GoroutineGroup> = go.flatten().collect();
        groups.sort_by_key(|group| std::cmp::Reverse(group.count));
        groups
    }

    /// How fast the goroutines of all processes have been growing of late, goroutines per second; `None` when no process has been looked at for
    /// long enough to tell.
    pub fn per_second(&self) -> Option<f64> {
        let rates = self.watched.iter().filter_map(|watched| match &watched.stage {
            Stage::Go(watch) => watch.growth.all_per_second(),
            Stage::Searching(..) | Stage::Other => None,
        });
        rates.reduce(|sum, rate| sum + rate)
    }

    /// What the reader of a report should know.
    pub fn notes(&self) -> Vec<String> {
        let notes = self.watched.iter().filter_map(|watched| match &watched.stage {
            Stage::Searching(_, Some(why)) => Some(why.clone()),
            _ => None,
        });
        notes.collect()
    }
}

impl Watched {
    /// Whether it is about the runtime of a library.
    fn is_library(&self) -> bool {
        matches!(&self.stage, Stage::Go(watch) if watch.runtime.home != Home::Executable)
    }

    /// Looks, and says when to do so again, as one of so many.
    fn look(&mut self, plugins: &[(Pid, Arc<Runtime>)], all: u32) {
        let begun = Instant::now();
        if let Stage::Searching(attempts, _) = self.stage {
            self.stage = match GoWatch::open(self.pid) {
                Ok(Some(watch)) => Stage::Go(Box::new(watch)),
                Ok(None) => Stage::Other,
                // A process that is gone, or may not be looked at, needs no words about goroutines.
                Err(error) if error.downcast_ref::<NotTraceable>().is_some() => Stage::Searching(attempts + 1, None),
                Err(error) => Stage::Searching(attempts + 1, Some(format!("{error:#}"))),
            };
        }
        let now = Instant::now();
        // What is done once for a process makes no look rarer.
        let took = match &mut self.stage {
            Stage::Go(watch) => {
                if watch.runtime.home == Home::Executable {
                    let own = plugins.iter().filter(|(pid, _)| *pid == self.pid);
                    watch.plugins = own.map(|(_, plugin)| Arc::clone(plugin)).collect();
                }
                if let Err(error) = watch.look(now) {
                    tracing::debug!("{}", visible(&format!("{error:#}")));
                }
                now.elapsed()
            }
            Stage::Searching(..) | Stage::Other => now - begun,
        };
        tracing::debug!(pid = self.pid, opened = ?(now - begun), "goroutines looked at in {took:?}");
        let lasted = now.saturating_duration_since(self.since);
        let pause = pause(lasted, took).max(pause(lasted, took.saturating_mul(all)).min(LONGEST));
        self.next = match self.stage {
            Stage::Other => None,
            Stage::Searching(attempts, _) if attempts >= ATTEMPTS => None,
            _ => now.checked_add(took + pause),
        };
    }
}
