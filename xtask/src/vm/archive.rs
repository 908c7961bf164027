//! The files of a guest, as the archive that a kernel takes for its first file system: cpio's `newc` format (the kernel's
//! Documentation/driver-api/early-userspace/buffer-format.rst).
//!
//! Files of this machine keep their paths, symbolic links on the way included: what finds them here finds them there.

use std::{
    collections::BTreeMap,
    fs,
    io::{self, Write},
    os::unix::{ffi::OsStrExt as _, fs::PermissionsExt as _},
    path::{Component, Path, PathBuf},
};

use anyhow::{Context as _, Result};

/// Files by path. In its order, folders come before what is in them.
#[derive(Default)]
pub(super) struct Archive(BTreeMap<PathBuf, Entry>);

enum Entry {
    Folder,
    Link { target: PathBuf },
    Contents { bytes: Vec<u8>, mode: u32 },
    File { from: PathBuf, mode: u32 },
}

/// File types of stat(2).
const FOLDER: u32 = 0o04_0000;
const FILE: u32 = 0o10_0000;
const LINK: u32 = 0o12_0000;

/// The longest chain of links that the kernel follows.
const MAX_LINKS: u32 = 40;

impl Archive {
    /// A folder that need not be on this machine.
    pub(super) fn folder(&mut self, path: &str) {
        self.0.insert(PathBuf::from(path), Entry::Folder);
    }

    /// An executable text, in a folder that is there already.
    pub(super) fn script(&mut self, path: &str, text: &str) {
        self.0.insert(PathBuf::from(path), Entry::Contents { bytes: text.into(), mode: 0o755 });
    }

    /// A file of this machine under another path, in a folder that is there already.
    pub(super) fn renamed(&mut self, path: &str, from: &Path) {
        self.0.insert(PathBuf::from(path), Entry::File { from: from.to_owned(), mode: 0o755 });
    }

    /// A file or folder of this machine with the folders and links on the way to it; not what is in a folder. Returns where
    /// it really is.
    pub(super) fn add(&mut self, path: &Path) -> Result<PathBuf> {
        self.add_within(path, MAX_LINKS).with_context(|| format!("cannot put {} into the archive", path.display()))
    }

    /// All files in a folder of this machine.
    pub(super) fn add_files(&mut self, folder: &Path) -> Result<()> {
        for file in fs::read_dir(folder).with_context(|| format!("cannot read {}", folder.display()))? {
            self.add(&file?.path())?;
        }
        Ok(())
    }

    fn add_within(&mut self, path: &Path, links: u32) -> io::Result<PathBuf> {
        let mut real = PathBuf::from("/");
        for component in path.components() {
            let name = match component {
                Component::Normal(name) => name,
                Component::ParentDir => {
                    real.pop();
                    continue;
                }
                _ => continue,
            };
            let here = real.join(name);
            let metadata = fs::symlink_metadata(&here)?;
            if metadata.is_symlink() {
                let links = links.checked_sub(1).ok_or_else(|| io::Error::other("too many symbolic links"))?;
                let target = fs::read_link(&here)?;
                let absolute = real.join(&target);
                self.0.insert(here, Entry::Link { target });
                real = self.add_within(&absolute, links)?;
                continue;
            }
            real = here;
            let mode = metadata.permissions().mode() & 0o7777;
            let entry = if metadata.is_dir() { Entry::Folder } else { Entry::File { from: real.clone(), mode } };
            self.0.insert(real.clone(), entry);
        }
        Ok(real)
    }

