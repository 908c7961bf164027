//! What is kept of each traced thread, from one of its calls to the next.

use aya_ebpf::{
    bindings::{BPF_F_NO_PREALLOC, BPF_NOEXIST},
    helpers::generated::bpf_jiffies64,
    macros::map,
    maps::{Array, HashMap},
};
use tracer_ebpf::{MAX_IN_FLIGHT, Remapping, Stack, TARGETS_CHANGE, Target};

use crate::{
    emit, epochs,
    frames::{Frames, KNOWN, Known, PLACES, Place, Walk},
};

/// What a loop works on: the state that outlives it.
#[repr(C)]
pub(crate) struct Context {
    pub(crate) thread: *mut Thread,
}

/// How a call gives its block back.
#[repr(u32)]
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Op {
    /// In the return register, or wherever an exit says that the block lies.
    Returned = 0,
    /// Through a pointer argument, with a return value of 0 on success (posix_memalign).
    Stored = 1,
    /// In the return register, and an old block ends unless the call fails.
    Realloc = 2,
}

/// One call in flight.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct Call {
    /// Stack pointer at the entry: where the return address lies.
    pub(crate) sp: u64,
    /// Bytes asked for.
    pub(crate) size: u64,
    /// Old block of a realloc, where posix_memalign stores its result, or the string of [`CALL_UNMEASURED`].
    pub(crate) pointer: u64,
    /// Return address, as it was before the kernel put its trampoline there.
    pub(crate) caller: u64,
    /// Id of the caller's stack.
    pub(crate) stack: u64,
    /// Stack pointer of the outermost frame of that stack; 0: not known.
    pub(crate) root: u64,
    /// The innermost call that it may be inside of: its stack pointer ([`u64::MAX`]: none), and its slot.
    pub(crate) outer: u64,
    pub(crate) outer_slot: u32,
    /// How many blocks were noted that may turn out to be what this call's block is made of: in [`Thread::parts`], as far as they fit.
    pub(crate) parts: u32,
    pub(crate) op: u32,
    /// `CALL_` bits; from bit 16 on the number of its function.
    pub(crate) flags: u32,
}

/// A block that was allocated inside of a call.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct PartBlock {
    pub(crate) addr: u64,
    pub(crate) size: u64,
}

/// A call that was left out where allocations are sampled.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct LeftOut {
    /// Stack pointer at its entry; 0: none.
    pub(crate) sp: u64,
    /// Its return address.
    pub(crate) caller: u64,
    /// Bytes asked for.
    pub(crate) size: u64,
    /// Number of its function.
    pub(crate) function: u64,
}

/// How many of those are remembered.
pub(crate) const LEFT_OUT: usize = 8;

/// How many of those are kept of one call: the first and the last ones.
pub(crate) const PARTS: usize = 8;

/// The new block is of no interest (outside the size filter).
pub(crate) const CALL_UNWANTED: u32 = 1;
/// The record that takes the old block out was lost.
pub(crate) const CALL_TAKE_LOST: u32 = 2;
/// The return slot is left as it is: the outcome is seen at an instruction.
pub(crate) const CALL_PLAIN_RETURN: u32 = 4;
/// It may end without an outcome that is seen, and then it has allocated nothing (an exception, NULL).
pub(crate) const CALL_MAY_VANISH: u32 = 8;
/// It was taken as a sample unless it is a part of a call that was not.
pub(crate) const CALL_MAY_BE_INSIDE: u32 = 16;
/// It copies a string that could not be read when it began: `pointer`, at most `size` bytes of it.
pub(crate) const CALL_UNMEASURED: u32 = 32;
/// The block stays where it is: see [`entry::IN_PLACE`](tracer_ebpf::entry::IN_PLACE).
pub(crate) const CALL_IN_PLACE: u32 = 64;
/// More than the size would be taken: the result says how much.
pub(crate) const CALL_OR_MORE: u32 = 128;

