//! The mapping that an address lies in, as the kernel has it, and the table of the file that is mapped there.
//!
//! User space writes nothing of a process: what it knows of a file, it writes once for all processes that map it. What a
//! thread has found is kept as long as no mapping has appeared in its process: one that goes takes its code along, so
//! nothing is asked about it any more until another one is there.
//!
//! The kernel is asked by `bpf_find_vma`, in whose callback its structures are read by plain loads. That fails while another
//! thread changes the mappings, as often as not in a program that maps all the time. Then the tree of mappings
//! (lib/maple_tree.c) is read without a lock, as the kernel itself reads it for page faults.

use core::ffi::c_void;

use aya_ebpf::{
    helpers::{
        bpf_get_current_pid_tgid,
        generated::{bpf_find_vma, bpf_get_current_task, bpf_get_current_task_btf, bpf_loop, bpf_probe_read_kernel},
    },
    macros::map,
    maps::Array,
};
use tracer_ebpf::{
    end,
    unwind::{Area, FileKey, GENERATED, MAX_SEGMENTS, Mapping, NUMBER_BUSY, changes, epoch, file, place},
};

use crate::{
    branchless::is_less,
    emit, epochs,
    frames::{KNOWN, NODE_WORDS, Walk},
    kernel::{kernel_word, load, offset_of, read},
    numbers::{number_of, table_of, tell},
    thread::{self, Thread},
};

/// The mapping that [`identify`] has found.
#[map]
static IDENTIFIED: Array<Area> = Array::with_max_entries(1, 0);

/// Of a mapping: its code may run (`VM_EXEC`).
const EXECUTABLE: u64 = 4;
/// What `bpf_find_vma` says when somebody changes the mappings.
const BUSY: i64 = -16;
/// Bits of an address within a page of memory.
const PAGE: u32 = 12;

/// What mappings of the current process are known by: another number than before whenever what was found may not hold any
/// more. Never 0.
#[inline(always)]
pub(crate) fn tag(thread: &mut Thread, tgid: u32) -> u64 {
    let count = match epochs::count_of(epoch::CHANGES) {
        changes::COUNTED => epochs::count_of(tgid % epoch::PROCESSES),
        changes::BY_KERNEL if offset_of!(mm_changes) != 0 => u64::from(read!(mm(), mm_changes) as u32),
        _ => {
            thread.void();
            0
        }
    };
    (thread.salt ^ count.wrapping_add(epochs::count_of(epoch::FILES) << 32)) | 1 << 63
}

/// The current process's `mm_struct`. Read as a word, and what leads on from it, too: for each way that comes to the load of a pointer of a
/// type that it knows, the verifier searches all types of the kernel by name (from Linux 6.4 on), which took longer than all else it does.
#[inline(always)]
pub(crate) fn mm() -> u64 {
    // SAFETY: no arguments.
    read!(unsafe { bpf_get_current_task() }, task_mm)
}

/// What the kernel knows the program of the current process by; all 0 when that cannot be told.
#[inline(always)]
pub(crate) fn program() -> FileKey {
    let at = offset_of!(mm_program);
    if at == 0 {
        return FileKey::default();
    }
    key_of(kernel_word(mm().wrapping_add(u64::from(at))))
}

/// What the kernel knows an open file by; all 0 when it cannot be read.
#[inline(always)]
fn key_of(file: u64) -> FileKey {
    let inode = read!(file, file_inode);
    FileKey {
        inode: read!(inode, inode_number),
        generation: read!(inode, inode_generation) as u32,
        device: read!(read!(inode, inode_super), super_device) as u32,
    }
}

/// Where the stack of the current process's first thread begins; 0 when that is not known.
#[inline(always)]
pub(crate) fn stack_start() -> u64 {
    let at = offset_of!(mm_start_stack);
    if at == 0 { 0 } else { kernel_word(mm().wrapping_add(u64::from(at))) }
}

/// Address of the code that return probes return to in the current process; 0: nowhere yet.
#[inline(always)]
pub(crate) fn trampoline() -> u64 {
    let area = read!(mm(), mm_xol_area);
    if area == 0 { 0 } else { read!(area, xol_address) }
}

