//! The ground-truth programs: which there are, and how each is compiled.
//!
//! Tests ask for them by name. That all are in one table lets them be compiled ahead of the tests, for machines without a
//! compiler.

use std::path::PathBuf;

use super::build::{C, CXX, MUSL, RUST, Source, build_package};

/// The rest is the same, so that results can be compared.
const WITH_FRAME_POINTERS: &[&str] = &["-fno-omit-frame-pointer", "-mno-omit-leaf-frame-pointer"];
const WITHOUT_FRAME_POINTERS: &[&str] = &["-fomit-frame-pointer"];

/// No unwind information at all, but for what the C library brings.
macro_rules! without_tables {
    ($($flag:literal),*) => {
        &["-fno-asynchronous-unwind-tables", "-fno-unwind-tables", $($flag),*]
    };
}

/// An allocator in the executable: its functions are called by name, and libraries find them.
const EXPORTED_ALLOCATOR: &[&str] = &["-fno-builtin", "-rdynamic", "-fno-omit-frame-pointer"];

/// The family under the names that jemalloc has with a prefix.
const JE_NAMES: &[&str] = &[
    "-fno-builtin",
    "-Dmalloc=je_malloc",
    "-Dcalloc=je_calloc",
    "-Drealloc=je_realloc",
    "-Dreallocarray=je_reallocarray",
    "-Dfree=je_free",
    "-Dmemalign=je_memalign",
    "-Dposix_memalign=je_posix_memalign",
    "-Daligned_alloc=je_aligned_alloc",
    "-Dvalloc=je_valloc",
    "-Dpvalloc=je_pvalloc",
];

/// The same under names that nobody knows.
const UNKNOWN_NAMES: &[&str] = &[
    "-fno-builtin",
    "-Dmalloc=pool_get",
    "-Dcalloc=pool_get_some",
    "-Drealloc=pool_resize",
    "-Dreallocarray=pool_resize_some",
    "-Dfree=pool_put",
    "-Dmemalign=pool_get_at",
    "-Dposix_memalign=pool_tell",
    "-Daligned_alloc=pool_get_aligned",
    "-Dvalloc=pool_get_page",
    "-Dpvalloc=pool_get_pages",
];

/// The family under mimalloc's own names.
const MI_NAMES: &[&str] = &[
    "-fno-builtin",
    "-Dmalloc=mi_malloc",
    "-Dcalloc=mi_calloc",
    "-Drealloc=mi_realloc",
    "-Dreallocarray=mi_reallocarray",
    "-Dfree=mi_free",
    "-Dmemalign=mi_memalign",
    "-Dposix_memalign=mi_posix_memalign",
    "-Daligned_alloc=mi_aligned_alloc",
    "-Dvalloc=mi_valloc",
    "-Dpvalloc=mi_pvalloc",
    "-l:libmimalloc.so.2.0",
];

