//! What the kernel lets this process do, found out by trying.

use std::{fs, io};

use rustix::thread::CapabilitySet;

use super::{
    filtered,
    line::{Line, Need, Section},
    rights::Rights,
};
use crate::{
    bpf::{
        self, Config, NoRemappings, Programs, subject,
        trials::{self, Helper, Uprobe},
    },
    process::cgroups,
    report::size,
};

/// The buffer of a trace, unless it is said otherwise, bytes.
const BUFFER: u32 = 64 << 20;
/// The smallest one, bytes.
const SMALLEST_BUFFER: u32 = 4096;

/// Raw tracepoints of which a trace cannot do without.
const TRACEPOINTS: [(&str, &str); 3] = [
    ("sched_process_fork", "children of traced processes"),
    ("sched_process_exec", "processes that become other programs"),
    ("sched_process_exit", "ends of threads and processes"),
];

const BPF: CapabilitySet = CapabilitySet::BPF;
const TRACING: CapabilitySet = CapabilitySet::BPF.union(CapabilitySet::PERFMON);
const EVENTS: CapabilitySet = TRACING.union(CapabilitySet::SYS_ADMIN);

/// What was found.
pub(super) struct Kernel {
    /// In lines.
    pub(super) sections: Vec<Section>,
    /// Whether probes are perf events here.
    pub(super) by_events: bool,
    /// Whether there are return probes of which the entry decides.
    pub(super) sessions: bool,
}

/// Tries what a trace needs of the kernel, whose release is this.
pub(super) fn examine(rights: &Rights, release: &str) -> Kernel {
    let mut bpf = vec![
        tried(Line::new("BPF maps", Need::Required, "everything"), trials::map(), "one was made", rights, BPF),
        tried(
            Line::new("BPF programs", Need::Required, "everything"),
            trials::program(),
            "one was loaded",
            rights,
            TRACING,
        ),
        ring_buffer(rights),
        helper(rights, Helper::Loop, "bpf_loop", Need::Required, "walking stacks"),
        helper(rights, Helper::FindVma, "bpf_find_vma", Need::Required, "finding the file of an address"),
        helper(rights, Helper::AttachCookie, "bpf_get_attach_cookie", Need::Required, "telling functions apart"),
        tried(
            Line::new(
                "programs that are run on the spot",
                Need::Required,
                "knowing mapped files by the kernel's numbers",
            ),
            trials::run(),
            "one was run",
            rights,
            TRACING,
        ),
    ];
    bpf.extend(types());
    bpf.extend(TRACEPOINTS.iter().map(|(name, needed_for)| tracepoint(rights, name, Need::Required, needed_for)));
    let uprobes = Uprobes::try_all(release);
    let (by_events, sessions) = (uprobes.by_events(), uprobes.sessions());
    let filtered = filters(if sessions { Uprobe::Session } else { Uprobe::ReturnEvent });
    let sections = vec![
        Section { title: "BPF", lines: bpf },
        Section { title: "probes", lines: uprobes.lines(rights).into_iter().chain(filtered).collect() },
        Section { title: "tracer's own programs", lines: own(rights) },
        Section { title: "limits", lines: limits() },
    ];
    Kernel { sections, by_events, sessions }
}

/// A trial as a line. `wanted`: the capabilities that the kernel asks for.
fn tried(line: Line, result: io::Result<()>, good: &str, rights: &Rights, wanted: CapabilitySet) -> Line {
    match result {
        Ok(()) => line.works(good),
        Err(error) => line.missing(error.to_string(), advice(&error, &rights.missing(wanted))),
    }
}

fn is_forbidden(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EPERM | libc::EACCES))
}

/// What to do about capabilities that are missing, if any are.
fn with_rights(lacking: &[&str]) -> Option<String> {
    (!lacking.is_empty()).then(|| format!("run tracer as root (sudo), or with {}", lacking.join(" and ")))
}

