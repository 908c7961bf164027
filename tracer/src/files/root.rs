//! Opening files in a process's file system, which may be another than ours and is hostile.
//!
//! A path is walked inside the process's root: symbolic links cannot lead out of it. Only regular files are opened,
//! because opening a device has effects, and opening a pipe waits for ever.

use std::{
    fs::File,
    io,
    os::fd::{AsFd as _, BorrowedFd, OwnedFd},
    path::Path,
};

use rustix::fs::{AtFlags, CWD, Mode, OFlags, ResolveFlags, StatxFlags};

use super::opener::{self, Facts, Opened, Wanted};
use crate::process::{
    stat::{MAX_STAT, Stat, parse_stat, shown_by},
    text,
};

/// How often a thread is looked for that shows the memory of a process.
const ATTEMPTS: usize = 3;

/// A process, as its directory in /proc: what is opened through it never belongs to another process that was given
/// the same id.
#[derive(Debug)]
pub struct ProcessDirectory(OwnedFd);

impl ProcessDirectory {
    /// That of process `pid`.
    ///
    /// # Errors
    /// There is no such process.
    pub fn open(pid: u32) -> io::Result<Self> {
        Ok(Self(rustix::fs::open(format!("/proc/{pid}"), OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?))
    }

    /// That of a thread by which the kernel shows the memory of process `pid`: where its first one has ended, the process's own shows
    /// nothing of that.
    ///
    /// # Errors
    /// There is no such process.
    pub fn with_memory(pid: u32) -> io::Result<Self> {
        Self::with_stat(pid).map(|(process, _)| process)
    }

    /// The same, and what the kernel says of the process.
    ///
    /// # Errors
    /// There is no such process.
    pub fn with_stat(pid: u32) -> io::Result<(Self, Stat)> {
        let process = Self::open(pid)?;
        let stat = parse_stat(&process.text("stat", MAX_STAT)?).ok_or(io::ErrorKind::InvalidData)?;
        if !stat.goes_on_without_its_first_thread() {
            return Ok((process, stat));
        }
        // A thread may end meanwhile.
        let shown = (0..ATTEMPTS).find_map(|_| Self::open(shown_by(pid)).ok());
        Ok((shown.ok_or(io::ErrorKind::NotFound)?, stat))
    }

    /// Opens one of the kernel's own files in it, like `maps`.
    ///
    /// # Errors
    /// The process is gone, or no right to look at it.
    pub fn file(&self, name: &str) -> io::Result<File> {
        Ok(rustix::fs::openat(&self.0, name, OFlags::CLOEXEC, Mode::empty())?.into())
    }

    /// What one of them says, up to `most` bytes.
    ///
    /// # Errors
    /// As [`file`](Self::file).
    pub fn text(&self, name: &str, most: u64) -> io::Result<Vec<u8>> {
        text::read(self.file(name)?, most)
    }

    /// Opens the file that is mapped at `range` (`START-END`), which the reader of a report knows as `name` and that is on
    /// `device`.
    ///
    /// # Errors
    /// The process or the mapping is gone, no right to follow it, or not a regular file.
    pub fn mapped(&self, range: &str, name: &str, device: (u32, u32)) -> io::Result<Opened> {
        opener::open(self.link(&format!("map_files/{range}"), name, &format!("device {}:{}", device.0, device.1)))
    }

    /// Opens its executable; `pid`: its id.
    ///
    /// # Errors
    /// The process is gone, no right to follow it, or not a regular file.
    pub fn executable(&self, pid: u32) -> io::Result<Opened> {
        opener::open(self.link("exe", &format!("the executable of process {pid}"), &format!("exe of {pid}")))
    }

    pub(super) fn link<'a>(&'a self, path: &'a str, name: &'a str, group: &'a str) -> Wanted<'a> {
        let (flags, resolve) = (OFlags::empty(), ResolveFlags::empty());
        Wanted { at: self.0.as_fd(), path: Path::new(path), flags, resolve, name, group }
    }

    /// The process's root directory.
    ///
    /// # Errors
    /// The process is gone, or no right to look at it.
    pub fn root(&self) -> io::Result<Root> {
        Root::at(self.0.as_fd(), "root")
    }
}

/// The root directory of a process's file system.
#[derive(Debug)]
pub struct Root(OwnedFd);

impl Root {
    /// Our own.
    ///
    /// # Errors
    /// When it cannot be opened.
    pub fn own() -> io::Result<Self> {
        Self::at(CWD, "/")
    }

