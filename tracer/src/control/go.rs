//! The Go runtimes of traced processes: their heaps, and the names of their code.

use std::{sync::Arc, time::Duration};

use anyhow::{Context as _, Result, anyhow};
use tracer_ebpf::golang::RUNTIMES;

use super::Session;
use crate::{
    collector::Request,
    config::{Config, GoHeapChoice},
    coverage::{GoMemory, may_be_heap},
    event::{Image, Pid},
    go::{
        heap::{GoHeap, GoProcess, Means, Wanted, Way, Wish},
        process::{Libraries, reader},
    },
    golang::{Runtime, heap},
    present::GoTrace,
    process::status::{self, NotTraceable},
    space::memory_map::Region,
};

/// Most Go heaps of processes that have ended whose holdings are kept.
const MAX_OVER: usize = 256;

impl Session {
    /// Begins to follow the Go heaps of a process. Whether it has one. `begins`: its first instruction is yet to come.
    pub(super) fn attach_go(&mut self, pid: Pid, image: Image, begins: bool) -> Result<bool> {
        let off = self.config.go_heap == GoHeapChoice::Off;
        let own = if off { Ok(None) } else { GoProcess::open(pid) };
        let own =
            own.and_then(|process| process.map(|process| self.follow_go(pid, image, process, begins)).transpose());
        let own = own.map_err(|error| {
            // It may be about to end: the files of its memory are gone before it is.
            let is_gone =
                matches!(error.downcast_ref(), Some(NotTraceable::NoSuchProcess(_) | NotTraceable::Zombie(..)));
            if status::is_alive(pid) && !is_gone {
                error.context(format!("the Go heap of process {pid} cannot be followed"))
            } else {
                anyhow!("process {pid} ended before its Go heap could be looked at")
            }
        });
        self.libraries.retain(|libraries| libraries.pid() != pid);
        self.know_libraries(pid);
        let in_libraries = self.attach_go_libraries(pid, image);
        match own {
            Err(problem) if in_libraries => {
                self.unseen_heaps.push(format!("{problem:#}"));
                Ok(true)
            }
            own => Ok(own?.is_some() || in_libraries),
        }
    }

    /// Whether the heap of a Go runtime of this image is followed.
    pub(super) fn has_go(&self, image: Image) -> bool {
        self.go.iter().any(|go| go.image() == image)
    }

    /// Begins to follow the Go heaps of a program that has begun while it was traced, and runs already.
    pub(super) fn attach_go_of_running(&mut self, pid: Pid, image: Image) {
        match self.attach_go(pid, image, false) {
            Ok(true) => {
                self.goroutines.watch(pid, self.runtime_of(pid));
                // What a runtime's own profile tells is since its beginning.
                if self.go.iter().any(|go| go.image() == image && go.way() == Way::Sampled) {
                    self.unseen_heaps.push(format!(
                        "the Go heap of process {pid} is seen from when it was found only: it began while others were traced"
                    ));
                }
            }
            Ok(false) => self.unseen_heaps.push(format!("the Go heap of process {pid} is not seen")),
            Err(problem) => self.unseen_heaps.push(format!("{problem:#}")),
        }
    }

    /// Begins to follow the heap of a Go runtime.
    pub(super) fn follow_go(&mut self, pid: Pid, image: Image, process: GoProcess, begins: bool) -> Result<()> {
        let Config { go_heap: choice, go_sample: mean, min_age, sizes, .. } = self.config;
        let number = self.go.iter().filter(|go| go.pid() == pid).count();
        let number = u8::try_from(number).ok().filter(|number| u32::from(*number) < RUNTIMES);
        let number = number.with_context(|| format!("the process has more than {RUNTIMES} Go runtimes"))?;
        let wanted = Wanted { min_age: min_age.as_nanos().try_into().unwrap_or(u64::MAX), sizes };
        let wish = Wish { choice, mean, wanted, begins };
        let means = Means { programs: &mut self.probes.programs, maps: &mut self.go_maps, followers: &self.followers };
        let heap = process.follow(means, wish, (image, number))?;
        self.know_go(pid, heap.runtime());
        self.send(Request::FollowGo { image, number, samples: heap.samples() })?;
        self.go.push(heap);
        Ok(())
    }

    /// Names Go code of a process.
    pub(super) fn know_go(&mut self, pid: Pid, runtime: Arc<Runtime>) {
        let exe = status::look(pid).map(|status| status.exe).unwrap_or_default();
        if let Some(writer) = &self.writer {
            writer.know_go(pid, runtime, exe);
        }
    }

    /// Has the libraries of a process looked at for Go runtimes. Whether they were not so far.
    pub(super) fn know_libraries(&mut self, pid: Pid) -> bool {
        let is_new = self.libraries.iter().all(|libraries| libraries.pid() != pid);
        if is_new {
            self.libraries.push(Libraries::new(pid));
        }
        is_new
    }

