//! Opening files that a target has chosen: each may lie on a file system that never answers (FUSE, a server that is gone), and
//! then whoever looks it up, reads it or only asks for its size waits for ever, deaf to signals.
//!
//! So it is done by a process of its own, the helper, which gets a deadline and is left to its fate when that has passed. A file
//! on a file system of this machine is passed on open. Of another it takes a copy, and nothing but the copy is ever
//! read. What was waited for in vain is told.
//!
//! Without [`start`], as in libraries and benches, files are opened directly.

use std::{
    fs::File,
    io::{self, IoSlice, IoSliceMut},
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
        unix::{ffi::OsStrExt as _, fs::FileExt as _, process::CommandExt as _},
    },
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use rustix::{
    event::{PollFd, PollFlags, poll},
    fs::{FileType, MemfdFlags, Mode, OFlags, ResolveFlags, SealFlags},
};

use super::{
    channel::{pair, receive, send},
    file_system,
};
use crate::{
    priority,
    privileges::{self, Role},
};

/// What the helper is called by: its first argument.
pub const NAME: &str = "tracer: files";

/// Longest silence that is waited out.
const SILENCE: Duration = Duration::from_secs(3);
/// The same, when so much time has been spent in vain.
const SHORT_SILENCE: Duration = Duration::from_millis(250);
const PATIENCE: Duration = Duration::from_secs(9);
/// Time that may be spent in vain in all, and with copies. What is opened after that is refused.
const BUDGET: Duration = Duration::from_secs(18);
/// Bytes that are copied between two signs of life.
const CHUNK: usize = 256 << 10;
/// Longest path (PATH_MAX of Linux).
const MAX_PATH: usize = 4096;
/// Notes of files that did not answer.
const MAX_NOTES: usize = 16;

/// What is known of a file without asking again.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Facts {
    /// Number of the device that it is on.
    pub device: u64,
    /// Inode on that device.
    pub inode: u64,
    /// Type and rights.
    pub mode: u32,
    /// User it belongs to.
    pub owner: u32,
    /// Number of its names.
    pub links: u64,
    /// Bytes.
    pub length: u64,
    /// When contents and inode last changed, nanoseconds.
    pub changed: (u64, u64),
    /// Kind of its file system (`f_type` of statfs(2)).
    pub file_system: u32,
}

/// An open file.
#[derive(Debug)]
pub struct Opened {
    /// Its contents; where it lies on a file system that may not answer, a copy of them.
    pub file: File,
    /// What is known of the file itself.
    pub facts: Facts,
    /// The file itself, by which it can be probed and not be read, where `file` is a copy.
    pub original: Option<OwnedFd>,
}

/// What to open: `path` from the directory `at`.
#[derive(Clone, Copy, Debug)]
pub(super) struct Wanted<'a> {
    /// Directory that the path begins at.
    pub(super) at: BorrowedFd<'a>,
    /// The path.
    pub(super) path: &'a Path,
    /// How it is walked.
    pub(super) flags: OFlags,
    /// Where it may lead.
    pub(super) resolve: ResolveFlags,
    /// What the reader of a report knows the file by.
    pub(super) name: &'a str,
    /// What is silent together: a device, or an executable.
    pub(super) group: &'a str,
}

/// Has files opened by a helper from now on, of which copies may take so many bytes.
pub fn start(memory: u64) {
    *state() = Some(Opener { memory, ..Opener::default() });
}

/// Lets time be spent in vain again, all of [`BUDGET`]: for who goes on to new processes for hours. What did not answer is still not
/// asked again.
pub fn renew_patience() {
    if let Some(opener) = &mut *state() {
        opener.spent = Duration::ZERO;
    }
}

/// What the reader of a report should know of files that could not be read: hostile text.
pub fn notes() -> Vec<String> {
    let state = state();
    let Some(opener) = &*state else { return Vec::new() };
    let more = opener.told.len().checked_sub(MAX_NOTES).filter(|more| *more > 0);
    let more = more.map(|more| format!("{more} more files could not be read for that reason"));
    opener.told.iter().take(MAX_NOTES).cloned().chain(more).collect()
}

