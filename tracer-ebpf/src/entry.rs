//! What the programs at the entry of a function that allocates are told by their cookie.

/// Which arguments are read, each by its number from 1 on, at most [`ARGUMENTS`]: three bits each.
pub const ARGUMENT: u64 = 7;
/// Number of what is not there: 0, but for a call whose string is not measured yet, which is then there.
pub const NONE: u64 = 0;
/// How many arguments there are to be read from.
pub const ARGUMENTS: usize = 4;
/// The first bit of the number of bytes.
pub const SIZE: u32 = 0;
/// The first bit of how many such elements; [`ONE`] where it is one.
pub const COUNT: u32 = 3;
/// Number of no argument: a count of one.
pub const ONE: u64 = 7;
/// The first bit of the old block, or of where the new one is stored; 0 where it is none.
pub const BLOCK: u32 = 6;
/// The result is a status, and the block is stored.
pub const STORED: u64 = 1 << 9;
/// The outcome of its calls is seen at instructions ([`exit`](crate::exit)), not at the kernel's trampoline.
pub const AT_INSTRUCTIONS: u64 = 1 << 10;
/// Calls may end without an outcome that is seen, and then have allocated nothing.
pub const MAY_VANISH: u64 = 1 << 11;
/// The first bit of the number of the string that is copied, three bits; 0: none. Its length is [`MEASURED`].
pub const STRING: u32 = 12;
/// The argument behind that string says how much of it is copied at most.
pub const BOUNDED: u64 = 1 << 15;
/// Number of what no argument tells: the bytes of a copy of the string.
pub const MEASURED: u64 = 5;
/// The first bit of the function's number, which no other function of the process's allocators has; 16 bits.
pub const FUNCTION: u32 = 16;
/// The block stays where it is: the result is how large it is now, bytes, and less than what was asked for where it stays as it was. The
/// third argument says how much more would be taken.
pub const IN_PLACE: u64 = 1 << 32;
/// The bit that says that sizes are words of eight bytes.
pub const WORDS: u32 = 33;

/// What the program at functions that may end all blocks of a heap at once is told: that this one does whenever it is called; that it does
/// if its first argument is the name of something that does (mallctl); the same of numbers that stand for a name (mallctlbymib).
pub mod at_once {
    /// It always does.
    pub const ALWAYS: u64 = 0;
    /// The name says.
    pub const NAMED: u64 = 1;
    /// Numbers say.
    pub const NUMBERED: u64 = 2;
}
