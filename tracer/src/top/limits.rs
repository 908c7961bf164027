//! The memory limit that a process runs into first: that of its cgroup or of one above it, whichever leaves least; and when, if
//! the processes in there go on to grow as they did.

use std::{fs, path::Path, time::Duration};

use hashbrown::HashMap;

use super::{
    ranking::changes,
    reading::{Id, Reading},
};
use crate::process::cgroups::{self, Hierarchy, Membership};

/// Longest time that is foretold.
const FORESEEABLE: Duration = Duration::from_secs(365 * 24 * 60 * 60);

/// A limit of memory, bytes.
#[derive(Clone, Debug, PartialEq)]
pub struct Limit {
    /// The cgroup that has it: chosen by who made it.
    pub cgroup: String,
    /// How much memory it may have.
    pub bytes: u64,
    /// What of that is taken, without files that can be read again.
    pub used: u64,
    /// By how much all processes in it have grown, bytes per second.
    pub growth: f64,
}

impl Limit {
    /// When it will be reached; `None` when its processes do not grow, or hardly.
    pub fn reached(&self) -> Option<Duration> {
        if self.growth <= 0.0 {
            return None;
        }
        let left = self.bytes.saturating_sub(self.used) as f64;
        Duration::try_from_secs_f64(left / self.growth).ok().filter(|span| *span <= FORESEEABLE)
    }
}

/// The cgroups of all processes, and what is known of their limits.
#[derive(Default)]
pub struct Limits {
    hierarchies: Vec<Hierarchy>,
    memberships: HashMap<Id, Vec<Membership>>,
    /// Bytes per second, by the path of a cgroup: of it and what is below.
    growth: HashMap<String, f64>,
    /// Limit and use of cgroups that were looked at since the last reading.
    known: HashMap<String, Option<(u64, u64)>>,
    /// Memory of the machine: a limit that is not below it is none.
    machine: u64,
}

impl Limits {
    /// Of no process yet.
    pub fn new() -> Self {
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        Self { hierarchies: cgroups::hierarchies(&mounts), ..Self::default() }
    }

    /// Learns the cgroups of processes that have come, and how the processes in each cgroup have grown; forgets those that are gone.
    pub fn update(&mut self, before: &Reading, now: &Reading) {
        self.machine = now.machine.total;
        self.known.clear();
        for id in now.processes.keys() {
            self.memberships.entry(*id).or_insert_with(|| memberships(id.pid));
        }
        let seconds = now.at.saturating_duration_since(before.at).as_secs_f64();
        let changes = changes(before, now)
            .filter_map(|(id, change)| Some((&*cgroups::of_memory(self.memberships.get(&id)?)?.path, change)));
        self.growth = sums(changes, seconds);
        self.memberships.retain(|id, _| now.processes.contains_key(id));
    }

    /// The cgroups of one process as they are now.
    pub fn cgroups(&mut self, id: Id) -> &[Membership] {
        let memberships = memberships(id.pid);
        let known = self.memberships.entry(id).or_default();
        if !memberships.is_empty() {
            *known = memberships;
        }
        known
    }

    /// The limit that leaves least to a process.
    pub fn of(&mut self, id: Id) -> Option<Limit> {
        let membership = cgroups::of_memory(self.memberships.get(&id)?)?.clone();
        let hierarchy = self.hierarchies.iter().find(|hierarchy| hierarchy.is_of(&membership))?.clone();
        let limits = cgroups::ancestors(&membership.path).filter_map(|cgroup| {
            let look = || read(&hierarchy.folder(cgroup)?, hierarchy.is_v2());
            let known = self.known.entry(cgroup.to_owned()).or_insert_with(look);
            let (bytes, used) = known.filter(|(bytes, _)| *bytes < self.machine)?;
            let growth = self.growth.get(cgroup).copied().unwrap_or(0.0);
            Some(Limit { cgroup: cgroup.to_owned(), bytes, used, growth })
        });
        limits.min_by_key(|limit| limit.bytes.saturating_sub(limit.used))
    }
}

fn memberships(pid: u32) -> Vec<Membership> {
    // Of one that is gone nothing is known.
    cgroups::parse(&fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap_or_default())
}

/// Bytes per second of each cgroup and those above it.
fn sums<'a>(changes: impl Iterator<Item = (&'a str, i64)>, seconds: f64) -> HashMap<String, f64> {
    let mut sums: HashMap<String, f64> = HashMap::new();
    if seconds <= 0.0 {
        return sums;
    }
    for (path, change) in changes {
        for cgroup in cgroups::ancestors(path) {
            *sums.entry_ref(cgroup).or_default() += change as f64 / seconds;
        }
    }
    sums
}

/// Limit and use of the cgroup in `folder`; `None` when it has no limit.
fn read(folder: &Path, v2: bool) -> Option<(u64, u64)> {
    let file = |name: &str| fs::read_to_string(folder.join(name)).ok();
    let number = |name: &str| file(name)?.trim().parse::<u64>().ok();
    let (limit, used, prefix) = if v2 {
        ("memory.max", "memory.current", "")
    } else {
        ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_")
    };
    let limit = number(limit)?;
    let statistics = file("memory.stat").unwrap_or_default();
    Some((limit, number(used)?.saturating_sub(droppable(&statistics, prefix))))
}

/// Bytes of files in memory, from the text of `memory.stat`: the kernel drops them before it lets a limit be exceeded.
fn droppable(statistics: &str, prefix: &str) -> u64 {
    let names = ["active_file", "inactive_file"].map(|name| format!("{prefix}{name} "));
    let lines = statistics.lines().filter_map(|line| names.iter().find_map(|name| line.strip_prefix(&**name)));
    lines.filter_map(|number| number.trim().parse().ok()).fold(0, u64::saturating_add)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_forecast_needs_growth() {
        let limit = |bytes, used, growth| Limit { cgroup: "/a".to_owned(), bytes, used, growth };
        for (limit, seconds) in [
            (limit(1000, 400, 60.0), Some(10)),
            (limit(1000, 400, 0.0), None),
            (limit(1000, 400, -5.0), None),
            (limit(1000, 2000, 1.0), Some(0)),
            (limit(u64::MAX, 0, 1.0), None),
            (limit(1000, 0, f64::MIN_POSITIVE), None),
        ] {
            assert_eq!(limit.reached(), seconds.map(Duration::from_secs), "{limit:?}");
        }
    }

    #[test]
    fn growth_counts_for_all_cgroups_above() {
        let sums = sums([("/a/b", 600), ("/a/c", -100), ("/", 50)].into_iter(), 2.0);
        let of = |cgroup: &str| sums.get(cgroup).copied();
        assert_eq!([of("/a/b"), of("/a/c"), of("/a"), of("/")], [Some(300.0), Some(-50.0), Some(250.0), Some(275.0)]);
    }

    #[test]
    fn files_in_memory_are_not_in_use() {
        let folder = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| fs::write(folder.path().join(name), text).unwrap();
        write("memory.stat", "anon 10\ninactive_file 300\nactive_file 200\nfile 900\n");
        write("memory.max", "max\n");
        write("memory.current", "1500\n");
        assert_eq!(read(folder.path(), true), None);
        write("memory.max", "4096\n");
        assert_eq!(read(folder.path(), true), Some((4096, 1000)));
        write("memory.limit_in_bytes", "8192\n");
        write("memory.usage_in_bytes", "1500\n");
        write("memory.stat", "active_file 1\ntotal_inactive_file 300\ntotal_active_file 9\n");
        assert_eq!(read(folder.path(), false), Some((8192, 1191)));
    }
}
