//! What is left to do when tracer has to end at once, in the middle of whatever it does: a second signal says so, and nothing
//! of what else would undo it comes to run. Killed (SIGKILL), it leaves these things undone.

use std::{
    sync::{Mutex, PoisonError, mpsc},
    thread,
    time::Duration,
};

type Deed = Box<dyn FnOnce() + Send>;

static WILL: Mutex<Will> = Mutex::new(Will { deeds: Vec::new(), executed: false });

struct Will {
    deeds: Vec<(u64, Deed)>,
    executed: bool,
}

/// Longest time that all of it may take.
const PATIENCE: Duration = Duration::from_secs(1);

/// Something to be done, as long as this is there.
pub(crate) struct Clause(u64);

impl Clause {
    /// Has `deed` done if tracer has to end at once. If it ends already, nothing that would have to be undone is begun: this
    /// does not return then.
    pub(crate) fn new(deed: impl FnOnce() + Send + 'static) -> Self {
        loop {
            let mut will = WILL.lock().unwrap_or_else(PoisonError::into_inner);
            if !will.executed {
                let id = will.deeds.last().map_or(0, |(id, _)| id + 1);
                will.deeds.push((id, Box::new(deed)));
                return Self(id);
            }
            drop(will);
            thread::park();
        }
    }
}

impl Drop for Clause {
    fn drop(&mut self) {
        WILL.lock().unwrap_or_else(PoisonError::into_inner).deeds.retain(|(id, _)| *id != self.0);
    }
}

/// Does all of it, as far as it can be done in a second.
pub(crate) fn execute() {
    let (done, waits) = mpsc::channel();
    let execution = move || {
        let mut will = WILL.lock().unwrap_or_else(PoisonError::into_inner);
        will.executed = true;
        let deeds = std::mem::take(&mut will.deeds);
        drop(will);
        deeds.into_iter().for_each(|(_, deed)| deed());
        // Nobody may wait any more.
        let _ = done.send(());
    };
    if thread::Builder::new().name("last will".to_owned()).spawn(execution).is_ok() {
        // Whatever hangs, hangs alone.
        let _ = waits.recv_timeout(PATIENCE);
    }
}
