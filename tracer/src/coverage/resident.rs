//! How much of what a process has mapped is in memory, or swapped out: from `/proc/PID/pagemap`
//! (Documentation/admin-guide/mm/pagemap.rst), page by page.

use std::{fs::File, io, ops::Range, os::unix::fs::FileExt as _, sync::LazyLock};

use hashbrown::HashMap;

use crate::{
    mapped::{OwnPart, Owner},
    profile::MappedKind,
    space::memory_map::Region,
};

const PAGE: u64 = 4096;
/// Bytes that are read of a page.
const ENTRY: u64 = 8;
/// Of an entry: the page is present, or swapped out.
const THERE: u64 = 3 << 62;
const PRESENT: u64 = 1 << 63;
/// Of one that is: it is that of a file, or of shared memory.
const OF_FILE: u64 = 1 << 61;
/// It is mapped nowhere else.
const EXCLUSIVE: u64 = 1 << 56;
/// Where it is in memory, in pages; 0 for who may not know.
const FRAME: u64 = (1 << 55) - 1;
/// Pages of a huge page.
const HUGE: u64 = 512;
/// Pages between two parts of a range that are told apart, and most of those.
const APART: u64 = 16;
const MOST_PARTS: usize = 1 << 10;
/// Pages that are looked at in one go, and of one process at most: 16 GiB.
const BATCH: u64 = 1 << 13;
const MOST: u64 = 1 << 22;

/// The frame of the page of zeros that the kernel maps where memory is only read, which takes none; `None` where that may not be known.
static ZERO_PAGE: LazyLock<Option<u64>> = LazyLock::new(find_zero_page);

/// Bytes that are resident of what a process has mapped, by whom.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Resident {
    /// What may be used.
    pub usable: HashMap<Owner, u64>,
    /// What may not be used, and has memory all the same. Nothing where that is not known.
    pub reserved: HashMap<Owner, u64>,
}

impl Resident {
    /// Of what a process has mapped, which has anonymous memory in `regions`, both by address. `None` when it cannot be read, or is too much.
    pub(super) fn of(pagemap: &File, own: &[OwnPart], regions: &[Region]) -> Option<Self> {
        let usable = own.iter().filter(|part| !part.reserved).map(|part| (part.range.clone(), part.owner));
        let usable = by_owner(pagemap, &usable.collect::<Vec<_>>())?;
        let reserved = by_owner(pagemap, &reserved_with_memory(own, regions)).unwrap_or_default();
        Some(Self { usable, reserved })
    }
}

/// What of reserved addresses may have memory: they may be very many, and hardly any has.
fn reserved_with_memory(own: &[OwnPart], regions: &[Region]) -> Vec<(Range<u64>, Owner)> {
    let with_memory = |part: &OwnPart| {
        let (range, owner) = (part.range.clone(), part.owner);
        let first = regions.partition_point(|region| region.range.end <= range.start);
        let hit = regions[first..].iter().take_while(move |region| region.range.start < range.end);
        let range = part.range.clone();
        hit.filter(|region| region.anonymous > 0)
            .map(move |region| (region.range.start.max(range.start)..region.range.end.min(range.end), owner))
    };
    own.iter().filter(|part| part.reserved).flat_map(with_memory).collect()
}

/// Bytes by whom they were mapped. `None` when they cannot be read, or are too many.
pub(super) fn by_owner(pagemap: &File, ranges: &[(Range<u64>, Owner)]) -> Option<HashMap<Owner, u64>> {
    let pages: u64 = ranges.iter().map(|(range, _)| (range.end - range.start) / PAGE).fold(0, u64::saturating_add);
    if pages > MOST {
        tracing::debug!(pages, "too many to be looked at one by one");
        return None;
    }
    let mut resident: HashMap<Owner, u64> = HashMap::new();
    let mut huge = HugePages::default();
    // Of no use but to be written over: many ranges have one page.
    let mut buffer = vec![0; (BATCH * ENTRY) as usize];
    for (range, owner) in ranges {
        let mut bytes = 0;
        let add = |page, entry| {
            bytes += if is_there(entry) { PAGE } else { 0 };
            huge.look(page, entry, *owner);
        };
        each(pagemap, range, &mut buffer, add).ok()?;
        *resident.entry(*owner).or_default() += bytes;
    }
    for (owner, bytes) in huge.of_zeros() {
        resident.entry(owner).and_modify(|resident| *resident = resident.saturating_sub(bytes));
    }
    Some(resident)
}

