//! CPython with PYTHONMALLOC=malloc: every object is a block.

use crate::harness::{Run, Target, program, require_root, scratch};

/// Keeps a thousand blocks of 10,000 bytes and drops as many.
const SCRIPT: &str = r#"
import sys

kept = []

def leak():
    for i in range(1000):
        kept.append(bytearray(9999))

def pass_by():
    for i in range(1000):
        bytearray(19999)

print("waiting", flush=True)
for line in sys.stdin:
    leak()
    pass_by()
    print("ready", flush=True)
"#;

#[test]
fn python_shows_its_leak() {
    require_root();
    let folder = scratch();
    let script = folder.path().join("leak.py");
    std::fs::write(&script, SCRIPT).unwrap();
    let python = program("python3", "python3");
    let mut target = Target::start_with(&python, &[script.to_str().unwrap()], &[("PYTHONMALLOC", "malloc")]);
    let tracer = Run::pid(target.pid()).start();
    target.ask("begin");
    let report = tracer.stop().report(0);
    report.assert_nothing_lost("python");
    report.assert_complete("python");
    // One byte more than asked for ends each bytearray.
    let leak = report.stacks.iter().max_by_key(|stack| stack.held.bytes).unwrap();
    assert_eq!((leak.held.blocks, leak.held.bytes), (1000, 10_000_000), "{leak:#?}");
    assert!(leak.functions.len() > 3, "{leak:#?}");
    // The same C functions, so the same stack: what passed by counts as allocated there, not as held.
    assert_eq!((leak.allocated.blocks, leak.allocated.bytes), (2000, 30_000_000), "{leak:#?}");
    target.ask("again");
    assert!(target.finish().success());
}
