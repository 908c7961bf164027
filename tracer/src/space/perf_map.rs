//! `/tmp/perf-PID.map`: names of code that a process generated itself (JIT), as its runtime writes them.
//!
//! The format is that of tools/perf/Documentation/jit-interface.txt in the kernel: `START SIZE name` in hexadecimal, one
//! function a line, later lines replace earlier ones. Anybody can write to /tmp, so the file must be a regular one that
//! belongs to the process's user or to root, under no second name, and what is taken of it is bounded.

use std::{
    fs::File,
    io::{self, BufRead, BufReader, Read},
    os::unix::fs::FileExt,
    path::PathBuf,
    sync::{Arc, OnceLock},
};

use crate::files::root::ProcessDirectory;

/// Most that is read of a file, bytes.
const MAX_SIZE: u64 = 256 << 20;
/// Most functions that are taken.
const MAX_FUNCTIONS: usize = 1 << 20;
/// Longest name that is taken, bytes; what follows is cut off.
const MAX_NAME: usize = 1024;
/// Longest line that is taken, bytes.
const MAX_LINE: u64 = 64 << 10;
/// How many functions before an address are looked at for one that reaches over it.
const MAX_OVERLAP: usize = 16;

/// The perf map of one process. It is opened as soon as it is there, and held open from then on.
#[derive(Debug)]
pub struct PerfMap {
    process: Arc<ProcessDirectory>,
    file: OnceLock<File>,
}

impl PerfMap {
    /// That of `process`. Nothing is opened yet.
    pub fn new(process: Arc<ProcessDirectory>) -> Self {
        Self { process, file: OnceLock::new() }
    }

    /// Opens the file if it is there and has not been opened. Must happen while the process lives.
    pub fn open(&self) -> Option<&File> {
        if self.file.get().is_none() {
            match open(&self.process) {
                // Another thread may have been faster: then its file stays.
                Ok(file) => drop(self.file.set(file)),
                Err(error) => tracing::trace!("no perf map: {error}"),
            }
        }
        self.file.get()
    }

    /// The functions that the file names at present. None when there is no file.
    pub fn functions(&self) -> Functions {
        let Some(file) = self.open() else { return Functions::default() };
        // Threads share the position of the file.
        let reader = Positioned { file, at: 0 };
        parse(BufReader::new(reader.take(MAX_SIZE))).unwrap_or_else(|error| {
            tracing::debug!("cannot read a perf map: {error}");
            Functions::default()
        })
    }
}

fn open(process: &ProcessDirectory) -> io::Result<File> {
    let mut status = String::new();
    process.file("status")?.take(1 << 16).read_to_string(&mut status)?;
    let refused = |what| io::Error::new(io::ErrorKind::InvalidData, what);
    let (pid, uid) = own_pid_and_user(&status).ok_or_else(|| refused("unreadable status"))?;
    let file = process.root()?.open_no_follow(&PathBuf::from(format!("tmp/perf-{pid}.map")))?;
    // A second name can be made by anybody who may write to the directory.
    if !(file.facts.owner == uid || file.facts.owner == 0) || file.facts.links > 1 {
        return Err(refused("belongs to somebody else"));
    }
    Ok(file.file)
}

/// The id that a process knows itself by (the last of `NStgid`) and its effective user, from `/proc/PID/status`.
fn own_pid_and_user(status: &str) -> Option<(u32, u32)> {
    let field = |name: &str| status.lines().find_map(|line| line.strip_prefix(name));
    let pid = field("NStgid:")?.split_whitespace().next_back()?.parse().ok()?;
    let uid = field("Uid:")?.split_whitespace().nth(1)?.parse().ok()?;
    Some((pid, uid))
}

struct Positioned<'file> {
    file: &'file File,
    at: u64,
}

impl Read for Positioned<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.file.read_at(buffer, self.at)?;
        self.at += read as u64;
        Ok(read)
    }
}

#[derive(Debug, PartialEq, Eq)]
struct Function {
    start: u64,
    end: u64,
    name: Box<str>,
}

/// What a perf map says.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Functions(Vec<Function>);

impl Functions {
    /// Name of the function that has code at `addr`: hostile text.
    pub fn at(&self, addr: u64) -> Option<&str> {
        let behind = self.0.partition_point(|function| function.start <= addr);
        let before = self.0[..behind].iter().rev().take(MAX_OVERLAP);
        before.into_iter().find(|function| addr < function.end).map(|function| &*function.name)
    }
}

