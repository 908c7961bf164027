//! Taking probes off: the kernel waits for each until no program runs any more, tens of milliseconds. It does so for many at a
//! time as fast as for one, so they are taken off by several threads.

use std::{
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread,
};

/// Most threads at a time, while tracing.
const BESIDE: usize = 4;
/// The same when somebody waits for the end.
const AT_LAST: usize = 64;

/// What takes probes off.
#[derive(Clone, Default)]
pub(super) struct Remover(Arc<Shared>);

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    /// Rings when a thread has come to an end.
    rests: Condvar,
}

#[derive(Default)]
struct State {
    /// Links: dropping one takes it off.
    waiting: Vec<Box<dyn Send>>,
    threads: usize,
}

impl Remover {
    /// Takes links off, some time.
    pub(super) fn take(&self, links: impl IntoIterator<Item = Box<dyn Send>>) {
        self.0.state().waiting.extend(links);
        self.work(BESIDE);
    }

    /// Whether some are not off yet.
    pub(super) fn is_at_work(&self) -> bool {
        let state = self.0.state();
        state.threads > 0 || !state.waiting.is_empty()
    }

    /// Waits until all are off.
    pub(super) fn finish(&self) {
        self.work(AT_LAST);
        let mut state = self.0.state();
        while state.threads > 0 {
            state = self.0.rests.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        // No thread could be had for these.
        let left = std::mem::take(&mut state.waiting);
        drop(state);
        drop(left);
    }

    fn work(&self, most: usize) {
        let mut state = self.0.state();
        while state.threads < most.min(state.waiting.len()) {
            let shared = Arc::clone(&self.0);
            match thread::Builder::new().name("detach".to_owned()).spawn(move || shared.take_off()) {
                Ok(_) => state.threads += 1,
                Err(error) => return tracing::debug!("no thread to detach by: {error}"),
            }
        }
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn take_off(&self) {
        loop {
            let mut state = self.state();
            let Some(link) = state.waiting.pop() else {
                state.threads -= 1;
                self.rests.notify_all();
                return;
            };
            drop(state);
            drop(link);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

    use super::*;

    /// Counts when it is dropped.
    struct Link(Arc<AtomicUsize>);

    impl Drop for Link {
        fn drop(&mut self) {
            self.0.fetch_add(1, Relaxed);
        }
    }

    #[test]
    fn all_are_off_when_it_has_been_waited_for_that() {
        let (remover, off) = (Remover::default(), Arc::new(AtomicUsize::new(0)));
        remover.finish();
        for _ in 0..3 {
            remover.take((0..100).map(|_| Box::new(Link(Arc::clone(&off))) as Box<dyn Send>));
        }
        remover.finish();
        assert_eq!((off.load(Relaxed), remover.0.state().threads), (300, 0));
    }
}
