//! A small process beside tracer, the guardian: it holds a launched command with ptrace, and it continues a command that was
//! stopped at an exec, whatever becomes of tracer.
//!
//! Tracer may be killed at any moment, or end with a bug. Its end of the channel is closed then, and the guardian lets the
//! command go: it runs on untraced. The guardian is nobody's child, has a session of its own, so that no terminal reaches it,
//! and blocks all signals that can be blocked. It is forked before tracer has threads, and allocates nothing.

use std::{
    io::{self, IoSlice, IoSliceMut},
    mem::MaybeUninit,
    os::fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd},
    time::Duration,
};

use rustix::event::{PollFd, PollFlags, poll};
use tracer_ebpf::ExecStops;

use super::held::{Command, Step};
use crate::files::channel;

/// What the guardian is asked for. Each request is answered.
#[derive(Clone, Copy, Debug)]
pub(super) enum Request {
    /// Hold this process, which is about to become the command.
    Attend(i32),
    /// Allow stops at execs, and continue what was stopped: with the map EXEC_STOPS.
    Guard,
    /// Let the command run to its next step; the address of the program's entry is its argument, or 0.
    Step(u64),
    /// Hold it again: it was stopped at an exec.
    Hold,
    /// Let it go.
    Release,
    /// Have it stopped at no exec any more.
    Relent,
}

/// Two words: what, and its argument.
type Message = [u64; 2];

impl Request {
    fn message(self) -> Message {
        match self {
            Self::Attend(pid) => [1, pid as u64],
            Self::Guard => [2, 0],
            Self::Step(entry) => [3, entry],
            Self::Hold => [4, 0],
            Self::Release => [5, 0],
            Self::Relent => [6, 0],
        }
    }

    fn parse(message: Message) -> Option<Self> {
        Some(match message {
            [1, pid] => Self::Attend(pid as i32),
            [2, _] => Self::Guard,
            [3, entry] => Self::Step(entry),
            [4, _] => Self::Hold,
            [5, _] => Self::Release,
            [6, _] => Self::Relent,
            _ => return None,
        })
    }
}

/// What it answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reply {
    /// That has been done.
    Done,
    /// The command has come to this.
    Step(Step),
    /// There is no stop that has not been dealt with.
    NotStopped,
    /// It failed, with this errno.
    Failed(i32),
}

impl Reply {
    fn message(self) -> Message {
        match self {
            Self::Done => [1, 0],
            Self::Step(Step::Mapped) => [2, 0],
            Self::Step(Step::Execed) => [2, 1],
            Self::Step(Step::Entry) => [2, 2],
            Self::Step(Step::Exited) => [2, 3],
            Self::NotStopped => [3, 0],
            Self::Failed(errno) => [4, errno as u64],
        }
    }

    fn parse(message: Message) -> Option<Self> {
        Some(match message {
            [1, _] => Self::Done,
            [2, 0] => Self::Step(Step::Mapped),
            [2, 1] => Self::Step(Step::Execed),
            [2, 2] => Self::Step(Step::Entry),
            [2, 3] => Self::Step(Step::Exited),
            [3, _] => Self::NotStopped,
            [4, errno] => Self::Failed(errno as i32),
            _ => return None,
        })
    }

    fn of(result: io::Result<()>) -> Self {
        match result {
            Ok(()) => Self::Done,
            Err(error) => Self::Failed(error.raw_os_error().unwrap_or(libc::EIO)),
        }
    }
}

/// Tracer's end of the channel to its guardian.
pub(super) struct Guardian {
    channel: OwnedFd,
}

impl Guardian {
    /// Starts one.
    ///
    /// # Errors
    /// No process or descriptor is left.
    pub(super) fn start() -> io::Result<Self> {
        let (channel, its) = channel::pair()?;
        // SAFETY: no thread has been started yet; and what the child does allocates nothing and takes no lock.
        match unsafe { libc::fork() } {
            -1 => Err(io::Error::last_os_error()),
            0 => {
                // The child's child has no parent that would take it for one of its own.
                // SAFETY: as above.
                if unsafe { libc::fork() } == 0 {
                    drop(channel);
                    guard(&its);
                }
                end();
            }
            child => {
                // SAFETY: a bare system call. There is nothing to learn: it fails where children are not waited for.
                unsafe { libc::waitpid(child, std::ptr::null_mut(), 0) };
                Ok(Self { channel })
            }
        }
    }

    /// Asks for something and waits for the answer.
    ///
    /// # Errors
    /// The guardian is gone; or what it says failed.
    pub(super) fn ask(&self, request: Request) -> io::Result<Reply> {
        self.ask_with(request, None)
    }

