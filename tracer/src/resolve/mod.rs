//! Threads that open files, compile their unwinding tables and look into processes, so that who takes records in does not.
//!
//! One thread, the desk (`desk.rs`), knows which files there are, decides what is looked at next and writes the tables; it never
//! waits for a file. Workers (`worker.rs`) open, read and compile. All of it is handed over by channels.

mod desk;
mod machine;
mod program;
mod queue;
mod worker;

use std::{
    io,
    sync::{Arc, mpsc},
    thread,
};

use crate::{
    event::{Image, Pid, UnknownFile},
    files::module::Module,
    heap::StackIndex,
    profile::UnwindTable,
    space::address_space::AddressSpace,
    trails::Site,
    unwinder::Unwinder,
};

/// Workers. One of them is always free for what is short.
const WORKERS: usize = 2;

/// What has come to be known.
pub enum Resolved {
    /// The BPF side knows the file with this number by now.
    Known {
        /// The number.
        number: u32,
        /// The file; `None` when code is kept in it that was generated at run time.
        module: Option<Arc<Module>>,
        /// What it is unwound by, where somebody has met it or a process that begins has mapped it.
        table: Option<UnwindTable>,
    },
    /// These numbers stand for nothing new any more: nobody has met their files for a while.
    Forgotten(Vec<u32>),
    /// What places of these stacks stand for that lie in no file.
    Located(Vec<Located>),
    /// The executable mappings of an image have changed.
    Mapped(Image),
    /// All is told that was asked before this number was: see [`Resolvers::settle`].
    Settled(u64),
}

/// A stack whose places were looked up.
pub struct Located {
    /// Which one.
    pub stack: StackIndex,
    /// Its places, leaf first.
    pub sites: Vec<Site>,
    /// Whether it was cut because nothing proves the next frame.
    pub is_unproved: bool,
}

/// Asks the threads.
#[derive(Clone)]
pub struct Resolvers(mpsc::Sender<desk::Input>);

/// The threads: they end with this.
pub struct Running(mpsc::Sender<desk::Input>);

impl Drop for Running {
    fn drop(&mut self) {
        // The desk may have ended already.
        let _ = self.0.send(desk::Input::End);
    }
}

impl Resolvers {
    /// Starts the threads. `tell` gets what has come to be known, on the desk's.
    ///
    /// # Errors
    /// A thread cannot be started.
    pub fn start(unwinder: Unwinder, tell: impl FnMut(Resolved) + Send + 'static) -> io::Result<(Self, Running)> {
        let (asks, inputs) = mpsc::channel();
        let mut workers = Vec::new();
        for number in 0..WORKERS {
            let (jobs, todo) = mpsc::channel();
            let done = asks.clone();
            let tell = move |what, is_last| {
                // The trace may be over.
                let _ = done.send(desk::Input::Done { worker: number, done: what, is_last });
            };
            thread::Builder::new().name("resolver".to_owned()).spawn(move || worker::run(&todo, tell))?;
            workers.push(jobs);
        }
        let desk = desk::Desk::new(unwinder, workers, Box::new(tell));
        thread::Builder::new().name("files".to_owned()).spawn(move || desk.run(&inputs))?;
        Ok((Self(asks.clone()), Running(asks)))
    }

    /// Makes all files known that a process has mapped by now, `space`, so that its stacks are complete from the first on; then
    /// calls `then`. What lies on a file system that may not answer becomes known when it is met.
    pub fn follow(&self, space: AddressSpace, then: impl FnOnce() + Send + 'static) {
        self.ask(desk::Ask::Follow(Box::new(space), Box::new(then)));
    }

    /// An image has begun. `is_program`: by an exec, so that its files may never have been met.
    pub fn began(&self, image: Image, pid: Pid, is_program: bool) {
        self.ask(desk::Ask::Began { image, pid, is_program });
    }

    /// An image has ended.
    pub fn ended(&self, image: Image) {
        self.ask(desk::Ask::Ended(image));
    }

    /// Makes a file known that was met in a process. It is told again when it cannot be found.
    pub fn find(&self, pid: Pid, unknown: UnknownFile) {
        self.ask(desk::Ask::Find(pid, unknown));
    }

    /// Has a file told again when it is met again.
    pub fn retry(&self, number: u32) {
        self.ask(desk::Ask::Retry(number));
    }

    /// Looks up what lies in no file, of stacks of an image.
    pub fn locate(&self, image: Image, stacks: Vec<(StackIndex, Vec<Site>)>) {
        self.ask(desk::Ask::Locate(image, stacks));
    }

    /// Makes the files known that any process of the machine has mapped, in the background.
    pub fn learn_machine(&self) {
        self.ask(desk::Ask::Machine);
    }

    /// Has [`Resolved::Settled`] told with `number` when nothing is left to do of what was asked before, but in the background.
    pub fn settle(&self, number: u64) {
        self.ask(desk::Ask::Settle(number));
    }

    fn ask(&self, ask: desk::Ask) {
        // Who asks may go on for a moment when the trace is over.
        let _ = self.0.send(desk::Input::Ask(ask));
    }
}
