//! Functions of allocators that the command line names (`--symbol`): for what has no name, or none that is known.

use std::{
    str::FromStr,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, Ordering},
    },
};

use object::{
    Endianness, Object as _, ObjectSegment as _, ReadRef as _,
    elf::{SHN_UNDEF, STT_FUNC, STT_GNU_IFUNC},
    read::elf::Sym as _,
};

use super::{
    allocators::{Known, LONGEST, asked_for},
    family::Shape,
    image::{executable, is_code, sections},
    symbols::{Candidate, Elf, Table, each_function},
};
use crate::{files::elf::Bounded, unwind::Frames};

/// The shapes that may be asked for, by the names of functions that have them.
const SHAPES: [(&str, Shape); 18] = [
    ("malloc", Shape::Malloc),
    ("new", Shape::New),
    ("calloc", Shape::Calloc),
    ("realloc", Shape::Realloc),
    ("reallocarray", Shape::Reallocarray),
    ("memalign", Shape::Memalign),
    ("aligned_alloc", Shape::Memalign),
    ("posix_memalign", Shape::PosixMemalign),
    ("free", Shape::Free),
    ("heap_malloc", Shape::Memalign),
    ("heap_new", Shape::NewInHeap),
    ("heap_calloc", Shape::CallocInHeap),
    ("heap_memalign", Shape::MemalignInHeap),
    ("heap_realloc", Shape::ReallocInHeap),
    ("heap_reallocarray", Shape::ReallocarrayInHeap),
    ("heap_free", Shape::FreeInHeap),
    ("rust_realloc", Shape::ReallocFrom),
    ("aligned_realloc", Shape::Realign),
];

/// Names that are shown where none is as it was asked for.
const NEAR: usize = 5;
/// Most code of a file that is searched for calls, bytes, and most calls of it that are kept.
const MAX_CODE: u64 = 256 << 20;
const MAX_CALLS: usize = 1 << 20;
/// First byte of a call to an address in the same file.
pub(super) const CALL: u8 = 0xe8;
/// The same of a jump.
pub(super) const JUMP: u8 = 0xe9;

/// A function that is to be probed.
#[derive(Clone, Debug)]
pub struct Asked {
    text: String,
    shape: (&'static str, Shape),
    file: String,
    place: Place,
    /// Whether a process has had such a file.
    was_met: Arc<AtomicBool>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Place {
    Name(String),
    /// In the file, bytes.
    Offset(u64),
    /// The same, of a function that has been chosen for what has this name.
    Chosen(String, u64),
}

impl FromStr for Asked {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let form = || {
            "write FUNCTION=FILE:NAME or FUNCTION=FILE:0xOFFSET, such as malloc=server:pool_get, free=libx.so:0x1234"
                .to_owned()
        };
        let (function, place) = text.split_once('=').ok_or_else(form)?;
        let shape = SHAPES.iter().find(|(name, _)| *name == function).copied().ok_or_else(|| {
            let names: Vec<&str> = SHAPES.iter().map(|(name, _)| *name).collect();
            format!("{function:?} is no function that is known; these are: {}", names.join(", "))
        })?;
        let (file, place) =
            place.rsplit_once(':').filter(|(file, place)| !file.is_empty() && !place.is_empty()).ok_or_else(form)?;
        let place = match place.strip_prefix("0x") {
            Some(digits) => Place::Offset(u64::from_str_radix(digits, 16).map_err(|_| form())?),
            None => Place::Name(place.to_owned()),
        };
        Ok(Self { text: text.to_owned(), shape, file: file.to_owned(), place, was_met: Arc::default() })
    }
}

impl Asked {
    /// The function at an offset in a file that was chosen for the name of one that takes its arguments as this one does.
    pub fn chosen(name: &str, shape: (&'static str, Shape), offset: u64) -> Self {
        let place = Place::Chosen(name.to_owned(), offset);
        Self { text: name.to_owned(), shape, file: String::new(), place, was_met: Arc::default() }
    }

    /// The name of what it was chosen for.
    pub(super) fn is_chosen_for(&self, name: &str) -> bool {
        matches!(&self.place, Place::Chosen(known, _) if known == name)
    }

    /// Whether it is about the file that a process sees at this path: at the same path, or, where no path was given, of that name.
    fn is_of(&self, path: &str) -> bool {
        if self.file.contains('/') { self.file == path } else { path.rsplit('/').next() == Some(&self.file) }
    }
}

static ASKED: OnceLock<Vec<Asked>> = OnceLock::new();

/// Has these functions be probed from now on, in every process. What the command line says is said once.
pub fn ask(asked: Vec<Asked>) {
    let _ = ASKED.set(asked);
}

fn all() -> &'static [Asked] {
    ASKED.get().map_or(&[], Vec::as_slice)
}

/// Those of the file that a process sees at this path.
pub fn of(path: &str) -> Vec<&'static Asked> {
    let of: Vec<&Asked> = all().iter().filter(|asked| asked.is_of(path)).collect();
    of.iter().for_each(|asked| asked.was_met.store(true, Ordering::Relaxed));
    of
}

