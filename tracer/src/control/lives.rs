//! The lives of processes: what they start, what they become, and their ends.

use std::time::{Duration, Instant};

use anyhow::Result;
use tracer_ebpf::{FIRST_GIVEN_IMAGE, target, unwind::FileKey};

use super::{
    Input, LOOK_AROUND, Session,
    choosing::{Fit, Newcomers},
    ended::doubt,
    known::KnownPrograms,
    lifecycle::{Action, Event},
};
use crate::{
    attach::{
        Attached, NewProgram, OwnAllocator, Seen,
        probes::{Probes, Scope},
    },
    clock::{monotonic, processor_time},
    collector::{Notice, Request},
    config::Subject,
    coverage::Had,
    event::{Beginning, How, Image, Pid},
    process::status,
    report::count,
};

/// How many times as long as a look for processes took the next one waits at least: looks take so small a part of one processor.
const LOOK_AROUND_REST: u32 = 250;
/// For how long a look goes on to ask those that were there before, of processor time: some hundred processes, so that all of as many are
/// asked each second.
const LOOK: Duration = Duration::from_millis(4);

/// How long processes that have begun may wait until they are read, where there are more than so many.
const READING: Duration = Duration::from_millis(20);
const AT_ONCE: usize = 4;
/// How long the last report waits for what is known of programs that were over at once.
const LAST_LOOKS: Duration = Duration::from_millis(500);

impl Session {
    /// How processes have ended is in the last records, and what they have started. There is nothing to do about the rest of them
    /// any more.
    pub(super) fn learn_of_ends(&mut self) {
        while let Some(input) = self.inputs.next_of_those_there() {
            match input {
                Input::Notice(Notice::Ended { image, signal, ran }) => self.has_ended(image, signal, ran),
                Input::Notice(Notice::Began(image, beginning)) => match beginning.how {
                    // It is only at execs that there is something to fail.
                    How::Fork | How::Spawn | How::Newcomer => drop(self.has_begun(image, &beginning)),
                    How::Exec | How::ExecByOtherThread => {
                        let program = new_program(&self.known, &self.probes, &beginning);
                        let before = self.attached.iter_mut().find(|attached| attached.image() == beginning.parent);
                        let is_excluded = self.selection.excludes(&beginning.comm());
                        match before {
                            Some(attached) if !is_excluded => {
                                attached.has_execed(image, &program, false);
                                // As in `has_execed`.
                                let _ = self.requests.send(Request::Keep(image));
                            }
                            Some(_) => {}
                            None => self.has_come(image, &beginning),
                        }
                    }
                },
                Input::Notice(Notice::Resumed(image, since)) => self.handle(image, Event::Recorded(since)),
                // What is not seen of a process for that is told all the same.
                Input::Notice(notice @ (Notice::SharerEnded(_) | Notice::HeapEnded(_) | Notice::Loaded(..))) => {
                    drop(self.heed(notice))
                }
                Input::Seen(seen) => self.learn_of_ended_program(*seen),
                _ => {}
            }
        }
    }

    /// What allocators the last programs had that were over before anybody could look is about to be known, and those of libraries.
    pub(super) fn learn_of_ended_programs(&mut self) {
        let live = self.attached.iter().filter(|attached| !attached.is_over()).map(Attached::image);
        live.collect::<Vec<_>>().into_iter().for_each(|image| self.ask_of_loaded(image));
        let deadline = Instant::now() + LAST_LOOKS;
        while self.known.waits()
            && let Some(input) = self.inputs.next(deadline)
        {
            if let Input::Seen(seen) = input {
                self.learn_of_ended_program(*seen);
            }
        }
    }

    fn learn_of_ended_program(&mut self, seen: Seen) {
        if let Seen::Ended(file, own) = seen {
            self.learn_of_file(file, own);
        }
    }

    /// A file that no process need have mapped any more has this allocator: a program's that was over before anybody could look, or that of
    /// a library which was found in nobody.
    pub(super) fn learn_of_file(&mut self, file: FileKey, own: OwnAllocator) {
        let processes = self.attached.iter_mut().chain(self.ended.apart_mut());
        processes.for_each(|attached| attached.was_searched(&file, &own, |own| self.probes.covered_since(own)));
        self.known.learn_of_ended(file, own);
    }

