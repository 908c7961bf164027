//! What is asked of the collector, from whichever thread.

use std::{
    io,
    ops::Range,
    os::fd::OwnedFd,
    sync::{Arc, mpsc},
    time::Duration,
};

use rustix::event::{EventfdFlags, eventfd};

use super::view::View;
use crate::{
    event::{Image, Pid},
    go,
    mapped::OwnMemory,
    resolve::Resolved,
};

/// Which blocks are of interest.
#[derive(Clone, Copy, Debug)]
pub struct Interest {
    /// Those of at least this age.
    pub min_age: Duration,
    /// Whether none is left out for its size.
    pub all_sizes: bool,
    /// Mean of bytes between two that are recorded; `None`: all are.
    pub sample: Option<u64>,
    /// Whether what processes map themselves is recorded, too.
    pub mapped: bool,
    /// Whether the kernel gives huge pages to who has not asked for them: they are as a whole where blocks are.
    pub huge_pages: bool,
    /// Whether the probes of a process end with one thread, whose end is to be heard of.
    pub end_with_thread: bool,
}

/// What the session asks of the collector.
pub enum Request {
    /// Record this process from now on, if it is not recorded yet. The files that it has mapped are known by now, or will be soon.
    Enable {
        /// The process.
        pid: Pid,
        /// Its image.
        image: Image,
        /// [`tracer_ebpf::target`] bits.
        flags: u32,
    },
    /// The resolvers have found something out.
    Resolved(Resolved),
    /// Pass on the sampled objects of a Go runtime.
    FollowGo {
        /// The image.
        image: Image,
        /// Which of the process's runtimes it is.
        number: u8,
        /// Where they go.
        samples: go::heap::Inbox,
    },
    /// Whether a process that is recorded is of this image now: it may have become another program, or have ended, and nobody have heard of
    /// it yet.
    IsStill {
        /// The process.
        pid: Pid,
        /// The image.
        image: Image,
        /// Where the answer goes.
        reply: mpsc::Sender<bool>,
    },
    /// How many bytes each of these images holds now.
    Held {
        /// The images.
        images: Vec<Image>,
        /// Where the answer goes, in the same order.
        reply: mpsc::Sender<Vec<u64>>,
    },
    /// How many bytes of each of these parts of an image's memory recorded blocks have been in.
    Covered {
        /// The image.
        image: Image,
        /// The parts.
        ranges: Vec<Range<u64>>,
        /// Where the answer goes, in the same order.
        reply: mpsc::Sender<Vec<u64>>,
    },
    /// The memory that an image has mapped, by itself or by its allocators, and what has moved since this was asked last; all that was recorded
    /// up to now is taken in before.
    Mapped {
        /// The image.
        image: Image,
        /// Where the answer goes.
        reply: mpsc::Sender<OwnMemory>,
    },
    /// What an image had reserved, by address, when recording of it began or a moment later.
    Reserved {
        /// The image.
        image: Image,
        /// The addresses.
        ranges: Vec<Range<u64>>,
    },
    /// Record this image, which the BPF side has begun but not recorded yet; a notice tells from when on.
    Resume(Image),
    /// This image, which the BPF side has begun, is wanted.
    Keep(Image),
    /// What was recorded of this image, which the BPF side has begun, is not wanted: neither is what it will do.
    Drop {
        /// The image.
        image: Image,
        /// Whether it may have been wanted: nobody could see that in time.
        in_doubt: bool,
    },
    /// Tell of these as one from now on.
    Merge(Vec<Merging>),
    /// What happened on the memory of this image was not seen until this time, nanoseconds of CLOCK_MONOTONIC: its probes were away, or
    /// somebody without any has shared it. What was freed meanwhile is not known.
    Unseen(Image, u64),
    /// No probes are there from now on: what is freed is not known, in no process.
    Away,
    /// They are there again since this time, nanoseconds of CLOCK_MONOTONIC.
    Back(u64),
    /// The process of this image has ended: a notice tells it when all that it has done is taken in.
    Ended(Image),
    /// What is held now, by blocks of at least this age.
    View {
        /// Least age of a block.
        min_age: Duration,
        /// Where the answer goes.
        reply: mpsc::Sender<View>,
    },
    /// Record nothing any more, and take in what has been recorded.
    Stop {
        /// Is told when that is done, and all notices are on their way.
        reply: mpsc::Sender<()>,
    },
    /// End with a last view, after a stop.
    Finish {
        /// Least age of a block.
        min_age: Duration,
        /// Where the answer goes.
        reply: mpsc::Sender<View>,
    },
}

/// Images that have ended, of one process, and are told of as another one's that has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Merging {
    /// Those.
    pub from: Vec<Image>,
    /// What stands for them; it may be one of them.
    pub into: Image,
    /// Whether something is missing if nothing was recorded of them, and whether something is in any case.
    pub is_unheard: bool,
    /// As above.
    pub is_unseen: bool,
}

/// The way to ask the collector.
#[derive(Clone)]
pub struct Requests {
    requests: mpsc::Sender<Request>,
    /// Wakes it.
    bell: Arc<OwnedFd>,
}

/// Nobody takes requests any more: the collector has ended.
#[derive(Clone, Copy, Debug, thiserror::Error)]
#[error("the collector has ended early")]
pub struct Ended;

/// The collector's end.
pub struct Requested {
    requests: mpsc::Receiver<Request>,
    bell: Arc<OwnedFd>,
}

/// Both ends.
///
/// # Errors
/// No descriptor is left.
pub fn channel() -> io::Result<(Requests, Requested)> {
    let (sender, receiver) = mpsc::channel();
    let bell = Arc::new(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?);
    Ok((Requests { requests: sender, bell: Arc::clone(&bell) }, Requested { requests: receiver, bell }))
}

impl Requests {
    /// Asks for something.
    ///
    /// # Errors
    /// Nobody will do it.
    pub fn send(&self, request: Request) -> Result<(), Ended> {
        self.requests.send(request).map_err(|_| Ended)?;
        // Full only when it has rung very often: it will be heard.
        let _ = rustix::io::write(&*self.bell, &1u64.to_ne_bytes());
        Ok(())
    }

    /// Asks for something, and waits for the answer.
    ///
    /// # Errors
    /// There is none to come.
    pub fn ask<T>(&self, request: impl FnOnce(mpsc::Sender<T>) -> Request) -> Result<T, Ended> {
        let (reply, answer) = mpsc::channel();
        self.send(request(reply))?;
        answer.recv().map_err(|_| Ended)
    }
}

impl Requested {
    /// The next one, if one is there.
    pub(super) fn next(&self) -> Result<Request, mpsc::TryRecvError> {
        self.requests.try_recv()
    }

    /// The next one, as soon as it is there.
    pub(super) fn wait(&self, patience: Duration) -> Result<Request, mpsc::RecvTimeoutError> {
        self.requests.recv_timeout(patience)
    }

    /// What can be read when there are some.
    pub(super) fn bell(&self) -> &OwnedFd {
        &self.bell
    }

    /// Those that are there now will be taken.
    pub(super) fn heard(&self) {
        let _ = rustix::io::read(&*self.bell, &mut [0; 8]);
    }
}
