//! `/tmp/perf-PID.map`.

use tracer::space::perf_map;

use crate::input::take;

/// Addresses that are asked for, the first of which the input begins with: a name is bounded, whatever the file says.
pub fn run(data: &[u8]) {
    let (addr, text) = take(data);
    let functions = perf_map::parse(text).expect("memory can be read");
    let start = text.split(|byte| *byte == b' ').next().and_then(|digits| std::str::from_utf8(digits).ok());
    let start = start.and_then(|digits| u64::from_str_radix(digits, 16).ok()).unwrap_or_default();
    for addr in [u64::from_le_bytes(addr), start, start.wrapping_add(1), u64::MAX] {
        // 1024 bytes that are all replaced.
        assert!(functions.at(addr).is_none_or(|name| !name.is_empty() && name.len() <= 3 * 1024));
    }
}
