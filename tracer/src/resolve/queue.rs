//! The order in which files are opened and compiled.

use std::{
    collections::VecDeque,
    sync::Arc,
    time::{Duration, Instant},
};

use hashbrown::HashMap;
use tracer_ebpf::unwind::FileKey;

use super::worker::Job;
use crate::{
    event::{Pid, UnknownFile},
    files::module::Module,
};

/// Bytes of a file from which on it takes long: only one of those is worked at at a time.
const LARGE: u64 = 32 << 20;
/// Most programs that wait for a look: what is not looked at is met.
const MAX_PROGRAMS: usize = 64;

/// For how long a program that begins has the processors for itself: what it allocates with is looked for then.
const FIRST_LOOK: Duration = Duration::from_secs(1);

/// What waits to be done.
#[derive(Default)]
pub(super) struct Queue {
    /// Files to compile that somebody has met, or is about to.
    urgent: VecDeque<(u32, Arc<Module>)>,
    /// Files that were met, by process.
    met: HashMap<Pid, Vec<UnknownFile>>,
    programs: VecDeque<(Pid, FileKey)>,
    /// Whether what the machine has mapped is to be looked at, and whether that waits for a program to begin.
    wants_machine: bool,
    awaits_program: bool,
    /// Files that some process of the machine has mapped.
    later: VecDeque<Arc<Module>>,
    /// How many workers are at what is large, and at what is not urgent.
    at_large: usize,
    in_background: usize,
    /// When what is not urgent was begun, and when more of it may be.
    begun: Option<Instant>,
    rests_until: Option<Instant>,
}

impl Queue {
    pub(super) fn compile(&mut self, number: u32, module: Arc<Module>) {
        self.urgent.push_back((number, module));
    }

    pub(super) fn compile_later(&mut self, module: Arc<Module>) {
        self.later.push_back(module);
    }

    pub(super) fn open(&mut self, pid: Pid, unknown: UnknownFile) {
        self.met.entry(pid).or_default().push(unknown);
    }

    pub(super) fn look_at_program(&mut self, pid: Pid, program: FileKey) {
        if std::mem::take(&mut self.awaits_program) {
            self.wants_machine = true;
            self.rests_until = Some(Instant::now() + FIRST_LOOK);
        }
        if self.programs.len() < MAX_PROGRAMS {
            self.programs.push_back((pid, program));
        }
    }

    /// `at_once`: not only when a program begins.
    pub(super) fn look_at_machine(&mut self, at_once: bool) {
        (self.wants_machine, self.awaits_program) = (at_once, !at_once);
    }

    /// Whether files that were met are yet to be opened.
    pub(super) fn has_files_to_open(&self) -> bool {
        !self.met.is_empty()
    }

    /// What somebody waits for.
    pub(super) fn next_urgent(&mut self) -> Option<Job> {
        let may_be_large = self.at_large == 0;
        if let Some(at) = self.urgent.iter().position(|(_, module)| may_be_large || !is_large(module))
            && let Some((number, module)) = self.urgent.remove(at)
        {
            self.at_large += usize::from(is_large(&module));
            return Some(Job::Compile(Some(number), module));
        }
        self.next_short()
    }

    /// Of that, what takes little time.
    pub(super) fn next_short(&mut self) -> Option<Job> {
        if let Some(pid) = self.met.keys().next().copied()
            && let Some(unknown) = self.met.remove(&pid)
        {
            return Some(Job::Open(pid, unknown));
        }
        self.programs.pop_front().map(|(pid, program)| Job::Program(pid, program))
    }

    /// What nobody waits for, but for files that `is_known`: for one worker at a time.
    pub(super) fn next_in_background(&mut self, is_known: impl Fn(&Module) -> bool) -> Option<Job> {
        if !self.may_work_in_background() {
            return None;
        }
        let job = if std::mem::take(&mut self.wants_machine) {
            Job::Machine
        } else {
            let mut unknown = std::iter::from_fn(|| self.later.pop_front()).filter(|module| !is_known(module));
            Job::Compile(None, unknown.next()?)
        };
        self.begin_in_background();
        Some(job)
    }

