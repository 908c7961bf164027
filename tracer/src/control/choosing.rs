//! Which processes a run begins with: those that are given by id, or that a selection fits. One that cannot be traced is told, and
//! does not keep the others from it.

use std::{
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use hashbrown::{HashMap, HashSet};
use tracer_ebpf::unwind::FileKey;

use crate::{
    attach::{is_run_by, probes::Scope},
    bpf,
    config::Subject,
    event::{Beginning, How, Image, Pid},
    preflight::Missing,
    process::{
        stat::stat,
        status::{self, NotTraceable},
    },
    select::{Facts, Selection, folders::Folders, names::Names, processes},
};

/// What reports say of ids among which some were chosen.
const LATER: &str = "processes were selected as the trace began: what has started since is not in it, but for what traced ones have \
                     started";
/// Least time between two looks at what containers are called.
const NAMES_AGE: Duration = Duration::from_secs(2);

/// Most processes that have probes of their own unless it is asked for: the kernel takes milliseconds for each to put them there, and a
/// tenth of a second to take them off, one after the other.
const MOST_ALONE: usize = 32;

/// For whom probes are there where nobody has said it.
pub(super) fn scope(subject: &Subject) -> Scope {
    match subject {
        Subject::Pids(pids) if pids.len() > MOST_ALONE => {
            tracing::info!(
                "more than {MOST_ALONE} processes: probes are on files, for all that map them (--scope=process decides otherwise)"
            );
            Scope::File
        }
        _ => Scope::Process,
    }
}

/// Whom a selection fits.
pub(super) struct Chosen {
    /// Those that run.
    pub(super) pids: Vec<Pid>,
    /// Those to come.
    pub(super) newcomers: Option<Newcomers>,
    /// For reports.
    pub(super) notes: Vec<String>,
}

/// The processes that a selection fits. `machine`: what is missing to trace at all.
///
/// # Errors
/// None fits.
pub(super) fn choose(selection: &Selection, machine: &Result<(), Missing>) -> Result<Chosen> {
    let seen = processes::running().context("cannot read /proc")?;
    let names = Newcomers::names(selection);
    let chosen: Vec<Pid> = seen.iter().copied().filter(|pid| processes::fits(selection, &names, *pid)).collect();
    if chosen.is_empty() {
        // Without rights, what would fit may not be seen.
        if let Err(Missing::Capabilities(what)) = machine {
            return Err(Missing::Capabilities(what.clone()).into());
        }
        bail!(
            "no running process fits: `ps -eo pid,user,comm,cgroup` shows what there is, and `tracer top` what grows"
        );
    }
    tracing::debug!(?chosen, "processes that fit");
    if !selection.pids.is_empty() {
        // An id is given to one that runs.
        return Ok(Chosen { pids: chosen, newcomers: None, notes: vec![LATER.to_owned()] });
    }
    let newcomers = Newcomers::new(selection.clone(), names, seen);
    Ok(Chosen { pids: chosen, newcomers: Some(newcomers), notes: Vec::new() })
}

/// Processes that were there before, of which a look asks again whether they fit by now in any case.
const ASKED_AGAIN: usize = 64;

/// Most images that did not fit that are remembered.
const MAX_UNFIT: usize = 1 << 14;
/// Most programs whose paths are remembered.
const MAX_EXES: usize = 4096;

/// Whether a process that has begun is to be traced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fit {
    Yes,
    No,
    /// It was over before anybody could see that.
    Unknown,
}

/// Who is to be traced of the processes that begin while others are.
pub(super) struct Newcomers {
    selection: Selection,
    names: Names,
    named: Instant,
    /// Ids that were there at the last look at all processes, and the last of them that was asked for again.
    seen: HashSet<Pid>,
    asked: Pid,
    /// Threads of the kernel among them, which are asked for nothing. (That one of them ends, and a worker that becomes no program has its id
    /// by the next look, is not seen before the last one.)
    of_kernel: HashSet<Pid>,
    folders: Folders,
    /// Paths of the executables of programs that were seen, by what the kernel knows them by.
    exes: HashMap<FileKey, String>,
    /// The last images that did not fit: neither does what they have forked.
    unfit: HashSet<Image>,
    /// Those that fit, and cannot be traced.
    untraceable: HashSet<Pid>,
    /// Those that were found by looks and fit.
    pub(super) found: Vec<Pid>,
    /// Whether all that was recorded until they were found was told.
    pub(super) is_all_told: bool,
}

