//! Calls that end all blocks of a heap at once: an arena that is reset, a heap or a pool that is destroyed. Which blocks those are is not
//! known, only that there are such.

use aya_ebpf::{helpers::bpf_get_current_pid_tgid, programs::ProbeContext};
use tracer_ebpf::{Header, entry::at_once, kind};

use crate::{emit, inflight::read_word, process, strings};

/// Bytes of the longest name that is looked at, more or less.
const LONGEST: u64 = 64;

/// Entry of a function that may do that, of which the cookie tells what [`at_once`] says.
#[inline(always)]
pub(crate) fn enter(ctx: &ProbeContext, cookie: u64) {
    let pid_tgid = bpf_get_current_pid_tgid();
    let Some(target) = process::target(pid_tgid) else { return };
    let ends = match cookie {
        at_once::NAMED => is_named(ctx.arg(0).unwrap_or(0)),
        at_once::NUMBERED => is_numbered(ctx),
        _ => true,
    };
    if ends {
        emit::ends_at_once(Header::new(kind::AT_ONCE, target.image, 0, pid_tgid));
    }
}

/// Whether a name of jemalloc's is `arena.NUMBER.reset` or `arena.NUMBER.destroy`. One that cannot be read may be.
#[inline(always)]
fn is_named(name: u64) -> bool {
    let length = strings::measure(name, LONGEST);
    if length == strings::UNKNOWN {
        return true;
    }
    let begin = read_word(name).unwrap_or(0).to_le_bytes();
    // Its end included.
    let end = read_word(name.wrapping_add(length).wrapping_sub(8)).unwrap_or(0);
    let ends = end >> 8 == u64::from_le_bytes(*b".reset\0\0") || end == u64::from_le_bytes(*b"destroy\0");
    ends && begin[0] == b'a' && begin[4] == b'a' && begin[5] == b'.'
}

/// The same of `mallctlbymib(numbers, count, ...)`: nothing is asked for and nothing is set by either, which have these numbers since
/// jemalloc 5.
#[inline(always)]
fn is_numbered(ctx: &ProbeContext) -> bool {
    const RESET: u64 = 3;
    const DESTROY: u64 = 4;
    let argument = |n| ctx.arg::<u64>(n).unwrap_or(0);
    if argument(1) != 3 || argument(2) != 0 || argument(4) != 0 {
        return false;
    }
    // What cannot be read may be.
    let last = read_word(argument(0).wrapping_add(16)).unwrap_or(RESET);
    last == RESET || last == DESTROY
}
