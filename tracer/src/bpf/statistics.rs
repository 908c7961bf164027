//! The kernel's own count of how often BPF programs run and how long they take: what benches measure programs by that have
//! no clock themselves.

use std::{fs, io, os::fd::OwnedFd, time::Duration};

use aya::{
    programs::loaded_programs,
    sys::{Stats, enable_stats},
};
use hashbrown::HashSet;

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

/// Ids of the programs that the descriptors of a process refer to, themselves or through a link.
fn programs_of(pid: u32) -> io::Result<HashSet<u32>> {
    let mut ids = HashSet::new();
    for entry in fs::read_dir(format!("/proc/{pid}/fdinfo"))? {
        // A descriptor may be closed meanwhile.
        let text = fs::read_to_string(entry?.path()).unwrap_or_default();
        let lines = text.lines().filter_map(|line| line.strip_prefix("prog_id:"));
        ids.extend(lines.filter_map(|id| id.trim().parse::<u32>().ok()));
    }
    Ok(ids)
}
