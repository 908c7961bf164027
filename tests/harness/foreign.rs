//! Another tracer, which probes the returns of functions in the same process.

use std::{fs, num::NonZeroU32, path::Path};

use object::{Object as _, ObjectSegment as _, ObjectSymbol as _};
use tracer::bpf::{Config, Links, Programs};

use super::compared;

/// Probes that are there as long as this is.
pub(crate) struct ForeignProbes {
    programs: Programs,
    links: Option<Links>,
}

impl ForeignProbes {
    /// Probes the returns of functions in a file that process `pid` maps.
    pub(crate) fn start(pid: u32, file: &Path, functions: &[&str]) -> Self {
        let mut programs = compared::load(Config::smallest());
        let mut links = Links::default();
        let task = NonZeroU32::new(pid).unwrap();
        links.attach(&mut programs, "empty_return", file, offsets(file, functions), task).unwrap();
        Self { programs, links: Some(links) }
    }
}

impl Drop for ForeignProbes {
    fn drop(&mut self) {
        if let Some(links) = self.links.take() {
            links.detach(&mut self.programs);
        }
    }
}

/// Where functions are in a file.
fn offsets(file: &Path, functions: &[&str]) -> Vec<u64> {
    let bytes = fs::read(file).unwrap();
    let elf = object::File::parse(&*bytes).unwrap();
    let offset = |name: &&str| {
        let found = elf.symbols().chain(elf.dynamic_symbols()).find(|symbol| symbol.name() == Ok(*name));
        let address = found.unwrap_or_else(|| panic!("no {name} in {}", file.display())).address();
        let holds = |start: u64, size: u64| (start..start + size).contains(&address);
        let segment = elf.segments().find(|segment| holds(segment.address(), segment.size())).unwrap();
        address - segment.address() + segment.file_range().0
    };
    functions.iter().map(offset).collect()
}