    /// Has the files searched that a process had mapped, to run their code, when it was looked at for the last time already: nobody will find
    /// them in it.
    fn ask_of_loaded(&mut self, image: Image) {
        let Self { attached, known, lookers, probes, .. } = self;
        let Some(attached) = attached.iter_mut().find(|attached| attached.image() == image) else { return };
        for file in attached.not_searched() {
            if known.is_new(file) {
                lookers.ask_of_ended(file);
            } else if let Some(own) = known.own_allocator(&file) {
                attached.was_searched(&file, own, |own| probes.covered_since(own));
            }
        }
    }

    /// An image began: a process has become another program, or was started by one that is traced.
    pub(super) fn has_begun(&mut self, image: Image, beginning: &Beginning) -> Result<()> {
        match beginning.how {
            How::Exec | How::ExecByOtherThread => return self.has_execed(image, beginning),
            How::Fork => self.has_forked(image, beginning),
            How::Spawn => self.has_spawned(image, beginning),
            How::Newcomer => self.has_come(image, beginning),
        }
        Ok(())
    }

    /// A process that worked on its parent's memory has become a program of its own.
    fn has_spawned(&mut self, image: Image, beginning: &Beginning) {
        let scope = self.probes.scope();
        let program = new_program(&self.known, &self.probes, beginning);
        // It may have outlived its parent.
        let parent = self.processes().find(|attached| attached.image() == beginning.parent);
        let spawned = parent.map(|parent| parent.spawned(image, &program, scope));
        match spawned.filter(|_| !self.selection.excludes(&beginning.comm())) {
            Some((spawned, actions)) => self.joins(spawned, actions, beginning.time, Had::Nothing),
            None => self.has_come(image, beginning),
        }
    }

    /// A process has forked.
    fn has_forked(&mut self, image: Image, beginning: &Beginning) {
        let Beginning { pid, parent, time, .. } = *beginning;
        let scope = self.probes.scope();
        let parent = self.processes().find(|attached| attached.image() == parent);
        match parent.map(|parent| parent.forked(pid, image, time, scope)) {
            Some(forked) => self.joins(forked, Vec::new(), time, Had::Parents),
            None => self.has_come(image, beginning),
        }
    }

    /// A program began that nobody who is traced has started. What does not fit is forgotten.
    fn has_come(&mut self, image: Image, beginning: &Beginning) {
        let pid = beginning.pid;
        let fits = |newcomers: &mut Newcomers| newcomers.fits(image, beginning);
        let fit = self.newcomers.as_mut().map_or(Fit::No, fits);
        if fit == Fit::Yes {
            tracing::debug!(pid, "a process that fits has begun");
            let program = new_program(&self.known, &self.probes, beginning);
            let newcomer = Attached::newcomer(image, &program, self.probes.scope());
            return self.joins(newcomer, Vec::new(), beginning.time, Had::Nothing);
        }
        let in_doubt = fit == Fit::Unknown;
        self.over_too_soon += u64::from(in_doubt);
        // The collector's end shows elsewhere.
        let _ = self.requests.send(Request::Drop { image, in_doubt });
    }

    /// One process more is traced, which began at `time`, nanoseconds of CLOCK_MONOTONIC, with that memory, and of which this is to be done.
    fn joins(&mut self, mut attached: Attached, actions: Vec<Action>, time: u64, had: Had) {
        let ago = Duration::from_nanos(monotonic().saturating_sub(time));
        attached.was_started(self.clock.elapsed().saturating_sub(ago));
        let image = attached.image();
        // What it does until then is not recorded.
        let had = if attached.life().is_paused() { Had::All } else { had };
        self.attached.push(attached);
        // The collector's end shows elsewhere.
        let _ = self.requests.send(Request::Keep(image));
        // What is not recorded yet is not to wait for anything else.
        self.act(image, actions);
        self.handle(image, Event::Tick);
        self.new.push_back((Instant::now(), image, had));
    }

    /// Reads memory and place of processes that have begun: of a few at once when there is nothing else to do (`idle`), of many when they
    /// have lived for a while. Most of a storm are over by then.
    pub(super) fn read_new(&mut self, idle: bool) {
        let now = Instant::now();
        let at_once = idle && self.new.len() <= AT_ONCE;
        while let Some((_, image, had)) = self.new.pop_front_if(|(since, ..)| at_once || now - *since >= READING) {
            let Some(attached) = self.find(image).filter(|attached| !attached.is_over()) else { continue };
            attached.look_where();
            let pid = attached.pid();
            self.coverage.begin(pid, image, had);
        }
    }

