//! Layout of the unwinding tables that user space compiles from `.eh_frame` and the BPF programs walk.
//!
//! A module (ELF file) is cut into pages of 1 KiB of addresses. Each page has an entry: where its rows start in one long
//! array of rows, and how many it has. A row says from which offset in the page on which rule holds. A page's first row is
//! at offset 0 (the rule that holds there already), so one page entry and a binary search of at most ten steps find the
//! rule of any address. Both arrays are cut into shards, the values of BPF array maps; a page's rows never cross a shard.
//! Rules are few and shared by all modules.

/// Bits of an address within a page.
pub const PAGE_BITS: u32 = 10;

/// Page entries in a shard (256 KiB).
pub const PAGES_PER_SHARD: usize = 1 << 15;

/// Rows in a shard (256 KiB).
pub const ROWS_PER_SHARD: usize = 1 << 16;

/// Rules of all modules together.
pub const MAX_RULES: usize = 1 << 15;

/// Executable mappings of one process.
pub const MAX_MAPPINGS: usize = 256;

/// A row: bits 0-9 offset in the page, the rest the id of the rule.
pub const fn row(offset: u32, rule: u32) -> u32 {
    offset & ((1 << PAGE_BITS) - 1) | rule << PAGE_BITS
}

/// A page entry: bits 0-31 index of its first row, 32-63 number of rows.
pub const fn page(first_row: u32, rows: u32) -> u64 {
    first_row as u64 | (rows as u64) << 32
}

/// How the caller's registers are found. CFA: the stack pointer before the call was made; the return address lies right
/// below it.
pub mod kind {
    /// No rule: code without unwind information.
    pub const NONE: u8 = 0;
    /// CFA = stack pointer + offset.
    pub const SP: u8 = 1;
    /// CFA = frame pointer + offset.
    pub const FP: u8 = 2;
    /// A PLT stub (binutils): CFA = stack pointer + 8, and 8 more when the low four bits of pc are >= offset.
    pub const PLT: u8 = 3;
    /// CFA = word at (frame pointer + low half of the offset) + high half, both signed 16 bits.
    pub const DEREF_FP: u8 = 4;
    /// CFA = word at (stack pointer + low half of the offset) + high half, both signed 16 bits.
    pub const DEREF_SP: u8 = 5;
    /// The outermost frame: there is no caller.
    pub const STOP: u8 = 6;
    /// A signal frame: all registers from the ucontext that the kernel put at stack pointer + 40.
    pub const SIGNAL: u8 = 7;
    /// There is a rule, but none that these kinds express.
    pub const UNSUPPORTED: u8 = 8;
    /// No unwind information at all, but frame pointers by convention (code that is generated at run time). What they lead to
    /// is a guess: a frame pointer or a return address of 0 proves no outermost frame.
    pub const FRAME_POINTERS: u8 = 9;
    /// Go code: frame pointers, whose chain may lead on to another stack (the runtime's own, or that of C). A frame pointer
    /// of 0 marks the outermost frame.
    pub const GO: u8 = 10;
}

/// Where the caller's frame pointer is.
pub mod fp {
    /// Still in its register.
    pub const SAME: u8 = 0;
    /// In the word at CFA + offset.
    pub const AT_CFA: u8 = 1;
    /// In the word at (frame pointer + offset).
    pub const AT_FP: u8 = 2;
}

/// A rule, packed: bits 0-7 [`kind`], 8-15 [`fp`], 16-31 offset of the saved frame pointer (signed), 32-63 offset of the
/// CFA (signed).
pub const fn rule(kind: u8, fp: u8, fp_offset: i16, cfa_offset: i32) -> u64 {
    kind as u64 | (fp as u64) << 8 | (fp_offset as u16 as u64) << 16 | (cfa_offset as u32 as u64) << 32
}

/// An executable mapping of a process and the table of its module.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Mapping {
    /// First address.
    pub start: u64,
    /// One past the last address.
    pub end: u64,
    /// What to take from an address to get its offset into the module's pages.
    pub bias: u64,
    /// Index of the module's first page entry; without a table, [`GENERATED`] where the code belongs to no file.
    pub first_page: u32,
    /// Number of page entries; 0 when there is no table.
    pub pages: u32,
}

/// [`Mapping::first_page`] of code that is generated at run time: frame pointers are all there is to go by. The code of a
/// file without a table has no rule.
pub const GENERATED: u32 = 1;

/// All executable mappings of one process, by address; value of the map MAPPINGS, keyed by tgid.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Mappings {
    /// How many there are.
    pub count: u32,
    /// Changes with every change of the mappings: what was learned before does not hold any more.
    pub generation: u32,
    /// How often an address has come to mean something else: the same addresses are another stack then.
    pub reuses: u64,
    /// The mappings; those from `count` on are not used.
    pub mappings: [Mapping; MAX_MAPPINGS],
}

const _: () = {
    assert!(size_of::<Mapping>() == 32);
    assert!(size_of::<Mappings>() == 16 + 32 * MAX_MAPPINGS);
};
