//! The ABI between the BPF programs and user space: records, kinds, limits and map values.
//!
//! Integers only, no aya, no policy. Both sides compile it, so a layout cannot differ between them; the
//! size assertions at the end hold it still. Every record starts with a [`Header`], is a multiple of 8 bytes long and
//! is aligned to 8 bytes where it is sent.
#![no_std]

mod began;
pub mod cost;
pub mod entry;
pub mod exit;
pub mod golang;
mod header;
mod sizes;
pub mod unwind;

pub use began::{Began, TaskFields, Whose};
pub use header::{Header, IMAGE_MASK};
pub use sizes::cannot_be;

/// Most addresses that one stack record carries, leaf first. Deeper stacks are cut at the root end.
pub const MAX_FRAMES: usize = 256;

/// Most calls into the allocator that one thread can have in flight, one inside the other.
pub const MAX_IN_FLIGHT: usize = 16;

/// Size given to a call whose `count * size` overflows 64 bits. No allocator can satisfy it.
pub const SIZE_OVERFLOW: u64 = u64::MAX;

/// Value of the count of changes of the map TARGETS while user space takes processes out: nothing that was known of them
/// counts, so that all programs see the end at the same instant. It is also what a new thread has: nothing is known.
pub const TARGETS_CHANGE: u64 = 0;

/// The one value of the map NEWCOMERS holds [`target`] bits, and this one beside them when anybody asks for newcomers.
pub const NEWCOMERS_ASKED: u64 = 1 << 32;

/// Where the program `go_new_span` finds the span that it is attached behind the coming of: its cookie.
pub mod span {
    /// In the register of results.
    pub const RESULT: u64 = 0;
    /// In the thread's cache (`mcache.alloc`).
    pub const CACHED: u64 = 1;
}

/// What a record says. The numbers are part of the ABI.
pub mod kind {
    /// [`Block`](super::Block): a call returned a new block.
    pub const ALLOC: u8 = 1;
    /// [`Address`](super::Address): a block is about to be freed.
    pub const FREE: u8 = 2;
    /// [`Address`](super::Address): realloc was entered with this old block; its outcome follows in the same call slot.
    pub const REALLOC_TAKE: u8 = 3;
    /// [`Block`](super::Block): that realloc succeeded, and this is the new block; the old one is gone.
    pub const REALLOC_DONE: u8 = 4;
    /// [`Address`](super::Address): that realloc failed; the old block lives on.
    pub const REALLOC_FAILED: u8 = 5;
    /// [`Address`](super::Address): that realloc freed the old block and gave none back.
    pub const REALLOC_FREED: u8 = 6;
    /// [`StackHead`](super::StackHead) and its addresses: what a stack id stands for.
    pub const STACK: u8 = 7;
    /// [`Began`](super::Began): an image began, that of the header. The call slot is one of [`origin`](super::origin).
    pub const BEGAN: u8 = 8;
    /// [`Moment`](super::Moment): a thread ended. The call slot is 1 if by itself: not with its process, or as the first one of it.
    pub const THREAD_EXIT: u8 = 9;
    /// [`golang::Sample`](super::golang::Sample): an object of a Go program.
    pub const GO_SAMPLE: u8 = 10;
    /// [`Moment`](super::Moment): a process ended, and its image with it. The call slot is the signal that ended it, if one did
    /// whose number is below 16. The time is how long it ran, nanoseconds, as far as that is known.
    pub const ENDED: u8 = 11;
    /// [`Moment`](super::Moment): a process that works on the image of the header, its parent's (vfork, CLONE_VM), has ended
    /// without becoming a program of its own.
    pub const SHARER_ENDED: u8 = 12;
    /// [`StackRest`](super::StackRest) and memory: where the rest of a stack is that ends at a file of which nothing is known.
    pub const STACK_REST: u8 = 13;
    /// [`Part`](super::Part): a block that was told is a part of another one, which an outer call is about to return.
    pub const PART: u8 = 14;
    /// [`unwind::Loaded`](super::unwind::Loaded): a process has mapped code of a file.
    pub const LOADED: u8 = 15;
    /// [`unwind::UnknownFile`](super::unwind::UnknownFile): code of a file was met of which nothing is known.
    pub const UNKNOWN_FILE: u8 = 16;
    /// [`Remapping`](super::Remapping): a process has changed what memory it has mapped.
    pub const REMAPPING: u8 = 17;
    /// [`Moment`](super::Moment): all blocks of some heap of the image are about to end at once; of which, nobody knows.
    pub const AT_ONCE: u8 = 18;
    /// In the queue only: the record is in the ring buffer whose header is the word behind this.
    pub const ELSEWHERE: u8 = 19;
    /// In the queue only: a record had its place here, and could not be sent.
    pub const NOTHING: u8 = 20;
    /// In the queue only: the time of the blocks that follow, nanoseconds of CLOCK_MONOTONIC.
    pub const TIME: u8 = 21;
    /// In the ring buffer only, and not in the queue: the reader is to look at that.
    pub const BELL: u8 = 22;
}