    /// A process has become another program.
    pub(super) fn has_execed(&mut self, image: Image, beginning: &Beginning) -> Result<()> {
        let Beginning { parent: before, how, .. } = *beginning;
        let probes_lost = how == How::ExecByOtherThread && self.probes.scope() == Scope::Process;
        let program = new_program(&self.known, &self.probes, beginning);
        let attached = self.attached.iter_mut().find(|attached| attached.image() == before);
        if let Some(attached) = attached.filter(|_| self.selection.excludes(&beginning.comm())) {
            // As this program it is none of those that are traced.
            attached.take_probes_off(&mut self.probes);
            self.send(Request::Drop { image, in_doubt: false })?;
            self.forget_go(beginning.pid);
            self.has_ended(before, None, Duration::ZERO);
            self.coverage.forget(before);
            return Ok(());
        }
        let attached = self.attached.iter_mut().find(|attached| attached.image() == before);
        let Some(attached) = attached else {
            // As the program before, it did not fit.
            self.has_come(image, beginning);
            return Ok(());
        };
        // What is known is not in Go.
        let may_be_go = program.known.is_none();
        let actions = attached.has_execed(image, &program, probes_lost);
        let pid = attached.pid();
        let had = if attached.life().is_paused() { Had::All } else { Had::Nothing };
        // It may have done so before anybody had said that it is wanted.
        self.send(Request::Keep(image))?;
        self.act(image, actions);
        self.forget_go(pid);
        if may_be_go {
            self.goroutines.watch(pid, self.runtime_of(pid));
        }
        self.coverage.forget(before);
        match self.launched.take_if(|launched| launched.pid() == pid && !beginning.is_late) {
            Some(launched) => {
                // It is held.
                self.coverage.begin(pid, image, Had::Nothing);
                self.follow_launched(launched)
            }
            None => {
                self.new.push_back((Instant::now(), image, had));
                Ok(())
            }
        }
    }

    /// Looks whether these processes are still there: the record of an end may have been lost.
    pub(super) fn look_whether_gone(&mut self, images: Vec<Image>) -> Result<()> {
        for image in images {
            let attached = self.find(image).filter(|attached| !attached.is_over());
            if attached.is_some_and(|attached| !status::is_alive(attached.pid())) {
                self.send(Request::Ended(image))?;
            }
        }
        Ok(())
    }

    /// Looks whether there are processes that were not told of: the record of a beginning may have been lost. At most once a second,
    /// and less often where there are thousands.
    pub(super) fn look_around(&mut self) {
        if Instant::now() >= self.look_around {
            let begun = processor_time();
            self.look_for_newcomers(|| processor_time().saturating_sub(begun) < LOOK);
            let used = processor_time().saturating_sub(begun);
            self.look_around = Instant::now() + LOOK_AROUND.max(used * LOOK_AROUND_REST);
        }
    }

    /// What the reader of a report should know of processes that were not recorded from their first instruction on; `unheard`:
    /// of so many, nothing was.
    pub(super) fn note_on_late_ones(&self, unheard: u64) -> Vec<String> {
        let now = monotonic();
        let late = self.processes().filter_map(|attached| Some((attached.life().late(now)?, 1)));
        let mut late: Vec<(Duration, u64)> = late.chain(self.ended.late()).collect();
        late.sort_unstable();
        let many = late.iter().map(|(_, count)| count).sum::<u64>();
        let mut below = 0;
        let middle = late.iter().find(|(_, count)| {
            below += count;
            below > many / 2
        });
        let mut notes: Vec<String> = self.ended.notes().collect();
        if let (Some((middle, _)), Some((last, _))) = (middle, late.last()) {
            notes.push(format!(
                "{} that began while others were traced had to have probes of their own first: {:.1} ms of each (in the middle; \
                 {:.1} ms at most) were not recorded. --scope=file has none of that, and what it costs others is in --help",
                count(many, "process"),
                middle.as_secs_f64() * 1e3,
                last.as_secs_f64() * 1e3,
            ));
        }
        if self.found_late > 0 {
            notes.push(format!(
                "{} found to fit some time after the beginning: what was done until then is not recorded",
                count(self.found_late, "process")
            ));
        }
        notes.extend(self.notes_on_missed());
        if self.over_too_soon > 0 {
            notes.push(format!(
                "{} that began elsewhere ended before it could be seen whether they fit: what they did is not in it",
                count(self.over_too_soon, "process")
            ));
        }
        if unheard > 0 {
            let why = match self.probes.scope() {
                Scope::File => "what was taken from an allocator that no other traced process has is not known",
                Scope::Process => "each has to have probes of its own first (--scope=file needs none)",
            };
            notes.push(format!(
                "{} that began ended before anybody could look, and nothing of that was recorded, or not all: {why}",
                count(unheard, "process")
            ));
        }
        notes
    }

