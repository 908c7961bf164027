//! Layout of the unwinding tables that user space compiles from `.eh_frame` and the BPF programs walk.
//!
//! A module (ELF file) is cut into pages of 1 KiB of addresses. Each page has an entry: where its rows start in one long
//! array of rows, and how many it has. A row says from which offset in the page on which rule holds. A page's first row is
//! at offset 0 (the rule that holds there already), so one page entry and a binary search of at most ten steps find the
//! rule of any address. Both arrays are cut into shards, the values of BPF array maps; a page's rows never cross a shard.
//! Rules are few and shared by all modules.

use crate::header::Header;

/// Bits of an address within a page.
pub const PAGE_BITS: u32 = 10;

/// Page entries in a shard (256 KiB).
pub const PAGES_PER_SHARD: usize = 1 << 15;

/// Rows in a shard (256 KiB).
pub const ROWS_PER_SHARD: usize = 1 << 16;

/// Rules of all modules together.
pub const MAX_RULES: usize = 1 << 15;

/// Files that are told apart at a time. Each is given a number when it is met for the first time, which no other file ever has; what is
/// known of it is kept under the last bits of that number.
pub const MAX_FILES: u32 = 1 << 14;

/// Numbers of files are below this.
pub const FILE_NUMBERS: u32 = 1 << 23;

/// What stands for the number of a file that cannot be told just now.
pub const NUMBER_BUSY: u32 = u32::MAX;

/// Index of what is known of the file with this number.
#[inline(always)]
pub const fn file_slot(number: u32) -> u32 {
    number % MAX_FILES
}

/// Executable segments of a file that are known.
pub const MAX_SEGMENTS: usize = 4;

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
    /// No unwind information at all, but frame pointers by convention (code that is generated, at run time or ahead). What they lead to
    /// is a guess: a frame pointer or a return address of 0 proves no outermost frame.
    pub const FRAME_POINTERS: u8 = 9;
    /// Go code: frame pointers, whose chain may lead on to another stack (the runtime's own, or that of C). A frame pointer
    /// of 0 marks the outermost frame.
    pub const GO: u8 = 10;
    /// CFA = frame pointer + offset, where code has moved the stack pointer to another stack.
    pub const SWITCHED: u8 = 11;
    /// CFA = stack pointer + offset; but what returns behind this byte is no frame: no call is there, so a program has put that address at
    /// the begin of a stack that it has made.
    pub const MADE: u8 = 12;

    /// Whether a caller's frame may lie below: on another stack.
    #[inline(always)]
    pub const fn may_lead_elsewhere(kind: u8) -> bool {
        matches!(kind, GO | SWITCHED | DEREF_FP | DEREF_SP)
    }
}

/// Where the caller's frame pointer is, and [`EXACT`](fp::EXACT).
pub mod fp {
    /// Still in its register.
    pub const SAME: u8 = 0;
    /// In the word at CFA + offset.
    pub const AT_CFA: u8 = 1;
    /// In the word at (frame pointer + offset).
    pub const AT_FP: u8 = 2;
    /// Besides: the caller was interrupted, so its address is where it goes on, not where a call returns to.
    pub const EXACT: u8 = 0x80;
}

/// A rule, packed: bits 0-7 [`kind`], 8-15 [`fp`], 16-31 offset of the saved frame pointer (signed), 32-63 offset of the
/// CFA (signed).
pub const fn rule(kind: u8, fp: u8, fp_offset: i16, cfa_offset: i32) -> u64 {
    kind as u64 | (fp as u64) << 8 | (fp_offset as u16 as u64) << 16 | (cfa_offset as u32 as u64) << 32
}

/// A frame of a stack: where in which file the return address points to; of code that was interrupted, the byte behind the first of the
/// instruction: in both cases the code is that of the byte before. Stacks are of these, so the same stack is the
/// same in every process, wherever files are mapped, and is another one when another file is mapped at the same address.
///
/// Bit 63 set, bits 40-62 number of the file, 0-39 offset in it. Where there is no file, or it has no number: the address
/// itself, whose bit 63 is clear.
pub mod place {
    /// Marks a place in a file.
    const FILE: u64 = 1 << 63;
    /// Bits of the offset.
    const OFFSET: u32 = 40;

    /// The byte at `offset` of the file with this number, which is below [`FILE_NUMBERS`](super::FILE_NUMBERS).
    #[inline(always)]
    pub const fn in_file(number: u32, offset: u64) -> u64 {
        FILE | (number as u64) << OFFSET | offset & ((1 << OFFSET) - 1)
    }

