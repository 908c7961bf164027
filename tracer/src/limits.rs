//! Limits of the tracer's own process on open files.
//!
//! A trace holds every mapped file of its targets open, and on older kernels a descriptor for each probed instruction: more
//! than the 1,024 that shells give. So the limit is raised to what the administrator allows; a launched command
//! gets back the one that it would have had.

use std::sync::OnceLock;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// The limit that this process was started with.
static AT_START: OnceLock<Rlimit> = OnceLock::new();

/// Raises the number of files that may be open to its hard limit. For the begin of a run: what is launched later has
/// [`restore_open_files`].
pub fn raise_open_files() {
    let limit = *AT_START.get_or_init(|| getrlimit(Resource::Nofile));
    if limit.current == limit.maximum {
        return;
    }
    if let Err(error) = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit }) {
        tracing::debug!("cannot raise the limit of open files: {error}");
    }
}

/// Sets the limit back to what it was before [`raise_open_files`]. Two system calls at most and no allocation, so that it
/// may be called between fork and exec.
///
/// # Errors
/// Whatever the kernel says.
pub fn restore_open_files() -> std::io::Result<()> {
    match AT_START.get() {
        Some(limit) => Ok(setrlimit(Resource::Nofile, *limit)?),
        None => Ok(()),
    }
}

/// What to tell the user when there are no descriptors left: `None` for other errors.
pub fn exhausted(error: &std::io::Error) -> Option<String> {
    let limit = || getrlimit(Resource::Nofile).current.map_or_else(|| "no".to_owned(), |limit| limit.to_string());
    match error.raw_os_error() {
        Some(libc::EMFILE) => Some(format!(
            "tracer has run out of file descriptors (its limit is {}): raise the hard limit (ulimit -Hn, or LimitNOFILE= of \
             its service), or trace fewer processes at a time",
            limit()
        )),
        Some(libc::ENFILE) => Some(
            "this machine has run out of file descriptors: raise fs.file-max (sysctl), or end what holds them"
                .to_owned(),
        ),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_lack_of_descriptors_is_told_as_one() {
        let of = |number| exhausted(&std::io::Error::from_raw_os_error(number));
        assert!(of(libc::EMFILE).unwrap().contains("ulimit -Hn"));
        assert!(of(libc::ENFILE).unwrap().contains("fs.file-max"));
        assert_eq!(of(libc::ENOENT), None);
    }
}
