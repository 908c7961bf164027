//! A file that gets new contents as a whole: until they are there, what was in it stays.
//!
//! They are written beside it and renamed. Where that cannot be (a folder that cannot be written to, a file with several names or
//! with a mount on it), they are written in its place once the file system has set the space for them apart. What is reached by a
//! descriptor that somebody has open (`/dev/fd/3`) is written on from where that is: others write to it as well. A file that is not
//! there yet is made to see that it can be, and removed at once: however tracer ends, no empty one is left.

use std::{
    fs::{self, File, OpenOptions, Permissions},
    io::{self, Seek as _, Write},
    os::unix::fs::{FileTypeExt as _, MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _, fchown},
    path::{Path, PathBuf},
};

use rustix::{
    fs::{FallocateFlags, OFlags, PROC_SUPER_MAGIC, fallocate, fcntl_getfl, fcntl_setfl, statfs},
    process::{PidfdFlags, PidfdGetfdFlags, getpid, pidfd_getfd, pidfd_open},
};
use tempfile::NamedTempFile;

use crate::last_will::Clause;

/// Links to links that are followed at most (MAXSYMLINKS of Linux).
const MAX_LINKS: usize = 40;

/// A file that was found to be writable, and is to get new contents.
pub(crate) struct Replacement {
    file: File,
    /// Its name in its folder, where another file can take it over.
    name: Option<PathBuf>,
    /// Whether it is a file that somebody has open, and so is only written on.
    is_shared: bool,
    /// Whether its file system counts the names of a file.
    counts_names: bool,
    /// Made by this run, and still without contents.
    made: Option<(Made, Clause)>,
    /// Made by this run, and removed until there are contents.
    is_removed: bool,
}

