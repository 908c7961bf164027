//! What goroutines wait on: channels, and from Go 1.26 on semaphores, which are in mutexes, wait groups and conditions.
//!
//! A goroutine that waits for channels has a list of `sudog`s, one for each (`select` may have many). One that waits for a
//! semaphore has one, whose links belong to the semaphore; before Go 1.26 the goroutine had not even that.

use std::io;

use hashbrown::HashSet;

use super::{ReadMemory, bytes::u64_at, layout::Sudog};
use crate::{process::memory::Span, profile::WaitsOn};

/// Most channels of one `select` that are looked at.
const MAX_CHANNELS: usize = 256;
/// Most objects that are told apart in all groups together: 64 MiB of them.
pub(super) const MAX_KEPT: usize = 1 << 22;

/// Addresses of the objects that goroutines wait on, each given by the address of its descriptor and of its first `sudog`,
/// which may be 0. `None` for one whose list is not right: it has changed meanwhile.
pub(super) fn objects(
    sudog: &Sudog,
    goroutines: &[(u64, u64)],
    memory: &ReadMemory<'_>,
) -> io::Result<Vec<Option<Vec<u64>>>> {
    let mut found = vec![Some(Vec::new()); goroutines.len()];
    let first = |(index, (_, first)): (usize, &(u64, u64))| (*first != 0).then_some((index, *first));
    let mut open: Vec<(usize, u64)> = goroutines.iter().enumerate().filter_map(first).collect();
    for _ in 0..MAX_CHANNELS {
        if open.is_empty() {
            break;
        }
        let spans: Vec<Span> = open.iter().map(|(_, addr)| Span { addr: *addr, len: sudog.size }).collect();
        let mut bytes = vec![0; sudog.size * spans.len()];
        let readable = memory(&spans, &mut bytes)?;
        let mut next = Vec::new();
        for (((index, _), bytes), readable) in open.iter().zip(bytes.chunks_exact(sudog.size)).zip(readable) {
            match decode(sudog, bytes).filter(|link| readable && link.goroutine == goroutines[*index].0) {
                Some(link) => {
                    found[*index].get_or_insert_default().push(link.object);
                    next.extend(Some((*index, link.next)).filter(|(_, next)| *next != 0));
                }
                None => found[*index] = None,
            }
        }
        open = next;
    }
    Ok(found)
}

struct Link {
    goroutine: u64,
    object: u64,
    /// The next one of the goroutine, or 0.
    next: u64,
}

fn decode(sudog: &Sudog, bytes: &[u8]) -> Option<Link> {
    let goroutine = u64_at(bytes, sudog.g)?;
    let (object, next) = match u64_at(bytes, sudog.channel)? {
        0 => (u64_at(bytes, sudog.semaphore?)?, 0),
        channel => (channel, u64_at(bytes, sudog.next)?),
    };
    (object != 0).then_some(Link { goroutine, object, next })
}

/// The different objects that the goroutines of a group wait on.
#[derive(Debug, Default)]
pub(super) struct Objects {
    known: HashSet<u64>,
    /// Whether there may be others.
    more: bool,
}

impl Objects {
    /// Adds those of one goroutine, none when they are not known; new ones only if there is `room`. How many were new.
    pub(super) fn add(&mut self, objects: &[u64], room: bool) -> usize {
        let before = self.known.len();
        for object in objects {
            match room {
                true => drop(self.known.insert(*object)),
                false => self.more |= !self.known.contains(object),
            }
        }
        self.more |= objects.is_empty();
        self.known.len() - before
    }

