//! Patterns of names and of paths, as shells have them.

use std::marker::PhantomData;

use globset::{GlobBuilder, GlobMatcher};

use super::invalid::Invalid;

/// Bytes of a process's name that the kernel keeps (TASK_COMM_LEN without the zero, include/linux/sched.h).
const COMM: usize = 15;

/// Names of processes.
#[derive(Clone, Copy, Debug)]
pub(super) enum Names {}

/// Paths of files.
#[derive(Clone, Copy, Debug)]
pub(super) enum Paths {}

/// A pattern of something.
#[derive(Clone, Debug)]
pub(super) struct Glob<Of> {
    matcher: GlobMatcher,
    /// Whether only the last part of a path is compared.
    file_name: bool,
    of: PhantomData<Of>,
}

impl Glob<Names> {
    /// Of names: `*` stands for anything.
    pub(super) fn names(pattern: &str) -> Result<Self, Invalid> {
        // What has no special character is a name, of which processes have no more.
        let special = pattern.contains(['*', '?', '[', ']', '{', '}', '\\']);
        let end = pattern.floor_char_boundary(COMM);
        let pattern = if special { pattern } else { &pattern[..end] };
        Ok(Self { matcher: matcher(pattern, false)?, file_name: false, of: PhantomData })
    }

    pub(super) fn fits(&self, name: &str) -> bool {
        self.matcher.is_match(name)
    }
}

impl Glob<Paths> {
    /// Of whole paths, in which `*` stands for anything but a slash and `**` for any folders; or, without a slash, of file names.
    pub(super) fn paths(pattern: &str) -> Result<Self, Invalid> {
        let file_name = !pattern.contains('/') && pattern != "**";
        if !file_name && !pattern.starts_with(['/', '*', '{', '[']) {
            return Err(Invalid::RelativePath(pattern.to_owned()));
        }
        Ok(Self { matcher: matcher(pattern, true)?, file_name, of: PhantomData })
    }

    pub(super) fn fits(&self, path: &str) -> bool {
        let path = if self.file_name { path.rsplit('/').next().unwrap_or(path) } else { path };
        !path.is_empty() && self.matcher.is_match(path)
    }
}

fn matcher(pattern: &str, slashes: bool) -> Result<GlobMatcher, Invalid> {
    if pattern.is_empty() {
        return Err(Invalid::Empty);
    }
    let glob = GlobBuilder::new(pattern).literal_separator(slashes).backslash_escape(true).build();
    let invalid =
        |error: globset::Error| Invalid::Glob { pattern: pattern.to_owned(), problem: error.kind().to_string() };
    Ok(glob.map_err(invalid)?.compile_matcher())
}