/// Those of files that no process has had so far, in words.
pub fn without_file() -> impl Iterator<Item = String> {
    let never = all().iter().filter(|asked| !asked.was_met.load(Ordering::Relaxed));
    never.map(|asked| format!("--symbol {}: no file {} is mapped as code", asked.text, asked.file))
}

/// Why a function that was asked for is not probed.
#[derive(Debug, thiserror::Error)]
#[error("--symbol {text}: {why}")]
pub struct Refusal {
    text: String,
    why: Why,
}

#[derive(Debug, thiserror::Error)]
enum Why {
    #[error(
        "the file has no function of that name{0}; where it has no names, give the offset of the function in the file (0x...)"
    )]
    Name(String),
    #[error(
        "that is a function that chooses another one at run time (IFUNC): give the name or offset of the one that is chosen"
    )]
    Chooses,
    #[error(
        "at that offset the file has no code; it is that of the function's first instruction in the file, as `readelf -lW` has them, \
         not the address"
    )]
    NoCode,
    #[error(
        "as far as the file's symbols, its unwind information and the calls in it tell, no function begins at that offset: a probe there \
         could harm the process; give the offset of its first instruction in the file, not the address"
    )]
    NoBeginning,
    #[error(
        "that name stands for no code of the file's: it may be that of data, or of code that only another file has"
    )]
    NoCodeOfName,
    #[error(
        "that name stands for a place at which, as far as the file's symbols, its unwind information and the calls in it tell, no function \
         begins: a probe there could harm the process; give the name or offset of a function"
    )]
    NoBeginningOfName,
}

/// The functions of a file that were asked for.
pub(super) fn find<'data>(
    elf: &Elf<'data>,
    data: Bounded<'data>,
    tables: &[Table<'_>],
    asked: &[&Asked],
) -> Result<Vec<Candidate>, Refusal> {
    let find = |asked: &&Asked| {
        let found = match &asked.place {
            Place::Name(name) => by_name(elf, data, tables, name).map(|(address, size)| (name.clone(), address, size)),
            Place::Offset(offset) => {
                at_offset(elf, data, tables, *offset).map(|(address, size)| (format!("{offset:#x}"), address, size))
            }
            Place::Chosen(name, offset) => {
                at_offset(elf, data, tables, *offset).map(|(address, size)| (name.clone(), address, size))
            }
        };
        let (name, address, size) = found.map_err(|why| Refusal { text: asked.text.clone(), why })?;
        let known = Known { family: asked_for(), shape: asked.shape.1, function: asked.shape.0 };
        Ok(Candidate { name, known, address, size, is_exported: true, chooses: false })
    };
    asked.iter().map(find).collect()
}

