//! What a kernel takes: every BPF program, also those that few traces attach.

use std::collections::BTreeSet;

use tracer::bpf::{Config, Programs};

use crate::harness::require_root;

/// Some of them, from each part of the BPF side.
const SOME: [&str; 5] = ["enter", "leave", "go_allocate", "go_new_span", "process_exec"];

/// Tracing loads what it attaches; a program that this kernel's verifier refuses would be found by a user.
#[test]
fn every_program_is_accepted() {
    require_root();
    let loaded = Programs::load(Config::smallest()).unwrap().load_all();
    let names: BTreeSet<&str> = loaded.iter().map(|(name, _)| name.as_str()).collect();
    for name in SOME {
        assert!(names.contains(name), "{name} is not among {names:?}");
    }
    let refused: Vec<String> =
        loaded.iter().filter_map(|(name, taken)| Some(format!("{name}: {}", taken.as_ref().err()?))).collect();
    assert!(refused.is_empty(), "{} of {} programs:\n{}", refused.len(), loaded.len(), refused.join("\n"));
}