/// Of a look at all calls in flight: what is looked for, and what was found. In map memory: on the BPF stack the verifier
/// would tell every case from every other.
#[repr(C)]
pub(crate) struct Search {
    /// Stack pointer at the entry of the new call.
    pub(crate) sp: u64,
    /// What is in its return slot, and its return address.
    pub(crate) in_slot: u64,
    pub(crate) caller: u64,
    /// Number of its function and [`CALL_PLAIN_RETURN`], as in a call's flags.
    pub(crate) flags: u64,
    /// How it stands to a call that is at the same address.
    pub(crate) same: u64,
    /// Lowest stack pointer of a call that the new one may be inside of, and its index.
    pub(crate) outer: u64,
    pub(crate) outer_index: u64,
    /// Index that was found or decided on.
    pub(crate) found: u64,
    /// In the kernel's list of return addresses that it has taken out.
    pub(crate) instance: u64,
    pub(crate) wanted: u64,
    pub(crate) wanted_root: u64,
}

/// A system call that changes mappings, from when it has the lock of them to when it gives that back.
#[repr(C)]
pub(crate) struct Remapper {
    /// Its number, and 1; 0: there is none.
    pub(crate) call: u64,
    /// The arguments that it was made with.
    pub(crate) arguments: [u64; 5],
    /// The mapping at the address that is its first argument, as it was before: its end (0: there was none), its beginning, what may be
    /// done, and where the kernel had it.
    pub(crate) end: u64,
    pub(crate) start: u64,
    pub(crate) flags: u64,
    pub(crate) area_at: u64,
    /// Where that address is in its file, or, of memory, where it was once.
    pub(crate) offset: u64,
    /// Of mprotect: up to where what is there may be used already as it is to be; [`u64::MAX`]: too far to be told.
    pub(crate) alike: u64,
    /// Of a look at mappings that follow each other: where it is, where it ends, and whether they may be used; and whether it has come to
    /// an end.
    pub(crate) at: u64,
    pub(crate) last: u64,
    pub(crate) used: u64,
    pub(crate) over: u64,
    /// Not 0 if one of these is a file's.
    pub(crate) files: u64,
    /// Where the program break was.
    pub(crate) program_break: u64,
    /// The room that the kernel has found last, and before that: where it begins, and how long it is.
    pub(crate) rooms: [(u64, u64); 2],
    /// Stack pointer of the caller.
    pub(crate) sp: u64,
    /// What is told of it.
    pub(crate) record: Remapping,
}

/// State of one thread. Owned by that thread: nothing else touches it until the thread has ended.
#[repr(C)]
pub(crate) struct Thread {
    /// In [`SLOTS`], the thread that this is of; 0: none.
    pub(crate) owner: u64,
    /// Calls in flight, in no order.
    pub(crate) calls: [Call; MAX_IN_FLIGHT],
    /// Blocks that were allocated inside of them, [`PARTS`] places for each.
    pub(crate) parts: [PartBlock; MAX_IN_FLIGHT * PARTS],
    /// Which of the slots hold one, a bit for each.
    pub(crate) used: u32,
    /// The slot that was filled last.
    pub(crate) last: u32,
    /// Calls that were given up for want of room and return through the trampoline, if they do.
    pub(crate) given_up: u64,
    /// Return addresses that the kernel was told to take out and that have not come back; never too low.
    pub(crate) taken: u64,
    pub(crate) search: Search,
    /// Arguments of the call that comes in, by their numbers, what it copies of a string, and 1 in the last place.
    pub(crate) arguments: [u64; 8],
    /// Its process, as it was known at `epoch`.
    pub(crate) target: Target,
    /// Count of changes at which `target` was looked up; see [`refresh`](crate::process::refresh).
    pub(crate) epoch: u64,
    /// The kernel's count of timer ticks when `time` was read.
    pub(crate) tick: u64,
    /// Nanoseconds of CLOCK_MONOTONIC.
    pub(crate) time: u64,
    /// The time that was told last, which others may have told of since.
    pub(crate) told: u64,
    /// Bytes that its goroutines may still allocate before an object is sampled; 0: not drawn yet.
    pub(crate) go_left: u64,
    /// The same of its allocations of C, C++ and Rust.
    pub(crate) left: u64,
    /// Its latest calls that were left out, in a ring, and how many there have been.
    pub(crate) left_out: [LeftOut; LEFT_OUT],
    pub(crate) left_out_next: u64,
    /// Bytes that its call asks for which comes in, where it is taken.
    pub(crate) asked: u64,
    /// Stack pointers of those who made the calls that were left out, where that may be inside of one; 1 and the
    /// function of the one that it is.
    pub(crate) outer_frames: [u64; LEFT_OUT],
    pub(crate) outer_found: u64,
    /// What it is about to map or unmap.
    pub(crate) remapper: Remapper,
    /// Address of the kernel's code that return probes return to; 0 when it is not known.
    pub(crate) trampoline: u64,
    /// Mappings that were found, by the last bits of a page's number.
    pub(crate) known: [Known; KNOWN],
    /// Addresses that walks came to, two by two.
    pub(crate) places: [Place; PLACES],
    /// Up to which count of mappings that may be code ([`epochs::changes`](crate::epochs::changes)) it has looked what they are.
    pub(crate) looked_for_code: u64,
    /// Part of the tag: another one for each thread that this was the state of.
    pub(crate) salt: u64,
    /// Where a stack is assembled. Not per CPU: a preempted program would find another thread's frames in it.
    pub(crate) stack: Stack,
    pub(crate) walk: Walk,
    pub(crate) frames: Frames,
}

