//! Launching a command, and holding it at its execs until its allocator is probed.

use std::time::Duration;

use anyhow::{Context as _, Result, bail};

use super::{Input, Session};
use crate::{
    attach::Attached,
    config::GoHeapChoice,
    event::Pid,
    launch::{Launched, Step},
    process::status,
};

impl Session {
    /// Launches a command and attaches to it before it has allocated anything.
    pub(super) fn launch(&mut self, command: &[std::ffi::OsString]) -> Result<()> {
        let name = command.first().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        let launcher = self.launcher.take().context("launched already")?;
        let mut launched = launcher
            .start(command)
            .with_context(|| format!("cannot launch {name:?}: give the path of an executable file"))?;
        self.signals.know(launched.process());
        let pid = launched.pid();
        self.inputs.watch(pid, Input::Exited(pid)).with_context(|| format!("cannot watch process {pid}"))?;
        if !self.load(&mut launched).with_context(|| format!("cannot follow the start of {name:?}"))? {
            bail!(
                "{name:?} has no malloc in its executable or its libraries: there is nothing to trace \
                 (statically linked and stripped, or an allocator of its own: name its functions with --symbol)"
            );
        }
        self.launched = Some(launched);
        Ok(())
    }

    /// Lets a command that is held run to its entry, attaching to its allocator on the way. At the entry all its libraries
    /// are mapped, so that their names are known even if it ends at once. Whether there is an allocator.
    pub(super) fn load(&mut self, launched: &mut Launched) -> Result<bool> {
        let pid = launched.pid();
        let mut step = Step::Mapped;
        let mut found = false;
        while step != Step::Exited {
            // Others may come with the libraries that are still to be loaded.
            if self.load_allocators(pid, !found)? && !found {
                self.enable_again(pid, Duration::MAX)?;
                found = true;
                if !launched.stops_at_entry() {
                    return Ok(true);
                }
            }
            if step == Step::Entry {
                let known = self.image_of(pid);
                let image = known.unwrap_or_else(|| self.next_image());
                let go = match self.attach_go(pid, image, true) {
                    // What it has of C is traced all the same.
                    Err(problem) if found && self.config.go_heap == GoHeapChoice::Auto => {
                        self.unseen_heaps.push(format!("the Go heap of process {pid} is not seen: {problem:#}"));
                        false
                    }
                    go => go?,
                };
                if go && !found {
                    if known.is_none() {
                        self.attached.push(Attached::without_allocator(pid, image, &status::check(pid)?));
                    }
                    found = true;
                }
                if found {
                    self.enable_again(pid, Duration::MAX)?;
                }
                return Ok(found);
            }
            step = launched.step()?;
        }
        Ok(true)
    }

    /// Attaches to those allocators of a process that is being loaded that are there by now; `first`: none were before. Whether there are
    /// any.
    pub(super) fn load_allocators(&mut self, pid: Pid, first: bool) -> Result<bool> {
        if let Some(attached) = self.attached.iter_mut().find(|attached| attached.pid() == pid) {
            return attached.load(&mut self.probes, first);
        }
        let returns = self.returns();
        let image = self.next_image();
        let attached = Attached::attach_loading(&mut self.probes, pid, image, status::check(pid)?, returns)?;
        let found = attached.is_some();
        self.attached.extend(attached);
        Ok(found)
    }

    /// A launched command has become another program, and was stopped for us to follow it.
    pub(super) fn follow_launched(&mut self, mut launched: Launched) -> Result<()> {
        let pid = launched.pid();
        let attached = self.attached.iter_mut().find(|attached| attached.pid() == pid);
        let follows = attached.is_none_or(Attached::can_be_followed);
        let loaded = match launched.hold_again() {
            Ok(true) if follows => self.load(&mut launched),
            // Nothing is to be loaded, or it is an exec that was followed already, while the command was held.
            Ok(_) => Ok(true),
            Err(error) => Err(error.into()),
        };
        launched.release();
        if let Some(attached) = self.attached.iter_mut().find(|attached| attached.pid() == pid) {
            match loaded {
                Ok(true) => {}
                Ok(false) => attached.has_no_allocator(),
                // It is searched as it runs.
                Err(error) => tracing::debug!("cannot hold the command at its exec: {error:#}"),
            }
        }
        self.launched = Some(launched);
        Ok(())
    }
}
