//! What a program needs besides itself: its loader, and libraries by name.

use object::{
    ReadRef as _,
    elf::{
        DF_1_PIE, DF_TEXTREL, DT_FLAGS, DT_FLAGS_1, DT_NEEDED, DT_RPATH, DT_RUNPATH, DT_STRTAB, DT_TEXTREL, DynamicTag,
        PT_GNU_EH_FRAME,
    },
    read::elf::{Dyn as _, FileHeader as _, ProgramHeader as _},
};

use super::Elf;

/// Most entries of the dynamic section that are looked at.
const MAX_ENTRIES: usize = 4096;
/// Most libraries that are taken.
const MAX_LIBRARIES: usize = 256;
/// Longest name, bytes (PATH_MAX of Linux).
const MAX_NAME: u64 = 4096;

/// What an executable or a library needs: hostile text.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Needed {
    /// Path of the loader that begins it.
    pub interpreter: Option<String>,
    /// Names of libraries, as the loader looks for them.
    pub libraries: Vec<String>,
    /// Folders where it looks first, as they are written: `$ORIGIN` is the file's own.
    pub folders: Vec<String>,
}

impl Elf<'_> {
    /// What it needs. What cannot be read is left out.
    pub fn needed(&self) -> Needed {
        let mut needed = Needed::default();
        let headers = self.header.program_headers(self.endian, self.data).unwrap_or_default();
        for header in headers {
            if let Ok(Some(path)) = header.interpreter(self.endian, self.data) {
                needed.interpreter = Some(text(path));
            }
        }
        let entries = headers.iter().find_map(|header| header.dynamic(self.endian, self.data).ok()?);
        let entries = entries.unwrap_or_default();
        let entries =
            || entries.iter().take(MAX_ENTRIES).map(|entry| (entry.d_tag(self.endian), entry.d_val(self.endian)));
        let Some((_, strings)) = entries().find(|(tag, _)| *tag == DT_STRTAB) else { return needed };
        let name = |offset: u64| self.text_at(strings.checked_add(offset)?);
        for (tag, value) in entries() {
            if tag == DT_NEEDED && needed.libraries.len() < MAX_LIBRARIES {
                needed.libraries.extend(name(value));
            } else if tag == DT_RUNPATH || tag == DT_RPATH {
                needed.folders = name(value).unwrap_or_default().split(':').map(str::to_owned).collect();
            }
        }
        needed
    }

    /// Whether the loader changes its code (text relocations): what is in memory is not what is in the file.
    pub fn has_text_relocations(&self) -> bool {
        self.has_dynamic(|tag, value| tag == DT_TEXTREL || tag == DT_FLAGS && value & DF_TEXTREL.0 != 0)
    }

    /// Whether it is a program by its own account, which may be loaded anywhere.
    pub fn is_position_independent_program(&self) -> bool {
        self.has_dynamic(|tag, value| tag == DT_FLAGS_1 && value & DF_1_PIE.0 != 0)
    }

    /// Whether its dynamic section has such an entry.
    fn has_dynamic(&self, is_it: impl Fn(DynamicTag, u64) -> bool) -> bool {
        let headers = self.header.program_headers(self.endian, self.data).unwrap_or_default();
        let entries = headers.iter().find_map(|header| header.dynamic(self.endian, self.data).ok()?);
        let mut entries = entries.unwrap_or_default().iter().take(MAX_ENTRIES);
        entries.any(|entry| is_it(entry.d_tag(self.endian), entry.d_val(self.endian)))
    }

    /// Whether it has a table for unwinding, as code of C and its like has and Go's has not.
    pub fn has_unwind_table(&self) -> bool {
        let headers = self.header.program_headers(self.endian, self.data).unwrap_or_default();
        let has_index = headers.iter().any(|header| header.p_type(self.endian) == PT_GNU_EH_FRAME);
        has_index || self.section_place(".eh_frame").is_some()
    }

    /// The text at an address that the file was linked for, to its zero.
    fn text_at(&self, address: u64) -> Option<String> {
        let segments = self.segments();
        let segment = segments.iter().find(|segment| address.wrapping_sub(segment.address) < segment.size)?;
        let start = segment.offset.checked_add(address - segment.address)?;
        let end = start.saturating_add(MAX_NAME).min(segment.offset.saturating_add(segment.size));
        self.data.read_bytes_at_until(start..end, 0).ok().map(text)
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::super::Bytes;
    use super::*;

    #[test]
    fn what_this_program_needs() {
        let file = std::fs::File::open("/proc/self/exe").unwrap();
        let bytes = Bytes::new(&file);
        let needed = Elf::parse(&bytes).unwrap().needed();
        assert!(needed.interpreter.is_some_and(|path| path.contains("ld-linux")));
        assert!(needed.libraries.iter().any(|name| name.starts_with("libc.so")), "{:?}", needed.libraries);
    }
}
