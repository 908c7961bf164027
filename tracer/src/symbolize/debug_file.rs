//! Finding the separate file that holds a module's debug information.
//!
//! Where to look is what GDB documents ("Debugging Information in Separate Files"): by build id, then by the name in
//! `.gnu_debuglink`; first in the debug directories of this machine, then in those of the process, which may run in a
//! container. What is found must be of the same build: equal build ids, or the checksum of the link.

use std::{
    ffi::OsStr,
    fs::File,
    os::unix::ffi::OsStrExt,
    path::{Component, Path, PathBuf},
};

use super::work::Work;
use crate::files::{
    elf::{Bytes, Elf},
    module::{Module, is_administrators},
    opener::Opened,
    root::Root,
};

/// Longest name that a link may have, bytes (NAME_MAX).
const MAX_NAME: usize = 255;

/// A file of debug information.
pub(super) struct DebugFile {
    /// The file.
    pub(super) file: File,
    /// Whether nobody but the administrator of this machine can have put it there.
    pub(super) trusted: bool,
}

/// Looks for the debug file of `module`, whose outline is `elf`, under `directories` (absolute paths).
pub(super) fn find(module: &Module, elf: &Elf<'_>, directories: &[PathBuf], work: &mut Work) -> Option<DebugFile> {
    let wanted = Wanted { build_id: module.build_id(), link: elf.debug_link().filter(|(name, _)| is_plain_name(name)) };
    let host = Root::own().ok()?;
    let theirs = module.root().filter(|root| !root.is(&host));
    let mut paths = wanted.build_id.map(|id| in_build_ids(directories, id)).unwrap_or_default();
    paths.extend(wanted.link.iter().flat_map(|(name, _)| beside(Path::new(module.path()), name, directories)));
    for root in std::iter::once(&host).chain(theirs.map(AsRef::as_ref)) {
        for path in &paths {
            let Ok(Opened { file, facts, .. }) = root.open(path) else { continue };
            if module.is_file(&facts) || !wanted.is(&file, work) {
                continue;
            }
            tracing::debug!(path = path.display().to_string().escape_debug().to_string(), "debug file");
            let ours = root.is(&host) && directories.iter().any(|directory| path.starts_with(directory));
            return Some(DebugFile { file, trusted: ours && is_administrators(&facts) });
        }
    }
    None
}

/// What says that a debug file belongs to a module.
struct Wanted<'data> {
    build_id: Option<&'data [u8]>,
    link: Option<(&'data [u8], u32)>,
}

impl Wanted<'_> {
    fn is(&self, file: &File, work: &mut Work) -> bool {
        let bytes = Bytes::new(file);
        let Ok(elf) = Elf::parse(&bytes) else { return false };
        match (self.build_id, elf.build_id(), self.link) {
            (Some(wanted), Some(found), _) => wanted == found,
            (_, _, Some((_, wanted))) => {
                file.metadata().is_ok_and(|metadata| work.checksum(file, &metadata) == Some(wanted))
            }
            _ => false,
        }
    }
}

/// `.build-id/ab/cdef.debug` in every debug directory.
fn in_build_ids(directories: &[PathBuf], id: &[u8]) -> Vec<PathBuf> {
    let [first, rest @ ..] = id else { return Vec::new() };
    let rest: String = rest.iter().map(|byte| format!("{byte:02x}")).collect();
    directories.iter().map(|directory| directory.join(format!(".build-id/{first:02x}/{rest}.debug"))).collect()
}

/// Where a file that is linked to by name can be: beside the module, in `.debug` beside it, and in every debug directory
/// under the path of the module.
fn beside(module: &Path, name: &[u8], directories: &[PathBuf]) -> Vec<PathBuf> {
    let name = OsStr::from_bytes(name);
    let Some(folder) = module.parent().filter(|_| module.is_absolute()) else { return Vec::new() };
    let relative: PathBuf = folder.components().filter(|part| matches!(part, Component::Normal(_))).collect();
    let mut paths = vec![folder.join(name), folder.join(".debug").join(name)];
    paths.extend(directories.iter().map(|directory| directory.join(&relative).join(name)));
    paths
}

fn is_plain_name(name: &[u8]) -> bool {
    !name.is_empty() && name.len() <= MAX_NAME && !name.contains(&b'/') && name != b"." && name != b".."
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn where_debug_files_are() {
        let directories = [PathBuf::from("/usr/lib/debug"), PathBuf::from("/opt")];
        assert_eq!(
            in_build_ids(&directories, &[0xab, 0x0c, 0xde]),
            [Path::new("/usr/lib/debug/.build-id/ab/0cde.debug"), Path::new("/opt/.build-id/ab/0cde.debug")]
        );
        assert_eq!(
            beside(Path::new("/usr/bin/../bin/x"), b"x.debug", &directories[..1]),
            [
                Path::new("/usr/bin/../bin/x.debug"),
                Path::new("/usr/bin/../bin/.debug/x.debug"),
                Path::new("/usr/lib/debug/usr/bin/bin/x.debug")
            ]
        );
        assert!(beside(Path::new("[vdso]"), b"x", &directories).is_empty());
    }

    #[test]
    fn links_must_be_plain_names() {
        for (name, plain) in
            [(&b"x.debug"[..], true), (b"", false), (b"..", false), (b"/dev/watchdog", false), (b"../../x", false)]
        {
            assert_eq!(is_plain_name(name), plain);
        }
        assert!(!is_plain_name(&[b'x'; 256]));
    }
}
