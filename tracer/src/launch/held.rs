//! A command that is held with ptrace: what it stops for, and how it goes on. Runs in the guardian: allocates nothing.
//!
//! Statuses are read as waitpid(2) gives them: the safe wrappers refuse those of real-time signals.

use std::{io, mem::MaybeUninit, os::fd::OwnedFd};

use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

/// Where the debug registers are in `struct user` (arch/x86/include/asm/user_64.h), bytes.
const DEBUG_REGISTERS: usize = 848;
/// mmap(2) on x86-64, and the bit of its third argument that asks for executable memory.
const SYS_MMAP: u64 = 9;
const PROT_EXEC: u64 = 4;
/// What SIGTRAP of a debug register has as its `si_code` (include/uapi/asm-generic/siginfo.h).
const TRAP_HWBKPT: i32 = 4;
/// Set in the signal of a stop at a system call, by PTRACE_O_TRACESYSGOOD.
const SYSCALL_STOP: i32 = 0x80;
const OPTIONS: i32 = libc::PTRACE_O_TRACESYSGOOD | libc::PTRACE_O_TRACEEXEC;

/// Why the command has stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// It has become a program.
    Execed,
    /// There may be a new executable mapping.
    Mapped,
    /// It is at the program's entry: the loader has done its work.
    Entry,
    /// It has ended.
    Exited,
}

/// The launched command as the guardian knows it.
pub(super) struct Command {
    pid: i32,
    process: OwnedFd,
    held: bool,
    /// In a stop from which only we can let it go on.
    stopped: bool,
    /// Signal that it is to get when it goes on, or 0.
    deliver: i32,
    /// A SIGCONT is on its way that we have sent.
    continued: bool,
    /// Debug register 0 is set.
    armed: bool,
    /// What it has come to, not yet told.
    step: Option<Step>,
}

impl Command {
    /// Begins to hold process `pid`, which is to exec.
    pub(super) fn attend(pid: i32) -> io::Result<Self> {
        let id = Pid::from_raw(pid).ok_or(io::ErrorKind::InvalidInput)?;
        let process = pidfd_open(id, PidfdFlags::empty())?;
        seize(pid)?;
        let (held, stopped, continued, armed) = (true, false, false, false);
        Ok(Self { pid, process, held, stopped, deliver: 0, continued, armed, step: None })
    }

    /// Holds it again. It was stopped (SIGSTOP) at its exec, or is about to: either way it does not come to its first
    /// instruction. On an error it runs on.
    pub(super) fn hold(&mut self) -> io::Result<()> {
        if self.held {
            return Ok(());
        }
        let seized = seize(self.pid);
        // Takes back a stop that is yet to come.
        self.signal(libc::SIGCONT);
        seized?;
        (self.held, self.stopped, self.continued, self.armed, self.step) = (true, false, true, false, None);
        match self.wait(0) {
            Some(status) if libc::WIFSTOPPED(status) => {
                self.stopped = true;
                self.deliver = match signal_of(status) {
                    libc::SIGSTOP => 0,
                    libc::SIGCONT => {
                        self.continued = false;
                        0
                    }
                    signal => signal,
                };
                Ok(())
            }
            _ => {
                self.held = false;
                Err(io::Error::from_raw_os_error(libc::ESRCH))
            }
        }
    }

    /// Lets it run, unless there is a step that was not told; `entry`: where it is to stop, if not 0. Where debug registers
    /// are missing it simply never stops there.
    pub(super) fn go_on(&mut self, entry: u64) {
        if self.step.is_none() && self.held && self.stopped {
            if entry != 0 {
                self.armed = self.set_debug_register(0, entry) && self.set_debug_register(7, 1);
            }
            self.resume();
        } else if !self.held {
            self.step = Some(Step::Exited);
        }
    }

    /// What it has come to since it was let run.
    pub(super) fn take_step(&mut self) -> Option<Step> {
        self.step.take()
    }

    /// Sees what has become of it. `ours`: whether there was a stop by SIGSTOP that is ours.
    pub(super) fn look(&mut self, mut ours: impl FnMut() -> bool) {
        // One that is stopped may have been killed.
        while self.held {
            let Some(status) = self.wait(libc::WNOHANG) else { return };
            self.heed(status, &mut ours);
        }
    }

    /// Lets it go. It runs on as if it had never been held.
    pub(super) fn release(&mut self, mut ours: impl FnMut() -> bool) {
        if !self.held {
            return;
        }
        if !self.stopped {
            self.ptrace(libc::PTRACE_INTERRUPT, 0, 0);
            match self.wait(0) {
                Some(status) if libc::WIFSTOPPED(status) => {
                    self.deliver = match signal_of(status) {
                        libc::SIGTRAP if self.armed && self.is_at_breakpoint() => 0,
                        libc::SIGSTOP if ours() => 0,
                        libc::SIGCONT if self.continued => 0,
                        signal => signal,
                    }
                }
                _ => {
                    self.held = false;
                    return;
                }
            }
        }
        self.disarm();
        self.ptrace(libc::PTRACE_DETACH, 0, self.deliver as usize);
        (self.held, self.stopped, self.deliver, self.step) = (false, false, 0, None);
    }