/// What is known of the file.
pub(super) fn facts(wanted: Wanted<'_>) -> io::Result<Facts> {
    match &mut *state() {
        Some(opener) => opener.find(wanted).map(|(_, facts)| facts),
        None => find(&wanted).map(|(_, facts)| facts),
    }
}

/// Opens the file for reading, if it is a regular one that keeps what is in it.
pub(super) fn open(wanted: Wanted<'_>) -> io::Result<Opened> {
    let mut state = state();
    let (path, facts) = match &mut *state {
        Some(opener) => opener.find(wanted)?,
        None => find(&wanted)?,
    };
    let refused = |what| Err(io::Error::new(io::ErrorKind::InvalidInput, what));
    if FileType::from_raw_mode(facts.mode) != FileType::RegularFile {
        return refused("not a regular file");
    }
    if file_system::is_of_the_kernel(facts.file_system) {
        return refused("a file that the kernel makes up");
    }
    match &mut *state {
        Some(opener) if !file_system::is_local(facts.file_system) => {
            let file = opener.copy(wanted, &path, &facts)?;
            Ok(Opened { file, facts, original: Some(path) })
        }
        _ => {
            drop(state);
            Ok(Opened { file: File::open(reopen_path(&path))?, facts, original: None })
        }
    }
}

/// Path by which this process can open again what it has open.
pub fn reopen_path(file: &impl AsRawFd) -> PathBuf {
    format!("/proc/self/fd/{}", file.as_raw_fd()).into()
}

static OPENER: Mutex<Option<Opener>> = Mutex::new(None);

fn state() -> MutexGuard<'static, Option<Opener>> {
    OPENER.lock().unwrap_or_else(PoisonError::into_inner)
}

#[derive(Default)]
struct Opener {
    helper: Option<Helper>,
    /// Copies of files as they were.
    copies: Vec<(Facts, File)>,
    /// Bytes that more copies may take.
    memory: u64,
    /// Time that was spent in vain, or for copies.
    spent: Duration,
    /// What did not answer.
    silent: Vec<String>,
    told: Vec<String>,
}

impl Opener {
    fn find(&mut self, wanted: Wanted<'_>) -> io::Result<(OwnedFd, Facts)> {
        if self.silent.iter().any(|group| group == wanted.group) || self.spent >= BUDGET {
            return Err(self.tell(wanted, None, "did not answer before"));
        }
        let request = Request {
            what: FIND,
            arguments: [u64::from(wanted.flags.bits()), wanted.resolve.bits()],
            path: wanted.path.as_os_str().as_bytes(),
        };
        let (answer, descriptor) = self.ask(wanted, None, &request, wanted.at)?;
        Ok((descriptor.ok_or_else(no_descriptor)?, Facts::from_words(&answer)))
    }

    /// A copy of the file that `path` has open, of the time of `facts` or later.
    fn copy(&mut self, wanted: Wanted<'_>, path: &OwnedFd, facts: &Facts) -> io::Result<File> {
        if let Some((_, file)) = self.copies.iter().find(|(known, _)| known == facts) {
            return file.try_clone();
        }
        if facts.length > self.memory {
            return Err(self.tell(wanted, Some(facts), "cannot be copied within --max-memory"));
        }
        if self.spent >= BUDGET {
            return Err(self.tell(wanted, Some(facts), "cannot be copied in time"));
        }
        let begin = Instant::now();
        let request = Request { what: COPY, arguments: [facts.length, 0], path: b"" };
        let copied = self.ask(wanted, Some(facts), &request, path.as_fd());
        if copied.is_ok() {
            self.spent += begin.elapsed();
        }
        let file = File::from(copied?.1.ok_or_else(no_descriptor)?);
        self.memory -= facts.length;
        self.copies.push((*facts, file.try_clone()?));
        Ok(file)
    }