/// A slot of the queue of records.
pub type Slot = [u64; 2];

/// Where the queue of records begins and ends, in slots, of all that there have been; the one value of the map POSITIONS, which user space
/// maps. Each is on a cache line of its own.
#[repr(C, align(128))]
#[derive(Clone, Copy, Debug)]
pub struct Positions {
    /// Behind the last slot that was claimed by those who write.
    pub end: u64,
    /// What separates the two.
    pub apart: [u64; 15],
    /// The first slot that is not free to be claimed: written by user space.
    pub begin: u64,
}

/// What [`Remapping::what`] says: one of the first ones in its lowest byte, and what the memory is above.
pub mod remapping {
    /// The bits that hold which change it is.
    pub const CHANGE: u64 = 0xff;
    /// There is memory now, whatever was there before.
    pub const MAPPED: u64 = 1;
    /// There is none any more, or a file's.
    pub const UNMAPPED: u64 = 2;
    /// Memory was moved, or has become longer or shorter (mremap).
    pub const MOVED: u64 = 3;
    /// What was only reserved may be used now (mprotect).
    pub const OPENED: u64 = 4;
    /// What is there may not be used any more.
    pub const CLOSED: u64 = 5;
    /// It is shared by those who map it: anonymous, of a memfd, or of System V.
    pub const SHARED: u64 = 1 << 8;
    /// It is that of the program break.
    pub const BREAK: u64 = 1 << 9;
    /// It may not be used: addresses only (PROT_NONE).
    pub const RESERVED: u64 = 1 << 10;
    /// An allocator that is recorded has mapped it, in a call of the program's.
    pub const BY_ALLOCATOR: u64 = 1 << 11;
    /// It was asked for as a stack.
    pub const STACK: u64 = 1 << 12;
    /// What was moved is mapped, and empty, where it was, too.
    pub const LEFT: u64 = 1 << 13;
    /// Some of it is a file's.
    pub const OF_FILE: u64 = 1 << 14;
}

/// How an image has come about.
pub mod origin {
    /// The process has become another program.
    pub const EXEC: u32 = 0;
    /// The same, by another thread than its first one, which that has taken the place of.
    pub const EXEC_BY_OTHER_THREAD: u32 = 1;
    /// A process has forked.
    pub const FORK: u32 = 2;
    /// A process that worked on its parent's image (vfork, CLONE_VM) has become a program of its own.
    pub const SPAWN: u32 = 3;
    /// A process that was not traced has become another program. Whether it is to be is for user space to say.
    pub const NEWCOMER: u32 = 4;
}

/// Most beginnings of images that are kept when the ring buffer is full.
pub const MAX_LOST_BEGINNINGS: u32 = 1 << 13;

