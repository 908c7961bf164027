//! Gunicorn: a parent in Python that forks workers in Python, and replaces them.

use std::{fs, process::Command};

use super::{Server, check_workers, get};
use crate::harness::{Run, free_port, program, require_root, scratch, wait_until};

const REQUESTS: usize = 50;

/// Each request keeps a block of 10,000 bytes for ever.
const APPLICATION: &str = r#"
kept = []

def app(environ, start):
    kept.append(bytearray(9999))
    start("200 OK", [("Content-Type", "text/plain")])
    return [b"it works"]
"#;

#[test]
fn gunicorn_shows_the_leak_of_its_workers() {
    require_root();
    let (folder, port) = (scratch(), free_port());
    fs::write(folder.path().join("leaks.py"), APPLICATION).unwrap();
    let mut command = Command::new(program("gunicorn", "gunicorn"));
    command.args(["--workers", "2", "--max-requests", "20", "--bind"]).arg(format!("127.0.0.1:{port}"));
    command.arg("--chdir").arg(folder.path()).arg("leaks:app").env("PYTHONMALLOC", "malloc");
    let mut server = Server::start(&mut command);
    let is_page = || get(port, "/").is_ok_and(|text| text.ends_with("it works"));
    wait_until("gunicorn answers", is_page);
    wait_until("both workers are there", || server.children().len() == 2);

    // Its workers are of one program by their name, though not by their executable: that is Python's.
    let all: Vec<String> = std::iter::once(server.pid()).chain(server.children()).map(|pid| pid.to_string()).collect();
    let tracer = Run::pid(server.pid()).args(["--pid", &all.join(","), "--scope", "file"]).start();
    assert_eq!((0..REQUESTS).filter(|_| is_page()).count(), REQUESTS);
    let report = tracer.stop().report(0);
    check_workers(&report, "gunicorn", 4);
    // One byte more than asked for ends each bytearray. Those of workers that were replaced went with Python's own end.
    let kept = report.stacks.iter().filter(|stack| stack.allocated.bytes == 10_000 * stack.allocated.blocks);
    let (allocated, held) = kept.fold((0, 0), |sum, stack| (sum.0 + stack.allocated.blocks, sum.1 + stack.held.blocks));
    assert_eq!(allocated, REQUESTS as u64, "{}", report.json["groups"]);
    assert!(held > 0 && held < allocated, "{held} of {allocated}");
    assert!(server.is_alive() && is_page());
}
