//! Putting running processes under trace.

use std::{sync::mpsc, time::Duration};

use anyhow::{Context as _, Result, bail};

use super::{Input, Session};
use crate::{
    attach::{Attached, Returns, probes::Scope},
    collector::Request,
    config::{GoHeapChoice, Subject},
    event::Pid,
    process::status,
    space::address_space::AddressSpace,
};

/// Most processes whose ends are waited for with a descriptor each. Of more, the records tell, and where those were lost the look at their
/// memory.
const MOST_WATCHED: usize = 256;

/// How long the unwinding tables of all that a running process has mapped are waited for, when its allocators are found, before it is
/// recorded: those of hundreds of megabytes take longer.
const TABLES: Duration = Duration::from_millis(200);

impl Session {
    /// Attaches to a running process.
    pub(super) fn attach(&mut self, pid: Pid) -> Result<()> {
        if self.attached.iter().filter(|attached| !attached.is_over()).take(MOST_WATCHED).count() < MOST_WATCHED {
            self.inputs.watch(pid, Input::Exited(pid)).with_context(|| format!("cannot watch process {pid}"))?;
        }
        // Looked at again: the watch began after the first check, and the id may belong to another process by now.
        let status = status::check(pid)?;
        let image = self.next_image();
        let go = self.attach_go(pid, image, false);
        let found = matches!(go, Ok(true));
        let returns = self.returns();
        // Tables are made while allocators are looked for.
        let mapped = |space: &AddressSpace| self.resolvers.follow(space, || {});
        let attached = match (Attached::attach(&mut self.probes, pid, image, status, found, returns, mapped), go) {
            (Ok(attached), Err(problem)) if self.config.go_heap == GoHeapChoice::Auto => {
                let unseen = format!("the Go heap of process {pid} is not seen, only what is in C: {problem:#}");
                self.unseen_heaps.push(unseen);
                attached
            }
            // Nothing else is there, or it was asked for by name.
            (_, Err(problem)) => return Err(problem),
            (attached, Ok(_)) => attached?,
        };
        self.enable(attached)
    }

    /// How the outcomes of calls are to be seen.
    pub(super) fn returns(&self) -> Returns {
        let several = matches!(&self.config.subject, Subject::Pids(pids) if pids.len() > 1);
        let among_others = several || self.probes.scope() == Scope::File;
        Returns::new(self.config.returns, among_others)
    }

    pub(super) fn enable(&mut self, attached: Attached) -> Result<()> {
        let pid = attached.pid();
        self.attached.push(attached);
        self.enable_again(pid, TABLES)
    }

    /// Records a process from now on, with its mappings as they are now. `patience`: how long the tables of their files are waited for; one
    /// that is held has time.
    pub(super) fn enable_again(&mut self, pid: Pid, patience: Duration) -> Result<()> {
        let is_live = |attached: &Attached| attached.pid() == pid && !attached.is_over();
        let Some(at) = self.attached.iter().position(is_live) else { return Ok(()) };
        let space = self.attached[at].address_space()?;
        if self.has_probes() {
            self.attached[at].locate_probes(&self.probes, &space);
        }
        let attached = &self.attached[at];
        let (image, flags) = (attached.image(), self.flags(attached));
        let (told, is_known) = mpsc::channel();
        self.resolvers.follow(&space, move || {
            // Nobody waits any more: the trace is over.
            let _ = told.send(());
        });
        match is_known.recv_timeout(patience) {
            Ok(()) => {}
            // Stacks that meet a file before its table is made are unwound then, from a copy.
            Err(mpsc::RecvTimeoutError::Timeout) => tracing::debug!("recording begins before all tables are made"),
            Err(mpsc::RecvTimeoutError::Disconnected) => bail!("the resolvers have ended early"),
        }
        self.send(Request::Enable { pid, image, flags })?;
        // The switch is the collector's to turn: ask for something to know that it has.
        self.ask(|reply| Request::Held { images: Vec::new(), reply }).map(drop)
    }
}