/// What to do about an error. `lacking`: capabilities that are missing of those that the kernel asks for.
fn advice(error: &io::Error, lacking: &[&str]) -> String {
    match error.raw_os_error() {
        _ if is_forbidden(error) => with_rights(lacking).unwrap_or_else(|| {
            "the rights are there: a seccomp filter (of a container) or the kernel's lockdown forbids it".to_owned()
        }),
        Some(libc::ENOMEM) => "raise memory.max of the cgroup that tracer runs in, or run it outside".to_owned(),
        Some(libc::EMFILE | libc::ENFILE) => "raise the limit of open files (ulimit -Hn)".to_owned(),
        Some(libc::ENOSYS) => "a kernel with CONFIG_BPF_SYSCALL=y and CONFIG_UPROBE_EVENTS=y is needed".to_owned(),
        _ => "a newer kernel is needed (5.17), as distributions configure it".to_owned(),
    }
}

fn ring_buffer(rights: &Rights) -> Line {
    let line = Line::new("BPF ring buffer", Need::Required, "records of allocations");
    match (trials::ring_buffer(BUFFER), trials::ring_buffer(SMALLEST_BUFFER)) {
        (Ok(()), _) => line.works(format!("one of {} was made", size(BUFFER.into()))),
        (Err(error), Ok(())) => line.degraded(
            format!("none of {}, the usual size: {error}", size(BUFFER.into())),
            format!("take a smaller --buffer-size; or {}", advice(&error, &[])),
        ),
        (_, result) => tried(line, result, "", rights, BPF),
    }
}

fn helper(rights: &Rights, helper: Helper, name: &str, need: Need, needed_for: &'static str) -> Line {
    let line = Line::new(name, need, needed_for);
    match trials::helper(helper) {
        Ok(true) => line.works("programs can call it"),
        Ok(false) => line.missing("the kernel has none", "Linux 5.17 or newer is needed"),
        Err(error) => tried(line, Err(error), "", rights, TRACING),
    }
}

fn tracepoint(rights: &Rights, name: &str, need: Need, needed_for: &'static str) -> Line {
    let line = Line::new(format!("raw tracepoint {name}"), need, needed_for);
    match trials::raw_tracepoint(name) {
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => {
            line.missing("the kernel has none of that name", "a kernel with CONFIG_TRACEPOINTS=y is needed")
        }
        result => tried(line, result, "attached", rights, TRACING),
    }
}

/// What the kernel says of itself.
fn types() -> Vec<Line> {
    let btf = Line::new("BTF", Need::Required, "where the kernel keeps what programs read");
    let tree = Line::new(
        "shape of the maple tree",
        Need::ForCompleteness,
        "mappings of a process whose other threads change them",
    );
    let found = match trials::kernel_types() {
        Ok(found) => found,
        Err(error) => {
            let advice = "a kernel with CONFIG_DEBUG_INFO_BTF=y is needed, and /sys where tracer runs";
            return vec![btf.missing(format!("/sys/kernel/btf/vmlinux: {error}"), advice)];
        }
    };
    let returns = Line::new(
        "list of return probes",
        Need::ForCompleteness,
        "stacks through functions whose returns others probe",
    );
    let tasks =
        Line::new("fields of tasks", Need::ForCompleteness, "ends of processes, children on their parent's memory");
    let unknown = |line: Line| line.degraded("BTF does not tell it", "tell the makers of tracer which kernel that is");
    let told = |line: Line, is_told: bool| if is_told { line.works("as BTF tells it") } else { unknown(line) };
    vec![
        match found.mappings {
            true => btf.works("it tells what is needed"),
            false => btf.missing("it does not tell where mappings are", "a kernel of 5.17 or newer is needed"),
        },
        match (found.tree, found.changes) {
            (true, _) => tree.works("one that can be read"),
            (false, _) => tree.degraded(
                "none that is known (before Linux 6.1 there is another tree): those of other threads' moments are cut",
                "nothing: few stacks are cut by that, and reports count them",
            ),
        },
        told(returns, found.return_instances),
        told(tasks, found.tasks),
    ]
}

