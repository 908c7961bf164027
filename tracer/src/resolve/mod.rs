//! Threads that open files, compile their unwinding tables and look into processes, so that who takes records in does not.
//!
//! One thread, the desk (`desk.rs`), knows which files there are, decides what is looked at next and writes the tables; it never
//! waits for a file. Workers (`worker.rs`) open, read and compile. All of it is handed over by channels.

mod ask;
mod desk;
mod machine;
mod next;
mod processes;
mod program;
mod queue;
mod reader;
mod resolved;
mod rests;
mod worker;

use std::{
    io,
    sync::{Arc, mpsc},
    thread,
};

use tracer_ebpf::unwind::FileKey;

use self::ask::{Ask, Input};
pub use self::{
    resolved::{Located, Resolved},
    rests::{Rest, Room},
};
use crate::{
    bpf::CodeChanges,
    event::{Image, Pid, UnknownFile},
    heap::StackIndex,
    space::address_space::AddressSpace,
    trails::Site,
    unwinder::Unwinder,
};

/// Workers. The first one does only what is short, and another one is always free for what is not very long.
const WORKERS: usize = 3;

/// Asks the threads.
#[derive(Clone)]
pub struct Resolvers {
    asks: mpsc::Sender<Input>,
    reader: mpsc::Sender<(Image, Pid)>,
    room: Room,
}

/// The threads: they end with this.
pub struct Running(mpsc::Sender<Input>);

impl Drop for Running {
    fn drop(&mut self) {
        // The desk may have ended already.
        let _ = self.0.send(Input::End);
    }
}

impl Resolvers {
    /// Starts the threads. `tell` gets what has come to be known, on the desk's.
    ///
    /// # Errors
    /// A thread cannot be started.
    pub fn start(
        unwinder: Unwinder,
        changes: CodeChanges,
        tell: impl FnMut(Resolved) + Send + 'static,
    ) -> io::Result<(Self, Running)> {
        let (asks, inputs) = mpsc::channel();
        let mut workers = Vec::new();
        for number in 0..WORKERS {
            let (jobs, todo) = mpsc::channel();
            let done = asks.clone();
            let tell = move |what, is_last| {
                // The trace may be over.
                let _ = done.send(Input::Done { worker: number, done: what, is_last });
            };
            thread::Builder::new().name("resolver".to_owned()).spawn(move || worker::run(&todo, tell))?;
            workers.push(jobs);
        }
        let (reader, asked) = mpsc::channel();
        let done = asks.clone();
        let tell_read = move |reading| {
            // As above.
            let _ = done.send(Input::Read(reading));
        };
        thread::Builder::new().name("mappings".to_owned()).spawn(move || reader::run(&asked, &changes, tell_read))?;
        let room = Room::default();
        let desk = desk::Desk::new(unwinder, room.clone(), workers, reader.clone(), Box::new(tell));
        thread::Builder::new().name("files".to_owned()).spawn(move || desk.run(&inputs))?;
        Ok((Self { asks: asks.clone(), reader, room }, Running(asks)))
    }

    /// Makes all files known that a process has mapped by now, `space`, so that its stacks are complete from the first on; then
    /// calls `then`. What lies on a file system that may not answer becomes known when it is met.
    pub fn follow(&self, space: &AddressSpace, then: impl FnOnce() + Send + 'static) {
        let code = space.code().filter_map(|(mapping, module)| Some((mapping.start..mapping.end, Arc::clone(module?))));
        self.ask(Ask::Follow(space.pid(), code.collect(), Box::new(then)));
    }

    /// An image has begun. `program`: by an exec, so that its files may never have been met; what the kernel knows that file by, all 0
    /// where it does not tell.
    pub fn began(&self, image: Image, pid: Pid, program: Option<FileKey>) {
        self.ask(Ask::Began { image, pid, program });
    }

    /// An image has ended.
    pub fn ended(&self, image: Image) {
        self.ask(Ask::Ended(image));
    }

    /// Makes a file known that was met in a process. It is told again when it cannot be found.
    pub fn find(&self, pid: Pid, unknown: UnknownFile) {
        self.ask(Ask::Find(pid, unknown));
    }

    /// Has a file told again when it is met again.
    pub fn retry(&self, number: u32) {
        self.ask(Ask::Retry(number));
    }

    /// Looks up what lies in no file, of stacks of an image.
    pub fn locate(&self, image: Image, stacks: Vec<(StackIndex, Vec<Site>)>) {
        self.ask(Ask::Locate(image, stacks));
    }

    /// Whose memory the rests of stacks are.
    pub fn room(&self) -> &Room {
        &self.room
    }

    /// Reads the mappings of an image at once, of the process `pid`, whatever else there is to do: stacks of this moment will be
    /// unwound by them.
    pub fn read_mappings(&self, image: Image, pid: Pid) {
        self.ask(Ask::Reads(image, pid));
        // As in `ask`.
        let _ = self.reader.send((image, pid));
    }

    /// Unwinds the rest of a stack of an image as soon as the file with this number is known.
    pub fn unwind(&self, image: Image, stack: StackIndex, number: u32, rest: Rest) {
        self.ask(Ask::Unwind(image, number, Box::new((stack, rest))));
    }

    /// Makes the files known that any process of the machine has mapped, in the background: `at_once`, or when a program has begun.
    pub fn learn_machine(&self, at_once: bool) {
        self.ask(Ask::Machine { at_once });
    }

    /// Has [`Resolved::Settled`] told with `number` when nothing is left to do of what was asked before, but in the background. `is_last`:
    /// nothing more is recorded, and no file will be met again.
    pub fn settle(&self, number: u64, is_last: bool) {
        self.ask(Ask::Settle { number, is_last });
    }

    fn ask(&self, ask: Ask) {
        // Who asks may go on for a moment when the trace is over.
        let _ = self.asks.send(Input::Ask(ask));
    }
}
