//! What all processes of the machine have mapped: what they start is likely to map that, too.

use std::{
    fs,
    io::{self, BufReader},
    sync::Arc,
};

use hashbrown::HashSet;

use crate::{
    files::{module::Module, root::ProcessDirectory},
    space::maps,
};

/// Most files, and most bytes of them all.
const MAX_FILES: usize = 512;
const MAX_BYTES: u64 = 1 << 30;
/// Largest one, bytes.
const MAX_SIZE: u64 = 64 << 20;

/// Gives every file to `tell` that is mapped as code, once, but for large ones. What cannot be opened is left out.
pub(super) fn look(mut tell: impl FnMut(Arc<Module>)) {
    let mut seen: HashSet<(u32, u32, u64)> = HashSet::new();
    let mut left = MAX_BYTES;
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    for process in pids.filter_map(|pid| ProcessDirectory::open(pid).ok()) {
        // Threads of the kernel have none.
        let mappings = read(&process).unwrap_or_default();
        let mut root = None;
        for mapping in mappings.iter().filter(|mapping| mapping.inode != 0 && !mapping.deleted) {
            if !seen.insert((mapping.device.0, mapping.device.1, mapping.inode)) {
                continue;
            }
            if root.is_none() {
                root = process.root().ok().map(Arc::new);
            }
            let module = Module::open(&process, root.as_ref(), mapping);
            if module.file().is_some() && module.original().is_none() && module.length() <= MAX_SIZE.min(left) {
                left -= module.length();
                tell(Arc::new(module));
            }
            if seen.len() >= MAX_FILES {
                return;
            }
        }
    }
}

/// The executable mappings of a process.
pub(super) fn read(process: &ProcessDirectory) -> io::Result<Vec<maps::Mapping>> {
    let mut text = BufReader::with_capacity(1 << 16, process.file("maps")?);
    let mappings = maps::read(&mut text, |mapping| mapping.executable)?;
    // An exiting process has no mappings any more, but does not say so.
    if mappings.is_empty() { Err(io::ErrorKind::NotFound.into()) } else { Ok(mappings) }
}
