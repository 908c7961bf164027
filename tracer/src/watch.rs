//! Threads that only wait for the ends of processes.

use std::{io, thread};

use rustix::{
    event::{PollFd, PollFlags, poll},
    process::{Pid, PidfdFlags, pidfd_open},
};

/// Calls `f` once when process `pid` has ended (all its threads).
///
/// # Errors
/// No such process, or a kernel before 5.3.
pub fn exit(pid: u32, f: impl FnOnce() + Send + 'static) -> io::Result<()> {
    let pid = i32::try_from(pid).ok().and_then(Pid::from_raw).ok_or(io::ErrorKind::InvalidInput)?;
    let process = pidfd_open(pid, PidfdFlags::empty())?;
    thread::Builder::new().name("exit".to_owned()).spawn(move || {
        while poll(&mut [PollFd::new(&process, PollFlags::IN)], None)
            .is_err_and(|error| error == rustix::io::Errno::INTR)
        {}
        f();
    })?;
    Ok(())
}
