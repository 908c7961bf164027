//! How much of what a process has mapped is in memory, or swapped out: from `/proc/PID/pagemap`
//! (Documentation/admin-guide/mm/pagemap.rst), page by page. Where memory is only read the kernel has its page of zeros, which takes none and is
//! told by its place alone, which few may know: so no mapping has more than `smaps` says.

use std::{fs::File, io, ops::Range, os::unix::fs::FileExt as _};

use hashbrown::HashMap;

use super::split::split;
use crate::{
    mapped::{OwnPart, Owner},
    profile::MappedKind,
    space::memory_map::Region,
};

const PAGE: u64 = 4096;
/// Bytes that are read of a page.
const ENTRY: u64 = 8;
/// Of an entry: the page is present.
const PRESENT: u64 = 1 << 63;
/// Of an entry: the page is present, or swapped out.
const THERE: u64 = 3 << 62;
/// Of one that is: it is that of a file, or of shared memory.
const OF_FILE: u64 = 1 << 61;
/// It is mapped nowhere else.
const EXCLUSIVE: u64 = 1 << 56;
/// Pages between two parts of a range that are told apart, and most of those.
const APART: u64 = 16;
const MOST_PARTS: usize = 1 << 10;
/// Pages that are looked at in one go, and of one process at most: 16 GiB.
const BATCH: u64 = 1 << 13;
const MOST: u64 = 1 << 22;

/// Bytes that are resident of what a process has mapped, by whom.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Resident {
    /// What may be used.
    pub usable: HashMap<Owner, u64>,
    /// What may not be used, and has memory all the same. Nothing where that is not known.
    pub reserved: HashMap<Owner, u64>,
    /// Of what may be used, what no allocator has mapped, by the region that it lies in.
    pub(super) by_region: HashMap<usize, u64>,
}

impl Resident {
    /// Of what a process has mapped, which has anonymous memory in `regions`, both by address. `None` when it cannot be read, or is too much.
    pub(super) fn of(pagemap: &File, own: &[OwnPart], regions: &[Region]) -> Option<Self> {
        let pieces =
            |reserved| own.iter().filter(move |part| part.reserved == reserved).flat_map(|part| cut(part, regions));
        let usable = in_memory(pagemap, &pieces(false).collect::<Vec<_>>(), regions)?;
        let of_program = usable.iter().filter(|((owner, _), _)| !owner.by_allocator);
        let mut by_region = HashMap::new();
        for ((_, region), bytes) in of_program {
            region.iter().for_each(|region| *by_region.entry(*region).or_default() += bytes);
        }
        // They may be very many, and hardly any has memory.
        let reserved: Vec<Piece> = pieces(true).filter(|piece| piece.region.is_some()).collect();
        let reserved = in_memory(pagemap, &reserved, regions).unwrap_or_default();
        Some(Self { usable: by_owner(usable), reserved: by_owner(reserved), by_region })
    }
}

/// What somebody has mapped of a region, by its index, or beside them all.
struct Piece {
    range: Range<u64>,
    owner: Owner,
    region: Option<usize>,
}

/// What a process has mapped, by the regions that it lies in; without those that have no memory.
fn cut<'a>(part: &'a OwnPart, regions: &'a [Region]) -> impl Iterator<Item = Piece> + 'a {
    let owner = part.owner;
    // What is shared is in no region.
    let regions = if owner.kind == MappedKind::Shared { &[] } else { regions };
    let parts = split(&part.range, regions).into_iter();
    let may_have_memory = |region: Option<usize>| region.is_none_or(|region| regions[region].anonymous > 0);
    parts.filter(move |(_, region)| may_have_memory(*region)).map(move |(range, region)| Piece { range, owner, region })
}

/// Bytes by whom they were mapped, and the region that they lie in.
type InMemory = HashMap<(Owner, Option<usize>), u64>;

/// Bytes by whom they were mapped.
fn by_owner(bytes: InMemory) -> HashMap<Owner, u64> {
    let mut by_owner = HashMap::new();
    bytes.into_iter().for_each(|((owner, _), bytes)| *by_owner.entry(owner).or_default() += bytes);
    by_owner
}

/// How much of these pieces there is. `None` when they cannot be read, or are too many.
fn in_memory(pagemap: &File, pieces: &[Piece], regions: &[Region]) -> Option<InMemory> {
    let pages: u64 =
        pieces.iter().map(|piece| (piece.range.end - piece.range.start) / PAGE).fold(0, u64::saturating_add);
    if pages > MOST {
        tracing::debug!(pages, "too many to be looked at one by one");
        return None;
    }
    // Of no use but to be written over: many ranges have one page.
    let mut buffer = vec![0; (BATCH * ENTRY) as usize];
    let mut by_region: HashMap<usize, Pages> = HashMap::new();
    let mut there: Vec<Pages> = Vec::with_capacity(pieces.len());
    for piece in pieces {
        let pages = Pages::of(pagemap, &piece.range, &mut buffer)?;
        if let Some(region) = piece.region {
            by_region.entry(region).or_default().add(&pages);
        }
        there.push(pages);
    }
    // How much of what is doubtful there can be memory.
    let mut room: HashMap<usize, u64> = HashMap::new();
    for (index, pages) in &by_region {
        let Some(region) = regions.get(*index) else { continue };
        let is_small = (region.range.end - region.range.start) / PAGE <= MOST;
        if is_small && pages.own + pages.doubtful > region.anonymous {
            let all = Pages::of(pagemap, &region.range, &mut buffer)?;
            room.insert(*index, region.anonymous.saturating_sub(all.own).min(pages.doubtful));
        }
    }
    let mut resident = InMemory::new();
    for (piece, pages) in pieces.iter().zip(there) {
        let room = piece.region.and_then(|region| Some((room.get(&region)?, by_region.get(&region)?)));
        let doubtful = match room {
            // Which of them are pages of zeros nobody knows.
            Some((room, all)) if all.doubtful > 0 => {
                (u128::from(pages.doubtful) * u128::from(*room) / u128::from(all.doubtful)) as u64 / PAGE * PAGE
            }
            _ => pages.doubtful,
        };
        *resident.entry((piece.owner, piece.region)).or_default() += pages.own + doubtful;
    }
    Some(resident)
}

