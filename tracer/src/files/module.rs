//! A mapped file, opened while it is mapped and held open from then on.
//!
//! It is opened through `/proc/PID/map_files`, which leads to the very file that is mapped: in containers, behind chroot,
//! deleted or replaced. That takes CAP_SYS_ADMIN or CAP_CHECKPOINT_RESTORE. Without, the path is tried in the
//! process's root, and believed only when device and inode are those of the mapping.

use std::{
    fs::{File, Metadata},
    io,
    os::{
        fd::OwnedFd,
        unix::fs::{FileExt, MetadataExt},
    },
    path::{Path, PathBuf},
    sync::{Arc, OnceLock},
};

use super::{
    elf::{Bytes, Elf},
    opener::{Facts, Opened, nanoseconds, reopen_path},
    root::{ProcessDirectory, Root},
};
use crate::{limits, space::maps::Mapping};

/// What tells files apart.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Identity {
    /// A file that is open.
    File {
        /// Number of the device that it is on.
        device: u64,
        /// Inode on that device. It is not given to another file as long as this one is open.
        inode: u64,
    },
    /// Something that is no file, or could not be opened.
    Name(String),
}

/// A file that is mapped into a process, or something like `[vdso]` that is code without a file.
#[derive(Debug)]
pub struct Module {
    path: String,
    identity: Identity,
    file: Option<File>,
    /// The file itself, where `file` is a copy of it.
    original: Option<OwnedFd>,
    /// Bytes, when it was opened.
    length: u64,
    /// When its contents had changed last then, nanoseconds.
    written: u64,
    /// Whether it belongs to root, and others cannot write to it.
    safe: bool,
    root: Option<Arc<Root>>,
    build_id: OnceLock<Option<Vec<u8>>>,
    contents: OnceLock<Option<(u64, u64)>>,
    is_guessed: OnceLock<()>,
    /// Why it could not be opened, where there were no descriptors left.
    exhausted: Option<String>,
}

/// A place in a file.
#[derive(Clone, Debug)]
pub struct Location {
    /// The file.
    pub module: Arc<Module>,
    /// Offset of the address in the file; in what is no file, from its start. Bytes.
    pub offset: u64,
}

impl Module {
    /// The file behind a mapping of a process whose root is `root`. One that cannot be opened is known by name only.
    pub fn open(process: &ProcessDirectory, root: Option<&Arc<Root>>, mapping: &Mapping) -> Self {
        let mut exhausted = None;
        let file = open(process, root, mapping).inspect_err(|error| {
            exhausted = limits::exhausted(error);
            tracing::debug!(path = mapping.path.escape_debug().to_string(), "cannot open a mapped file: {error}");
        });
        match file {
            Ok(file) => Self::of_opened(&mapping.path, file, root),
            Err(_) => Self { root: root.cloned(), exhausted, ..Self::special(&mapping.path) },
        }
    }

    /// A file that was opened for a process whose root is `root`.
    pub fn of_opened(path: &str, Opened { file, facts, original }: Opened, root: Option<&Arc<Root>>) -> Self {
        let safe = is_administrators(&facts);
        Self {
            original,
            length: facts.length,
            written: facts.changed.0,
            safe,
            root: root.cloned(),
            ..Self::of(path, file, facts.device, facts.inode)
        }
    }

    /// A file that is open, in no process's root.
    ///
    /// # Errors
    /// It cannot be told from other files.
    pub fn of_file(path: &str, file: File) -> io::Result<Self> {
        let metadata = file.metadata()?;
        let written = written(&metadata);
        Ok(Self { length: metadata.len(), written, ..Self::of(path, file, metadata.dev(), metadata.ino()) })
    }

    fn of(path: &str, file: File, device: u64, inode: u64) -> Self {
        Self { identity: Identity::File { device, inode }, file: Some(file), ..Self::special(path) }
    }

    /// Code that the kernel put there and that is in no file.
    pub fn special(name: &str) -> Self {
        Self {
            path: name.to_owned(),
            identity: Identity::Name(name.to_owned()),
            file: None,
            original: None,
            length: 0,
            written: 0,
            safe: false,
            root: None,
            build_id: OnceLock::new(),
            contents: OnceLock::new(),
            is_guessed: OnceLock::new(),
            exhausted: None,
        }
    }

    /// What to tell the user where the file could not be opened because there were no descriptors left.
    pub fn exhausted(&self) -> Option<&str> {
        self.exhausted.as_deref()
    }

