//! The kernel's own counts: how often BPF programs run and how long they take, which benches measure programs by that have no clock
//! themselves; and how many entries maps have, by which they and tests see what is left over.

use std::{
    collections::BTreeMap,
    fs, io,
    os::fd::{AsFd as _, OwnedFd},
    time::Duration,
};

use aya::{
    maps::{MapInfo, MapType, loaded_maps},
    programs::loaded_programs,
    sys::{Stats, enable_stats},
};
use hashbrown::HashSet;

use super::sys;

/// What programs have done so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Runs {
    /// How often they ran.
    pub count: u64,
    /// How long they ran altogether; the kernel's reading of its clock at both ends is a part of it.
    pub time: Duration,
}

/// The kernel counts as long as this lives.
pub struct Statistics {
    _counting: OwnedFd,
}

impl Statistics {
    /// Has the kernel count, for all programs of the machine.
    ///
    /// # Errors
    /// When the kernel refuses (before 5.8, or without the right to).
    pub fn start() -> io::Result<Self> {
        Ok(Self { _counting: enable_stats(Stats::RunTime).map_err(io::Error::other)? })
    }

    /// What those programs have done, since they were loaded, that the process `pid` holds and whose name is `wanted`. Names
    /// are the first 15 bytes.
    ///
    /// # Errors
    /// The process has ended.
    pub fn of(&self, pid: u32, wanted: impl Fn(&str) -> bool) -> io::Result<Runs> {
        let held = programs_of(pid)?;
        let mut runs = Runs::default();
        // One that ends meanwhile belongs to somebody else.
        for program in loaded_programs().filter_map(Result::ok) {
            if held.contains(&program.id()) && program.name_as_str().is_some_and(&wanted) {
                runs.count += program.run_count();
                runs.time += program.run_time();
            }
        }
        Ok(runs)
    }
}

/// How many entries each hash map has that the process `pid` holds, by name.
///
/// # Errors
/// The process has ended, or the kernel refuses.
pub fn entries_of(pid: u32) -> io::Result<BTreeMap<String, u64>> {
    let mut entries = BTreeMap::new();
    for id in ids(pid, "map_id:")? {
        let map = MapInfo::from_id(id).map_err(io::Error::other)?;
        if map.map_type().is_ok_and(|kind| matches!(kind, MapType::Hash)) {
            let fd = map.fd().map_err(io::Error::other)?;
            let name = map.name_as_str().unwrap_or_default().to_owned();
            entries.insert(name, sys::count_entries(fd.as_fd(), map.key_size())?);
        }
    }
    Ok(entries)
}

/// How many programs and maps of this name the kernel has, whoever holds them. Names are the first 15 bytes.
///
/// # Errors
/// The kernel refuses.
pub fn named_objects(name: &str) -> io::Result<usize> {
    // What goes meanwhile is no more.
    let programs = loaded_programs().filter_map(Result::ok).filter(|program| program.name_as_str() == Some(name));
    let maps = loaded_maps().filter_map(Result::ok).filter(|map| map.name_as_str() == Some(name));
    Ok(programs.count() + maps.count())
}

/// Ids of the programs that the descriptors of a process refer to, themselves or through a link.
fn programs_of(pid: u32) -> io::Result<HashSet<u32>> {
    ids(pid, "prog_id:")
}

/// What the descriptors of a process say of themselves behind this word.
fn ids(pid: u32, word: &str) -> io::Result<HashSet<u32>> {
    let mut ids = HashSet::new();
    for entry in fs::read_dir(format!("/proc/{pid}/fdinfo"))? {
        // A descriptor may be closed meanwhile.
        let text = fs::read_to_string(entry?.path()).unwrap_or_default();
        let lines = text.lines().filter_map(|line| line.strip_prefix(word));
        ids.extend(lines.filter_map(|id| id.trim().parse::<u32>().ok()));
    }
    Ok(ids)
}
