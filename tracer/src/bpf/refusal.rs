//! Why the kernel refused something of BPF, in words that name the error and what to do about it.

use std::{error::Error, fs, io, thread, time::Duration};

use aya::{maps::MapError, programs::ProgramError};

use crate::limits;

/// How often a call is made that the kernel asks to be made again, and the pause in between.
const ATTEMPTS: u32 = 10;
const PAUSE: Duration = Duration::from_millis(20);
/// Of the kernel's include/linux/errno.h: it is not meant to reach user space, and bpf(2) lets it.
const ENOTSUPP: i32 = 524;

/// What an error and its causes say, and what to do about the kernel's part in it.
pub(super) fn explain(error: &(dyn Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let words = error.to_string();
        // Some errors repeat their cause in their own words.
        if !text.contains(&words) {
            text = format!("{text}: {words}");
        }
        cause = error.source();
    }
    match number(error).and_then(|number| advice(&text, number)) {
        Some(advice) => format!("{text}: {advice}"),
        None => text,
    }
}

/// Number of the kernel's error that is behind `error`.
pub(super) fn number(error: &(dyn Error + 'static)) -> Option<i32> {
    let mut cause = Some(error);
    while let Some(error) = cause {
        // Some pass for the error that they hold, which is not among their causes.
        let kernels = match (error.downcast_ref(), error.downcast_ref()) {
            (Some(ProgramError::IOError(error)), _) | (_, Some(MapError::IoError(error))) => Some(error),
            _ => error.downcast_ref::<io::Error>(),
        };
        if let Some(number) = kernels.and_then(io::Error::raw_os_error) {
            return Some(number);
        }
        cause = error.source();
    }
    None
}

/// Calls `f` until the kernel does not say EAGAIN any more (its verifier does when a signal comes, and when it is busy).
pub(super) fn again<T, E>(mut f: impl FnMut() -> Result<T, E>, number: impl Fn(&E) -> Option<i32>) -> Result<T, E> {
    for _ in 1..ATTEMPTS {
        match f() {
            Err(error) if number(&error) == Some(libc::EAGAIN) => thread::sleep(PAUSE),
            other => return other,
        }
    }
    f()
}

fn advice(text: &str, number: i32) -> Option<String> {
    Some(match number {
        libc::ENOMEM => {
            let buffer = if text.contains("`EVENTS`") { ", or take a smaller --buffer-size" } else { "" };
            format!(
                "the kernel has no memory for it, which counts for the cgroup that tracer runs in: raise the limit of that \
                 (memory.max), run tracer outside of it{buffer}"
            )
        }
        libc::EACCES | libc::EPERM if text.contains("perf_event_open") => format!(
            "probes by perf events are for CAP_SYS_ADMIN on this kernel (kernel.perf_event_paranoid is {}): run tracer as \
             root, or with that capability too; Linux 6.13 and newer does without",
            fs::read_to_string("/proc/sys/kernel/perf_event_paranoid")
                .map_or_else(|_| "unknown".to_owned(), |level| level.trim().to_owned())
        ),
        libc::EPERM => {
            "CAP_BPF and CAP_PERFMON are needed; where tracer has them, a seccomp filter (of a container) or the \
                        kernel's lockdown forbids it"
                .to_owned()
        }
        libc::EAGAIN => "the kernel was too busy for it: try again".to_owned(),
        libc::EMFILE | libc::ENFILE => limits::exhausted(&io::Error::from_raw_os_error(number))?,
        libc::E2BIG | libc::EINVAL | ENOTSUPP => {
            "kernel 5.17 or newer with BPF ring buffers and BTF is needed".to_owned()
        }
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("`{0}` failed")]
    struct Failed(&'static str, #[source] io::Error);

    fn explained(call: &'static str, number: i32) -> String {
        explain(&Failed(call, io::Error::from_raw_os_error(number)))
    }

    #[test]
    fn the_error_and_what_to_do_are_named() {
        for (call, number, words) in [
            ("bpf_map_create", libc::ENOMEM, "memory.max"),
            ("bpf_map_create", libc::EPERM, "CAP_BPF"),
            ("bpf_map_create", libc::EINVAL, "5.17"),
            ("bpf_map_create", libc::EMFILE, "ulimit"),
            ("perf_event_open", libc::EACCES, "CAP_SYS_ADMIN"),
        ] {
            let text = explained(call, number);
            let error = io::Error::from_raw_os_error(number).to_string();
            assert!(text.contains(call) && text.contains(&error) && text.contains(words), "{text}");
        }
        let memory = explained("bpf_map_create", libc::ENOMEM);
        assert!(!memory.contains("5.17"), "{memory}");
    }

    #[test]
    fn what_the_kernel_wants_to_be_asked_again_is() {
        let calls = Cell::new(0);
        let busy_until = |last: u32, number: i32| {
            again(
                || {
                    calls.set(calls.get() + 1);
                    if calls.get() < last { Err(io::Error::from_raw_os_error(number)) } else { Ok(()) }
                },
                io::Error::raw_os_error,
            )
        };
        assert!(busy_until(3, libc::EAGAIN).is_ok());
        assert_eq!(calls.replace(0), 3);
        assert!(busy_until(3, libc::EPERM).is_err());
        assert_eq!(calls.replace(0), 1);
        assert!(busy_until(100, libc::EAGAIN).is_err());
    }
}
