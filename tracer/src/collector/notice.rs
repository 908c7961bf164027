//! What the collector tells of its own accord.

use std::time::Duration;

use tracer_ebpf::unwind::FileKey;

use crate::event::{Beginning, Image};

/// What the collector tells of its own accord.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Notice {
    /// An image began.
    Began(Image, Beginning),
    /// The first thread of a process has ended, and others go on.
    FirstThreadEnded(Image),
    /// A process has ended.
    Ended {
        /// Its image.
        image: Image,
        /// The number of the signal that ended it, if one did that is known.
        signal: Option<u8>,
        /// How long it ran, as far as that is known.
        ran: Duration,
    },
    /// A process that worked on the memory of this image has ended, or become a program of its own, and may have allocated and freed there.
    SharerEnded(Image),
    /// All blocks of some heap of this image have ended at once.
    HeapEnded(Image),
    /// A return address of some process had to be left alone, and the outcome of a call was not seen for that.
    ReturnDeclined,
    /// The process of this image has mapped code of a file, at this time: nanoseconds of CLOCK_MONOTONIC.
    Loaded(Image, FileKey, u64),
    /// Libraries of a process have come or gone.
    Mapped(Image),
    /// An image is recorded that was only followed before, from this time on: nanoseconds of CLOCK_MONOTONIC.
    Resumed(Image, u64),
}
