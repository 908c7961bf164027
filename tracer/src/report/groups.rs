//! Many processes in few lines: what those of one program, cgroup or container hold together.

use std::{borrow::Cow, cmp::Reverse, collections::BTreeSet};

use hashbrown::HashMap;

use super::{
    escape::visible,
    index::{Index, Program},
    name,
    options::By,
};
use crate::profile::{Container, Process, Profile, Values};

/// What processes have in common that are put together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Key<'a> {
    /// The program.
    Program(Program<'a>),
    /// Nothing: the number of the one process.
    Process(u32),
    /// The path of the cgroup; `None` when it is not known.
    Cgroup(Option<&'a str>),
    /// The container.
    Container(&'a Container),
    /// That they are in no container.
    NoContainer,
    /// That it is not known whether they are in one.
    UnknownContainer,
}

impl<'a> Key<'a> {
    /// What a process is put together with others by.
    pub(super) fn of(process: &'a Process, index: &Index<'a>, by: By) -> Self {
        match (by, &process.place.container) {
            (By::Program, _) => Self::Program(index.program(process)),
            (By::Process, _) => Self::Process(process.image),
            (By::Cgroup, _) => Self::Cgroup(process.place.cgroup.as_deref()),
            (By::Container, Some(container)) => Self::Container(container),
            (By::Container, None) if process.place.cgroup.is_some() => Self::NoContainer,
            (By::Container, None) => Self::UnknownContainer,
        }
    }

    /// The name of a cgroup or container, safe to show; `None` of what is told by its program.
    pub(super) fn place(&self) -> Option<Cow<'a, str>> {
        Some(match self {
            Self::Program(_) | Self::Process(_) => return None,
            Self::Cgroup(path) => path.map_or(Cow::Borrowed("[unknown cgroup]"), visible),
            Self::Container(container) => Cow::Owned(name::container(container)),
            Self::NoContainer => Cow::Borrowed("[no container]"),
            Self::UnknownContainer => Cow::Borrowed("[unknown container]"),
        })
    }
}

/// Processes that are put together.
#[derive(Debug)]
pub(super) struct Group<'a> {
    /// What they have in common; of ended processes beside others that are told one by one the program.
    pub(super) key: Key<'a>,
    /// The first of them.
    pub(super) first: &'a Process,
    /// The programs that they are of.
    pub(super) programs: BTreeSet<Program<'a>>,
    /// The numbers of their address spaces.
    pub(super) images: Vec<u32>,
    /// How many were alive at the end.
    pub(super) live: u64,
    /// How many have ended.
    pub(super) ended: u64,
    /// What they hold together.
    pub(super) values: Values,
    /// Bytes and blocks that those held which have ended, where others live on.
    pub(super) at_end: (u64, u64),
    /// Memory of those that were alive at the end.
    pub(super) memory: MemorySum,
}

/// What the kernel says of the memory of several processes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct MemorySum {
    /// Of how many.
    pub(super) processes: u64,
    /// How many more there are whose memory could not be read.
    pub(super) unread: u64,
    /// Anonymous memory, swapped out or not, bytes.
    pub(super) anonymous: u64,
    /// By how much that grew, bytes.
    pub(super) grew: i64,
    /// Pages of mapped files, bytes. What several processes share counts for each.
    pub(super) file: u64,
    /// Pages of shared memory, bytes. They count for each process, too.
    pub(super) shared: u64,
}

impl MemorySum {
    /// Adds that of a process, if it was alive at the end: that of others went with them.
    pub(super) fn add(&mut self, process: &Process) {
        match &process.memory {
            _ if process.ended.is_some() => {}
            None => self.unread += 1,
            Some(memory) => {
                self.processes += 1;
                self.anonymous = self.anonymous.saturating_add(memory.anonymous_end);
                self.grew = self.grew.saturating_add(memory.grew());
                self.file = self.file.saturating_add(memory.file);
                self.shared = self.shared.saturating_add(memory.shared);
            }
        }
    }
}