/// First number of an image that user space hands out.
pub const FIRST_GIVEN_IMAGE: u32 = 1 << 29;

/// A record about an address and nothing else.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Address {
    /// Kind and thread.
    pub header: Header,
    /// Start of the block.
    pub addr: u64,
}

/// A record about a new block.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Block {
    /// Kind and thread.
    pub header: Header,
    /// Start of the block.
    pub addr: u64,
    /// Bytes the caller asked for.
    pub size: u64,
    /// Stack of the caller; the stack record with this id was sent before.
    pub stack: u64,
    /// Nanoseconds of CLOCK_MONOTONIC at the return of the call.
    pub time: u64,
}

/// A record about a block that is none of its own.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Part {
    /// Kind and thread.
    pub header: Header,
    /// Start of the block.
    pub addr: u64,
    /// Bytes, as they were told.
    pub size: u64,
}

/// A record about a point in a thread's life.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Moment {
    /// Kind and thread.
    pub header: Header,
    /// Nanoseconds of CLOCK_MONOTONIC.
    pub time: u64,
}

/// A record about memory that a process has mapped or unmapped itself.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Remapping {
    /// Kind and thread.
    pub header: Header,
    /// One of [`remapping`], and bits.
    pub what: u64,
    /// First address.
    pub start: u64,
    /// One past the last.
    pub end: u64,
    /// Where it was before, if it was moved.
    pub old_start: u64,
    /// One past that.
    pub old_end: u64,
    /// Stack of the caller; the stack record with this id was sent before. 0 where memory only goes.
    pub stack: u64,
    /// Nanoseconds of CLOCK_MONOTONIC.
    pub time: u64,
}

/// Start of a stack record; `frames` places of 8 bytes follow ([`unwind::place`]), leaf (direct caller of the allocator)
/// first.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StackHead {
    /// Kind and thread.
    pub header: Header,
    /// 64-bit hash of the places; of the image too, where one of them is an address.
    pub id: u64,
    /// Number of places that follow, at most [`MAX_FRAMES`].
    pub frames: u32,
    /// One of [`end`]: how the stack ended.
    pub end: u32,
}

/// Why a stack has no further frame.
pub mod end {
    /// It is complete: this was the thread's outermost frame.
    pub const ROOT: u32 = 1;
    /// More than [`MAX_FRAMES`](super::MAX_FRAMES) frames; cut at the root end.
    pub const DEPTH: u32 = 2;
    /// The address lies in no executable mapping.
    pub const NO_MAPPING: u32 = 3;
    /// The code there has no unwind information.
    pub const NO_RULE: u32 = 4;
    /// Stack memory could not be read, or the frames do not go up.
    pub const BAD_MEMORY: u32 = 5;
    /// The unwind information there is of a kind that is not supported.
    pub const UNSUPPORTED_RULE: u32 = 6;
    /// The return address is hidden behind the kernel's trampoline.
    pub const TRAMPOLINE: u32 = 7;
    /// Nothing is known yet of the file that is mapped there.
    pub const UNKNOWN_FILE: u32 = 8;
    /// The mappings were being changed, and could not be looked at.
    pub const BUSY: u32 = 9;
    /// User space went on from what was sent of it ([`REST_RECORDS`](super::REST_RECORDS)), and it is longer than that.
    pub const LONG_REST: u32 = 10;
}

/// A stack record as the BPF side assembles it.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Stack {
    /// The fixed part.
    pub head: StackHead,
    /// Places, leaf first; only the first `head.frames` are sent.
    pub frames: [u64; MAX_FRAMES],
}

