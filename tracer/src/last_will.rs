//! What is left to do when tracer has to end at once, in the middle of whatever it does: a second signal says so, and nothing
//! of what else would undo it comes to run. Killed (SIGKILL), it leaves these things undone.

use std::{
    sync::{Mutex, PoisonError, mpsc},
    thread,
    time::Duration,
};

type Deed = Box<dyn FnOnce() + Send>;

static DEEDS: Mutex<Vec<(u64, Deed)>> = Mutex::new(Vec::new());

/// Longest time that all of it may take.
const PATIENCE: Duration = Duration::from_secs(1);

/// Something to be done, as long as this is there.
pub(crate) struct Clause(u64);

impl Clause {
    /// Has `deed` done if tracer has to end at once.
    pub(crate) fn new(deed: impl FnOnce() + Send + 'static) -> Self {
        let mut deeds = DEEDS.lock().unwrap_or_else(PoisonError::into_inner);
        let id = deeds.last().map_or(0, |(id, _)| id + 1);
        deeds.push((id, Box::new(deed)));
        Self(id)
    }
}

impl Drop for Clause {
    fn drop(&mut self) {
        DEEDS.lock().unwrap_or_else(PoisonError::into_inner).retain(|(id, _)| *id != self.0);
    }
}

/// Does all of it, as far as it can be done in a second.
pub(crate) fn execute() {
    let (done, waits) = mpsc::channel();
    let execution = move || {
        let deeds = std::mem::take(&mut *DEEDS.lock().unwrap_or_else(PoisonError::into_inner));
        deeds.into_iter().for_each(|(_, deed)| deed());
        // Nobody may wait any more.
        let _ = done.send(());
    };
    if thread::Builder::new().name("last will".to_owned()).spawn(execution).is_ok() {
        // Whatever hangs, hangs alone.
        let _ = waits.recv_timeout(PATIENCE);
    }
}
