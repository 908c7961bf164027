//! Which processes are traced, and what happens to them.

use aya_ebpf::{
    bindings::{BPF_ANY, BPF_F_MMAPABLE},
    helpers::{
        bpf_get_current_pid_tgid, bpf_send_signal,
        generated::{bpf_get_current_cgroup_id, bpf_get_current_task},
    },
    macros::map,
    maps::{Array, HashMap},
    programs::RawTracePointContext,
};
use aya_log_ebpf::debug;
use tracer_ebpf::{
    ExecStops, Header, NEWCOMERS_ASKED, TARGETS_CHANGE, Target, TaskFields, Whose, kind, origin, target,
    unwind::FileKey,
};

use crate::{
    emit::{self, Told, count_loss},
    epochs,
    kernel::kernel_word,
    loaded, mappings, returns, sharers,
    thread::{self, Thread},
};

/// Number of the signal that stops a process.
pub(crate) const SIGSTOP: u32 = 19;
/// The same of the signal that continues it.
const SIGCONT: u32 = 18;

/// Traced processes by tgid.
#[map]
static TARGETS: HashMap<u32, Target> = HashMap::with_max_entries(1 << 15, 0);

/// Images that are not recorded yet, though their processes are followed: those of processes that traced ones with
/// [`target::LATER`] have started. User space takes them out.
#[map]
static PAUSED: HashMap<u32, u8> = HashMap::with_max_entries(1 << 15, 0);

/// Flags for the programs that processes become which are not traced, with [`NEWCOMERS_ASKED`]; 0: nobody asks for them.
#[map]
static NEWCOMERS: Array<u64> = Array::with_max_entries(1, 0);

/// How many images the BPF side has handed out numbers for.
#[map]
static IMAGES: Array<u64> = Array::with_max_entries(1, 0);

/// Counts what user space changes in TARGETS: as long as it stands still there is nothing to look up, unless it is
/// [`TARGETS_CHANGE`].
#[map]
static TARGETS_EPOCH: Array<u64> = Array::with_max_entries(1, 0);

/// Shared with those who continue what was stopped.
#[map]
static EXEC_STOPS: Array<ExecStops> = Array::with_max_entries(1, BPF_F_MMAPABLE);

/// Set by user space before loading.
#[unsafe(no_mangle)]
static TASK_FIELDS: TaskFields = TaskFields {
    signal: 0,
    live: 0,
    signal_flags: 0,
    exit_code: 0,
    mm: 0,
    tgid: 0,
    ran: 0,
    others_ran: 0,
    cred: 0,
    user: 0,
    cgroups: 0,
    of_memory: 0,
    cgroup: 0,
    node: 0,
    node_number: 0,
};

/// The present value of a count of changes. What it is a count of is to be read after it.
#[inline(always)]
pub(crate) fn epoch(counter: &Array<u64>) -> u64 {
    // SAFETY: the pointer comes from a map lookup.
    counter.get_ptr(0).map_or(0, |epoch| unsafe { core::ptr::read_volatile(epoch) })
}

/// The traced process that `pid_tgid` belongs to.
#[inline(always)]
pub(crate) fn target(pid_tgid: u64) -> Option<Target> {
    let tgid = (pid_tgid >> 32) as u32;
    // SAFETY: the pointer comes from a map lookup.
    TARGETS.get_ptr(tgid).map(|target| unsafe { *target })
}

/// Whether `thread` belongs to a process that is still traced; what is known of that process is brought up to date.
#[inline(always)]
pub(crate) fn refresh(thread: &mut Thread, pid_tgid: u64) -> bool {
    let epoch = epoch(&TARGETS_EPOCH);
    if epoch != TARGETS_CHANGE && thread.epoch == epoch {
        return true;
    }
    let Some(target) = target(pid_tgid) else { return false };
    if is_paused(&target) {
        return false;
    }
    if thread.target.image != target.image {
        // Ids of stacks are of an image, where they have addresses in them.
        thread.void();
    }
    (thread.target, thread.epoch) = (target, epoch);
    true
}

/// Whether an image is not to be recorded yet.
#[inline(always)]
fn is_paused(target: &Target) -> bool {
    target.flags & target::LATER != 0 && PAUSED.get_ptr(target.image).is_some()
}

/// Has the image of a process that is followed recorded only when user space says so, where that is the way; whether that can be
/// told.
#[inline(always)]
fn pause(target: &Target) -> bool {
    target.flags & target::LATER == 0 || PAUSED.insert(target.image, 0, u64::from(BPF_ANY)).is_ok()
}

