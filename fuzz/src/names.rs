//! Mangled names.

use tracer::symbolize::demangle;

/// The readable form is bounded.
pub fn run(data: &[u8]) {
    let name = String::from_utf8_lossy(data);
    assert!(demangle(&name).len() <= 16 << 10);
}
