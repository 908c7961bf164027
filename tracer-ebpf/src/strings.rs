//! How long strings are of which a call makes a copy: no argument tells.

use core::ffi::c_void;

use aya_ebpf::{
    helpers::{
        bpf_probe_read_user,
        generated::{bpf_loop, bpf_probe_read_user_str},
    },
    macros::map,
    maps::PerCpuArray,
};

/// Bytes that are read at once.
const PIECE: u64 = 4096;
/// How many of those are read: a string that is longer is not measured.
const PIECES: u32 = 512;
/// Where they are read to. Nobody looks at them, so another program that runs on the processor meanwhile does no harm.
#[map]
static PIECE_READ: PerCpuArray<[u8; PIECE as usize]> = PerCpuArray::with_max_entries(1, 0);

/// What [`measure`] says of a string that cannot be read, not at this moment at least, or is too long.
pub(crate) const UNKNOWN: u64 = u64::MAX - 1;

/// How far a string has been read.
struct Reading {
    at: u64,
    /// Bytes that may still be copied.
    left: u64,
    /// Bytes of the copy so far.
    bytes: u64,
    /// All of them; [`UNKNOWN`] until the end of the string was found.
    result: u64,
}

/// Bytes that a copy takes of a string of which at most so many are copied, its end included. A global function, as
/// [`judge`](crate::sampling::judge) is.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn measure(string: u64, most: u64) -> u64 {
    let mut reading = Reading { at: string, left: most, bytes: 0, result: UNKNOWN };
    // SAFETY: the callback is given a pointer that outlives the loop.
    unsafe { bpf_loop(PIECES, read_on as *mut c_void, (&raw mut reading).cast(), 0) };
    reading.result
}

/// Reads one more piece; 1 ends the loop. Never more than may be copied: what is behind that may not be there.
extern "C" fn read_on(_index: u64, reading: *mut Reading) -> i64 {
    // SAFETY: the loop passes on what it was given.
    let reading = unsafe { &mut *reading };
    let left = reading.left;
    if left <= 1 {
        // SAFETY: the helper checks the address.
        let last = if left == 0 { Ok(0) } else { unsafe { bpf_probe_read_user(reading.at as *const u8) } };
        if let Ok(last) = last {
            reading.result = reading.bytes + 1 + u64::from(last != 0);
        }
        return 1;
    }
    let Some(piece) = PIECE_READ.get_ptr_mut(0) else { return 1 };
    let size = if left < PIECE { left } else { PIECE };
    // SAFETY: the piece has room for so many bytes, and the helper checks the address.
    let read = unsafe { bpf_probe_read_user_str(piece.cast(), size as u32, reading.at as *const c_void) };
    if read <= 0 {
        return 1;
    }
    let read = read as u64;
    if read < size {
        reading.result = reading.bytes + read;
        return 1;
    }
    // The last byte was overwritten with an end.
    reading.at = reading.at.wrapping_add(size - 1);
    reading.bytes += size - 1;
    reading.left = left - (size - 1);
    0
}