/// The parts of a range that have anonymous memory, and how many bytes. `None` when they cannot be read, or are too many.
pub(super) fn parts(pagemap: &File, range: &Range<u64>) -> Option<Vec<(Range<u64>, u64)>> {
    let mut parts: Vec<(Range<u64>, u64)> = Vec::new();
    let mut buffer = vec![0; (BATCH * ENTRY) as usize];
    let mut add = |page: u64, entry: u64| {
        if !is_there(entry) || entry & OF_FILE != 0 {
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

/// Whether there is a page, in memory or swapped out, and not that of zeros.
fn is_there(entry: u64) -> bool {
    entry & THERE != 0 && (entry & PRESENT == 0 || *ZERO_PAGE != Some(entry & FRAME))
}

/// Huge pages of private memory that others map, too. The kernel has one of zeros, which is known by being in several places of a process:
/// no other one is.
#[derive(Default)]
struct HugePages {
    /// By where they are in memory: in how many places, and of whom those are.
    known: HashMap<u64, (u64, HashMap<Owner, u64>)>,
    /// The one that pages are looked at of: where it is, how many of them have been, and whose it is.
    current: Option<(u64, u64, Owner)>,
}

impl HugePages {
    /// Looks at the next page, by its number and its entry.
    fn look(&mut self, page: u64, entry: u64, owner: Owner) {
        let frame = entry & FRAME;
        let may_be =
            entry & PRESENT != 0 && entry & EXCLUSIVE == 0 && frame != 0 && owner.kind == MappedKind::Anonymous;
        let begins = page.is_multiple_of(HUGE) && frame.is_multiple_of(HUGE);
        self.current = match self.current.take() {
            _ if !may_be => None,
            _ if begins => Some((frame, 1, owner)),
            Some((first, looked, whose)) if whose == owner && frame == first + looked => {
                Some((first, looked + 1, owner))
            }
            _ => None,
        };
        if let Some((first, HUGE, _)) = self.current.take_if(|(_, looked, _)| *looked == HUGE) {
            let (places, owners) = self.known.entry(first).or_default();
            *places += 1;
            *owners.entry(owner).or_default() += HUGE * PAGE;
        }
    }

    /// Bytes of the one of zeros, and in whose memory.
    fn of_zeros(self) -> impl Iterator<Item = (Owner, u64)> {
        self.known.into_values().filter(|(places, _)| *places > 1).flat_map(|(_, owners)| owners)
    }
}

/// Looks where the kernel has the page of zeros: in memory of this process that is read and was never written to.
fn find_zero_page() -> Option<u64> {
    // So much comes from the kernel for this alone, and is not aligned to huge pages at its end.
    const SIZE: usize = (64 << 20) + (64 << 10);
    let memory = vec![0u8; SIZE];
    let page = memory.as_ptr() as u64 / PAGE + (SIZE as u64 / PAGE) - 4;
    let memory = std::hint::black_box(memory);
    let offset = (page * PAGE - memory.as_ptr() as u64) as usize;
    std::hint::black_box(memory[offset] + memory[offset + PAGE as usize]);
    let pagemap = crate::files::root::ProcessDirectory::open(std::process::id()).ok()?.file("pagemap").ok()?;
    let mut entries = Vec::new();
    let mut buffer = vec![0; 2 * ENTRY as usize];
    each(&pagemap, &(page * PAGE..(page + 2) * PAGE), &mut buffer, |_, entry| entries.push(entry)).ok()?;
    // The same page in two places.
    let [one, two] = *entries else { return None };
    let is_shared = |entry: u64| entry & PRESENT != 0 && entry & EXCLUSIVE == 0 && entry & FRAME != 0;
    (is_shared(one) && is_shared(two) && one & FRAME == two & FRAME).then_some(one & FRAME)
}

/// Has a look at the entry of each page of a range; `buffer` has room for as many as are read at a time, [`BATCH`] at most.
fn each(pagemap: &File, range: &Range<u64>, buffer: &mut [u8], mut look: impl FnMut(u64, u64)) -> io::Result<()> {
    let (mut page, last) = (range.start / PAGE, range.end / PAGE);
    let batch = buffer.len() as u64 / ENTRY;
    while page < last {
        let part = &mut buffer[..((last - page).min(batch) * ENTRY) as usize];
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
        let of_range = |range: &Range<u64>| -> Option<u64> {
            Some(by_owner(&pagemap, &[(range.clone(), owner(1))])?.into_values().sum())
        };
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

    #[test]
    fn what_is_only_read_takes_no_memory() {
        let owner = Owner { stack: StackIndex::from_raw(1), kind: MappedKind::Anonymous, by_allocator: false };
        let memory = std::hint::black_box(vec![0u8; 80 << 20]);
        // Huge pages are there as a whole, or not at all.
        let start = (memory.as_ptr() as u64 + PAGE).next_multiple_of(HUGE * PAGE);
        let range = start..start + (64 << 20);
        let sum: u64 = memory.iter().step_by(PAGE as usize).map(|byte| u64::from(*byte)).sum();
        let pagemap = File::open("/proc/self/pagemap").unwrap();
        let mut entries = Vec::new();
        each(&pagemap, &range, &mut vec![0; 4096], |_, entry| entries.push(entry)).unwrap();
        assert!(sum == 0 && entries.iter().all(|entry| entry & THERE != 0), "all of it was read");
        // Who may not know where pages are takes them for memory.
        let may_know = entries.iter().any(|entry| entry & FRAME != 0);
        let expected = if may_know { 0 } else { 64 << 20 };
        assert_eq!(by_owner(&pagemap, &[(range.clone(), owner)]), Some([(owner, expected)].into_iter().collect()));
        let is_one = entries.iter().all(|entry| entry & FRAME == entries[0] & FRAME);
        assert!(!may_know || !is_one || parts(&pagemap, &range).unwrap().is_empty());
    }

    #[test]
    fn what_is_reserved_and_has_memory_is_told_apart() {
        let owner = Owner { stack: StackIndex::from_raw(1), kind: MappedKind::Anonymous, by_allocator: false };
        let memory = std::hint::black_box(vec![1u8; 8 << 20]);
        let start = (memory.as_ptr() as u64).next_multiple_of(PAGE);
        let part = |range: Range<u64>, reserved| OwnPart { range, owner, reserved, is_new: true };
        let region = |range: Range<u64>, anonymous| Region { range, name: String::new(), anonymous, usable: false };
        let at = |page: u64| start + page * PAGE;
        // Of addresses that are very many only those are looked at where memory is.
        let own = [part(at(0)..at(5), false), part(at(5)..at(20), true), part(at(100)..at(1 << 32), true)];
        let regions = [region(at(0)..at(10), 1), region(at(10)..at(12), 0), region(at(12)..at(103), 1)];
        let parts: Vec<_> = reserved_with_memory(&own, &regions).into_iter().map(|(range, _)| range).collect();
        assert_eq!(parts, [at(5)..at(10), at(12)..at(20), at(100)..at(103)]);
        let resident = Resident::of(&File::open("/proc/self/pagemap").unwrap(), &own, &regions).unwrap();
        assert_eq!((resident.usable[&owner], resident.reserved[&owner]), (5 * PAGE, 16 * PAGE));
    }

    #[test]
    fn a_huge_page_in_several_places_is_that_of_zeros() {
        let owner = |stack, kind| Owner { stack: StackIndex::from_raw(stack), kind, by_allocator: false };
        let (one, other) = (owner(1, MappedKind::Anonymous), owner(2, MappedKind::Anonymous));
        let of_zeros = |places: &[(u64, u64, u64, Owner)]| {
            let mut huge = HugePages::default();
            for (page, first, flags, owner) in places {
                (0..HUGE).for_each(|at| huge.look(page + at, PRESENT | flags | (first + at), *owner));
            }
            let mut all: Vec<_> = huge.of_zeros().collect();
            all.sort_unstable();
            all
        };
        let (zeros, size) = (512 * 7, HUGE * PAGE);
        assert_eq!(
            of_zeros(&[(0, zeros, 0, one), (1024, zeros, OF_FILE, one), (2048, zeros, 0, other)]),
            [(one, 2 * size), (other, size)]
        );
        assert_eq!(of_zeros(&[(0, zeros, 0, one), (1024, zeros + 512, 0, one)]), [], "each in one place");
        assert_eq!(of_zeros(&[(0, zeros, EXCLUSIVE, one), (1024, zeros, EXCLUSIVE, one)]), []);
        assert_eq!(of_zeros(&[(7, zeros + 7, 0, one), (1024, zeros, 0, one)]), [], "not all of it");
        let shared = owner(3, MappedKind::Shared);
        assert_eq!(of_zeros(&[(0, zeros, 0, shared), (1024, zeros, 0, shared)]), [], "mapped twice");
    }
}
