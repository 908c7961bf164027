//! Sending records, and accounting for those that could not be sent.
//!
//! Short records go into the [`queue`], longer ones into the ring buffer. The reader comes by itself every few hundredths of a second, so
//! no event pays for a wake-up; small buffers could be full by then, so there the reader is woken when what is unread crosses a threshold.

use core::ffi::c_void;

use aya_ebpf::{
    bindings::{
        BPF_ANY, BPF_F_NO_PREALLOC, BPF_NOEXIST, BPF_RB_AVAIL_DATA, BPF_RB_FORCE_WAKEUP, BPF_RB_NO_WAKEUP,
        BPF_RB_RING_SIZE,
    },
    helpers::{
        bpf_get_current_comm, bpf_ktime_get_ns,
        generated::{bpf_ringbuf_output, bpf_ringbuf_query},
    },
    macros::map,
    maps::{Array, HashMap, RingBuf},
};
use tracer_ebpf::{
    Began, BlockKey, Header, Loss, MAX_LOST_BEGINNINGS, Remapping, Slot, Target, Whose,
    golang::Sample,
    kind,
    unwind::{FileKey, Loaded, UnknownFile},
};

use crate::queue;

/// Long records, in the order in which the queue has them or nearly so. Its size is set by user space before loading.
#[map]
static EVENTS: RingBuf = RingBuf::with_byte_size(1 << 20, 0);

/// Addresses whose free could not be sent, with the time of that free.
#[map]
static LOST_FREES: HashMap<BlockKey, u64> = HashMap::with_max_entries(1 << 18, BPF_F_NO_PREALLOC);

/// Beginnings of images that could not be sent, by image: user space takes them from here.
#[map]
static LOST_BEGINNINGS: HashMap<u32, Began> = HashMap::with_max_entries(MAX_LOST_BEGINNINGS, BPF_F_NO_PREALLOC);

#[map]
static LOSS: Array<Loss> = Array::with_max_entries(1, 0);

/// How many calls of an image there were whose outcome was not seen, where there were any: user space may learn that it is none of the
/// trace. Of further images they stay counted.
#[map]
static UNSEEN: HashMap<u32, u64> = HashMap::with_max_entries(1 << 12, BPF_F_NO_PREALLOC);

/// Unread bytes of the ring buffer at which the reader is woken, and how many of the queue pass between two times that it is, a power of two;
/// 0: never, it comes often enough by itself. Set by user space before loading.
#[unsafe(no_mangle)]
static WAKEUP_BYTES: u64 = 1 << 18;

/// Adds to one field of the loss counters.
macro_rules! count_loss {
    ($field:ident, $n:expr) => {
        if let Some(loss) = crate::emit::loss() {
            // SAFETY: the pointer comes from a map lookup and stays valid for the run of the program.
            unsafe { crate::emit::atomic_add(&raw mut (*loss).$field, $n) };
        }
    };
}
pub(crate) use count_loss;

/// Adds atomically: programs on other CPUs count in the same word.
///
/// # Safety
/// `counter` points into a map value.
#[inline(always)]
pub(crate) unsafe fn atomic_add(counter: *mut u64, n: u64) {
    // core's atomics need compare-and-swap, which the BPF target does not claim to have.
    // SAFETY: the caller gives a valid counter; the instruction touches nothing else.
    unsafe { core::arch::asm!("lock *(u64 *)({0} + 0) += {1}", in(reg) counter, in(reg) n, options(nostack)) };
}

/// Adds 1 atomically, and gives the sum.
///
/// # Safety
/// As [`atomic_add`].
#[inline(always)]
pub(crate) unsafe fn atomic_next(counter: *mut u64) -> u64 {
    let mut n = 1u64;
    // SAFETY: as above.
    unsafe {
        core::arch::asm!("{1} = atomic_fetch_add((u64 *)({0} + 0), {1})", in(reg) counter, inout(reg) n, options(nostack));
    }
    n.wrapping_add(1)
}

/// Counts a call of an image whose outcome is not seen. A global function: it is verified once.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn outcome_unseen(image: u32) -> u32 {
    count_loss!(outcomes_unseen, 1);
    if UNSEEN.insert(image, 1, u64::from(BPF_NOEXIST)).is_err()
        && let Some(count) = UNSEEN.get_ptr_mut(image)
    {
        // SAFETY: the pointer comes from a map lookup.
        unsafe { atomic_add(count, 1) };
    }
    0
}

#[inline(always)]
pub(crate) fn loss() -> Option<*mut Loss> {
    LOSS.get_ptr_mut(0)
}

/// Sends `size` bytes at `data`; false when the ring buffer is full.
#[inline(always)]
pub(crate) fn send_bytes(data: *const c_void, size: u64) -> bool {
    output(data, size, wakeup(size))
}

