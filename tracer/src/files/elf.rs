//! The outline of an ELF file: segments, sections, build id, link to a debug file.
//!
//! The file belongs to the target. The `object` crate checks every offset; what is added here are bounds on what is read
//! into memory, and reads that do not move the file's position, because the file is shared between threads.

pub mod code;
pub mod needed;
mod symbols;

use std::{borrow::Cow, cell::Cell, fs::File, ops::Range, os::unix::fs::FileExt, rc::Rc};

use object::{
    CompressedData, CompressionFormat, Endianness, ReadCache, ReadRef,
    elf::{
        CompressionHeader64, ELFCOMPRESS_ZLIB, EM_X86_64, ET_DYN, ET_EXEC, FileHeader64, PF_X, PT_INTERP, PT_LOAD,
        PT_NOTE, SHF_COMPRESSED, SHF_EXECINSTR, SHT_DYNSYM, SHT_NOBITS, SHT_NOTE, SHT_STRTAB, SHT_SYMTAB,
    },
    read::{
        ReadCacheOps,
        elf::{CompressionHeader, FileHeader, ProgramHeader, SectionHeader, SectionTable},
    },
};

/// Most that is read in one piece, bytes: ten million symbols, and well above the largest tables of headers.
const MAX_READ: u64 = 256 << 20;
/// How often the bytes of a file may be read, on average: tables that lie over each other would be kept each for itself.
/// The names of symbols are read once, or, where they are more than [`MAX_READ`], in pieces of 256 bytes: ten times their table at most.
const MAX_REPETITION: u64 = 16;
/// What may be read of the smallest file, bytes, and of the largest one.
const MAX_READ_IN_ALL: (u64, u64) = (1 << 20, 2 << 30);
/// Most of a segment of notes that is looked at, bytes. A build id is among the first of them.
const MAX_NOTES: u64 = 1 << 20;
/// Longest build id that makes sense, bytes. Usual are 16 and 20.
const MAX_BUILD_ID: usize = 64;
/// Longest that the Go toolchain writes and that makes sense, bytes. Usual are 83.
const MAX_GO_BUILD_ID: usize = 256;
/// deflate cannot do better than this factor (zlib's technical notes); zstd can, but not in practice.
const MAX_COMPRESSION: u64 = 1032;

/// The bytes of a file, read when they are asked for and kept as long as this lives.
pub struct Bytes<'file> {
    cache: ReadCache<Position<'file>>,
    left: Rc<Cell<u64>>,
}

impl<'file> Bytes<'file> {
    /// Those of `file`.
    pub fn new(file: &'file File) -> Self {
        let length = file.metadata().map_or(0, |metadata| metadata.len());
        let (least, most) = MAX_READ_IN_ALL;
        let left = Rc::new(Cell::new(length.saturating_mul(MAX_REPETITION).clamp(least, most)));
        Self { cache: ReadCache::new(Position { file, at: 0, left: Rc::clone(&left) }), left }
    }

    /// Them, for parsers of the `object` crate.
    pub fn bounded(&'file self) -> Bounded<'file> {
        Bounded(self)
    }
}

/// An open file with a position of its own.
struct Position<'file> {
    file: &'file File,
    at: u64,
    /// How much more may be read, bytes.
    left: Rc<Cell<u64>>,
}

impl Position<'_> {
    fn count(&mut self, read: usize) -> Result<(), ()> {
        self.at = self.at.checked_add(read as u64).ok_or(())?;
        self.left.set(self.left.get().checked_sub(read as u64).ok_or(())?);
        Ok(())
    }
}

impl ReadCacheOps for Position<'_> {
    fn len(&mut self) -> Result<u64, ()> {
        self.file.metadata().map(|metadata| metadata.len()).map_err(|_| ())
    }

    fn seek(&mut self, at: u64) -> Result<u64, ()> {
        self.at = at;
        Ok(at)
    }

    fn read(&mut self, buffer: &mut [u8]) -> Result<usize, ()> {
        let read = self.file.read_at(buffer, self.at).map_err(|_| ())?;
        self.count(read)?;
        Ok(read)
    }

    fn read_exact(&mut self, buffer: &mut [u8]) -> Result<(), ()> {
        self.file.read_exact_at(buffer, self.at).map_err(|_| ())?;
        self.count(buffer.len())
    }
}