/// Trials of uprobes: how often a program ran.
struct Uprobes {
    event: io::Result<u64>,
    return_event: io::Result<u64>,
    multi: io::Result<u64>,
    session: io::Result<u64>,
    /// Whether traces use uprobe-multi links where they are there.
    wants_multi: bool,
}

impl Uprobes {
    fn try_all(release: &str) -> Self {
        let hits = |way| trials::uprobe(way, subject::path(), subject::place()?, None, subject::call);
        Self {
            event: hits(Uprobe::Event),
            return_event: hits(Uprobe::ReturnEvent),
            multi: hits(Uprobe::Multi),
            session: hits(Uprobe::Session),
            wants_multi: trials::uses_multi(release),
        }
    }

    /// Whether probes are perf events here. A right that is missing says nothing of that.
    fn by_events(&self) -> bool {
        let hit_or_forbidden = self.multi.as_ref().map_or_else(is_forbidden, |hits| *hits == 1);
        !self.wants_multi || !hit_or_forbidden
    }

    fn sessions(&self) -> bool {
        !self.by_events() && matches!(self.session, Ok(2))
    }

    fn lines(self, rights: &Rights) -> Vec<Line> {
        let (by_events, wants_multi) = (self.by_events(), self.wants_multi);
        let need = |wanted: bool| if wanted { Need::Required } else { Need::Optional };
        let event = Line::new("uprobes by perf events", need(by_events), "probes on functions, without multi links");
        let return_event = Line::new("return probes by perf events", need(by_events), "the same at returns");
        let events = |line: Line, result: io::Result<u64>| match result {
            Err(error) if !by_events && is_forbidden(&error) => {
                line.not_needed("not allowed without CAP_SYS_ADMIN; multi links are used")
            }
            result => hit(line, result, 1, rights, EVENTS),
        };
        let multi = Line::new(
            "uprobes by multi links",
            need(!by_events),
            "cheaper probes, that know a process by all its threads",
        );
        let session = Line::new("uprobe sessions", Need::Optional, "returns of functions without exits that are known");
        vec![
            events(event, self.event),
            events(return_event, self.return_event),
            match self.multi {
                Ok(1) if !wants_multi => multi.not_needed(
                    "they work, but fall silent when the first thread of a process ends: used from Linux 6.13 on",
                ),
                result => or_older(multi, result, 1, rights),
            },
            match self.session {
                _ if by_events => session.not_needed("used with multi links only"),
                result => or_older(session, result, 2, rights),
            },
        ]
    }
}

/// Whether return probes harm processes with a seccomp filter; `None` where there are no return probes to try.
fn filters(way: Uprobe) -> Option<Line> {
    let line =
        Line::new("return probes under seccomp", Need::ForCompleteness, "processes in containers, which have filters");
    match filtered::lives(way) {
        Ok(true) => Some(line.works("a process of tracer's with a filter was probed, and lived on")),
        Ok(false) => Some(line.degraded(
            "a process of tracer's with a filter was probed, and was lost: this kernel has its filter refuse the return",
            "trace processes with filters by --returns=exits or --returns=ret only; later releases of the kernel have it mended",
        )),
        Err(_) => None,
    }
}

/// A probe that was to be hit so often.
fn hit(line: Line, result: io::Result<u64>, expected: u64, rights: &Rights, wanted: CapabilitySet) -> Line {
    match result {
        Ok(hits) if hits == expected => line.works("one on tracer's own file was hit"),
        Ok(hits) => line.missing(
            format!("one on tracer's own file was hit {hits} times, not {expected}"),
            "something else on this machine handles breakpoints first: a debugger, a hypervisor",
        ),
        Err(error) => tried(line, Err(error), "", rights, wanted),
    }
}

/// The same of what older kernels do not have, where another way does.
fn or_older(line: Line, result: io::Result<u64>, expected: u64, rights: &Rights) -> Line {
    match result {
        Err(error) if !is_forbidden(&error) => line.degraded(
            format!("this kernel has none ({error}): perf events, or single steps, are used"),
            "nothing; Linux 6.13 has them",
        ),
        result => hit(line, result, expected, rights, TRACING),
    }
}