    /// The helper's answer. Where it stays away, the helper is killed, and not waited for.
    fn ask(
        &mut self,
        wanted: Wanted<'_>,
        facts: Option<&Facts>,
        request: &Request<'_>,
        descriptor: BorrowedFd<'_>,
    ) -> io::Result<(Words, Option<OwnedFd>)> {
        let mut helper = match self.helper.take() {
            Some(helper) => helper,
            None => Helper::start()?,
        };
        let begin = Instant::now();
        let silence = if self.spent < PATIENCE { SILENCE } else { SHORT_SILENCE };
        let end = begin + (BUDGET - self.spent.min(BUDGET)).max(SHORT_SILENCE);
        match helper.ask(request, descriptor, silence, end) {
            Ok((answer, descriptor)) => {
                self.helper = Some(helper);
                match i32::try_from(answer[0]) {
                    Ok(0) => Ok((answer, descriptor)),
                    number => Err(io::Error::from_raw_os_error(number.unwrap_or(libc::EIO))),
                }
            }
            Err(error) => {
                helper.leave();
                if error.kind() == io::ErrorKind::TimedOut {
                    self.spent += begin.elapsed();
                    self.silent.push(wanted.group.to_owned());
                    return Err(self.tell(wanted, facts, &format!("did not answer within {silence:?}")));
                }
                Err(error)
            }
        }
    }

    fn tell(&mut self, wanted: Wanted<'_>, facts: Option<&Facts>, what: &str) -> io::Error {
        let kind = facts.map_or(String::new(), |facts| format!(" ({})", file_system::name(facts.file_system)));
        let error = format!("its file system{kind} {what}");
        let note = format!("{} could not be read: {error}", wanted.name);
        let known = |told: &String| told.starts_with(&format!("{} could not be read", wanted.name));
        if !self.told.iter().any(known) {
            tracing::debug!("{}", note.escape_debug());
            self.told.push(note);
        }
        io::Error::new(io::ErrorKind::TimedOut, error)
    }
}

/// The kernel leaves a descriptor out of a message where there is no room for it.
fn no_descriptor() -> io::Error {
    io::Error::from_raw_os_error(libc::EMFILE)
}

/// The process that opens and copies.
struct Helper {
    process: Child,
    channel: OwnedFd,
}

impl Helper {
    fn start() -> io::Result<Self> {
        let (channel, its) = pair()?;
        let mut command = Command::new("/proc/self/exe");
        // It keeps nothing that others wait for, and gets no Ctrl-C.
        command.arg0(NAME).current_dir("/").process_group(0);
        command.stdin(its).stdout(Stdio::null()).stderr(Stdio::null());
        Ok(Self { process: command.spawn()?, channel })
    }

    fn ask(
        &mut self,
        request: &Request<'_>,
        descriptor: BorrowedFd<'_>,
        silence: Duration,
        end: Instant,
    ) -> io::Result<(Words, Option<OwnedFd>)> {
        let head = [request.what, request.arguments[0], request.arguments[1]].map(u64::to_ne_bytes);
        let parts = [head.as_flattened(), request.path].map(IoSlice::new);
        send(self.channel.as_fd(), &parts, Some(descriptor))?;
        loop {
            let left = silence.min(end.saturating_duration_since(Instant::now()));
            let left = left.try_into().map_err(io::Error::other)?;
            match poll(&mut [PollFd::new(&self.channel, PollFlags::IN)], Some(&left)) {
                Ok(0) => return Err(io::ErrorKind::TimedOut.into()),
                Ok(_) => {}
                Err(rustix::io::Errno::INTR) => continue,
                Err(error) => return Err(error.into()),
            }
            let mut answer = [[0; 8]; WORDS];
            let (length, descriptor) =
                receive(self.channel.as_fd(), &mut [IoSliceMut::new(answer.as_flattened_mut())])?;
            if length == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            let answer = answer.map(u64::from_ne_bytes);
            if answer[0] != ALIVE {
                return Ok((answer, descriptor));
            }
        }
    }