/// The code, or what may become a file's, that [`epochs::appeared`] is of when all that is known is the pointer to `vm_area_struct`.
#[inline(always)]
pub(crate) fn area_appeared(area: *const c_void) {
    epochs::appeared(load!(u64, area, area_start), load!(u64, area, area_end));
}

/// The kernel has found room at `start`, or none, for what `wanted` (`vm_unmapped_area_info`) says.
#[inline(always)]
pub(crate) fn room_appeared(start: u64, wanted: u64) {
    let length = offset_of!(wanted_length);
    if start & ((1 << PAGE) - 1) != 0 {
        // The number of an error.
        epochs::appeared(0, 0);
    } else if length == 0 {
        epochs::appeared(0, u64::MAX);
    } else {
        epochs::appeared(start, start.wrapping_add(read!(wanted, wanted_length)));
    }
}

/// How many bytes of room the kernel was asked for, as `wanted` (`vm_unmapped_area_info`) says.
#[inline(always)]
pub(crate) fn wanted_length(wanted: u64) -> u64 {
    read!(wanted, wanted_length)
}

/// Where the program break of the current process is.
#[inline(always)]
pub(crate) fn program_break() -> u64 {
    let at = offset_of!(mm_break);
    if at == 0 { 0 } else { kernel_word(mm().wrapping_add(u64::from(at))) }
}

/// Whether what was found is a file's code.
#[inline(always)]
pub(crate) fn is_code_of_file(area: &Area) -> bool {
    area.is_file != 0 && area.flags & EXECUTABLE != 0
}

/// Whether a mapping is code; `area` is one of the kernel's, of a type that the verifier knows.
#[inline(always)]
pub(crate) fn is_code(area: *const c_void) -> bool {
    load!(u64, area, area_flags) & EXECUTABLE != 0
}

/// Whether [`find`] has found a mapping, even if it is one of a file that is not known yet.
#[inline(always)]
pub(crate) fn is_told(found: u32) -> bool {
    found == 0 || found == end::UNKNOWN_FILE
}

/// To be called before the first [`find`] of a walk.
#[inline(always)]
pub(crate) fn begin(thread: &mut Thread, tgid: u32) {
    thread.walk.tag = tag(thread, tgid);
    thread.walk.mapping.end = 0;
}

/// Makes `walk.mapping` the mapping that `pc` lies in: 0, or [`end::UNKNOWN_FILE`]. Or why there is none.
#[inline(always)]
pub(crate) fn find(thread: &mut Thread, pc: u64) -> u32 {
    if pc >= thread.walk.mapping.start && pc < thread.walk.mapping.end {
        return 0;
    }
    let tag = thread.walk.tag;
    let known = &thread.known[(pc >> PAGE) as usize & (KNOWN - 1)];
    if known.tag == tag && pc >= known.mapping.start && pc < known.mapping.end {
        let Thread { known, walk, .. } = thread;
        copy(&mut walk.mapping, &known[(pc >> PAGE) as usize & (KNOWN - 1)].mapping);
        return 0;
    }
    look_up_mapping(pc)
}

/// File and offset of an address in `mapping`.
#[inline(always)]
pub(crate) fn place_of(mapping: &Mapping, pc: u64) -> u64 {
    if mapping.file == 0 { place::at(pc) } else { place::in_file(mapping.file, pc.wrapping_sub(mapping.base)) }
}

/// [`find`] where nothing is known. A global function: the verifier goes through it once, not once for each way that leads
/// here. Such a function takes numbers only.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn look_up_mapping(pc: u64) -> u32 {
    let pid_tgid = bpf_get_current_pid_tgid();
    let Some(thread) = thread::existing(pid_tgid) else { return end::NO_MAPPING };
    let found = locate(thread, pc);
    // SAFETY: the pointer comes from a map lookup, and only this thread uses its entry.
    settle(unsafe { &mut *thread }, pc, found)
}

/// Makes `walk.area` the mapping that `address` lies in, if there is one: whether there is.
#[inline(always)]
pub(crate) fn look_up_any(thread: *mut Thread, address: u64) -> bool {
    let found = locate(thread, address);
    // SAFETY: only the current thread uses its state.
    let area = unsafe { &(*thread).walk.area };
    found != BUSY && address >= area.start && address < area.end
}

