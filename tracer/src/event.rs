//! Bytes of the ring buffer to [`Event`]s. A record that makes no sense is a counted error, never a panic.

use std::time::Duration;

use bytes::{Buf as _, TryGetError};
use tracer_ebpf::{Header, MAX_FRAMES, REST_BYTES, StackRest, Whose, kind, origin, remapping, unwind::FileKey};

use crate::{profile::MappedKind, unwind::Registers};

/// Process id (thread group id) of a traced process.
pub type Pid = u32;

/// Number of an image: the address space of one program, from its exec, from the fork that made it, or from when recording
/// began, to its end. No two have the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Image(pub u32);

/// Where a record comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Origin {
    /// The address space.
    pub image: Image,
    /// Thread.
    pub tid: u32,
    /// Which of the thread's calls in flight.
    pub slot: u8,
}

/// A new block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Allocation {
    /// Start of the block.
    pub addr: u64,
    /// Bytes asked for.
    pub size: u64,
    /// Id of the stack that asked.
    pub stack: u64,
    /// Nanoseconds of CLOCK_MONOTONIC.
    pub time: u64,
}

/// A sampled object of a Go program; fields as in [`tracer_ebpf::golang::Sample`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GoSample {
    /// Where it is.
    pub addr: u64,
    /// Bytes that it takes.
    pub size: u64,
    /// Bytes by which it was sampled.
    pub charge: u64,
    /// Id of the stack that asked.
    pub stack: u64,
    /// Nanoseconds of CLOCK_MONOTONIC.
    pub time: u64,
    /// State of the garbage collector.
    pub sweepgen: u32,
    /// Twice the class, and 1 for objects without pointers.
    pub class: u8,
}

/// A file of which nothing is known; fields as in [`tracer_ebpf::unwind::UnknownFile`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UnknownFile {
    /// The number that it was given.
    pub number: u32,
    /// First address of the mapping.
    pub start: u64,
    /// One past its last address.
    pub end: u64,
}

/// What happened. The order of events is causal: a block's free comes before the next use of its address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event<'a> {
    /// A call returned a new block.
    Alloc(Allocation),
    /// A block is about to be freed.
    Free(u64),
    /// realloc was entered with this old block.
    ReallocTake(u64),
    /// That realloc succeeded with this new block.
    ReallocDone(Allocation),
    /// That realloc failed, the old block lives on.
    ReallocFailed(u64),
    /// That realloc freed the old block and gave none back.
    ReallocFreed(u64),
    /// This block of so many bytes is a part of another one, which follows.
    Part {
        /// Where it begins.
        addr: u64,
        /// Bytes, as they were told.
        size: u64,
    },
    /// What a stack id stands for.
    Stack {
        /// The id.
        id: u64,
        /// Places, leaf first.
        frames: Frames<'a>,
        /// One of [`tracer_ebpf::end`].
        end: u32,
    },
    /// Memory that the rest of a stack is found in, whose record follows.
    StackRest(StackMemory<'a>),
    /// An object of a Go program was sampled.
    GoSample(GoSample),
    /// Code of a file was met of which nothing is known.
    UnknownFile(UnknownFile),
    /// The process has mapped code of the file that the kernel knows by this, at this time: nanoseconds of CLOCK_MONOTONIC.
    Loaded(FileKey, u64),
    /// A process has changed what it has mapped.
    Remapping(Remapping),
    /// The image began.
    Began(Beginning),
    /// The thread ended.
    ThreadExit {
        /// By itself: not with its process, or as the first one of it.
        alone: bool,
    },
    /// The process ended.
    Ended {
        /// The signal that ended it, if one did that is known.
        signal: Option<u8>,
        /// How long it ran, but for those of its threads that ended with it; zero when that is not known.
        ran: Duration,
    },
    /// A process that worked on the memory of the image ended, or became a program of its own, and may have allocated and freed there.
    SharerEnded,
    /// All blocks of some heap of the image ended at once, at this time: nanoseconds of CLOCK_MONOTONIC.
    HeapEnded(u64),
}

