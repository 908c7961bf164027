//! Signals that tracer gets: which ask it to end, and which are for the command that it has launched.
//!
//! They are blocked everywhere and read by one thread, which depends on no other: they reach the command, and end tracer,
//! whatever the session waits for. No handler is set, so that a command inherits what tracer was started with.

use std::{
    io,
    os::fd::AsFd as _,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    thread,
    time::{Duration, Instant},
};

use nix::sys::{
    signal::{SigSet, Signal},
    signalfd::{SfdFlags, SignalFd, siginfo},
};
use rustix::{
    event::{PollFd, PollFlags, poll},
    process::{getpgid, getpgrp, getpid, getsid, kill_process},
};

use crate::{
    last_will,
    launch::{Process, is_ignored},
    process::status,
};

/// Those that ask tracer to end.
const DEMANDS: &[Signal] = &[Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP];
/// Those that are for a launched command besides, and end tracer where there is none, as their default is.
const ENDS: &[Signal] = &[Signal::SIGQUIT, Signal::SIGUSR1, Signal::SIGUSR2];
/// Those that are for a launched command only.
const COMMANDS: &[Signal] = &[Signal::SIGWINCH, Signal::SIGCONT, Signal::SIGTSTP, Signal::SIGTTIN, Signal::SIGTTOU];

/// `si_code` of signals that the kernel sends, such as those of a terminal (include/uapi/asm-generic/siginfo.h).
const SI_KERNEL: i32 = 0x80;

/// Signals within this time are one: timeout(1) sends its one to tracer, and to its process group.
const SAME: Duration = Duration::from_millis(100);
/// A command may live with any number of Ctrl-C; two within this time are meant for tracer, too.
const SOON: Duration = Duration::from_secs(3);
/// How long tracer takes at most to end when it was asked to a second time, but a command lives.
const LAST_REPORT: Duration = Duration::from_secs(15);
/// How long a command may take to stop when its terminal says so, and how often that is looked at.
const STOP: Duration = Duration::from_secs(2);
const STOP_LOOK: Duration = Duration::from_millis(10);

/// What the session is at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// Nothing has been traced that could be reported.
    Starting,
    /// Told to end, it will.
    Tracing,
    /// The trace is over; the last report is being written, or the command is waited for.
    Ending,
}

/// The thread that reads signals.
pub struct Signals {
    state: Arc<Mutex<State>>,
}

struct State {
    stage: Stage,
    command: Option<Process>,
}

impl Signals {
    /// Blocks signals for the calling thread and those that it starts, and reads them from now on; `launching`: also those
    /// that are only for a launched command. Calls `end` when one asks for the end of the trace.
    ///
    /// # Errors
    /// No thread or descriptor is left.
    pub fn start(launching: bool, end: impl Fn(i32) + Send + 'static) -> io::Result<Self> {
        let mut set = SigSet::empty();
        let wanted = DEMANDS.iter().chain(ENDS).chain(if launching { COMMANDS } else { &[] });
        // What is ignored stays so, as under nohup. SIGINT of a background job is ignored for the sake of its terminal.
        wanted.filter(|signal| **signal == Signal::SIGINT || !is_ignored(**signal as i32)).for_each(|s| set.add(*s));
        // A file may not become larger: the write fails, and that is told. Nobody reads the signal.
        let mut blocked = set;
        blocked.add(Signal::SIGXFSZ);
        blocked.thread_block()?;
        let signals = SignalFd::with_flags(&set, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)?;
        let state = Arc::new(Mutex::new(State { stage: Stage::Starting, command: None }));
        let reader = Reader {
            signals,
            state: Arc::clone(&state),
            end,
            background: is_ignored(Signal::SIGINT as i32),
            demands: Demands::default(),
            over: None,
            stops: None,
        };
        thread::Builder::new().name("signals".to_owned()).spawn(move || reader.run())?;
        Ok(Self { state })
    }

    /// A command has been launched.
    pub fn know(&self, command: Process) {
        self.state().command = Some(command);
    }