/// Makes `walk.area` the mapping that `pc` lies in, or one beside it: 0, or what the kernel says.
#[inline(always)]
fn locate(thread: *mut Thread, pc: u64) -> i64 {
    // SAFETY: the pointer comes from a map lookup, and only this thread uses its entry.
    let walk = unsafe { &mut (*thread).walk };
    (walk.area.start, walk.area.end, walk.wanted) = (0, 0, pc);
    let mut area: *mut Area = &raw mut walk.area;
    let argument = (&raw mut area).cast::<c_void>();
    // SAFETY: the callback is given a pointer that outlives the call.
    let found = unsafe { bpf_find_vma(bpf_get_current_task_btf(), pc, note as *mut c_void, argument, 0) };
    if found != BUSY || offset_of!(mm_tree) == 0 {
        return found;
    }
    if search_tree(thread) { 0 } else { BUSY }
}

/// Makes `walk.area` the mapping that `walk.wanted` lies in, or one beside it, by the kernel's tree alone: whether that could be read.
#[inline(always)]
fn search_tree(thread: *mut Thread) -> bool {
    let root = read!(mm(), mm_tree);
    // SAFETY: only the current thread uses its state.
    unsafe { (*thread).walk.node = root };
    let mut searched = thread;
    // SAFETY: the callback is given a pointer that outlives the loop.
    unsafe { bpf_loop(MAX_DEPTH, descend as *mut c_void, (&raw mut searched).cast(), 0) };
    // SAFETY: as above.
    unsafe { (*searched).walk.node == FOUND }
}

/// Makes `walk.area` the mapping that `address` lies in, by the kernel's tree alone: whether there is one. For those who hold the lock
/// of the mappings, so that nobody changes them. A global function, as [`look_up_mapping`] is.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn look_up_area(address: u64) -> u32 {
    let pid_tgid = bpf_get_current_pid_tgid();
    let Some(thread) = thread::existing(pid_tgid) else { return 0 };
    // SAFETY: the pointer comes from a map lookup, and only this thread uses its entry.
    let walk = unsafe { &mut (*thread).walk };
    (walk.area.start, walk.area.end, walk.wanted) = (0, 0, address);
    let found = search_tree(thread);
    // SAFETY: as above.
    let area = unsafe { &(*thread).walk.area };
    u32::from(found && address >= area.start && address < area.end)
}

/// Whether the mapping that [`look_up_area`] has found last was made by whoever holds the lock of the mappings to write, where another one
/// was before, which the kernel had at `before`. It locks each that it changes (`vma_start_write`, from Linux 6.4 on), those that it
/// gives up replacing, too, which are where they were (from 6.12 on); before 6.4 it is taken for made.
#[inline(always)]
pub(crate) fn was_made(walk: &Walk, before: u64) -> bool {
    let (own, all) = (offset_of!(area_lock), offset_of!(mm_changes));
    let count = |at: u64, offset: u32| kernel_word(at.wrapping_add(u64::from(offset))) as u32;
    let was_changed = own == 0 || all == 0 || count(walk.area_at, own) == count(mm(), all);
    was_changed && (offset_of!(replaces_late) == 0 || walk.area_at != before)
}

/// Which kind of file system the file is on of the mapping that [`look_up_area`] has found last; 0 where that is not known.
#[inline(always)]
pub(crate) fn file_system(walk: &Walk) -> u64 {
    let at = offset_of!(super_magic);
    if at == 0 {
        return 0;
    }
    read!(read!(read!(read!(walk.area_at, area_file), file_inode), inode_super), super_magic)
}

