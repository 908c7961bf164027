//! The kernel side as the rest of the program sees it: load the programs, attach them, read what they send.
//!
//! The only user of aya. Where aya has no safe call, the system call is made here, and its safety is argued here.

mod attach;
mod by_key;
mod copies;
mod costs;
mod events;
mod golang;
mod kernel_types;
mod load_error;
mod loader;
mod multi;
mod object;
mod queue;
mod refusal;
mod release;
mod removal;
mod shared_array;
mod site;
mod spacing;
mod statistics;
pub mod subject;
mod sys;
mod tables;
mod tracepoints;
mod trial_calls;
pub mod trials;

pub use self::{
    attach::{Links, NoRemappings, attach_lifecycle, attach_remappings},
    by_key::{device_of, open_by_key, path_by_key, path_of},
    copies::StackCopies,
    costs::Costs,
    events::{Events, LostBeginnings, Newcomers},
    golang::GoMaps,
    load_error::LoadError,
    loader::{Config, Programs, Samples},
    multi::uses_multi_here,
    object::Object,
    release::kernel_version,
    site::{Order, Placed, Site},
    statistics::{Runs, Statistics, entries_of, named_objects},
    tables::{CodeChanges, Tables},
};