/// What becomes of addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// There is memory, whatever was there before.
    Mapped,
    /// There is none any more, or a file's.
    Unmapped,
    /// Memory of another place is there; it is empty where it was, but mapped, if it was left there.
    Moved {
        /// Whether it was.
        left: bool,
    },
    /// What was only reserved may be used.
    Opened {
        /// Whether some of it is a file's.
        of_file: bool,
    },
    /// What is there may not be used any more.
    Closed,
}

/// A change of what a process has mapped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Remapping {
    /// What it is.
    pub change: Change,
    /// The addresses: the first, and the one behind the last.
    pub range: (u64, u64),
    /// Where the memory was before, if it was moved.
    pub old: (u64, u64),
    /// What memory it is.
    pub kind: MappedKind,
    /// Whether a call into an allocator that is recorded did this.
    pub by_allocator: bool,
    /// Whether it may not be used.
    pub reserved: bool,
    /// Id of the stack; 0 where memory only goes.
    pub stack: u64,
    /// Nanoseconds of CLOCK_MONOTONIC.
    pub time: u64,
}

/// Memory that the rest of a stack is found in, or a part of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StackMemory<'a> {
    /// Id of the stack.
    pub id: u64,
    /// Registers of its last frame.
    pub registers: Registers,
    /// Changes of the mappings of the process, and of others, that were counted by then.
    pub changes: u64,
    /// Address of the first byte of `bytes`.
    pub start: u64,
    /// What is there.
    pub bytes: &'a [u8],
}

impl StackMemory<'_> {
    /// Bytes of the record: what the BPF side counts.
    pub fn size(&self) -> u64 {
        (size_of::<StackRest>() + self.bytes.len()) as u64
    }
}

/// The beginning of an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Beginning {
    /// The process.
    pub pid: Pid,
    /// The image that it came from.
    pub parent: Image,
    /// How.
    pub how: How,
    /// Name of the process: hostile text, filled up with zeros.
    pub comm: [u8; 16],
    /// Nanoseconds of CLOCK_MONOTONIC.
    pub time: u64,
    /// Whether its record found the ring buffer full: nobody has stopped a command there.
    pub is_late: bool,
    /// What the kernel knows the program's file by; `None` when it is that of the process that forked, or cannot be told.
    pub program: Option<FileKey>,
    /// Whose it is, if it has become a program.
    pub whose: Whose,
}

impl Beginning {
    /// Name of the process: hostile text.
    pub fn comm(&self) -> String {
        let comm = self.comm.split(|byte| *byte == 0).next().unwrap_or_default();
        String::from_utf8_lossy(comm).into_owned()
    }
}

/// How an image has come about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum How {
    /// The process has become another program.
    Exec,
    /// The same, by another thread than its first one, which that has taken the place of.
    ExecByOtherThread,
    /// A process has forked.
    Fork,
    /// A process that worked on its parent's memory (vfork, CLONE_VM) has become a program of its own.
    Spawn,
    /// A process that was not traced has become another program. Whether it is wanted is for whoever asked for such to say.
    Newcomer,
}

/// Places of a stack record ([`tracer_ebpf::unwind::place`]), leaf first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Frames<'a>(&'a [u8]);

impl Frames<'_> {
    /// The places, leaf first.
    pub fn iter(&self) -> impl DoubleEndedIterator<Item = u64> + ExactSizeIterator {
        self.0.chunks_exact(8).map(|mut bytes| bytes.try_get_u64_ne().unwrap_or_default())
    }
}

/// A record that is none: too short for its kind, or of an unknown kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unintelligible;

/// What is read beyond the end of a record.
impl From<TryGetError> for Unintelligible {
    fn from(_: TryGetError) -> Self {
        Self
    }
}

