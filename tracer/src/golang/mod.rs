//! The Go runtime of a process, seen from outside: its executable's tables, and its structures in memory.
//!
//! Reads only. Memory comes through a function ([`ReadMemory`]), files are the executable alone. Everything that is read
//! belongs to the target and may be forged, or change while it is read: places are checked, loops and sizes bounded, and
//! what does not fit together is an error or is counted, never believed.

mod buildinfo;
mod bytes;
mod callback;
mod diagnosis;
mod dwarf;
mod executable;
mod goroutines;
mod growth;
pub mod heap;
mod layout;
mod mentions;
mod pclntab;
mod runtime;
mod shared;
mod stack;
mod symbols;
mod unreadable;
mod waits;

pub mod describe;

pub use buildinfo::{BuildInfo, Version, find as build_info};
pub use callback::{CALLBACK, WINDOW as CALLBACK_WINDOW, callback_rule};
pub use diagnosis::{Finding, diagnose};
pub use executable::{BUILD_INFO, Executable, TABLES, linked_c};
pub use goroutines::{
    Goroutines, Group, State, read as read_goroutines, read_with as read_goroutines_with, stack_bytes,
};
pub use growth::{Growth, Trend, pause, suspected_leak};
pub use layout::{Layout, known as known_layout};
pub use pclntab::{Function, LogicalFrame, Pclntab};
pub use runtime::{Home, Runtime};
pub use symbols::Symbols;
pub use unreadable::{ReadMemory, Unreadable};
