//! Looks at processes that have become other programs, on threads of their own: what they are and what they allocate with. It takes
//! reading files, of which there may be many and slow ones.

use std::{
    io,
    sync::{Arc, Mutex, PoisonError, mpsc},
    thread,
};

use tracer_ebpf::unwind::FileKey;

use super::find::{Allocators, OwnAllocator, Phase, describe, find, is_run_by, mappings, own_allocator};
use crate::{
    event::{Image, Pid},
    files::{
        elf::{Bytes, Elf},
        root::ProcessDirectory,
    },
    process::status::{self, NotTraceable},
    profile::{Language, Process},
    report::visible,
    space::{address_space::AddressSpace, link_map, memory_map},
};

/// Threads that look.
const LOOKERS: usize = 2;

/// Those who look.
pub struct Lookers {
    processes: mpsc::Sender<(Image, Pid, Option<FileKey>)>,
    /// Those that have ended: they wait for no other, and no other for them.
    ended: mpsc::Sender<FileKey>,
}

/// What was seen.
pub enum Seen {
    /// Of a process: the image that was there when it was asked for, and what is there.
    Process(Image, What),
    /// Of a program that was over before it was looked at: the allocator in its own file.
    Ended(FileKey, OwnAllocator),
}

/// What is there.
pub enum What {
    /// The process has ended.
    Gone,
    /// A program that cannot be traced: what it is, in words.
    Foreign(String),
    /// A program.
    Program(Box<Program>),
}

/// A program that runs.
pub struct Program {
    /// What it is.
    pub process: Process,
    /// What it allocates with.
    pub allocators: Option<Allocators>,
    /// Whether it has the heap of a Go runtime.
    pub has_go: bool,
    /// Whether its loader is done.
    pub loaded: bool,
    /// Whether the kernel alone has loaded it.
    pub is_static: bool,
    /// Memory of its own that it has, bytes.
    pub own_memory: Option<u64>,
    /// Its mappings.
    pub space: AddressSpace,
}

impl Lookers {
    /// Starts the threads, which give what they see to `tell` and end with this.
    ///
    /// # Errors
    /// A thread cannot be started.
    pub fn start(tell: impl Fn(Seen) + Clone + Send + 'static) -> io::Result<Self> {
        let (processes, asked) = mpsc::channel::<(Image, Pid, Option<FileKey>)>();
        let asked = Arc::new(Mutex::new(asked));
        let begin = |work: Box<dyn FnOnce() + Send>| thread::Builder::new().name("looker".to_owned()).spawn(work);
        for _ in 0..LOOKERS {
            let (asked, tell) = (Arc::clone(&asked), tell.clone());
            begin(Box::new(move || {
                loop {
                    let next = asked.lock().unwrap_or_else(PoisonError::into_inner).recv();
                    let Ok((image, pid, program)) = next else { return };
                    tell(Seen::Process(image, look(pid, program)));
                }
            }))?;
        }
        let (ended, asked) = mpsc::channel::<FileKey>();
        begin(Box::new(move || asked.iter().for_each(|program| tell(Seen::Ended(program, own_allocator(&program))))))?;
        Ok(Self { processes, ended })
    }

    /// Has a process looked at, which has this image now, and runs this program, where that is known.
    pub fn ask(&self, image: Image, pid: Pid, program: Option<FileKey>) {
        // They end with this.
        let _ = self.processes.send((image, pid, program));
    }

    /// Has a program looked at that was over before that could be done.
    pub fn ask_of_ended(&self, program: FileKey) {
        // As above.
        let _ = self.ended.send(program);
    }
}

/// `program`: what it runs, where that is known. What runs another one has become that since, or has only the id of one that has ended.
fn look(pid: Pid, program: Option<FileKey>) -> What {
    let is_another = || program.is_some_and(|program| is_run_by(&program, pid) == Some(false));
    if is_another() {
        return What::Gone;
    }
    let status = match status::look(pid) {
        Ok(status) => status,
        Err(NotTraceable::Not64Bit(_, comm)) => return What::Foreign(format!("a 32-bit program ({})", visible(&comm))),
        Err(_) => return What::Gone,
    };
    let looked_at = status::executable(pid);
    // Asked for first: what the loader does after the look is not for the look to have seen.
    let is_static = is_static(pid);
    let loaded = is_static || link_map::is_loaded(pid);
    let memory = ProcessDirectory::with_memory(pid).and_then(|process| memory_map::counted(&process));
    let own_memory = memory.ok().map(|memory| memory.anonymous);
    let Ok(space) = mappings(pid) else { return What::Gone };
    let allocators = find(pid, &space, Phase::Begun).unwrap_or_else(|error| {
        tracing::debug!("cannot look at process {pid}: {error:#}");
        None
    });
    let process = describe(pid, &status, &space);
    if status::executable(pid) != looked_at || is_another() {
        // As what was looked at it is gone.
        return What::Gone;
    }
    let has_go = process.language == Language::Go;
    What::Program(Box::new(Program { process, allocators, has_go, loaded, is_static, own_memory, space }))
}

/// Whether the process's program is loaded by the kernel alone, and is not itself a loader that was given a program to run.
fn is_static(pid: Pid) -> bool {
    let Ok(executable) = ProcessDirectory::with_memory(pid).and_then(|process| process.executable(pid)) else {
        return false;
    };
    Elf::parse(&Bytes::new(&executable.file)).is_ok_and(|elf| !elf.has_interpreter() && !elf.is_loader())
}

#[cfg(test)]
mod tests {
    use std::{os::unix::fs::MetadataExt as _, process::Command};

    use super::*;

    #[test]
    fn a_program_and_one_that_has_ended() {
        let (tell, told) = mpsc::channel();
        let lookers = Lookers::start(move |seen| tell.send(seen).unwrap()).unwrap();
        let mut child = Command::new("sleep").arg("1000").spawn().unwrap();
        let pid = child.id();
        // It may be at its exec still: spawned is what has begun to give its memory up, before it has its name.
        let program = loop {
            lookers.ask(Image(7), pid, None);
            match told.recv().unwrap() {
                Seen::Process(Image(7), What::Program(program))
                    if program.loaded && program.process.comm == "sleep" =>
                {
                    break program;
                }
                _ => {}
            }
        };
        assert!(!program.has_go);
        assert!(program.allocators.is_some_and(|found| found.paths().any(|path| path.contains("libc"))));
        assert!(program.own_memory.is_some_and(|bytes| bytes > 4096) && program.space.code().count() > 1);
        // What has the id of a process need not be it.
        let file = std::fs::metadata(format!("/proc/{pid}/exe")).unwrap();
        let (major, minor) = (rustix::fs::major(file.dev()), rustix::fs::minor(file.dev()));
        let own = FileKey { inode: file.ino(), device: major << 20 | minor, generation: 0 };
        let another = FileKey { inode: file.ino() + 1, ..own };
        for (program, is_it) in [(own, true), (another, false)] {
            lookers.ask(Image(7), pid, Some(program));
            let seen = told.recv().unwrap();
            assert_eq!(matches!(seen, Seen::Process(_, What::Program(_))), is_it);
        }
        child.kill().unwrap();
        child.wait().unwrap();
        lookers.ask(Image(8), pid, None);
        assert!(matches!(told.recv().unwrap(), Seen::Process(Image(8), What::Gone)));
    }
}