/// Sends what is worth nothing if it comes late: the reader is woken unless it has something to read already.
#[inline(always)]
pub(crate) fn send_for_now(data: *const c_void, size: u64) -> bool {
    output(data, size, 0)
}

#[inline(always)]
fn wakeup_bytes() -> u64 {
    // SAFETY: a read of a global that user space wrote before loading.
    unsafe { core::ptr::read_volatile(&raw const WAKEUP_BYTES) }
}

/// Whether the reader is to be woken by a record of `size` bytes.
#[inline(always)]
fn wakeup(size: u64) -> u32 {
    let threshold = wakeup_bytes();
    let ring = (&raw const EVENTS).cast_mut().cast::<c_void>();
    let mut flags = BPF_RB_NO_WAKEUP;
    if threshold != 0 {
        // SAFETY: `ring` is a ring buffer map.
        let unread = unsafe { bpf_ringbuf_query(ring, u64::from(BPF_RB_AVAIL_DATA)) };
        // Only the record that crosses the threshold wakes; two that cross at once may both miss, the timer covers that.
        if unread < threshold && unread + size + 8 >= threshold {
            flags = BPF_RB_FORCE_WAKEUP;
        }
    }
    flags
}

/// Whether more than half of the ring buffer is free: what is not needed at any price leaves the rest to what is.
#[inline(always)]
pub(crate) fn has_much_room() -> bool {
    let ring = (&raw const EVENTS).cast_mut().cast::<c_void>();
    // SAFETY: `ring` is a ring buffer map.
    unsafe {
        bpf_ringbuf_query(ring, u64::from(BPF_RB_AVAIL_DATA)) < bpf_ringbuf_query(ring, u64::from(BPF_RB_RING_SIZE)) / 2
    }
}

/// A record in the ring buffer, with its place in the queue.
#[inline(always)]
fn output(data: *const c_void, size: u64, flags: u32) -> bool {
    // Before it is sent: there is an order of those of one thread.
    let Some(place) = queue::claim(1) else { return false };
    let sent = to_ring(data, size, flags);
    // SAFETY: every record begins with one.
    queue::fill(place, unsafe { *data.cast::<Header>() }, sent);
    ring_bell(place);
    sent
}

#[inline(always)]
fn to_ring(data: *const c_void, size: u64, flags: u32) -> bool {
    let ring = (&raw const EVENTS).cast_mut().cast::<c_void>();
    // SAFETY: the callers give `size` readable bytes.
    unsafe { bpf_ringbuf_output(ring, data.cast_mut(), size, u64::from(flags)) == 0 }
}

#[inline(always)]
fn send<T>(record: &T) -> bool {
    send_bytes((&raw const *record).cast(), size_of::<T>() as u64)
}

/// A record of one word in the queue.
#[inline(always)]
fn put(header: Header, word: u64) -> bool {
    let Some(slot) = queue::add(header, word) else { return false };
    ring_bell(slot);
    true
}

/// A record of three words in the queue.
#[inline(always)]
fn put_long(header: Header, words: [u64; 3]) -> bool {
    let Some(slot) = queue::add_long(header, words) else { return false };
    ring_bell(slot);
    true
}

/// Wakes the reader if this slot is one at which it is woken: so many are between two of them that it is never too late.
#[inline(always)]
fn ring_bell(slot: u64) {
    let threshold = wakeup_bytes() / size_of::<Slot>() as u64;
    // A power of two, as all of the queue is; a record of two slots may step over it.
    if threshold != 0 && slot & threshold.wrapping_sub(1) < 2 {
        let bell = Header::new(kind::BELL, 0, 0, 0);
        to_ring((&raw const bell).cast(), size_of::<Header>() as u64, BPF_RB_FORCE_WAKEUP);
    }
}

#[inline(always)]
pub(crate) fn now() -> u64 {
    // SAFETY: no arguments.
    unsafe { bpf_ktime_get_ns() }
}

/// The time of the blocks that follow.
#[inline(always)]
pub(crate) fn time(time: u64) -> bool {
    put(Header::new(kind::TIME, 0, 0, 0), time)
}

/// A new block; when it came is what the last time says that was told.
#[inline(always)]
pub(crate) fn block(header: Header, addr: u64, size: u64, stack: u64) -> bool {
    put_long(header, [addr, size, stack])
}

/// A block of so many bytes cannot be told.
#[inline(always)]
pub(crate) fn lost_block(size: u64) {
    count_loss!(allocs, 1);
    count_loss!(alloc_bytes, size);
}

