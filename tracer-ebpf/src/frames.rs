//! What a walk up a stack works on, and what a thread keeps of it for the next one.

use tracer_ebpf::{
    MAX_FRAMES, StackRest,
    unwind::{Area, Mapping},
};

/// Bytes of stack that are read at once, at most.
pub(crate) const WINDOW: u64 = 8192;
pub(crate) const WINDOW_WORDS: usize = WINDOW as usize / 8;
/// Words that are compared at once.
pub(crate) const CHECKS_AT_ONCE: usize = 16;
/// Words of stack that hold a cached stack together: at most two for each frame below the root, behind a group that stands for none. And
/// room for the word that is written behind the last one and not counted, wherever the verifier takes that to be.
pub(crate) const MAX_CHECKS: usize = CHECKS_AT_ONCE + 2 * MAX_FRAMES + 2;

/// Registers in a frame, and how the caller's frame pointer was found from it.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct Frame {
    pub(crate) sp: u64,
    pub(crate) pc: u64,
    pub(crate) fp: u64,
    /// Address of the saved frame pointer; 0 when it stayed in its register; 1 when the frame is not to be replayed.
    pub(crate) fp_slot: u64,
    /// File and offset ([`place`](tracer_ebpf::unwind::place)).
    pub(crate) place: u64,
    /// Fold over the places from the root to here. In the cache only.
    pub(crate) hash: u64,
    /// [`USES_FP`]; in the cache [`NEEDS_FP`], and from bit [`LISTED`] on how many words are listed from the root to here.
    pub(crate) flags: u64,
}

/// The caller was found with the frame pointer.
pub(crate) const USES_FP: u64 = 1;
/// The frame pointer counts: it was used here, or by a caller that found it in its register still. Where it does not, code that keeps other
/// values there makes no other stack of the same one.
pub(crate) const NEEDS_FP: u64 = 2;
/// First bit of the count of words that hold a frame and those further out together.
pub(crate) const LISTED: u32 = 16;

/// A mapping that was found before.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct Known {
    /// It holds as long as the process has this tag.
    pub(crate) tag: u64,
    pub(crate) mapping: Mapping,
}

/// What was found out before of an address that a walk came to.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct Place {
    /// It holds as long as the process has this tag.
    pub(crate) tag: u64,
    /// Which address, and whether it is one of a return: see [`walk`](crate::walk).
    pub(crate) key: u64,
    /// File and offset.
    pub(crate) place: u64,
    /// The rule that holds there.
    pub(crate) rule: u64,
}

/// How many of those are kept: two for each value of some bits of an address, the later one first.
pub(crate) const PLACES: usize = 256;
/// How many mappings are kept, each by a page of it.
pub(crate) const KNOWN: usize = 64;
/// How many stacks a thread knows to have been sent.
pub(crate) const SENT: usize = 64;
/// Words of a node of the kernel's tree of mappings.
pub(crate) const NODE_WORDS: usize = 32;

/// Progress of a walk. In map memory: on the BPF stack the verifier would tell every iteration from every other.
#[repr(C)]
pub(crate) struct Walk {
    /// The frame that is being looked at.
    pub(crate) pc: u64,
    pub(crate) sp: u64,
    pub(crate) fp: u64,
    /// 1 when pc is a return address: the call is what counts, the instruction before it.
    pub(crate) back: u64,
    /// Slot of the saved frame pointer of the last step.
    pub(crate) fp_slot: u64,
    /// Where the frame is: file and offset.
    pub(crate) place: u64,
    /// The rule that holds there.
    pub(crate) rule: u64,
    /// Frames so far.
    pub(crate) count: u64,
    /// Of those, how many of the last were replayed from the cache without a gap.
    pub(crate) replayed: u64,
    /// Frames to be merged, and where, and the hash so far.
    pub(crate) fresh: u64,
    pub(crate) hash: u64,
    /// Index of the next cached frame to compare with; negative: none.
    pub(crate) candidate: i64,
    /// The last cached frame that brings its callers in with it if all their slots are unchanged.
    pub(crate) limit: i64,
    /// [`USES_FP`], if the last step did.
    pub(crate) uses: u64,
    /// Whether a signal frame was passed.
    pub(crate) signals: u32,
    /// Bits in which slots differ from what the cache has.
    pub(crate) difference: u64,
    /// How it ended: 0 not yet.
    pub(crate) status: u32,
    /// Whether a frame was found in a way that may not be replayed.
    pub(crate) tainted: u32,
    /// Whether a word of this step could not be read.
    pub(crate) unreadable: u32,
    /// The mapping that was hit last.
    pub(crate) mapping: Mapping,
    /// What mappings of this process are known by now.
    pub(crate) tag: u64,
    /// What is mixed into the places that mean something in this process only.
    pub(crate) seed: u64,
    /// Of the search for a mapping: the address, the mapping that was found, where the kernel has it, and a node of the kernel's tree.
    pub(crate) wanted: u64,
    pub(crate) area: Area,
    pub(crate) area_at: u64,
    pub(crate) node: u64,
    pub(crate) words: [u64; NODE_WORDS],
    /// Addresses that `window` holds: from, and how many bytes.
    pub(crate) start: u64,
    pub(crate) len: u64,
    /// Where the search for return addresses that probes have taken away is; see [`returns`](crate::returns).
    pub(crate) instance: u64,
    /// The one that was found; 0: none.
    pub(crate) original: u64,
    /// Where the outermost frame of the cache begins, bytes of the window.
    pub(crate) root: u64,
    /// How many words hold the cached frames together from the root to the candidate.
    pub(crate) listed: u64,
    /// Id of the stack, if it is one that the thread had before; else 0. See [`memo`](crate::memo).
    pub(crate) remembered: u64,
    /// Whether only few frames were walked until a cached one, with all of the stack in the window.
    pub(crate) is_like_last: u64,
    /// Head of a record whose memory is in `window`; see [`rests`](crate::rests).
    pub(crate) rest: StackRest,
    pub(crate) window: [u64; WINDOW_WORDS],
}

/// The thread's last stack, root first, and the frames of the present one, leaf first.
#[repr(C)]
pub(crate) struct Frames {
    /// Frames in `cache`; 0 when nothing in it holds.
    pub(crate) cached: u64,
    /// Tag of the process when it was made.
    pub(crate) tag: u64,
    /// Stacks whose places were sent, by the last bits of their ids: each as [`stack`](crate::stack) marks it; 0: none.
    pub(crate) sent: [u64; SENT],
    pub(crate) cache: [Frame; MAX_FRAMES],
    pub(crate) fresh: [Frame; MAX_FRAMES],
    /// Words that must be as they were for `cache` to hold up to a frame, as long as that does: what they held, where they are, bytes
    /// from the outermost frame on (modulo 2^16), and which frame's they are. See [`cached`](crate::cached).
    pub(crate) expected: [u64; MAX_CHECKS],
    pub(crate) words: [u16; MAX_CHECKS],
    pub(crate) of: [u8; MAX_CHECKS],
}
