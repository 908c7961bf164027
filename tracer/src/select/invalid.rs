//! Why something that was given makes no selection.

/// Why something makes no selection.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum Invalid {
    /// Not a pattern.
    #[error(
        "{pattern:?} is no pattern: {problem}; `*` stands for anything, `?` for one character, `[ab]` for one of these"
    )]
    Glob {
        /// What was given.
        pattern: String,
        /// What is wrong with it.
        problem: String,
    },
    /// A path that no executable has.
    #[error("{0:?} matches no executable: give a whole path (/usr/bin/*, **/bin/x), or a file name without slashes")]
    RelativePath(String),
    /// Not a path of a cgroup.
    #[error(
        "{0:?} is no cgroup: give its path as in /proc/PID/cgroup (/system.slice/nginx.service) or below /sys/fs/cgroup"
    )]
    Cgroup(String),
    /// Empty.
    #[error("it must not be empty")]
    Empty,
    /// There is no such user.
    #[error("there is no user {0:?}: give a name or a number")]
    User(String),
}
