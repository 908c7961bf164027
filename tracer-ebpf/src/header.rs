//! The first word of every record.

/// Bits of the number of an image: the address space of one program, from its exec, from the fork that made it, or from when
/// recording began, to its end. Handed out once each, from 1 on by the BPF side, from [`FIRST_GIVEN_IMAGE`] on by user space.
pub const IMAGE_MASK: u32 = (1 << 30) - 1;

/// First word of every record: kind, call slot, image and thread, packed into 64 bits.
///
/// Bits 0-7 kind, 8-11 call slot, 12-41 image, 42-63 tid. Linux keeps thread ids below 2^22 (`PID_MAX_LIMIT`).
#[repr(transparent)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header(pub u64);

impl Header {
    const TID_MASK: u64 = (1 << 22) - 1;

    /// Packs a header; `pid_tgid` as bpf_get_current_pid_tgid gives it (tid in the lower half).
    #[inline(always)]
    pub const fn new(kind: u8, image: u32, slot: u32, pid_tgid: u64) -> Self {
        let tid = pid_tgid & Self::TID_MASK;
        Self(kind as u64 | ((slot & 0xf) as u64) << 8 | ((image & IMAGE_MASK) as u64) << 12 | tid << 42)
    }

    /// What the record says, one of [`kind`].
    #[inline(always)]
    pub const fn kind(self) -> u8 {
        self.0 as u8
    }

    /// Which of the thread's calls in flight this belongs to.
    #[inline(always)]
    pub const fn slot(self) -> u8 {
        (self.0 >> 8) as u8 & 0xf
    }

    /// Which address space it is about.
    #[inline(always)]
    pub const fn image(self) -> u32 {
        (self.0 >> 12) as u32 & IMAGE_MASK
    }

    /// Thread id.
    #[inline(always)]
    pub const fn tid(self) -> u32 {
        (self.0 >> 42 & Self::TID_MASK) as u32
    }
}
