//! Bytes of files that are in memory once, however many processes run the same program: the tables of one take up to 30 MB.

use std::{
    fs::File,
    os::unix::fs::{FileExt as _, MetadataExt as _},
    sync::{Arc, Mutex, PoisonError, Weak},
};

use hashbrown::HashMap;

use crate::files::elf::Segment;

/// A part of a file, as it is now: device, inode, size, nanoseconds of the last change of contents and of the inode, offset and size of
/// the part.
type Part = (u64, u64, u64, (i64, i64), (i64, i64), u64, u64);

/// The parts that somebody has.
static KEPT: Mutex<Option<HashMap<Part, Weak<[u8]>>>> = Mutex::new(None);

/// At most `size` bytes of a file; no more than there are.
pub(super) fn read(file: &File, offset: u64, size: u64) -> Option<Vec<u8>> {
    let there = file.metadata().ok()?.len().checked_sub(offset)?;
    let mut bytes = vec![0; usize::try_from(size.min(there)).ok()?];
    file.read_exact_at(&mut bytes, offset).ok()?;
    Some(bytes)
}

/// The same, at most so many bytes of a part, in memory once.
pub(super) fn kept(file: &File, place: &Segment, most: u64) -> Option<Arc<[u8]>> {
    let metadata = file.metadata().ok()?;
    let size = place.size.min(most);
    let changed = ((metadata.mtime(), metadata.mtime_nsec()), (metadata.ctime(), metadata.ctime_nsec()));
    let part = (metadata.dev(), metadata.ino(), metadata.len(), changed.0, changed.1, place.offset, size);
    let kept = || KEPT.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(bytes) = kept().as_ref().and_then(|kept| kept.get(&part)).and_then(Weak::upgrade) {
        return Some(bytes);
    }
    let bytes: Arc<[u8]> = read(file, place.offset, size)?.into();
    let mut kept = kept();
    let kept = kept.get_or_insert_default();
    kept.retain(|_, bytes| bytes.strong_count() > 0);
    kept.insert(part, Arc::downgrade(&bytes));
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    #[test]
    fn a_part_is_in_memory_once_until_the_file_changes() {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(b"0123456789").unwrap();
        let place = |offset, size| Segment { offset, size, address: 0, executable: false };
        let read = |file: &File, offset, size| kept(file, &place(offset, size), 100);
        let one = read(file.as_file(), 2, 3).unwrap();
        assert_eq!(*one, *b"234");
        let again = File::open(file.path()).unwrap();
        assert!(Arc::ptr_eq(&one, &read(&again, 2, 3).unwrap()));
        assert_eq!(*read(&again, 3, 3).unwrap(), *b"345");
        assert_eq!(*read(&again, 8, 30).unwrap(), *b"89", "as far as the file goes");
        assert_eq!(read(&again, 11, 1), None);
        file.write_all(b"0").unwrap();
        assert!(!Arc::ptr_eq(&one, &read(&again, 2, 3).unwrap()), "it has changed");
    }
}