/// Makes the area that was found the mapping of the walk, with what is known of its file.
#[inline(always)]
fn settle(thread: &mut Thread, pc: u64, found: i64) -> u32 {
    let area = &thread.walk.area;
    if found == BUSY {
        return end::BUSY;
    }
    if pc < area.start || pc >= area.end || area.flags & EXECUTABLE == 0 {
        return end::NO_MAPPING;
    }
    let (start, last, is_file) = (area.start, area.end, area.is_file != 0);
    let offset = area.page << PAGE;
    let mapping = &mut thread.walk.mapping;
    (mapping.start, mapping.end) = (start, last);
    mapping.base = start.wrapping_sub(offset);
    (mapping.bias, mapping.first_page, mapping.pages, mapping.file) = (0, 0, 0, 0);
    if is_file {
        let number = number_of(&thread.walk.area.key);
        let Some(table) = table_of(number) else { return forget(thread) };
        // SAFETY: the pointer comes from a map lookup; user space sets the state last.
        let state = unsafe { core::ptr::read_volatile(&raw const (*table).state) };
        // SAFETY: as above; whoever reads it asks for no more than that somebody was here.
        unsafe { core::ptr::write_volatile(&raw mut (*table).met, 1) };
        if state != file::GENERATED {
            thread.walk.mapping.file = number;
        } else {
            thread.walk.mapping.first_page = GENERATED;
        }
        if state == file::UNKNOWN {
            tell(table, thread.target.image, number, start, last);
            return forget(thread);
        }
        if state == file::KNOWN {
            let mapping = &mut thread.walk.mapping;
            for segment in 0..MAX_SEGMENTS {
                // SAFETY: as above.
                let segment = unsafe { &(*table).segments[segment] };
                if offset >= segment.first && offset < segment.last {
                    mapping.bias = mapping.base.wrapping_add(segment.delta);
                    // SAFETY: as above.
                    (mapping.first_page, mapping.pages) = unsafe { ((*table).first_page, (*table).pages) };
                    break;
                }
            }
        }
    } else if thread.walk.area.operations == 0 {
        thread.walk.mapping.first_page = GENERATED;
    }
    let Thread { known, walk, .. } = thread;
    let known = &mut known[(pc >> PAGE) as usize & (KNOWN - 1)];
    known.tag = walk.tag;
    copy(&mut known.mapping, &walk.mapping);
    0
}

/// Field by field, and each as one that may change: the compiler would take it all to the BPF stack first.
#[inline(always)]
fn copy(to: &mut Mapping, from: &Mapping) {
    const WORDS: usize = size_of::<Mapping>() / 8;
    let (to, from) = ((&raw mut *to).cast::<u64>(), (&raw const *from).cast::<u64>());
    for word in 0..WORDS {
        // SAFETY: both are as long as that.
        unsafe { core::ptr::write_volatile(to.add(word), core::ptr::read_volatile(from.add(word))) };
    }
}

/// The mapping of a file that is not known yet is good for telling the place, and asked for again.
#[inline(always)]
fn forget(thread: &mut Thread) -> u32 {
    thread.walk.mapping.end = 0;
    end::UNKNOWN_FILE
}

/// Takes down a mapping; the verifier knows the type of `from`.
extern "C" fn note(_task: *mut c_void, from: *const c_void, area: *mut *mut Area) -> i64 {
    // SAFETY: the helper passes on what it was given.
    let area = unsafe { &mut **area };
    (area.start, area.end) = (load!(u64, from, area_start), load!(u64, from, area_end));
    (area.page, area.flags) = (load!(u64, from, area_page), load!(u64, from, area_flags));
    // As for [`mm`].
    area.operations = read!(from as u64, area_operations);
    let file = read!(from as u64, area_file);
    area.is_file = file;
    if file != 0 {
        area.key = key_of(file);
    }
    0
}

/// Levels of the kernel's tree: one for each ten mappings' power, and more than there ever are.
const MAX_DEPTH: u32 = 12;
/// Of a pointer in the tree: it points to a node.
const IS_NODE: u64 = 4;
/// Kinds of nodes (`enum maple_type`): the first two are leaves, or have no room for gaps; the last one has.
const LEAF: u64 = 1;
const WITH_GAPS: u64 = 3;
/// Where, in words, their pivots, their slots and what else there is begin: 1 and 16, where the last word tells of the end unless
/// the last pivot is used; 1, 10 and 30.
const PIVOTS: usize = 1;
const SLOTS: usize = 16;
const SLOTS_WITH_GAPS: usize = 10;
const END_WITH_GAPS: usize = 30;
/// Value of `node` when the mapping was found.
const FOUND: u64 = 0;

