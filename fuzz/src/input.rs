//! Taking an input apart, and putting it where the tracer looks for it.

use std::{cell::OnceCell, fs::File, os::unix::fs::FileExt};

use rustix::fs::{MemfdFlags, memfd_create};

/// The first `N` bytes, zeroes where there are none, and what follows.
pub(crate) fn take<const N: usize>(data: &[u8]) -> ([u8; N], &[u8]) {
    let (head, rest) = data.split_at(data.len().min(N));
    let mut taken = [0; N];
    taken[..head.len()].copy_from_slice(head);
    (taken, rest)
}

/// Calls `f` with a file that holds `data`. It is the same file every time: making one takes longer than most parsers.
pub(crate) fn with_file<T>(data: &[u8], f: impl FnOnce(&File) -> T) -> T {
    thread_local! {
        static FILE: OnceCell<File> = const { OnceCell::new() };
    }
    FILE.with(|file| {
        let file = file.get_or_init(|| File::from(memfd_create("input", MemfdFlags::CLOEXEC).expect("a file")));
        file.set_len(data.len() as u64).expect("a length");
        file.write_all_at(data, 0).expect("contents");
        f(file)
    })
}
