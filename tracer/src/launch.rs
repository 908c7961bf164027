//! Launching a command so that it is traced from its first instruction.
//!
//! The command is held with ptrace from its exec on: at every new executable mapping its caller can look whether the
//! allocator is there now, long before anything is allocated; then at the program's own entry, when the loader has mapped
//! everything. From there on it runs free. The stop at the entry uses a debug register, not an instruction written into
//! the program. It is not tracer that holds it but its guardian, so that the end of tracer lets it go.

mod guardian;
mod held;
mod inherited;

use std::{
    ffi::OsString,
    io,
    os::{
        fd::{AsFd as _, BorrowedFd, OwnedFd},
        unix::process::{CommandExt as _, ExitStatusExt as _},
    },
    process::{Child, Command, ExitStatus},
    sync::Arc,
    time::Duration,
};

use rustix::{
    event::{PollFd, PollFlags, poll},
    process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal},
};

use self::{
    guardian::{Guardian, Reply, Request},
    inherited::Inherited,
};
use crate::{
    files::{
        elf::{Bytes, Elf},
        root::ProcessDirectory,
    },
    limits,
    space::link_map::Auxv,
};

pub use self::held::Step;
pub(crate) use self::inherited::is_ignored;

/// What it takes to launch a command, made before tracer changes anything that a command inherits.
pub struct Launcher {
    guardian: Guardian,
    inherited: Inherited,
}

impl Launcher {
    /// Prepares to launch: to be called before tracer has threads.
    ///
    /// # Errors
    /// No process or descriptor is left.
    pub fn prepare() -> io::Result<Self> {
        let inherited = Inherited::now();
        Ok(Self { guardian: Guardian::start()?, inherited })
    }

    /// Allows that the command is stopped at execs; `stops`: the map EXEC_STOPS.
    ///
    /// # Errors
    /// The guardian is gone, or cannot map it.
    pub fn allow_stops(&self, stops: BorrowedFd<'_>) -> io::Result<()> {
        self.guardian.ask_with(Request::Guard, Some(stops)).map(drop)
    }

    /// Starts `command` (name, arguments) and holds it at its exec.
    ///
    /// # Errors
    /// The command cannot be executed (not found, no right), or cannot be held.
    pub fn start(self, command: &[OsString]) -> io::Result<Launched> {
        let Self { guardian, inherited } = self;
        let (name, arguments) =
            command.split_first().ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "no command"))?;
        let mut command = Command::new(name);
        command.args(arguments);
        let guardian = Arc::new(guardian);
        let its = Arc::clone(&guardian);
        // SAFETY: between fork and exec only async-signal-safe calls are allowed: those are bare system calls.
        unsafe {
            command.pre_exec(move || {
                limits::restore_open_files()?;
                inherited.restore()?;
                its.ask(Request::Attend(libc::getpid())).map(drop)
            });
        }
        let child = command.spawn()?;
        let process = i32::try_from(child.id()).ok().and_then(Pid::from_raw).ok_or(io::ErrorKind::InvalidInput)?;
        let process = Arc::new(pidfd_open(process, PidfdFlags::empty())?);
        let mut launched = Launched { child, process, guardian, held: true, entry: None, is_loader: false };
        // To its exec.
        launched.step()?;
        Ok(launched)
    }
}

/// A command that has been launched.
pub struct Launched {
    child: Child,
    process: Arc<OwnedFd>,
    guardian: Arc<Guardian>,
    held: bool,
    /// Address of the program's entry, as long as it is not set where it stops.
    entry: Option<u64>,
    /// Whether it is a loader, to which a program was given: where that begins is not known.
    is_loader: bool,
}

impl Launched {
    /// Holds it again, as at its start: it has become another program and was stopped (SIGSTOP) before that one's first
    /// instruction. Whether it was: not if that exec was followed already. On an error it runs on.
    ///
    /// # Errors
    /// It has ended, or is held by another tracer.
    pub fn hold_again(&mut self) -> io::Result<bool> {
        match self.guardian.ask(Request::Hold) {
            Ok(Reply::NotStopped) => return Ok(false),
            Ok(_) => {}
            Err(error) => {
                if error.kind() == io::ErrorKind::UnexpectedEof || error.kind() == io::ErrorKind::BrokenPipe {
                    self.process().signal(Signal::CONT.as_raw());
                }
                return Err(error);
            }
        }
        self.held = true;
        self.find_entry();
        Ok(true)
    }