/// One node down in the kernel's tree of mappings; 1 ends the loop.
extern "C" fn descend(_index: u64, thread: *mut *mut Thread) -> i64 {
    // SAFETY: the loop passes on what it was given, and only the current thread uses its state.
    let walk = unsafe { &mut (**thread).walk };
    let (node, pc) = (walk.node, walk.wanted);
    if node & IS_NODE == 0 {
        return 1;
    }
    let kind = node >> 3 & 15;
    let to = walk.words.as_mut_ptr().cast::<c_void>();
    let bytes = 8 * NODE_WORDS as u32;
    // SAFETY: there is room for a node, which lies at a multiple of its size; the helper checks the address.
    if unsafe { bpf_probe_read_kernel(to, bytes, (node & !(u64::from(bytes) - 1)) as *const c_void) } != 0 {
        return 1;
    }
    let (mut last, mut slots) = (15, SLOTS);
    if kind == WITH_GAPS {
        (last, slots) = (walk.words[END_WITH_GAPS] & 15, SLOTS_WITH_GAPS);
    } else if walk.words[SLOTS - 1] == 0 {
        last = walk.words[NODE_WORDS - 1] & 15;
    }
    let mut slot = 0;
    for at in 0..SLOTS - 1 {
        let pivot = walk.words[PIVOTS + at] & (u64::MAX >> 1);
        slot += is_less(pivot, pc) & is_less(at as u64, last);
    }
    let next = walk.words[core::hint::black_box(slots as u64 + slot) as usize & (NODE_WORDS - 1)];
    walk.node = next;
    if kind > LEAF {
        return 0;
    }
    // Anything but a pointer to a node is taken for the end.
    walk.node = if next == 0 || take(walk, next) { FOUND } else { IS_NODE };
    1
}

/// Takes down the mapping at an address of the kernel's. Whether it can be relied on: it may be changed, or become another
/// process's, while it is read.
#[inline(always)]
fn take(walk: &mut Walk, from: u64) -> bool {
    walk.area_at = from;
    let area = &mut walk.area;
    (area.start, area.end) = (read!(from, area_start), read!(from, area_end));
    (area.page, area.flags) = (read!(from, area_page), read!(from, area_flags));
    area.operations = read!(from, area_operations);
    let file = read!(from, area_file);
    area.is_file = file;
    if file != 0 {
        area.key = key_of(file);
    }
    let changed = read!(from, area_start) ^ area.start
        | read!(from, area_end) ^ area.end
        | read!(from, area_page) ^ area.page
        | read!(from, area_file) ^ file
        | read!(from, area_mm) ^ mm();
    changed == 0
}

/// Run by user space on itself: the number of the file that it has mapped at `address`; 0 when there is none, and
/// [`NUMBER_BUSY`] when it cannot be told just now. User space will write what it knows of it: nobody tells it.
#[inline(always)]
pub(crate) fn identify(address: u64) -> u32 {
    let Some(identified) = IDENTIFIED.get_ptr_mut(0) else { return 0 };
    let mut area: *mut Area = identified;
    let argument = (&raw mut area).cast::<c_void>();
    // SAFETY: the callback is given a pointer that outlives the call.
    let found = unsafe { bpf_find_vma(bpf_get_current_task_btf(), address, note as *mut c_void, argument, 0) };
    if found == BUSY {
        return identify_unlocked(address);
    }
    // SAFETY: the pointer comes from a map lookup.
    if found != 0 || unsafe { (*identified).is_file } == 0 {
        return 0;
    }
    // SAFETY: as above.
    number_to_know(unsafe { &(*identified).key })
}

/// [`identify`] while other threads of user space change mappings, of which this is none.
#[inline(always)]
fn identify_unlocked(address: u64) -> u32 {
    let pid_tgid = bpf_get_current_pid_tgid();
    let Some(thread) = thread::of(pid_tgid) else { return NUMBER_BUSY };
    let mut number = NUMBER_BUSY;
    if offset_of!(mm_tree) != 0 && look_up_area(address) != 0 {
        // SAFETY: the pointer comes from a map lookup, and only this thread uses its entry.
        let area = unsafe { &(*thread).walk.area };
        number = if area.is_file == 0 { 0 } else { number_to_know(&area.key) };
    }
    thread::forget(pid_tgid);
    number
}

/// The number of a file of which user space will write what it knows.
#[inline(always)]
fn number_to_know(key: &FileKey) -> u32 {
    let number = number_of(key);
    if let Some(table) = table_of(number) {
        // SAFETY: the pointer comes from a map lookup.
        unsafe { emit::atomic_add(&raw mut (*table).told, 1) };
    }
    number
}
