//! The ABI for allocations of Go programs: where the runtime of a process keeps what, its size classes, and the record of a
//! sampled object.

use crate::header::Header;

/// Most Go runtimes of one process: libraries bring their own. What tells them apart is the slot of a record.
pub const RUNTIMES: u32 = 16;

/// Cookies of the programs that follow Go runtimes: what the program is told, and of which runtime of the process its site is.
pub mod cookie {
    /// Packs one.
    pub const fn pack(told: u64, number: u32) -> u64 {
        told | (number as u64) << 8
    }

    /// What the program is told.
    pub const fn told(cookie: u64) -> u64 {
        cookie & 0xff
    }

    /// Number of the runtime.
    pub const fn number(cookie: u64) -> u64 {
        cookie >> 8 & (super::RUNTIMES as u64 - 1)
    }
}

/// Where one runtime of a process keeps what; value of the map GO_RUNTIMES, keyed by tgid (upper half) and number. Offsets in
/// bytes.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Runtime {
    /// Address of `mheap_.sweepgen`, 32 bits: moves on by 2 in every cycle of the garbage collector.
    pub sweepgen: u64,
    /// `g.m`.
    pub g_m: u32,
    /// `m.p`.
    pub m_p: u32,
    /// `p.mcache`.
    pub p_mcache: u32,
    /// `mcache.alloc`: a span for each class.
    pub mcache_alloc: u32,
    /// `mcache.tiny`: the block that tiny objects are put into.
    pub mcache_tiny: u32,
    /// `mcache.tinyoffset`.
    pub mcache_tiny_offset: u32,
    /// `mspan.startAddr`.
    pub span_start: u32,
    /// `mspan.freeindex`.
    pub span_free_index: u32,
    /// `mspan.nelems`.
    pub span_elements: u32,
    /// `mspan.allocCache`.
    pub span_cache: u32,
    /// `mspan.allocBits`.
    pub span_bits: u32,
    /// `mspan.elemsize`.
    pub span_element_size: u32,
    /// `mspan.spanclass`, 8 bits.
    pub span_class: u32,
    /// Whether `freeindex` and `nelems` have 64 bits (up to Go 1.21), not 16.
    pub wide: u32,
    /// Bytes before an object with pointers that is larger than [`HEADER_FREE`]: 8 from Go 1.22 on, else 0.
    pub header: u32,
    /// Which of its process's runtimes it is, below [`RUNTIMES`].
    pub number: u32,
    /// Address of `gcBlackenEnabled`, 32 bits: whether goroutines must help the garbage collector before they get an object,
    /// inside the probed function. 0: they never do there.
    pub assist: u64,
    /// `g.gcAssistBytes`: what a goroutine may allocate before it must help.
    pub g_assist: u32,
    /// Whether the probe of allocations lies on the check of the stack's end, and not behind it.
    pub at_check: u32,
    /// A probed function that calls others which are probed, too: its begin and end. 0: there is none.
    pub whole: u64,
    /// Behind its last byte.
    pub whole_end: u64,
    /// Addresses of probes where the goroutine has helped the garbage collector already; 0: no more.
    pub assisted: [u64; PARTS],
}

/// Functions that the runtime allocates by, twins for one class of sizes not counted.
pub const PARTS: usize = 6;

/// Largest object with pointers that never has a header, bytes.
pub const HEADER_FREE: u64 = 512;
/// Tiny objects are smaller than this and without pointers; several share a block of this size.
pub const TINY: u64 = 16;
/// Objects up to this size are of a size class, together with their header. Bytes.
pub const MAX_SMALL: u64 = 32768;

/// Size of the objects of each class, bytes (`class_to_size` in the runtime's sizeclasses.go, since Go 1.16). Class 0 is
/// that of large objects.
pub const CLASS_SIZES: [u16; 68] = [
    0, 8, 16, 24, 32, 48, 64, 80, 96, 112, 128, 144, 160, 176, 192, 208, 224, 240, 256, 288, 320, 352, 384, 416, 448,
    480, 512, 576, 640, 704, 768, 896, 1024, 1152, 1280, 1408, 1536, 1792, 2048, 2304, 2688, 3072, 3200, 3456, 4096,
    4864, 5376, 6144, 6528, 6784, 6912, 8192, 9472, 9728, 10240, 10880, 12288, 13568, 14336, 16384, 18432, 19072,
    20480, 21760, 24576, 27264, 28672, 32768,
];

/// Class by size: of objects up to 1024 bytes by eighths of their size, of others by 128ths of what they have more.
#[derive(Clone, Copy)]
pub struct Classes {
    /// Index: size / 8, rounded up.
    pub small: [u8; 256],
    /// Index: (size - 1024) / 128, rounded up.
    pub large: [u8; 256],
}

/// [`Classes`] of [`CLASS_SIZES`].
pub const CLASSES: Classes = {
    let mut classes = Classes { small: [0; 256], large: [0; 256] };
    let mut at = 0;
    while at < 256 {
        classes.small[at] = class_of(8 * at as u64);
        classes.large[at] = class_of(1024 + 128 * at as u64);
        at += 1;
    }
    classes
};

/// The class of objects of `size` bytes; 0 when they are too large for any.
pub const fn class_of(size: u64) -> u8 {
    if size == 0 {
        return 0;
    }
    let mut class = 1;
    while class < CLASS_SIZES.len() {
        if CLASS_SIZES[class] as u64 >= size {
            return class as u8;
        }
        class += 1;
    }
    0
}

/// A sampled object. Its record is sent before the program gets the object.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sample {
    /// Kind and thread.
    pub header: Header,
    /// Where it is, or begins with its header.
    pub addr: u64,
    /// Bytes that it takes: the size of its class, or whole pages.
    pub size: u64,
    /// Bytes by which it was sampled: the probability is 1 - exp(-charge / mean).
    pub charge: u64,
    /// Stack of the caller; the stack record with this id was sent before.
    pub stack: u64,
    /// Nanoseconds of CLOCK_MONOTONIC.
    pub time: u64,
    /// `mheap_.sweepgen` at that time.
    pub sweepgen: u32,
    /// `mspan.spanclass`: twice the class, and 1 for objects without pointers.
    pub class: u32,
}

const _: () = {
    assert!(size_of::<Runtime>() == 152);
    assert!(size_of::<Sample>() == 56);
    assert!(class_of(MAX_SMALL) == 67 && class_of(MAX_SMALL + 1) == 0);
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cookies_come_back() {
        for (told, number) in [(0, 0), (1, 15), (0xff, 3)] {
            let packed = cookie::pack(told, number);
            assert_eq!((cookie::told(packed), cookie::number(packed)), (told, u64::from(number)));
        }
    }

    #[test]
    fn tables_agree_with_the_search() {
        for size in 1..=MAX_SMALL {
            let class = if size <= 1024 {
                CLASSES.small[size.div_ceil(8) as usize]
            } else {
                CLASSES.large[(size - 1024).div_ceil(128) as usize]
            };
            assert_eq!(class, class_of(size), "{size}");
            assert!(u64::from(CLASS_SIZES[usize::from(class)]) >= size);
            assert!(u64::from(CLASS_SIZES[usize::from(class) - 1]) < size);
        }
    }
}
