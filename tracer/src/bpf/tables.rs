//! The maps that hold unwinding tables: what [`crate::unwind`] has compiled, where the BPF programs find it, and which file
//! has which.

use std::{
    fs::File,
    io,
    os::fd::{AsFd, AsRawFd as _},
    sync::atomic::AtomicU64,
    thread,
    time::Duration,
};

use aya::{
    Pod,
    maps::{Array, HashMap, Map, MapData, MapError},
    programs::ProgramFd,
};
use hashbrown::HashSet;
use tracer_ebpf::{
    rests,
    unwind::{Appeared, FileKey, FileTable, MAX_APPEARED, NUMBER_BUSY, changes, epoch, file_slot},
};

use super::{shared_array::SharedArray, sys};

#[repr(transparent)]
#[derive(Clone, Copy)]
pub(super) struct FileKeyValue(FileKey);

// SAFETY: integers only, no padding (the ABI asserts the size), any bytes are a value.
unsafe impl Pod for FileKeyValue {}

#[repr(transparent)]
#[derive(Clone, Copy)]
pub(super) struct FileTableValue(FileTable);

// SAFETY: integers only, no padding (the ABI asserts the size), any bytes are a value.
unsafe impl Pod for FileTableValue {}

#[repr(transparent)]
#[derive(Clone, Copy)]
struct AppearedValue([Appeared; MAX_APPEARED]);

// SAFETY: as above.
unsafe impl Pod for AppearedValue {}

/// How often a file is looked at that cannot be told at once, for the number that would be next is in use still; and how long is
/// waited where another thread changes tracer's own mappings: it may have lost its processor in the middle of that.
const LOOKS: usize = 500;
const PAUSE: Duration = Duration::from_millis(1);

/// The writing side of the unwinding tables. Belongs to one thread.
pub struct Tables {
    pub(super) pages: MapData,
    pub(super) rows: MapData,
    pub(super) rules: MapData,
    pub(super) files: Array<MapData, FileTableValue>,
    pub(super) numbers: HashMap<MapData, FileKeyValue, u32>,
    pub(super) epochs: Array<MapData, u64>,
    /// The same numbers, to be read.
    pub(super) counts: SharedArray<AtomicU64>,
    pub(super) rests: Array<MapData, u64>,
    /// The program that tells the number of a file.
    pub(super) identify: ProgramFd,
    /// How changes of mappings come to be known.
    pub(super) changes: u64,
    /// Changes of `files` so far.
    pub(super) files_changed: u64,
}

impl Tables {
    /// Replaces a shard of page entries ([`tracer_ebpf::unwind::PAGES_PER_SHARD`] of them).
    ///
    /// # Errors
    /// No such shard, or another number of entries.
    pub fn set_pages(&mut self, shard: u32, entries: &[u64]) -> io::Result<()> {
        set(&self.pages, shard, entries)
    }

    /// Replaces a shard of rows ([`tracer_ebpf::unwind::ROWS_PER_SHARD`] of them).
    ///
    /// # Errors
    /// No such shard, or another number of rows.
    pub fn set_rows(&mut self, shard: u32, rows: &[u32]) -> io::Result<()> {
        set(&self.rows, shard, rows)
    }

    /// Replaces the rules ([`tracer_ebpf::unwind::MAX_RULES`] of them).
    ///
    /// # Errors
    /// Another number of rules.
    pub fn set_rules(&mut self, rules: &[u64]) -> io::Result<()> {
        set(&self.rules, 0, rules)
    }

