//! Stacks that a thread had before, by the registers of their innermost frame.
//!
//! A program allocates in many places in turns, so its last stack hardly ever is the present one, but one of the latest mostly is. What is
//! kept is how a stack differs from the cached one at that time: the innermost frames, by the words that hold them together, the cached
//! frame that they lead to, and the id of the whole. It is that stack again if those words are as they were, and the frames from there on
//! are still in the cache and as they were, too: then nothing has to be walked, nor the cache to be changed.

use aya_ebpf::{macros::map, maps::Array};
use tracer_ebpf::MAX_FRAMES;

use crate::{
    branchless::{in_order, kept},
    cached,
    frames::CHECKS_AT_ONCE,
    process,
    thread::{SLOT_COUNT, Thread, slot_of},
};

/// How many are kept of a thread, each by some bits of its registers.
const MEMOS: usize = 128;
/// How many frames may differ: two words each at most.
pub(crate) const MOST_FRAMES: u64 = CHECKS_AT_ONCE as u64 / 2;
/// Of an index: none.
pub(crate) const NONE: u64 = u64::MAX;

/// One of them.
#[repr(C)]
struct Memo {
    /// It holds as long as the process has this tag.
    tag: u64,
    /// Registers of the innermost frame, and all ones if the frame pointer counts.
    pc: u64,
    sp: u64,
    fp: u64,
    needs_fp: u64,
    /// Where the outermost frame begins, bytes of the window: words are listed from there.
    root: u64,
    /// Where in the cache the frame is that the others lead to, what it is, and the fold over the places from the root to it.
    joint: u64,
    joint_pc: u64,
    joint_sp: u64,
    joint_fp: u64,
    joint_hash: u64,
    /// Id of the stack, and the mark of its having been sent; 0: it was not.
    id: u64,
    mark: u64,
    /// What words hold, and where in the window they are, bytes.
    expected: [u64; CHECKS_AT_ONCE],
    words: [u16; CHECKS_AT_ONCE],
}

/// How often user space has forgotten stacks, which are to be sent again then.
#[map]
static STACKS_EPOCH: Array<u64> = Array::with_max_entries(1, 0);

/// Spreads a count over all bits of what it is mixed into.
const SPREAD: u64 = 0x9e37_79b9_7f4a_7c15;

/// Mark of a stack that was sent and that user space has not forgotten since.
#[inline(always)]
pub(crate) fn mark(id: u64) -> u64 {
    id ^ process::epoch(&STACKS_EPOCH).wrapping_mul(SPREAD)
}

/// Those of the threads that have a slot.
#[map]
static MEMO: Array<[Memo; MEMOS]> = Array::with_max_entries(SLOT_COUNT, 0);

/// The one in which a stack of a thread is kept whose innermost frame has these registers.
#[inline(always)]
fn place(thread: &Thread, pc: u64, sp: u64) -> Option<*mut Memo> {
    if thread.owner == 0 {
        return None;
    }
    let all = MEMO.get_ptr_mut(slot_of(thread.owner))?;
    let at = (pc ^ pc >> 7 ^ sp >> 3 ^ sp >> 9) as usize & (MEMOS - 1);
    // SAFETY: the pointer comes from a map lookup, and the index is below the length.
    Some(unsafe { all.cast::<Memo>().add(at) })
}

/// Where in the cache the frame is that the stack of this walk leads to if it is one from before and is so still: it is if the cached
/// frames from there on are as they were. Or [`NONE`]. Its id is in `walk.remembered`. The window holds all of the stack.
/// A global function, as the next one: it has a place of its own for what it works with, and the way down from a stack to a mapping has none left.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn joint_of(thread: *mut Thread) -> u64 {
    if thread.is_null() {
        return NONE;
    }
    // SAFETY: only the current thread uses its state.
    let thread = unsafe { &mut *thread };
    let (pc, sp, fp) = (thread.walk.pc, thread.walk.sp, thread.walk.fp);
    let Some(memo) = place(thread, pc, sp) else { return NONE };
    // SAFETY: the pointer comes from a map lookup, and only this thread uses what its slot has.
    let memo = unsafe { &*memo };
    let joint = memo.joint;
    let cached = &thread.frames.cache[joint as usize & (MAX_FRAMES - 1)];
    let mut difference = (memo.tag ^ thread.walk.tag) | (memo.pc ^ pc) | (memo.sp ^ sp);
    difference |= (memo.fp ^ fp) & memo.needs_fp;
    difference |= memo.root ^ thread.walk.root;
    difference |= (memo.joint_pc ^ cached.pc) | (memo.joint_sp ^ cached.sp);
    difference |= (memo.joint_fp ^ cached.fp) & cached::needs_fp(cached);
    difference |= (memo.joint_hash ^ cached.hash) | (memo.mark ^ mark(memo.id));
    if difference != 0 || joint >= thread.frames.cached {
        return NONE;
    }
    let window = kept(thread.walk.window.as_ptr());
    for nth in 0..CHECKS_AT_ONCE {
        // SAFETY: it is a whole one.
        difference |= unsafe { cached::at(window, u64::from(memo.words[nth])) } ^ memo.expected[nth];
        difference = in_order(difference);
    }
    if difference != 0 {
        return NONE;
    }
    thread.walk.remembered = memo.id;
    joint
}

/// Keeps the stack of the last walk, which was sent with this mark, if the walk has said that it can be kept: here, as that is a load and
/// the rest a call.
#[inline(always)]
pub(crate) fn keep(thread: &mut Thread, id: u64, mark: u64) {
    if thread.walk.is_like_last != 0 {
        keep_stack(thread, id, mark);
    }
}

/// [`keep`], of a stack that can be kept.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn keep_stack(thread: *mut Thread, id: u64, mark: u64) -> u32 {
    if thread.is_null() {
        return 0;
    }
    // SAFETY: as above.
    let thread = unsafe { &mut *thread };
    if id == 0 {
        return 0;
    }
    let (kept, count) = (thread.walk.replayed, thread.walk.count);
    let (pc, sp, fp, needs_fp, listed) = {
        let leaf = &thread.frames.cache[(count as usize).wrapping_sub(1) & (MAX_FRAMES - 1)];
        (leaf.pc, leaf.sp, leaf.fp, cached::needs_fp(leaf), cached::listed(leaf))
    };
    let Some(memo) = place(thread, pc, sp) else { return 0 };
    // SAFETY: as above.
    let memo = unsafe { &mut *memo };
    let joint = &thread.frames.cache[(kept as usize).wrapping_sub(1) & (MAX_FRAMES - 1)];
    (memo.tag, memo.pc, memo.sp, memo.fp, memo.needs_fp) = (thread.walk.tag, pc, sp, fp, needs_fp);
    (memo.joint, memo.joint_pc, memo.joint_sp, memo.joint_fp) = (kept.wrapping_sub(1), joint.pc, joint.sp, joint.fp);
    (memo.joint_hash, memo.id, memo.mark, memo.root) = (joint.hash, id, mark, thread.walk.root);
    // The last words of the list, those of the frames that differ among them.
    let (words, expected) = cached::lists(thread, core::hint::black_box(listed) as usize);
    let mut root = thread.walk.root;
    for nth in 0..CHECKS_AT_ONCE {
        // SAFETY: there is a group.
        let (word, expected) = unsafe { (*words.add(nth), *expected.add(nth)) };
        (memo.words[nth], memo.expected[nth]) = ((root as u16).wrapping_add(word), expected);
        root = in_order(root);
    }
    0
}