impl Newcomers {
    /// `seen`: ids of all processes that run.
    fn new(selection: Selection, names: Names, seen: Vec<Pid>) -> Self {
        Self {
            selection,
            names,
            named: Instant::now(),
            seen: seen.into_iter().collect(),
            asked: 0,
            of_kernel: HashSet::new(),
            folders: Folders::default(),
            exes: HashMap::new(),
            unfit: HashSet::new(),
            untraceable: HashSet::new(),
            found: Vec::new(),
            is_all_told: false,
        }
    }

    fn names(selection: &Selection) -> Names {
        if selection.containers().is_empty() { Names::default() } else { Names::read(Path::new("/")) }
    }

    /// Whether a process that has begun as a program is to be traced. Of one that is gone, what its record tells decides.
    pub(super) fn fits(&mut self, image: Image, beginning: &Beginning) -> Fit {
        let fit = self.fit(beginning, &beginning.comm());
        if fit == Fit::No {
            if self.unfit.len() >= MAX_UNFIT {
                self.unfit.clear();
            }
            self.unfit.insert(image);
        }
        fit
    }

    fn fit(&mut self, Beginning { pid, parent, how, program, whose, .. }: &Beginning, comm: &str) -> Fit {
        if processes::is_never_chosen(*pid) {
            return Fit::No;
        }
        // It may be another program by now, which is judged when it is told of.
        let facts = processes::facts(*pid, &self.selection).filter(|facts| {
            match program.map(|program| is_run_by(&program, *pid)) {
                Some(Some(is_it)) => is_it,
                _ => facts.comm == comm,
            }
        });
        if let Some(facts) = facts {
            let fits = self.fits_by_now(|selection, names| Some(selection.fits(&facts, names)));
            self.saw(*program, facts.exe.clone());
            if fits == Some(true) {
                return Fit::Yes;
            }
            // Of one that ends not all is known.
            if !status::is_exiting(*pid) {
                return Fit::No;
            }
        }
        if *how == How::Fork && self.unfit.contains(parent) {
            return Fit::No;
        }
        let by_cgroups = !self.selection.cgroups().is_empty() || !self.selection.containers().is_empty();
        let gone = Facts {
            pid: *pid,
            comm: comm.to_owned(),
            exe: program.and_then(|program| self.path(&program)),
            cgroups: if by_cgroups { self.folders.of(whose, self.selection.cgroups()) } else { Vec::new() },
            user: (whose.is_user_known != 0).then_some(whose.user),
        };
        match self.fits_by_now(|selection, names| selection.would_fit(&gone, names)) {
            Some(true) => Fit::Yes,
            Some(false) => Fit::No,
            None => Fit::Unknown,
        }
    }

    /// What the selection says, with names of containers as new as they may have to be.
    fn fits_by_now(&mut self, fits: impl Fn(&Selection, &Names) -> Option<bool>) -> Option<bool> {
        let found = fits(&self.selection, &self.names);
        if found == Some(true) || self.selection.containers().is_empty() || self.named.elapsed() < NAMES_AGE {
            return found;
        }
        (self.names, self.named) = (Self::names(&self.selection), Instant::now());
        fits(&self.selection, &self.names)
    }

    /// The path of a program that was seen, or that can be found by what the kernel knows it by.
    fn path(&mut self, program: &FileKey) -> Option<String> {
        if let Some(known) = self.exes.get(program) {
            return Some(known.clone());
        }
        let path = bpf::path_by_key(program).ok()??.to_string_lossy().into_owned();
        self.saw(Some(*program), Some(path.clone()));
        Some(path)
    }

    fn saw(&mut self, program: Option<FileKey>, exe: Option<String>) {
        if let (Some(program), Some(exe)) = (program, exe)
            && self.exes.len() < MAX_EXES
        {
            self.exes.insert(program, exe);
        }
    }

    /// A process fits, and there is nothing that could be done about it.
    pub(super) fn cannot_be_traced(&mut self, pid: Pid) {
        self.untraceable.insert(pid);
    }

