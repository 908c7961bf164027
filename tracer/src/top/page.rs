//! What is shown at one moment: the processes in their order, with what is known of each.

use std::time::{Instant, SystemTime};

use super::{
    describe::{Describer, Description, Tracing},
    limits::{Limit, Limits},
    ranking::{Ranked, Sort, rank},
    reading::{Machine, Reading},
};
use crate::{process::cgroups, select::containers::Container};

/// All that is shown.
#[derive(Clone, Debug)]
pub struct Page {
    /// When the processes were looked at.
    pub time: SystemTime,
    /// Seconds since they were looked at before.
    pub seconds: f64,
    /// What they are ordered by.
    pub sort: Sort,
    /// How many have memory.
    pub processes: usize,
    /// How many threads of the kernel were left out.
    pub kernel_threads: usize,
    /// Memory of the machine.
    pub machine: Machine,
    /// Processes, the first in the order first.
    pub rows: Vec<Row>,
    /// What could not be seen.
    pub notes: Vec<String>,
}

/// A process.
#[derive(Clone, Debug, PartialEq)]
pub struct Row {
    /// Its memory and its growth.
    pub ranked: Ranked,
    /// What it is.
    pub description: Description,
    /// Path of its cgroup: of the hierarchy that counts memory, or another where it is in the root of that.
    pub cgroup: Option<String>,
    /// Runtime and id of its container.
    pub container: Option<(String, String)>,
    /// The limit that it runs into first.
    pub limit: Option<Limit>,
}

impl Page {
    /// The first `top` processes of `now`; what they are is waited for until `deadline`.
    pub fn new(
        (before, now): (&Reading, &Reading),
        (sort, top): (Sort, usize),
        limits: &mut Limits,
        describer: &mut Describer,
        deadline: Instant,
    ) -> Self {
        limits.update(before, now);
        let ranked = rank(before, now, sort, top);
        let ids: Vec<_> = ranked.iter().map(|one| one.sample.id).collect();
        let descriptions = describer.descriptions(&ids, deadline);
        let rows = ranked.into_iter().zip(descriptions).map(|(ranked, description)| {
            let id = ranked.sample.id;
            let memberships = limits.cgroups(id);
            let first = cgroups::of_memory(memberships).into_iter().chain(memberships);
            let cgroup = first.clone().find(|membership| membership.path != "/").or(first.clone().next());
            let container = memberships.iter().find_map(|membership| Container::of(&membership.path));
            Row {
                cgroup: cgroup.map(|membership| membership.path.clone()),
                container: container.map(|found| (found.runtime.to_owned(), found.id.to_owned())),
                limit: limits.of(id),
                ranked,
                description,
            }
        });
        let rows: Vec<Row> = rows.collect();
        Self {
            time: SystemTime::now(),
            seconds: now.at.saturating_duration_since(before.at).as_secs_f64(),
            sort,
            processes: now.processes.len(),
            kernel_threads: now.kernel_threads,
            machine: now.machine,
            notes: notes(now, &rows),
            rows,
        }
    }
}

fn notes(now: &Reading, rows: &[Row]) -> Vec<String> {
    let forbidden = rows.iter().filter(|row| row.description.tracing == Tracing::Forbidden).count();
    let forbidden = (forbidden > 0).then(|| {
        format!("tracer may not look into {forbidden} of these: it takes root (sudo tracer top), or CAP_SYS_PTRACE and CAP_CHECKPOINT_RESTORE")
    });
    // The first process is hidden where /proc is mounted with hidepid.
    let hidden = (!now.processes.keys().any(|id| id.pid == 1))
        .then(|| "/proc hides processes of other users (hidepid): run tracer as root (sudo tracer top)".to_owned());
    forbidden.into_iter().chain(hidden).collect()
}
