//! Priorities of tracer's own threads, as nice values: what somebody waits for goes before what others do for a moment.
//!
//! None goes behind others. A thread that does may be without a processor for a second on a busy machine, and all others wait for it
//! as long as it holds a lock of the process: that of its mappings, in the kernel, or one of malloc's. What nobody waits for takes
//! breaks instead.

/// Of a thread that little is done by at a time, and whose delay costs stacks or records.
pub const URGENT: i32 = -10;
/// Of any other.
pub const NORMAL: i32 = 0;

/// Gives the current thread a priority. Not everybody may: then it stays as it is.
pub fn set_own(nice: i32) {
    if let Err(error) = rustix::process::setpriority_process(Some(rustix::thread::gettid()), nice) {
        tracing::trace!("cannot set a priority: {error}");
    }
}