/// An image is no more.
#[inline(always)]
fn forget_pause(target: &Target) {
    if target.flags & target::LATER != 0 {
        let _ = PAUSED.remove(target.image);
    }
}

/// A process has nothing to do with the memory of its image any more. Others that have are not followed without the one that it was
/// made for.
#[inline(always)]
fn end_share(target: &Target, becomes_program: bool) {
    if target.flags & target::SHARED != 0 {
        if !becomes_program {
            sharers::ends(target.image);
        } else if sharers::becomes_program(target.image) {
            // It is followed after all.
            count_loss!(processes, u64::MAX);
        }
    } else {
        let left = sharers::left(target.image);
        if left != 0 {
            count_loss!(processes, left);
        }
    }
}

/// A number that no image has had.
#[inline(always)]
fn next_image() -> Option<u32> {
    let counter = IMAGES.get_ptr_mut(0)?;
    // SAFETY: the pointer comes from a map lookup.
    Some(unsafe { emit::atomic_next(counter) } as u32)
}

/// The current process has become another program: its blocks, threads and addresses are gone.
#[inline(always)]
pub(crate) fn exec(ctx: &RawTracePointContext) {
    let pid_tgid = bpf_get_current_pid_tgid();
    let tgid = (pid_tgid >> 32) as u32;
    let Some(entry) = TARGETS.get_ptr_mut(tgid) else { return newcomer(pid_tgid) };
    epochs::appeared(0, u64::MAX);
    thread::forget(pid_tgid);
    // The thread that called exec has taken the id of the first one.
    let old_tid: i32 = ctx.arg(1);
    thread::forget(u64::from(tgid) << 32 | u64::from(old_tid as u32));
    // SAFETY: the pointer comes from a map lookup; at an exec the process has one thread left, this one.
    let before = unsafe { *entry };
    let shared = before.flags & target::SHARED != 0;
    end_share(&before, true);
    let image = if shared && before.flags & target::FOLLOW == 0 { None } else { next_image() };
    let Some(image) = image else {
        let _ = TARGETS.remove(tgid);
        return;
    };
    let flags = before.flags & !(target::SHARED | target::MET);
    let now = Target { image, flags };
    // Probes that a process has of its own stay with it; one that worked on its parent's memory has none.
    if (shared || is_paused(&before)) && !pause(&now) {
        count_loss!(processes, 1);
        let _ = TARGETS.remove(tgid);
        return;
    }
    if !shared {
        forget_pause(&before);
    }
    // SAFETY: as above.
    unsafe { *entry = now };
    debug!(ctx, "process {} became another program", tgid);
    let how = if shared {
        origin::SPAWN
    } else if old_tid as u32 != tgid {
        origin::EXEC_BY_OTHER_THREAD
    } else {
        origin::EXEC
    };
    // Before it is told: who hears of it looks for the stop.
    let stops = flags & target::STOP_AT_EXEC != 0 && stop_current();
    let told =
        emit::began(Header::new(kind::BEGAN, image, how, pid_tgid), tgid, before.image, mappings::program(), whose());
    if stops && told != Told::Sent {
        // Nobody will come soon to continue it.
        continue_current();
    }
    if told == Told::Lost {
        forget_pause(&now);
        let _ = TARGETS.remove(tgid);
    }
}

/// The current process is about to become another program. If it works on its parent's memory, and that has probes of its own, those may have
/// been met, but no program was run there: what was done is not known. Most do nothing but to exec.
#[inline(always)]
pub(crate) fn prepares_exec() {
    let pid_tgid = bpf_get_current_pid_tgid();
    let Some(target) = target(pid_tgid) else { return };
    let met = target.flags & target::MET != 0 || returns::may_have_met_probes();
    if target.flags & target::SHARED != 0 && met {
        emit::moment(Header::new(kind::SHARER_ENDED, target.image, 0, pid_tgid));
    }
}

/// The current process, which is not traced, has become another program.
#[inline(always)]
fn newcomer(pid_tgid: u64) {
    let asked = epoch(&NEWCOMERS);
    if asked & NEWCOMERS_ASKED == 0 {
        return;
    }
    let flags = asked as u32;
    let tgid = (pid_tgid >> 32) as u32;
    let Some(image) = next_image() else { return };
    let new = Target { image, flags };
    if !pause(&new) || TARGETS.insert(tgid, new, u64::from(BPF_ANY)).is_err() {
        forget_pause(&new);
        count_loss!(processes, 1);
        return;
    }
    thread::forget(pid_tgid);
    if emit::began(Header::new(kind::BEGAN, image, origin::NEWCOMER, pid_tgid), tgid, 0, mappings::program(), whose())
        == Told::Lost
    {
        forget_pause(&new);
        let _ = TARGETS.remove(tgid);
    }
}

