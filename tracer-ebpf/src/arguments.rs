//! What a call asks for, by its arguments: which of them says what, the cookie of its probe tells.

use aya_ebpf::programs::ProbeContext;
use tracer_ebpf::{SIZE_OVERFLOW, entry};

use crate::{
    strings,
    thread::{CALL_OR_MORE, CALL_UNMEASURED, Thread},
};

/// In the place of an argument that no function has: [`CALL_UNMEASURED`], or 0.
const UNMEASURED: usize = 6;

/// Allocations smaller than this are not recorded. Set by user space before loading.
#[unsafe(no_mangle)]
static MIN_SIZE: u64 = 0;
/// Allocations larger than this are not recorded. Set by user space before loading.
#[unsafe(no_mangle)]
static MAX_SIZE: u64 = u64::MAX;

/// Takes the arguments of a call down. In map memory: the verifier would go through all that follows once for each way to choose
/// among them.
#[inline(always)]
pub(crate) fn read(ctx: &ProbeContext, thread: &mut Thread, cookie: u64) {
    let arguments = &mut thread.arguments;
    for (number, argument) in arguments.iter_mut().enumerate().skip(1).take(entry::ARGUMENTS) {
        *argument = ctx.arg(number - 1).unwrap_or(0);
    }
    arguments[entry::ONE as usize] = 1;
    let number = cookie >> entry::STRING & entry::ARGUMENT;
    (arguments[entry::NONE as usize], arguments[UNMEASURED]) = (0, 0);
    if number == 0 {
        return;
    }
    let most = if cookie & entry::BOUNDED == 0 { u64::MAX } else { argument(thread, number + 1) };
    let string = argument(thread, number);
    let measured = strings::measure(string, most);
    let arguments = &mut thread.arguments;
    arguments[entry::MEASURED as usize] = measured;
    if measured == strings::UNKNOWN {
        // It may be the call itself that brings it into memory. What is known stands for the block and the size.
        arguments[entry::NONE as usize] = string;
        arguments[entry::MEASURED as usize] = most;
        arguments[UNMEASURED] = u64::from(CALL_UNMEASURED);
    }
}

/// [`CALL_UNMEASURED`] if a call copies a string that could not be measured, else 0.
#[inline(always)]
pub(crate) fn unmeasured(thread: &Thread) -> u32 {
    core::hint::black_box(thread.arguments[UNMEASURED]) as u32
}

/// [`CALL_OR_MORE`] if a call that leaves the block where it is would take more than it asks for, else 0; nothing of others.
#[inline(always)]
pub(crate) fn or_more(thread: &Thread) -> u32 {
    core::hint::black_box(u32::from(argument(thread, 3) != 0)) * CALL_OR_MORE
}

/// Bytes that a call asks for.
#[inline(always)]
pub(crate) fn size(thread: &Thread, cookie: u64) -> u64 {
    // Without a branch. What takes words is for small blocks.
    let words = (cookie >> entry::WORDS & 1) * 3;
    product(argument(thread, cookie >> entry::COUNT), argument(thread, cookie >> entry::SIZE)) << words
}

/// The block that a call resizes; 0: none.
#[inline(always)]
pub(crate) fn old_block(thread: &Thread, cookie: u64) -> u64 {
    let copies = entry::ARGUMENT << entry::STRING;
    if cookie & (entry::STORED | copies) != 0 { 0 } else { argument(thread, cookie >> entry::BLOCK) }
}

/// Whether blocks of this size are of interest.
#[inline(always)]
pub(crate) fn is_wanted(size: u64) -> bool {
    // SAFETY: reads of globals that user space wrote before loading.
    let (min, max) =
        unsafe { (core::ptr::read_volatile(&raw const MIN_SIZE), core::ptr::read_volatile(&raw const MAX_SIZE)) };
    size >= min && size <= max
}

/// The argument of this number.
#[inline(always)]
pub(crate) fn argument(thread: &Thread, number: u64) -> u64 {
    thread.arguments[(core::hint::black_box(number) & entry::ARGUMENT) as usize]
}

/// `count * size`, or [`SIZE_OVERFLOW`]. By halves: BPF has no 128-bit product, which a plain check compiles to.
#[inline(always)]
fn product(count: u64, size: u64) -> u64 {
    let (count_high, count_low) = (count >> 32, count & 0xffff_ffff);
    let (size_high, size_low) = (size >> 32, size & 0xffff_ffff);
    if count_high != 0 && size_high != 0 {
        return SIZE_OVERFLOW;
    }
    let cross = count_high * size_low + count_low * size_high;
    if cross >> 32 != 0 {
        return SIZE_OVERFLOW;
    }
    let low = count_low * size_low;
    let sum = low.wrapping_add(cross << 32);
    if sum < low { SIZE_OVERFLOW } else { sum }
}