    /// Ends it, now or when what it waits for answers.
    fn leave(mut self) {
        // It may have ended.
        let _ = self.process.kill();
    }
}

/// What is asked of the helper: to find what a path leads to, or to copy a file.
const FIND: u64 = 1;
const COPY: u64 = 2;

struct Request<'a> {
    what: u64,
    arguments: [u64; 2],
    path: &'a [u8],
}

/// What the helper answers: an error number or 0, and facts.
type Words = [u64; WORDS];
const WORDS: usize = 10;
/// In the place of an error number: it is still at work.
const ALIVE: u64 = u64::MAX;

impl Facts {
    fn words(&self) -> Words {
        let Self { device, inode, mode, owner, links, length, changed, file_system } = *self;
        let (mode, owner, file_system) = (mode.into(), owner.into(), file_system.into());
        [0, device, inode, mode, owner, links, length, changed.0, changed.1, file_system]
    }

    fn from_words(&[_, device, inode, mode, owner, links, length, contents, status, file_system]: &Words) -> Self {
        let changed = (contents, status);
        let [mode, owner, file_system] = [mode, owner, file_system].map(|word| word as u32);
        Self { device, inode, mode, owner, links, length, changed, file_system }
    }
}

/// Opens and copies for the process at the other end of the standard input, until that is gone.
///
/// # Errors
/// When nothing can be read there.
pub fn serve() -> io::Result<()> {
    privileges::keep_those_of(Role::Opener);
    // Somebody waits for each file.
    priority::set_own(priority::URGENT);
    let stdin = io::stdin();
    let channel = stdin.as_fd();
    loop {
        let (mut head, mut path) = ([[0; 8]; 3], [0; MAX_PATH]);
        let mut parts = [head.as_flattened_mut(), &mut path].map(IoSliceMut::new);
        let (length, descriptor) = receive(channel, &mut parts)?;
        let Some(length) = length.checked_sub(size_of_val(&head)) else { return Ok(()) };
        let Some(descriptor) = descriptor else { return Err(io::ErrorKind::InvalidData.into()) };
        let [what, first, second] = head.map(u64::from_ne_bytes);
        let done = if what == FIND {
            find(&Wanted {
                at: descriptor.as_fd(),
                path: Path::new(std::ffi::OsStr::from_bytes(&path[..length])),
                flags: OFlags::from_bits_retain(first as u32),
                resolve: ResolveFlags::from_bits_retain(second),
                name: "",
                group: "",
            })
        } else {
            copy(&descriptor, first, channel).map(|copy| (copy, Facts::default()))
        };
        match done {
            Ok((file, facts)) => answer(channel, &facts.words(), Some(file.as_fd()))?,
            Err(error) => {
                let number = error.raw_os_error().unwrap_or(libc::EIO).unsigned_abs();
                answer(channel, &[number.into(), 0, 0, 0, 0, 0, 0, 0, 0, 0], None)?;
            }
        }
    }
}

fn answer(channel: BorrowedFd<'_>, words: &Words, descriptor: Option<BorrowedFd<'_>>) -> io::Result<()> {
    send(channel, &[IoSlice::new(words.map(u64::to_ne_bytes).as_flattened())], descriptor)
}

/// A time that the kernel tells, in nanoseconds.
pub(super) fn nanoseconds(seconds: i64, rest: u64) -> u64 {
    seconds.cast_unsigned().wrapping_mul(1_000_000_000).wrapping_add(rest)
}

