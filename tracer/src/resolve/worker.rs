//! What a worker does: one job after the other, each of which may take its time.

use std::{
    collections::hash_map::DefaultHasher,
    hash::{Hash as _, Hasher as _},
    io,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, mpsc},
};

use hashbrown::HashSet;
use tracer_ebpf::unwind::FileKey;

use super::{
    machine::{self, read},
    program,
    resolved::Located,
};
use crate::{
    event::{Image, Pid, UnknownFile},
    files::{
        module::{Identity, Module},
        root::ProcessDirectory,
    },
    heap::StackIndex,
    priority,
    space::{
        address_space::{AddressSpace, is_file},
        maps,
    },
    trails::{self, Site},
    unwinder::{self, Compiled},
};

/// Work for a worker.
pub(super) enum Job {
    /// Compiles the table of a file; its number, where it has one already.
    Compile(Option<u32>, Arc<Module>),
    /// Opens files that were met in a process.
    Open(Pid, Vec<UnknownFile>),
    /// Looks up what lies in no file.
    Locate(Image, Box<AddressSpace>, Vec<(StackIndex, Vec<Site>)>),
    /// Looks which executable mappings a process has.
    Mappings(Image, Pid),
    /// Opens what a process that has just become a program will map.
    Program(Pid, FileKey),
    /// Opens what all processes have mapped.
    Machine,
}

/// What came of it.
pub(super) enum Done {
    Compiled(Option<u32>, Box<Compiled>),
    Opened(Vec<(UnknownFile, Opening)>),
    Located(Image, Box<AddressSpace>, Vec<Located>),
    /// What tells these mappings from others.
    Mappings(Image, Option<u64>),
    /// Of a program.
    Found(Arc<Module>),
    /// Of the machine.
    Seen(Arc<Module>),
    /// All of a program is found.
    Searched,
    /// All of the machine is seen.
    Surveyed,
}

/// A file that was met.
pub(super) enum Opening {
    /// What is mapped there now.
    File(Arc<Module>),
    /// Memory for generated code.
    Generated,
    /// Nothing, or no process.
    Gone,
}

/// Does what it is given, until there is nobody any more. `tell` gets what came of it, and whether that is all.
pub(super) fn run(jobs: &mpsc::Receiver<Job>, tell: impl Fn(Done, bool)) {
    // Programs that were looked at.
    let mut programs: HashSet<Identity> = HashSet::new();
    for job in jobs {
        set_priority(&job);
        let last = match job {
            Job::Compile(number, module) => Done::Compiled(number, Box::new(compile(module))),
            Job::Open(pid, wanted) => Done::Opened(open(pid, wanted)),
            Job::Locate(image, mut space, stacks) => {
                let located = locate(&mut space, stacks);
                Done::Located(image, space, located)
            }
            Job::Mappings(image, pid) => Done::Mappings(image, mappings(pid).ok()),
            Job::Program(pid, program) => {
                program::look(pid, &program, &mut programs, |module| tell(Done::Found(module), false));
                Done::Searched
            }
            Job::Machine => {
                machine::look(|module| tell(Done::Seen(module), false));
                Done::Surveyed
            }
        };
        tell(last, true);
    }
}

/// Until a file is known that a process has met, its stacks are cut: that goes before what others do for a moment.
fn set_priority(job: &Job) {
    priority::set_own(match job {
        Job::Compile(Some(_), _) | Job::Open(..) | Job::Program(..) => priority::URGENT,
        Job::Compile(None, _) | Job::Locate(..) | Job::Mappings(..) | Job::Machine => priority::NORMAL,
    });
}

/// What is in the file is hostile: should it make the compiler panic, it has no table.
fn compile(module: Arc<Module>) -> Compiled {
    let compiled = catch_unwind(AssertUnwindSafe(|| unwinder::compile(Arc::clone(&module))));
    compiled.unwrap_or_else(|_| Compiled::failed(module, "its unwind information makes no sense"))
}

fn open(pid: Pid, wanted: Vec<UnknownFile>) -> Vec<(UnknownFile, Opening)> {
    let opened = ProcessDirectory::with_memory(pid).and_then(|process| Ok((read(&process)?, process)));
    let Ok((mappings, process)) = opened else {
        return wanted.into_iter().map(|unknown| (unknown, Opening::Gone)).collect();
    };
    let root = process.root().map(Arc::new).ok();
    let find = |unknown: UnknownFile| {
        let UnknownFile { start, end, .. } = unknown;
        let is_there = |mapping: &&maps::Mapping| mapping.inode != 0 && mapping.start < end && start < mapping.end;
        let Some(mapping) = mappings.iter().find(is_there) else { return (unknown, Opening::Gone) };
        let module = Module::open(&process, root.as_ref(), mapping);
        let is_file = is_file(&module, mapping);
        (unknown, if is_file { Opening::File(Arc::new(module)) } else { Opening::Generated })
    };
    wanted.into_iter().map(find).collect()
}

/// Looks at the mappings when those of the last look leave a place in doubt. What has no place then never will: the walk by
/// frame pointers also yields words that are no addresses.
fn locate(space: &mut AddressSpace, stacks: Vec<(StackIndex, Vec<Site>)>) -> Vec<Located> {
    let mut is_fresh = false;
    let locate = |(stack, sites): (StackIndex, Vec<Site>)| {
        let mut found = trails::complete(sites.clone(), space);
        if found.is_doubtful && !is_fresh {
            is_fresh = true;
            if let Err(error) = space.refresh() {
                // Gone: what was known stays.
                tracing::debug!("cannot read mappings: {error}");
            }
            found = trails::complete(sites, space);
        }
        Located { stack, sites: found.sites, is_unproved: found.is_unproved }
    };
    stacks.into_iter().map(locate).collect()
}

/// A number that tells the files that a process has mapped to run from others: not where it generates code.
fn mappings(pid: Pid) -> io::Result<u64> {
    let mut hasher = DefaultHasher::new();
    for mapping in read(&ProcessDirectory::with_memory(pid)?)?.iter().filter(|mapping| mapping.inode != 0) {
        (mapping.start, mapping.end, mapping.offset, mapping.device, mapping.inode).hash(&mut hasher);
    }
    Ok(hasher.finish())
}