    /// An address that lies in no known file.
    #[inline(always)]
    pub const fn at(address: u64) -> u64 {
        address & !FILE
    }

    /// Number of the file and offset in it; `None` for an address.
    pub const fn file(place: u64) -> Option<(u32, u64)> {
        if place & FILE == 0 {
            return None;
        }
        Some(((place >> OFFSET) as u32 & (super::FILE_NUMBERS - 1), place & ((1 << OFFSET) - 1)))
    }
}

/// An executable mapping of a process and the table of its file.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Mapping {
    /// First address.
    pub start: u64,
    /// One past the last address.
    pub end: u64,
    /// What to take from an address to get its offset into the file's pages of rows.
    pub bias: u64,
    /// What to take from an address to get its offset in the file.
    pub base: u64,
    /// Index of the file's first page entry; without a table, it may be [`GENERATED`].
    pub first_page: u32,
    /// Number of page entries; 0 when there is no table.
    pub pages: u32,
    /// Number of the file; 0: none.
    pub file: u32,
    /// Nothing.
    pub reserved: u32,
}

/// [`Mapping::first_page`] of code that is generated at run time, or lies in a file of another format than programs have: frame
/// pointers are all there is to go by. The code of other files without a table has no rule.
pub const GENERATED: u32 = 1;

/// What the kernel tells files apart by; key of the map FILES, whose values are numbers.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct FileKey {
    /// Inode.
    pub inode: u64,
    /// Device, as the kernel writes it.
    pub device: u32,
    /// Which of the files this is that have had the inode.
    pub generation: u32,
}

/// An executable segment of a file.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FileSegment {
    /// Offset of its first byte in the file, at a page.
    pub first: u64,
    /// Offset of the byte behind it.
    pub last: u64,
    /// What to add to the [`base`](Mapping::base) of a mapping of it for the [`bias`](Mapping::bias).
    pub delta: u64,
}

/// What is known of a file; value of the map TABLES, by [`file_slot`].
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FileTable {
    /// How often user space was told of it, or would have been: the first one tells it.
    pub told: u64,
    /// One of [`file`].
    pub state: u32,
    /// Index of its first page entry.
    pub first_page: u32,
    /// Number of its page entries; 0 when it has no table.
    pub pages: u32,
    /// The file's number; 0 while the slot is no file's.
    pub number: u32,
    /// Whether some thread has found a mapping of it since this was last set to 0.
    pub met: u32,
    /// Nothing.
    pub reserved: u32,
    /// Its executable segments.
    pub segments: [FileSegment; MAX_SEGMENTS],
}

/// What is known of a file.
pub mod file {
    /// Nothing yet.
    pub const UNKNOWN: u32 = 0;
    /// All that there is to know.
    pub const KNOWN: u32 = 1;
    /// It is none to speak of: code that was generated at run time is kept in it.
    pub const GENERATED: u32 = 2;
}

/// Indexes of the map EPOCHS: counts of changes, by which what was learned before is known to hold still.
pub mod epoch {
    /// Those below are of the mappings of processes, by the last bits of their ids.
    pub const PROCESSES: u32 = 1024;
    /// Of what is known of files.
    pub const FILES: u32 = PROCESSES;
    /// No count: how changes of mappings come to be known, one of [`changes`](super::changes).
    pub const CHANGES: u32 = PROCESSES + 1;
    /// The first of those of the mappings of processes that may be code or become a file's, by the last bits of their ids.
    pub const CODE: u32 = PROCESSES + 2;
    /// How many there are.
    pub const ALL: u32 = CODE + PROCESSES;
}

/// A mapping that has appeared: one that may be code or become a file's, or a program's whole address space.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Appeared {
    /// The count ([`epoch::CODE`]) that this was. Written last.
    pub count: u64,
    /// First address of what it may lie in.
    pub start: u64,
    /// One past the last address.
    pub end: u64,
}

/// How many of the latest ones are known of each count: the one that was number `n` is the `n % MAX_APPEARED`th.
pub const MAX_APPEARED: usize = 16;

/// How changes of the mappings of a process come to be known.
pub mod changes {
    /// Not at all: mappings are looked up anew for every stack.
    pub const UNSEEN: u64 = 0;
    /// A program runs when one appears, and counts it.
    pub const COUNTED: u64 = 1;
    /// The kernel counts them (`mm_lock_seq`), and many others.
    pub const BY_KERNEL: u64 = 2;
}

