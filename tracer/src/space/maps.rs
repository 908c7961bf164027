//! `/proc/PID/maps` as text: one mapping per line. Parsing only, no I/O of its own.
//!
//! The format is that of `show_map_vma` in the kernel's fs/proc/task_mmu.c:
//! `start-end perms offset major:minor inode   path`. The path is chosen by the target, so it is hostile text.

use std::io::{self, BufRead, Read};

/// Most mappings that are taken; the kernel's own default limit is 65,530.
pub const MAX_MAPPINGS: usize = 1 << 20;

/// Longest line that is taken, bytes: a path of PATH_MAX bytes, each of them escaped, and the numbers before it.
const MAX_LINE: u64 = 4 * 4096 + 256;

/// What the kernel appends to the path of a file that has no name any more.
const DELETED: &str = " (deleted)";

/// A path without that.
pub fn unmarked(path: &str) -> &str {
    path.strip_suffix(DELETED).unwrap_or(path)
}

/// One line of `/proc/PID/maps`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mapping {
    /// First address.
    pub start: u64,
    /// Address behind the last one.
    pub end: u64,
    /// Whether code in it can run.
    pub executable: bool,
    /// Where in the file the mapping begins, bytes.
    pub offset: u64,
    /// Major and minor number of the device that the file is on; zeros for no file.
    pub device: (u32, u32),
    /// Inode of the file, 0 for no file.
    pub inode: u64,
    /// Path as the kernel prints it, without the mark of deleted files; empty for anonymous memory. Newlines are
    /// `\012`, what is not UTF-8 is replaced.
    pub path: String,
    /// Whether the file has no name any more: deleted, replaced, or a memfd.
    pub deleted: bool,
}

/// All mappings in `text`. Lines that make no sense, or are cut off before their newline, are skipped.
pub fn parse(text: &[u8]) -> Vec<Mapping> {
    // Reading from memory cannot fail.
    read(text, |_| true).unwrap_or_default()
}

/// The mappings in `text` that `keep` wants, at most [`MAX_MAPPINGS`]. The text is taken line by line, because a hostile
/// process can make it hundreds of megabytes long.
///
/// # Errors
/// Those of reading.
pub fn read(mut text: impl BufRead, keep: impl Fn(&Mapping) -> bool) -> io::Result<Vec<Mapping>> {
    let mut mappings = Vec::new();
    let mut line = Vec::new();
    loop {
        line.clear();
        if text.by_ref().take(MAX_LINE).read_until(b'\n', &mut line)? == 0 {
            return Ok(mappings);
        }
        let Some(mapping) = line.strip_suffix(b"\n").and_then(parse_line) else { continue };
        if keep(&mapping) {
            mappings.push(mapping);
            if mappings.len() == MAX_MAPPINGS {
                return Ok(mappings);
            }
        }
    }
}

/// One line, without its newline.
pub(super) fn parse_line(line: &[u8]) -> Option<Mapping> {
    let mut fields = line.splitn(6, |byte| *byte == b' ');
    let mut field = || std::str::from_utf8(fields.next()?).ok();
    let (start, end) = field()?.split_once('-')?;
    let permissions = field()?.as_bytes();
    let offset = field()?;
    let (major, minor) = field()?.split_once(':')?;
    let inode = field()?.parse().ok()?;
    // The inode is followed by one space, and by padding when there is a path.
    let path = fields.next().unwrap_or_default();
    let padding = path.iter().take_while(|byte| **byte == b' ').count();
    let path = String::from_utf8_lossy(&path[padding..]);
    let (path, deleted) = path.strip_suffix(DELETED).map_or((&*path, false), |path| (path, true));
    let mapping = Mapping {
        start: hexadecimal(start)?,
        end: hexadecimal(end)?,
        executable: permissions.get(2) == Some(&b'x'),
        offset: hexadecimal(offset)?,
        device: (hexadecimal(major)?.try_into().ok()?, hexadecimal(minor)?.try_into().ok()?),
        inode,
        path: path.to_owned(),
        deleted,
    };
    (mapping.start < mapping.end && permissions.len() == 4).then_some(mapping)
}