/// Reads one record as the BPF side wrote it (native byte order, layouts in `tracer_ebpf`).
///
/// # Errors
/// [`Unintelligible`] when the record is shorter than its kind needs, or its kind is unknown.
#[inline]
pub fn parse(mut record: &[u8]) -> Result<(Origin, Event<'_>), Unintelligible> {
    let header = Header(record.try_get_u64_ne()?);
    let origin = Origin { image: Image(header.image()), tid: header.tid(), slot: header.slot() };
    let body = &mut record;
    let event = match header.kind() {
        kind::ALLOC => Event::Alloc(allocation(body)?),
        kind::FREE => Event::Free(body.try_get_u64_ne()?),
        kind::REALLOC_TAKE => Event::ReallocTake(body.try_get_u64_ne()?),
        kind::REALLOC_DONE => Event::ReallocDone(allocation(body)?),
        kind::REALLOC_FAILED => Event::ReallocFailed(body.try_get_u64_ne()?),
        kind::REALLOC_FREED => Event::ReallocFreed(body.try_get_u64_ne()?),
        kind::PART => Event::Part { addr: body.try_get_u64_ne()?, size: body.try_get_u64_ne()? },
        kind::STACK => stack(body)?,
        kind::STACK_REST => stack_rest(body)?,
        kind::GO_SAMPLE => go_sample(body)?,
        kind::UNKNOWN_FILE => unknown_file(body)?,
        kind::LOADED => Event::Loaded(file_key(body)?, body.try_get_u64_ne()?),
        kind::REMAPPING => remapping(body)?,
        kind::BEGAN => began(body, header.slot())?,
        // The time of these is of no use.
        kind::THREAD_EXIT | kind::ENDED | kind::SHARER_ENDED if body.remaining() < 8 => return Err(Unintelligible),
        kind::THREAD_EXIT => Event::ThreadExit { alone: header.slot() != 0 },
        kind::ENDED => Event::Ended {
            signal: Some(header.slot()).filter(|signal| *signal > 0),
            ran: Duration::from_nanos(body.try_get_u64_ne()?),
        },
        kind::SHARER_ENDED => Event::SharerEnded,
        kind::AT_ONCE => Event::HeapEnded(body.try_get_u64_ne()?),
        _ => return Err(Unintelligible),
    };
    Ok((origin, event))
}

#[inline]
fn allocation(body: &mut &[u8]) -> Result<Allocation, Unintelligible> {
    let (addr, size) = (body.try_get_u64_ne()?, body.try_get_u64_ne()?);
    Ok(Allocation { addr, size, stack: body.try_get_u64_ne()?, time: body.try_get_u64_ne()? })
}

fn remapping<'a>(body: &mut &[u8]) -> Result<Event<'a>, Unintelligible> {
    let what = body.try_get_u64_ne()?;
    let has = |bit: u64| what & bit != 0;
    let change = match what & remapping::CHANGE {
        remapping::MAPPED => Change::Mapped,
        remapping::UNMAPPED => Change::Unmapped,
        remapping::MOVED => Change::Moved { left: has(remapping::LEFT) },
        remapping::OPENED => Change::Opened { of_file: has(remapping::OF_FILE) },
        remapping::CLOSED => Change::Closed,
        _ => return Err(Unintelligible),
    };
    let kind = if has(remapping::BREAK) {
        MappedKind::Break
    } else if has(remapping::SHARED) {
        MappedKind::Shared
    } else if has(remapping::STACK) {
        MappedKind::Stack
    } else {
        MappedKind::Anonymous
    };
    let (by_allocator, reserved) = (has(remapping::BY_ALLOCATOR), has(remapping::RESERVED));
    let range = (body.try_get_u64_ne()?, body.try_get_u64_ne()?);
    let old = (body.try_get_u64_ne()?, body.try_get_u64_ne()?);
    let (stack, time) = (body.try_get_u64_ne()?, body.try_get_u64_ne()?);
    Ok(Event::Remapping(Remapping { change, range, old, kind, by_allocator, reserved, stack, time }))
}

fn began<'a>(body: &mut &[u8], how: u8) -> Result<Event<'a>, Unintelligible> {
    let how = match u32::from(how) {
        origin::EXEC => How::Exec,
        origin::EXEC_BY_OTHER_THREAD => How::ExecByOtherThread,
        origin::FORK => How::Fork,
        origin::SPAWN => How::Spawn,
        origin::NEWCOMER => How::Newcomer,
        _ => return Err(Unintelligible),
    };
    let time = body.try_get_u64_ne()?;
    let (pid, parent) = (body.try_get_u32_ne()?, Image(body.try_get_u32_ne()?));
    let mut comm = [0; 16];
    body.try_copy_to_slice(&mut comm)?;
    let program = Some(file_key(body)?).filter(|program| *program != FileKey::default());
    let (cgroup, of_memory) = (body.try_get_u64_ne()?, body.try_get_u64_ne()?);
    let whose = Whose { cgroup, of_memory, user: body.try_get_u32_ne()?, is_user_known: body.try_get_u32_ne()? };
    Ok(Event::Began(Beginning { pid, parent, how, comm, time, is_late: false, program, whose }))
}