    /// Looks for processes that are to be traced and were not there at the last look, but for `known` ones, and for those that were, as many
    /// as there is time for (`has_time`): what has come to fit without becoming another program.
    pub(super) fn look(&mut self, known: impl Fn(Pid) -> bool, has_time: impl Fn() -> bool) {
        let Ok(running) = processes::running() else { return };
        let before = std::mem::replace(&mut self.seen, running.iter().copied().collect());
        self.untraceable.retain(|pid| self.seen.contains(pid));
        self.of_kernel.retain(|pid| self.seen.contains(pid));
        let is_asked = |pid: &Pid| !known(*pid) && !self.untraceable.contains(pid) && !self.of_kernel.contains(pid);
        let (old, new): (Vec<Pid>, Vec<Pid>) =
            running.into_iter().filter(is_asked).partition(|pid| before.contains(pid));
        let first = old.partition_point(|pid| *pid <= self.asked);
        let mut found: Vec<Pid> = new.into_iter().filter(|pid| self.fits_now(*pid)).collect();
        for (nth, pid) in old[first..].iter().chain(&old[..first]).enumerate() {
            if nth >= ASKED_AGAIN && !has_time() {
                break;
            }
            self.asked = *pid;
            if self.fits_now(*pid) {
                found.push(*pid);
            }
        }
        self.is_all_told &= found.is_empty();
        self.found.extend(found);
    }

    /// Whether a process fits that is there now.
    fn fits_now(&mut self, pid: Pid) -> bool {
        match processes::facts(pid, &self.selection) {
            Some(facts) => self.selection.fits(&facts, &self.names),
            None => {
                if processes::is_of_kernel(pid) {
                    self.of_kernel.insert(pid);
                }
                false
            }
        }
    }

    /// Those that fit now, but for `known` ones and those that cannot be traced. What is about to end may be one that was
    /// traced: its end is told before it is over. `follows`: children of those that are traced are traced themselves, and one that has not
    /// become its program yet (vfork, posix_spawn) has its parent's name.
    pub(super) fn untraced(&self, known: impl Fn(Pid) -> bool, follows: bool) -> Vec<Untraced> {
        let running = processes::running().unwrap_or_default().into_iter();
        let asked = running.filter(|pid| !known(*pid) && !self.untraceable.contains(pid));
        let facts = asked.filter_map(|pid| processes::facts(pid, &self.selection));
        let fits = facts.filter(|facts| self.selection.fits(facts, &self.names) && !status::is_exiting(facts.pid));
        let found = fits.filter_map(|facts| {
            let stat = stat(facts.pid).ok().flatten()?;
            let is_followed = follows && known(stat.parent);
            (!is_followed).then_some(Untraced { pid: facts.pid, start_time: stat.start_time, comm: facts.comm })
        });
        found.collect()
    }
}

/// A process that fits and is not traced.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Untraced {
    pub(super) pid: Pid,
    /// When it began: its id may be another's later.
    pub(super) start_time: u64,
    /// Its name then.
    pub(super) comm: String,
}

/// Those of the first look that the second one has found as well: the same processes, under the same names.
pub(super) fn in_both(first: Vec<Untraced>, second: &[Untraced]) -> Vec<Untraced> {
    first.into_iter().filter(|process| second.contains(process)).collect()
}

/// Checks that at least one of these processes can be traced, as far as can be told before. `can_trace`: nothing is missing on
/// this machine.
///
/// # Errors
/// Why the first one cannot, if none can.
pub(super) fn check(pids: &[Pid], can_trace: bool) -> Result<()> {
    let mut first = None;
    for pid in pids {
        match status::check(*pid) {
            Ok(_) => return Ok(()),
            // The missing right itself says more.
            Err(NotTraceable::Forbidden { .. }) if !can_trace => return Ok(()),
            Err(error) => first = first.or(Some(error)),
        }
    }
    first.map_or(Ok(()), |error| Err(error.into()))
}

#[cfg(test)]
mod tests {
    use std::{
        io::{BufRead as _, BufReader},
        process::{Command, Stdio},
    };

    use rustix::process::{Signal, kill_process};
    use tracer_ebpf::Whose;

    use super::*;

    fn newcomers(set: impl Fn(&mut Selection)) -> Newcomers {
        let mut selection = Selection::default();
        set(&mut selection);
        Newcomers::new(selection, Names::default(), Vec::new())
    }

    /// Of a process that is over: process ids end below 2^22. No file has such a number.
    fn gone(whose: Whose) -> Beginning {
        let (parent, how, program) = (Image(0), How::Newcomer, Some(PROGRAM));
        Beginning { pid: 1 << 22, parent, how, comm: [0; 16], time: 1, is_late: false, program, whose }
    }

