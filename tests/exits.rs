//! Instructions at which the outcome of a call is known: real calls pass exactly one of them and return what is
//! read there.

use std::{fs::File, path::Path, process::Command};

use tracer::probe::{exits::Exits, resolve::allocator};

use crate::harness::{check_calls, compiled, preloadable};

/// Calls every function of an allocator, once with each environment. `covered`: functions that must be proven.
fn check(file: &str, preload: bool, covered: &[&str], environments: &[&[(&str, &str)]]) {
    let file = Path::new(file);
    let functions = allocator(&File::open(file).unwrap()).unwrap().unwrap().functions;
    for name in covered {
        let function = functions.iter().find(|function| function.name == *name);
        let function = function.unwrap_or_else(|| panic!("no {name} in {}", file.display()));
        assert!(matches!(function.exits, Some(Exits::Proven(..))), "{function:?}");
    }
    for environment in environments {
        let mut command = Command::new(compiled("every_call"));
        if preload {
            command.env("LD_PRELOAD", file);
        }
        for (name, value) in *environment {
            if *name == "argument" {
                command.arg(value)
            } else {
                command.env(name, value)
            };
        }
        let checked = check_calls(command, file, &functions);
        assert!(checked.faults.is_empty(), "{environment:?}: {:#?}", checked);
        for name in covered {
            assert!(
                checked.calls.get(*name).is_some_and(|calls| calls.returned > 20 && calls.failed > 0),
                "{checked:?}"
            );
        }
    }
}

const FAMILY: &[&str] = &["malloc", "calloc", "realloc", "memalign", "posix_memalign"];

#[test]
fn of_glibc() {
    check("/lib/x86_64-linux-gnu/libc.so.6", false, FAMILY, &[&[], &[("argument", "shared")]]);
}

#[test]
fn of_jemalloc() {
    check(&preloadable("jemalloc"), true, FAMILY, &[&[]]);
}

#[test]
fn of_tcmalloc() {
    check(&preloadable("tcmalloc"), true, FAMILY, &[&[]]);
}

#[test]
fn of_mimalloc() {
    // What the others jump to at their ends.
    let last = ["malloc", "calloc", "mi_heap_realloc", "mi_heap_malloc_aligned_at", "mi_posix_memalign"];
    check(&preloadable("mimalloc"), true, &last, &[&[]]);
}
