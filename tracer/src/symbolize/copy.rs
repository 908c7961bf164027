//! Copies of files of which a library maps what it reads.
//!
//! A mapped file can shrink: then the next look at it is a signal (SIGBUS), which ends the program. It can change between
//! a check and the use of what was checked. And a page of it can come from a server that does not answer. A copy in
//! memory does neither. It is taken with plain reads, of those parts only that say what addresses are called: all of
//! them lie in it where they lie in the file, and nothing is in between.

use std::{fs::File, io, ops::Range, os::unix::fs::FileExt as _};

use rustix::fs::MemfdFlags;

use super::work::Work;
use crate::files::elf::{Bytes, Elf};

/// Bytes that are read at once.
const CHUNK: usize = 1 << 20;

/// What was copied of a file.
pub(super) struct Copy {
    /// The copy.
    pub(super) file: File,
    /// Whether its debug information is in it, if it has any.
    pub(super) with_debug_information: bool,
}

/// Copies what names the addresses of an ELF file. Debug information is left out where it is more than `work` allows; without
/// it too, nothing is copied. `name` is for the reader of the report.
///
/// # Errors
/// It cannot be read, has shrunk meanwhile, or is no ELF file.
pub(super) fn copy(file: &File, name: &str, work: &mut Work) -> io::Result<Copy> {
    let invalid = |what| io::Error::new(io::ErrorKind::InvalidData, what);
    let bytes = Bytes::new(file);
    let elf = Elf::parse(&bytes).map_err(|_| invalid("no ELF file"))?;
    let length = file.metadata()?.len();
    for with_debug_information in [true, false] {
        let parts = merged(elf.naming_parts(with_debug_information), length);
        let size = parts.iter().map(|part| part.end - part.start).sum();
        if !work.keep(size) {
            work.leave_out(name, size, with_debug_information);
            continue;
        }
        let copy = File::from(rustix::fs::memfd_create(c"symbols", MemfdFlags::CLOEXEC)?);
        copy.set_len(length)?;
        for part in parts {
            copy_part(file, &copy, part)?;
        }
        return Ok(Copy { file: copy, with_debug_information });
    }
    Err(invalid("it is too large"))
}

/// The same parts inside of the file, sorted, each byte in one of them only.
fn merged(mut parts: Vec<Range<u64>>, length: u64) -> Vec<Range<u64>> {
    parts.sort_unstable_by_key(|part| part.start);
    let mut merged: Vec<Range<u64>> = Vec::new();
    for part in parts {
        let part = part.start..part.end.min(length);
        match merged.last_mut() {
            Some(last) if part.start <= last.end => last.end = last.end.max(part.end),
            _ if part.start < part.end => merged.push(part),
            _ => {}
        }
    }
    merged
}

fn copy_part(from: &File, to: &File, part: Range<u64>) -> io::Result<()> {
    let mut buffer = vec![0; CHUNK.min((part.end - part.start) as usize)];
    let mut at = part.start;
    while at < part.end {
        let wanted = buffer.len().min((part.end - at) as usize);
        let read = from.read_at(&mut buffer[..wanted], at)?;
        if read == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        to.write_all_at(&buffer[..read], at)?;
        at += read as u64;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_lie_in_the_file_and_not_over_each_other() {
        let parts = vec![50..70, 0..64, 64..80, 90..u64::MAX, 95..96, 200..300, 85..85];
        assert_eq!(merged(parts, 100), [0..80, 90..100]);
        assert_eq!(merged(vec![7..7, 1..2], 0), []);
    }

    #[test]
    fn code_is_not_copied_and_names_are() {
        let program = File::open("/proc/self/exe").unwrap();
        let mut work = Work::new(1 << 30);
        let Copy { file, with_debug_information } = copy(&program, "", &mut work).unwrap();
        assert!(with_debug_information);
        let (bytes, copied) = (Bytes::new(&program), Bytes::new(&file));
        let (elf, copied) = (Elf::parse(&bytes).unwrap(), Elf::parse(&copied).unwrap());
        assert_eq!(elf.segments(), copied.segments());
        for name in [".symtab", ".strtab", ".dynsym", ".debug_info", ".debug_line"] {
            assert_eq!(elf.section(name, u64::MAX), copied.section(name, u64::MAX), "{name}");
        }
        assert!(copied.section(".text", 4096 * 4).unwrap().iter().filter(|byte| **byte == 0).count() > 4096 * 2);
    }

    #[test]
    fn what_is_too_large_is_left_out_and_told() {
        let program = File::open("/proc/self/exe").unwrap();
        let bytes = Bytes::new(&program);
        let size = |debug| {
            let parts = merged(Elf::parse(&bytes).unwrap().naming_parts(debug), u64::MAX);
            parts.iter().map(|part| part.end - part.start).sum::<u64>()
        };
        let mut work = Work::new(size(true) - 1);
        assert!(!copy(&program, "/bin/x", &mut work).unwrap().with_debug_information);
        assert!(matches!(work.left_out(), [told] if told.contains("/bin/x") && told.contains("--max-memory")));
        assert!(copy(&program, "/bin/x", &mut Work::new(size(false) - 1)).is_err());
    }
}