/// Whether the kernel takes what traces load.
fn own(rights: &Rights) -> Vec<Line> {
    let line = Line::new("all BPF programs", Need::Required, "everything");
    let mut programs = match Programs::load(Config::smallest()) {
        Ok(programs) => programs,
        Err(error) => {
            let advice = with_rights(&rights.missing(TRACING)).unwrap_or_else(|| "see above".to_owned());
            return vec![line.missing(error.to_string(), advice)];
        }
    };
    // Attached before they are loaded with the others: each is loaded once.
    let changes = changes(programs.try_changes().map(|result| result.map_err(|error| short(&error.to_string()))));
    let remappings = remappings(bpf::attach_remappings(&mut programs, false));
    let loaded = programs.load_all();
    let refused: Vec<String> =
        loaded.iter().filter_map(|(name, taken)| Some(format!("{name} ({})", taken.as_ref().err()?))).collect();
    let line = match refused.first() {
        None => line.works(format!("{} loaded, the kernel's verifier refuses none", loaded.len())),
        Some(first) => line.missing(
            format!("{} of {} refused, the first: {first}", refused.len(), loaded.len()),
            "tell the makers of tracer which kernel that is",
        ),
    };
    vec![line, changes, remappings]
}

/// Whether what programs map themselves is recorded.
fn remappings(attached: Result<(), NoRemappings>) -> Line {
    let line = Line::new("recording of mmap", Need::Optional, "memory that programs map themselves, by stack");
    match attached {
        Ok(()) => line.works("at the tracepoints of the kernel's lock of mappings"),
        Err(reason @ NoRemappings::Dear) => line.degraded(reason.to_string(), "--mmap=always, where it is worth that"),
        Err(reason) => {
            line.degraded(short(&reason.to_string()), "nothing: memory that heaps do not explain is told all the same")
        }
    }
}

/// An error without what is told elsewhere: what to do about it.
fn short(error: &str) -> String {
    error.split(": CAP_BPF").next().unwrap_or_default().to_owned()
}

/// How mappings are seen to appear: at the kernel's function, or at a tracepoint.
fn changes([mapped, placed]: [Result<(), String>; 2]) -> Line {
    let line = Line::new(
        "mappings that appear",
        Need::Optional,
        "stacks through libraries that are loaded while a process is traced",
    );
    match (mapped, placed) {
        (Ok(()), _) => line.works("at the kernel's function perf_event_mmap (fentry)"),
        (Err(error), Ok(())) => line.degraded(
            format!("at the tracepoint vm_unmapped_area, which misses what is mapped at a fixed address; no fentry: {error}"),
            "nothing: first stacks through such a file may be cut, and are counted",
        ),
        (Err(first), Err(second)) => line.degraded(
            format!("by a count of the kernel's, if there is one; no fentry: {first}; no tracepoint vm_unmapped_area: {second}"),
            "nothing: first stacks through such a file may be cut, and are counted",
        ),
    }
}

/// What else may be in the way.
fn limits() -> Vec<Line> {
    let read = |path: &str| fs::read_to_string(path).ok().map(|text| text.trim().to_owned());
    vec![
        lockdown(read("/sys/kernel/security/lockdown").as_deref()),
        Line::new("kernel.perf_event_paranoid", Need::Optional, "nothing where the capabilities are there").not_needed(
            read("/proc/sys/kernel/perf_event_paranoid")
                .map_or("unknown".to_owned(), |level| format!("{level}; CAP_PERFMON is above it")),
        ),
        locked_memory(),
        files(),
        cgroups(),
    ]
}

fn lockdown(text: Option<&str>) -> Line {
    let line = Line::new("kernel lockdown", Need::Required, "reading the kernel's memory");
    let chosen = text.and_then(|text| text.split_once('[')?.1.split_once(']')).map(|(chosen, _)| chosen);
    match chosen {
        Some("confidentiality") => line.missing(
            "confidentiality: no BPF program may read memory",
            "boot with lockdown=integrity or without, or turn Secure Boot off",
        ),
        Some(level) => line.works(level),
        None => line.works("none, or not told (securityfs is not mounted); what was tried above counts"),
    }
}

