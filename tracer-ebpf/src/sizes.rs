//! Sizes that no block can have.

/// Bits of the size of a block, bytes, at most: with page tables of five levels a process of x86-64 has addresses of 56 bits (Linux,
/// Documentation/arch/x86/x86_64/5level-paging.rst). An allocator that succeeds with more has calculated with what overflowed.
const SIZE_BITS: u32 = 56;
/// Bits of the addresses that a process gets which asks for no higher ones (the same place).
const ADDRESS_BITS: u32 = 47;

/// Whether no block at `addr` can have `size` bytes: there are not so many, or a block that begins below the end of the usual addresses
/// goes beyond it. Then the size is none, as where a function of an allocator's name takes other arguments.
#[inline(always)]
pub const fn cannot_be(addr: u64, size: u64) -> bool {
    size >> SIZE_BITS != 0 || addr >> ADDRESS_BITS == 0 && addr + size > 1 << ADDRESS_BITS
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_block_ends_where_addresses_do() {
        const END: u64 = 1 << ADDRESS_BITS;
        for (addr, size, expected) in [
            (0x1000, 0, false),
            (0x1000, END - 0x1000, false),
            (0x1000, END - 0xfff, true),
            (0x7fff_f000_0000, 0x1000_0000, false),
            (0x7fff_f000_0000, 0x1000_0001, true),
            // A pointer for a size.
            (0x5555_5555_9000, 0x5555_5555_6000, true),
            // With page tables of five levels.
            (END, END, false),
            (END, 1 << SIZE_BITS, true),
            (u64::MAX, (1 << SIZE_BITS) - 1, false),
            (0x1000, u64::MAX, true),
        ] {
            assert_eq!(cannot_be(addr, size), expected, "{size:#x} bytes at {addr:#x}");
        }
    }
}
