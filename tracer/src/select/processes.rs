//! The processes that run now, as a selection looks at them.

use std::{fs, io};

use super::{Facts, Selection, containers, names::Names};
use crate::{
    files::root::ProcessDirectory,
    process::{cgroups, stat::stat, status, text},
    profile::{Container, Place},
    space::maps,
};

/// Longest text that is taken of one file of /proc, bytes.
const MAX_TEXT: u64 = 1 << 16;

/// Ids of the processes that a selection fits, the lowest first. Never tracer, what it has started, or threads of the kernel.
///
/// # Errors
/// There is no /proc.
pub fn chosen(selection: &Selection, names: &Names) -> io::Result<Vec<u32>> {
    Ok(running()?.into_iter().filter(|pid| fits(selection, names, *pid)).collect())
}

/// Ids of all processes, the lowest first.
///
/// # Errors
/// There is no /proc.
pub fn running() -> io::Result<Vec<u32>> {
    let entries = fs::read_dir("/proc")?.flatten();
    let mut pids: Vec<u32> = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect();
    pids.sort_unstable();
    Ok(pids)
}

/// Whether a process is there and a selection fits it.
pub fn fits(selection: &Selection, names: &Names, pid: u32) -> bool {
    facts(pid, selection).is_some_and(|facts| selection.fits(&facts, names))
}

/// Whether there is a thread of the kernel with this id.
pub fn is_of_kernel(pid: u32) -> bool {
    stat(pid).ok().flatten().is_some_and(|stat| stat.is_kernel_thread())
}

/// Whether a process is there that is never chosen: tracer, what it has started, or a thread of the kernel.
pub fn is_never_chosen(pid: u32) -> bool {
    stat(pid).ok().flatten().is_some_and(|stat| is_nobodys_choice(pid, &stat))
}

fn is_nobodys_choice(pid: u32, stat: &status::Stat) -> bool {
    let own = std::process::id();
    stat.is_kernel_thread() || pid == own || stat.parent == own
}

/// What is known of a process, as far as a selection asks for it: each kind is a file of the kernel's to be read. `None` of what is never
/// chosen.
pub fn facts(pid: u32, selection: &Selection) -> Option<Facts> {
    let directory = ProcessDirectory::open(pid).ok()?;
    let text = |name: &str| directory.text(name, MAX_TEXT).ok();
    let stat = status::parse_stat(&text("stat")?)?;
    if stat.is_over() || is_nobodys_choice(pid, &stat) {
        return None;
    }
    let asked = selection.asked();
    // Whoever has another name fits in no case.
    let has_name = selection.has_name(&stat.comm);
    let exe = if asked.exe && has_name { status::executable(pid) } else { None };
    let cgroups = if asked.cgroups && has_name { text("cgroup").unwrap_or_default() } else { Vec::new() };
    let user = if asked.user && has_name { effective_user(&String::from_utf8_lossy(&text("status")?)) } else { None };
    Some(Facts {
        pid,
        comm: stat.comm,
        exe: exe.map(|exe| maps::unmarked(&exe).to_owned()),
        cgroups: cgroups::parse(&String::from_utf8_lossy(&cgroups)),
        user,
    })
}

/// Where a process is; `None` of one that ends, for what the kernel says of those is not where they were (of version 1 the root:
/// `proc_cgroup_show` in the kernel's kernel/cgroup/cgroup.c).
pub fn place_of(pid: u32) -> Option<Place> {
    let text = fs::File::open(format!("/proc/{pid}/cgroup")).and_then(|file| text::read(file, MAX_TEXT)).ok()?;
    (!status::is_exiting(pid)).then(|| place(&String::from_utf8_lossy(&text)))
}

/// The place of a process with this `/proc/PID/cgroup`.
fn place(text: &str) -> Place {
    let memberships = cgroups::parse(text);
    let of_memory = cgroups::of_memory(&memberships);
    let paths = of_memory.into_iter().chain(&memberships).map(|membership| &*membership.path);
    let container = paths.into_iter().find_map(containers::Container::of).map(|container| Container {
        runtime: container.runtime.to_owned(),
        id: container.id.to_owned(),
        name: None,
    });
    // What the kernel says of a cgroup that was removed.
    let cgroup = of_memory.map(|membership| maps::unmarked(&membership.path));
    Place { cgroup: cgroup.map(Into::into), container: container.map(Into::into) }
}