    fn at(directory: BorrowedFd<'_>, path: &str) -> io::Result<Self> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        Ok(Self(rustix::fs::openat(directory, path, flags, Mode::empty())?))
    }

    /// Opens a regular file; `path` is taken from this root.
    ///
    /// # Errors
    /// There is none, or no right to read it.
    pub fn open(&self, path: &Path) -> io::Result<Opened> {
        self.open_with(path, OFlags::empty())
    }

    /// The same, but the last component of `path` must not be a symbolic link.
    ///
    /// # Errors
    /// As [`Root::open`].
    pub fn open_no_follow(&self, path: &Path) -> io::Result<Opened> {
        self.open_with(path, OFlags::NOFOLLOW)
    }

    fn open_with(&self, path: &Path, flags: OFlags) -> io::Result<Opened> {
        let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
        let name = path.to_string_lossy();
        let folder = format!("{:?} of {:?}", path.parent().unwrap_or(path), self.identity());
        opener::open(Wanted { at: self.0.as_fd(), path, flags, resolve, name: &name, group: &folder })
    }

    /// Whether both are the same directory.
    pub fn is(&self, other: &Self) -> bool {
        matches!((self.identity(), other.identity()), (Ok(one), Ok(another)) if one == another)
    }

    /// Device and inode, without asking anybody whether they still are.
    fn identity(&self) -> io::Result<((u32, u32), u64)> {
        let flags = AtFlags::EMPTY_PATH | AtFlags::STATX_DONT_SYNC;
        let stat = rustix::fs::statx(&self.0, "", flags, StatxFlags::INO)?;
        Ok(((stat.stx_dev_major, stat.stx_dev_minor), stat.stx_ino))
    }
}

/// The executable of process `pid`, as far as it can be told without reading it.
///
/// # Errors
/// The process is gone, no right to look at it, or its file system does not answer.
pub fn executable(pid: u32) -> io::Result<Facts> {
    let process = ProcessDirectory::with_memory(pid)?;
    opener::facts(process.link("exe", "its executable", &format!("exe of {pid}")))
}

#[cfg(test)]
mod tests {
    use rustix::fs::FileType;

    use super::*;

    #[test]
    fn links_stay_inside() {
        let inside = tempfile::tempdir().unwrap();
        std::fs::create_dir(inside.path().join("etc")).unwrap();
        std::fs::write(inside.path().join("etc/hostname"), "inside").unwrap();
        std::os::unix::fs::symlink("/etc/hostname", inside.path().join("absolute")).unwrap();
        std::os::unix::fs::symlink("../../../etc/hostname", inside.path().join("relative")).unwrap();
        let root = Root::at(CWD, inside.path().to_str().unwrap()).unwrap();
        for path in ["/etc/hostname", "absolute", "relative", "../../etc/hostname"] {
            let file = root.open(Path::new(path)).unwrap();
            assert_eq!(io::read_to_string(file.file).unwrap(), "inside", "{path}");
        }
        assert!(root.open_no_follow(Path::new("/etc/hostname")).is_ok());
        assert!(root.open_no_follow(Path::new("absolute")).is_err());
    }

    #[test]
    fn only_regular_files_are_opened() {
        let directory = tempfile::tempdir().unwrap();
        let pipe = directory.path().join("pipe");
        rustix::fs::mknodat(CWD, &pipe, FileType::Fifo, Mode::RUSR, 0).unwrap();
        let root = Root::own().unwrap();
        // Opening the pipe would wait for a writer.
        // The two after it look like regular files.
        let made_up = ["/dev/null", "/proc/kmsg", "/sys/kernel/mm/transparent_hugepage/enabled", "/nowhere"];
        for path in made_up.map(Path::new).into_iter().chain([&*pipe, directory.path()]) {
            assert!(root.open(path).is_err(), "{}", path.display());
        }
    }

    #[test]
    fn a_process_directory_does_not_outlive_its_process() {
        let mut child = std::process::Command::new("sleep").arg("1000").spawn().unwrap();
        let directory = ProcessDirectory::open(child.id()).unwrap();
        assert!(directory.file("maps").is_ok());
        assert!(directory.root().unwrap().is(&Root::own().unwrap()));
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(directory.file("maps").is_err());
        assert!(ProcessDirectory::open(child.id()).is_err());
    }
}