    /// The same, with a descriptor.
    pub(super) fn ask_with(&self, request: Request, descriptor: Option<BorrowedFd<'_>>) -> io::Result<Reply> {
        send(self.channel.as_fd(), request.message(), descriptor)?;
        let (message, _) = receive(self.channel.as_fd())?.ok_or_else(gone)?;
        match Reply::parse(message) {
            Some(Reply::Failed(errno)) => Err(io::Error::from_raw_os_error(errno)),
            Some(reply) => Ok(reply),
            None => Err(gone()),
        }
    }
}

fn gone() -> io::Error {
    io::Error::from(io::ErrorKind::UnexpectedEof)
}

/// Ends the process at once.
fn end() -> ! {
    // SAFETY: it does not return, and runs nothing of tracer's.
    unsafe { libc::_exit(0) }
}

/// The guardian's life.
fn guard(channel: &OwnedFd) -> ! {
    let children = detach_from_all(channel);
    let mut guard = Guard { channel: channel.as_fd(), children, command: None, stops: None };
    while let Some((message, map)) = guard.next_message() {
        let Some(request) = Request::parse(message) else { break };
        let Some(reply) = guard.obey(request, map) else { break };
        if send(channel.as_fd(), reply.message(), None).is_err() {
            break;
        }
    }
    guard.let_go();
    end();
}

/// Leaves session, files and folder of tracer, and blocks all signals. The descriptor that tells of changes in the command.
fn detach_from_all(channel: &OwnedFd) -> libc::c_int {
    let channel = channel.as_raw_fd();
    // SAFETY: bare system calls with valid arguments; nothing else in this process uses the descriptors that are closed.
    unsafe {
        libc::setsid();
        libc::prctl(libc::PR_SET_NAME, c"guardian".as_ptr());
        libc::syscall(libc::SYS_close_range, 0, channel - 1, 0);
        libc::syscall(libc::SYS_close_range, channel + 1, libc::c_uint::MAX, 0);
        // It gets the number 0, the copies the next.
        let null = libc::open(c"/dev/null".as_ptr(), libc::O_RDWR);
        libc::dup(null);
        libc::dup(null);
        libc::chdir(c"/".as_ptr());
        let mut all = MaybeUninit::uninit();
        libc::sigfillset(all.as_mut_ptr());
        libc::sigprocmask(libc::SIG_SETMASK, all.as_ptr(), std::ptr::null_mut());
        // Ignored by whoever started tracer, it would not come.
        libc::signal(libc::SIGCHLD, libc::SIG_DFL);
        libc::sigemptyset(all.as_mut_ptr());
        libc::sigaddset(all.as_mut_ptr(), libc::SIGCHLD);
        libc::signalfd(-1, all.as_ptr(), libc::SFD_CLOEXEC | libc::SFD_NONBLOCK)
    }
}

struct Guard<'a> {
    channel: BorrowedFd<'a>,
    /// Readable when the command has stopped or ended, as far as it is held.
    children: libc::c_int,
    command: Option<Command>,
    stops: Option<Stops>,
}