    /// Begins to follow the Go runtimes of libraries that a process has loaded since the last look. Whether there is one whose
    /// heap is followed.
    pub(super) fn attach_go_libraries(&mut self, pid: Pid, image: Image) -> bool {
        let own = self.libraries.iter_mut().find(|libraries| libraries.pid() == pid);
        let Some(found) = own.map(Libraries::look) else { return false };
        let mut follows = false;
        for runtime in found.runtimes {
            self.goroutines.add_library(pid, Arc::clone(&runtime));
            if self.config.go_heap == GoHeapChoice::Off {
                continue;
            }
            let library = runtime.library().cloned().unwrap_or_default();
            match self.follow_go(pid, image, GoProcess::of(pid, runtime), false) {
                Ok(()) => follows = true,
                Err(problem) => {
                    let unseen = format!("the Go heap of {library} in process {pid} is not seen: {problem:#}");
                    self.unseen_heaps.push(unseen);
                }
            }
        }
        let sampled =
            self.go.iter().any(|go| go.pid() == pid && go.runtime().library().is_none() && go.way() == Way::Sampled);
        for plugin in found.plugins {
            if sampled {
                // It has a copy of the functions that allocate.
                self.unseen_heaps.push(format!(
                    "what the plugin {} allocates is not sampled: --go-heap=buckets sees it",
                    plugin.library().map_or("", |path| path)
                ));
            }
            self.know_go(pid, Arc::clone(&plugin));
            self.goroutines.add_plugin(pid, plugin);
        }
        self.notes.extend(found.problems);
        follows
    }

    /// Looks at the libraries of a process that has loaded some, and again at those whose Go runtime was not ready.
    pub(super) fn look_at_libraries(&mut self) {
        let waiting: Vec<Pid> =
            self.libraries.iter().filter(|libraries| libraries.is_waiting()).map(Libraries::pid).collect();
        for pid in waiting {
            if let Some(image) = self.image_of(pid) {
                self.attach_go_libraries(pid, image);
            }
        }
    }

    /// The Go runtime of a process whose heap is followed.
    pub(super) fn runtime_of(&self, pid: Pid) -> Option<Arc<Runtime>> {
        let own = |go: &&GoHeap| go.pid() == pid && go.runtime().library().is_none();
        self.go.iter().find(own).map(GoHeap::runtime)
    }

    /// A process has become another program: its Go heap is gone.
    pub(super) fn forget_go(&mut self, pid: Pid) {
        self.goroutines.forget(pid);
        self.libraries.retain(|libraries| libraries.pid() != pid);
        while let Some(index) = self.go.iter().position(|go| go.pid() == pid) {
            self.notes.push(format!("process {pid} became another program; its Go heap until then is not shown"));
            let go = self.go.remove(index);
            self.detach_go(go);
        }
    }

    /// Keeps of the Go heaps of an image that has ended what they held.
    pub(super) fn end_go(&mut self, image: Image) {
        let min_age = self.config.min_age;
        while let Some(index) = self.go.iter().position(|go| go.image() == image) {
            let go = self.go.remove(index);
            if self.go_over.len() < MAX_OVER {
                // Its memory is gone: there is nothing to wait for.
                self.go_over.push(trace(&go, min_age, false));
            } else if !std::mem::replace(&mut self.forgets_go, true) {
                self.unseen_heaps.push(format!(
                    "the Go heaps of processes that have ended are shown of the first {MAX_OVER} of them only"
                ));
            }
            self.detach_go(go);
        }
    }

    /// Follows a heap no more.
    pub(super) fn detach_go(&mut self, go: GoHeap) {
        self.go_maps.forget_runtime(go.pid(), go.number());
        go.detach(&mut self.probes.programs);
    }

    /// What the heaps of Go processes hold now, and held when they ended.
    pub(super) fn go_traces(&self, last: bool) -> Vec<GoTrace> {
        let now = self.go.iter().map(|go| trace(go, self.config.min_age, last));
        now.chain(self.go_over.iter().cloned()).collect()
    }
}

/// Where among these mappings of a process the Go heaps are that are followed.
pub(super) fn go_memory(followed: &[GoHeap], pid: Pid, regions: &[Region]) -> GoMemory {
    let mut own = followed.iter().filter(|go| go.pid() == pid).peekable();
    if own.peek().is_none() {
        return GoMemory::Nowhere;
    }
    let ranges = || regions.iter().filter(|region| may_be_heap(region)).map(|region| region.range.clone());
    let arenas: Result<Vec<_>, _> = own.map(|go| heap::arenas(&go.runtime(), &reader(pid), ranges())).collect();
    match arenas {
        Ok(arenas) => GoMemory::at(arenas.concat()),
        Err(error) => {
            tracing::debug!("cannot see where the Go heap of process {pid} is: {error}");
            GoMemory::Unknown
        }
    }
}

fn trace(go: &GoHeap, min_age: Duration, last: bool) -> GoTrace {
    let heap = go.snapshot(min_age, last);
    GoTrace {
        pid: go.pid(),
        image: go.image(),
        library: go.runtime().library().cloned(),
        way: go.way(),
        note: go.note(&heap),
        heap,
    }
}
