//! Reading the memory of a process, and why the Go runtime in it cannot be read.

use std::io;

use crate::process::memory::Span;

/// Reads parts of a process's memory, as [`read_spans`](crate::process::memory::read_spans) does.
pub type ReadMemory<'a> = dyn Fn(&[Span], &mut [u8]) -> io::Result<Vec<bool>> + 'a;

/// Why the Go runtime of a process cannot be read. Each message says what to do.
#[derive(Debug, thiserror::Error)]
pub enum Unreadable {
    /// The executable has no build information of Go's.
    #[error("it is not a Go program: its executable has no build information of Go's")]
    NotGo,
    /// Go 1.18 or older.
    #[error("it was built with Go 1.18 or older: build it with Go 1.19 or newer")]
    OldVersion,
    /// Not x86-64.
    #[error("its executable is not for x86-64, the only processor that is supported")]
    OtherProcessor,
    /// pclntab was not found.
    #[error(
        "its tables of functions (pclntab) cannot be found: is the executable packed, or changed since it was linked?"
    )]
    NoTables,
    /// Nothing says where the runtime keeps what.
    #[error(
        "the runtime of {version} is not known to this tracer ({missing} not found), and the executable has no DWARF that \
         describes it: build it without `-ldflags=-w`, or take a newer tracer"
    )]
    NoLayout {
        /// Version of Go: hostile text.
        version: String,
        /// What was not found.
        missing: String,
    },
    /// The description of the executable in memory was not found.
    #[error(
        "the runtime's description of the executable (moduledata) cannot be found in memory: has the program just begun?"
    )]
    NoModuledata,
    /// A variable of the runtime was not found.
    #[error(
        "{name} cannot be found: the executable has no symbols, and its runtime is not compiled as that of {version} \
         usually is; build it without `-ldflags=-s`"
    )]
    NoVariable {
        /// Name of the variable.
        name: String,
        /// Version of Go: hostile text.
        version: String,
    },
    /// A function that had to be probed is a part of others.
    #[error(
        "its allocations cannot be sampled: the compiler has inlined {function} into {into} (a build with `-pgo`); take \
         --go-heap=enable, which writes to the process"
    )]
    Inlined {
        /// The function: hostile text.
        function: String,
        /// Where it is now: hostile text.
        into: String,
    },
    /// Objects may go through a function of the runtime that is not known.
    #[error(
        "its allocations cannot be sampled: its runtime has a way to allocate that this tracer does not know \
         ({function}); take a newer tracer, or --go-heap=enable, which writes to the process"
    )]
    Unknown {
        /// The function: hostile text.
        function: String,
    },
    /// Where objects are put cannot be foreseen.
    #[error(
        "its allocations cannot be sampled: it was built with the address sanitizer (`-asan`); take --go-heap=enable, \
         which writes to the process"
    )]
    Sanitized,
    /// What was read makes no sense.
    #[error(
        "what is in memory is not what the Go runtime keeps there ({0}): has the program just begun, or overwritten its own memory?"
    )]
    Nonsense(&'static str),
    /// Memory could not be read.
    #[error("cannot read its memory: {0}")]
    Memory(#[from] io::Error),
}