impl Thread {
    /// Makes a slot that another thread may have had that of a new thread. What is only read after it was written stays.
    #[inline(always)]
    fn take(&mut self, owner: u64) {
        // Of unknown value: the compiler would make a call of zeroing them, which goes byte by byte.
        let zero = core::hint::black_box(0u64);
        (self.owner, self.epoch, self.tick, self.told) = (owner, TARGETS_CHANGE, zero, zero);
        (self.used, self.last) = (zero as u32, zero as u32);
        (self.given_up, self.taken, self.go_left) = (zero, zero, zero);
        (self.left, self.left_out_next, self.left_out[LEFT_OUT - 1].sp) = (zero, zero, zero);
        self.frames.cached = zero;
        (self.frames.tag, self.trampoline, self.remapper.call) = (zero, zero, zero);
        // What was there when a further thread began is for others to tell.
        let (tgid, tid) = ((owner >> 32) as u32, owner as u32);
        self.looked_for_code = if tgid == tid { zero } else { epochs::changes(tgid).unwrap_or(zero) };
        self.void();
    }

    /// Has nothing hold any more that was found out before.
    #[inline(always)]
    pub(crate) fn void(&mut self) {
        self.salt = self.salt.wrapping_add(SALT);
    }

    /// The time of the first call of this in the present timer tick, nanoseconds of CLOCK_MONOTONIC. Reading the clock
    /// costs as much as sending a record; reading the count of ticks is a load.
    #[inline(always)]
    pub(crate) fn now(&mut self) -> u64 {
        // SAFETY: no arguments.
        let tick = unsafe { bpf_jiffies64() };
        if self.tick != tick {
            self.tick = tick;
            self.time = emit::now();
        }
        self.time
    }

    /// Has what is told from now on be of the present timer tick; whether it is. Told the first time in each.
    #[inline(always)]
    pub(crate) fn tell_time(&mut self) -> bool {
        let time = self.now();
        if self.told != time && emit::time(time) {
            self.told = time;
        }
        self.told == time
    }
}

// What the kernel keeps of one takes up to 64 KiB, with its own: beyond that it would be twice as much (`--max-memory`).
const _: () = assert!(size_of::<Thread>() <= (64 << 10) - 128);

/// Step of [`Thread::salt`]: above the counts that are added to it.
pub(crate) const SALT: u64 = 1 << 48;

/// How many threads need no search.
pub(crate) const SLOT_COUNT: u32 = 128;