    /// Process id of the command.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The command as others may signal it.
    pub fn process(&self) -> Process {
        Process { pid: self.child.id(), process: Arc::clone(&self.process) }
    }

    /// Lets it run to its next step.
    ///
    /// # Errors
    /// The guardian is gone; the command runs on then.
    pub fn step(&mut self) -> io::Result<Step> {
        let step = match self.guardian.ask(Request::Step(self.entry.take().unwrap_or(0)))? {
            Reply::Step(step) => step,
            _ => return Err(io::ErrorKind::InvalidData.into()),
        };
        match step {
            Step::Execed => self.find_entry(),
            Step::Exited => self.held = false,
            Step::Mapped | Step::Entry => {}
        }
        Ok(step)
    }

    /// Lets it go for good.
    pub fn release(&mut self) {
        if std::mem::take(&mut self.held) {
            // Without guardian it is not held.
            let _ = self.guardian.ask(Request::Release);
        }
    }

    /// Has it stopped at no exec any more, and continues it if it is.
    pub fn follow_no_more(&self) {
        // Without guardian it is not stopped.
        let _ = self.guardian.ask(Request::Relent);
    }

    /// Waits until it has ended, for `patience` at most if there is a limit; `None` if it still runs then.
    ///
    /// # Errors
    /// When waiting fails.
    pub fn wait(&mut self, patience: Option<Duration>) -> io::Result<Option<ExitStatus>> {
        if let Some(patience) = patience {
            let patience = patience.try_into().map_err(io::Error::other)?;
            if poll(&mut [PollFd::new(&self.process, PollFlags::IN)], Some(&patience))? == 0 {
                return Ok(None);
            }
        }
        self.child.wait().map(Some)
    }

    /// Kills it: for when it cannot be traced and must not run on.
    fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// Whether it stops at the program's entry.
    pub fn stops_at_entry(&self) -> bool {
        !self.is_loader
    }

    /// Where it is to stop next. Where that cannot be read it does not stop there.
    fn find_entry(&mut self) {
        let pid = self.child.id();
        let executable = ProcessDirectory::open(pid).and_then(|process| process.executable(pid));
        self.is_loader = executable
            .is_ok_and(|executable| Elf::parse(&Bytes::new(&executable.file)).is_ok_and(|elf| elf.is_loader()));
        let entry = Auxv::read(pid).ok().and_then(|auxv| auxv.entry());
        self.entry = entry.filter(|_| !self.is_loader);
    }
}

impl Drop for Launched {
    fn drop(&mut self) {
        if self.held {
            self.kill();
        }
    }
}

/// A launched command as the one who sends it signals knows it.
#[derive(Clone)]
pub struct Process {
    pid: u32,
    process: Arc<OwnedFd>,
}

impl Process {
    /// Process id.
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// Whether it runs.
    pub fn is_alive(&self) -> bool {
        let none = rustix::time::Timespec { tv_sec: 0, tv_nsec: 0 };
        poll(&mut [PollFd::new(&self.process, PollFlags::IN)], Some(&none)).is_ok_and(|ready| ready == 0)
    }

    /// Sends it a signal; whether it was still there to get it.
    pub fn signal(&self, signal: i32) -> bool {
        Signal::from_named_raw(signal)
            .is_some_and(|signal| self.is_alive() && pidfd_send_signal(self.process.as_fd(), signal).is_ok())
    }
}

/// The exit status that stands for the end of a command: its own, or 128 + the signal that killed it.
pub fn status(status: ExitStatus) -> u8 {
    status
        .code()
        .or_else(|| status.signal().map(|signal| 128 + signal))
        .and_then(|code| u8::try_from(code).ok())
        .unwrap_or(1)
}