/// Opens what is wanted as a path only: nothing of it is read, and opening has no effect.
fn find(wanted: &Wanted<'_>) -> io::Result<(OwnedFd, Facts)> {
    let flags = wanted.flags | OFlags::PATH | OFlags::CLOEXEC;
    let path = rustix::fs::openat2(wanted.at, wanted.path, flags, Mode::empty(), wanted.resolve)?;
    let stat = rustix::fs::fstat(&path)?;
    let facts = Facts {
        device: stat.st_dev,
        inode: stat.st_ino,
        mode: stat.st_mode,
        owner: stat.st_uid,
        links: stat.st_nlink,
        length: stat.st_size.unsigned_abs(),
        changed: (nanoseconds(stat.st_mtime, stat.st_mtime_nsec), nanoseconds(stat.st_ctime, stat.st_ctime_nsec)),
        // The magic numbers are 32 bits, the field is wider.
        file_system: rustix::fs::fstatfs(&path)?.f_type as u32,
    };
    Ok((path, facts))
}

/// Copies the first `length` bytes of a file, or what there is of them.
fn copy(path: &OwnedFd, length: u64, channel: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    let file = File::open(reopen_path(path))?;
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let copy = File::from(rustix::fs::memfd_create(c"copy", flags)?);
    let mut buffer = vec![0; CHUNK];
    let mut at = 0;
    while at < length {
        let wanted = buffer.len().min(usize::try_from(length - at).unwrap_or(usize::MAX));
        let read = file.read_at(&mut buffer[..wanted], at)?;
        if read == 0 {
            break;
        }
        copy.write_all_at(&buffer[..read], at)?;
        at += read as u64;
        answer(channel, &[ALIVE, 0, 0, 0, 0, 0, 0, 0, 0, 0], None)?;
    }
    rustix::fs::fcntl_add_seals(&copy, SealFlags::WRITE | SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL)?;
    Ok(copy.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn own_executable() -> (OwnedFd, Facts) {
        let own = super::super::root::ProcessDirectory::open(std::process::id()).unwrap();
        find(&own.link("exe", "", "")).unwrap()
    }

    #[test]
    fn facts_go_through_a_message() {
        let (_, facts) = own_executable();
        assert_eq!(Facts::from_words(&facts.words()), facts);
        assert!(facts.length > 0 && facts.links > 0 && facts.mode & 0o100 != 0 && facts.changed.0 > 0);
    }

    #[test]
    fn a_copy_cannot_change_and_signs_of_life_come_with_it() {
        let (path, facts) = own_executable();
        let (near, far) = pair().unwrap();
        let length = facts.length.min(5 * CHUNK as u64 / 2);
        let copy = File::from(copy(&path, length, far.as_fd()).unwrap());
        drop(far);
        assert_eq!(copy.metadata().unwrap().len(), length);
        let mut both = [vec![0; length as usize], vec![0; length as usize]];
        copy.read_exact_at(&mut both[0], 0).unwrap();
        File::open("/proc/self/exe").unwrap().read_exact_at(&mut both[1], 0).unwrap();
        assert!(both[0] == both[1]);
        assert!(copy.write_at(b"x", 0).is_err() && copy.set_len(0).is_err());
        let mut signs = 0;
        while receive(near.as_fd(), &mut [IoSliceMut::new(&mut [0; 8])]).unwrap().0 > 0 {
            signs += 1;
        }
        assert_eq!(signs, length.div_ceil(CHUNK as u64));
    }

    /// What is waited for in vain takes a bounded time in all, whatever there is to open.
    #[test]
    fn nothing_is_asked_when_the_time_is_over() {
        let mut opener = Opener { spent: BUDGET, ..Opener::default() };
        let own = super::super::root::ProcessDirectory::open(std::process::id()).unwrap();
        for _ in 0..2 {
            let error = opener.find(own.link("exe", "a file", "a group")).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        }
        assert!(matches!(&*opener.told, [told] if told.contains("did not answer before")), "{:?}", opener.told);
        opener = Opener { silent: vec!["a group".to_owned()], ..Opener::default() };
        assert!(opener.find(own.link("exe", "a file", "a group")).is_err());
    }
}
