//! What frames and processes are called in reports. Everything here returns text that is safe to show.

use std::borrow::Cow;

use super::escape::visible;
use crate::profile::{Container, Frame, Process};

/// Digits of the id of a container, and those that people are shown.
const LONGEST_ID: usize = 64;
const SHORT_ID: usize = 12;

/// What a frame is called: its function, else `module+0xoffset`, else `[unknown] 0xaddress`.
pub(super) fn frame(frame: &Frame) -> Cow<'_, str> {
    if let Some(function) = function(frame) {
        return visible(function);
    }
    match module(frame) {
        Some(module) => Cow::Owned(format!("{module}+{:#x}", frame.offset)),
        None => Cow::Owned(format!("[unknown] {:#x}", frame.offset)),
    }
}

/// The whole name of a frame, as other tools look it up.
pub(super) fn symbol(frame: &Frame) -> Cow<'_, str> {
    frame.symbol.as_deref().map_or_else(|| self::frame(frame), visible)
}

/// The name of its function as it is, when that says something.
pub(super) fn function(frame: &Frame) -> Option<&str> {
    frame.function.as_deref().filter(|function| !function.trim().is_empty())
}

/// Last part of the path of the file that a frame lies in.
pub(super) fn module(frame: &Frame) -> Option<Cow<'_, str>> {
    let path = frame.module.as_deref()?;
    let name = path.rsplit('/').next().filter(|name| !name.is_empty()).unwrap_or(path);
    (!name.is_empty()).then(|| visible(name))
}

/// What a process is called: its comm, or its pid when nothing else is known of it.
pub(super) fn process(process: Option<&Process>, pid: u32) -> Cow<'_, str> {
    match process {
        Some(process) => comm(&process.comm),
        None => Cow::Owned(format!("[pid {pid}]")),
    }
}

/// What a container is called: its name, or its id, as short as people write it.
pub(super) fn container(container: &Container) -> String {
    let Container { runtime, id, name } = container;
    let short = id.get(..SHORT_ID).filter(|_| id.len() == LONGEST_ID).unwrap_or(id);
    let runtime = if runtime.is_empty() { String::new() } else { format!("{runtime} ") };
    match name {
        Some(name) => visible(&format!("{name} ({runtime}{short})")).into_owned(),
        None => visible(&format!("{runtime}{short}")).into_owned(),
    }
}

/// A process name, made safe; a process may have the empty name.
pub(super) fn comm(comm: &str) -> Cow<'_, str> {
    if comm.trim().is_empty() { Cow::Borrowed("[no name]") } else { visible(comm) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(function: Option<&str>, path: Option<&str>, name: &str) {
        let (function, module) = (function.map(str::to_owned), path.map(str::to_owned));
        let frame = Frame { function, module, offset: 0x1c9, ..Frame::default() };
        assert_eq!(super::frame(&frame), name);
    }

    #[test]
    fn a_frame_is_named_by_the_best_that_is_known() {
        check(Some("main"), Some("/usr/bin/x"), "main");
        check(None, Some("/usr/lib/libc.so.6"), "libc.so.6+0x1c9");
        check(None, Some("[vdso]"), "[vdso]+0x1c9");
        check(None, Some("/tmp/dir/"), "/tmp/dir/+0x1c9");
        check(None, Some(""), "[unknown] 0x1c9");
        check(None, None, "[unknown] 0x1c9");
        check(Some(""), None, "[unknown] 0x1c9");
        check(Some(" "), Some("/a"), "a+0x1c9");
    }

    #[test]
    fn names_are_made_safe() {
        check(Some("f\n\u{1b}[2J"), None, r"f\n\u{1b}[2J");
        check(None, Some("/lib/\u{202e}so.evil"), r"\u{202e}so.evil+0x1c9");
        assert_eq!(comm("a\0b"), r"a\u{0}b");
        assert_eq!(comm(" "), "[no name]");
    }

    #[test]
    fn a_process_of_which_nothing_is_known_is_named_by_its_pid() {
        let profile = crate::report::fixture::profile();
        assert_eq!(process(profile.processes.first(), 4711), "leaky");
        assert_eq!(process(None, 1), "[pid 1]");
    }

    #[test]
    fn containers_are_named_as_people_do() {
        let of = |runtime: &str, id: &str, name: Option<&str>| {
            let name = name.map(str::to_owned);
            container(&Container { runtime: runtime.to_owned(), id: id.to_owned(), name })
        };
        assert_eq!(of("docker", &"3f4a".repeat(16), Some("web")), "web (docker 3f4a3f4a3f4a)");
        assert_eq!(of("", &"3f4a".repeat(16), None), "3f4a3f4a3f4a");
        assert_eq!(of("lxc", "a\u{1b}", None), r"lxc a\u{1b}");
    }
}