/// Whose the current process is.
#[inline(always)]
fn whose() -> Whose {
    // SAFETY: a read of a global that user space wrote before loading.
    let at = unsafe { core::ptr::read_volatile(&raw const TASK_FIELDS) };
    // SAFETY: no arguments.
    let (task, cgroup) = unsafe { (bpf_get_current_task(), bpf_get_current_cgroup_id()) };
    let mut whose = Whose { cgroup, ..Whose::default() };
    let follow = |from: u64, to: u32| kernel_word(from.wrapping_add(u64::from(to)));
    if at.cred != 0 {
        (whose.user, whose.is_user_known) = (follow(follow(task, at.cred), at.user) as u32, 1);
    }
    if at.cgroups != 0 {
        let cgroup = follow(follow(follow(task, at.cgroups), at.of_memory), at.cgroup);
        whose.of_memory = follow(follow(cgroup, at.node), at.node_number);
    }
    whose
}

/// The current process starts another one, or a thread.
#[inline(always)]
pub(crate) fn fork(ctx: &RawTracePointContext) {
    let pid_tgid = bpf_get_current_pid_tgid();
    let tgid = (pid_tgid >> 32) as u32;
    let Some(parent) = target(pid_tgid) else { return };
    // SAFETY: a read of a global that user space wrote before loading.
    let at = unsafe { core::ptr::read_volatile(&raw const TASK_FIELDS) };
    if at.mm == 0 {
        if parent.flags & target::FOLLOW != 0 {
            count_loss!(processes, 1);
        }
        return;
    }
    let (task, child): (u64, u64) = (ctx.arg(0), ctx.arg(1));
    let child_tgid = kernel_word(child + u64::from(at.tgid)) as u32;
    if child_tgid == tgid {
        return;
    }
    let shared = kernel_word(task + u64::from(at.mm)) == kernel_word(child + u64::from(at.mm));
    let mut new = Target { flags: parent.flags & (target::FOLLOW | target::LATER), ..parent };
    if shared {
        new.flags |= target::SHARED;
    } else if parent.flags & target::FOLLOW == 0 {
        return;
    } else {
        let Some(image) = next_image() else { return };
        new.image = image;
    }
    if !shared && !pause(&new) || TARGETS.insert(child_tgid, new, u64::from(BPF_ANY)).is_err() {
        count_loss!(processes, 1);
        return;
    }
    if shared {
        sharers::begins(parent.image);
        return;
    }
    let id = u64::from(child_tgid) << 32 | u64::from(child_tgid);
    if emit::began(
        Header::new(kind::BEGAN, new.image, origin::FORK, id),
        child_tgid,
        parent.image,
        FileKey::default(),
        Whose::default(),
    ) == Told::Lost
    {
        forget_pause(&new);
        let _ = TARGETS.remove(child_tgid);
    }
}

/// Stops the current process before it is back in user space, if that is still wanted: whether it is. Counted first: whoever sees the stop
/// knows that it is ours.
#[inline(always)]
fn stop_current() -> bool {
    let Some(stops) = EXEC_STOPS.get_ptr_mut(0) else { return false };
    // SAFETY: the pointer comes from a map lookup; user space shares that memory, and only ever clears `allowed`.
    unsafe {
        if core::ptr::read_volatile(&raw const (*stops).allowed) == 0 {
            return false;
        }
        emit::atomic_add(&raw mut (*stops).sent, 1);
        bpf_send_signal(SIGSTOP);
    }
    true
}

/// The current process, which is about to stop, goes on.
#[inline(always)]
fn continue_current() {
    let Some(stops) = EXEC_STOPS.get_ptr_mut(0) else { return };
    // SAFETY: as in `stop_current`.
    unsafe {
        bpf_send_signal(SIGCONT);
        emit::atomic_add(&raw mut (*stops).sent, u64::MAX);
    }
}

