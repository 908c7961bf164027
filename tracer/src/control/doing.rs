//! What is done about what has become known: inputs go to the lives of processes, and what those ask for is done.

use std::{
    collections::VecDeque,
    thread,
    time::{Duration, Instant},
};

use anyhow::Result;

use super::{
    HEARTBEAT, Input, Session,
    go::go_memory,
    lifecycle::{Action, Event},
};
use crate::{
    attach::{Attached, SUSPENSE, Seen, What, is_run_by, probes::Scope},
    clock::{monotonic, processor_time},
    collector::{Notice, Request},
    config::GoHeapChoice,
    event::Image,
};

/// What a look at the probes of one process counts for at most, of processor time.
const LOOK_AT_PROBES: Duration = Duration::from_millis(1);

impl Session {
    /// Takes in what has come, but for signals.
    pub(super) fn take_in(&mut self, input: Input) -> Result<()> {
        match input {
            Input::Signal(_) => Ok(()),
            Input::Exited(pid) => self.has_exited(pid),
            Input::Notice(notice) => self.heed(notice),
            Input::Seen(seen) => {
                self.has_seen(*seen);
                Ok(())
            }
            Input::Written { read } => {
                (self.is_writing, self.is_read) = (false, self.is_read && read);
                Ok(())
            }
        }
    }

    pub(super) fn heed(&mut self, notice: Notice) -> Result<()> {
        match notice {
            Notice::Began(image, beginning) => self.has_begun(image, &beginning),
            Notice::Resumed(image, since) => {
                self.handle(image, Event::Recorded(since));
                Ok(())
            }
            Notice::Mapped(image) => {
                if let Some(attached) = self.attached.iter_mut().find(|attached| attached.image() == image) {
                    attached.libraries_came(&mut self.probes);
                    let (pid, has_go) = (attached.pid(), attached.has_go_library());
                    if has_go {
                        self.know_libraries(pid);
                    }
                    self.attach_go_libraries(pid, image);
                }
                Ok(())
            }
            Notice::Loaded(image, file, time) => {
                if let Some(attached) = self.find(image) {
                    attached.has_loaded(file, time);
                }
                Ok(())
            }
            Notice::Ended { image, signal, ran } => {
                self.has_ended(image, signal, ran);
                Ok(())
            }
            Notice::SharerEnded(image) => {
                let process_scope = self.probes.scope() == Scope::Process;
                if let Some(attached) = self.find(image).filter(|_| process_scope) {
                    attached.was_shared();
                    self.send(Request::Unseen(image, monotonic()))?;
                }
                Ok(())
            }
            Notice::HeapEnded(image) => {
                if let Some(attached) = self.find(image) {
                    attached.heap_ended();
                }
                Ok(())
            }
            Notice::FirstThreadEnded(image) => {
                if let Some(attached) = self.attached.iter_mut().find(|attached| attached.image() == image)
                    && attached.move_to_another_thread(&mut self.probes)
                {
                    self.interruptions += 1;
                    self.send(Request::Unseen(image, monotonic()))?;
                }
                Ok(())
            }
            // Of which process it was is not said: few use this way.
            Notice::ReturnDeclined => {
                self.attached.iter_mut().for_each(|attached| attached.leave_returns_alone(&mut self.probes));
                Ok(())
            }
        }
    }

    /// Somebody has looked at a process that was of this image then.
    fn has_seen(&mut self, seen: Seen) {
        let (image, what) = match seen {
            Seen::Process(image, what) => (image, what),
            Seen::Ended(file, own) => return self.learn_of_file(file, own),
        };
        let Some(at) = self.attached.iter().position(|attached| attached.image() == image) else { return };
        let attached = &self.attached[at];
        // It may have become another one before that.
        let file = attached.program().map(|(file, _)| file);
        if let What::Program(program) = &what
            && program.process.comm == attached.comm()
            && file.and_then(|file| is_run_by(&file, attached.pid())) != Some(false)
        {
            self.known.learn(file, program);
        }
        let actions = self.attached[at].was_seen(what, &self.probes);
        let (pid, has_go) = (self.attached[at].pid(), self.attached[at].has_go_library());
        self.act(image, actions);
        if has_go && self.know_libraries(pid) {
            self.attach_go_libraries(pid, image);
        }
    }

    /// Tells the life of an image what has become known, and does what it asks for.
    pub(super) fn handle(&mut self, image: Image, event: Event) {
        let Some(attached) = self.find(image) else { return };
        let actions = attached.handle(event);
        self.act(image, actions);
    }

