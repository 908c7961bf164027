//! What can be seen of the Go runtime of a process, and how, or why not: for those who wonder what a trace will show.

use std::fmt;

use super::{
    ReadMemory, Runtime,
    executable::{LayoutSource, VARIABLES},
    goroutines, heap,
};

/// One thing that was looked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// Whether something cannot be seen because of it.
    pub is_problem: bool,
    /// What was found, or what is not there, and why. May hold hostile text.
    pub text: String,
}

impl Finding {
    /// Something is there.
    pub(crate) fn good(text: impl Into<String>) -> Self {
        Self { is_problem: false, text: text.into() }
    }

    /// The same of one file of several.
    pub(crate) fn of(self, file: &str) -> Self {
        Self { text: format!("{file}: {}", self.text), ..self }
    }

    /// Something is not.
    pub(crate) fn problem(text: impl Into<String>) -> Self {
        Self { is_problem: true, text: text.into() }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// Looks for everything that traces need of a runtime, and reads its goroutines.
pub fn diagnose(runtime: &Runtime, memory: &ReadMemory<'_>) -> Vec<Finding> {
    let mut findings = vec![build(runtime), layouts(runtime)];
    findings.extend(variables(runtime));
    findings.extend([way(runtime, memory), goroutines(runtime, memory), sites(runtime)]);
    findings
}

fn build(runtime: &Runtime) -> Finding {
    let executable = &runtime.executable;
    let symbols = if executable.variables.is_empty() { "stripped: without symbols" } else { "with symbols" };
    let place = if runtime.bias == 0 { "" } else { ", position-independent" };
    Finding::good(format!("built with {}, {symbols}{place}", executable.version))
}

fn layouts(runtime: &Runtime) -> Finding {
    let executable = &runtime.executable;
    let source = match executable.layout_source {
        LayoutSource::Dwarf => "its own DWARF".to_owned(),
        LayoutSource::Table => format!("what is known of {}", executable.version),
    };
    match &executable.layout.heap {
        Ok(_) => Finding::good(format!("what its runtime looks like is told by {source}")),
        Err(missing) => Finding::problem(format!(
            "what its runtime looks like is told by {source}, but not that of its heap: no {missing}"
        )),
    }
}

/// Those that were found, and those that were not.
fn variables(runtime: &Runtime) -> Vec<Finding> {
    let (found, missing): (Vec<&str>, Vec<&str>) =
        VARIABLES.into_iter().partition(|name| runtime.variable(name).is_ok());
    let by = if runtime.executable.variables.is_empty() { "by the code that mentions them" } else { "by its symbols" };
    let list = |names: &[&str]| names.join(", ");
    let good = (!found.is_empty()).then(|| Finding::good(format!("variables found {by}: {}", list(&found))));
    let bad = (!missing.is_empty()).then(|| Finding::problem(format!("variables not found: {}", list(&missing))));
    good.into_iter().chain(bad).collect()
}

fn way(runtime: &Runtime, memory: &ReadMemory<'_>) -> Finding {
    match heap::profile_rate(runtime, memory) {
        Ok(0) => {
            Finding::good("its runtime keeps no profile of its heap (MemProfileRate is 0): allocations are sampled")
        }
        Ok(rate) => Finding::good(format!(
            "its runtime keeps a profile of its heap (MemProfileRate is {rate}): that is read, and nothing is sampled"
        )),
        Err(error) => Finding::problem(format!(
            "whether its runtime keeps a profile of its heap cannot be seen, so allocations are sampled: {error}"
        )),
    }
}

fn goroutines(runtime: &Runtime, memory: &ReadMemory<'_>) -> Finding {
    match goroutines::read(runtime, memory, &|| ()) {
        Ok(found) => {
            let count: u64 = found.groups.iter().map(|group| group.count).sum();
            Finding::good(format!("goroutines can be read: {count}, and {} of the runtime's own", found.system))
        }
        Err(error) => Finding::problem(format!("goroutines cannot be read: {error}")),
    }
}

fn sites(runtime: &Runtime) -> Finding {
    match heap::probe_sites(runtime).and_then(|sites| heap::runtime_value(runtime, &sites, 0).map(|_| sites)) {
        Ok(sites) => {
            let others = sites.new_span.len() + sites.refilled.len() + sites.after_assist.len();
            Finding::good(format!(
                "allocations can be sampled: {} places to probe at which it allocates, {others} that tell where",
                sites.allocate.len()
            ))
        }
        Err(error) => Finding::problem(format!("allocations cannot be sampled: {error}")),
    }
}