    /// The session has come to this.
    pub fn enter(&self, stage: Stage) {
        self.state().stage = stage;
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

struct Reader<F> {
    signals: SignalFd,
    state: Arc<Mutex<State>>,
    end: F,
    /// Started so that Ctrl-C does not reach it.
    background: bool,
    demands: Demands,
    /// When tracer has to be over, and by which signal.
    over: Option<(Instant, Signal)>,
    /// Until when the command may stop because its terminal says so.
    stops: Option<Instant>,
}

/// Where a signal comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Origin {
    Kernel,
    Command,
    Other,
}

impl<F: Fn(i32)> Reader<F> {
    fn run(mut self) {
        loop {
            let now = Instant::now();
            if let Some((at, signal)) = self.over
                && now >= at
            {
                die(signal);
            }
            self.stop_with_command(now);
            let over = self.over.map(|(at, _)| at.saturating_duration_since(now));
            let wake = over.into_iter().chain(self.stops.map(|_| STOP_LOOK)).min();
            let wake = wake.and_then(|wake| wake.try_into().ok());
            // Interrupted or not: what is there is read.
            let _ = poll(&mut [PollFd::new(&self.signals.as_fd(), PollFlags::IN)], wake.as_ref());
            while let Ok(Some(info)) = self.signals.read_signal() {
                if let Ok(signal) = Signal::try_from(info.ssi_signo as i32) {
                    self.heed(signal, &info);
                }
            }
        }
    }

    fn heed(&mut self, signal: Signal, info: &siginfo) {
        let State { stage, command } = &*self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let (stage, command) = (*stage, command.clone());
        let origin = match &command {
            _ if info.ssi_code == SI_KERNEL => Origin::Kernel,
            Some(command) if info.ssi_pid == command.pid() => Origin::Command,
            _ => Origin::Other,
        };
        if signal == Signal::SIGINT && origin == Origin::Kernel && self.background {
            return;
        }
        let has_it = |command: &Process| match origin {
            Origin::Kernel => shares_terminal(command, signal),
            // By kill(0, ...).
            Origin::Command => true,
            // The shell continues all of a job.
            Origin::Other => signal == Signal::SIGCONT && !status::is_stopped(command.pid()),
        };
        let lives = command.as_ref().is_some_and(|c| if has_it(c) { c.is_alive() } else { c.signal(signal as i32) });
        tracing::debug!(%signal, ?origin, lives, "signal");
        match signal {
            // But for what has to be undone.
            _ if command.is_none() && ENDS.contains(&signal) => die(signal),
            Signal::SIGTSTP | Signal::SIGTTIN | Signal::SIGTTOU if lives => self.stops = Some(Instant::now() + STOP),
            Signal::SIGTSTP | Signal::SIGTTIN | Signal::SIGTTOU => stop(),
            Signal::SIGINT | Signal::SIGTERM | Signal::SIGHUP | Signal::SIGQUIT if origin != Origin::Command => {
                let insists = signal == Signal::SIGTERM || signal == Signal::SIGINT && origin == Origin::Other;
                match self.demands.next(signal, Instant::now(), insists, stage, lives) {
                    Answer::Nothing => {}
                    Answer::End => {
                        (self.end)(signal as i32);
                        if lives {
                            self.over = Some((Instant::now() + LAST_REPORT, signal));
                        }
                    }
                    Answer::Die => die(signal),
                }
            }
            _ => {}
        }
    }

    /// Stops tracer when its terminal has stopped the command, so that the shell sees the job stopped.
    fn stop_with_command(&mut self, now: Instant) {
        let Some(until) = self.stops else { return };
        let command = self.state.lock().unwrap_or_else(PoisonError::into_inner).command.clone();
        let stopped = command.is_some_and(|command| status::is_stopped(command.pid()));
        if stopped || now >= until {
            self.stops = None;
        }
        if stopped {
            stop();
        }
    }
}

/// Whether the terminal has sent the command what it has sent tracer.
fn shares_terminal(command: &Process, signal: Signal) -> bool {
    let pid = i32::try_from(command.pid()).ok().and_then(rustix::process::Pid::from_raw);
    let one_group = pid.is_some_and(|pid| getpgid(Some(pid)).is_ok_and(|group| group == getpgrp()));
    // A terminal that is closed tells the leader of its session only.
    one_group && !(signal == Signal::SIGHUP && getsid(None).is_ok_and(|session| session == getpid()))
}

fn stop() {
    // Nothing refuses that to a process of its own.
    let _ = kill_process(getpid(), rustix::process::Signal::STOP);
}

/// Ends tracer at once, by the signal, whatever its other threads are at.
fn die(signal: Signal) {
    last_will::execute();
    // It does not return where the signal's way is to end a process.
    let _ = signal_hook::low_level::emulate_default_handler(signal as i32);
}

/// What a signal that asks tracer to end leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Answer {
    /// It is for the command alone.
    Nothing,
    /// The trace ends.
    End,
    /// Tracer ends.
    Die,
}