/// The second number of `Uid: REAL EFFECTIVE SAVED FILE_SYSTEM` in the text of `/proc/PID/status`.
fn effective_user(status: &str) -> Option<u32> {
    let line = status.lines().find_map(|line| line.strip_prefix("Uid:"))?;
    line.split_whitespace().nth(1)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn users_in_the_kernel_s_text() {
        assert_eq!(effective_user("Name:\tx\nUid:\t1000\t0\t0\t0\nGid:\t5\n"), Some(0));
        for text in ["", "Uid:", "Uid:\t1", "Uid:\t1\t-2"] {
            assert_eq!(effective_user(text), None);
        }
    }

    #[test]
    fn a_place_is_that_of_memory_and_any_hierarchy_tells_the_container() {
        let id = "3f4a".repeat(16);
        let at = |text: &str| {
            let Place { cgroup, container } = place(text);
            (cgroup.unwrap_or_default().to_string(), container.map(|container| container.id.clone()))
        };
        assert_eq!(at("5:memory:/a/b\n0::/c.slice\n"), ("/a/b".to_owned(), None));
        assert_eq!(at("0::/c.slice (deleted)\n"), ("/c.slice".to_owned(), None));
        assert_eq!(at(&format!("5:memory:/\n1:name=systemd:/docker/{id}\n")), ("/".to_owned(), Some(id)));
        assert_eq!(at(""), (String::new(), None));
        assert!(place_of(std::process::id()).unwrap().cgroup.is_some());
        assert_eq!(place_of(u32::MAX), None);
    }

    #[test]
    fn a_program_that_was_replaced_keeps_its_path() {
        assert_eq!(["/usr/bin/x (deleted)", "/usr/bin/x"].map(maps::unmarked), ["/usr/bin/x", "/usr/bin/x"]);
    }

    #[test]
    fn what_a_selection_asks_for_is_read() {
        let mut shell = Command::new("sh");
        let mut shell =
            shell.args(["-c", "sleep 1000 & echo $!; wait"]).stdout(std::process::Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        io::BufRead::read_line(&mut io::BufReader::new(shell.stdout.take().unwrap()), &mut line).unwrap();
        let pid: u32 = line.trim().parse().unwrap();
        // Until it is what it becomes.
        while facts(pid, &Selection::default()).unwrap().comm != "sleep" {}
        let read = |set: &dyn Fn(&mut Selection)| {
            let mut selection = Selection::default();
            set(&mut selection);
            let facts = facts(pid, &selection).unwrap();
            (facts.exe.is_some(), !facts.cgroups.is_empty(), facts.user.is_some())
        };
        assert_eq!(read(&|_| {}), (false, false, false));
        assert_eq!(read(&|selection| selection.add_exe("/bin/x").unwrap()), (true, false, false));
        assert_eq!(read(&|selection| selection.add_user(1)), (false, false, true));
        for add in [|s: &mut Selection| s.add_cgroup("/x").unwrap(), |s: &mut Selection| s.add_container("x").unwrap()]
        {
            assert_eq!(read(&add), (false, true, false));
        }
        let named = |name| move |s: &mut Selection| (s.add_user(1), s.add_comm(name).unwrap()).1;
        assert_eq!(read(&named("sleep")), (false, false, true));
        assert_eq!(read(&named("other")), (false, false, false));
        let path = |name| move |s: &mut Selection| (s.add_exe("/bin/x").unwrap(), s.add_comm(name).unwrap()).1;
        assert_eq!(read(&path("sleep")), (true, false, false));
        assert_eq!(read(&path("other")), (false, false, false));
        rustix::process::kill_process(
            rustix::process::Pid::from_raw(pid as i32).unwrap(),
            rustix::process::Signal::KILL,
        )
        .unwrap();
        shell.wait().unwrap();
    }

    #[test]
    fn tracer_and_its_children_are_never_chosen() {
        let mut child = Command::new("sleep").arg("1000").spawn().unwrap();
        let everything = chosen(&Selection::default(), &Names::default()).unwrap();
        assert!(!everything.contains(&std::process::id()) && !everything.contains(&child.id()));
        assert!(everything.is_sorted());
        assert!(facts(2, &Selection::default()).is_none(), "a thread of the kernel, or none");
        child.kill().unwrap();
        child.wait().unwrap();
    }
}