/// Address and size of the function of a name.
fn by_name<'data>(elf: &Elf<'data>, data: Bounded<'data>, tables: &[Table<'_>], name: &str) -> Result<(u64, u64), Why> {
    let endian = Endianness::Little;
    let (mut found, mut chooses, mut near): (Option<(u64, bool)>, _, Vec<String>) = (None, false, Vec::new());
    each_function(
        tables,
        |_| true,
        |other, symbol| {
            if symbol.st_shndx(endian) == SHN_UNDEF || symbol.st_value(endian) == 0 {
                return;
            }
            if other == name.as_bytes() {
                chooses |= symbol.st_type() == STT_GNU_IFUNC;
                // A label may have the name, too.
                let (address, is_function) = (symbol.st_value(endian), symbol.st_type() == STT_FUNC);
                if found.is_none_or(|(_, known)| !known && is_function) {
                    found = Some((address, is_function));
                }
            } else if symbol.st_type() == STT_FUNC && near.len() < 1000 && is_near(other, name.as_bytes()) {
                near.push(String::from_utf8_lossy(other).into_owned());
            }
        },
    );
    if chooses {
        return Err(Why::Chooses);
    }
    let address = found.map(|(address, _)| address).ok_or_else(|| {
        near.sort_by_key(|near| near.len().abs_diff(name.len()));
        near.dedup();
        near.truncate(NEAR);
        Why::Name(if near.is_empty() { String::new() } else { format!(" (it has {})", near.join(", ")) })
    })?;
    executable(elf, data, address).ok_or(Why::NoCodeOfName)?;
    beginning(elf, data, tables, address).ok_or(Why::NoBeginningOfName)
}

/// Whether one name is in the other, but for case.
fn is_near(one: &[u8], other: &[u8]) -> bool {
    let (short, long) = if one.len() < other.len() { (one, other) } else { (other, one) };
    short.len() > 2
        && long.len() <= 2 * LONGEST
        && long.windows(short.len()).any(|part| part.eq_ignore_ascii_case(short))
}

/// Address and size of the function that begins at an offset in the file.
fn at_offset<'data>(
    elf: &Elf<'data>,
    data: Bounded<'data>,
    tables: &[Table<'_>],
    wanted: u64,
) -> Result<(u64, u64), Why> {
    let address = elf.segments().filter(is_code).find_map(|segment| {
        let (offset, size) = segment.file_range();
        let inside = wanted.checked_sub(offset).filter(|inside| *inside < size)?;
        segment.address().checked_add(inside)
    });
    let address = address.filter(|address| executable(elf, data, *address).is_some()).ok_or(Why::NoCode)?;
    beginning(elf, data, tables, address).ok_or(Why::NoBeginning)
}

/// Address and size of the function that begins at an address, if one does.
fn beginning<'data>(elf: &Elf<'data>, data: Bounded<'data>, tables: &[Table<'_>], address: u64) -> Option<(u64, u64)> {
    let mut size = None;
    each_function(
        tables,
        |_| true,
        |_, symbol| {
            if symbol.st_value(Endianness::Little) == address && symbol.st_type() == STT_FUNC {
                size = Some(symbol.st_size(Endianness::Little));
            }
        },
    );
    if let Some(size) = size {
        return Some((address, size));
    }
    if let Some(function) = Frames::of(&sections(elf, data)).function(address) {
        // One that is within has a beginning of its own, which is another.
        return (function.start == address).then(|| (address, function.end - address));
    }
    let is_called = calls_of(elf, data, &[address]).is_some_and(|calls| !calls.is_empty());
    is_called.then_some((address, 0))
}

/// Where code of the file may call functions at these addresses directly: the call, and the function. `None` where that is too much
/// code, or too many calls, or it cannot be read.
pub(super) fn calls_of<'data>(elf: &Elf<'data>, data: Bounded<'data>, functions: &[u64]) -> Option<Vec<(u64, u64)>> {
    branches_of(elf, data, functions, &[CALL])
}

/// The same of instructions that begin with one of these bytes: [`CALL`], [`JUMP`].
pub(super) fn branches_of<'data>(
    elf: &Elf<'data>,
    data: Bounded<'data>,
    functions: &[u64],
    kinds: &[u8],
) -> Option<Vec<(u64, u64)>> {
    let code = elf.segments().filter(is_code).map(|segment| {
        let (offset, size) = segment.file_range();
        (offset, size, segment.address())
    });
    let mut all = Vec::new();
    for (offset, size, address) in each_once(code.collect())? {
        let bytes = data.read_bytes_at(offset, size).ok()?;
        let known = branches(bytes, address, kinds).filter(|(_, to)| functions.contains(to));
        all.extend(known.take(MAX_CALLS - all.len()));
    }
    (all.len() < MAX_CALLS).then_some(all)
}