fn locked_memory() -> Line {
    let line = Line::new(
        "limit of locked memory",
        Need::Optional,
        "nothing: the kernel counts BPF memory for cgroups from 5.11 on",
    );
    let limit = rustix::process::getrlimit(rustix::process::Resource::Memlock).current;
    line.not_needed(limit.map_or("none".to_owned(), size))
}

fn files() -> Line {
    /// Enough for the files of a large program.
    const ENOUGH: u64 = 4096;
    let line = Line::new("limit of open files", Need::ForCompleteness, "mapped files, and probes by perf events");
    match rustix::process::getrlimit(rustix::process::Resource::Nofile).maximum {
        Some(limit) if limit < ENOUGH => line
            .degraded(format!("{limit}: enough for few processes"), "raise the hard limit (ulimit -Hn, LimitNOFILE=)"),
        limit => line.works(limit.map_or("none".to_owned(), |limit| limit.to_string())),
    }
}

fn cgroups() -> Line {
    let line = Line::new("cgroups", Need::Optional, "selecting by --cgroup and --container, limits in `tracer top`");
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let hierarchies = cgroups::hierarchies(&mounts);
    let second = hierarchies.iter().any(cgroups::Hierarchy::is_v2);
    let first = hierarchies.iter().any(|hierarchy| !hierarchy.is_v2());
    match (first, second) {
        (true, true) => line.works("versions 1 and 2 are mounted"),
        (true, false) => line.works("version 1 is mounted"),
        (false, true) => line.works("version 2 is mounted"),
        (false, false) => {
            line.degraded("none is mounted here: paths are known, limits are not", "mount cgroup2 at /sys/fs/cgroup")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::line::{Status, Verdict};

    #[test]
    fn what_is_in_the_way_is_named() {
        let error = io::Error::from_raw_os_error;
        assert!(advice(&error(libc::EPERM), &["CAP_BPF", "CAP_PERFMON"]).contains("CAP_BPF and CAP_PERFMON"));
        assert!(advice(&error(libc::EPERM), &[]).contains("seccomp"));
        assert!(advice(&error(libc::ENOMEM), &[]).contains("memory.max"));
        assert!(advice(&error(libc::EINVAL), &[]).contains("5.17"));
    }

    #[test]
    fn lockdown_is_read() {
        for (text, status) in [
            (Some("none integrity [confidentiality]"), Status::Missing),
            (Some("none [integrity] confidentiality"), Status::Works),
            (Some("garbage"), Status::Works),
            (None, Status::Works),
        ] {
            assert_eq!(lockdown(text).status, status, "{text:?}");
        }
    }

    fn uprobes(wants_multi: bool, multi: io::Result<u64>) -> Uprobes {
        Uprobes { event: Ok(1), return_event: Ok(1), multi, session: Ok(2), wants_multi }
    }

    #[test]
    fn perf_events_are_used_where_multi_links_are_not_there() {
        assert!(!uprobes(true, Ok(1)).by_events() && uprobes(true, Ok(1)).sessions());
        let old = || io::Error::from_raw_os_error(libc::EINVAL);
        assert!(!uprobes(true, Err(io::Error::from_raw_os_error(libc::EPERM))).by_events());
        for not in [uprobes(false, Ok(1)), uprobes(true, Err(old())), uprobes(true, Ok(0))] {
            assert!(not.by_events() && !not.sessions());
        }
    }

    #[test]
    fn mappings_are_seen_in_the_best_way_that_there_is() {
        let failed = || Err("no".to_owned());
        assert_eq!(changes([Ok(()), failed()]).status, Status::Works);
        for worse in [[failed(), Ok(())], [failed(), failed()]] {
            let line = changes(worse);
            assert_eq!((line.status, line.verdict()), (Status::Degraded, Verdict::Complete));
        }
    }
}