    /// Does what the life of an image asks for.
    pub(super) fn act(&mut self, image: Image, actions: Vec<Action>) {
        let mut actions = VecDeque::from(actions);
        while let Some(action) = actions.pop_front() {
            let Some(at) = self.attached.iter().position(|attached| attached.image() == image) else { return };
            match action {
                Action::Look => {
                    let attached = &self.attached[at];
                    self.lookers.ask(image, attached.pid(), attached.program().map(|(file, _)| file));
                }
                Action::Probe => actions.extend(self.attached[at].probe(&mut self.probes)),
                Action::Enable => self.enable_found(at),
                // The collector's end shows elsewhere.
                Action::Resume => drop(self.requests.send(Request::Resume(image))),
            }
        }
    }

    /// Has a process recorded of which it was found what it allocates with.
    fn enable_found(&mut self, at: usize) {
        let attached = &mut self.attached[at];
        let Some(space) = attached.take_space() else { return };
        let attached = &self.attached[at];
        let (pid, image, flags) = (attached.pid(), attached.image(), self.flags(attached));
        if attached.is_of_go() && self.config.go_heap != GoHeapChoice::Off && !self.has_go(image) {
            self.attach_go_of_running(pid, image);
        }
        let requests = self.requests.clone();
        self.resolvers.follow(&space, move || {
            // The collector's end shows elsewhere.
            let _ = requests.send(Request::Enable { pid, image, flags });
        });
    }

    /// What comes round regularly. Whether tracing goes on.
    pub(super) fn heartbeat(&mut self) -> Result<bool> {
        self.probes.programs.pass_diagnostics();
        self.tick();
        self.attach_newcomers()?;
        if self.last_beat.elapsed() < HEARTBEAT {
            return Ok(true);
        }
        self.last_beat = Instant::now();
        self.goroutines.tick(Instant::now());
        let go = &self.go;
        let unread = self.coverage.tick(|pid, regions| go_memory(go, pid, regions));
        self.look_whether_gone(unread)?;
        self.look_at_libraries();
        self.look_at_cost_again();
        self.look_around();
        self.keep_budget()
    }

    /// Lets the lives of processes go on, where something is due.
    fn tick(&mut self) {
        let now = Instant::now();
        let is_due = |attached: &&Attached| attached.life().next().is_some_and(|next| next <= now);
        let due: Vec<Image> = self.attached.iter().filter(is_due).map(Attached::image).collect();
        due.into_iter().for_each(|image| self.handle(image, Event::Tick));
    }

    /// Looks whether the probes are still where they were put: at those of a few processes where there are many, which come round in turn.
    /// Where they were gone at the last look, the next one does not wait for its turn.
    pub(super) fn keep_probes(&mut self) -> Result<()> {
        if !self.has_probes() {
            return Ok(());
        }
        let now = Instant::now();
        for index in 0..self.attached.len() {
            if self.attached[index].is_suspect() && self.attached[index].is_look_at_probes_due(now) {
                self.keep_probes_of(index, false)?;
            }
        }
        for _ in 0..self.attached.len() {
            if !self.looks_at_probes.has_some(now) {
                break;
            }
            self.kept = self.kept.wrapping_add(1) % self.attached.len();
            if self.attached[self.kept].is_look_at_probes_due(now) {
                let begun = processor_time();
                self.keep_probes_of(self.kept, false)?;
                // Putting them again takes longer, and is no look.
                self.looks_at_probes.spend(processor_time().saturating_sub(begun).min(LOOK_AT_PROBES));
            }
        }
        Ok(())
    }

    /// `is_last`: nothing will be heard of an exec any more, with which probes may have gone.
    fn keep_probes_of(&mut self, index: usize, is_last: bool) -> Result<()> {
        let Self { attached, probes, requests, .. } = self;
        let attached = &mut attached[index];
        let is_still =
            |pid, image| is_last || requests.ask(|reply| Request::IsStill { pid, image, reply }).unwrap_or(false);
        if attached.keep_probes(probes, is_still) {
            let image = attached.image();
            self.send(Request::Unseen(image, monotonic()))?;
        }
        Ok(())
    }

    /// The same of all for the last time: what seems to be gone may be so because of an exec, which is heard of in a moment.
    pub(super) fn keep_probes_to_the_end(&mut self) -> Result<()> {
        if !self.has_probes() {
            return Ok(());
        }
        self.attached.iter_mut().for_each(Attached::look_now);
        (0..self.attached.len()).try_for_each(|index| self.keep_probes_of(index, true))?;
        if self.attached.iter().any(Attached::is_suspect) {
            thread::sleep(2 * SUSPENSE);
            while let Some(input) = self.inputs.next_of_those_there() {
                self.take_in(input)?;
            }
            (0..self.attached.len()).try_for_each(|index| self.keep_probes_of(index, true))?;
        }
        Ok(())
    }
}