    /// Sends it a signal.
    pub(super) fn signal(&self, signal: i32) {
        if let Some(signal) = Signal::from_named_raw(signal) {
            // It may have ended.
            let _ = pidfd_send_signal(&self.process, signal);
        }
    }

    fn heed(&mut self, status: i32, ours: &mut impl FnMut() -> bool) {
        if !libc::WIFSTOPPED(status) {
            (self.held, self.step) = (false, Some(Step::Exited));
            return;
        }
        self.stopped = true;
        let signal = libc::WSTOPSIG(status);
        match status >> 16 {
            libc::PTRACE_EVENT_EXEC => self.step = Some(Step::Execed),
            libc::PTRACE_EVENT_STOP => match signal {
                // Whoever stopped it wants it to stand.
                libc::SIGSTOP | libc::SIGTSTP | libc::SIGTTIN | libc::SIGTTOU => {
                    self.stopped = false;
                    self.ptrace(libc::PTRACE_LISTEN, 0, 0);
                }
                _ => self.resume(),
            },
            0 if signal == libc::SIGTRAP | SYSCALL_STOP => {
                if self.has_mapped_code() {
                    self.step = Some(Step::Mapped);
                } else {
                    self.resume();
                }
            }
            0 => match signal {
                libc::SIGTRAP if self.armed && self.is_at_breakpoint() => {
                    self.disarm();
                    self.step = Some(Step::Entry);
                }
                libc::SIGSTOP if ours() => self.resume(),
                libc::SIGCONT if std::mem::take(&mut self.continued) => self.resume(),
                signal => {
                    self.deliver = signal;
                    self.resume();
                }
            },
            _ => self.resume(),
        }
    }

    fn resume(&mut self) {
        self.stopped = false;
        let signal = std::mem::take(&mut self.deliver);
        // Killed, it fails; its end is seen next.
        self.ptrace(libc::PTRACE_SYSCALL, 0, signal as usize);
    }

    /// Waits for a change of the command: its status. `None` when there is none, or it is not ours to wait for.
    fn wait(&self, flags: i32) -> Option<i32> {
        let mut status = 0;
        loop {
            // SAFETY: a bare system call, which writes to `status`.
            let pid = unsafe { libc::waitpid(self.pid, &raw mut status, flags | libc::__WALL) };
            if pid == self.pid {
                return Some(status);
            }
            if pid == 0 || io::Error::last_os_error().kind() != io::ErrorKind::Interrupted {
                return None;
            }
        }
    }

    /// Whether the system call that has just ended has mapped executable memory.
    fn has_mapped_code(&self) -> bool {
        let mut info = MaybeUninit::<libc::ptrace_syscall_info>::zeroed();
        let mut regs = MaybeUninit::<libc::user_regs_struct>::zeroed();
        // SAFETY: both have the layout that the kernel fills, with room for all of it, and are valid when they are zero.
        unsafe {
            let size = size_of::<libc::ptrace_syscall_info>();
            if !self.ptrace(libc::PTRACE_GET_SYSCALL_INFO, size, info.as_mut_ptr() as usize)
                || info.assume_init().op != libc::PTRACE_SYSCALL_INFO_EXIT
                || !self.ptrace(libc::PTRACE_GETREGS, 0, regs.as_mut_ptr() as usize)
            {
                return false;
            }
            let regs = regs.assume_init();
            regs.orig_rax == SYS_MMAP && regs.rdx & PROT_EXEC != 0
        }
    }

    fn is_at_breakpoint(&self) -> bool {
        let mut info = MaybeUninit::<libc::siginfo_t>::zeroed();
        // SAFETY: the kernel fills it; valid when it is zero.
        unsafe {
            self.ptrace(libc::PTRACE_GETSIGINFO, 0, info.as_mut_ptr() as usize)
                && info.assume_init().si_code == TRAP_HWBKPT
        }
    }

    fn disarm(&mut self) {
        if std::mem::take(&mut self.armed) {
            self.set_debug_register(7, 0);
        }
    }

    fn set_debug_register(&self, index: usize, value: u64) -> bool {
        self.ptrace(libc::PTRACE_POKEUSER, DEBUG_REGISTERS + index * 8, value as usize)
    }

    /// Whether it succeeded.
    fn ptrace(&self, request: libc::c_uint, address: usize, data: usize) -> bool {
        ptrace(request, self.pid, address, data).is_ok()
    }
}

/// The signal that a process is about to get in this stop; 0 for stops of other kinds.
fn signal_of(status: i32) -> i32 {
    let signal = libc::WSTOPSIG(status);
    if status >> 16 != 0 || signal == libc::SIGTRAP | SYSCALL_STOP { 0 } else { signal }
}

fn seize(pid: i32) -> io::Result<()> {
    ptrace(libc::PTRACE_SEIZE, pid, 0, OPTIONS as usize)
}

fn ptrace(request: libc::c_uint, pid: i32, address: usize, data: usize) -> io::Result<()> {
    // SAFETY: where a request writes, its caller gives room; nothing else of this process is touched.
    let result = unsafe { libc::ptrace(request, pid, address, data) };
    if result == -1 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
