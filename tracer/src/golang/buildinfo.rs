//! The version of Go that an executable was built with, from the build information that the linker leaves in it.
//!
//! Since Go 1.18 the version is in the file as text: 14 bytes of magic, the size of a pointer, flags, and from byte 32 on
//! the length as a varint and the text (`debug/buildinfo` in the Go tree).

use std::fmt;

/// Beginning of the build information. It is aligned to 16 bytes.
const MAGIC: &[u8] = b"\xff Go buildinf:";
/// Set in the flags where the version is text that follows, not a pointer to it.
const INLINE: u8 = 2;
/// Where the length of the version is, bytes from the magic.
const VERSION_AT: usize = 32;
/// Longest version that is taken, bytes: `devel go1.28-0123456789 Mon Jan 2 15:04:05 2006 +0000 X:...` is one.
const MAX_VERSION: usize = 256;

/// A version of Go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Version {
    /// As the toolchain calls itself, such as `go1.22.10`: hostile text.
    pub text: String,
    /// The number behind `go1.`; `None` when there is none, as in unusual development versions.
    pub minor: Option<u32>,
}

impl Version {
    fn new(text: String) -> Self {
        let digits = text.split("go1.").nth(1).map(|rest| rest.split(|c: char| !c.is_ascii_digit()).next());
        let minor = digits.flatten().and_then(|digits| digits.parse().ok());
        Self { text, minor }
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// What build information says of the version.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BuildInfo {
    /// There is none.
    Absent,
    /// It is of Go 1.17 or older, which keep a pointer to the version.
    Old,
    /// It names a version.
    Version(Version),
}

/// Looks for build information in `data`, whose first byte was linked for an address that is a multiple of 16.
pub fn find(data: &[u8]) -> BuildInfo {
    let found = data.chunks(16).position(|chunk| chunk.starts_with(MAGIC));
    match found.and_then(|chunk| data.get(chunk * 16..)) {
        None => BuildInfo::Absent,
        Some(info) if info.get(15).is_some_and(|flags| flags & INLINE == 0) => BuildInfo::Old,
        Some(info) => version(info).map_or(BuildInfo::Absent, |text| BuildInfo::Version(Version::new(text))),
    }
}

fn version(info: &[u8]) -> Option<String> {
    let rest = info.get(VERSION_AT..)?;
    let (mut length, mut shift) = (0_usize, 0);
    for (index, byte) in rest.iter().enumerate().take(2) {
        length |= usize::from(byte & 0x7f) << shift;
        shift += 7;
        if byte & 0x80 == 0 {
            let text = rest.get(index + 1..)?.get(..length).filter(|text| text.len() <= MAX_VERSION)?;
            return Some(String::from_utf8_lossy(text).into_owned());
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn info(flags: u8, version: &[u8]) -> Vec<u8> {
        let mut info = vec![0; 32];
        info.extend(MAGIC);
        info.extend([8, flags]);
        info.resize(32 + VERSION_AT, 0);
        info.push(version.len() as u8);
        info.extend(version);
        info
    }

    #[test]
    fn versions_as_toolchains_write_them() {
        for (text, minor) in [
            ("go1.22.10", Some(22)),
            ("go1.19", Some(19)),
            ("go1.21rc2", Some(21)),
            ("devel go1.28-8c445b7c9f Tue Nov 3", Some(28)),
            ("go1.25.5 X:nodwarf5", Some(25)),
            ("go2.0", None),
            ("go1.99999999999999999999", None),
            ("weekly", None),
        ] {
            let expected = Version { text: text.to_owned(), minor };
            assert_eq!(find(&info(INLINE, text.as_bytes())), BuildInfo::Version(expected));
        }
    }

    #[test]
    fn what_is_not_there_is_not_found() {
        assert_eq!(find(b""), BuildInfo::Absent);
        assert_eq!(find(&[0xff; 4096]), BuildInfo::Absent);
        assert_eq!(find(&info(0, b"go1.17")), BuildInfo::Old);
        // Not aligned.
        assert_eq!(find(&info(INLINE, b"go1.22")[1..]), BuildInfo::Absent);
    }

    #[test]
    fn cut_off_anywhere_it_does_no_harm() {
        let whole = info(INLINE, b"go1.22.10");
        for length in 0..whole.len() {
            assert!(!matches!(find(&whole[..length]), BuildInfo::Version(_)), "{length}");
        }
        for last in 0..=u8::MAX {
            let mut forged = whole.clone();
            forged[32 + VERSION_AT] = last;
            forged[32 + VERSION_AT + 1] = last;
            find(&forged);
        }
    }
}