/// Refuses reads that are too long, before there is memory for them.
#[derive(Clone, Copy)]
pub struct Bounded<'data>(&'data Bytes<'data>);

impl<'data> ReadRef<'data> for Bounded<'data> {
    fn len(self) -> Result<u64, ()> {
        (&self.0.cache).len()
    }

    fn read_bytes_at(self, offset: u64, size: u64) -> Result<&'data [u8], ()> {
        if size > MAX_READ.min(self.0.left.get()) { Err(()) } else { (&self.0.cache).read_bytes_at(offset, size) }
    }

    fn read_bytes_at_until(self, range: Range<u64>, delimiter: u8) -> Result<&'data [u8], ()> {
        (&self.0.cache).read_bytes_at_until(range, delimiter)
    }
}

type Header = FileHeader64<Endianness>;

/// A part of the file that is mapped when the file is loaded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// Where it begins in the file, bytes.
    pub offset: u64,
    /// How much of the file it takes, bytes.
    pub size: u64,
    /// The address that its first byte was linked for.
    pub address: u64,
    /// Whether it holds code.
    pub executable: bool,
}

/// Which parts of a file with these segments are loaded as code, bytes.
pub fn code(segments: &[Segment]) -> Vec<Range<u64>> {
    let code = segments.iter().filter(|segment| segment.executable);
    code.map(|segment| segment.offset..segment.offset.saturating_add(segment.size)).collect()
}

/// A 64-bit ELF file.
pub struct Elf<'data> {
    data: Bounded<'data>,
    endian: Endianness,
    header: &'data Header,
    sections: SectionTable<'data, Header, Bounded<'data>>,
    sound: bool,
}

impl<'data> Elf<'data> {
    /// Reads the headers. Unreadable section headers are taken for none: programs run without them.
    ///
    /// # Errors
    /// Not a 64-bit ELF file.
    pub fn parse(bytes: &'data Bytes<'data>) -> object::read::Result<Self> {
        let data = bytes.bounded();
        let header = Header::parse(data)?;
        let endian = header.endian()?;
        let sections = header.sections(endian, data);
        let sound = sections.is_ok() && endian == Endianness::Little;
        Ok(Self { data, endian, header, sections: sections.unwrap_or_default(), sound })
    }

    /// Whether other readers see the same sections in it: ones that take the byte order of x86-64 and the size of a header
    /// for granted.
    pub fn is_sound(&self) -> bool {
        self.sound
    }

    /// What is loaded.
    pub fn segments(&self) -> Vec<Segment> {
        let headers = self.header.program_headers(self.endian, self.data).unwrap_or_default();
        headers
            .iter()
            .filter(|segment| segment.p_type(self.endian) == PT_LOAD)
            .map(|segment| {
                let (offset, size) = segment.file_range(self.endian);
                let executable = segment.p_flags(self.endian).0 & PF_X.0 != 0;
                Segment { offset, size, address: segment.p_vaddr(self.endian), executable }
            })
            .collect()
    }

    /// Whether a dynamic loader begins the program.
    pub fn has_interpreter(&self) -> bool {
        let headers = self.header.program_headers(self.endian, self.data).unwrap_or_default();
        headers.iter().any(|header| header.p_type(self.endian) == PT_INTERP)
    }

    /// Whether its code is for x86-64.
    pub fn is_x86_64(&self) -> bool {
        self.endian == Endianness::Little && self.header.e_machine(self.endian) == EM_X86_64
    }

    /// Where the section of this name is, if it is in the file.
    pub fn section_place(&self, name: &str) -> Option<Segment> {
        let (_, section) = self.sections.section_by_name(self.endian, name.as_bytes())?;
        let (offset, size) = section.file_range(self.endian)?;
        let executable = section.sh_flags(self.endian).0 & SHF_EXECINSTR.0 != 0;
        Some(Segment { offset, size, address: section.sh_addr(self.endian), executable })
    }

    /// Whether it is a dynamic loader (glibc's, musl's), which may be run as a program with another one's path.
    pub fn is_loader(&self) -> bool {
        !self.has_interpreter() && self.exports_any(["_r_debug", "_dl_debug_state"])
    }