/// Bytes in memory, or swapped out.
#[derive(Clone, Copy, Default)]
struct Pages {
    own: u64,
    /// By pages that are in several places: that of zeros, or what a process shares with a child.
    doubtful: u64,
}

impl Pages {
    /// Those of a range; `None` when they cannot be read.
    fn of(pagemap: &File, range: &Range<u64>, buffer: &mut [u8]) -> Option<Self> {
        let mut pages = Self::default();
        // Huge pages of zeros are marked as those of files are.
        let look = |_, entry: u64| match entry & (PRESENT | EXCLUSIVE) {
            PRESENT => pages.doubtful += PAGE,
            _ => pages.own += if is_there(entry) { PAGE } else { 0 },
        };
        each(pagemap, range, buffer, look).ok()?;
        Some(pages)
    }

    fn add(&mut self, other: &Self) {
        (self.own, self.doubtful) = (self.own + other.own, self.doubtful + other.doubtful);
    }
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

/// Whether there is a page, in memory or swapped out.
fn is_there(entry: u64) -> bool {
    entry & THERE != 0
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
        let piece = |range: &Range<u64>, stack| Piece { range: range.clone(), owner: owner(stack), region: None };
        let pages = 3 * BATCH + 5;
        let mut memory = Vec::<u8>::with_capacity(((pages + 2) * PAGE) as usize);
        let start = (memory.as_ptr() as u64).next_multiple_of(PAGE);
        let skip = (start - memory.as_ptr() as u64) as usize;
        // Every other one of the first hundred: huge pages would make all of them there.
        memory.resize(skip, 0);
        let all = start..start + pages * PAGE;
        let of_range = |range: &Range<u64>| -> Option<u64> {
            Some(in_memory(&pagemap, &[piece(range, 1)], &[])?.into_values().sum())
        };
        let untouched = of_range(&all).unwrap();
        memory.resize(skip + (100 * PAGE) as usize, 1);
        let touched = in_memory(&pagemap, &[piece(&all, 1), piece(&(start..start + 100 * PAGE), 2)], &[]).unwrap();
        assert_eq!(touched[&(owner(2), None)], 100 * PAGE);
        assert!(touched[&(owner(1), None)] >= 100 * PAGE && untouched < 100 * PAGE, "{untouched} {touched:?}");
        let parts = parts(&pagemap, &all).unwrap();
        let (first, bytes) = &parts[0];
        assert!(first.start == start && *bytes >= 100 * PAGE && first.end - start >= 100 * PAGE, "{parts:?}");
        assert_eq!(in_memory(&pagemap, &[piece(&(0..(MOST + 1) * PAGE), 1)], &[]), None);
        assert_eq!(of_range(&(1 << 60..(1 << 60) + PAGE)).unwrap_or(0), 0);
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
        let pieces = own[1..].iter().flat_map(|part| cut(part, &regions)).filter(|piece| piece.region.is_some());
        let parts: Vec<_> = pieces.map(|piece| piece.range).collect();
        assert_eq!(parts, [at(5)..at(10), at(12)..at(20), at(100)..at(103)]);
        let resident = Resident::of(&File::open("/proc/self/pagemap").unwrap(), &own, &regions).unwrap();
        assert_eq!((resident.usable[&owner], resident.reserved[&owner]), (5 * PAGE, 16 * PAGE));
    }

    /// Read, and not written to, it has the page of zeros, or a huge one of those.
    #[test]
    fn no_mapping_has_more_than_the_kernel_says() {
        // Larger than what the C library has ever kept for others (`DEFAULT_MMAP_THRESHOLD_MAX`): a mapping of its own.
        let read = std::hint::black_box(vec![0u8; 40 << 20]);
        let start = (read.as_ptr() as u64).next_multiple_of(PAGE);
        assert_eq!(read.iter().step_by(PAGE as usize).map(|byte| u64::from(*byte)).sum::<u64>(), 0);
        let at = |page: u64| start + page * PAGE;
        let region = |range: Range<u64>, anonymous| Region { range, name: String::new(), anonymous, usable: true };
        let part = |range, stack, kind| {
            let owner = Owner { stack: StackIndex::from_raw(stack), kind, by_allocator: false };
            OwnPart { range, owner, reserved: false, is_new: true }
        };
        let own = [
            part(at(0)..at(10), 1, MappedKind::Anonymous),
            part(at(10)..at(20), 2, MappedKind::Anonymous),
            part(at(20)..at(30), 3, MappedKind::Shared),
            part(at(30)..at(40), 4, MappedKind::Anonymous),
        ];
        // Ten pages of the first twenty are none of zeros; of what is shared, and of what has come since, nothing is said; and all of the last.
        let regions = [region(at(0)..at(20), 10 * PAGE), region(at(20)..at(30), 0), region(at(35)..at(40), 0)];
        let resident = Resident::of(&File::open("/proc/self/pagemap").unwrap(), &own, &regions).unwrap();
        assert_eq!([0, 1, 2].map(|at| resident.by_region.get(&at).copied()), [Some(10 * PAGE), None, None]);
        let of = |index: usize| resident.usable.get(&own[index].owner).copied();
        assert_eq!([of(0), of(1), of(2), of(3)], [5, 5, 10, 5].map(|pages| Some(pages * PAGE)));
    }
}
