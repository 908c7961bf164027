//! What the tests share: compiled targets, runs of the tracer, the truth and what was reported.

mod build;
mod cgroup;
mod compared;
mod copies;
mod foreign;
mod go;
mod go_profile;
mod machine;
mod oracle;
mod pprof;
mod programs;
mod report;
mod shadow;
mod site;
mod sites;
mod stepper;
mod target;
mod tracer;
mod truth;

pub(crate) use cgroup::Cgroup;
pub(crate) use compared::load as load_compared;
pub(crate) use copies::Copies;
pub(crate) use foreign::ForeignProbes;
pub(crate) use go::{STOCK, go_program, hot_profile};
pub(crate) use go_profile::{Usage, Usages, by_function, is_runtimes, read_heap_profile, reported_usages};
pub(crate) use machine::{
    ALLOCATORS, NOBODY, alone, copy_for_all, copy_program, free_port, preloadable, probed_bytes, program, require_root,
    scratch, skipped, slowness, taking_returns, wait_until, while_busy, with_capabilities,
};
pub(crate) use oracle::{End, Oracle, executable_mappings};
pub(crate) use pprof::{Pprof, pprof};
pub(crate) use programs::{compiled, rust_on};
pub(crate) use report::{Held, Report, Stack};
pub(crate) use shadow::follow;
pub(crate) use sites::{callers_of, check_sites, deviation};
pub(crate) use stepper::check as check_calls;
pub(crate) use target::Target;
pub(crate) use tracer::{Outcome, Run, Running, with_default_signals};
pub(crate) use truth::{Truth, check_functions, check_holders};