fn file_key(body: &mut &[u8]) -> Result<FileKey, Unintelligible> {
    let (inode, device) = (body.try_get_u64_ne()?, body.try_get_u32_ne()?);
    Ok(FileKey { inode, device, generation: body.try_get_u32_ne()? })
}

fn go_sample<'a>(body: &mut &[u8]) -> Result<Event<'a>, Unintelligible> {
    let (addr, size, charge) = (body.try_get_u64_ne()?, body.try_get_u64_ne()?, body.try_get_u64_ne()?);
    let (stack, time) = (body.try_get_u64_ne()?, body.try_get_u64_ne()?);
    let (sweepgen, class) = (body.try_get_u32_ne()?, body.try_get_u32_ne()? as u8);
    Ok(Event::GoSample(GoSample { addr, size, charge, stack, time, sweepgen, class }))
}

fn unknown_file<'a>(body: &mut &[u8]) -> Result<Event<'a>, Unintelligible> {
    let number = body.try_get_u64_ne()? as u32;
    Ok(Event::UnknownFile(UnknownFile { number, start: body.try_get_u64_ne()?, end: body.try_get_u64_ne()? }))
}

fn stack<'a>(body: &mut &'a [u8]) -> Result<Event<'a>, Unintelligible> {
    let id = body.try_get_u64_ne()?;
    let (count, end) = (body.try_get_u32_ne()? as usize, body.try_get_u32_ne()?);
    let frames = body.get(..8 * count.min(MAX_FRAMES)).ok_or(Unintelligible)?;
    Ok(Event::Stack { id, frames: Frames(frames), end })
}

