//! What tracer was started with and changes for itself: a command gets it as if tracer were not there.

use std::{
    io,
    mem::MaybeUninit,
    ptr::{null, null_mut},
    sync::atomic::{AtomicBool, AtomicU8, Ordering},
};

/// Whether SIGPIPE was ignored when tracer was started. Rust's runtime ignores it, always, before `main`.
static PIPE_IGNORED: AtomicBool = AtomicBool::new(false);
/// Which of the standard streams were closed then, a bit for each. That runtime opens /dev/null in their place.
static CLOSED: AtomicU8 = AtomicU8::new(0);
/// Standard input, output and error.
const STREAMS: std::ops::Range<i32> = 0..3;

/// Runs before that runtime.
#[used]
// SAFETY: an array of functions without arguments, which the C library calls once each before `main`.
#[unsafe(link_section = ".init_array")]
static BEFORE_MAIN: extern "C" fn() = {
    extern "C" fn look() {
        PIPE_IGNORED.store(is_ignored(libc::SIGPIPE), Ordering::Relaxed);
        // SAFETY: the call only asks.
        let closed = STREAMS.filter(|stream| unsafe { libc::fcntl(*stream, libc::F_GETFD) } < 0);
        CLOSED.store(closed.fold(0, |bits, stream| bits | 1 << stream), Ordering::Relaxed);
    }
    look
};

/// Whether a signal is ignored by this process.
pub(crate) fn is_ignored(signal: i32) -> bool {
    let mut action = MaybeUninit::<libc::sigaction>::zeroed();
    // SAFETY: the call only writes to `action`, which is valid when it is zero.
    unsafe {
        libc::sigaction(signal, null(), action.as_mut_ptr()) == 0 && action.assume_init().sa_sigaction == libc::SIG_IGN
    }
}

/// The signals that were blocked or ignored when tracer was started. Its standard streams, too.
#[derive(Clone, Copy)]
pub(super) struct Inherited {
    mask: libc::sigset_t,
    pipe: libc::sighandler_t,
    child: libc::sighandler_t,
}

impl Inherited {
    /// Looks at them, before tracer changes them. From here on ends of children can be waited for.
    pub(super) fn now() -> Self {
        let handler = |ignored: bool| if ignored { libc::SIG_IGN } else { libc::SIG_DFL };
        let (pipe, child) = (handler(PIPE_IGNORED.load(Ordering::Relaxed)), handler(is_ignored(libc::SIGCHLD)));
        let mut mask = MaybeUninit::zeroed();
        // SAFETY: the first call only writes to `mask`, which is valid when it is zero; the second changes no handler that
        // anybody has set: there is none, or the signal was ignored.
        let mask = unsafe {
            libc::sigprocmask(libc::SIG_SETMASK, null(), mask.as_mut_ptr());
            libc::signal(libc::SIGCHLD, libc::SIG_DFL);
            mask.assume_init()
        };
        Self { mask, pipe, child }
    }

    /// Sets them again. Async-signal-safe.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub(super) fn restore(&self) -> io::Result<()> {
        let closed = CLOSED.load(Ordering::Relaxed);
        for stream in STREAMS.filter(|stream| closed >> stream & 1 != 0) {
            // SAFETY: what is there was opened by the runtime, in place of nothing; nobody has it after the exec.
            unsafe { libc::close(stream) };
        }
        // SAFETY: bare system calls; the handlers are none.
        let mask = unsafe {
            libc::signal(libc::SIGPIPE, self.pipe);
            libc::signal(libc::SIGCHLD, self.child);
            libc::sigprocmask(libc::SIG_SETMASK, &raw const self.mask, null_mut())
        };
        if mask == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }
}
