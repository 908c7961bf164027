//! How much naming may read and keep: work that is as large as files are, which the target chooses.

use std::{
    fs::{File, Metadata},
    os::unix::fs::{FileExt as _, MetadataExt as _},
};

use hashbrown::HashMap;

/// Most that is read of whole files to see whether they are the wanted ones, bytes in one trace.
const MAX_CHECKSUMMED: u64 = 4 << 30;
/// Most files that are told by name.
const MAX_TOLD: usize = 8;

/// What may still be done, and what was left out.
pub(super) struct Work {
    /// Bytes that may still be kept.
    memory: u64,
    /// Bytes of whole files that may still be read.
    reading: u64,
    /// Checksums, by what tells files and their states apart.
    checksums: HashMap<[u64; 5], Option<u32>>,
    left_out: Vec<String>,
}

impl Work {
    /// Work that may keep so many bytes.
    pub(super) fn new(memory: u64) -> Self {
        Self { memory, reading: MAX_CHECKSUMMED, checksums: HashMap::new(), left_out: Vec::new() }
    }

    /// Whether `size` more bytes may be kept; then they count.
    pub(super) fn keep(&mut self, size: u64) -> bool {
        let left = self.memory.checked_sub(size);
        self.memory = left.unwrap_or(self.memory);
        left.is_some()
    }

    /// Notes that names of the file `name` will be missing.
    pub(super) fn leave_out(&mut self, name: &str, size: u64, debug_information: bool) {
        if self.left_out.len() < MAX_TOLD {
            let what = if debug_information { "debug information" } else { "symbols" };
            let size = size >> 20;
            self.left_out.push(format!(
                "the {what} of {name} was not read: with it, tracer would keep {size} MiB more than --max-memory allows for names"
            ));
        }
    }

    /// Notes that a file was written to after it was mapped, and names nothing any more.
    pub(super) fn tell_of_rewritten(&mut self, name: &str) {
        let note = format!(
            "{name} was written to after it had been mapped: what is in it now does not name what ran (replace files by renaming others over \
             them)"
        );
        if self.left_out.len() < MAX_TOLD {
            self.left_out.push(note);
        }
    }

    /// What was left out, as sentences without their full stops.
    pub(super) fn left_out(&self) -> &[String] {
        &self.left_out
    }

    /// CRC-32 of a whole file, computed once. `None` when it cannot be read, or is more than may still be read.
    pub(super) fn checksum(&mut self, file: &File, metadata: &Metadata) -> Option<u32> {
        let state = [metadata.ctime() as u64, metadata.ctime_nsec() as u64];
        let key = [metadata.dev(), metadata.ino(), metadata.len(), state[0], state[1]];
        if let Some(known) = self.checksums.get(&key) {
            return *known;
        }
        let left = self.reading.checked_sub(metadata.len());
        if left.is_none() {
            tracing::debug!(bytes = metadata.len(), "a file is too large to see whether it is the linked one");
        }
        self.reading = left.unwrap_or(self.reading);
        let checksum = left.and_then(|_| checksum(file, metadata.len()));
        self.checksums.insert(key, checksum);
        checksum
    }
}

fn checksum(file: &File, size: u64) -> Option<u32> {
    let mut hasher = crc32fast::Hasher::new();
    let mut buffer = vec![0; 1 << 20];
    let mut at = 0;
    while at < size {
        let wanted = buffer.len().min((size - at) as usize);
        let read = file.read_at(&mut buffer[..wanted], at).ok().filter(|read| *read > 0)?;
        hasher.update(&buffer[..read]);
        at += read as u64;
    }
    Some(hasher.finalize())
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    #[test]
    fn a_file_is_summed_once_and_within_the_budget() {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(b"123456789").unwrap();
        let metadata = file.metadata().unwrap();
        let mut work = Work::new(0);
        work.reading = 20;
        // The check value of CRC-32.
        assert_eq!(work.checksum(&file, &metadata), Some(0xcbf4_3926));
        assert_eq!(work.checksum(&file, &metadata), Some(0xcbf4_3926));
        assert_eq!(work.reading, 11);
        work.reading = 8;
        file.write_all(b"0").unwrap();
        assert_eq!(work.checksum(&file, &file.metadata().unwrap()), None);
        assert_eq!(work.reading, 8);
    }

    #[test]
    fn what_is_kept_is_bounded_and_few_are_told() {
        let mut work = Work::new(10);
        assert!(work.keep(6) && !work.keep(5) && work.keep(4) && !work.keep(1));
        (0..100).for_each(|_| work.leave_out("x", 1, true));
        assert_eq!(work.left_out().len(), MAX_TOLD);
    }
}
