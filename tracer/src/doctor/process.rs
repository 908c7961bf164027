//! What a trace of one process would see, from its files and from what /proc says of it.

mod allocators;
mod files;
mod memory;

use std::sync::Arc;

use hashbrown::HashSet;

pub(super) use self::{allocators::Probed, files::File};
use super::line::{Line, Need, Section};
use crate::{
    files::{module::Module, opener},
    go,
    process::status::{self, NotTraceable, Status},
    space::{address_space::AddressSpace, memory_map::Usage},
};

/// A process that was examined.
#[derive(Clone, Debug)]
pub struct Process {
    /// Its id.
    pub pid: u32,
    /// Its name, as it chose it: hostile text.
    pub comm: String,
    /// What was found.
    pub sections: Vec<Section>,
    /// The functions that would be probed.
    pub functions: Vec<Probed>,
    /// The files whose code it has mapped.
    pub files: Vec<File>,
    /// Its memory.
    pub memory: Option<Usage>,
}

/// Examines a process. `sessions`: whether there are return probes of which the entry decides.
pub(super) fn examine(pid: u32, sessions: bool) -> Process {
    let mut process = Process {
        pid,
        comm: String::new(),
        sections: Vec::new(),
        functions: Vec::new(),
        files: Vec::new(),
        memory: None,
    };
    let before = match status::check(pid) {
        Ok(status) => status,
        Err(error) => {
            process.comm = name_in(&error);
            process.sections.push(Section { title: "process", lines: vec![subject().missing(error.to_string(), "")] });
            return process;
        }
    };
    process.comm.clone_from(&before.comm);
    look(&mut process, &before, sessions);
    // What was found may be of two, or of nothing at all.
    let is_same = status::check(pid).is_ok_and(|now| now.start_time == before.start_time && now.exe == before.exe);
    if !is_same {
        let found = "it ended, or became another program, while it was looked at";
        let line = subject().missing(found, "look at the process that replaces it");
        process.sections = vec![Section { title: "process", lines: vec![line] }];
        (process.functions, process.files, process.memory) = (Vec::new(), Vec::new(), None);
    }
    process
}

fn subject() -> Line {
    Line::new("process", Need::Required, "")
}

/// The name that goes with a refusal.
fn name_in(error: &NotTraceable) -> String {
    match error {
        NotTraceable::KernelThread(_, comm)
        | NotTraceable::Zombie(_, comm)
        | NotTraceable::FirstThreadEnded(_, comm)
        | NotTraceable::Not64Bit(_, comm) => comm.clone(),
        _ => "unknown".to_owned(),
    }
}

fn look(process: &mut Process, status: &Status, sessions: bool) {
    let pid = process.pid;
    let mut space = AddressSpace::new(pid);
    if let Err(error) = space.refresh() {
        let advice = "run tracer as root (sudo), or with CAP_SYS_PTRACE";
        let line = subject().missing(format!("its mappings cannot be read: {error}"), advice);
        process.sections.push(Section { title: "process", lines: vec![line] });
        return;
    }
    let mut known = HashSet::new();
    let mut modules: Vec<Arc<Module>> = space.executable_files().map(|(module, _)| module).collect();
    modules.retain(|module| known.insert(module.identity().clone()));

    let go = go::heap::diagnose(pid);
    let has_go_heap = go.iter().any(|finding| !finding.is_problem);
    let (allocators, functions) = allocators::examine(pid, sessions, has_go_heap);
    let files = files::examine(&modules);
    let probed: Vec<&str> = functions.iter().map(|function| function.file.as_str()).collect();
    let (memory, usage) = memory::examine(pid, &space, &probed);

    let mut lines = vec![subject().works(format!("a 64-bit program, {}", status.exe)), opened(&modules)];
    lines.retain(|line| !line.found.is_empty());
    process.sections.push(Section { title: "process", lines });
    process.sections.push(Section { title: "allocators", lines: allocators });
    if !go.is_empty() {
        let line = |finding: &crate::golang::Finding| {
            let line = Line::new("Go runtime", Need::ForCompleteness, "");
            let text = finding.to_string();
            if finding.is_problem { line.degraded(text, "see the limits of Go in README") } else { line.works(text) }
        };
        process.sections.push(Section { title: "Go", lines: go.iter().map(line).collect() });
    }
    process.sections.push(Section { title: "stacks and names", lines: files::lines(&files) });
    process.sections.push(Section { title: "memory", lines: memory });
    (process.functions, process.files, process.memory) = (functions, files, usage);
}

/// Whether all mapped files can be opened.
fn opened(modules: &[Arc<Module>]) -> Line {
    let line = Line::new("mapped files", Need::ForCompleteness, "allocators, stacks and names of each");
    let closed: Vec<&Arc<Module>> = modules.iter().filter(|module| module.file().is_none()).collect();
    let Some(first) = closed.first() else { return line.works(format!("all {} can be opened", modules.len())) };
    let notes = opener::notes();
    let why = notes.first().map_or_else(String::new, |note| format!("; {note}"));
    line.degraded(
        format!("{} of {} cannot be opened, such as {}{why}", closed.len(), modules.len(), first.path()),
        "run tracer as root (sudo), or with CAP_CHECKPOINT_RESTORE and CAP_DAC_READ_SEARCH",
    )
}
