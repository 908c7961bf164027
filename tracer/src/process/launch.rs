//! Launching a command so that it is traced from its first instruction.
//!
//! The command is held with ptrace from its exec on: at every new executable mapping its caller can look whether the
//! allocator is there now, long before anything is allocated; then at the program's own entry, when the loader has mapped
//! everything. From there on it runs free. The stop at the entry uses a debug register, not an instruction written into
//! the program.

use std::{
    ffi::OsString,
    io,
    os::unix::process::{CommandExt as _, ExitStatusExt as _},
    process::{Child, Command, ExitStatus},
};

use nix::{
    sys::{
        ptrace::{self, Options},
        signal::Signal,
        wait::{WaitStatus, waitpid},
    },
    unistd::Pid,
};

use super::link_map::Auxv;
use crate::limits;

/// Where the debug registers are in `struct user` (arch/x86/include/asm/user_64.h), bytes.
const DEBUG_REGISTERS: usize = 848;
/// mmap(2) on x86-64, and the bit of its third argument that asks for executable memory.
const SYS_MMAP: u64 = 9;
const PROT_EXEC: u64 = 4;

/// System calls can be told from signals, execs are told, and nobody is left behind that cannot run on.
const OPTIONS: Options =
    Options::PTRACE_O_TRACESYSGOOD.union(Options::PTRACE_O_TRACEEXEC).union(Options::PTRACE_O_EXITKILL);

/// A command that has been launched.
pub struct Launched {
    child: Child,
    pid: Pid,
    held: bool,
    /// Whether the next stop at a system call is its end.
    in_call: bool,
    /// How it ended, if that was learned while it was held.
    ended: Option<ExitStatus>,
}

/// Why the command has stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// There may be a new executable mapping.
    Mapped,
    /// It is at the program's entry: the loader has done its work.
    Entry,
    /// It has ended.
    Exited,
}

impl Launched {
    /// Starts `command` (name, arguments) and holds it at its exec.
    ///
    /// # Errors
    /// The command cannot be executed (not found, no right), or cannot be held.
    pub fn start(command: &[OsString]) -> io::Result<Self> {
        let (name, arguments) =
            command.split_first().ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "no command"))?;
        let mut command = Command::new(name);
        command.args(arguments);
        // SAFETY: between fork and exec only async-signal-safe calls are allowed; both are bare system calls.
        unsafe { command.pre_exec(|| limits::restore_open_files().and_then(|()| Ok(ptrace::traceme()?))) };
        let child = command.spawn()?;
        let pid = Pid::from_raw(child.id() as i32);
        waitpid(pid, None)?;
        ptrace::setoptions(pid, OPTIONS)?;
        let launched = Self { child, pid, held: true, in_call: false, ended: None };
        launched.break_at_entry();
        Ok(launched)
    }

    /// Holds it again, as at its start: it has become another program and was stopped (SIGSTOP) before that one's first
    /// instruction. On an error it runs on.
    ///
    /// # Errors
    /// It has ended, or is held by another tracer.
    pub fn hold_again(&mut self) -> io::Result<()> {
        let held = ptrace::seize(self.pid, OPTIONS);
        self.signal(Signal::SIGCONT as i32);
        held?;
        (self.held, self.in_call) = (true, false);
        // The stop of the stopped, or the signal to stop, if that was on its way; SIGCONT comes after either.
        let stop = waitpid(self.pid, None)?;
        tracing::debug!(?stop, "held at an exec");
        match self.note_end(stop) {
            Some(_) => Err(io::Error::other("the command has ended")),
            None => {
                self.break_at_entry();
                Ok(())
            }
        }
    }

    /// Process id of the command.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Lets it run to its next step.
    ///
    /// # Errors
    /// When ptrace fails, other than because the command has ended.
    pub fn step(&mut self) -> io::Result<Step> {
        let mut deliver = None;
        loop {
            if let Err(error) = ptrace::syscall(self.pid, deliver.take()) {
                if error != nix::Error::ESRCH {
                    return Err(error.into());
                }
                // Killed: how can be asked for later.
                self.held = false;
                return Ok(Step::Exited);
            }
            let stop = waitpid(self.pid, None)?;
            if let Some(step) = self.note_end(stop) {
                return Ok(step);
            }
            match stop {
                WaitStatus::PtraceSyscall(_) => {
                    self.in_call = !self.in_call;
                    if !self.in_call && self.mapped_code() {
                        return Ok(Step::Mapped);
                    }
                }
                WaitStatus::PtraceEvent(_, _, libc::PTRACE_EVENT_EXEC) => {
                    self.break_at_entry();
                    return Ok(Step::Mapped);
                }
                WaitStatus::Stopped(_, Signal::SIGTRAP) => {
                    let _ = self.set_debug_register(7, 0);
                    return Ok(Step::Entry);
                }
                // That of `hold_again` and of the one who stopped it.
                WaitStatus::Stopped(_, Signal::SIGCONT | Signal::SIGSTOP) => {}
                WaitStatus::Stopped(_, signal) => deliver = Some(signal),
                _ => {}
            }
        }
    }

    /// Lets it go for good.
    ///
    /// # Errors
    /// When ptrace fails, other than because the command has ended.
    pub fn release(&mut self) -> io::Result<()> {
        if std::mem::take(&mut self.held) {
            let _ = self.set_debug_register(7, 0);
            match ptrace::detach(self.pid, None) {
                Ok(()) | Err(nix::Error::ESRCH) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    /// Waits until it has ended.
    ///
    /// # Errors
    /// When waiting fails.
    pub fn wait(&mut self) -> io::Result<ExitStatus> {
        self.ended.map_or_else(|| self.child.wait(), Ok)
    }

    /// Kills it: for when it cannot be traced and must not run on.
    pub fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: i32) {
        if let Ok(signal) = Signal::try_from(signal) {
            let _ = nix::sys::signal::kill(self.pid, signal);
        }
    }

    /// Keeps how it ended: the one who waits for it a second time learns nothing.
    fn note_end(&mut self, stop: WaitStatus) -> Option<Step> {
        let raw = match stop {
            WaitStatus::Exited(_, code) => code << 8,
            WaitStatus::Signaled(_, signal, _) => signal as i32,
            _ => return None,
        };
        self.held = false;
        self.ended = Some(ExitStatus::from_raw(raw));
        Some(Step::Exited)
    }

    /// Whether the system call that has just ended mapped executable memory.
    fn mapped_code(&self) -> bool {
        ptrace::getregs(self.pid).is_ok_and(|regs| regs.orig_rax == SYS_MMAP && regs.rdx & PROT_EXEC != 0)
    }

    /// Arms debug register 0 for the program's entry. Where debug registers are missing the command simply never stops
    /// there.
    fn break_at_entry(&self) {
        let entry = Auxv::read(self.child.id()).ok().and_then(|auxv| auxv.entry());
        let armed = entry.map(|entry| self.set_debug_register(0, entry).and_then(|()| self.set_debug_register(7, 1)));
        if !matches!(armed, Some(Ok(()))) {
            tracing::debug!("no stop at the program's entry: {armed:?}");
        }
    }

    fn set_debug_register(&self, index: usize, value: u64) -> nix::Result<()> {
        let offset = DEBUG_REGISTERS + index * 8;
        ptrace::write_user(self.pid, offset as ptrace::AddressType, value as i64)
    }
}

impl Drop for Launched {
    fn drop(&mut self) {
        if self.held {
            self.kill();
        }
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
