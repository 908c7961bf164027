//! `/proc/PID/maps`.

use tracer::space::maps;

/// Every mapping has bytes, names no more text than there is, and is found whichever part of it is asked for.
pub fn run(data: &[u8]) {
    let mappings = maps::parse(data);
    for mapping in &mappings {
        assert!(mapping.start < mapping.end);
        assert!(!mapping.path.contains('\n'));
    }
    assert!(mappings.len() <= data.iter().filter(|byte| **byte == b'\n').count());
    // What is not UTF-8 takes up to three times as much when it is replaced.
    assert!(mappings.iter().map(|mapping| mapping.path.len()).sum::<usize>() <= 3 * data.len());
    let executable = maps::read(data, |mapping| mapping.executable).expect("memory can be read");
    assert!(executable.iter().eq(mappings.iter().filter(|mapping| mapping.executable)));
}