/// A mapping as the kernel has it.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Area {
    /// First address.
    pub start: u64,
    /// One past the last address.
    pub end: u64,
    /// Its first page in the file.
    pub page: u64,
    /// What may be done with it (`vm_flags`).
    pub flags: u64,
    /// Whether the kernel knows more of it than that it is memory: not 0 for files, and for code of its own.
    pub operations: u64,
    /// Whether it is a file: 0 or not.
    pub is_file: u64,
    /// Which one.
    pub key: FileKey,
}

/// A record about a file that is mapped and of which nothing is known.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UnknownFile {
    /// Kind and thread.
    pub header: Header,
    /// The number that it was given.
    pub number: u64,
    /// First address of the mapping.
    pub start: u64,
    /// One past its last address.
    pub end: u64,
}

/// A record about code of a file that a process has mapped.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Loaded {
    /// Kind and thread.
    pub header: Header,
    /// Which file.
    pub key: FileKey,
    /// When: nanoseconds of CLOCK_MONOTONIC.
    pub time: u64,
}

/// Where the kernel keeps what it knows of mappings: offsets in its structures, bytes.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct KernelMappings {
    /// In `task_struct`: the pointer to its `mm_struct`.
    pub task_mm: u32,
    /// In `mm_struct`: the pointer to the `xol_area`, where the code is that return probes return to.
    pub mm_xol_area: u32,
    /// In `xol_area`: the address of that code in the process.
    pub xol_address: u32,
    /// In `vm_area_struct`: the first address.
    pub area_start: u32,
    /// In `vm_area_struct`: the one behind the last.
    pub area_end: u32,
    /// In `vm_area_struct`: the first page in the file.
    pub area_page: u32,
    /// In `vm_area_struct`: what may be done.
    pub area_flags: u32,
    /// In `vm_area_struct`: the pointer to what is done.
    pub area_operations: u32,
    /// In `vm_area_struct`: the pointer to the `file`.
    pub area_file: u32,
    /// In `vm_area_struct`: the pointer to the `mm_struct`.
    pub area_mm: u32,
    /// In `file`: the pointer to the `inode`.
    pub file_inode: u32,
    /// In `inode`: its number.
    pub inode_number: u32,
    /// In `inode`: which file this is of those that have had the number.
    pub inode_generation: u32,
    /// In `inode`: the pointer to the `super_block`.
    pub inode_super: u32,
    /// In `super_block`: the device.
    pub super_device: u32,
    /// In `super_block`: which kind of file system it is; 0 when that is not known.
    pub super_magic: u32,
    /// In `mm_struct`: the root of the tree of its mappings; 0 when that has another shape than the one known here.
    pub mm_tree: u32,
    /// In `mm_struct`: the count of its changes; 0 when there is none.
    pub mm_changes: u32,
    /// In `mm_struct`: the pointer to the file of the program; 0 when there is none.
    pub mm_program: u32,
    /// In `mm_struct`: where the stack of the first thread begins, at its outermost frame; 0 when that is not known.
    pub mm_start_stack: u32,
    /// In `vm_unmapped_area_info`: the length of what room is wanted for; 0 when that is not known.
    pub wanted_length: u32,
    /// In `mm_struct`: where the program break is; 0 when that is not known.
    pub mm_break: u32,
    /// In `vm_area_struct`: the count of changes of the `mm_struct` when it was changed last; 0 when there is none.
    pub area_lock: u32,
    /// 1 where mappings stay until those are there that replace them (from Linux 6.12 on), else 0.
    pub replaces_late: u32,
}

const _: () = {
    assert!(size_of::<Mapping>() == 48);
    assert!(size_of::<FileKey>() == 16);
    assert!(size_of::<FileTable>() == 32 + 24 * MAX_SEGMENTS);
    assert!(size_of::<Area>() == 64);
    assert!(size_of::<Appeared>() == 24);
    assert!(size_of::<UnknownFile>() == 32);
    assert!(size_of::<Loaded>() == 32);
    assert!(size_of::<KernelMappings>() == 96);
    assert!(FILE_NUMBERS == 1 << (63 - 40)); // as many bits as a place has for it
};

#[cfg(test)]
mod tests {
    use super::place;

    #[test]
    fn a_place_is_read_back() {
        for (number, offset) in [(1, 0), (0x7f_ffff, (1 << 40) - 1), (7, 0x1234)] {
            assert_eq!(place::file(place::in_file(number, offset)), Some((number, offset)));
        }
        assert_eq!(place::file(place::in_file(1, 1 << 40 | 5)), Some((1, 5)), "larger files are not mapped as code");
        assert_eq!(place::file(place::at(0xffff_ffff_ff60_0000)), None, "an address of the kernel's half");
        assert_eq!(place::at(0x7f00_0000_1234), 0x7f00_0000_1234);
    }
}
