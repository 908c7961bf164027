//! Programs for uprobe-multi links: one link for many instructions, cheaper to hit and to take off than a perf event for
//! each. The kernel wants to know at load time, and aya has no such program type: the object is read by aya's parser once
//! more, bound to the maps that are there already, and its programs are loaded here.

use std::{
    ffi::CString,
    io,
    os::{
        fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd},
        unix::ffi::OsStrExt as _,
    },
    path::Path,
    thread,
};

use aya::{Ebpf, maps::Map};
use aya_obj::{Object, ProgramSection};
use hashbrown::{HashMap, hash_map::Entry};

use super::{
    kernel_version,
    load_error::LoadError,
    refusal,
    site::{Order, Placed},
    sys::{self, Moment},
};

/// First kernel whose uprobe-multi links know processes by all their threads. (Those of 6.6 to 6.12 compare address spaces
/// or single threads, and fall silent when the first thread has ended.) It has sessions too.
const KERNEL: (u32, u32) = (6, 13);

/// The program that is one for entries and returns.
pub(super) const SESSION: &str = "session";

/// The programs of the object that go to instructions. Each is loaded when it is attached for the first time.
pub(super) struct Multi {
    object: Object,
    btf: Option<OwnedFd>,
    /// Those that were loaded, by name.
    loaded: HashMap<String, Loaded>,
}

pub(super) struct Loaded {
    program: OwnedFd,
    moment: Moment,
}

/// Whether a kernel of this release has what is needed.
pub(super) fn is_supported(release: &str) -> bool {
    kernel_version(release).is_some_and(|version| version >= KERNEL)
}

/// Whether traces use uprobe-multi links on the running kernel, where it has them.
pub fn uses_multi_here() -> bool {
    is_supported(&rustix::system::uname().release().to_string_lossy())
}

impl Multi {
    /// Makes the programs of `object` ready for loading, with the maps of `ebpf`, which was made of it. One is loaded, to
    /// see whether the kernel takes such programs.
    ///
    /// # Errors
    /// As [`LoadError`] says.
    pub(super) fn load(object: &[u8], ebpf: &Ebpf) -> Result<Self, LoadError> {
        let mismatch = |error: &dyn std::fmt::Display| LoadError::Mismatch(error.to_string());
        let mut object = Object::parse(object).map_err(|error| mismatch(&error))?;
        let features = aya::features().btf().ok_or_else(|| LoadError::Mismatch("a kernel without BTF".to_owned()))?;
        let btf = object.fixup_and_sanitize_btf(features).map_err(|error| mismatch(&error))?;
        let btf = btf.map(|btf| sys::load_btf(&btf.to_bytes())).transpose();
        let btf = btf.map_err(|error| LoadError::Program("BTF".to_owned(), refusal::explain(&error)))?;
        let maps: Vec<(String, aya_obj::Map)> = object.maps.drain().collect();
        let bound: Option<Vec<_>> = maps
            .iter()
            .map(|(name, map)| Some((name.as_str(), descriptor(ebpf.map(name)?)?.as_raw_fd(), map)))
            .collect();
        let bound = bound.ok_or_else(|| LoadError::Mismatch("a map is missing".to_owned()))?;
        let sections = object.functions.keys().map(|(section, _)| *section).collect();
        object.relocate_maps(bound.into_iter(), &sections).map_err(|error| mismatch(&error))?;
        object.relocate_calls(&sections).map_err(|error| mismatch(&error))?;
        let mut multi = Self { object, btf, loaded: HashMap::new() };
        multi.program("enter_free")?;
        Ok(multi)
    }

    /// The program `name`, loaded.
    pub(super) fn program(&mut self, name: &str) -> Result<&Loaded, LoadError> {
        let Self { object, btf, loaded } = self;
        match loaded.entry(name.to_owned()) {
            Entry::Occupied(entry) => Ok(entry.into_mut()),
            Entry::Vacant(entry) => {
                let mismatch = || LoadError::Mismatch(format!("no program {name}"));
                let program = object.programs.get(name).ok_or_else(mismatch)?;
                let moment = match program.section {
                    ProgramSection::UProbe { .. } if name == SESSION => Moment::Session,
                    ProgramSection::UProbe { .. } => Moment::Instruction,
                    ProgramSection::URetProbe { .. } => Moment::Return,
                    _ => return Err(mismatch()),
                };
                let function = object.functions.get(&program.function_key()).ok_or_else(mismatch)?;
                let btf = btf.as_ref().map(|fd| fd.as_fd());
                let load = || sys::load_multi(name, function, &program.license, btf, moment);
                let program = refusal::again(load, io::Error::raw_os_error)
                    .map_err(|error| LoadError::Program(name.to_owned(), refusal::explain(&error)))?;
                Ok(entry.insert(Loaded { program, moment }))
            }
        }
    }

    /// Attaches programs at their sites in `file`, for the process `pid` only, or for all if it is 0; those that are attached are
    /// put to `links`, in this order.
    pub(super) fn attach_all(
        &mut self,
        placed: &[Placed],
        file: &Path,
        pid: u32,
        order: Order,
        links: &mut Vec<OwnedFd>,
    ) -> Result<(), LoadError> {
        for (name, _) in placed {
            self.program(name)?;
        }
        let this = &*self;
        let attach = |(name, sites): &Placed| {
            let program = this.loaded.get(*name).ok_or_else(|| LoadError::Mismatch(format!("no program {name}")))?;
            let path = CString::new(file.as_os_str().as_bytes()).map_err(io::Error::from);
            path.and_then(|path| sys::link_multi(program.program.as_fd(), &path, sites, pid, program.moment))
                .map_err(|error| LoadError::Program((*name).to_owned(), refusal::explain(&error)))
        };
        if order == Order::InTurn || placed.len() < 2 {
            for one in placed {
                links.push(attach(one)?);
            }
            return Ok(());
        }
        // The kernel waits for each, not for all of them in turn.
        let attached = thread::scope(|scope| {
            let attaching: Vec<_> = placed.iter().map(|one| scope.spawn(move || attach(one))).collect();
            let ended = |_| LoadError::Mismatch("attaching has ended with a bug".to_owned());
            attaching.into_iter().map(|one| one.join().map_err(ended)?).collect::<Vec<_>>()
        });
        let mut failure = None;
        for link in attached {
            match link {
                Ok(link) => links.push(link),
                Err(error) => failure = failure.or(Some(error)),
            }
        }
        failure.map_or(Ok(()), Err)
    }
}

/// The descriptor of a map of the kinds that the object has.
fn descriptor(map: &Map) -> Option<BorrowedFd<'_>> {
    match map {
        Map::Array(data)
        | Map::HashMap(data)
        | Map::LruHashMap(data)
        | Map::PerCpuArray(data)
        | Map::PerCpuHashMap(data)
        | Map::RingBuf(data)
        | Map::StackTraceMap(data) => Some(data.fd().as_fd()),
        _ => None,
    }
}
