//! Which processes a run begins with: those that are given by id, or that a selection fits. One that cannot be traced is told, and
//! does not keep the others from it.

use std::path::Path;

use anyhow::{Context as _, Result, bail};

use super::Session;
use crate::{
    attach::Attached,
    event::Pid,
    preflight::Missing,
    process::status::{self, NotTraceable},
    report::visible,
    select::{Selection, names::Names, processes},
};

/// Processes that are named one by one, when they are not traced; there may be thousands.
const MOST_TOLD: usize = 8;
/// What reports say of a selection.
const LATER: &str = "processes were selected as the trace began: those that have started since, and would fit, are not in it, but \
                     for what traced ones have started, with --children";
/// The same of all processes.
const MEANWHILE: &str =
    "what had started by the time that recording began, but after the processes were looked for, is not in it";

/// The processes that a selection fits, and notes for reports. `follows`: with what they start. `machine`: what is missing to
/// trace at all.
///
/// # Errors
/// None fits.
pub(super) fn choose(
    selection: &Selection,
    follows: bool,
    machine: &Result<(), Missing>,
) -> Result<(Vec<Pid>, Vec<String>)> {
    let names = if selection.containers().is_empty() { Names::default() } else { Names::read(Path::new("/")) };
    let chosen = processes::chosen(selection, &names).context("cannot read /proc")?;
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
    // Without a choice, all that starts is started by one of them.
    let note = if follows && !selection.is_more_than_pids() { MEANWHILE } else { LATER };
    Ok((chosen, vec![note.to_owned()]))
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

impl Session {
    /// Attaches to running processes.
    ///
    /// # Errors
    /// It can be done to none of them.
    pub(super) fn attach_all(&mut self, pids: &[Pid]) -> Result<()> {
        let mut failures = Vec::new();
        for pid in pids {
            let checked = status::check(*pid).map_err(Into::into);
            if let Err(error) = checked.and_then(|_| self.attach(*pid)) {
                self.abandon(*pid);
                failures.push(error);
            }
        }
        if self.attached.is_empty() {
            let more = failures.len().saturating_sub(1);
            let Some(first) = failures.into_iter().next() else { return Ok(()) };
            return Err(if more > 0 {
                first.context(format!("none of {} processes can be traced; the first", more + 1))
            } else {
                first
            });
        }
        let more = failures.len().saturating_sub(MOST_TOLD);
        let told = failures.iter().take(MOST_TOLD).map(|error| format!("not traced: {error:#}"));
        let more = (more > 0).then(|| format!("not traced: {more} more processes"));
        for note in told.chain(more) {
            tracing::warn!("{}", visible(&note));
            self.notes.push(note);
        }
        Ok(())
    }

    /// Undoes what was begun of attaching to a process.
    fn abandon(&mut self, pid: Pid) {
        self.libraries.retain(|libraries| libraries.pid() != pid);
        while let Some(index) = self.go.iter().position(|go| go.pid() == pid) {
            self.go.remove(index).detach(&mut self.probes.programs);
        }
        while let Some(index) = self.attached.iter().position(|attached: &Attached| attached.pid() == pid) {
            self.attached.remove(index).detach(&mut self.probes);
        }
    }
}