/// The functions that `text` names, at most a million. Lines that make no sense, or are cut off, are skipped.
///
/// # Errors
/// Those of reading.
pub fn parse(mut text: impl BufRead) -> io::Result<Functions> {
    let mut functions = Vec::new();
    let mut line = Vec::new();
    while functions.len() < MAX_FUNCTIONS {
        line.clear();
        if text.by_ref().take(MAX_LINE).read_until(b'\n', &mut line)? == 0 {
            break;
        }
        functions.extend(line.strip_suffix(b"\n").and_then(parse_line));
    }
    // Stable: of functions at one address the one that was written last stays last.
    functions.sort_by_key(|function| function.start);
    Ok(Functions(functions))
}

fn parse_line(line: &[u8]) -> Option<Function> {
    let mut fields = line.splitn(3, |byte| *byte == b' ');
    let mut number = || {
        let digits = std::str::from_utf8(fields.next()?).ok()?;
        u64::from_str_radix(digits.strip_prefix("0x").unwrap_or(digits), 16).ok()
    };
    let (start, size) = (number()?, number()?);
    let name = fields.next()?.trim_ascii();
    let name = String::from_utf8_lossy(&name[..name.len().min(MAX_NAME)]);
    (!name.is_empty()).then(|| Function { start, end: start.saturating_add(size), name: name.into() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_and_addresses() {
        let text = "1000 100 first\n\
                    garbage\n\
                    1000 80 LazyCompile:~second /a b.js:1:2\n\
                    0x3000 0x10 third\r\n\
                    2000 1 \n\
                    -1 1 negative\n\
                    2000 10 outer\n\
                    2004 4 inner\n\
                    fffffffffffffff0 ffff last\n\
                    4000 10 cut off";
        let functions = parse(text.as_bytes()).unwrap();
        for (addr, expected) in [
            (0xfff, None),
            (0x1000, Some("LazyCompile:~second /a b.js:1:2")),
            (0x1090, Some("first")),
            (0x1100, None),
            (0x2003, Some("outer")),
            (0x2005, Some("inner")),
            (0x200a, Some("outer")),
            (0x300f, Some("third")),
            (0x4001, None),
            (u64::MAX - 1, Some("last")),
        ] {
            assert_eq!(functions.at(addr), expected, "{addr:#x}");
        }
    }

    #[test]
    fn hostile_names_are_bounded() {
        let mut text = b"1000 10 ".to_vec();
        text.extend(std::iter::repeat_n(0xff, 10_000));
        text.extend(b"\n2000 10 ");
        text.extend(std::iter::repeat_n(b'x', 100_000));
        text.extend(b"\n3000 10 after\n");
        let functions = parse(&*text).unwrap();
        assert_eq!(functions.at(0x1000).unwrap().chars().count(), MAX_NAME);
        assert_eq!(functions.at(0x2000), None);
        assert_eq!(functions.at(0x3000), Some("after"));
    }

    #[test]
    fn status_of_a_process_in_a_container() {
        let status = "Name:\tx\nUid:\t1000\t1001\t1000\t1000\nNStgid:\t4711\t33\t1\n";
        assert_eq!(own_pid_and_user(status), Some((1, 1001)));
        assert_eq!(own_pid_and_user("Name:\tNStgid: 3\n"), None);
    }

    #[test]
    fn own_map_is_read_and_read_again() {
        let pid = std::process::id();
        let path = format!("/tmp/perf-{pid}.map");
        let map = PerfMap::new(Arc::new(ProcessDirectory::open(pid).unwrap()));
        assert_eq!(map.functions(), Functions::default());
        std::os::unix::fs::symlink("/etc/hostname", &path).unwrap();
        assert!(map.open().is_none(), "a link is not followed");
        std::fs::remove_file(&path).unwrap();
        std::fs::write(&path, "1000 10 first\n").unwrap();
        let other_name = format!("{path}.link");
        std::fs::hard_link(&path, &other_name).unwrap();
        assert!(map.open().is_none(), "a file of several names is not trusted");
        std::fs::remove_file(&other_name).unwrap();
        assert_eq!(map.functions().at(0x1000), Some("first"));
        std::fs::write(&path, "1000 10 first\n2000 10 second\n").unwrap();
        std::fs::remove_file(&path).unwrap();
        assert_eq!(map.functions().at(0x2000), Some("second"));
    }
}
