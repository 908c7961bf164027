//! `MemProfileRate` of a process, set for the time of a trace: set back at the end, but only where nobody else has set it meanwhile.

use std::{
    io,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

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

    /// The same of a runtime that has not started yet, and sets it to 0 when it does.
    ///
    /// # Errors
    /// As for [`Enabled::new`].
    pub(super) fn before_start(runtime: &Runtime, pid: Pid, mean: u64) -> Result<Self> {
        let enabled = Self::new(runtime, pid, mean)?;
        enabled.rate.state().awaits_start = true;
        Ok(enabled)
    }

    /// Of one that another tracer has set to `mean`.
    ///
    /// # Errors
    /// As for [`Enabled::new`].
    pub(super) fn taken_over(runtime: &Runtime, pid: Pid, mean: u64) -> Result<Self> {
        let addr = heap::profile_rate_address(runtime)?;
        let word = WritableWord::open(pid, addr).context("cannot write to its memory")?;
        let rate = Arc::new(ProfileRate { word, mean, state: Mutex::default() });
        let undone = Arc::clone(&rate);
        Ok(Self { pid, rate, _undone_in_haste: Clause::new(move || drop(undone.undo())) })
    }

    /// The number itself, for who follows the heap.
    pub(super) fn rate(&self) -> Arc<ProfileRate> {
        Arc::clone(&self.rate)
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

/// The number in the memory of the process, and what is to become of it.
pub(super) struct ProfileRate {
    word: WritableWord,
    /// What it is set to.
    mean: u64,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// The runtime has yet to set it to 0 as it starts.
    awaits_start: bool,
    /// Nothing is written any more.
    is_undone: bool,
}

impl ProfileRate {
    fn set(&self) -> io::Result<()> {
        self.word.set(self.mean)
    }

    /// Sets it again if the runtime has set it to 0 as it started. Whether that is still to be waited for.
    pub(super) fn set_again(&self) -> bool {
        let mut state = self.state();
        if state.awaits_start && !state.is_undone {
            state.awaits_start = match self.word.get() {
                Ok(0) => self.set().is_err(),
                Ok(rate) => rate == self.mean,
                // It has ended, or become another program.
                Err(_) => false,
            };
        }
        state.awaits_start && !state.is_undone
    }

    /// Sets it back to 0, for good, if it is as it was set: whether it was.
    fn undo(&self) -> io::Result<bool> {
        let mut state = self.state();
        if std::mem::replace(&mut state.is_undone, true) { Ok(true) } else { self.word.replace(self.mean, 0) }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering::SeqCst};

    use super::*;

    const MEAN: u64 = 32_768;

    /// A number in this very process, which stands for one that is traced.
    fn of(word: &AtomicU64, awaits_start: bool) -> ProfileRate {
        let word = WritableWord::open(std::process::id(), word.as_ptr() as u64).unwrap();
        ProfileRate { word, mean: MEAN, state: Mutex::new(State { awaits_start, is_undone: false }) }
    }

    #[test]
    fn what_was_set_is_set_back() {
        let word = AtomicU64::new(0);
        let rate = of(&word, false);
        rate.set().unwrap();
        assert_eq!(word.load(SeqCst), MEAN);
        assert!(rate.undo().unwrap());
        assert_eq!(word.load(SeqCst), 0);
    }

    #[test]
    fn what_the_program_sets_meanwhile_stays() {
        let word = AtomicU64::new(0);
        let rate = of(&word, false);
        rate.set().unwrap();
        word.store(4096, SeqCst);
        assert!(!rate.undo().unwrap());
        assert_eq!(word.load(SeqCst), 4096);
    }

    #[test]
    fn what_the_runtime_turns_off_as_it_starts_is_set_again_once() {
        let word = AtomicU64::new(524_288);
        let rate = of(&word, true);
        rate.set().unwrap();
        assert!(rate.set_again(), "it has not started");
        assert_eq!(word.load(SeqCst), MEAN);
        word.store(0, SeqCst);
        assert!(!rate.set_again());
        assert_eq!(word.load(SeqCst), MEAN);
        // From then on it is the program's.
        word.store(0, SeqCst);
        assert!(!rate.set_again());
        assert_eq!(word.load(SeqCst), 0);
    }

    #[test]
    fn nothing_is_set_again_when_it_was_set_back() {
        let word = AtomicU64::new(0);
        let rate = of(&word, true);
        rate.set().unwrap();
        assert!(rate.undo().unwrap());
        assert!(!rate.set_again());
        assert_eq!(word.load(SeqCst), 0);
    }
}