    /// Path as the process sees it, without the mark of deleted files. Hostile text.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// The open file. Threads share its position: read with offsets only.
    pub fn file(&self) -> Option<&File> {
        self.file.as_ref()
    }

    /// The file itself, by which it can be probed, where [`file`](Self::file) is a copy of it.
    pub fn original(&self) -> Option<&OwnedFd> {
        self.original.as_ref()
    }

    /// Its length when it was opened, bytes.
    pub fn length(&self) -> u64 {
        self.length
    }

    /// What tells its contents from others that it may have had, or have later: how long it was when it was opened (bytes), and when it had
    /// been written last.
    pub fn version(&self) -> (u64, u64) {
        (self.length, self.written)
    }

    /// Whether the file has been written to since it was opened: what is in it is not what was mapped then.
    pub fn is_rewritten(&self) -> bool {
        // A copy stays as it is.
        let file = self.file.as_ref().filter(|_| self.original.is_none());
        file.and_then(|file| file.metadata().ok()).is_some_and(|now| (now.len(), written(&now)) != self.version())
    }

    /// Whether another one is this file with the contents that it had.
    pub fn is_same(&self, other: &Self) -> bool {
        self.identity == other.identity && self.version() == other.version()
    }

    /// What tells it from other files.
    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    /// Device and inode of what is read: of the copy, where it is one.
    pub fn contents(&self) -> Option<(u64, u64)> {
        let ask = || self.file.as_ref()?.metadata().ok().map(|metadata| (metadata.dev(), metadata.ino()));
        *self.contents.get_or_init(ask)
    }

    /// Whether `facts` are those of this file.
    pub fn is_file(&self, facts: &Facts) -> bool {
        self.identity == Identity::File { device: facts.device, inode: facts.inode }
    }

    /// Path by which this process can open the file again, as long as the module lives.
    pub fn open_path(&self) -> Option<PathBuf> {
        self.file.as_ref().map(reopen_path)
    }

    /// Path by which the kernel finds the file itself, to put probes into it, as long as the module lives.
    pub fn probe_path(&self) -> Option<PathBuf> {
        self.original.as_ref().map(reopen_path).or_else(|| self.open_path())
    }

    /// Root directory of the process that the file was opened in.
    pub fn root(&self) -> Option<&Arc<Root>> {
        self.root.as_ref()
    }

    /// Whether only the administrator of this machine can have written the file. What is in a container is not.
    pub fn is_administrators(&self) -> bool {
        let here = self.root.as_ref().is_some_and(|root| Root::own().is_ok_and(|own| own.is(root)));
        here && self.safe
    }

    /// The linker's identification of this build, if the file has one and can be read.
    pub fn build_id(&self) -> Option<&[u8]> {
        let read = || Elf::parse(&Bytes::new(self.file.as_ref()?)).ok()?.build_id();
        self.build_id.get_or_init(read).as_deref()
    }

    /// Whether nothing tells how its code is unwound, and it is followed by frame pointers: a guess. Known as soon as somebody has said so.
    pub fn is_guessed(&self) -> bool {
        self.is_guessed.get().is_some()
    }

    /// Says so.
    pub fn guess(&self) {
        self.is_guessed.get_or_init(|| ());
    }

    /// Whether the file begins like an ELF file.
    pub fn is_elf(&self) -> bool {
        self.begins(b"\x7fELF")
    }

    /// Whether it begins like a file of the format that .NET has its code in (PE).
    pub fn is_pe(&self) -> bool {
        self.begins(b"MZ")
    }

    fn begins<const N: usize>(&self, magic: &[u8; N]) -> bool {
        let mut begin = [0; N];
        self.file.as_ref().is_some_and(|file| file.read_exact_at(&mut begin, 0).is_ok()) && begin == *magic
    }
}

/// When it was written last, nanoseconds.
fn written(file: &Metadata) -> u64 {
    nanoseconds(file.mtime(), file.mtime_nsec().cast_unsigned())
}

/// Whether a file of this machine belongs to root and cannot be written by others.
pub fn is_administrators(file: &Facts) -> bool {
    file.owner == 0 && file.mode & 0o022 == 0
}