/// Start of a record with stack memory, `len` bytes of which follow: what the rest of a stack is found in when the file is known that
/// the stack ends at. One stack has several of them, by address without a gap, before its own record.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StackRest {
    /// Kind and thread.
    pub header: Header,
    /// Id of the stack, which no other stack has.
    pub id: u64,
    /// Registers of its last frame: the instruction pointer,
    pub pc: u64,
    /// the stack pointer,
    pub sp: u64,
    /// and the frame pointer.
    pub fp: u64,
    /// Whether the instruction pointer is where a call returns to (1), or where the thread was interrupted (0).
    pub back: u64,
    /// Changes of the mappings of the process, and of others, that were counted by then.
    pub changes: u64,
    /// Address of the first byte that follows.
    pub start: u64,
    /// How many bytes follow, at most [`REST_BYTES`].
    pub len: u64,
}

/// Most bytes of memory in one record of the rest of a stack.
pub const REST_BYTES: usize = 4096;
/// Most records of the rest of one stack.
pub const REST_RECORDS: u32 = 16;

/// Indexes of the map RESTS: bytes of records of the rests of stacks.
pub mod rests {
    /// That were sent.
    pub const SENT: u32 = 0;
    /// That user space has done with.
    pub const DONE: u32 = 1;
    /// How many counts there are.
    pub const ALL: u32 = 2;
}

/// Most bytes of stack memory in a [`StackCopy`]: pages, from the one that the stack pointer is in.
pub const COPIED_BYTES: usize = 17 * 4096;

/// A stack together with what it was found in, for tests that unwind it by other means.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct StackCopy {
    /// Thread and how the stack ended; id and kind mean nothing.
    pub head: StackHead,
    /// Registers at the entry of the allocator in the order of DWARF (x86-64: rax, rdx, rcx, rbx, rsi, rdi, rbp, rsp, r8 to
    /// r15, rip).
    pub registers: [u64; 17],
    /// Whether the process was stopped (SIGSTOP) at this call: 0 or 1.
    pub stopped: u64,
    /// Id of the stack as the thread remembered it; 0 where it was walked only.
    pub remembered: u64,
    /// Address of the first byte of `memory`.
    pub start: u64,
    /// How many bytes of `memory` could be read.
    pub len: u64,
    /// Addresses that were found, leaf first; `head.frames` of them.
    pub addresses: [u64; MAX_FRAMES],
    /// The stack's memory.
    pub memory: [u8; COPIED_BYTES],
}

/// What the BPF side knows of a traced process; value of the map TARGETS, keyed by tgid.
/// A process without an entry is not recorded, so the entry is the switch that turns tracing on at one instant.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Target {
    /// Number of its image.
    pub image: u32,
    /// [`target`] bits.
    pub flags: u32,
}

/// Bits of [`Target::flags`].
pub mod target {
    /// The process is to be stopped (SIGSTOP) when it has become another program.
    pub const STOP_AT_EXEC: u32 = 1;
    /// The processes that it starts are to be recorded as well.
    pub const FOLLOW: u32 = 4;
    /// It works on its parent's image (vfork, CLONE_VM).
    pub const SHARED: u32 = 8;
    /// The processes that it starts are recorded only from when user space says so: they have no probes of their own yet. Until
    /// then their images are in the map PAUSED.
    pub const LATER: u32 = 16;
    /// It works on its parent's image, and a thread of it that has ended may have met probes there.
    pub const MET: u32 = 32;
}

/// Stops (SIGSTOP) of processes that have become another program; the one value of the map EXEC_STOPS, which user space maps.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ExecStops {
    /// Whether anybody is there to continue what is stopped: 0 or 1. Without, nothing is.
    pub allowed: u64,
    /// How many there have been.
    pub sent: u64,
}

/// Where the kernel keeps the addresses that its return probes have taken out of return slots: offsets in its structures,
/// bytes. All 0 when they are not known.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ReturnInstances {
    /// In `task_struct`: the pointer to its `uprobe_task`.
    pub utask: u32,
    /// In `uprobe_task`: the pointer to the innermost `return_instance`.
    pub first: u32,
    /// In `return_instance`: the address of the slot.
    pub slot: u32,
    /// In `return_instance`: what was in the slot.
    pub original: u32,
    /// In `return_instance`: the pointer to the next one.
    pub next: u32,
}

