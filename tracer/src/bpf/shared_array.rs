//! Memory that the BPF programs and tracer share: that of an array map with BPF_F_MMAPABLE.

use std::{
    io,
    os::fd::{AsRawFd as _, BorrowedFd},
    ptr::NonNull,
    sync::atomic::{AtomicU64, Ordering},
};

/// Memory of an array map, shared with the BPF programs.
pub(super) struct SharedArray<T> {
    start: NonNull<T>,
    count: usize,
}

// SAFETY: it is memory that others write anyway.
unsafe impl<T> Send for SharedArray<T> {}

impl<T> SharedArray<T> {
    /// All of `map`: a new mapping.
    pub(super) fn map(map: BorrowedFd<'_>, count: usize) -> io::Result<Self> {
        let access = libc::PROT_READ | libc::PROT_WRITE;
        let (length, map) = (size_of::<T>() * count, map.as_raw_fd());
        // SAFETY: a new mapping; nothing of this process is touched.
        let start = unsafe { libc::mmap(std::ptr::null_mut(), length, access, libc::MAP_SHARED, map, 0) };
        if start == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let start = NonNull::new(start.cast()).ok_or_else(|| io::Error::other("the kernel mapped it nowhere"))?;
        Ok(Self { start, count })
    }

    /// Where the first of them is. All are mapped for as long as this is there.
    pub(super) fn start(&self) -> NonNull<T> {
        self.start
    }

    /// How many there are.
    pub(super) fn count(&self) -> usize {
        self.count
    }
}

impl SharedArray<AtomicU64> {
    /// One of these numbers, as it is now; `None` where there are fewer.
    pub(super) fn get(&self, index: u32) -> Option<u64> {
        let index = usize::try_from(index).ok().filter(|index| *index < self.count)?;
        // SAFETY: there are so many, mapped and aligned; the BPF programs change them by atomic operations.
        Some(unsafe { self.start.add(index).as_ref() }.load(Ordering::Relaxed))
    }
}

impl<T> Drop for SharedArray<T> {
    fn drop(&mut self) {
        // SAFETY: mapped by `map`, and nobody has a reference into it any more.
        unsafe { libc::munmap(self.start.as_ptr().cast(), size_of::<T>() * self.count) };
    }
}

#[cfg(test)]
mod tests {
    use std::os::{fd::AsFd as _, unix::fs::FileExt as _};

    use rustix::fs::{MemfdFlags, memfd_create};

    use super::*;

    #[test]
    fn a_number_is_what_it_is_now() {
        // Memory in the place of a map's.
        let file = std::fs::File::from(memfd_create("map", MemfdFlags::CLOEXEC).unwrap());
        file.set_len(16).unwrap();
        let numbers = SharedArray::<AtomicU64>::map(file.as_fd(), 2).unwrap();
        assert_eq!([numbers.get(0), numbers.get(1), numbers.get(2)], [Some(0), Some(0), None]);
        file.write_all_at(&7u64.to_ne_bytes(), 8).unwrap();
        assert_eq!([numbers.get(0), numbers.get(1)], [Some(0), Some(7)]);
    }
}
