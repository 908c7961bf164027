//! An ELF file as the analysis of exits sees it.

use crate::unwind::Frames;

/// A function whose name says what becomes of a call to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Known {
    /// It never returns.
    NoReturn,
    /// It returns its first argument: memset, memcpy.
    ReturnsFirst,
}

/// What a pointer in the global offset table is bound to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pointer {
    /// Code of the same file, at this address.
    Here(u64),
    /// A function known by its name, of whichever file.
    Known(Known),
    /// Code elsewhere.
    Elsewhere,
}

/// An ELF file as the analysis sees it. Addresses are those that it was linked for.
#[derive(Clone, Copy)]
pub struct Image<'a> {
    /// The executable bytes from an address on: at least 15, unless the file has fewer.
    pub code: &'a dyn Fn(u64) -> Option<&'a [u8]>,
    /// What the loader puts at an address, if that is a pointer that never changes.
    pub pointer: &'a dyn Fn(u64) -> Pointer,
    /// What the name of the file's own function at an address says.
    pub known: &'a dyn Fn(u64) -> Option<Known>,
    /// Where the functions of the allocator's interface begin.
    pub family: &'a [u64],
    /// Instructions that are probed as entries of those.
    pub entries: &'a [u64],
    /// What the file's unwind information says.
    pub frames: &'a Frames<'a>,
}
