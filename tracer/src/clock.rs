//! The clock by which the tracer and the kernel's events agree.

/// Nanoseconds of CLOCK_MONOTONIC, the clock of the events.
pub fn monotonic() -> u64 {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}
