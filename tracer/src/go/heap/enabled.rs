//! `MemProfileRate` of a process, set for the time of a trace: set back at the end, but only where nobody else has set it meanwhile.

use std::{io, sync::Arc};

use anyhow::{Context as _, Result};

use crate::{
    event::Pid,
    golang::{Runtime, heap},
    last_will::Clause,
    process::memory::WritableWord,
};

/// One that is set, as long as this is there.
pub(super) struct Enabled {
    pid: Pid,
    rate: Arc<ProfileRate>,
    _undone_in_haste: Clause,
}

impl Enabled {
    /// Sets that of a process to `mean`, bytes between samples.
    ///
    /// # Errors
    /// It is not found, or cannot be written to.
    pub(super) fn new(runtime: &Runtime, pid: Pid, mean: u64) -> Result<Self> {
        let enabled = Self::taken_over(runtime, pid, mean)?;
        enabled.rate.set().context("cannot write to its memory")?;
        Ok(enabled)
    }

    /// Of one that another tracer has set to `mean`.
    ///
    /// # Errors
    /// As for [`Enabled::new`].
    pub(super) fn taken_over(runtime: &Runtime, pid: Pid, mean: u64) -> Result<Self> {
        let addr = heap::profile_rate_address(runtime)?;
        let word = WritableWord::open(pid, addr).context("cannot write to its memory")?;
        let rate = Arc::new(ProfileRate { word, mean });
        let undone = Arc::clone(&rate);
        Ok(Self { pid, rate, _undone_in_haste: Clause::new(move || drop(undone.undo())) })
    }
}

impl Drop for Enabled {
    fn drop(&mut self) {
        match self.rate.undo() {
            Ok(true) => {}
            Ok(false) => {
                tracing::debug!("MemProfileRate of process {} was set by others meanwhile: it stays", self.pid)
            }
            // Most likely it has ended, or become another program.
            Err(error) => tracing::debug!("cannot set MemProfileRate of process {} back: {error}", self.pid),
        }
    }
}

/// The number in the memory of the process.
struct ProfileRate {
    word: WritableWord,
    /// What it is set to.
    mean: u64,
}

impl ProfileRate {
    fn set(&self) -> io::Result<()> {
        self.word.set(self.mean)
    }

    /// Sets it back to 0, if it is as it was set: whether it was.
    fn undo(&self) -> io::Result<bool> {
        self.word.replace(self.mean, 0)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering::SeqCst};

    use super::*;

    const MEAN: u64 = 32_768;

    /// A number in this very process, which stands for one that is traced.
    fn of(word: &AtomicU64) -> ProfileRate {
        let word = WritableWord::open(std::process::id(), word.as_ptr() as u64).unwrap();
        ProfileRate { word, mean: MEAN }
    }

    #[test]
    fn what_was_set_is_set_back() {
        let word = AtomicU64::new(0);
        let rate = of(&word);
        rate.set().unwrap();
        assert_eq!(word.load(SeqCst), MEAN);
        assert!(rate.undo().unwrap());
        assert_eq!(word.load(SeqCst), 0);
    }

    #[test]
    fn what_the_program_sets_meanwhile_stays() {
        let word = AtomicU64::new(0);
        let rate = of(&word);
        rate.set().unwrap();
        word.store(4096, SeqCst);
        assert!(!rate.undo().unwrap());
        assert_eq!(word.load(SeqCst), 4096);
    }
}