impl Replacement {
    /// Opens the file at `path`, or makes it. Existing contents stay.
    ///
    /// # Errors
    /// It cannot be written.
    pub(crate) fn open(path: &Path) -> io::Result<Self> {
        let leads = followed(path);
        if let Leads::Shared(link) = &leads
            && let Some(file) = own_descriptor(link)
        {
            return Ok(Self { file, name: None, is_shared: true, counts_names: false, made: None, is_removed: false });
        }
        let is_shared = matches!(leads, Leads::Shared(_));
        let fresh = !path.exists();
        // A named pipe without a reader would be waited for, and nothing ends that.
        let file = OpenOptions::new()
            .write(true)
            .append(is_shared)
            .create(true)
            .truncate(false)
            .custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY)
            .open(path)
            .map_err(|error| if error.raw_os_error() == Some(libc::ENXIO) { nobody(path, error) } else { error })?;
        // Who reads slowly is waited for.
        fcntl_setfl(&file, fcntl_getfl(&file)? - OFlags::NONBLOCK)?;
        let metadata = file.metadata()?;
        let own = identity(&metadata);
        let name = match leads {
            Leads::Name(name) => Some(name),
            Leads::Shared(_) | Leads::Nowhere => None,
        };
        let name = name.filter(|name| fs::symlink_metadata(name).is_ok_and(|found| identity(&found) == own));
        let made = fresh.then(|| Made::new(name.as_deref().unwrap_or(path), own));
        let replaceable = metadata.is_file() && metadata.nlink() == 1;
        let counts_names = metadata.nlink() > 0;
        let name = name.filter(|_| replaceable);
        let is_removed = name.is_some() && made.as_ref().is_some_and(|(made, _)| made.remove());
        Ok(Self { file, name, is_shared, counts_names, made: made.filter(|_| !is_removed), is_removed })
    }

    /// Gives it the contents that `write` writes each time it is called. Where that fails, what was there stays; what this run
    /// made is removed when this is dropped.
    ///
    /// # Errors
    /// Those of `write`, and of the file.
    pub(crate) fn write(&mut self, write: impl Fn(&mut dyn Write) -> io::Result<()>) -> io::Result<()> {
        if self.file.metadata()?.is_file() && !self.is_shared {
            match self.replace(&write) {
                Ok(true) => {}
                Ok(false) => {
                    self.make_again()?;
                    self.overwrite(&write, true)?;
                }
                // Both do not fit at a time.
                Err(error) if is_full(&error) && self.made.is_none() => {
                    self.overwrite(&write, false).map_err(|_| error)?;
                }
                Err(error) => return Err(error),
            }
        } else {
            write(&mut self.file)?;
            if self.file.metadata()?.is_file() {
                // As above.
                self.file.sync_data()?;
            }
        }
        (self.made, self.is_removed) = (None, false);
        Ok(())
    }

    /// Makes a file that was removed until it has contents, where no other one can take its name over.
    fn make_again(&mut self) -> io::Result<()> {
        let Some(name) = self.name.as_ref().filter(|_| self.is_removed) else { return Ok(()) };
        let mode = self.file.metadata()?.mode();
        match OpenOptions::new().write(true).create_new(true).mode(mode & 0o777).open(name) {
            Ok(file) => {
                self.made = Some(Made::new(name, identity(&file.metadata()?)));
                (self.file, self.is_removed) = (file, false);
                Ok(())
            }
            // There is no such folder any more: that is told of the file.
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Puts a new file in its place. Whether that can be.
    fn replace(&self, write: impl Fn(&mut dyn Write) -> io::Result<()>) -> io::Result<bool> {
        let Some((name, (mut new, _removed))) = self.name.as_ref().and_then(|name| Some((name, self.beside(name)?)))
        else {
            return Ok(false);
        };
        write(new.as_file_mut())?;
        // Some file systems tell only then that it does not fit.
        new.as_file().sync_data()?;
        let Ok(new) = new.persist(name) else { return Ok(false) };
        self.check_name(&new)?;
        Ok(true)
    }

    /// A new file in the same folder, with the same owner and rights. `None` where that cannot be.
    fn beside(&self, name: &Path) -> Option<(NamedTempFile, Clause)> {
        let old = self.file.metadata().ok()?;
        let mut removed = None;
        let make = |path: &Path| {
            let name = path.to_owned();
            // Best effort.
            removed = Some(Clause::new(move || drop(fs::remove_file(name))));
            OpenOptions::new().write(true).create_new(true).open(path)
        };
        let new = tempfile::Builder::new().prefix(".tracer-").make_in(folder(name), make).ok()?;
        let own = new.as_file().metadata().ok()?;
        if (own.uid(), own.gid()) != (old.uid(), old.gid()) {
            fchown(new.as_file(), Some(old.uid()), Some(old.gid())).ok()?;
        }
        new.as_file().set_permissions(Permissions::from_mode(old.mode() & 0o7777)).ok()?;
        Some((new, removed?))
    }

    /// Changes the file itself, if there is space for that; `even_unknown`: also where nothing tells whether there is.
    fn overwrite(&mut self, write: impl Fn(&mut dyn Write) -> io::Result<()>, even_unknown: bool) -> io::Result<()> {
        self.check_name(&self.file)?;
        let mut size = Size(0);
        write(&mut size)?;
        let length = self.file.metadata()?.len();
        if let Err(error) = fallocate(&self.file, FallocateFlags::KEEP_SIZE, 0, size.0.max(1)) {
            // Gives back what was set apart.
            self.file.set_len(length)?;
            let unknown = matches!(error, rustix::io::Errno::OPNOTSUPP | rustix::io::Errno::NOSYS);
            if !(unknown && even_unknown) {
                return Err(error.into());
            }
        }
        self.file.rewind()?;
        write(&mut self.file)?;
        let written = self.file.stream_position()?;
        self.file.set_len(written)?;
        self.file.sync_data()?;
        self.check_name(&self.file)
    }

    /// That whoever looks for a file finds it.
    fn check_name(&self, file: &File) -> io::Result<()> {
        if !self.counts_names || file.metadata()?.nlink() > 0 {
            return Ok(());
        }
        Err(io::Error::other(
            "it, or the folder that it is in, was removed meanwhile (choose a folder that stays until the trace is over)",
        ))
    }
}

impl Drop for Replacement {
    fn drop(&mut self) {
        if let Some((made, _)) = &self.made {
            made.remove();
        }
    }
}

/// A file that this run has made. Without contents it would look like an empty report.
#[derive(Clone)]
struct Made {
    path: PathBuf,
    identity: (u64, u64),
}

impl Made {
    /// One that is removed if tracer has to end at once.
    fn new(path: &Path, identity: (u64, u64)) -> (Self, Clause) {
        let made = Self { path: path.to_owned(), identity };
        let removed = made.clone();
        // Best effort.
        (made, Clause::new(move || _ = removed.remove()))
    }

    /// Removes it, as far as that can be done. Whether it was.
    fn remove(&self) -> bool {
        let is_there = fs::symlink_metadata(&self.path).is_ok_and(|found| identity(&found) == self.identity);
        is_there && fs::remove_file(&self.path).is_ok()
    }
}

/// Why what nobody has at its other end cannot be written.
fn nobody(path: &Path, error: io::Error) -> io::Error {
    let Ok(kind) = fs::metadata(path).map(|metadata| metadata.file_type()) else { return error };
    if kind.is_fifo() {
        io::Error::other("it is a named pipe that nobody reads (start what reads it before tracer)")
    } else if kind.is_socket() {
        io::Error::other("it is a socket, which cannot be opened as a file")
    } else {
        error
    }
}

/// How much is written.
struct Size(u64);

impl Write for Size {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0 += bytes.len() as u64;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Device and inode.
fn identity(metadata: &fs::Metadata) -> (u64, u64) {
    (metadata.dev(), metadata.ino())
}

/// Folder that `path` is in.
fn folder(path: &Path) -> &Path {
    path.parent().filter(|folder| *folder != Path::new("")).unwrap_or(Path::new("."))
}

/// Where a path leads to.
enum Leads {
    /// To this one, whose last component is no link.
    Name(PathBuf),
    /// Through /proc, by this link there: such links (`/dev/stdout`) stand for a file that is open already, which others write to as
    /// well.
    Shared(PathBuf),
    /// Nobody knows.
    Nowhere,
}

fn followed(path: &Path) -> Leads {
    let mut path = path.to_owned();
    for _ in 0..MAX_LINKS {
        match statfs(folder(&path)) {
            Ok(found) if found.f_type == PROC_SUPER_MAGIC => return Leads::Shared(path),
            Ok(_) => {}
            Err(_) => return Leads::Nowhere,
        }
        match fs::read_link(&path) {
            Ok(link) => path = folder(&path).join(link),
            Err(_) => return Leads::Name(path),
        }
    }
    Leads::Nowhere
}

/// The file that a link of /proc stands for, where that is a descriptor of this process which can be written to: with the place in the
/// file that those share who have it open. Opened anew, it would have one of its own.
fn own_descriptor(link: &Path) -> Option<File> {
    let found = fs::canonicalize(folder(link)).ok()?;
    let is_own = |own| fs::canonicalize(own).is_ok_and(|own| own == found);
    if !["/proc/self/fd", "/proc/thread-self/fd"].into_iter().any(is_own) {
        return None;
    }
    let number = link.file_name()?.to_str()?.parse().ok()?;
    let this = pidfd_open(getpid(), PidfdFlags::empty()).ok()?;
    let file = File::from(pidfd_getfd(this, number, PidfdGetfdFlags::empty()).ok()?);
    let writes = fcntl_getfl(&file).ok()? & OFlags::RWMODE != OFlags::RDONLY;
    (writes && file.metadata().ok()?.is_file()).then_some(file)
}

fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    fn full(out: &mut dyn Write) -> io::Result<()> {
        out.write_all(b"half of")?;
        Err(io::ErrorKind::StorageFull.into())
    }

    fn write(path: &Path, contents: &str) {
        Replacement::open(path).unwrap().write(|out| out.write_all(contents.as_bytes())).unwrap();
    }

    fn names(folder: &Path) -> Vec<String> {
        fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned()).collect()
    }

    #[test]
    fn what_fails_leaves_what_was_there() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("report");
        let mut fresh = Replacement::open(&path).unwrap();
        assert!(fresh.write(full).is_err());
        drop(fresh);
        assert_eq!(names(folder.path()), [""; 0]);

        fs::write(&path, "old").unwrap();
        fs::set_permissions(&path, Permissions::from_mode(0o640)).unwrap();
        assert!(Replacement::open(&path).unwrap().write(full).is_err());
        assert_eq!((names(folder.path()), &*fs::read(&path).unwrap()), (vec!["report".to_owned()], &b"old"[..]));
        write(&path, "new");
        assert_eq!((names(folder.path()), &*fs::read(&path).unwrap()), (vec!["report".to_owned()], &b"new"[..]));
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o640);
    }

    /// However tracer ends before it writes: killed, it removes nothing.
    #[test]
    fn what_is_still_without_contents_is_not_there() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("report");
        let fresh = Replacement::open(&path).unwrap();
        std::mem::forget(fresh);
        assert_eq!(names(folder.path()), [""; 0]);
        // What others put there meanwhile is taken over like any other.
        let mut fresh = Replacement::open(&path).unwrap();
        fs::write(&path, "other").unwrap();
        fresh.write(|out| out.write_all(b"new")).unwrap();
        assert_eq!((names(folder.path()), &*fs::read(&path).unwrap()), (vec!["report".to_owned()], &b"new"[..]));
    }

    #[test]
    fn what_cannot_be_replaced_is_made_again() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("report");
        let mut fresh = Replacement::open(&path).unwrap();
        fresh.make_again().unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"");
        fresh.overwrite(|out| out.write_all(b"new"), true).unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"new");
        drop(fresh);
        assert!(!path.exists(), "what was not written to its end is removed");
    }

    #[test]
    fn a_file_that_somebody_else_has_put_there_is_not_removed() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("report");
        let fresh = Replacement::open(&path).unwrap();
        fs::write(folder.path().join("other"), "other").unwrap();
        fs::rename(folder.path().join("other"), &path).unwrap();
        drop(fresh);
        assert_eq!(fs::read(&path).unwrap(), b"other");
    }

    #[test]
    fn links_stay_links() {
        let folder = tempfile::tempdir().unwrap();
        let [file, link, missing, second] = ["file", "link", "missing", "second"].map(|name| folder.path().join(name));
        fs::write(&file, "a longer old report").unwrap();
        symlink("file", &link).unwrap();
        write(&link, "new");
        assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
        assert_eq!(fs::read(&file).unwrap(), b"new");
        fs::hard_link(&file, &second).unwrap();
        write(&second, "x");
        assert_eq!(fs::read(&file).unwrap(), b"x");
        symlink("not there", &missing).unwrap();
        drop(Replacement::open(&missing).unwrap());
        assert!(fs::symlink_metadata(&missing).unwrap().is_symlink());
        assert!(!folder.path().join("not there").exists());
    }

    #[test]
    fn one_file_under_two_names_gets_the_last() {
        let folder = tempfile::tempdir().unwrap();
        let (file, link) = (folder.path().join("file"), folder.path().join("link"));
        symlink("file", &link).unwrap();
        let mut both = [&file, &link].map(|path| Replacement::open(path).unwrap());
        for (replacement, contents) in both.iter_mut().zip(["first", "second"]) {
            replacement.write(|out| out.write_all(contents.as_bytes())).unwrap();
        }
        drop(both);
        assert_eq!(fs::read(&file).unwrap(), b"second");
    }

    /// What others have open stays the file that is written to, and what they have written to it stays there.
    #[test]
    fn an_open_file_is_written_on() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        fs::write(&path, "an old report").unwrap();
        let mut open = File::options().write(true).open(&path).unwrap();
        open.write_all(b"before, ").unwrap();
        write(&crate::files::opener::reopen_path(&open), "new");
        open.write_all(b", after").unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "before, new, after");
        // That cannot be written to: it is opened anew.
        let read = File::open(&path).unwrap();
        write(&crate::files::opener::reopen_path(&read), " more");
        assert_eq!(fs::read_to_string(&path).unwrap(), "before, new, after more");
    }

    #[test]
    fn what_nobody_finds_is_not_written() {
        let folder = tempfile::tempdir().unwrap();
        let inner = folder.path().join("inner");
        fs::create_dir(&inner).unwrap();
        let path = inner.join("report");
        let mut report = Replacement::open(&path).unwrap();
        fs::remove_dir_all(&inner).unwrap();
        let mut write = || report.write(|out| out.write_all(b"new"));
        let error = write().unwrap_err().to_string();
        assert!(error.contains("the folder that it is in, was removed meanwhile"), "{error}");
        fs::create_dir(&inner).unwrap();
        write().unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "new");
    }

    /// Ends at once in the middle of a report, in a process that the next test starts.
    #[test]
    fn ends_in_the_middle() {
        let Some(folder) = std::env::var_os(FOLDER).map(PathBuf::from) else { return };
        let _fresh = Replacement::open(&folder.join("fresh")).unwrap();
        assert_eq!(names(&folder), ["old"], "what has no contents is not there");
        let mut old = Replacement::open(&folder.join("old")).unwrap();
        let ended = old.write(|out| {
            out.write_all(b"half of")?;
            assert_eq!(names(&folder).len(), 2, "one is beside it");
            crate::last_will::execute();
            // Nothing is dropped.
            std::process::exit(0)
        });
        panic!("{ended:?}");
    }

    const FOLDER: &str = "TRACER_TEST_REPLACEMENT";

    #[test]
    fn a_tracer_that_ends_at_once_leaves_nothing_that_is_not_whole() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("old"), "old").unwrap();
        let mut tests = std::process::Command::new(std::env::current_exe().unwrap());
        tests.args(["--exact", "replacement::tests::ends_in_the_middle"]).env(FOLDER, folder.path());
        assert!(tests.status().unwrap().success());
        assert_eq!(names(folder.path()), ["old"]);
        assert_eq!(fs::read(folder.path().join("old")).unwrap(), b"old");
    }
}
