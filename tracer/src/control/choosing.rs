//! Which processes a run begins with: those that are given by id, or that a selection fits. One that cannot be traced is told, and
//! does not keep the others from it.

use std::{
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use hashbrown::HashSet;

use crate::{
    attach::probes::Scope,
    config::Subject,
    event::Pid,
    preflight::Missing,
    process::status::{self, NotTraceable},
    select::{Facts, Selection, names::Names, processes},
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
    let newcomers = Newcomers {
        selection: selection.clone(),
        names,
        named: Instant::now(),
        seen: seen.into_iter().collect(),
        found: Vec::new(),
        is_all_told: false,
    };
    Ok(Chosen { pids: chosen, newcomers: Some(newcomers), notes: Vec::new() })
}

/// Who is to be traced of the processes that begin while others are.
pub(super) struct Newcomers {
    selection: Selection,
    names: Names,
    named: Instant,
    /// Ids that were there at the last look at all processes.
    seen: HashSet<Pid>,
    /// Those that were found by looks and fit.
    pub(super) found: Vec<Pid>,
    /// Whether all that was recorded until they were found was told.
    pub(super) is_all_told: bool,
}

impl Newcomers {
    fn names(selection: &Selection) -> Names {
        if selection.containers().is_empty() { Names::default() } else { Names::read(Path::new("/")) }
    }

    /// Whether a process that has begun, as the program `comm`, is to be traced. Of one that is gone its name decides, where that is
    /// enough.
    pub(super) fn fits(&mut self, pid: Pid, comm: &str) -> bool {
        if !status::is_alive(pid) {
            let gone = Facts { pid, comm: comm.to_owned(), ..Facts::default() };
            return self.selection.fits(&gone, &self.names);
        }
        if processes::fits(&self.selection, &self.names, pid) {
            return true;
        }
        if self.selection.containers().is_empty() || self.named.elapsed() < NAMES_AGE {
            return false;
        }
        // Its container may be as new as it is.
        (self.names, self.named) = (Self::names(&self.selection), Instant::now());
        processes::fits(&self.selection, &self.names, pid)
    }

    /// Looks for processes that are to be traced and were not there at the last look, but for `known` ones: those that have become
    /// what fits without becoming another program.
    pub(super) fn look(&mut self, known: impl Fn(Pid) -> bool) {
        let Ok(running) = processes::running() else { return };
        let before = std::mem::replace(&mut self.seen, running.iter().copied().collect());
        let new = running.into_iter().filter(|pid| !before.contains(pid) && !known(*pid));
        let found = new.filter(|pid| processes::fits(&self.selection, &self.names, *pid)).collect::<Vec<_>>();
        self.is_all_told &= found.is_empty();
        self.found.extend(found);
    }
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