    /// Whether it has no sections.
    pub fn is_bare(&self) -> bool {
        self.sections.is_empty()
    }

    /// The linker's identification of this very build.
    pub fn build_id(&self) -> Option<Vec<u8>> {
        let id = self.note(object::elf::ELF_NOTE_GNU, object::elf::NT_GNU_BUILD_ID)?;
        (1..=MAX_BUILD_ID).contains(&id.len()).then(|| id.to_vec())
    }

    /// The same as text, in hexadecimal. Without one, that of the Go toolchain, which linked no other before 1.24.
    pub fn build_id_text(&self) -> Option<String> {
        if let Some(id) = self.build_id() {
            return Some(id.iter().map(|byte| format!("{byte:02x}")).collect());
        }
        let id = self.note(object::elf::ELF_NOTE_GO, object::elf::NT_GO_BUILD_ID)?;
        (1..=MAX_GO_BUILD_ID).contains(&id.len()).then(|| String::from_utf8_lossy(id).into_owned())
    }

    /// What the first note of this name and type says.
    fn note(&self, name: &[u8], kind: object::elf::NoteType) -> Option<&'data [u8]> {
        let headers = self.header.program_headers(self.endian, self.data).unwrap_or_default();
        let segments = headers
            .iter()
            .filter(|segment| segment.p_type(self.endian) == PT_NOTE && segment.p_filesz(self.endian) <= MAX_NOTES)
            .filter_map(|segment| segment.notes(self.endian, self.data).ok()?);
        // Files of debug information keep no segments.
        let sections = self
            .sections
            .iter()
            .filter(|section| section.sh_size(self.endian) <= MAX_NOTES)
            .filter_map(|section| section.notes(self.endian, self.data).ok()?);
        for mut notes in segments.chain(sections) {
            while let Ok(Some(note)) = notes.next() {
                if note.name() == name && note.n_type(self.endian) == kind {
                    return Some(note.desc());
                }
            }
        }
        None
    }

    /// The address that the kernel, or the loader, starts the program at, as the file was linked.
    pub fn entry(&self) -> u64 {
        self.header.e_entry(self.endian)
    }

    /// The same, where there is such an address: linkers that find no begin of a library put down 0, or that of its code.
    pub fn start(&self) -> Option<u64> {
        let entry = self.entry();
        let is_program = self.has_fixed_addresses() || self.has_interpreter() || self.is_position_independent_program();
        let is_library = !is_program && !self.is_loader();
        let is_default = self.section_place(".text").is_some_and(|text| text.address == entry);
        (entry != 0 && !(is_library && is_default)).then_some(entry)
    }

    /// Whether there is a section of this name.
    pub fn has_section(&self, name: &str) -> bool {
        self.sections.section_by_name(self.endian, name.as_bytes()).is_some()
    }

    /// At most the first `limit` bytes of the section of this name. `None` when it is not there, or not in the file.
    pub fn section(&self, name: &str, limit: u64) -> Option<&'data [u8]> {
        let (_, section) = self.sections.section_by_name(self.endian, name.as_bytes())?;
        let (offset, size) = section.file_range(self.endian)?;
        self.data.read_bytes_at(offset, size.min(limit)).ok()
    }

    /// The same, and the address that its first byte was linked for.
    pub fn section_at(&self, name: &str, limit: u64) -> Option<(&'data [u8], u64)> {
        let (_, section) = self.sections.section_by_name(self.endian, name.as_bytes())?;
        Some((self.section(name, limit)?, section.sh_addr(self.endian)))
    }

    /// The whole section of this name, unpacked, if that is at most `limit` bytes.
    pub fn unpacked(&self, name: &str, limit: u64) -> Option<Cow<'data, [u8]>> {
        let (_, section) = self.sections.section_by_name(self.endian, name.as_bytes())?;
        let (format, offset, size, unpacked) = match section.compression(self.endian, self.data).ok()? {
            Some((header, offset, size)) => {
                let zlib = header.ch_type(self.endian) == ELFCOMPRESS_ZLIB;
                let format = if zlib { CompressionFormat::Zlib } else { CompressionFormat::Unknown };
                (format, offset, size, header.ch_size(self.endian))
            }
            None => {
                let (offset, size) = section.file_range(self.endian)?;
                (CompressionFormat::None, offset, size, size)
            }
        };
        if size > limit || unpacked > limit {
            return None;
        }
        let data = (&self.data.0.cache).read_bytes_at(offset, size).ok()?;
        CompressedData { format, data, uncompressed_size: unpacked }.decompress().ok()
    }

    /// The parts of the file that say what addresses are called: headers, symbols and their names, notes, and debug information
    /// if it is wanted.
    pub fn naming_parts(&self, debug_information: bool) -> Vec<Range<u64>> {
        let endian = self.endian;
        let part = |offset: u64, size: u64| offset..offset.saturating_add(size);
        let table = |offset: u64, entry: u16, count: u64| part(offset, u64::from(entry).saturating_mul(count));
        let header = self.header;
        let mut parts = vec![
            part(0, size_of::<Header>() as u64),
            table(header.e_phoff.get(endian), header.e_phentsize.get(endian), header.e_phnum.get(endian).into()),
            table(header.e_shoff.get(endian), header.e_shentsize.get(endian), self.sections.len() as u64),
        ];
        for section in self.sections.iter() {
            let names = [SHT_SYMTAB, SHT_STRTAB, SHT_DYNSYM, SHT_NOTE].contains(&section.sh_type(endian));
            let name = self.sections.section_name(endian, section).unwrap_or_default();
            let debug = [&b".debug"[..], b".zdebug", b".gnu_debug"].iter().any(|start| name.starts_with(start));
            if let Some((offset, size)) = section.file_range(endian).filter(|_| names || (debug && debug_information)) {
                parts.push(part(offset, size));
            }
        }
        parts
    }

    /// Whether it is a program or a shared library: something that can be mapped to run.
    pub fn is_runnable(&self) -> bool {
        [ET_EXEC, ET_DYN].contains(&self.header.e_type(self.endian))
    }

    /// Name and CRC-32 of the file that holds the debug information, as `.gnu_debuglink` has them (the GDB manual,
    /// "Debugging Information in Separate Files").
    pub fn debug_link(&self) -> Option<(&'data [u8], u32)> {
        let data = self.section(".gnu_debuglink", 4096)?;
        let length = data.iter().position(|byte| *byte == 0)?;
        let crc = data.get((length + 1).next_multiple_of(4)..)?.first_chunk()?;
        let crc = if self.endian == Endianness::Little { u32::from_le_bytes(*crc) } else { u32::from_be_bytes(*crc) };
        Some((&data[..length], crc))
    }

    /// Whether every compressed section says of itself that it unpacks to a size that can be.
    pub fn unpacks_sanely(&self) -> bool {
        let (endian, data) = (self.endian, self.data);
        let mut compressed = self.sections.iter().filter(|section| {
            section.sh_type(endian) != SHT_NOBITS && section.sh_flags(endian).0 & SHF_COMPRESSED.0 != 0
        });
        compressed.all(|section| {
            let size = section.sh_size(endian);
            let header = data.read_at::<CompressionHeader64<Endianness>>(section.sh_offset(endian));
            data.len().is_ok_and(|length| size <= length)
                && header.is_ok_and(|header| header.ch_size(endian) <= size.saturating_mul(MAX_COMPRESSION))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn outline_of_this_program() {
        let file = File::open("/proc/self/exe").unwrap();
        let bytes = Bytes::new(&file);
        let elf = Elf::parse(&bytes).unwrap();
        assert!(elf.segments().len() >= 2);
        assert!(elf.has_section(".text") && !elf.has_section(".nothing"));
        assert!(elf.section(".text", 100).unwrap().len() == 100);
        assert_eq!(elf.debug_link(), None);
        assert!(elf.unpacks_sanely() && elf.is_runnable());
        assert!(elf.unpacked(".text", 100).is_none());
        assert_eq!(elf.unpacked(".comment", 1 << 20).as_deref(), elf.section(".comment", 1 << 20));
    }

    /// A file with one segment, of notes with these names, types and contents.
    fn with_notes(notes: &[(&[u8], u32, &[u8])]) -> File {
        let mut segment = Vec::new();
        for (name, kind, content) in notes {
            for word in [name.len() as u32, content.len() as u32, *kind] {
                segment.extend(word.to_le_bytes());
            }
            for part in [name, content] {
                segment.extend(*part);
                segment.resize(segment.len().next_multiple_of(4), 0);
            }
        }
        let mut data = vec![0; 64 + 56];
        data[..20].copy_from_slice(b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0\x03\0\x3e\0");
        (data[32], data[52], data[54], data[56]) = (64, 64, 56, 1);
        (data[64], data[64 + 8], data[64 + 48]) = (4, 64 + 56, 4);
        data[64 + 32..64 + 40].copy_from_slice(&(segment.len() as u64).to_le_bytes());
        data.extend(segment);
        let mut file = tempfile::tempfile().unwrap();
        std::io::Write::write_all(&mut file, &data).unwrap();
        file
    }

    #[test]
    fn build_ids_of_linkers_come_before_those_of_go() {
        let gnu = (&b"GNU\0"[..], 3, &[0x0c, 0x0f, 0xfe, 0xe0][..]);
        let go = (&b"Go\0\0"[..], 4, &b"action/main"[..]);
        let long = [b'x'; MAX_GO_BUILD_ID + 1];
        for (notes, text) in [
            (&[gnu][..], Some("0c0ffee0")),
            (&[go], Some("action/main")),
            (&[go, gnu], Some("0c0ffee0")),
            (&[(go.0, 4, b"\xffid")], Some("\u{fffd}id")),
            (&[(go.0, 3, go.2), (gnu.0, 4, go.2)], None),
            (&[(go.0, 4, &long)], None),
            (&[(go.0, 4, b"")], None),
            (&[], None),
        ] {
            let file = with_notes(notes);
            let bytes = Bytes::new(&file);
            assert_eq!(Elf::parse(&bytes).unwrap().build_id_text().as_deref(), text, "{notes:?}");
        }
    }

    #[test]
    fn sections_that_lie_over_each_other_are_not_all_read() {
        let note = [&4u32.to_le_bytes()[..], &8u32.to_le_bytes(), &3u32.to_le_bytes(), b"GNU\0build-id"].concat();
        for count in [10, 1000] {
            let mut data = vec![0; 1 << 20];
            data[..20].copy_from_slice(b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0\x03\0\x3e\0");
            let (headers, tail) = (64usize, data.len() - note.len());
            data[tail..].copy_from_slice(&note);
            data[40..48].copy_from_slice(&(headers as u64).to_le_bytes());
            data[58..60].copy_from_slice(&64u16.to_le_bytes());
            data[60..62].copy_from_slice(&(count as u16).to_le_bytes());
            data[62] = 1;
            for index in 1..count {
                let at = headers + 64 * index;
                let last = index == count - 1;
                let (offset, size) = if last { (tail, note.len()) } else { (1 << 18, (1 << 19) + 12 * index) };
                // SHT_STRTAB for the names of sections, then SHT_NOTE.
                data[at + 4] = if index == 1 { 3 } else { 7 };
                data[at + 24..at + 32].copy_from_slice(&(offset as u64).to_le_bytes());
                data[at + 32..at + 40].copy_from_slice(&(size as u64).to_le_bytes());
            }
            let mut file = tempfile::tempfile().unwrap();
            std::io::Write::write_all(&mut file, &data).unwrap();
            let bytes = Bytes::new(&file);
            assert_eq!(Elf::parse(&bytes).unwrap().build_id().as_deref(), Some(&b"build-id"[..]));
            // Half a megabyte for each of the first, and none for those that would take more than sixteen times the file.
            let read = (16 << 20) - bytes.left.get();
            assert!((count.min(32) as u64) << 19 > read && read > (count.min(32) as u64 - 5) << 19, "{read}");
        }
    }

    #[test]
    fn what_is_no_elf_file_is_refused() {
        for content in [&b""[..], b"\x7fELF", b"MZ"] {
            let mut file = tempfile::tempfile().unwrap();
            std::io::Write::write_all(&mut file, content).unwrap();
            assert!(Elf::parse(&Bytes::new(&file)).is_err());
        }
    }
}
