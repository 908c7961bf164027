//! Stacks as the BPF side finds them, with the memory that they were found in.

use std::{
    num::NonZeroU32,
    process::Command,
    time::{Duration, Instant},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use tracer::{
    attach,
    bpf::{Config, Events, Links, Programs, StackCopies},
    resolve::{Resolvers, Running},
    space::address_space::AddressSpace,
    unwinder::Unwinder,
};
use tracer_ebpf::{StackCopy, Target};

use super::{compared, machine::slowness, program};

/// Longest time between two copies of a busy process.
const PATIENCE: Duration = Duration::from_secs(20);

/// A process whose stacks are copied at every call of its allocator, as far as there is room.
pub(crate) struct Copies {
    pid: u32,
    programs: Programs,
    links: Option<Links>,
    copies: StackCopies,
    // What they hold must live as long.
    _events: Events,
    _running: Running,
}

impl Copies {
    pub(crate) fn start(pid: u32) -> Self {
        let mut programs = compared::load(Config { buffer_size: 1 << 20, ..Config::smallest() });
        let mut events = programs.events().unwrap();
        let (tables, changes) = programs.tables().unwrap();
        let (resolvers, running) = Resolvers::start(Unwinder::new(tables), changes, |_| {}).unwrap();
        let copies = programs.stack_copies().unwrap();
        let mut space = AddressSpace::new(pid);
        space.refresh().unwrap();
        let (told, is_known) = std::sync::mpsc::channel();
        resolvers.follow(&space, move || told.send(()).unwrap());
        is_known.recv().unwrap();
        events.enable(pid, Target::default()).unwrap();
        let allocators = attach::allocators(pid).unwrap().expect("it has an allocator");
        let allocator = &allocators.files()[0];
        let allocates = allocator.functions.functions.iter().filter(|function| !function.shape.frees());
        let mut offsets: Vec<u64> = allocates.map(|function| function.file_offset).collect();
        offsets.sort_unstable();
        offsets.dedup();
        let mut links = Links::default();
        let file = allocator.module.open_path().unwrap();
        let task = NonZeroU32::new(pid).unwrap();
        links.attach(&mut programs, "copy_entry", &file, offsets, task).unwrap();
        Self { pid, programs, links: Some(links), copies, _events: events, _running: running }
    }

    /// The next one. What the thread remembered is what was found by walking.
    #[track_caller]
    pub(crate) fn next(&mut self) -> Box<StackCopy> {
        let deadline = Instant::now() + PATIENCE * slowness();
        loop {
            if let Some(copy) = self.copies.take() {
                assert!(
                    [0, copy.head.id].contains(&copy.remembered),
                    "another stack was remembered: {:x}",
                    copy.remembered
                );
                return copy;
            }
            assert!(Instant::now() < deadline, "process {} does not allocate", self.pid);
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// Stops the process at its next call, and returns that with what gdb says of the thread: the addresses in its frames
    /// above the allocator.
    pub(crate) fn next_with_gdb(&mut self) -> (Box<StackCopy>, Vec<u64>) {
        self.copies.stop(1).unwrap();
        let copy = std::iter::repeat_with(|| self.next()).find(|copy| copy.stopped == 1).unwrap();
        let frames = gdb(self.pid, copy.head.header.tid());
        kill(Pid::from_raw(self.pid as i32), Signal::SIGCONT).unwrap();
        (copy, frames)
    }
}

impl Drop for Copies {
    fn drop(&mut self) {
        if let Some(links) = self.links.take() {
            links.detach(&mut self.programs);
        }
    }
}

/// What gdb is to do: print the address of every frame that is a function's own.
const SCRIPT: &str = r#"python
import gdb
for thread in gdb.selected_inferior().threads():
    if thread.ptid[1] == TID or thread.ptid[0] == TID and thread.ptid[1] == 0:
        thread.switch()
frame = gdb.newest_frame()
while frame is not None:
    if frame.type() != gdb.INLINE_FRAME:
        print("frame", hex(frame.pc()))
    frame = frame.older()
end
"#;

/// Addresses in the frames of a thread of a stopped process, leaf first, without the first one's.
fn gdb(pid: u32, tid: u32) -> Vec<u64> {
    let folder = tempfile::tempdir().unwrap();
    let script = folder.path().join("frames.gdb");
    std::fs::write(&script, SCRIPT.replace("TID", &tid.to_string())).unwrap();
    let mut command = Command::new(program("gdb", "gdb"));
    command.args(["-nx", "-batch", "-iex", "set auto-load off", "-iex", "set debuginfod enabled off"]);
    command.args(["-ex", "set backtrace past-main on", "-ex", "set backtrace past-entry on", "-p", &pid.to_string()]);
    let output = command.arg("-x").arg(&script).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    let frames = text.lines().filter_map(|line| line.strip_prefix("frame 0x"));
    let frames: Vec<u64> = frames.map(|pc| u64::from_str_radix(pc, 16).unwrap()).collect();
    assert!(!frames.is_empty(), "gdb: {text}\n{}", String::from_utf8_lossy(&output.stderr));
    frames[1..].to_vec()
}