    /// Writes the archive.
    pub(super) fn write(&self, to: &mut impl Write) -> Result<()> {
        let mut number = 0;
        for (path, entry) in &self.0 {
            number += 1;
            let failed = || format!("cannot write {} into the archive", path.display());
            let name = path.strip_prefix("/").unwrap_or(path).as_os_str().as_bytes();
            match entry {
                Entry::Folder => member(to, number, FOLDER | 0o755, name, &[]),
                Entry::Link { target } => member(to, number, LINK | 0o777, name, target.as_os_str().as_bytes()),
                Entry::Contents { bytes, mode } => member(to, number, FILE | mode, name, bytes),
                Entry::File { from, mode } => {
                    member(to, number, FILE | mode, name, &fs::read(from).with_context(failed)?)
                }
            }
            .with_context(failed)?;
        }
        member(to, 0, 0, b"TRAILER!!!", &[]).context("cannot end the archive")
    }
}

/// One member: 13 numbers of 8 digits, the name with a zero, the contents; both end at a multiple of four bytes.
fn member(to: &mut impl Write, number: u32, mode: u32, name: &[u8], contents: &[u8]) -> io::Result<()> {
    let length = |bytes: usize| u32::try_from(bytes).map_err(io::Error::other);
    write!(to, "070701")?;
    // Inode, mode, user, group, links, time, size, four numbers of devices, length of the name, checksum.
    for field in [number, mode, 0, 0, 1, 0, length(contents.len())?, 0, 0, 0, 0, length(name.len() + 1)?, 0] {
        write!(to, "{field:08x}")?;
    }
    const HEAD: usize = 6 + 13 * 8;
    to.write_all(name)?;
    to.write_all(&[0; 4][..1 + padding(HEAD + name.len() + 1)])?;
    to.write_all(contents)?;
    to.write_all(&[0; 4][..padding(contents.len())])
}

fn padding(length: usize) -> usize {
    length.next_multiple_of(4) - length
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn members_are_as_the_kernel_reads_them() {
        let mut archive = Archive::default();
        archive.folder("/a");
        archive.script("/a/b", "hello");
        let mut bytes = Vec::new();
        archive.write(&mut bytes).unwrap();
        let zeros = |count: usize| "0".repeat(count * 8);
        let head = |number, mode, size, name| {
            let (one, devices) = ("00000001", zeros(4));
            format!(
                "070701{number:08x}{mode:08x}{}{one}{}{size:08x}{devices}{name:08x}{}",
                zeros(2),
                zeros(1),
                zeros(1)
            )
        };
        let folder = head(1, 0o04_0755, 0, 2) + "a\0";
        let file = head(2, 0o10_0755, 5, 4) + "a/b\0" + "\0\0" + "hello\0\0\0";
        let trailer = head(0, 0, 0, 11) + "TRAILER!!!\0" + "\0\0\0";
        assert_eq!(String::from_utf8(bytes).unwrap(), folder + &file + &trailer);
    }

    #[test]
    fn links_on_the_way_are_kept() {
        let scratch = tempfile::tempdir().unwrap();
        let root = fs::canonicalize(scratch.path()).unwrap();
        fs::create_dir_all(root.join("usr/lib")).unwrap();
        fs::write(root.join("usr/lib/libx.so.1"), "x").unwrap();
        symlink("usr/lib", root.join("lib")).unwrap();
        symlink("../lib/libx.so.1", root.join("usr/lib/libx.so")).unwrap();
        let mut archive = Archive::default();
        assert_eq!(archive.add(&root.join("lib/libx.so")).unwrap(), root.join("usr/lib/libx.so.1"));
        let within = archive.0.keys().filter_map(|path| path.strip_prefix(&root).ok());
        let names: Vec<String> = within.map(|path| path.display().to_string()).collect();
        assert_eq!(names, ["", "lib", "usr", "usr/lib", "usr/lib/libx.so", "usr/lib/libx.so.1"]);
        assert!(matches!(archive.0[&root.join("lib")], Entry::Link { .. }));
        assert!(matches!(archive.0[&root.join("usr/lib/libx.so.1")], Entry::File { .. }));

        symlink("round", root.join("round")).unwrap();
        assert!(archive.add(&root.join("round")).is_err());
        assert!(archive.add(&root.join("missing")).is_err());
    }
}
