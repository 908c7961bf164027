//! The clock by which the tracer and the kernel's events agree, and that of what a thread takes of a processor.

use std::{sync::LazyLock, time::Duration};

/// Nanoseconds of CLOCK_MONOTONIC, the clock of the events. The kernel's events have that of the machine, also where this
/// process is in a time namespace, whose clock is another one.
pub fn monotonic() -> u64 {
    static OFFSET: LazyLock<i64> = LazyLock::new(|| {
        offset(&std::fs::read_to_string("/proc/self/timens_offsets").unwrap_or_default()).unwrap_or_default()
    });
    let time = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    (time.tv_sec as u64).saturating_mul(SECOND).saturating_add(time.tv_nsec as u64).saturating_add_signed(-*OFFSET)
}

/// Time of a processor that the calling thread has taken.
pub fn processor_time() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    Duration::new(time.tv_sec.unsigned_abs(), time.tv_nsec.unsigned_abs() as u32)
}

/// How long ago a process began, by the clock ticks since boot that the kernel tells of its start in /proc: to a tick.
pub fn age(start: u64) -> Duration {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    let now = Duration::new(now.tv_sec.unsigned_abs(), now.tv_nsec.unsigned_abs() as u32);
    now.saturating_sub(Duration::from_secs_f64(start as f64 / rustix::param::clock_ticks_per_second() as f64))
}

const SECOND: u64 = 1_000_000_000;

/// By how many nanoseconds CLOCK_MONOTONIC of a time namespace is ahead of the machine's, from
/// `/proc/PID/timens_offsets` (time_namespaces(7)): lines of a clock's name, seconds and nanoseconds.
fn offset(text: &str) -> Option<i64> {
    let line = text.lines().find_map(|line| line.strip_prefix("monotonic"))?;
    let mut numbers = line.split_whitespace().map(str::parse::<i64>);
    let (seconds, nanoseconds) = (numbers.next()?.ok()?, numbers.next()?.ok()?);
    seconds.checked_mul(SECOND as i64)?.checked_add(nanoseconds).filter(|offset| *offset != i64::MIN)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_as_old_as_it_is() {
        let before = std::time::Instant::now();
        let mut child = std::process::Command::new("sleep").arg("1000").spawn().unwrap();
        std::thread::sleep(Duration::from_millis(50));
        // Field 22 of proc_pid_stat(5); its name may be that of this program still, which has no space in it.
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", child.id())).unwrap();
        let start = stat.split_whitespace().nth(21).unwrap().parse().unwrap();
        let age = age(start);
        // A tick is 10 ms, and what is told of a start is rounded down.
        let most = before.elapsed() + Duration::from_millis(10);
        assert!(Duration::from_millis(50) <= age && age <= most, "{age:?}, {most:?}");
        child.kill().unwrap();
        child.wait().unwrap();
    }

    #[test]
    fn offsets_of_a_time_namespace() {
        let text = |seconds: &str| format!("monotonic  {seconds}         5\nboottime       77777         0\n");
        assert_eq!(offset(&text("86400")), Some(86_400_000_000_005));
        assert_eq!(offset(&text("-7")), Some(-6_999_999_995));
        for garbage in ["", "monotonic", "monotonic x y", "boottime 1 1", &text("9223372036854775807")] {
            assert_eq!(offset(garbage), None, "{garbage:?}");
        }
    }
}
