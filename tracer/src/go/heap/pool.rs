//! The threads that follow the heaps of Go processes: a few, however many heaps there are.

use std::{
    io,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc},
    thread,
    time::{Duration, Instant},
};

use hashbrown::HashMap;

use super::follower::{Follower, HeapSnapshot};
use crate::{golang::heap::Sample, priority};

/// Most threads.
const WORKERS: usize = 4;
/// Longest time without a look at what is due.
const PATIENCE: Duration = Duration::from_secs(1);
/// Most jobs between two looks.
const MAX_AT_ONCE: usize = 1 << 10;

/// What a follower is told.
pub enum Input {
    /// Objects were sampled.
    Samples(Vec<Sample>),
    /// Say what is held.
    Snapshot {
        /// By objects of at least this age.
        min_age: Duration,
        /// Whether it is the last: worth a moment to have it complete.
        last: bool,
        /// Where the answer goes.
        reply: mpsc::Sender<HeapSnapshot>,
    },
}

enum Job {
    Follow(u64, Box<Follower>),
    Tell(u64, Input),
    End(u64),
}

/// All threads that follow heaps.
#[derive(Clone, Default)]
pub struct Followers(Arc<Mutex<State>>);

#[derive(Default)]
struct State {
    /// Each with how many heaps it has.
    workers: Vec<(mpsc::Sender<Job>, usize)>,
    followers: u64,
}

/// The way to a follower, of which there may be several.
#[derive(Clone)]
pub struct Inbox {
    number: u64,
    /// Which thread it is of.
    worker: usize,
    jobs: mpsc::Sender<Job>,
}

impl Inbox {
    /// Tells the follower. Whether it is there.
    pub fn tell(&self, input: Input) -> bool {
        self.jobs.send(Job::Tell(self.number, input)).is_ok()
    }
}

impl Followers {
    /// Has a heap followed, by the thread that has the fewest.
    ///
    /// # Errors
    /// A thread cannot be started.
    pub(super) fn follow(&self, follower: Follower) -> io::Result<Inbox> {
        let mut state = self.state();
        let least = state.workers.iter().enumerate().min_by_key(|(_, (_, heaps))| *heaps).map(|(index, _)| index);
        let index = match least {
            Some(index) if state.workers[index].1 == 0 || state.workers.len() == WORKERS => index,
            _ => {
                let (jobs, todo) = mpsc::channel();
                thread::Builder::new().name("go heap".to_owned()).spawn(move || run(&todo))?;
                state.workers.push((jobs, 0));
                state.workers.len() - 1
            }
        };
        state.followers += 1;
        let number = state.followers;
        let (jobs, heaps) = &mut state.workers[index];
        *heaps += 1;
        // A thread that has ended shows when it is asked for something.
        let _ = jobs.send(Job::Follow(number, Box::new(follower)));
        Ok(Inbox { number, worker: index, jobs: jobs.clone() })
    }

    /// Follows a heap no more.
    pub(super) fn end(&self, inbox: &Inbox) {
        let _ = inbox.jobs.send(Job::End(inbox.number));
        if let Some((_, heaps)) = self.state().workers.get_mut(inbox.worker) {
            *heaps = heaps.saturating_sub(1);
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A heap that a thread follows.
struct Followed {
    follower: Box<Follower>,
    next: Instant,
}

/// Follows heaps until nobody is left to tell.
fn run(jobs: &mpsc::Receiver<Job>) {
    // On a busy machine none must miss a garbage collection. Each look is followed by a rest that is longer (`follower.rs`).
    priority::set_own(priority::URGENT);
    let mut all: HashMap<u64, Followed> = HashMap::new();
    loop {
        let now = Instant::now();
        let heaps = u32::try_from(all.len()).unwrap_or(u32::MAX);
        for Followed { follower, next } in all.values_mut().filter(|followed| followed.next <= now) {
            let rest = guarded(follower, |follower| follower.look_and_rest(heaps)).unwrap_or(PATIENCE);
            *next = Instant::now() + rest;
        }
        let next = all.values().map(|followed| followed.next).min();
        let patience = next.map_or(PATIENCE, |next| next.saturating_duration_since(Instant::now()));
        let first = match jobs.recv_timeout(patience) {
            Ok(job) => Some(job),
            Err(mpsc::RecvTimeoutError::Timeout) => None,
            Err(mpsc::RecvTimeoutError::Disconnected) => return,
        };
        for job in first.into_iter().chain(jobs.try_iter().take(MAX_AT_ONCE)) {
            match job {
                Job::Follow(number, follower) => {
                    all.insert(number, Followed { follower, next: Instant::now() });
                }
                Job::Tell(number, input) => {
                    if let Some(Followed { follower, .. }) = all.get_mut(&number) {
                        tell(follower, input);
                    }
                }
                Job::End(number) => drop(all.remove(&number)),
            }
        }
    }
}

fn tell(follower: &mut Follower, input: Input) {
    match input {
        Input::Samples(samples) => drop(guarded(follower, |follower| follower.add(samples))),
        Input::Snapshot { min_age, last, reply } => {
            // Nobody waits any more, or it is the follower that is wrong: nothing to do.
            if let Some(snapshot) = guarded(follower, |follower| follower.snapshot_now(min_age, last)) {
                let _ = reply.send(snapshot);
            }
        }
    }
}

/// What is in the memory of a process is hostile: should it make a follower panic, the others go on.
fn guarded<T>(follower: &mut Follower, f: impl FnOnce(&mut Follower) -> T) -> Option<T> {
    if follower.is_broken() {
        return None;
    }
    let done = catch_unwind(AssertUnwindSafe(|| f(follower)));
    if done.is_err() {
        follower.breaks();
    }
    done.ok()
}
