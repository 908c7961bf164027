//! What is told of a process that begins, and where the kernel keeps what is known of processes.

use crate::{Header, unwind};

/// A record about the beginning of an image.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Began {
    /// Kind, image and thread; the call slot is one of [`origin`](crate::origin).
    pub header: Header,
    /// Nanoseconds of CLOCK_MONOTONIC.
    pub time: u64,
    /// Process id.
    pub pid: u32,
    /// The image that it came from: the same process's, or that of the process that forked.
    pub parent: u32,
    /// Name of the process (`/proc/PID/comm`).
    pub comm: [u8; 16],
    /// The program's file; all 0 when it is that of the process that forked, or cannot be told.
    pub program: unwind::FileKey,
    /// Whose it is.
    pub whose: Whose,
}

/// Whose a process is that has become a program, as it was then: it may be over before anybody can look.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Whose {
    /// Its cgroup of version 2, and that of the memory controller, of either version, by the numbers of their folders; 0: not known.
    pub cgroup: u64,
    /// As above.
    pub of_memory: u64,
    /// Its effective user.
    pub user: u32,
    /// Whether the user is known.
    pub is_user_known: u32,
}

/// What the kernel says of processes and their ends: offsets in its structures, bytes. All 0 when they are not known.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TaskFields {
    /// In `task_struct`: the pointer to its `signal_struct`.
    pub signal: u32,
    /// In `signal_struct`: the count of the threads that live.
    pub live: u32,
    /// In `signal_struct`: its flags; 0 when that alone is not known.
    pub signal_flags: u32,
    /// In `task_struct`: how the thread has ended, as wait(2) tells it.
    pub exit_code: u32,
    /// In `task_struct`: the pointer to its address space.
    pub mm: u32,
    /// In `task_struct`: the process's id.
    pub tgid: u32,
    /// In `task_struct`: how long the thread has run, nanoseconds; 0 when that alone is not known, or the next.
    pub ran: u32,
    /// In `signal_struct`: how long those threads of the process have run that have ended, nanoseconds.
    pub others_ran: u32,
    /// In `task_struct`: the pointer to its `cred`; 0 when that is not known, or the next.
    pub cred: u32,
    /// In `cred`: the effective user.
    pub user: u32,
    /// In `task_struct`: the pointer to its `css_set`; 0 when that is not known, or one of the next.
    pub cgroups: u32,
    /// In `css_set`: the pointer to the `cgroup_subsys_state` of the memory controller.
    pub of_memory: u32,
    /// In `cgroup_subsys_state`: the pointer to its `cgroup`.
    pub cgroup: u32,
    /// In `cgroup`: the pointer to its `kernfs_node`.
    pub node: u32,
    /// In `kernfs_node`: its number.
    pub node_number: u32,
}