/// There is no room to remember a sampled block of so many bytes.
#[inline(always)]
pub(crate) fn no_room_for_sample(size: u64) {
    count_loss!(samples, 1);
    count_loss!(sample_bytes, size);
}

/// A sampled object of a Go program.
#[inline(always)]
pub(crate) fn sample(sample: &Sample) {
    if !send(sample) {
        lost_block(sample.size);
    }
}

/// The end of a block, or a step of a realloc that ends one. When it cannot be sent, its address is kept in a set.
#[inline(always)]
pub(crate) fn end_of_block(header: Header, target: &Target, addr: u64) -> bool {
    let sent = put(header, addr);
    if !sent {
        lost_free(target, addr);
    }
    sent
}

/// A block that was told is a part of another one, which will be told. When that cannot be sent, it counts as a lost free.
#[inline(always)]
pub(crate) fn part_of_a_block(header: Header, target: &Target, addr: u64, size: u64) {
    if !put_long(header, [addr, size, 0]) {
        lost_free(target, addr);
    }
}

/// Keeps the address of a free that could not be sent. It is there before it is counted: user space looks for it when the count has changed.
#[inline(always)]
pub(crate) fn lost_free(target: &Target, addr: u64) {
    let time = now();
    let key = BlockKey { addr, image: target.image, reserved: 0 };
    if LOST_FREES.insert(key, time, u64::from(BPF_ANY)).is_err() {
        lost_without_trace(time);
    }
    count_loss!(frees, 1);
}

/// Frees were lost, and not even their addresses are known.
#[inline(always)]
fn lost_without_trace(time: u64) {
    if let Some(loss) = loss() {
        // SAFETY: the pointer comes from a map lookup. Two CPUs may race; their times differ by less than the
        // resolution with which user space keeps the age of a block.
        unsafe { core::ptr::write_volatile(&raw mut (*loss).frees_unrecorded_time, time) };
    }
    count_loss!(frees_unrecorded, 1);
}

/// All blocks of some heap are about to end.
#[inline(always)]
pub(crate) fn ends_at_once(header: Header) {
    let time = now();
    if !put(header, time) {
        lost_without_trace(time);
    }
}

/// An old block whose lost realloc did not end it after all.
#[inline(always)]
pub(crate) fn not_lost(target: &Target, addr: u64) {
    let key = BlockKey { addr, image: target.image, reserved: 0 };
    let _ = LOST_FREES.remove(key);
}

/// The outcome of a failed realloc: the block lives on. Lost, it counts as a lost allocation.
#[inline(always)]
pub(crate) fn survivor(header: Header, target: &Target, addr: u64) {
    if !put(header, addr) {
        count_loss!(allocs, 1);
        lost_free(target, addr);
    }
}

/// A file of which nothing is known; whether it could be sent. The reader is woken: until it has looked, stacks end there.
#[inline(always)]
pub(crate) fn unknown_file(record: &UnknownFile) -> bool {
    output((&raw const *record).cast(), size_of::<UnknownFile>() as u64, BPF_RB_FORCE_WAKEUP)
}

/// Code of a file that a process has mapped.
#[inline(always)]
pub(crate) fn loaded(record: &Loaded) {
    if !send(record) {
        count_loss!(moments, 1);
    }
}

/// A change of what a process has mapped.
#[inline(always)]
pub(crate) fn remapping(record: &Remapping) {
    if !send(record) {
        count_loss!(remappings, 1);
    }
}

/// The end of a thread or a process.
#[inline(always)]
pub(crate) fn moment(header: Header) {
    moment_of(header, now());
}

/// The same with another time than now.
#[inline(always)]
pub(crate) fn moment_of(header: Header, time: u64) {
    if !put(header, time) {
        count_loss!(moments, 1);
    }
}

/// What has become of the record of a beginning.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Told {
    /// It is on its way.
    Sent,
    /// It found the ring buffer full, and is kept until user space looks.
    Kept,
    /// Nobody will hear of it.
    Lost,
}

/// The beginning of the image of process `pid`, which came from `parent`. The reader is woken: until it has looked at a new program,
/// that may go unseen.
#[inline(always)]
pub(crate) fn began(header: Header, pid: u32, parent: u32, program: FileKey, whose: Whose) -> Told {
    let comm = bpf_get_current_comm().unwrap_or([0; 16]);
    let began = Began { header, time: now(), pid, parent, comm, program, whose };
    if output((&raw const began).cast(), size_of::<Began>() as u64, BPF_RB_FORCE_WAKEUP) {
        return Told::Sent;
    }
    let kept = LOST_BEGINNINGS.insert(header.image(), began, u64::from(BPF_ANY)).is_ok();
    // After it is there.
    count_loss!(processes, 1);
    if kept { Told::Kept } else { Told::Lost }
}