fn open(process: &ProcessDirectory, root: Option<&Arc<Root>>, mapping: &Mapping) -> io::Result<Opened> {
    let range = format!("{:x}-{:x}", mapping.start, mapping.end);
    let error = match process.mapped(&range, &mapping.path, mapping.device) {
        // What it was of may still lie at its path: libraries that are opened and closed take each other's places.
        Ok(file) if is_another(&file.facts, mapping) => io::Error::other("another file is mapped there by now"),
        Ok(file) => return Ok(file),
        Err(error) => error,
    };
    let Some(root) = root.filter(|_| !mapping.deleted && error.kind() != io::ErrorKind::TimedOut) else {
        return Err(error);
    };
    let file = root.open(Path::new(&mapping.path)).map_err(|_| error)?;
    if device(&file.facts) != mapping.device || file.facts.inode != mapping.inode {
        return Err(io::Error::other("another file has its path now"));
    }
    Ok(file)
}

/// Whether a file is another one than the mapping was of when it was looked at. Some file systems (btrfs, overlayfs) tell other
/// numbers than the kernel prints of mappings: then nothing can be said.
fn is_another(facts: &Facts, mapping: &Mapping) -> bool {
    device(facts) == mapping.device && facts.inode != mapping.inode
}

fn device(facts: &Facts) -> (u32, u32) {
    (rustix::fs::major(facts.device), rustix::fs::minor(facts.device))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::space::maps;

    fn own_executable() -> (ProcessDirectory, Arc<Root>, Mapping) {
        let path = std::env::current_exe().unwrap();
        let mappings = maps::parse(&std::fs::read("/proc/self/maps").unwrap());
        let mapping = mappings.into_iter().find(|mapping| Path::new(&mapping.path) == path).unwrap();
        let process = ProcessDirectory::open(std::process::id()).unwrap();
        let root = Arc::new(process.root().unwrap());
        (process, root, mapping)
    }

    #[test]
    fn the_path_is_believed_only_for_the_same_file() {
        let (process, root, mapping) = own_executable();
        // No mapping is there, so only the path is left.
        let elsewhere = Mapping { start: 0x1000, end: 0x2000, ..mapping };
        let metadata = crate::files::root::executable(std::process::id()).unwrap();
        assert!(Module::open(&process, Some(&root), &elsewhere).is_file(&metadata));
        for other in [
            Mapping { inode: elsewhere.inode + 1, ..elsewhere.clone() },
            Mapping { device: (elsewhere.device.0, elsewhere.device.1 + 1), ..elsewhere.clone() },
            Mapping { deleted: true, ..elsewhere.clone() },
            Mapping { path: "/dev/null".to_owned(), ..elsewhere.clone() },
        ] {
            let module = Module::open(&process, Some(&root), &other);
            assert!(module.file().is_none());
            assert_eq!(*module.identity(), Identity::Name(other.path));
        }
    }

    #[test]
    fn a_file_in_whose_place_another_is_mapped_is_found_by_its_path() {
        let (process, root, mapping) = own_executable();
        let beside = tempfile::NamedTempFile::new_in(Path::new(&mapping.path).parent().unwrap()).unwrap();
        let metadata = beside.as_file().metadata().unwrap();
        // The executable is mapped there.
        let path = beside.path().to_str().unwrap().to_owned();
        let before = Mapping { inode: metadata.ino(), path, ..mapping };
        let module = Module::open(&process, Some(&root), &before);
        assert_eq!(*module.identity(), Identity::File { device: metadata.dev(), inode: metadata.ino() });
        let gone = Mapping { deleted: true, ..before };
        assert!(Module::open(&process, Some(&root), &gone).file().is_none());
    }

    #[test]
    fn a_file_that_has_taken_the_place_of_another_is_not_taken_for_it() {
        let (process, root, mapping) = own_executable();
        let before = Mapping { inode: mapping.inode + 1, deleted: true, ..mapping };
        assert!(Module::open(&process, Some(&root), &before).file().is_none());
    }

    #[test]
    fn what_a_module_knows() {
        let (process, root, mapping) = own_executable();
        let module = Module::open(&process, Some(&root), &mapping);
        assert!(module.is_file(&crate::files::root::executable(std::process::id()).unwrap()));
        assert!(module.is_elf());
        assert_eq!(std::fs::read(module.open_path().unwrap()).unwrap()[..4], *b"\x7fELF");
        assert!(module.build_id().is_none_or(|id| id.len() >= 8));
        let special = Module::special("[vdso]");
        assert!(special.file().is_none() && special.build_id().is_none() && !special.is_elf());
    }
}
