//! Values of options: what is understood, and what is refused with a word on what to write instead.

use std::time::Duration;

use crate::{memory, select::Invalid};

/// Ids of processes that are given as one word.
#[derive(Clone, Debug)]
pub(super) struct Pids(pub(super) Vec<u32>);

/// The number of a user that is given by number or name.
pub(super) fn user_id(text: &str) -> Result<u32, Invalid> {
    if let Ok(number) = text.parse() {
        return Ok(number);
    }
    let found = nix::unistd::User::from_name(text).ok().flatten();
    found.map(|user| user.uid.as_raw()).ok_or_else(|| Invalid::User(text.to_owned()))
}

/// Ids with commas or spaces between them.
pub(super) fn pids(text: &str) -> Result<Pids, String> {
    let words = text.split(|c: char| c == ',' || c.is_ascii_whitespace()).filter(|word| !word.is_empty());
    let pids: Option<Vec<u32>> = words.map(id).collect();
    pids.filter(|pids| !pids.is_empty())
        .map(Pids)
        .ok_or_else(|| "write ids of processes, such as 4711 or 4711,4712".to_owned())
}

/// One id.
pub(super) fn pid(text: &str) -> Result<u32, &'static str> {
    id(text).ok_or("write the id of one process, such as 4711")
}

fn id(word: &str) -> Option<u32> {
    word.parse().ok().filter(|pid| *pid > 0 && !word.starts_with('+'))
}

pub(super) fn distinct(mut pids: Vec<u32>) -> Vec<u32> {
    let mut seen = Vec::new();
    pids.retain(|pid| {
        !seen.contains(pid) && {
            seen.push(*pid);
            true
        }
    });
    pids
}

/// Smallest and largest ring buffer, bytes.
const BUFFER_SIZES: (u64, u64) = (4096, 1 << 30);

pub(super) fn buffer_size(wanted: u64) -> Result<u32, &'static str> {
    if !(BUFFER_SIZES.0..=BUFFER_SIZES.1).contains(&wanted) {
        return Err("--buffer-size must be from 4KiB to 1GiB");
    }
    Ok(wanted.next_power_of_two() as u32)
}

/// Most memory that any machine has, bytes.
const MOST_MEMORY: u64 = 1 << 52;

pub(super) fn max_memory(wanted: Option<u64>) -> Result<u64, &'static str> {
    let bound = wanted.unwrap_or_else(memory::default_bound);
    if !(memory::LEAST..=MOST_MEMORY).contains(&bound) {
        return Err("--max-memory must be from 128MiB to 4096TiB");
    }
    Ok(bound)
}

/// Smallest and largest mean of bytes between samples.
const SAMPLES: (u64, u64) = (1, 1 << 30);

pub(super) fn sample(mean: u64) -> Result<u64, &'static str> {
    if !(SAMPLES.0..=SAMPLES.1).contains(&mean) {
        return Err("--sample must be from 1B to 1GiB");
    }
    Ok(mean)
}

/// Least and most that tracing may be allowed to cost, percent.
const OVERHEADS: (f64, f64) = (0.1, 1000.0);

/// A share that is given in percent.
pub(super) fn percent(text: &str) -> Result<f64, &'static str> {
    let number = text.strip_suffix('%').unwrap_or(text).trim();
    let percent: f64 = number.parse().map_err(|_| "write a number of percent, such as 5 or 0.5%")?;
    if !(OVERHEADS.0..=OVERHEADS.1).contains(&percent) {
        return Err("must be from 0.1% to 1000%");
    }
    Ok(percent / 100.0)
}

/// No time is as long: clocks can be added to it, and its nanoseconds counted.
const LONGEST: Duration = Duration::from_secs(10 * 365 * 24 * 60 * 60);
/// Shortest time between two reports. Each looks at every stack.
const SHORTEST_INTERVAL: Duration = Duration::from_millis(100);

/// With its unit, or seconds, as for `timeout` and most profilers.
pub(super) fn duration(text: &str) -> Result<Duration, String> {
    let is_plain = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    let in_seconds = is_plain.then(|| format!("{text}s"));
    let duration = humantime::parse_duration(in_seconds.as_deref().unwrap_or(text))
        .map_err(|error| format!("{error}; write a time with its unit, such as 500ms, 5s, 10m or 1h30m"))?;
    if duration.is_zero() {
        return Err("must be longer than nothing".to_owned());
    }
    if duration > LONGEST { Err("must be shorter than ten years".to_owned()) } else { Ok(duration) }
}

pub(super) fn interval(text: &str) -> Result<Duration, String> {
    duration(text).and_then(|interval| {
        if interval < SHORTEST_INTERVAL { Err("must be 100ms or longer".to_owned()) } else { Ok(interval) }
    })
}

pub(super) fn size(text: &str) -> Result<u64, String> {
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let shift = match unit.trim().to_ascii_lowercase().as_str() {
        "" | "b" => 0,
        "k" | "kb" | "kib" => 10,
        "m" | "mb" | "mib" => 20,
        "g" | "gb" | "gib" => 30,
        "t" | "tb" | "tib" => 40,
        _ => return Err("write a whole number of bytes with an optional unit, such as 4096, 64KiB or 16MiB".to_owned()),
    };
    let number: u64 = number.parse().map_err(|_| "write a whole number of bytes, such as 4096 or 64KiB".to_owned())?;
    number.checked_mul(1 << shift).ok_or_else(|| "is more than any address space holds".to_owned())
}
