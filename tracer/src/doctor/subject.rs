//! The function of tracer's own file that trials probe.

use std::{fs, hint::black_box, io, path::Path};

use crate::space::maps;

const FILE: &str = "/proc/self/exe";

/// Calls it.
pub(super) fn call() {
    black_box(subject(black_box(1)));
}

/// The function.
#[inline(never)]
extern "C" fn subject(number: u64) -> u64 {
    // Like no other function, so that the linker keeps it apart.
    black_box(number).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(17)
}

/// Where it is in the file, bytes.
pub(super) fn place() -> io::Result<u64> {
    let address = subject as extern "C" fn(u64) -> u64 as usize as u64;
    let mappings = maps::parse(&fs::read("/proc/self/maps")?);
    let mapping = mappings.iter().find(|mapping| (mapping.start..mapping.end).contains(&address));
    mapping.map(|mapping| address - mapping.start + mapping.offset).ok_or_else(|| io::ErrorKind::NotFound.into())
}

/// The path of the file.
pub(super) fn path() -> &'static Path {
    Path::new(FILE)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_found_in_its_file() {
        let offset = place().unwrap() as usize;
        let code = fs::read(FILE).unwrap();
        assert!(offset > 0 && offset < code.len());
        assert_ne!(subject(1), subject(2));
        call();
    }
}