/// Parts of a file (offset, size, address) without what others of them have, too: no linker makes such, but whoever does would have
/// the same bytes read for each. `None` where they are too many bytes.
fn each_once(mut parts: Vec<(u64, u64, u64)>) -> Option<Vec<(u64, u64, u64)>> {
    parts.sort_unstable();
    let (mut end, mut sum) = (0, 0u64);
    for (offset, size, address) in &mut parts {
        let last = offset.checked_add(*size)?;
        let known = end.clamp(*offset, last) - *offset;
        (*offset, *size, *address) = (*offset + known, *size - known, address.wrapping_add(known));
        end = end.max(last);
        sum = sum.checked_add(*size).filter(|sum| *sum <= MAX_CODE)?;
    }
    parts.retain(|(_, size, _)| *size > 0);
    Some(parts)
}

/// What may be calls, or jumps, in code that begins at an address: where each is, and where it leads to.
fn branches(code: &[u8], address: u64, kinds: &[u8]) -> impl Iterator<Item = (u64, u64)> {
    code.windows(5).zip(0u64..).filter(|(bytes, _)| kinds.contains(&bytes[0])).filter_map(move |(bytes, at)| {
        let relative = i32::from_le_bytes(*bytes[1..].first_chunk()?);
        let at = address.wrapping_add(at);
        Some((at, at.wrapping_add(5).wrapping_add_signed(relative.into())))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_asked_for() {
        for (text, shape, file, place) in [
            ("malloc=server:pool_get", Shape::Malloc, "server", Place::Name("pool_get".to_owned())),
            ("free=/opt/a=b:c:0x1f", Shape::Free, "/opt/a=b:c", Place::Offset(0x1f)),
            ("heap_realloc=libx.so:f", Shape::ReallocInHeap, "libx.so", Place::Name("f".to_owned())),
        ] {
            let asked: Asked = text.parse().unwrap();
            assert_eq!((asked.shape.1, &*asked.file, asked.place), (shape, file, place), "{text}");
        }
        for (text, hint) in [
            ("malloc", "FUNCTION=FILE:NAME"),
            ("malloc=server", "FUNCTION=FILE:NAME"),
            ("malloc=:x", "FUNCTION=FILE:NAME"),
            ("malloc=server:", "FUNCTION=FILE:NAME"),
            ("malloc=server:0xg", "FUNCTION=FILE:NAME"),
            ("take=server:x", "posix_memalign"),
        ] {
            let error = text.parse::<Asked>().unwrap_err();
            assert!(error.contains(hint), "{text}: {error}");
        }
    }

    #[test]
    fn of_which_file() {
        let asked = |file: &str| format!("malloc={file}:x").parse::<Asked>().unwrap();
        assert!(asked("server").is_of("/usr/bin/server"));
        assert!(!asked("server").is_of("/usr/bin/server2"));
        assert!(!asked("server").is_of("/server/x"));
        assert!(asked("/usr/bin/server").is_of("/usr/bin/server"));
        assert!(!asked("/bin/server").is_of("/usr/bin/server"));
    }

    #[test]
    fn names_that_are_near() {
        assert!(is_near(b"pool_malloc", b"malloc") && is_near(b"Malloc", b"malloc") && is_near(b"pool", b"pool_get"));
        assert!(!is_near(b"fr", b"free") && !is_near(b"take", b"malloc"));
    }

    #[test]
    fn no_byte_of_a_file_is_searched_twice() {
        let parts = vec![(100, 50, 0x1000), (0, 60, 0x500), (120, 10, 0x9000), (40, 80, 0x2000), (150, 5, 0x3000)];
        let once = [(0, 60, 0x500), (60, 60, 0x2014), (120, 30, 0x1014), (150, 5, 0x3000)];
        assert_eq!(each_once(parts).as_deref(), Some(&once[..]));
        assert_eq!(each_once(vec![(0, MAX_CODE, 0); 60_000]).map(|once| once.len()), Some(1));
        assert_eq!(each_once(vec![(0, MAX_CODE, 0), (1, MAX_CODE, 0)]), None);
        assert_eq!(each_once(vec![(u64::MAX, 2, 0)]), None);
    }

    #[test]
    fn calls_are_found_wherever_they_are() {
        let code = [0x90, 0xe8, 0xfa, 0xff, 0xff, 0xff, 0xe8, 1, 0, 0, 0];
        assert_eq!(branches(&code, 0x100, &[CALL]).collect::<Vec<_>>(), [(0x101, 0x100), (0x106, 0x10c)]);
    }
}
