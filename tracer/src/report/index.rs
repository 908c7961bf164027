//! The processes of a profile, found by what stacks and goroutines refer to them by, and the programs that they run.

use std::borrow::Cow;

use hashbrown::HashMap;

use super::name;
use crate::profile::{Process, Profile, Runtime, StackEntry};

/// What makes two processes the same program: the executable; of what interprets programs (Python, Ruby, ...) the name, too.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Program<'a> {
    exe: &'a str,
    comm: &'a str,
}

impl<'a> Program<'a> {
    /// That of a process by itself: the name where the executable is not known.
    fn of(process: &'a Process) -> Self {
        let (exe, comm) = (&*process.exe, &*process.comm);
        let by_name = exe.is_empty() || Runtime::of_file(exe).is_some();
        Self { exe, comm: if by_name { comm } else { "" } }
    }

    /// Path of its executable: hostile text.
    pub(super) fn exe(&self) -> &'a str {
        self.exe
    }
}

/// The processes of a profile.
pub(super) struct Index<'a> {
    profile: &'a Profile,
    /// Whether the processes have heaps of several kinds, or of several libraries. Asked of each stack, and found by going through all.
    pub(super) has_several_heaps: bool,
    by_image: HashMap<u32, &'a Process>,
    by_pid: HashMap<u32, Option<&'a Process>>,
    /// What each program is called; `None` where its processes have several names.
    names: HashMap<Program<'a>, Option<&'a str>>,
    /// Programs with a known executable by the names of their processes; `None` where there are several of a name.
    by_name: HashMap<&'a str, Option<Program<'a>>>,
}

impl<'a> Index<'a> {
    pub(super) fn new(profile: &'a Profile) -> Self {
        let mut names: HashMap<Program<'a>, Option<&'a str>> = HashMap::new();
        let mut by_name: HashMap<&'a str, Option<Program<'a>>> = HashMap::new();
        for process in &profile.processes {
            let program = Program::of(process);
            let name = names.entry(program).or_insert(Some(&process.comm));
            *name = name.filter(|name| *name == process.comm);
            if !process.exe.is_empty() {
                let of_name = by_name.entry(&process.comm).or_insert(Some(program));
                *of_name = of_name.filter(|of_name| *of_name == program);
            }
        }
        let by_image = profile.processes.iter().map(|process| (process.image, process)).collect();
        let has_several_heaps = profile.has_several_heaps();
        Self { profile, has_several_heaps, by_image, by_pid: HashMap::new(), names, by_name }
    }

    /// The process with this image; `None` when nothing is known of it.
    pub(super) fn of_image(&self, image: u32) -> Option<&'a Process> {
        self.by_image.get(&image).copied()
    }

    /// The process of a stack; `None` when nothing is known of it.
    pub(super) fn of_stack(&self, stack: &StackEntry) -> Option<&'a Process> {
        self.of_image(stack.image)
    }

    /// The process with an id, as [`Profile::process_of_pid`].
    pub(super) fn of_pid(&mut self, pid: u32) -> Option<&'a Process> {
        *self.by_pid.entry(pid).or_insert_with(|| self.profile.process_of_pid(pid))
    }

    /// The program of a process. One that was gone before its executable could be read is taken for the program whose processes have
    /// its name, if there is only one.
    pub(super) fn program(&self, process: &'a Process) -> Program<'a> {
        let known = self.by_name.get(&*process.comm).filter(|_| process.exe.is_empty());
        known.copied().flatten().unwrap_or_else(|| Program::of(process))
    }

    /// What a program is called: the name of its processes, or that of the executable where they have several. Safe to show.
    pub(super) fn name_of(&self, program: Program<'a>) -> Cow<'a, str> {
        match self.names.get(&program).copied().flatten() {
            Some(comm) => name::comm(comm),
            None => name::comm(program.exe.rsplit('/').next().unwrap_or_default()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::fixture;

    #[test]
    fn programs_are_executables_and_what_interpreters_run() {
        let mut profile = fixture::profile();
        let of = |pid, comm: &str, exe: &str| Process {
            pid,
            image: pid,
            comm: comm.to_owned(),
            exe: exe.to_owned(),
            ..fixture::profile().processes[0].clone()
        };
        profile.processes = vec![
            of(1, "worker/0", "/usr/bin/service"),
            of(2, "worker/1", "/usr/bin/service"),
            of(3, "gunicorn", "/usr/bin/python3.11"),
            of(4, "celery", "/usr/bin/python3.11"),
            of(5, "gone", ""),
            of(6, "", ""),
            of(7, "celery", ""),
            of(8, "tool", "/usr/bin/tool"),
            of(9, "tool", "/usr/local/bin/tool"),
            of(10, "tool", ""),
        ];
        let index = Index::new(&profile);
        let programs: Vec<Program<'_>> = profile.processes.iter().map(|process| index.program(process)).collect();
        assert_eq!(programs[0], programs[1]);
        let names: Vec<_> = programs.iter().map(|program| index.name_of(*program)).collect();
        assert_eq!(
            names,
            ["service", "service", "gunicorn", "celery", "gone", "[no name]", "celery", "tool", "tool", "tool"]
        );
        assert_eq!(programs[6], programs[3], "by its name");
        assert!(programs[9].exe().is_empty(), "it may be either");
    }

    #[test]
    fn an_id_that_was_used_again_is_that_of_the_process_that_lives() {
        let mut profile = fixture::profile();
        let end = crate::profile::End { after: std::time::Duration::ZERO, signal: None };
        let again = Process { image: 9, comm: "again".to_owned(), ..profile.processes[0].clone() };
        profile.processes[0].ended = Some(end);
        profile.processes.push(again);
        let mut index = Index::new(&profile);
        assert_eq!(index.of_pid(4711).unwrap().comm, "again");
        assert_eq!(index.of_stack(&profile.stacks[0]).unwrap().comm, "leaky");
        assert_eq!(index.of_pid(1), None);
    }
}