/// Digits only: `from_str_radix` alone takes a sign too.
fn hexadecimal(text: &str) -> Option<u64> {
    if text.starts_with('+') {
        return None;
    }
    u64::from_str_radix(text, 16).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mapping(path: &str) -> Mapping {
        Mapping {
            start: 0x1000,
            end: 0x3000,
            executable: true,
            offset: 0x400,
            device: (0xfd, 1),
            inode: 77,
            path: path.to_owned(),
            deleted: false,
        }
    }

    #[test]
    fn lines_as_the_kernel_writes_them() {
        let file = "1000-3000 r-xp 00000400 fd:01 77                   ";
        for (line, expected) in [
            (format!("{file}/usr/bin/x\n"), Some(mapping("/usr/bin/x"))),
            (format!("{file}/with two  spaces \n"), Some(mapping("/with two  spaces "))),
            (format!("{file}/new\\012line\n"), Some(mapping("/new\\012line"))),
            (format!("{file}/old (deleted)\n"), Some(Mapping { deleted: true, ..mapping("/old") })),
            ("1000-3000 rw-p 00000400 fd:01 77 \n".to_owned(), Some(Mapping { executable: false, ..mapping("") })),
            ("1000-3000 r-xp 00000400 fd:01 77\n".to_owned(), Some(mapping(""))),
            (format!("{file}/cut off"), None),
            ("3000-1000 r-xp 00000400 fd:01 77 /x\n".to_owned(), None),
            ("1000-3000 r-xp 00000400 fd:01\n".to_owned(), None),
            ("1000-3000 r-xp 00000400 fd01 77 /x\n".to_owned(), None),
            ("1000-3000 x 00000400 fd:01 77 /x\n".to_owned(), None),
            ("+1000-3000 r-xp 00000400 fd:01 77 /x\n".to_owned(), None),
            ("1000-10000000000000000 r-xp 00000400 fd:01 77 /x\n".to_owned(), None),
            ("\n".to_owned(), None),
            ("\0\0\0\n".to_owned(), None),
        ] {
            assert_eq!(parse(line.as_bytes()), Vec::from_iter(expected), "{line:?}");
        }
    }

    #[test]
    fn what_follows_garbage_is_still_found() {
        let mut text = b"garbage\n1000-3000 r-xp 00000400 fd:01 77 /\xff\xfe\n".to_vec();
        text.extend(std::iter::repeat_n(b'x', 100_000));
        text.extend(b"\n1000-3000 r-xp 00000400 fd:01 77 [vdso]\n");
        let paths: Vec<String> = parse(&text).into_iter().map(|mapping| mapping.path).collect();
        assert_eq!(paths, ["/\u{fffd}\u{fffd}", "[vdso]"]);
    }

    #[test]
    fn this_process_has_code() {
        let mappings = parse(&std::fs::read("/proc/self/maps").unwrap());
        assert!(mappings.iter().any(|mapping| mapping.executable && mapping.path.ends_with(".so.6")));
        assert!(mappings.iter().any(|mapping| mapping.path == "[stack]"));
    }

    #[test]
    fn random_bytes_do_no_harm() {
        let mut state = 0x9e37_79b9_7f4a_7c15_u64;
        let alphabet = b"0123456789abcdef-:rwxp /\\\n\n\xff [](d";
        for _ in 0..20_000 {
            let text: Vec<u8> = (0..120)
                .map(|_| {
                    state ^= state << 13;
                    state ^= state >> 7;
                    state ^= state << 17;
                    alphabet[(state >> 33) as usize % alphabet.len()]
                })
                .collect();
            for mapping in parse(&text) {
                assert!(mapping.start < mapping.end);
            }
        }
    }
}