/// The signals so far that asked tracer to end.
#[derive(Default)]
struct Demands {
    /// Each with when it last came.
    seen: Vec<(Signal, Instant)>,
    /// The trace was told to end.
    told: bool,
}

impl Demands {
    /// One more; `insists`: once more is enough, however much later it comes; `lives`: so does a command that got it.
    fn next(&mut self, signal: Signal, now: Instant, insists: bool, stage: Stage, lives: bool) -> Answer {
        let before = !self.seen.is_empty();
        let last = self.seen.iter().position(|(seen, _)| *seen == signal).map(|index| self.seen.swap_remove(index).1);
        let since = last.map(|last| now.saturating_duration_since(last));
        self.seen.push((signal, now));
        if since.is_some_and(|since| since < SAME) {
            return Answer::Nothing;
        }
        // A command may be used to some of each.
        let again = if lives { since.is_some_and(|since| insists || since < SOON) } else { before };
        match (stage, lives) {
            (Stage::Starting, false) => Answer::Die,
            (Stage::Ending, _) if again => Answer::Die,
            (Stage::Ending, _) => Answer::Nothing,
            (_, true) if !again => Answer::Nothing,
            _ if std::mem::replace(&mut self.told, true) => Answer::Die,
            _ => Answer::End,
        }
    }
}

#[cfg(test)]
mod tests {
    use nix::sys::signal::Signal::{SIGHUP, SIGINT, SIGTERM};

    use super::{
        Answer::{Die, End, Nothing},
        Stage::{Ending, Starting, Tracing},
        *,
    };

    /// Of signals: when (ms), which, whether it insists, the stage, and whether a command lives.
    fn answers(demands: &[(u64, Signal, bool, Stage, bool)]) -> Vec<Answer> {
        let (begin, mut all) = (Instant::now(), Demands::default());
        let next = |(at, signal, insists, stage, lives): &(u64, Signal, bool, Stage, bool)| {
            all.next(*signal, begin + Duration::from_millis(*at), *insists, *stage, *lives)
        };
        demands.iter().map(next).collect()
    }

    #[test]
    fn without_a_command_the_first_ends_the_trace_and_the_second_tracer() {
        assert_eq!(answers(&[(0, SIGINT, false, Starting, false)]), [Die]);
        assert_eq!(answers(&[(0, SIGINT, true, Tracing, false), (9000, SIGTERM, true, Ending, false)]), [End, Die]);
        // Also when the first came to nothing.
        assert_eq!(answers(&[(0, SIGINT, true, Tracing, false), (9000, SIGINT, true, Tracing, false)]), [End, Die]);
        // The trace ended by itself.
        assert_eq!(answers(&[(0, SIGINT, true, Ending, false), (900, SIGINT, true, Ending, false)]), [Nothing, Die]);
    }

    #[test]
    fn one_that_is_sent_twice_at_a_time_is_one() {
        assert_eq!(answers(&[(0, SIGTERM, true, Tracing, false), (2, SIGTERM, true, Ending, false)]), [End, Nothing]);
    }

    #[test]
    fn a_command_gets_the_first_and_its_end_is_the_end() {
        assert_eq!(answers(&[(0, SIGTERM, true, Tracing, true), (500, SIGTERM, true, Ending, false)]), [Nothing, Die]);
    }

    #[test]
    fn where_a_command_lives_the_same_once_more_is_for_tracer() {
        let insistent = [0, 5000, 5500].map(|at| (at, SIGTERM, true, Tracing, true));
        assert_eq!(answers(&insistent), [Nothing, End, Die]);
        let reported = [0, 5000].map(|at| (at, SIGTERM, true, Ending, true));
        assert_eq!(answers(&reported), [Nothing, Die]);
        let different = [SIGHUP, SIGINT, SIGTERM].map(|signal| (0, signal, true, Ending, true));
        assert_eq!(answers(&different), [Nothing; 3]);
        // Ctrl-C now and then is how such a command is used.
        let used = [0, 5000, 10000, 12000].map(|at| (at, SIGINT, false, Tracing, true));
        assert_eq!(answers(&used), [Nothing, Nothing, Nothing, End]);
    }
}