    pub(super) fn waits_on(&self) -> Option<WaitsOn> {
        let count = Some(self.known.len() as u64).filter(|count| *count > 0 && !self.more)?;
        match self.known.iter().next() {
            Some(only) if count == 1 => Some(WaitsOn::One(*only)),
            _ => Some(WaitsOn::Several(count)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SUDOG: Sudog = Sudog { g: 0, channel: 24, semaphore: Some(8), next: 16, size: 32 };
    const BASE: u64 = 0x1000;

    /// A `sudog` of goroutine, semaphore, next and channel.
    type Words = [u64; 4];

    /// What goroutines wait on when memory at [`BASE`] holds `sudogs`, and nothing else is mapped.
    fn found(layout: &Sudog, sudogs: &[Words], goroutines: &[(u64, u64)]) -> Vec<Option<Vec<u64>>> {
        let bytes: Vec<u8> = sudogs.iter().flatten().flat_map(|word| word.to_le_bytes()).collect();
        let memory = |spans: &[Span], buffer: &mut [u8]| {
            let mut at = 0;
            let read = spans.iter().map(|span| {
                let into = &mut buffer[at..at + span.len];
                at += span.len;
                let from = span.addr.checked_sub(BASE).and_then(|at| bytes.get(at as usize..at as usize + span.len));
                from.map(|from| into.copy_from_slice(from)).is_some()
            });
            Ok(read.collect())
        };
        objects(layout, goroutines, &memory).unwrap()
    }

    fn at(index: u64) -> u64 {
        BASE + 32 * index
    }

    #[test]
    fn channels_are_all_followed_and_links_of_semaphores_are_not() {
        let sudogs = [[7, 0, at(1), 0xc1], [7, 0, at(2), 0xc2], [7, 0, 0, 0xc1], [8, 0x5e, at(0), 0]];
        let goroutines = [(7, at(0)), (8, at(3)), (9, 0)];
        assert_eq!(
            found(&SUDOG, &sudogs, &goroutines),
            [Some(vec![0xc1, 0xc2, 0xc1]), Some(vec![0x5e]), Some(Vec::new())]
        );
    }

    #[test]
    fn lists_that_are_not_right_tell_nothing() {
        let sudogs = [[7, 0, at(1), 0xc1], [8, 0, 0, 0xc2], [9, 0, 0, 0], [10, 0, 0xbad0, 0xc3]];
        let goroutines = [(7, at(0)), (9, at(2)), (10, at(3)), (11, 0xbad0)];
        assert_eq!(found(&SUDOG, &sudogs, &goroutines), [None, None, None, None]);
        // Before Go 1.26 an element is no semaphore.
        let old = Sudog { semaphore: None, ..SUDOG };
        assert_eq!(found(&old, &[[7, 0x5e, 0, 0]], &[(7, at(0))]), [None]);
    }

    #[test]
    fn a_list_without_end_is_cut() {
        let found = found(&SUDOG, &[[7, 0, at(0), 0xc1]], &[(7, at(0))]);
        assert_eq!(found[0].as_ref().map(Vec::len), Some(MAX_CHANNELS));
    }

    #[test]
    fn different_objects_are_counted() {
        let waits_on = |goroutines: &[&[u64]]| {
            let mut objects = Objects::default();
            for of_one in goroutines {
                objects.add(of_one, true);
            }
            objects.waits_on()
        };
        assert_eq!(waits_on(&[&[5], &[5]]), Some(WaitsOn::One(5)));
        assert_eq!(waits_on(&[&[5, 6], &[5, 6], &[7]]), Some(WaitsOn::Several(3)));
        // Others that are not known make all uncertain.
        assert_eq!(waits_on(&[&[5], &[]]), None);
        assert_eq!(waits_on(&[]), None);
    }

    #[test]
    fn what_there_is_no_room_for_is_not_told_as_known() {
        let mut objects = Objects::default();
        assert_eq!(objects.add(&[1, 2, 1], true), 2);
        assert_eq!(objects.add(&[2], false), 0);
        assert_eq!(objects.waits_on(), Some(WaitsOn::Several(2)));
        assert_eq!(objects.add(&[3], false), 0);
        assert_eq!(objects.waits_on(), None);
    }
}