/// State of threads by the last bits of their ids, of the first thread to come with those: a look-up is a few loads, a
/// search in a hash map costs as much as sending a record.
#[map]
static SLOTS: Array<Thread> = Array::with_max_entries(SLOT_COUNT, 0);

/// Which thread a slot was given to.
#[map]
static OWNERS: HashMap<u32, u64> = HashMap::with_max_entries(SLOT_COUNT, 0);

/// State of all other threads.
#[map]
static THREADS: HashMap<u64, Thread> = HashMap::with_max_entries(1 << 16, BPF_F_NO_PREALLOC);

/// One zeroed thread, to insert from: it would not fit on the BPF stack.
#[map]
static NEW_THREAD: Array<Thread> = Array::with_max_entries(1, 0);

/// Threads that have the lock of their mappings and were looked at, by the last bits of their ids: as long as there are none, nothing else
/// is asked of who gives it back.
#[map]
static REMAPPERS: Array<u64> = Array::with_max_entries(REMAPPER_SLOTS, 0);
const REMAPPER_SLOTS: u32 = 1024;

/// Where it is counted that a thread has the lock.
#[inline(always)]
pub(crate) fn remappers(pid_tgid: u64) -> Option<*mut u64> {
    REMAPPERS.get_ptr_mut(pid_tgid as u32 % REMAPPER_SLOTS)
}

/// Index of the slot for a thread.
#[inline(always)]
pub(crate) fn slot_of(pid_tgid: u64) -> u32 {
    pid_tgid as u32 % SLOT_COUNT
}

/// The slot of the current thread, if it has one.
#[inline(always)]
pub(crate) fn slot(pid_tgid: u64) -> Option<*mut Thread> {
    // SAFETY: the pointer comes from a map lookup. Only a thread itself makes a slot its own.
    SLOTS.get_ptr_mut(slot_of(pid_tgid)).filter(|slot| unsafe { (**slot).owner == pid_tgid })
}

/// State of the current thread, if it has any.
#[inline(always)]
pub(crate) fn existing(pid_tgid: u64) -> Option<*mut Thread> {
    slot(pid_tgid).or_else(|| THREADS.get_ptr_mut(pid_tgid))
}

/// State of the current thread, made on its first call.
#[inline(always)]
pub(crate) fn of(pid_tgid: u64) -> Option<*mut Thread> {
    if let Some(thread) = existing(pid_tgid) {
        return Some(thread);
    }
    let index = slot_of(pid_tgid);
    if OWNERS.insert(index, pid_tgid, u64::from(BPF_NOEXIST)).is_ok() {
        let slot = SLOTS.get_ptr_mut(index)?;
        // SAFETY: the pointer comes from a map lookup, and nobody else was given the slot.
        unsafe { (*slot).take(pid_tgid) };
        return Some(slot);
    }
    let zero = NEW_THREAD.get_ptr(0)?;
    // SAFETY: the pointer comes from a map lookup; nothing ever writes to that entry.
    if THREADS.insert(pid_tgid, unsafe { &*zero }, u64::from(BPF_NOEXIST)).is_err() {
        return None;
    }
    THREADS.get_ptr_mut(pid_tgid)
}

/// Forgets a thread that has ended or has become another program.
#[inline(always)]
pub(crate) fn forget(pid_tgid: u64) {
    // SAFETY: the pointer comes from a map lookup; the thread does not run any more, or is the current one.
    let remaps = existing(pid_tgid).is_some_and(|thread| unsafe { (*thread).remapper.call } != 0);
    if let Some(remappers) = remappers(pid_tgid).filter(|_| remaps) {
        // SAFETY: the pointer comes from a map lookup.
        unsafe { emit::atomic_add(remappers, u64::MAX) };
    }
    let Some(slot) = slot(pid_tgid) else {
        let _ = THREADS.remove(pid_tgid);
        return;
    };
    // SAFETY: the pointer comes from a map lookup, and the slot is this thread's until its owner is removed.
    unsafe { (*slot).owner = 0 };
    let _ = OWNERS.remove(slot_of(pid_tgid));
}