    /// Says what is known of the file with a number. To be done after its table was written.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn set_file(&mut self, number: u32, table: FileTable) -> io::Result<()> {
        let table = FileTable { number, ..table };
        // The programs may be reading: what it stands for is there before they can know.
        self.set(number, FileTable { state: 0, ..table })?;
        self.set(number, table)?;
        self.announce_change()
    }

    fn set(&mut self, number: u32, table: FileTable) -> io::Result<()> {
        self.files.set(file_slot(number), FileTableValue(table), 0).map_err(io::Error::other)
    }

    /// Has threads forget what they know of files.
    fn announce_change(&mut self) -> io::Result<()> {
        self.files_changed += 1;
        self.epochs.set(epoch::FILES, self.files_changed, 0).map_err(io::Error::other)
    }

    /// Which of these files some thread has met since this was last asked for them, by their numbers.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn take_met(&mut self, numbers: impl IntoIterator<Item = u32>) -> io::Result<HashSet<u32>> {
        let mut met = HashSet::new();
        for number in numbers {
            let FileTableValue(table) = self.files.get(&file_slot(number), 0).map_err(io::Error::other)?;
            if table.number == number && table.met != 0 {
                met.insert(number);
                self.set(number, FileTable { met: 0, ..table })?;
            }
        }
        self.announce_change()?;
        Ok(met)
    }

    /// Has the BPF programs forget these files: met again they are given other numbers. Waits until none of them reads what is
    /// known of one.
    ///
    /// # Errors
    /// When the kernel refuses: then some may be forgotten, and nothing of them may be given to others.
    pub fn forget_files(&mut self, numbers: &HashSet<u32>) -> io::Result<()> {
        let entries = self.numbers.iter().filter_map(Result::ok);
        let keys: Vec<FileKeyValue> =
            entries.filter(|(_, number)| numbers.contains(number)).map(|(key, _)| key).collect();
        for key in keys {
            match self.numbers.remove(&key) {
                Ok(()) | Err(MapError::KeyNotFound) => {}
                Err(error) => return Err(io::Error::other(error)),
            }
        }
        self.announce_change()?;
        sys::grace_period()?;
        for number in numbers {
            self.set(*number, FileTable::default())?;
        }
        Ok(())
    }

    /// The number by which the BPF programs know a file; `None` when there are too many.
    ///
    /// It is mapped for that, because nothing else leads to what the kernel knows it by (stat(2) says something else on
    /// several file systems), and never read through that mapping. Mapping it asks nobody, but on file systems that may not
    /// answer: those of a file must be local.
    ///
    /// # Errors
    /// It cannot be mapped, or the kernel refuses to run the program.
    pub fn number_of(&self, file: &File) -> io::Result<Option<u32>> {
        let length = 1;
        // SAFETY: a mapping of its own, which nobody reads or writes.
        let address = unsafe {
            libc::mmap(std::ptr::null_mut(), length, libc::PROT_READ, libc::MAP_PRIVATE, file.as_raw_fd(), 0)
        };
        if address == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let mut looks = (0..LOOKS).map(|_| match sys::run(self.identify.as_fd(), address as u64) {
            Ok(NUMBER_BUSY) => {
                thread::sleep(PAUSE);
                Ok(0)
            }
            found => found,
        });
        let found = looks.find(|found| !matches!(found, Ok(0))).unwrap_or(Ok(0));
        // SAFETY: the mapping from above.
        unsafe { libc::munmap(address, length) };
        found.map(|number| Some(number).filter(|number| *number != 0))
    }

    /// Says how many bytes of the rests of stacks are done with so far.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn set_rests_done(&mut self, bytes: u64) -> io::Result<()> {
        self.rests.set(rests::DONE, bytes, 0).map_err(io::Error::other)
    }

    /// Changes of the mappings of a process, and of others, so far; `None` where they are not counted.
    pub fn changes_of(&self, pid: u32) -> Option<u64> {
        self.counts.get(pid % epoch::PROCESSES).filter(|_| self.changes == changes::COUNTED)
    }
}

/// How often mappings have changed that may be code or become a file's.
pub struct CodeChanges {
    counts: SharedArray<AtomicU64>,
    appeared: Array<MapData, AppearedValue>,
    are_counted: bool,
}

impl CodeChanges {
    /// As the BPF side counts them in `counts` and tells the latest in `appeared`; `changes`: how changes come to be known.
    pub(super) fn new(counts: SharedArray<AtomicU64>, appeared: Map, changes: u64) -> Result<Self, MapError> {
        Ok(Self { counts, appeared: appeared.try_into()?, are_counted: changes == changes::COUNTED })
    }

    /// How many of a process, and of others, have appeared so far; `None` where they are not counted.
    pub fn of(&self, pid: u32) -> Option<u64> {
        self.counts.get(epoch::CODE + pid % epoch::PROCESSES).filter(|_| self.are_counted)
    }

    /// The latest of them, in no order: some may be overwritten already, which tells their counts.
    pub fn latest(&self, pid: u32) -> Vec<Appeared> {
        self.appeared.get(&(pid % epoch::PROCESSES), 0).map_or(Vec::new(), |AppearedValue(latest)| latest.to_vec())
    }
}

fn set<V: sys::MapValue + ?Sized>(map: &MapData, key: u32, value: &V) -> io::Result<()> {
    let value_size = map.info().map_err(io::Error::other)?.value_size();
    sys::update(map.fd().as_fd(), value_size, key, value)
}