    /// Whether no worker is at what nobody waits for, nor was until just now: half of a processor is enough for that.
    pub(super) fn may_work_in_background(&self) -> bool {
        self.in_background == 0 && self.rest().is_zero()
    }

    /// How long what nobody waits for is to rest.
    pub(super) fn rest(&self) -> Duration {
        self.rests_until.map_or(Duration::ZERO, |until| until.saturating_duration_since(Instant::now()))
    }

    pub(super) fn begin_in_background(&mut self) {
        self.in_background += 1;
        self.begun = Some(Instant::now());
    }

    pub(super) fn is_done_in_background(&mut self) {
        self.in_background -= 1;
        self.rests_until = self.begun.map(|begun| Instant::now() + begun.elapsed());
    }

    /// A file that somebody was waiting for is compiled.
    pub(super) fn has_compiled(&mut self, module: &Module) {
        self.at_large -= usize::from(is_large(module));
    }
}

/// By what it was when it was opened: the same whenever it is asked for.
fn is_large(module: &Module) -> bool {
    module.length() >= LARGE
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(length: u64) -> Arc<Module> {
        let file = tempfile::tempfile().unwrap();
        file.set_len(length).unwrap();
        Arc::new(Module::of_file("a file", file).unwrap())
    }

    /// Numbers of files that are to be compiled.
    fn number(job: Option<Job>) -> Option<u32> {
        match job {
            Some(Job::Compile(number, _)) => number,
            _ => None,
        }
    }

    #[test]
    fn large_files_leave_a_worker_to_others() {
        let mut queue = Queue::default();
        let large = file(LARGE);
        queue.compile(1, Arc::clone(&large));
        queue.compile(2, file(LARGE));
        queue.compile(3, file(1));
        assert_eq!(number(queue.next_urgent()), Some(1));
        assert_eq!(number(queue.next_urgent()), Some(3));
        queue.look_at_program(7, FileKey::default());
        assert!(matches!(queue.next_urgent(), Some(Job::Program(7, _))));
        assert!(queue.next_urgent().is_none());
        // Whatever it has become.
        large.file().unwrap().set_len(1).unwrap();
        queue.has_compiled(&large);
        assert_eq!(number(queue.next_urgent()), Some(2));
    }

    #[test]
    fn one_worker_at_most_is_at_what_nobody_waits_for() {
        let mut queue = Queue::default();
        queue.look_at_machine(false);
        assert!(queue.next_in_background(|_| false).is_none(), "no program has begun");
        queue.look_at_program(7, FileKey::default());
        assert!(queue.next_urgent().is_some());
        assert!(queue.next_in_background(|_| false).is_none() && !queue.rest().is_zero(), "it comes first");
        queue.rests_until = None;
        queue.compile_later(file(1));
        queue.compile_later(file(2));
        assert!(matches!(queue.next_in_background(|_| false), Some(Job::Machine)));
        assert!(queue.next_in_background(|_| false).is_none());
        let hour = Duration::from_secs(3600);
        queue.begun = Instant::now().checked_sub(hour);
        queue.is_done_in_background();
        assert!(queue.next_in_background(|_| false).is_none() && queue.rest() > hour / 2, "it rests for as long");
        queue.rests_until = None;
        let is_known = |module: &Module| module.length() == 1;
        assert!(matches!(queue.next_in_background(is_known), Some(Job::Compile(None, module)) if module.length() == 2));
        queue.is_done_in_background();
        queue.rests_until = None;
        assert!(queue.next_in_background(is_known).is_none() && queue.may_work_in_background());
    }

    #[test]
    fn programs_that_wait_are_few() {
        let mut queue = Queue::default();
        (0..1000).for_each(|pid| queue.look_at_program(pid, FileKey::default()));
        assert_eq!(std::iter::from_fn(|| queue.next_urgent()).count(), MAX_PROGRAMS);
    }
}