/// The current thread ends; the process with its last one. Its id may be another process's before user space hears of it.
#[inline(always)]
pub(crate) fn thread_exit() {
    let pid_tgid = bpf_get_current_pid_tgid();
    let tgid = (pid_tgid >> 32) as u32;
    loaded::look_for_code();
    // Before all else: of a process whose threads end all at once, the others come when the last one has been counted.
    thread::forget(pid_tgid);
    let Some(target) = target(pid_tgid) else { return };
    emit::moment(Header::new(kind::THREAD_EXIT, target.image, u32::from(ends_alone(pid_tgid)), pid_tgid));
    let shared = target.flags & target::SHARED != 0;
    // Before it is asked who is the last: of two that end at once, one sees what the other has noted.
    let met = shared && notes_met_probes(tgid, &target);
    if let Some((signal, ran)) = last_thread() {
        // Of those that end at once, each may be the last.
        let ran = if TARGETS.remove(tgid).is_ok() { ran } else { 0 };
        end_share(&target, false);
        if !shared {
            forget_pause(&target);
            emit::moment_of(Header::new(kind::ENDED, target.image, signal, pid_tgid), ran);
        } else if met {
            emit::moment_of(Header::new(kind::SHARER_ENDED, target.image, signal, pid_tgid), ran);
        }
    }
}

/// Whether the current thread, which ends, does so by itself, so that the C library has given back what it kept for it. That does nothing
/// of the kind for a process's first thread, and for those that the end of their process ends.
#[inline(always)]
fn ends_alone(pid_tgid: u64) -> bool {
    /// The flag in `signal_struct` of a process that ends with all its threads (SIGNAL_GROUP_EXIT, include/linux/sched/signal.h).
    const GROUP_EXIT: u32 = 4;
    if pid_tgid as u32 == (pid_tgid >> 32) as u32 {
        return false;
    }
    // SAFETY: a read of a global that user space wrote before loading.
    let at = unsafe { core::ptr::read_volatile(&raw const TASK_FIELDS) };
    if at.signal == 0 || at.signal_flags == 0 {
        return true;
    }
    // SAFETY: no arguments.
    let task = unsafe { bpf_get_current_task() };
    let signal = kernel_word(task + u64::from(at.signal));
    signal == 0 || kernel_word(signal + u64::from(at.signal_flags)) as u32 & GROUP_EXIT == 0
}

/// Whether a process that works on its parent's memory may have met probes there, by what is known of the current thread, which ends, and of
/// those that have ended before. One that has not (Go's runtime makes such a child to see whether it can, which ends at once) has neither
/// allocated nor freed anything.
#[inline(always)]
fn notes_met_probes(tgid: u32, target: &Target) -> bool {
    if target.flags & target::MET != 0 {
        return true;
    }
    // SAFETY: a read of a global that user space wrote before loading.
    let at = unsafe { core::ptr::read_volatile(&raw const TASK_FIELDS) };
    if !returns::may_have_met_probes_by_its_end(at.mm) {
        return false;
    }
    if let Some(entry) = TARGETS.get_ptr_mut(tgid) {
        // SAFETY: the pointer comes from a map lookup; whoever else writes it meanwhile, another thread at its end, writes the same.
        unsafe { (*entry).flags = target.flags | target::MET };
    }
    true
}

/// If no thread of the current process lives on: the signal that has ended it, 0 when none did, or one that a header has no room
/// for; and how long it has run, nanoseconds, but for those of its other threads that end at this moment and the last tick, 0 when
/// that is not known. `None` as well when the kernel's BTF does not tell.
#[inline(always)]
fn last_thread() -> Option<(u32, u64)> {
    /// In an exit code (wait(2)): the signal. The bit above says whether memory was dumped.
    const SIGNAL: u32 = 0x7f;
    // SAFETY: a read of a global that user space wrote before loading.
    let at = unsafe { core::ptr::read_volatile(&raw const TASK_FIELDS) };
    if at.signal == 0 || at.live == 0 {
        return None;
    }
    // SAFETY: no arguments.
    let task = unsafe { bpf_get_current_task() };
    let signal = kernel_word(task + u64::from(at.signal));
    if signal == 0 || kernel_word(signal + u64::from(at.live)) as u32 != 0 {
        return None;
    }
    let by = kernel_word(task + u64::from(at.exit_code)) as u32 & SIGNAL;
    let ran = if at.ran == 0 || at.others_ran == 0 {
        0
    } else {
        kernel_word(task + u64::from(at.ran)).wrapping_add(kernel_word(signal + u64::from(at.others_ran)))
    };
    Some((if by < 16 { by } else { 0 }, ran))
}