impl Guard<'_> {
    /// The next request with the descriptor that came with it. `None` when tracer is gone. What the command does meanwhile
    /// is looked at.
    fn next_message(&mut self) -> Option<(Message, Option<OwnedFd>)> {
        self.look();
        while !self.wait(PollFlags::IN) {
            self.look();
        }
        receive(self.channel).ok()?
    }

    /// Waits until the channel has what `flags` say, or something has become of the command; whether it is the first.
    fn wait(&self, flags: PollFlags) -> bool {
        // SAFETY: it is open as long as the process lives.
        let children = unsafe { BorrowedFd::borrow_raw(self.children) };
        let mut fds = [PollFd::new(&self.channel, flags), PollFd::new(&children, PollFlags::IN)];
        // A failure shows at the next call.
        let _ = poll(&mut fds, None);
        let ready = !fds[0].revents().is_empty();
        let mut told = [0u8; size_of::<libc::signalfd_siginfo>()];
        // SAFETY: `told` has room for what is asked for; without a signal there is nothing, at once.
        while unsafe { libc::read(self.children, told.as_mut_ptr().cast(), told.len()) } > 0 {}
        ready
    }

    fn look(&mut self) {
        let Self { command, stops, .. } = self;
        if let Some(command) = command {
            command.look(|| stops.as_mut().is_some_and(Stops::take));
        }
    }

    /// Does what it is asked for; `None` when tracer has gone meanwhile.
    fn obey(&mut self, request: Request, map: Option<OwnedFd>) -> Option<Reply> {
        let no_command = Some(Reply::Failed(libc::ESRCH));
        Some(match request {
            Request::Attend(pid) => Reply::of(Command::attend(pid).map(|command| self.command = Some(command))),
            Request::Guard => Reply::of(map.ok_or_else(gone).and_then(|map| Stops::map(&map)).map(|stops| {
                self.stops = Some(stops);
            })),
            Request::Step(entry) => {
                let Some(command) = &mut self.command else { return no_command };
                command.go_on(entry);
                loop {
                    self.look();
                    if let Some(step) = self.command.as_mut().and_then(Command::take_step) {
                        break Reply::Step(step);
                    }
                    if self.wait(PollFlags::empty()) {
                        return None;
                    }
                }
            }
            Request::Hold => {
                let Some(command) = &mut self.command else { return no_command };
                if !self.stops.as_mut().is_some_and(Stops::take) {
                    return Some(Reply::NotStopped);
                }
                Reply::of(command.hold())
            }
            Request::Release => {
                self.release();
                Reply::Done
            }
            Request::Relent => {
                self.relent();
                Reply::Done
            }
        })
    }

    fn release(&mut self) {
        let Self { command, stops, .. } = self;
        if let Some(command) = command {
            command.release(|| stops.as_mut().is_some_and(Stops::take));
        }
    }

    /// Continues the command if it is in a stop that nobody has dealt with, and allows no other.
    fn relent(&mut self) {
        let Some(stops) = &mut self.stops else { return };
        stops.forbid();
        if stops.take()
            && let Some(command) = &self.command
        {
            command.signal(libc::SIGCONT);
        }
    }

    fn let_go(&mut self) {
        self.relent();
        self.release();
    }
}

/// Stops at execs: memory that is shared with the BPF side.
struct Stops {
    shared: *mut ExecStops,
    /// How many have been dealt with.
    taken: u64,
}

impl Stops {
    /// Shares the memory of the map EXEC_STOPS, and allows stops from now on.
    fn map(map: &OwnedFd) -> io::Result<Self> {
        let access = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: a new mapping, of the map's only page; nothing of this process is touched.
        let shared = unsafe {
            libc::mmap(std::ptr::null_mut(), size_of::<ExecStops>(), access, libc::MAP_SHARED, map.as_raw_fd(), 0)
        };
        if shared == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let shared = shared.cast::<ExecStops>();
        // SAFETY: mapped, page-aligned, and never unmapped.
        unsafe { std::ptr::write_volatile(&raw mut (*shared).allowed, 1) };
        Ok(Self { shared, taken: 0 })
    }

    /// Whether there was a stop that had not been dealt with. It is now.
    fn take(&mut self) -> bool {
        // SAFETY: as above; the BPF side adds to it, and takes back what it has continued itself, of which nobody hears.
        let sent = unsafe { std::ptr::read_volatile(&raw const (*self.shared).sent) };
        std::mem::replace(&mut self.taken, sent) != sent
    }

    /// Allows none from now on. On return the last one has been sent.
    fn forbid(&self) {
        /// Of `enum membarrier_cmd` (include/uapi/linux/membarrier.h): waits for a grace period of RCU, and so for all
        /// BPF programs that run.
        const GLOBAL: libc::c_int = 1;
        // SAFETY: as above; a bare system call with valid arguments.
        let waited = unsafe {
            std::ptr::write_volatile(&raw mut (*self.shared).allowed, 0);
            libc::syscall(libc::SYS_membarrier, GLOBAL, 0, 0) == 0
        };
        if !waited {
            // Refused where processors run without ticks.
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

fn send(channel: BorrowedFd<'_>, message: Message, descriptor: Option<BorrowedFd<'_>>) -> io::Result<()> {
    let words = message.map(u64::to_ne_bytes);
    channel::send(channel, &[IoSlice::new(words.as_flattened())], descriptor)
}

/// A message, with the descriptor that came with it. `None` when the other side is gone.
fn receive(channel: BorrowedFd<'_>) -> io::Result<Option<(Message, Option<OwnedFd>)>> {
    let mut words = [[0; 8]; 2];
    let (length, descriptor) = channel::receive(channel, &mut [IoSliceMut::new(words.as_flattened_mut())])?;
    let whole = length == size_of::<Message>();
    Ok(whole.then(|| (words.map(u64::from_ne_bytes), descriptor)))
}