    /// It was there before, and is nobody's child of ours.
    #[test]
    fn all_are_asked_again_that_there_is_time_for() {
        let mut shell = Command::new("sh");
        let mut shell = shell.args(["-c", "sleep 1000 & echo $!; wait"]).stdout(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(shell.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let pid: Pid = line.trim().parse().unwrap();
        let mut sleeps = newcomers(|selection| selection.add_comm("sleep").unwrap());
        while !processes::fits(&sleeps.selection, &sleeps.names, pid) {}
        sleeps.seen = processes::running().unwrap().into_iter().collect();
        for (is_known, expected) in [(false, true), (true, false)] {
            sleeps.found.clear();
            sleeps.look(|other| is_known && other == pid, || true);
            assert_eq!(sleeps.found.contains(&pid), expected);
            let untraced = sleeps.untraced(|other| is_known && other == pid, true);
            let found = untraced.iter().find(|other| other.pid == pid);
            assert_eq!(found.map(|found| &*found.comm), expected.then_some("sleep"));
        }
        // Its parent is traced: so is it, as soon as that is told, unless children are not.
        for (follows, expected) in [(true, false), (false, true)] {
            let untraced = sleeps.untraced(|other| other == shell.id(), follows);
            assert_eq!(untraced.iter().any(|other| other.pid == pid), expected, "{follows}");
        }
        sleeps.cannot_be_traced(pid);
        assert!(
            !sleeps.untraced(|_| false, true).iter().any(|other| other.pid == pid),
            "it was told that it cannot be traced"
        );
        kill_process(rustix::process::Pid::from_raw(pid as i32).unwrap(), Signal::KILL).unwrap();
        shell.wait().unwrap();
    }

    #[test]
    fn both_looks_must_have_seen_the_same_process() {
        let process = |pid, start_time, comm: &str| Untraced { pid, start_time, comm: comm.to_owned() };
        let first = vec![process(1, 10, "a"), process(2, 10, "a"), process(3, 10, "a"), process(4, 10, "a")];
        // One is another process by now, one has become another program, one is over.
        let second = [process(4, 10, "a"), process(1, 11, "a"), process(2, 10, "b")];
        assert_eq!(in_both(first, &second), [process(4, 10, "a")]);
    }

    const PROGRAM: FileKey = FileKey { inode: u64::MAX, device: 0, generation: 0 };

    #[test]
    fn what_an_unfit_one_has_forked_does_not_fit() {
        let mut by_user = newcomers(|selection| selection.add_user(7));
        let whose = Whose { user: 8, is_user_known: 1, ..Whose::default() };
        assert_eq!(by_user.fits(Image(5), &gone(whose)), Fit::No);
        for (parent, expected) in [(5, Fit::No), (6, Fit::Unknown)] {
            let forked = Beginning { parent: Image(parent), how: How::Fork, ..gone(Whose::default()) };
            assert_eq!(by_user.fits(Image(9), &forked), expected, "{parent}");
        }
    }

    #[test]
    fn what_is_gone_is_in_doubt_where_its_record_does_not_decide() {
        let (nobody, user) = (Whose::default(), Whose { user: 7, is_user_known: 1, ..Whose::default() });
        let fit = |newcomers: &mut Newcomers, whose| newcomers.fit(&gone(whose), "worker");
        assert_eq!(fit(&mut newcomers(|selection| selection.add_comm("work*").unwrap()), nobody), Fit::Yes);
        assert_eq!(fit(&mut newcomers(|selection| selection.add_comm("other").unwrap()), nobody), Fit::No);
        assert_eq!(fit(&mut newcomers(|selection| selection.exclude_comm("worker").unwrap()), nobody), Fit::No);
        let mut by_user = newcomers(|selection| selection.add_user(7));
        assert_eq!((fit(&mut by_user, nobody), fit(&mut by_user, user)), (Fit::Unknown, Fit::Yes));
        assert_eq!(fit(&mut newcomers(|selection| selection.add_user(0)), user), Fit::No);
        let mut by_path = newcomers(|selection| selection.add_exe("/bin/worker").unwrap());
        assert_eq!(fit(&mut by_path, nobody), Fit::Unknown);
        for (path, expected) in [("/bin/other", Fit::No), ("/bin/worker", Fit::Yes)] {
            by_path.saw(Some(PROGRAM), Some(path.to_owned()));
            assert_eq!(fit(&mut by_path, nobody), expected);
        }
        by_path.selection.add_user(0);
        assert_eq!((fit(&mut by_path, nobody), fit(&mut by_path, user)), (Fit::Unknown, Fit::No));
        let mut by_cgroup = newcomers(|selection| selection.add_cgroup("/no/such").unwrap());
        assert_eq!(fit(&mut by_cgroup, nobody), Fit::Unknown);
    }
}