/// The processes of a profile, put together: the groups that hold most first, then those that have grown most. Where processes are
/// told one by one, those that have ended are put together by program, unless none lives.
pub(super) fn groups<'a>(profile: &'a Profile, index: &Index<'a>, by: By) -> Vec<Group<'a>> {
    let some_live = !profile.has_ended();
    let key = |process: &'a Process| match by {
        By::Process if some_live && process.ended.is_some() => Key::of(process, index, By::Program),
        _ => Key::of(process, index, by),
    };
    let mut places: HashMap<Key<'a>, usize> = HashMap::new();
    let mut all: Vec<Group<'a>> = Vec::new();
    for process in &profile.processes {
        let (key, next) = (key(process), all.len());
        let place = *places.entry(key).or_insert(next);
        if place == next {
            all.push(Group::new(key, process));
        }
        let group = &mut all[place];
        group.programs.insert(index.program(process));
        group.images.push(process.image);
        *(if process.ended.is_some() { &mut group.ended } else { &mut group.live }) += process.count;
        group.memory.add(process);
    }
    for stack in &profile.stacks {
        let Some(place) = index.of_stack(stack).and_then(|process| places.get(&key(process))) else { continue };
        let group = &mut all[*place];
        group.values += stack.values;
        if let Some((bytes, blocks)) = stack.at_end {
            group.at_end = (group.at_end.0.saturating_add(bytes), group.at_end.1.saturating_add(blocks));
        }
    }
    all.sort_by_key(|group| {
        Reverse((group.values.outstanding_bytes, group.values.outstanding_blocks, group.memory.grew, group.at_end))
    });
    all
}

impl<'a> Group<'a> {
    fn new(key: Key<'a>, first: &'a Process) -> Self {
        let (values, memory) = (Values::default(), MemorySum::default());
        Self {
            key,
            first,
            programs: BTreeSet::new(),
            images: Vec::new(),
            live: 0,
            ended: 0,
            values,
            at_end: (0, 0),
            memory,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::{
        profile::{End, Memory},
        report::fixture,
    };

    const END: Option<End> = Some(End { after: Duration::ZERO, signal: None });

    #[test]
    fn groups_come_by_what_they_hold() {
        let mut profile = fixture::three_processes();
        profile.processes[1].ended = END;
        let index = Index::new(&profile);
        let facts = |by| -> Vec<(u32, u64, u64, u64)> {
            let groups = groups(&profile, &index, by);
            groups.iter().map(|one| (one.first.pid, one.live, one.ended, one.values.outstanding_bytes)).collect()
        };
        let held = fixture::profile().totals().outstanding_bytes;
        assert_eq!(facts(By::Program), [(4711, 1, 1, 2 * held), (5001, 1, 0, held)]);
        // Those that have ended are not told one by one.
        assert_eq!(facts(By::Process), [(4711, 1, 0, held), (5000, 0, 1, held), (5001, 1, 0, held)]);
        assert_eq!(facts(By::Cgroup), [(4711, 1, 0, held), (5000, 0, 1, held), (5001, 1, 0, held)]);
        let names = |by| -> Vec<String> {
            groups(&profile, &index, by).iter().filter_map(|group| Some(group.key.place()?.into_owned())).collect()
        };
        assert_eq!(names(By::Cgroup), ["/system.slice/leaky.service", "/docker/3f4a", "[unknown cgroup]"]);
        assert_eq!(names(By::Container), ["[no container]", "web (docker 3f4a)", "[unknown container]"]);
    }

    #[test]
    fn memory_is_that_of_those_that_live_and_what_was_not_read_is_counted() {
        let mut profile = fixture::three_processes();
        let memory = |end| Memory { anonymous_begin: 10, anonymous_end: end, file: 3, shared: 4, ..Memory::default() };
        profile.processes[0].memory = Some(memory(15));
        profile.processes[1].memory = Some(memory(7));
        let sum = |profile: &Profile| groups(profile, &Index::new(profile), By::Program)[0].memory;
        let both = MemorySum { processes: 2, unread: 0, anonymous: 22, grew: 2, file: 6, shared: 8 };
        assert_eq!(sum(&profile), both);
        profile.processes[1].memory = None;
        let one = MemorySum { processes: 1, unread: 1, anonymous: 15, grew: 5, file: 3, shared: 4 };
        assert_eq!(sum(&profile), one);
        profile.processes[1].ended = END;
        assert_eq!(sum(&profile), MemorySum { unread: 0, ..one });
    }
}
