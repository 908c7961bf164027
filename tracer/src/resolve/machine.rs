//! What all processes of the machine have mapped: what they start is likely to map that, too.

use std::{
    fs,
    io::{self, BufReader},
    path::PathBuf,
    sync::Arc,
};

use hashbrown::{HashMap, HashSet};

use crate::{
    files::{module::Module, root::ProcessDirectory},
    process::mounts::{Mount, mounts},
    space::maps,
};

/// Most files, and most bytes of them all.
const MAX_FILES: usize = 512;
const MAX_BYTES: u64 = 1 << 30;
/// Largest one, bytes.
const MAX_SIZE: u64 = 64 << 20;

/// Types of file systems, as mountinfo names them, that may not answer: nobody waits for what is there.
const SILENT: [&str; 11] = ["fuse", "nfs", "cifs", "smb3", "9p", "ceph", "afs", "gpfs", "lustre", "virtiofs", "autofs"];

/// Gives every file to `tell` that is mapped as code, once, but for large ones, and those on file systems that may not answer. What
/// cannot be opened is left out.
pub(super) fn look(mut tell: impl FnMut(Arc<Module>)) {
    let mut seen: HashSet<(u32, u32, u64)> = HashSet::new();
    let mut left = MAX_BYTES;
    // By their mount namespaces.
    let mut silent: HashMap<PathBuf, HashSet<(u32, u32)>> = HashMap::new();
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    for (pid, process) in pids.filter_map(|pid| Some((pid, ProcessDirectory::open(pid).ok()?))) {
        // Threads of the kernel have none.
        let mappings = read(&process).unwrap_or_default();
        let mut root = None;
        let mounts = fs::read_link(format!("/proc/{pid}/ns/mnt")).unwrap_or_default();
        let silent = silent.entry(mounts).or_insert_with(|| {
            process
                .file("mountinfo")
                .and_then(io::read_to_string)
                .map_or(HashSet::new(), |mounts| silent_devices(&mounts))
        });
        for mapping in mappings.iter().filter(|mapping| mapping.inode != 0 && !mapping.deleted) {
            if silent.contains(&mapping.device) {
                continue;
            }
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

/// Devices of [`SILENT`] file systems that are mounted, by the text of a mountinfo (proc(5)).
fn silent_devices(mountinfo: &str) -> HashSet<(u32, u32)> {
    let is_silent = |mount: &Mount<'_>| SILENT.iter().any(|silent| mount.kind.starts_with(*silent));
    mounts(mountinfo).filter(is_silent).map(|mount| mount.device).collect()
}

/// The executable mappings of a process.
pub(super) fn read(process: &ProcessDirectory) -> io::Result<Vec<maps::Mapping>> {
    let mut text = BufReader::with_capacity(1 << 16, process.file("maps")?);
    let mappings = maps::read(&mut text, |mapping| mapping.executable)?;
    // An exiting process has no mappings any more, but does not say so.
    if mappings.is_empty() { Err(io::ErrorKind::NotFound.into()) } else { Ok(mappings) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn file_systems_that_may_not_answer_are_known_by_their_types() {
        let mounts = "22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw\n\
                      40 22 0:51 / /mnt/a rw - fuse.sshfs host:/ rw\n41 22 0:52 / /b\\040c rw master:2 - nfs4 server:/ rw\nno line";
        assert_eq!(silent_devices(mounts), HashSet::from_iter([(0, 51), (0, 52)]));
    }
}