fn stack_rest<'a>(body: &mut &'a [u8]) -> Result<Event<'a>, Unintelligible> {
    let id = body.try_get_u64_ne()?;
    let (pc, sp, fp) = (body.try_get_u64_ne()?, body.try_get_u64_ne()?, body.try_get_u64_ne()?);
    let registers = Registers { pc, sp, fp, exact: body.try_get_u64_ne()? == 0 };
    let (changes, start) = (body.try_get_u64_ne()?, body.try_get_u64_ne()?);
    let len = body.try_get_u64_ne()?.min(REST_BYTES as u64);
    let bytes = body.get(..len as usize).ok_or(Unintelligible)?;
    Ok(Event::StackRest(StackMemory { id, registers, changes, start, bytes }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(words: &[u64]) -> Vec<u8> {
        words.iter().flat_map(|word| word.to_ne_bytes()).collect()
    }

    fn header(kind: u8) -> u64 {
        Header::new(kind, 77, 2, 5 << 32 | 78).0
    }

    const ORIGIN: Origin = Origin { image: Image(77), tid: 78, slot: 2 };

    #[test]
    fn every_kind_is_read_back() {
        let block = Allocation { addr: 0x10, size: 0x20, stack: 0x30, time: 0x40 };
        for (record, event) in [
            (vec![header(kind::ALLOC), 0x10, 0x20, 0x30, 0x40], Event::Alloc(block)),
            (vec![header(kind::REALLOC_DONE), 0x10, 0x20, 0x30, 0x40], Event::ReallocDone(block)),
            (vec![header(kind::FREE), 5], Event::Free(5)),
            (vec![header(kind::REALLOC_TAKE), 6], Event::ReallocTake(6)),
            (vec![header(kind::REALLOC_FAILED), 7], Event::ReallocFailed(7)),
            (vec![header(kind::REALLOC_FREED), 8], Event::ReallocFreed(8)),
            (vec![header(kind::PART), 5, 6], Event::Part { addr: 5, size: 6 }),
            (
                vec![header(kind::GO_SAMPLE), 1, 2, 3, 4, 5, 7 << 32 | 6],
                Event::GoSample(GoSample { addr: 1, size: 2, charge: 3, stack: 4, time: 5, sweepgen: 6, class: 7 }),
            ),
            (
                vec![header(kind::UNKNOWN_FILE), 5, 0x1000, 0x3000],
                Event::UnknownFile(UnknownFile { number: 5, start: 0x1000, end: 0x3000 }),
            ),
            (
                vec![header(kind::LOADED), 5, 4 << 32 | 3, 9],
                Event::Loaded(FileKey { inode: 5, device: 3, generation: 4 }, 9),
            ),
            (
                vec![
                    header(kind::BEGAN),
                    9,
                    6 << 32 | 8,
                    u64::from_ne_bytes(*b"program\0"),
                    0,
                    5,
                    4 << 32 | 3,
                    11,
                    12,
                    1 << 32 | 13,
                ],
                Event::Began(Beginning {
                    pid: 8,
                    parent: Image(6),
                    how: How::Fork,
                    comm: *b"program\0\0\0\0\0\0\0\0\0",
                    time: 9,
                    is_late: false,
                    program: Some(FileKey { inode: 5, device: 3, generation: 4 }),
                    whose: Whose { cgroup: 11, of_memory: 12, user: 13, is_user_known: 1 },
                }),
            ),
            (
                vec![header(kind::STACK_REST), 9, 1, 2, 3, 1, 4, 5, 8, u64::from_ne_bytes([6; 8]), 7],
                Event::StackRest(StackMemory {
                    id: 9,
                    registers: Registers { pc: 1, sp: 2, fp: 3, exact: false },
                    changes: 4,
                    start: 5,
                    bytes: &[6; 8],
                }),
            ),
            (vec![header(kind::THREAD_EXIT), 9], Event::ThreadExit { alone: true }),
            (vec![header(kind::ENDED), 9], Event::Ended { signal: Some(2), ran: Duration::from_nanos(9) }),
            (vec![header(kind::SHARER_ENDED), 9], Event::SharerEnded),
            (vec![header(kind::AT_ONCE), 9], Event::HeapEnded(9)),
        ] {
            assert_eq!(parse(&bytes(&record)), Ok((ORIGIN, event)));
        }
    }

    #[test]
    fn a_stack_has_as_many_frames_as_it_says() {
        let record = bytes(&[header(kind::STACK), 99, 3 | 1 << 32, 0xa, 0xb, 0xc, 0xd]);
        let Ok((_, Event::Stack { id: 99, frames, end: 1 })) = parse(&record) else { panic!("{:?}", parse(&record)) };
        assert_eq!(frames.iter().collect::<Vec<_>>(), [0xa, 0xb, 0xc]);
    }

    #[test]
    fn nonsense_is_refused() {
        for record in [
            vec![],
            vec![header(kind::FREE)],
            vec![header(kind::PART), 5],
            vec![header(0), 1],
            vec![header(200), 1],
            vec![header(kind::ALLOC), 1, 2, 3],
            vec![header(kind::GO_SAMPLE), 1, 2, 3, 4, 5],
            vec![header(kind::BEGAN), 1, 2, 3],
            vec![header(kind::BEGAN) | 0xf00, 1, 2, 3, 4, 5, 6],
            vec![header(kind::BEGAN), 1, 2, 3, 4, 5],
            vec![header(kind::UNKNOWN_FILE), 5, 0x1000],
            vec![header(kind::LOADED), 5, 6],
            vec![header(kind::STACK), 1],
            vec![header(kind::STACK), 1, 2, 0xa],
            vec![header(kind::STACK), 1, u64::MAX],
            vec![header(kind::STACK_REST), 9, 1, 2, 3, 1, 4, 5],
            vec![header(kind::STACK_REST), 9, 1, 2, 3, 1, 4, 5, 16, 6],
        ] {
            assert_eq!(parse(&bytes(&record)), Err(Unintelligible), "{record:x?}");
        }
        assert_eq!(parse(&[1, 2, 3]), Err(Unintelligible));
    }
}
