//! Finding the allocator of a process that is to be traced, and putting the first probes on it.

use std::{
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Result, anyhow};

use super::{
    Attached, Returns,
    find::{Allocators, Phase, code_files_in, describe, executable, find, mappings},
    probes::{Probes, Put},
};
use crate::{
    bpf::Order,
    control::lifecycle::Life,
    event::{Image, Pid},
    files::{
        elf::{Bytes, Elf, needed::Needed},
        module::Module,
        opener,
    },
    process::status::{self, NotTraceable, Status},
    profile::{Language, Process},
    space::address_space::AddressSpace,
};

impl Attached {
    /// Attaches to a running process. Recording begins when the collector is told. `go`: it has another heap than that of an
    /// allocator, and may have no allocator at all. `mapped` is told what the process has mapped, before that is searched.
    ///
    /// # Errors
    /// No allocator, no right, or the process has ended.
    pub fn attach(
        probes: &mut Probes,
        pid: Pid,
        image: Image,
        status: Status,
        go: bool,
        returns: Returns,
        mapped: impl Fn(&AddressSpace),
    ) -> Result<Self> {
        let Look { space, found, is_being_loaded } = look(pid, mapped).map_err(|error| explain(pid, &status, error))?;
        if is_being_loaded {
            let target = describe(pid, &status, &space);
            let mut attached = Self::new(image, target, Life::recorded(pid), None, returns);
            attached.code_files = code_files_in(&space);
            attached.was_unseen(format!(
                "process {pid} has not mapped its libraries yet: it is stopped while it is being loaded, or is very slow; what it \
                 allocates is recorded from when they are found"
            ));
            return Ok(attached);
        }
        if found.is_none() && go {
            let target = describe(pid, &status, &space);
            let mut attached = Self::new(image, target, Life::recorded(pid), None, Returns::default());
            attached.tell_of_c(&space);
            return Ok(attached);
        }
        let allocators = found.ok_or_else(|| {
            match status::check(pid) {
                Ok(_) => {}
                Err(NotTraceable::Exhausted(exhausted)) => return anyhow!(exhausted),
                Err(gone) => {
                    return anyhow!(gone).context(format!("process {pid} ended while it was being attached to"));
                }
            }
            let unread = opener::notes();
            if !unread.is_empty() {
                return anyhow!(
                    "process {pid} ({}) has no malloc in what can be read of its executable and its libraries: {}",
                    status.comm,
                    unread.join("; ")
                );
            }
            anyhow!(
                "process {pid} ({}) has no malloc in its executable or its libraries: there is nothing to probe \
                 (statically linked and stripped, or an allocator of its own: name its functions with --symbol)",
                status.comm
            )
        })?;
        let attached = Self::with(probes, (pid, image), &status, &space, allocators, returns)?;
        Ok(Self { code_files: code_files_in(&space), ..attached })
    }

    /// Of a process with no allocator but that of its Go runtime.
    pub fn without_allocator(pid: Pid, image: Image, status: &Status) -> Self {
        // One that has ended is known by its name.
        let space = mappings(pid).ok();
        let target = space.as_ref().map_or_else(
            || Process::new(pid, status.comm.clone(), status.exe.clone(), Language::C),
            |space| describe(pid, status, space),
        );
        let mut attached = Self::new(image, target, Life::recorded(pid), None, Returns::default());
        if let Some(space) = &space {
            attached.tell_of_c(space);
        }
        attached
    }

    /// A Go program in which no malloc was found may have one all the same, with the C that was linked into it.
    pub(super) fn tell_of_c(&mut self, space: &AddressSpace) {
        let executable = executable(self.pid, space);
        let has_c = executable.as_ref().and_then(|module| module.file()).is_some_and(|file| {
            let bytes = Bytes::new(file);
            Elf::parse(&bytes).is_ok_and(|elf| elf.has_unwind_table())
        });
        if has_c {
            self.was_unseen(format!(
                "process {}: C was linked into its program, of whose malloc no symbol tells (it is stripped): what C allocates in it is not \
                 recorded",
                self.pid
            ));
        }
    }

    /// The same for a program that is being loaded: `None` when its allocator is not there yet.
    ///
    /// # Errors
    /// As [`Attached::attach`].
    pub fn attach_loading(
        probes: &mut Probes,
        pid: Pid,
        image: Image,
        status: Status,
        returns: Returns,
    ) -> Result<Option<Self>> {
        let space = mappings(pid).map_err(|error| explain(pid, &status, error))?;
        let found = find(pid, &space, Phase::Loading).map_err(|error| explain(pid, &status, error))?;
        found.map(|allocators| Self::with(probes, (pid, image), &status, &space, allocators, returns)).transpose()
    }

    fn with(
        probes: &mut Probes,
        (pid, image): (Pid, Image),
        status: &Status,
        space: &AddressSpace,
        allocators: Allocators,
        returns: Returns,
    ) -> Result<Self> {
        let put = probes.attach(allocators.files(), pid, pid, returns, Order::AtOnce);
        let Put { own, unseen } = put.map_err(|error| explain(pid, status, error))?;
        let target = describe(pid, status, space);
        let mut attached = Self { links: own, ..Self::new(image, target, Life::recorded(pid), None, returns) };
        attached.tell_of_files(&allocators);
        attached.allocators = Some(allocators);
        unseen.into_iter().for_each(|note| attached.was_unseen(note));
        Ok(attached)
    }
}

/// How long a program that is just being loaded is waited for, and how often it is looked at.
const LOADING: Duration = Duration::from_millis(100);
const LOOK: Duration = Duration::from_millis(2);

/// What there is of a process.
struct Look {
    space: AddressSpace,
    found: Option<Allocators>,
    /// There are no allocators because its loader is still at work.
    is_being_loaded: bool,
}

/// The mappings of a process, and the allocators in them; a little later if its loader is still at work.
fn look(pid: Pid, mapped: impl Fn(&AddressSpace)) -> Result<Look> {
    let deadline = Instant::now() + LOADING;
    loop {
        let space = mappings(pid)?;
        mapped(&space);
        let found = find(pid, &space, Phase::Running)?;
        let is_being_loaded = found.is_none() && is_being_loaded(pid, &space);
        if !is_being_loaded || Instant::now() >= deadline {
            return Ok(Look { space, found, is_being_loaded });
        }
        thread::sleep(LOOK);
    }
}

/// Whether not all of the libraries are there yet that the program needs: its loader is at work.
fn is_being_loaded(pid: Pid, space: &AddressSpace) -> bool {
    let others = |module: Arc<Module>| {
        let bytes = Bytes::new(module.file()?);
        let Needed { interpreter, libraries, .. } = Elf::parse(&bytes).ok()?.needed();
        let interpreter = interpreter?;
        Some(libraries.iter().filter(|name| !interpreter.ends_with(name.as_str())).count())
    };
    // And the program's and the loader's own.
    let needed = executable(pid, space).and_then(others).unwrap_or(0);
    needed > 0 && code_files_in(space).len() < needed + 2
}

/// Puts a failure down to the end of the process where that is what it is.
fn explain(pid: Pid, status: &Status, error: anyhow::Error) -> anyhow::Error {
    match status::check(pid) {
        Ok(now) if now.start_time == status.start_time => error,
        Err(NotTraceable::Exhausted(exhausted)) => anyhow!(exhausted),
        _ => anyhow!("process {pid} ended while it was being attached to: trace the process that replaces it"),
    }
}