const PROGRAMS: &[Source] = &[
    Source { name: "32 bits", compiler: C, files: &["thirty_two_bits.s"], flags: &["-m32", "-nostdlib", "-static"] },
    Source { name: "at_once", compiler: C, files: &["at_once.c"], flags: WITHOUT_FRAME_POINTERS },
    Source { name: "become", compiler: C, files: &["become.c"], flags: WITH_FRAME_POINTERS },
    Source { name: "brief", compiler: C, files: &["brief.c"], flags: WITH_FRAME_POINTERS },
    Source { name: "brief_own", compiler: C, files: &["brief_own.c"], flags: EXPORTED_ALLOCATOR },
    Source { name: "brief_plugin", compiler: C, files: &["brief_plugin.c"], flags: WITHOUT_FRAME_POINTERS },
    Source { name: "brief_threads", compiler: C, files: &["brief_threads.c"], flags: WITH_FRAME_POINTERS },
    Source { name: "busy, C++", compiler: CXX, files: &["busy.cpp"], flags: WITHOUT_FRAME_POINTERS },
    Source {
        name: "busy, Rust",
        compiler: RUST,
        files: &["busy.rs"],
        flags: &["-C", "force-frame-pointers=no", "-C", "force-unwind-tables=yes"],
    },
    Source { name: "churn", compiler: C, files: &["churn.c"], flags: WITH_FRAME_POINTERS },
    Source { name: "spends", compiler: C, files: &["spends.c"], flags: WITH_FRAME_POINTERS },
    Source {
        name: "churn, debug information",
        compiler: C,
        files: &["churn.c"],
        flags: &["-fno-omit-frame-pointer", "-g"],
    },
    Source {
        name: "copies",
        compiler: C,
        files: &["copies.c"],
        flags: &["-fno-builtin", "-rdynamic", "-fomit-frame-pointer"],
    },
    Source { name: "cpp", compiler: CXX, files: &["cpp.cpp"], flags: WITH_FRAME_POINTERS },
    Source {
        name: "cpp, static jemalloc",
        compiler: CXX,
        files: &["cpp.cpp"],
        flags: &["-fno-omit-frame-pointer", "-static-libstdc++", "-l:libjemalloc.a", "-ldl", "-lm"],
    },
    Source {
        name: "cpp, static tcmalloc",
        compiler: CXX,
        files: &["cpp.cpp"],
        flags: &["-fno-omit-frame-pointer", "-static-libstdc++", "-l:libtcmalloc_minimal.a"],
    },
    Source {
        name: "arenas",
        compiler: C,
        files: &["arenas.c"],
        flags: &["-fno-builtin", "-fno-omit-frame-pointer", "-l:libjemalloc.so.2"],
    },
    Source {
        name: "alike",
        compiler: C,
        files: &["alike.c", "namesakes.c"],
        flags: &["-fno-builtin", "-fomit-frame-pointer"],
    },
    Source { name: "deep", compiler: C, files: &["deep.c"], flags: WITHOUT_FRAME_POINTERS },
    Source { name: "dies", compiler: C, files: &["dies.c"], flags: WITH_FRAME_POINTERS },
    Source { name: "empty", compiler: C, files: &["empty.c"], flags: EXPORTED_ALLOCATOR },
    Source {
        name: "dies, own allocator",
        compiler: C,
        files: &["dies.c", "own_allocator.c"],
        flags: EXPORTED_ALLOCATOR,
    },
    Source { name: "drops_text", compiler: C, files: &["drops_text.c"], flags: WITH_FRAME_POINTERS },
    Source {
        name: "every_call",
        compiler: C,
        files: &["every_call.c"],
        flags: &["-fno-builtin", "-fPIC", "-pie", "-nostartfiles"],
    },
    Source { name: "exec", compiler: C, files: &["exec.c"], flags: WITH_FRAME_POINTERS },
    Source { name: "exec_thread", compiler: C, files: &["exec_thread.c"], flags: WITH_FRAME_POINTERS },
    Source { name: "execs", compiler: C, files: &["execs.c"], flags: WITH_FRAME_POINTERS },
    Source { name: "family", compiler: C, files: &["family.c"], flags: WITHOUT_FRAME_POINTERS },
    Source { name: "family, frame pointers", compiler: C, files: &["family.c"], flags: WITH_FRAME_POINTERS },
    Source {
        name: "family, own allocator",
        compiler: C,
        files: &["family.c", "own_allocator.c"],
        flags: &["-fno-builtin", "-rdynamic"],
    },
    Source {
        name: "family, prefixed allocator",
        compiler: C,
        files: &["family.c", "own_allocator.c"],
        flags: JE_NAMES,
    },
    Source {
        name: "family, unknown names",
        compiler: C,
        files: &["family.c", "own_allocator.c"],
        flags: UNKNOWN_NAMES,
    },
    Source { name: "family, names of mimalloc", compiler: C, files: &["family.c"], flags: MI_NAMES },
    Source { name: "faults", compiler: C, files: &["faults.c"], flags: WITHOUT_FRAME_POINTERS },
    Source {
        name: "fibers",
        compiler: C,
        files: &["fibers.c", "pausing_malloc.c"],
        flags: &["-fno-builtin", "-rdynamic", "-fno-omit-frame-pointer"],
    },
    Source { name: "fork", compiler: C, files: &["fork.c"], flags: WITH_FRAME_POINTERS },
    Source { name: "generated code", compiler: C, files: &["generated.c"], flags: WITH_FRAME_POINTERS },
    Source { name: "grows", compiler: C, files: &["grows.c"], flags: WITHOUT_FRAME_POINTERS },
    Source {
        name: "heap_destroy",
        compiler: C,
        files: &["heap_destroy.c"],
        flags: &["-fno-omit-frame-pointer", "-l:libmimalloc.so.2.0"],
    },
    Source { name: "hostile", compiler: C, files: &["hostile.c"], flags: WITH_FRAME_POINTERS },
    Source {
        name: "in_place",
        compiler: C,
        files: &["in_place.c"],
        flags: &["-fno-builtin", "-fno-omit-frame-pointer", "-l:libjemalloc.so.2"],
    },
    Source {
        name: "interposer",
        compiler: C,
        files: &["interposer.c"],
        flags: &["-fno-builtin", "-shared", "-fPIC", "-ldl"],
    },
    Source {
        name: "interposer of a part",
        compiler: C,
        files: &["interposer.c"],
        flags: &["-fno-builtin", "-shared", "-fPIC", "-ldl", "-DPART"],
    },
    Source { name: "launched", compiler: CXX, files: &["launched.cpp"], flags: WITH_FRAME_POINTERS },
    Source { name: "leaves", compiler: C, files: &["leaves.c"], flags: &[] },
    Source { name: "loader", compiler: C, files: &["loader.c"], flags: &["-ldl"] },
    Source { name: "main_exits", compiler: C, files: &["main_exits.c"], flags: WITH_FRAME_POINTERS },
    Source { name: "made", compiler: C, files: &["made.c"], flags: WITHOUT_FRAME_POINTERS },
    Source { name: "mapped", compiler: C, files: &["mapped.c"], flags: &["-fno-omit-frame-pointer", "-pthread"] },
    Source { name: "many mappings", compiler: C, files: &["many_mappings.c"], flags: WITHOUT_FRAME_POINTERS },
    Source { name: "many", compiler: C, files: &["many.c"], flags: &[] },
    Source { name: "memory", compiler: C, files: &["memory.c"], flags: &["-pthread"] },
    Source { name: "moves", compiler: C, files: &["moves.c"], flags: &[] },
    Source { name: "migrants", compiler: C, files: &["migrants.c"], flags: &["-fno-builtin", "-rdynamic", "-pthread"] },
    Source {
        name: "mimalloc_shapes",
        compiler: C,
        files: &["mimalloc_shapes.c"],
        flags: &["-fno-omit-frame-pointer", "-l:libmimalloc.so.2.0"],
    },
    Source {
        name: "neighbours, static musl",
        compiler: MUSL,
        files: &["neighbours.c"],
        flags: &["-static", "-fno-builtin", "-fno-omit-frame-pointer"],
    },
    Source { name: "new_handler", compiler: CXX, files: &["new_handler.cpp"], flags: WITH_FRAME_POINTERS },
    Source {
        name: "neighbours alone, static musl",
        compiler: MUSL,
        files: &["neighbours.c"],
        flags: &["-static", "-fno-builtin", "-fno-omit-frame-pointer", "-DALONE"],
    },
    Source {
        name: "no allocator",
        compiler: C,
        files: &["no_allocator.c"],
        flags: &["-nostdlib", "-static", "-ffreestanding"],
    },
    Source { name: "no_rules", compiler: C, files: &["no_rules.c"], flags: WITHOUT_FRAME_POINTERS },
    Source { name: "no rules", compiler: C, files: &["no_rules.s"], flags: &["-shared", "-nostdlib"] },
    Source {
        name: "no tables -O0",
        compiler: C,
        files: &["no_tables.c"],
        flags: without_tables!("-O0", "-fomit-frame-pointer"),
    },
    Source {
        name: "no tables -O2",
        compiler: C,
        files: &["no_tables.c"],
        flags: without_tables!("-fomit-frame-pointer"),
    },
    Source {
        name: "no tables -O3",
        compiler: C,
        files: &["no_tables.c"],
        flags: without_tables!("-O3", "-fomit-frame-pointer"),
    },
    Source {
        name: "no tables, frame pointers",
        compiler: C,
        files: &["no_tables.c"],
        flags: without_tables!("-fno-omit-frame-pointer"),
    },
    Source {
        name: "no tables, static",
        compiler: C,
        files: &["no_tables.c"],
        flags: without_tables!("-static", "-fomit-frame-pointer"),
    },
    Source {
        name: "no tables, musl",
        compiler: MUSL,
        files: &["no_tables.c"],
        flags: without_tables!("-fomit-frame-pointer"),
    },
    Source {
        name: "no tables, static musl",
        compiler: MUSL,
        files: &["no_tables.c"],
        flags: without_tables!("-static", "-fomit-frame-pointer"),
    },
    Source {
        name: "notebook",
        compiler: C,
        files: &["notebook.c"],
        flags: &["-fno-builtin", "-shared", "-fPIC", "-ldl"],
    },
    Source {
        name: "notes, static",
        compiler: CXX,
        files: &["notes.cpp"],
        flags: &["-static", "-fno-omit-frame-pointer", "-fno-builtin"],
    },
    Source {
        name: "notes, operators",
        compiler: CXX,
        files: &["notes.cpp"],
        flags: &["-static", "-fno-omit-frame-pointer", "-fno-builtin", "-DOPERATORS"],
    },
    Source { name: "silent files", compiler: C, files: &["silent_files.c"], flags: &[] },
    Source { name: "sampled", compiler: CXX, files: &["sampled.cpp"], flags: WITH_FRAME_POINTERS },
    Source { name: "signals", compiler: C, files: &["signals.c"], flags: WITH_FRAME_POINTERS },
    Source { name: "switches", compiler: C, files: &["switches.c"], flags: WITHOUT_FRAME_POINTERS },
    Source {
        name: "own backtrace",
        compiler: C,
        files: &["own_backtrace.c", "own_allocator.c"],
        flags: EXPORTED_ALLOCATOR,
    },
    Source { name: "own backtrace, none of its own", compiler: C, files: &["own_backtrace.c"], flags: &["-rdynamic"] },
    Source {
        name: "own backtrace, address sanitizer",
        compiler: C,
        files: &["own_backtrace.c"],
        flags: &["-rdynamic", "-fsanitize=address", "-fno-omit-frame-pointer"],
    },
    Source {
        name: "own allocator",
        compiler: C,
        files: &["own_allocator.c"],
        flags: &["-fno-builtin", "-shared", "-fPIC"],
    },
    Source {
        name: "own allocator, text relocations",
        compiler: C,
        files: &["own_allocator.c"],
        flags: &["-fno-builtin", "-shared", "-fno-pic", "-mcmodel=large", "-Wl,-z,notext", "-Wl,-Bsymbolic"],
    },
    Source { name: "paths", compiler: C, files: &["paths.c"], flags: &["-fno-omit-frame-pointer", "-pthread"] },
    Source { name: "patches", compiler: C, files: &["patches.c"], flags: EXPORTED_ALLOCATOR },
    Source {
        name: "own allocator, written anew",
        compiler: C,
        files: &["own_allocator.c"],
        flags: &["-O0", "-fno-builtin", "-shared", "-fPIC"],
    },
    Source {
        name: "chosen allocator",
        compiler: C,
        files: &["chosen.c"],
        flags: &["-fno-builtin", "-shared", "-fPIC", "-Wl,-Bsymbolic"],
    },
    Source {
        name: "pausing allocator",
        compiler: C,
        files: &["pausing_malloc.c"],
        flags: &["-fno-builtin", "-shared", "-fPIC"],
    },
    Source {
        name: "plugin, first",
        compiler: C,
        files: &["plugin.c"],
        flags: &["-fomit-frame-pointer", "-shared", "-fPIC", "-DAT_ONCE=first_at_once", "-DLATER=first_later"],
    },
    Source {
        name: "plugin, second",
        compiler: C,
        files: &["plugin.c"],
        flags: &["-fomit-frame-pointer", "-shared", "-fPIC", "-DAT_ONCE=second_at_once", "-DLATER=second_later"],
    },
    Source {
        name: "plugin, own allocator",
        compiler: C,
        files: &["plugin.c", "prefixed_allocator.c"],
        flags: &[
            "-fno-builtin",
            "-fomit-frame-pointer",
            "-shared",
            "-fPIC",
            "-Dmalloc=je_malloc",
            "-DAT_ONCE=first_at_once",
            "-DLATER=first_later",
        ],
    },
    Source { name: "pool", compiler: CXX, files: &["pool.cpp"], flags: WITH_FRAME_POINTERS },
    Source {
        name: "pool, small blocks only",
        compiler: CXX,
        files: &["pool.cpp"],
        flags: &["-fno-omit-frame-pointer", "-static-libstdc++", "-DSMALL_ONLY"],
    },
    Source { name: "plugins", compiler: C, files: &["plugins.c"], flags: WITHOUT_FRAME_POINTERS },
    Source { name: "probed", compiler: C, files: &["probed.c"], flags: WITHOUT_FRAME_POINTERS },
    Source { name: "rust_arena", compiler: RUST, files: &["rust_arena.rs"], flags: &[] },
    Source { name: "rust_arena, forgets", compiler: RUST, files: &["rust_arena.rs"], flags: &["--cfg", "forgets"] },
    Source { name: "rust_service", compiler: RUST, files: &["rust_service.rs"], flags: &[] },
    Source { name: "realigned", compiler: C, files: &["realigned.c"], flags: WITHOUT_FRAME_POINTERS },
    Source { name: "same_place", compiler: C, files: &["same_place.c"], flags: WITHOUT_FRAME_POINTERS },
    Source {
        name: "several",
        compiler: C,
        files: &["several.c", "prefixed_allocator.c"],
        flags: &["-fno-builtin", "-fno-omit-frame-pointer", "-l:libtbbmalloc.so.2"],
    },
    Source { name: "shapes -O0", compiler: CXX, files: &["shapes.cpp"], flags: &["-O0", "-fomit-frame-pointer"] },
    Source { name: "shapes -O2", compiler: CXX, files: &["shapes.cpp"], flags: &["-O2", "-fomit-frame-pointer"] },
    Source { name: "shapes -O3", compiler: CXX, files: &["shapes.cpp"], flags: &["-O3", "-fomit-frame-pointer"] },
    Source { name: "shapes -Os", compiler: CXX, files: &["shapes.cpp"], flags: &["-Os", "-fomit-frame-pointer"] },
    Source { name: "swaps", compiler: C, files: &["swaps.c"], flags: WITHOUT_FRAME_POINTERS },
    Source { name: "inherits", compiler: C, files: &["inherits.c"], flags: &["-fno-omit-frame-pointer", "-pthread"] },
    Source { name: "renames", compiler: C, files: &["renames.c"], flags: WITH_FRAME_POINTERS },
    Source { name: "swells", compiler: C, files: &["swells.c"], flags: WITHOUT_FRAME_POINTERS },
    Source { name: "tree", compiler: C, files: &["tree.c"], flags: WITH_FRAME_POINTERS },
    Source { name: "wraps", compiler: C, files: &["wraps.c"], flags: EXPORTED_ALLOCATOR },
    Source { name: "tree, musl", compiler: MUSL, files: &["tree.c"], flags: WITH_FRAME_POINTERS },
    Source {
        name: "tree, static musl",
        compiler: MUSL,
        files: &["tree.c"],
        flags: &["-static", "-fno-omit-frame-pointer"],
    },
    Source { name: "tree, static", compiler: C, files: &["tree.c"], flags: &["-static", "-fno-omit-frame-pointer"] },
    Source { name: "stopped_at_exec", compiler: C, files: &["stopped_at_exec.c"], flags: &[] },
    Source { name: "storm", compiler: C, files: &["storm.c"], flags: WITH_FRAME_POINTERS },
    Source { name: "varied", compiler: C, files: &["varied.c"], flags: &["-O0", "-lm"] },
];

/// Path of a program, compiled unless that has been done before.
#[track_caller]
pub(crate) fn compiled(name: &str) -> PathBuf {
    let source = PROGRAMS.iter().find(|source| source.name == name);
    source.unwrap_or_else(|| panic!("no program {name:?} in {}", file!())).build()
}

/// Path of `rust_service` on an allocator, which is a feature of the package `rust_allocators`.
#[track_caller]
pub(crate) fn rust_on(allocator: &str) -> PathBuf {
    build_package("rust_allocators", allocator)
}

/// Says where they are: `cargo xtask test --vm` asks that.
#[test]
#[expect(clippy::print_stdout, reason = "as said")]
fn every_program_compiles() {
    for source in PROGRAMS {
        println!("compiled: {}", source.build().display());
    }
}
