//! Every kept input, run again by `cargo test`.

use std::{fs, panic, path::Path};

use crate::TARGETS;

#[test]
fn kept_inputs_do_no_harm() {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus");
    let mut folders: Vec<_> = fs::read_dir(&corpus).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    folders.sort();
    let mut names: Vec<_> = TARGETS.iter().map(|(name, _)| *name).collect();
    names.sort_unstable();
    assert_eq!(folders, names, "each target has its folder");
    for &(name, run) in TARGETS {
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