    /// A process is no more. It has ended for us when all that it did is taken in.
    pub(super) fn has_exited(&mut self, pid: Pid) -> Result<()> {
        match self.image_of(pid) {
            Some(image) => self.send(Request::Ended(image)),
            None => Ok(()),
        }
    }

    /// A process has ended: nothing is done by its id any more, which may become another's.
    pub(super) fn has_ended(&mut self, image: Image, signal: Option<u8>, ran: Duration) {
        let after = self.clock.elapsed();
        let Some(attached) = self.find(image) else { return };
        if let Some(signal) = signal {
            attached.was_killed(signal);
        }
        attached.has_ended(after);
        let program = attached.program().filter(|_| attached.life().was_not_looked_at());
        let (pid, is_new) = (attached.pid(), attached.life().came_later());
        if let Some((program, _)) = program.filter(|(program, _)| self.known.is_new(*program)) {
            self.lookers.ask_of_ended(program);
        }
        self.ask_of_loaded(image);
        self.meter.has_ended(pid, is_new, ran);
        // Its id may be another one's at any time.
        self.end_go(image);
        if is_new || self.attached.iter().any(|attached| !attached.is_over()) {
            self.goroutines.forget(pid);
        }
        self.libraries.retain(|libraries| libraries.pid() != pid);
        if let Some(attached) = self.attached.iter_mut().find(|attached| attached.image() == image) {
            // They may be there for everybody.
            attached.take_probes_off(&mut self.probes);
        }
        self.let_go(image);
        let is_command = self.launched.as_ref().is_some_and(|launched| self.image_of(launched.pid()).is_none());
        if !is_command {
            return;
        }
        let left = self.attached.iter().filter(|attached| !attached.is_over()).count();
        if left > 0 && !std::mem::replace(&mut self.outlived, true) {
            tracing::warn!(
                "the command has ended; {left} of the processes that it started go on, and the trace with them (Ctrl-C ends it)"
            );
        }
    }

    /// Keeps of a process that another one has started and that has ended what will be reported.
    fn let_go(&mut self, image: Image) {
        let ended = |attached: &Attached| attached.life().came_later() && attached.image() == image;
        let Some(at) = self.attached.iter().position(ended) else { return };
        let mut attached = self.attached.remove(at);
        let memory = self.coverage.end(image, &attached.probed());
        attached.let_go(memory, &mut self.probes);
        let Self { ended, known, probes, go_over, .. } = self;
        let doubt = |attached: &Attached| doubt(attached, known, probes);
        let merging = ended.push(attached, doubt, |image| go_over.iter().any(|go| go.image == image));
        if !merging.is_empty() {
            // The collector's end shows elsewhere.
            let _ = self.requests.send(Request::Merge(merging));
        }
    }

    /// The process of this image.
    pub(super) fn find(&mut self, image: Image) -> Option<&mut Attached> {
        self.attached.iter_mut().find(|attached| attached.image() == image)
    }

    /// The image of a process that has not ended.
    pub(super) fn image_of(&self, pid: Pid) -> Option<Image> {
        self.attached.iter().find(|attached| attached.pid() == pid && !attached.is_over()).map(Attached::image)
    }

    /// A number for an image that recording is turned on for.
    pub(super) fn next_image(&mut self) -> Image {
        self.images += 1;
        Image(FIRST_GIVEN_IMAGE + self.images)
    }

    /// What the BPF side is told of a process, as [`target`] has it.
    pub(super) fn flags(&self, attached: &Attached) -> u32 {
        let launched = matches!(self.config.subject, Subject::Command(_)) && !attached.life().came_later();
        let stop = if launched { target::STOP_AT_EXEC } else { 0 };
        stop | self.follow_flags()
    }

    /// What the BPF side is told of what all processes start.
    pub(super) fn follow_flags(&self) -> u32 {
        match (self.config.children, self.probes.scope()) {
            (false, _) => 0,
            (true, Scope::File) => target::FOLLOW,
            (true, Scope::Process) => target::FOLLOW | target::LATER,
        }
    }
}

/// What is known of a program that a process has become.
fn new_program<'a>(known: &'a KnownPrograms, probes: &Probes, beginning: &'a Beginning) -> NewProgram<'a> {
    let known = known.get(beginning.program);
    NewProgram { beginning, known, is_covered: known.is_some_and(|known| known.covered_since(probes).is_some()) }
}
