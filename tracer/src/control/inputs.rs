//! What the session waits for: one queue of inputs, which other threads fill, and a runtime on the session's own thread, which waits
//! for the ends of processes and for time.

use std::{io, time::Instant};

use rustix::process::{Pid, PidfdFlags, pidfd_open};
use tokio::{
    io::{Interest, unix::AsyncFd},
    runtime::{Builder, Runtime},
    sync::mpsc,
    time,
};

/// The queue and the runtime.
pub(super) struct Inputs<T> {
    runtime: Runtime,
    queue: mpsc::UnboundedReceiver<T>,
    inbox: mpsc::UnboundedSender<T>,
}

impl<T: Send + 'static> Inputs<T> {
    /// An empty one.
    ///
    /// # Errors
    /// No descriptor is left.
    pub(super) fn new() -> io::Result<Self> {
        let (inbox, queue) = mpsc::unbounded_channel();
        Ok(Self { runtime: Builder::new_current_thread().enable_all().build()?, queue, inbox })
    }

    /// Where other threads put inputs. What comes when the session has ended is dropped.
    pub(super) fn inbox(&self) -> impl Fn(T) + Clone + Send + Sync + 'static {
        let inbox = self.inbox.clone();
        move |input| drop(inbox.send(input))
    }

    /// The next input; `None` when there is none until then.
    pub(super) fn next(&mut self, until: Instant) -> Option<T> {
        let Self { runtime, queue, .. } = self;
        runtime.block_on(async { time::timeout_at(until.into(), queue.recv()).await.ok().flatten() })
    }

    /// The next input that is there already.
    pub(super) fn next_of_those_there(&mut self) -> Option<T> {
        self.queue.try_recv().ok()
    }

    /// Whether there are inputs.
    pub(super) fn are_there(&self) -> bool {
        !self.queue.is_empty()
    }

    /// Has `ended` come once when process `pid` has ended (all its threads).
    ///
    /// # Errors
    /// No such process, or a kernel before 5.3.
    pub(super) fn watch(&self, pid: u32, ended: T) -> io::Result<()> {
        let pid = i32::try_from(pid).ok().and_then(Pid::from_raw).ok_or(io::ErrorKind::InvalidInput)?;
        let process = pidfd_open(pid, PidfdFlags::empty())?;
        let context = self.runtime.enter();
        #[expect(deprecated, reason = "unsound for types that change or lose their descriptor; an OwnedFd does not")]
        let process = AsyncFd::with_interest(process, Interest::READABLE)?;
        drop(context);
        let inbox = self.inbox.clone();
        drop(self.runtime.spawn(async move {
            // It cannot fail but with the runtime.
            if process.readable().await.is_ok() {
                drop(inbox.send(ended));
            }
        }));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::{process::Command, thread, time::Duration};

    use super::*;

    fn soon() -> Instant {
        Instant::now() + Duration::from_secs(60)
    }

    #[test]
    fn inputs_come_in_their_order_and_time_passes() {
        let mut inputs = Inputs::new().unwrap();
        let put = inputs.inbox();
        assert_eq!(inputs.next(Instant::now()), None);
        assert!(!inputs.are_there());
        thread::spawn(move || (1..=3).for_each(put)).join().unwrap();
        assert!(inputs.are_there());
        assert_eq!(
            [inputs.next(Instant::now()), inputs.next(soon()), inputs.next_of_those_there()],
            [1, 2, 3].map(Some)
        );
        assert_eq!(inputs.next_of_those_there(), None);
    }

    #[test]
    fn the_end_of_each_process_comes_once() {
        let mut inputs = Inputs::new().unwrap();
        let mut children: Vec<_> = (0..20).map(|_| Command::new("sleep").arg("1000").spawn().unwrap()).collect();
        for child in &children {
            inputs.watch(child.id(), child.id()).unwrap();
        }
        assert_eq!(inputs.next(Instant::now() + Duration::from_millis(20)), None);
        children.iter_mut().for_each(|child| child.kill().unwrap());
        let mut ended: Vec<u32> = children.iter().filter_map(|_| inputs.next(soon())).collect();
        ended.sort_unstable();
        let mut pids: Vec<u32> = children.iter().map(std::process::Child::id).collect();
        pids.sort_unstable();
        assert_eq!(ended, pids);
        assert_eq!(inputs.next(Instant::now() + Duration::from_millis(20)), None);
        children.iter_mut().for_each(|child| assert!(!child.wait().unwrap().success()));
        assert!(inputs.watch(0, 0).is_err() && inputs.watch(1 << 30, 0).is_err());
    }
}
