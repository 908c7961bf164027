//! What of the memory of a process will be explained, and what will not.

use crate::{
    coverage::reasons,
    doctor::line::{Line, Need},
    files::root::ProcessDirectory,
    profile::{Reason, Runtime},
    report::size,
    space::{
        address_space::AddressSpace,
        memory_map::{self, Usage},
    },
};

/// What there is to say. `probed`: paths of the files that would be probed.
pub(super) fn examine(pid: u32, space: &AddressSpace, probed: &[&str]) -> (Vec<Line>, Option<Usage>) {
    let usage = ProcessDirectory::with_memory(pid).and_then(|process| memory_map::usage(&process)).ok();
    let reasons = reasons::look(pid);
    let runtimes: Vec<Runtime> = reasons.iter().filter_map(runtime).collect();
    let mut lines = vec![anonymous(usage)];
    lines.extend(runtimes.iter().map(|runtime| unseen(*runtime)));
    lines.extend(reasons.iter().filter_map(|reason| other_allocator(reason, probed)));
    if space.has_generated_code() {
        lines.push(generated(space.has_perf_map(), !runtimes.is_empty()));
    }
    (lines, usage)
}

fn runtime(reason: &Reason) -> Option<Runtime> {
    match reason {
        Reason::Runtime(runtime) => Some(*runtime),
        _ => None,
    }
}

fn anonymous(usage: Option<Usage>) -> Line {
    let line = Line::new("anonymous memory", Need::ForCompleteness, "what a report sets beside the recorded blocks");
    match usage {
        Some(Usage { anonymous, .. }) => line.works(format!(
            "{}: what is allocated from now on is explained, what is there already is not",
            size(anonymous)
        )),
        None => line.degraded("it cannot be read", "run tracer as root (sudo), or with CAP_SYS_PTRACE"),
    }
}

/// A runtime with a heap of its own.
fn unseen(runtime: Runtime) -> Line {
    let name = runtime.name();
    let advice = match runtime {
        Runtime::Python => "start it with PYTHONMALLOC=malloc: all its objects are by malloc then",
        Runtime::Php => "start it with USE_ZEND_ALLOC=0: all its objects are by malloc then",
        _ => "ask the runtime's own tools for its heap; reports say how much memory is not explained",
    };
    Line::new(name, Need::ForCompleteness, "memory of the runtime's own heap")
        .degraded(format!("what {name} takes by mmap for its own heap is not seen, only what is by malloc"), advice)
}

/// An allocator of which something lies in a file that is not probed.
fn other_allocator(reason: &Reason, probed: &[&str]) -> Option<Line> {
    let Reason::Allocator(name, path) = reason else { return None };
    if probed.contains(&path.as_str()) {
        return None;
    }
    let line = Line::new(path.clone(), Need::ForCompleteness, "memory of an allocator that is not probed");
    let advice = "keep the file's table of symbols; reports say how much memory is not explained";
    Some(line.degraded(format!("it seems to hold {name}, of which no function can be probed"), advice))
}

fn generated(has_perf_map: bool, has_runtime: bool) -> Line {
    let need = if has_runtime { Need::ForCompleteness } else { Need::Optional };
    let line = Line::new("generated code", need, "stacks through code that is made at run time");
    match has_perf_map {
        true => line.works("named by the process's perf map; unwound by frame pointers"),
        false => line.degraded(
            "without names: there is no /tmp/perf-PID.map; unwound by frame pointers",
            "have the runtime write one (node --perf-basic-prof, java with a perf map agent, python -X perf)",
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::line::{Status, Verdict};

    #[test]
    fn what_is_not_seen_is_told() {
        let reason = Reason::Allocator("jemalloc", "/srv/app".to_owned());
        assert_eq!(other_allocator(&reason, &["/lib/libc.so.6", "/srv/app"]), None);
        assert_eq!(other_allocator(&reason, &["/lib/libc.so.6"]).unwrap().verdict(), Verdict::Incomplete);
        assert_eq!(unseen(Runtime::Jvm).verdict(), Verdict::Incomplete);
        assert!(unseen(Runtime::Python).advice.contains("PYTHONMALLOC"));
    }

    #[test]
    fn generated_code_matters_where_a_runtime_makes_it() {
        assert_eq!(generated(true, true).status, Status::Works);
        assert_eq!(generated(false, true).verdict(), Verdict::Incomplete);
        assert_eq!(generated(false, false).verdict(), Verdict::Complete);
    }
}
