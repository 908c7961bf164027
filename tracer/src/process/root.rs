//! Opening files in a process's file system, which may be another than ours and is hostile.
//!
//! A path is walked inside the process's root: symbolic links cannot lead out of it. Only regular files are opened,
//! because opening a device has effects, and opening a pipe waits for ever.

use std::{
    fs::File,
    io,
    os::fd::{AsFd, AsRawFd, OwnedFd},
    path::{Path, PathBuf},
};

use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, ResolveFlags};

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

    /// Opens one of the kernel's own files in it, like `maps`.
    ///
    /// # Errors
    /// The process is gone, or no right to look at it.
    pub fn file(&self, name: &str) -> io::Result<File> {
        Ok(rustix::fs::openat(&self.0, name, OFlags::CLOEXEC, Mode::empty())?.into())
    }

    /// Opens a link in it that stands for an open or mapped file of the process, like `map_files/START-END`.
    ///
    /// # Errors
    /// The process or the link is gone, no right to follow it, or not a regular file.
    pub fn target(&self, link: &str) -> io::Result<File> {
        regular(rustix::fs::openat(&self.0, link, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?)
    }

    /// The process's root directory.
    ///
    /// # Errors
    /// The process is gone, or no right to look at it.
    pub fn root(&self) -> io::Result<Root> {
        Root::at(&self.0, "root")
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

    fn at(directory: impl AsFd, path: &str) -> io::Result<Self> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        Ok(Self(rustix::fs::openat(directory, path, flags, Mode::empty())?))
    }

    /// Opens a regular file; `path` is taken from this root.
    ///
    /// # Errors
    /// There is none, or no right to read it.
    pub fn open(&self, path: &Path) -> io::Result<File> {
        self.open_with(path, OFlags::empty())
    }

    /// The same, but the last component of `path` must not be a symbolic link.
    ///
    /// # Errors
    /// As [`Root::open`].
    pub fn open_no_follow(&self, path: &Path) -> io::Result<File> {
        self.open_with(path, OFlags::NOFOLLOW)
    }

    fn open_with(&self, path: &Path, flags: OFlags) -> io::Result<File> {
        let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
        regular(rustix::fs::openat2(&self.0, path, flags | OFlags::PATH | OFlags::CLOEXEC, Mode::empty(), resolve)?)
    }

    /// Whether both are the same directory.
    pub fn is(&self, other: &Self) -> bool {
        let identity =
            |root: &Self| rustix::fs::statat(&root.0, "", AtFlags::EMPTY_PATH).map(|stat| (stat.st_dev, stat.st_ino));
        matches!((identity(self), identity(other)), (Ok(one), Ok(another)) if one == another)
    }
}

/// Path by which this process can open again what it has open.
pub fn reopen_path(file: &impl AsRawFd) -> PathBuf {
    format!("/proc/self/fd/{}", file.as_raw_fd()).into()
}

/// File systems of the kernel's own (include/uapi/linux/magic.h): what looks like a regular file there may wait for ever when
/// it is read (`/proc/kmsg`, `trace_pipe`), and reading may have effects.
const OF_THE_KERNEL: [u32; 18] = [
    0x9fa0,      // proc
    0x6265_6572, // sysfs
    0x6462_6720, // debugfs
    0x7472_6163, // tracefs
    0x0027_e0eb, // cgroup
    0x6367_7270, // cgroup2
    0x7363_6673, // securityfs
    0xcafe_4a11, // bpf
    0x6165_676c, // pstore
    0xde5e_81e4, // efivarfs
    0xf97c_ff8c, // selinuxfs
    0x4341_5d53, // smackfs
    0x5a3c_69f0, // apparmorfs
    0x4249_4e4d, // binfmt_misc
    0x1cd1,      // devpts
    0x1980_0202, // mqueue
    0x6265_6570, // configfs
    0x6573_5546, // fusectl
];

/// Opens for reading what was opened as a path only, if it is a regular file that keeps what is in it.
fn regular(path: OwnedFd) -> io::Result<File> {
    let refused = |what| Err(io::Error::new(io::ErrorKind::InvalidInput, what));
    let stat = rustix::fs::fstat(&path)?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
        return refused("not a regular file");
    }
    // The magic numbers are 32 bits, the field is wider.
    if OF_THE_KERNEL.contains(&(rustix::fs::fstatfs(&path)?.f_type as u32)) {
        return refused("a file that the kernel makes up");
    }
    File::open(reopen_path(&path))
}

#[cfg(test)]
mod tests {
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
            assert_eq!(io::read_to_string(file).unwrap(), "inside", "{path}");
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
