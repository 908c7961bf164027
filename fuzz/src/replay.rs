//! Every kept input, run again by `cargo test`.

use std::{fs, panic, path::Path};

type Target = (&'static str, fn(&[u8]));

/// All targets, each by the name of its folder.
const TARGETS: [Target; 14] = [
    ("frames", crate::frames::run),
    ("synthesis", crate::synthesis::run),
    ("elf", crate::elf::run),
    ("symbols", crate::symbols::run),
    ("names", crate::names::run),
    ("code", crate::code::run),
    ("exits", crate::exits::run),
    ("link_map", crate::link_map::run),
    ("maps", crate::maps::run),
    ("perf_map", crate::perf_map::run),
    ("events", crate::events::run),
    ("go_tables", crate::go_tables::run),
    ("go_heap", crate::go_heap::run),
    ("goroutines", crate::goroutines::run),
];

#[test]
fn kept_inputs_do_no_harm() {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus");
    let mut folders: Vec<_> = fs::read_dir(&corpus).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    folders.sort();
    let mut names = TARGETS.map(|(name, _)| name);
    names.sort_unstable();
    assert_eq!(folders, names, "each target has its folder");
    for (name, run) in TARGETS {
        let mut inputs = 0;
        for entry in fs::read_dir(corpus.join(name)).unwrap() {
            let path = entry.unwrap().path();
            let input = fs::read(&path).unwrap();
            let result = panic::catch_unwind(|| run(&input));
            assert!(result.is_ok(), "{} does harm", path.display());
            inputs += 1;
        }
        assert!(inputs > 0, "{name} has no inputs");
    }
}
