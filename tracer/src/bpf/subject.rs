//! The function of tracer's own file that trials probe.

use std::{fs, io, path::Path};

use crate::space::maps;

const FILE: &str = "/proc/self/exe";

/// Calls it.
pub fn call() {
    subject();
}

/// The function. Its first instruction is one that the kernel emulates, as those are at which allocators are probed, so that trials
/// also tell what probes cost.
#[unsafe(naked)]
extern "C" fn subject() {
    core::arch::naked_asm!("nop", "ret")
}

/// Where an instruction of it is in the file that the kernel steps, bytes: the second one. Every call passes it.
///
/// # Errors
/// What is mapped cannot be read.
pub fn stepped_place() -> io::Result<u64> {
    place().map(|place| place + 1)
}

/// Where it is in the file, bytes.
///
/// # Errors
/// What is mapped cannot be read.
pub fn place() -> io::Result<u64> {
    let address = subject as extern "C" fn() as usize as u64;
    let mappings = maps::parse(&fs::read("/proc/self/maps")?);
    let mapping = mappings.iter().find(|mapping| (mapping.start..mapping.end).contains(&address));
    mapping.map(|mapping| address - mapping.start + mapping.offset).ok_or_else(|| io::ErrorKind::NotFound.into())
}

/// The path of the file.
pub fn path() -> &'static Path {
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
        if cfg!(target_arch = "x86_64") {
            assert_eq!(code[offset..offset + 2], [0x90, 0xc3], "nop; ret");
            assert_eq!(code[stepped_place().unwrap() as usize], 0xc3, "ret");
        }
        call();
    }
}
