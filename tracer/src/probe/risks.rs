//! What in a process return probes could harm: threads that change stacks inside of the allocator, and code that walks stacks
//! there.
//!
//! It is told by names that the process's files define or ask for, and by the environment that it was started with. What is
//! linked statically and stripped has no names: an allocator that is the program's own counts as a risk for that.

use std::{fmt, fs::File};

use object::{Endianness, Object as _, ObjectSymbol, elf::FileHeader64, read::elf::ElfFile};

use crate::files::elf::{Bounded, Bytes};

/// Something that a return probe could harm.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Risk {
    /// A sanitizer walks stacks at each allocation.
    Sanitizer,
    /// Threads change stacks by the function of this name.
    Fibers(&'static str),
    /// The allocator's own profiler, turned on by this variable, walks stacks.
    Profiler(&'static str),
    /// The allocator is none that is known: it may call the program, which may go on on another stack, or in another thread.
    OwnAllocator,
    /// The program has code called inside of the allocator, by the function or variable of this name.
    Hook(&'static str),
    /// Threads were seen to change stacks inside of the allocator.
    Seen,
    /// Other processes are traced. A return probe of one takes the return addresses of all that are traced in the same file:
    /// the kernel does not ask whose they are (uprobe_multi_link_handler, kernel/trace/bpf_trace.c, 6.18).
    Others,
}

impl fmt::Display for Risk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Sanitizer => f.write_str("a sanitizer walks stacks in the process"),
            Self::Fibers(name) => write!(f, "the process may change stacks ({name})"),
            Self::Profiler(name) => write!(f, "the allocator's own profiler walks stacks ({name})"),
            Self::OwnAllocator => f.write_str("the allocator is none that is known, and may be the program's own"),
            Self::Hook(name) => write!(f, "the process has code of its own called inside of the allocator ({name})"),
            Self::Seen => f.write_str("threads change stacks inside of the allocator"),
            Self::Others => f.write_str("return probes of one process would reach the others"),
        }
    }
}

/// Beginnings of names that sanitizers define.
const SANITIZERS: [&str; 6] = ["__asan_", "__lsan_", "__msan_", "__tsan_", "__hwasan_", "__memprof_"];

/// Names of functions that change stacks, in the C library and in others that are well known; with `*`, the beginning of names.
const FIBERS: [&str; 14] = [
    "swapcontext",
    "makecontext",
    "jump_fcontext",
    "make_fcontext",
    "ontop_fcontext",
    "bthread_*",
    "co_*",
    "boost_context_*",
    "st_thread_create",
    "pth_spawn",
    "mco_create",
    "aco_resume",
    "coro_transfer",
    "uv_fiber_*",
];

/// What has a program's code called inside of an allocator.
const HOOKS: [&str; 5] =
    ["__malloc_hook", "__realloc_hook", "__memalign_hook", "mi_register_deferred_free", "MallocHook_AddNewHook"];

/// Beginnings of the names of files that are known allocators: those call no code of the program's but by hooks.
const KNOWN: [&str; 7] = ["libc.so", "libc-", "ld-musl", "libc.musl", "libjemalloc.", "libtcmalloc", "libmimalloc"];

/// Variables that turn an allocator's profiler on, and what they contain then.
const PROFILERS: [(&str, &str); 7] = [
    ("MALLOC_CONF", "prof"),
    ("_RJEM_MALLOC_CONF", "prof"),
    ("JE_MALLOC_CONF", "prof"),
    ("HEAPPROFILE", ""),
    ("HEAPCHECK", ""),
    ("TCMALLOC_SAMPLE_PARAMETER", ""),
    ("MALLOC_TRACE", ""),
];

/// Symbols that are looked at in one file, at most.
const MAX_SYMBOLS: usize = 1 << 20;

/// The risk that the allocator itself is, by the name of its file.
pub fn of_allocator(file_name: &str) -> Option<Risk> {
    (!KNOWN.iter().any(|start| file_name.starts_with(start))).then_some(Risk::OwnAllocator)
}

/// The risk that the names in a file tell. Libraries define what changes stacks, and allocators their hooks; only who asks for
/// it counts: `defines` is for files of which what they define does not. Files that cannot be read tell nothing.
pub fn of_file(file: &File, defines: bool) -> Option<Risk> {
    let bytes = Bytes::new(file);
    let elf: ElfFile<'_, FileHeader64<Endianness>, Bounded<'_>> = ElfFile::parse(bytes.bounded()).ok()?;
    let symbols = elf.dynamic_symbols().chain(elf.symbols());
    symbols
        .take(MAX_SYMBOLS)
        .filter(|symbol| !(defines && symbol.is_definition()))
        .find_map(|symbol| of_name(symbol.name().ok()?))
}

fn of_name(name: &str) -> Option<Risk> {
    if SANITIZERS.iter().any(|start| name.starts_with(start)) {
        return Some(Risk::Sanitizer);
    }
    if let Some(hook) = HOOKS.iter().find(|hook| name == **hook) {
        return Some(Risk::Hook(hook));
    }
    let is = |known: &&&str| known.strip_suffix('*').map_or(name == **known, |start| name.starts_with(start));
    FIBERS.iter().find(is).map(|known| Risk::Fibers(known))
}

/// The risk that the environment of a process tells: variables separated by zero bytes, as in /proc/PID/environ.
pub fn of_environment(environment: &[u8]) -> Option<Risk> {
    let mut variables = environment.split(|byte| *byte == 0).filter_map(|variable| std::str::from_utf8(variable).ok());
    variables.find_map(|variable| {
        let (name, value) = variable.split_once('=')?;
        let (known, _) = PROFILERS.iter().find(|(known, part)| *known == name && value.contains(part))?;
        Some(Risk::Profiler(known))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_tell() {
        assert_eq!(of_name("__asan_init"), Some(Risk::Sanitizer));
        assert_eq!(of_name("swapcontext"), Some(Risk::Fibers("swapcontext")));
        assert_eq!(of_name("bthread_start_urgent"), Some(Risk::Fibers("bthread_*")));
        assert_eq!(of_name("swapcontexts"), None);
        assert_eq!(of_name("malloc"), None);
        assert_eq!(of_name("__malloc_hook"), Some(Risk::Hook("__malloc_hook")));
    }

    #[test]
    fn allocators_that_are_not_known_are_a_risk() {
        for known in
            ["libc.so.6", "libc-2.31.so", "ld-musl-x86_64.so.1", "libjemalloc.so.2", "libtcmalloc_minimal.so.4"]
        {
            assert_eq!(of_allocator(known), None, "{known}");
        }
        for other in ["server", "libmiga.so", "libhoard.so", "libc", ""] {
            assert_eq!(of_allocator(other), Some(Risk::OwnAllocator), "{other}");
        }
    }

    #[test]
    fn environments_tell() {
        assert_eq!(of_environment(b"A=1\0MALLOC_CONF=prof:true\0"), Some(Risk::Profiler("MALLOC_CONF")));
        assert_eq!(of_environment(b"MALLOC_CONF=narenas:1\0HEAPPROFILE=/tmp/x\0"), Some(Risk::Profiler("HEAPPROFILE")));
        assert_eq!(of_environment(b"MALLOC_CONF=narenas:1\0=\0\xff=\0"), None);
    }

    #[test]
    fn a_file_without_fibers_tells_nothing() {
        let file = File::open("/proc/self/exe").unwrap();
        assert_eq!(of_file(&file, false), None);
    }
}