/// Bits of a part of a byte in entries of the map SPACING.
pub const SPACING_BITS: u32 = 12;

/// Entries of the map SPACING: exponentially distributed distances between samples, in order.
pub const SPACINGS: usize = 1 << 12;

/// A block, as key of the set of frees that could not be sent (LOST_FREES) and of the set of sampled blocks (SAMPLED).
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct BlockKey {
    /// Start of the block.
    pub addr: u64,
    /// Image.
    pub image: u32,
    /// Nothing: 0.
    pub reserved: u32,
}

/// Counters of what could not be recorded; value of the one entry of the map LOSS.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Loss {
    /// Allocations that found the ring buffer full.
    pub allocs: u64,
    /// Bytes of those.
    pub alloc_bytes: u64,
    /// Frees that found the ring buffer full.
    pub frees: u64,
    /// Those of them that found the set of lost frees full too.
    pub frees_unrecorded: u64,
    /// Time of the last of those, nanoseconds of CLOCK_MONOTONIC.
    pub frees_unrecorded_time: u64,
    /// Stack records that found the ring buffer full; they are sent again with their next allocation.
    pub stacks: u64,
    /// Calls that were not followed because the table of threads was full.
    pub threads_full: u64,
    /// Calls whose outcome was not seen: neither a block nor a failure.
    pub outcomes_unseen: u64,
    /// Calls among those whose return address was left alone, because taking it out could have harmed the process.
    pub returns_declined: u64,
    /// Records of beginnings and ends of processes and threads, and of code that they have mapped, that found the ring buffer full.
    pub moments: u64,
    /// Processes that were not followed, or not at once: the table of processes was full, or the record of their beginning found the
    /// ring buffer full.
    pub processes: u64,
    /// Sampled objects of Go programs whose address did not come to be known.
    pub unresolved: u64,
    /// Changes of what processes have mapped that found the ring buffer full, or whose place did not come to be known.
    pub remappings: u64,
    /// Sampled allocations that found the set of sampled blocks full.
    pub samples: u64,
    /// Bytes of those.
    pub sample_bytes: u64,
}

const _: () = {
    assert!(size_of::<Address>() == 16);
    assert!(size_of::<Block>() == 40);
    assert!(size_of::<Moment>() == 16);
    assert!(size_of::<Positions>() == 256);
    assert!(size_of::<Remapping>() == 64);
    assert!(size_of::<Began>() == 80);
    assert!(size_of::<StackHead>() == 24);
    assert!(size_of::<StackRest>() == 72);
    assert!(size_of::<Stack>() == 24 + 8 * MAX_FRAMES);
    assert!(size_of::<StackCopy>() == 24 + 8 * (17 + 4 + MAX_FRAMES) + COPIED_BYTES);
    assert!(size_of::<Target>() == 8);
    assert!(size_of::<ExecStops>() == 16);
    assert!(size_of::<ReturnInstances>() == 20);
    assert!(size_of::<TaskFields>() == 60);
    assert!(size_of::<BlockKey>() == 16);
    assert!(size_of::<Loss>() == 120);
    assert!(MAX_IN_FLIGHT <= 16); // four bits in the header
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn header_keeps_every_field_at_its_limits() {
        let id_max = (1u64 << 22) - 1;
        for (kind, image, slot, tid) in
            [(1u8, 0u32, 0u32, 1u64), (255, IMAGE_MASK, 15, id_max), (7, FIRST_GIVEN_IMAGE, 3, 2)]
        {
            let header = Header::new(kind, image, slot, 77 << 32 | tid);
            assert_eq!(header.kind(), kind);
            assert_eq!(header.image(), image);
            assert_eq!(u32::from(header.slot()), slot);
            assert_eq!(u64::from(header.tid()), tid);
        }
    }
}
