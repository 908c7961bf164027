//! How much of what a process has mapped is in memory, or swapped out: from `/proc/PID/pagemap`
//! (Documentation/admin-guide/mm/pagemap.rst), page by page.

use std::{fs::File, io, ops::Range, os::unix::fs::FileExt as _};

use hashbrown::HashMap;

use crate::mapped::Owner;

const PAGE: u64 = 4096;
/// Bytes that are read of a page.
const ENTRY: u64 = 8;
/// Of an entry: the page is present, or swapped out.
const THERE: u64 = 3 << 62;
/// Of one that is: it is that of a file, or of shared memory.
const OF_FILE: u64 = 1 << 61;
/// Pages between two parts of a range that are told apart, and most of those.
const APART: u64 = 16;
const MOST_PARTS: usize = 1 << 10;
/// Pages that are looked at in one go, and of one process at most: 16 GiB.
const BATCH: u64 = 1 << 13;
const MOST: u64 = 1 << 22;

/// Bytes by whom they were mapped. `None` when they cannot be read, or are too many.
pub(super) fn by_owner(pagemap: &File, ranges: &[(Range<u64>, Owner)]) -> Option<HashMap<Owner, u64>> {
    let pages: u64 = ranges.iter().map(|(range, _)| (range.end - range.start) / PAGE).fold(0, u64::saturating_add);
    if pages > MOST {
        tracing::debug!(pages, "too many to be looked at one by one");
        return None;
    }
    let mut resident: HashMap<Owner, u64> = HashMap::new();
    // Of no use but to be written over: many ranges have one page.
    let mut buffer = vec![0; (BATCH * ENTRY) as usize];
    for (range, owner) in ranges {
        let bytes = of_range(pagemap, range, &mut buffer).ok()?;
        *resident.entry(*owner).or_default() += bytes;
    }
    Some(resident)
}

/// The parts of a range that have anonymous memory, and how many bytes. `None` when they cannot be read, or are too many.
pub(super) fn parts(pagemap: &File, range: &Range<u64>) -> Option<Vec<(Range<u64>, u64)>> {
    let mut parts: Vec<(Range<u64>, u64)> = Vec::new();
    let mut buffer = vec![0; (BATCH * ENTRY) as usize];
    let mut add = |page: u64, entry: u64| {
        if entry & THERE == 0 || entry & OF_FILE != 0 {
            return;
        }
        let start = page * PAGE;
        if let Some((last, bytes)) = parts.last_mut()
            && start - last.end <= APART * PAGE
        {
            (last.end, *bytes) = (start + PAGE, *bytes + PAGE);
        } else if parts.len() <= MOST_PARTS {
            parts.push((start..start + PAGE, PAGE));
        }
    };
    each(pagemap, range, &mut buffer, &mut add).ok()?;
    (parts.len() <= MOST_PARTS).then_some(parts)
}

/// Resident bytes of a range; `buffer` has room for [`BATCH`] entries.
fn of_range(pagemap: &File, range: &Range<u64>, buffer: &mut [u8]) -> io::Result<u64> {
    let mut there = 0;
    each(pagemap, range, buffer, |_, entry| there += u64::from(entry & THERE != 0))?;
    Ok(there * PAGE)
}

/// Has a look at the entry of each page of a range.
fn each(pagemap: &File, range: &Range<u64>, buffer: &mut [u8], mut look: impl FnMut(u64, u64)) -> io::Result<()> {
    let (mut page, last) = (range.start / PAGE, range.end / PAGE);
    while page < last {
        let part = &mut buffer[..((last - page).min(BATCH) * ENTRY) as usize];
        let read = pagemap.read_at(part, page * ENTRY)?;
        // Beyond what a process can have there is nothing.
        if read < ENTRY as usize {
            break;
        }
        for entry in part[..read].as_chunks::<8>().0 {
            look(page, u64::from_ne_bytes(*entry));
            page += 1;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{heap::StackIndex, profile::MappedKind};

    #[test]
    fn what_is_touched_is_there_and_what_is_not_is_not() {
        let pagemap = File::open("/proc/self/pagemap").unwrap();
        let owner =
            |stack| Owner { stack: StackIndex::from_raw(stack), kind: MappedKind::Anonymous, by_allocator: false };
        let pages = 3 * BATCH + 5;
        let mut memory = Vec::<u8>::with_capacity(((pages + 2) * PAGE) as usize);
        let start = (memory.as_ptr() as u64).next_multiple_of(PAGE);
        let skip = (start - memory.as_ptr() as u64) as usize;
        // Every other one of the first hundred: huge pages would make all of them there.
        memory.resize(skip, 0);
        let all = start..start + pages * PAGE;
        let mut buffer = vec![0xff; (BATCH * ENTRY) as usize];
        let mut of_range = |range: &Range<u64>| of_range(&pagemap, range, &mut buffer);
        let untouched = of_range(&all).unwrap();
        memory.resize(skip + (100 * PAGE) as usize, 1);
        let touched = by_owner(&pagemap, &[(all.clone(), owner(1)), (start..start + 100 * PAGE, owner(2))]).unwrap();
        assert_eq!(touched[&owner(2)], 100 * PAGE);
        assert!(touched[&owner(1)] >= 100 * PAGE && untouched < 100 * PAGE, "{untouched} {touched:?}");
        let parts = parts(&pagemap, &all).unwrap();
        let (first, bytes) = &parts[0];
        assert!(first.start == start && *bytes >= 100 * PAGE && first.end - start >= 100 * PAGE, "{parts:?}");
        assert_eq!(by_owner(&pagemap, &[(0..(MOST + 1) * PAGE, owner(1))]), None);
        assert_eq!(of_range(&(1 << 60..(1 << 60) + PAGE)).unwrap_or(0), 0);
    }
}
