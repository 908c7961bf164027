//! Processes that others have started and that have ended: the last ones are told one by one, those before them together with others of
//! their program and place, whose sums are exact. What is kept of thousands is bounded by that.

use std::{collections::VecDeque, time::Duration};

use hashbrown::HashMap;

use super::{
    known::{Doubt, KnownPrograms},
    notes::Notes,
};
use crate::{
    attach::{Attached, probes::Probes},
    clock::monotonic,
    collector::Merging,
    event::Image,
    profile::{Memory, Place, Process, Runtime},
};

/// Most that are told one by one, and how many are put together at a time.
const APART: usize = 1_000;
const AT_ONCE: usize = 250;
/// Most groups of those that are told together; what does not fit is one group more.
const MAX_GROUPS: usize = 1_000;
/// Name of that.
const OTHERS: &str = "[others]";
/// Most notes of those that are told together.
const MAX_NOTES: usize = 100;
/// Most times until they were recorded that are kept.
const MAX_TIMES: usize = 4_096;

/// What processes have in common that are told together: what makes them one program, and where they were.
#[derive(PartialEq, Eq, Hash)]
struct Key {
    exe: String,
    comm: String,
    place: Place,
}

impl Key {
    fn of(process: &Process) -> Self {
        let Process { exe, comm, place, .. } = process;
        let by_name = exe.is_empty() || Runtime::of_file(exe).is_some();
        Self { exe: exe.clone(), comm: if by_name { comm.clone() } else { String::new() }, place: place.clone() }
    }

    fn others() -> Self {
        Self { exe: String::new(), comm: OTHERS.to_owned(), place: Place::default() }
    }
}

/// What is not known of a process.
pub(super) fn doubt(attached: &Attached, known: &KnownPrograms, probes: &Probes) -> Doubt {
    if attached.life().was_not_looked_at() { known.doubt(attached.program(), probes) } else { Doubt::None }
}

/// Processes that have ended.
#[derive(Default)]
pub(super) struct Ended {
    /// Those that are told one by one, the last that ended last.
    apart: VecDeque<Attached>,
    /// Before those: of which there is more to tell than sums.
    staying: Vec<Attached>,
    /// The others.
    together: HashMap<Key, Process>,
    notes: Option<Notes>,
    late: Times,
    /// Whether no more are put together.
    is_final: bool,
}

impl Ended {
    /// One more. What the collector is to put together for it, if there are too many; `doubt`: what is not
    /// known of one; `stays`: what is told one by one in any case.
    pub(super) fn push(
        &mut self,
        attached: Attached,
        doubt: impl Fn(&Attached) -> Doubt,
        stays: impl Fn(Image) -> bool,
    ) -> Vec<Merging> {
        self.apart.push_back(attached);
        if self.is_final || self.apart.len() < APART + AT_ONCE {
            return Vec::new();
        }
        let mut merging = Vec::new();
        for attached in self.apart.drain(..AT_ONCE) {
            if stays(attached.image()) {
                self.staying.push(attached);
                continue;
            }
            let doubt = doubt(&attached);
            let (is_unheard, is_unseen) = (doubt == Doubt::IfSilent, doubt == Doubt::Certain);
            attached.life().notes().for_each(|note| self.notes.get_or_insert(Notes::most(MAX_NOTES)).push(note));
            self.late.extend(attached.life().late(monotonic()));
            let (into, from) = add(&mut self.together, attached.target());
            merging.push(Merging { from, into, is_unheard, is_unseen });
        }
        merging
    }

    /// Has those that end from now on told one by one, however many they are.
    pub(super) fn keep_apart(&mut self) {
        self.is_final = true;
    }

    /// Those that are told one by one.
    pub(super) fn apart(&self) -> impl Iterator<Item = &Attached> {
        self.staying.iter().chain(&self.apart)
    }

    /// The same, to be told what has become known of them.
    pub(super) fn apart_mut(&mut self) -> impl Iterator<Item = &mut Attached> {
        self.staying.iter_mut().chain(&mut self.apart)
    }

    /// Those that stand for several each.
    pub(super) fn together(&self) -> Vec<Process> {
        let mut together: Vec<Process> = self.together.values().cloned().collect();
        together.sort_unstable_by_key(|process| process.image);
        together
    }

    /// What the reader of a report should know of those.
    pub(super) fn notes(&self) -> impl Iterator<Item = String> {
        self.notes.iter().flat_map(Notes::all)
    }

    /// How long those were there before they were recorded, and how many each stands for.
    pub(super) fn late(&self) -> impl Iterator<Item = (Duration, u64)> {
        self.late.all()
    }
}

/// Adds a process to those of its kind: the image that stands for them, and those that it stands for from now on.
fn add(together: &mut HashMap<Key, Process>, mut process: Process) -> (Image, Vec<Image>) {
    let images = std::mem::take(&mut process.earlier_images).into_iter().chain([process.image]).map(Image).collect();
    process.memory = process.memory.filter(Memory::may_be_told);
    let key = Key::of(&process);
    let key = if together.len() < MAX_GROUPS || together.contains_key(&key) { key } else { Key::others() };
    let group = match together.get_mut(&key) {
        Some(group) => {
            absorb(group, process);
            group
        }
        None => {
            if key == Key::others() {
                (process.comm, process.exe, process.place) = (key.comm.clone(), String::new(), Place::default());
            }
            together.entry(key).or_insert(process)
        }
    };
    (Image(group.image), images)
}

/// Makes a process stand for another one as well.
fn absorb(group: &mut Process, other: Process) {
    group.count += other.count;
    if group.comm != other.comm && !group.exe.is_empty() {
        // As a program with several names is called.
        group.comm = group.exe.rsplit('/').next().unwrap_or_default().to_owned();
    }
    group.started = group.started.min(other.started);
    if let (Some(one), Some(two)) = (&mut group.ended, other.ended) {
        one.after = one.after.max(two.after);
        one.signal = one.signal.filter(|signal| two.signal == Some(*signal));
    }
    for heap in other.heaps {
        if !group.heaps.iter().any(|known| known.heap == heap.heap) {
            group.heaps.push(heap);
        }
    }
    group.quality.unseen_spans += other.quality.unseen_spans;
    group.memory = match (group.memory.take(), other.memory) {
        (Some(one), Some(two)) => Some(Memory::sum(one, two)),
        (one, two) => one.or(two),
    };
}

/// Times, of many an even choice.
#[derive(Default)]
struct Times {
    kept: Vec<Duration>,
    /// How many there were, and for how many each stands that is kept; 0 for the beginning.
    count: u64,
    each: u64,
    longest: Duration,
}

impl Times {
    fn extend(&mut self, time: Option<Duration>) {
        let Some(time) = time else { return };
        self.each = self.each.max(1);
        if self.count.is_multiple_of(self.each) {
            if self.kept.len() == MAX_TIMES {
                let mut is_kept = false;
                self.kept.retain(|_| {
                    is_kept = !is_kept;
                    is_kept
                });
                self.each *= 2;
            }
            self.kept.push(time);
        }
        self.count += 1;
        self.longest = self.longest.max(time);
    }

    /// All, and for how many each stands; the longest is among them.
    fn all(&self) -> impl Iterator<Item = (Duration, u64)> {
        let longest = (self.count > 0).then_some((self.longest, 0));
        self.kept.iter().map(|time| (*time, self.each)).chain(longest)
    }
}

#[cfg(test)]
mod tests {
    use tracer_ebpf::{Whose, unwind::FileKey};

    use super::*;
    use crate::{
        attach::{NewProgram, probes::Scope},
        event::{Beginning, How},
    };

    /// A process of a program that is known by its name alone, and ended at once.
    fn ended(image: u32, comm: &str) -> Attached {
        let mut name = [0; 16];
        name[..comm.len()].copy_from_slice(comm.as_bytes());
        // No process has such an id.
        let (pid, program) = (u32::MAX - image, Some(FileKey::default()));
        let beginning = Beginning {
            pid,
            parent: Image(0),
            how: How::Newcomer,
            comm: name,
            time: 1,
            is_late: false,
            program,
            whose: Whose::default(),
        };
        let program = NewProgram { beginning: &beginning, known: None, is_covered: false };
        let mut attached = Attached::newcomer(Image(image), &program, Scope::File);
        attached.has_ended(Duration::from_secs(u64::from(image)));
        attached
    }

    /// More than are put together at a time.
    const STAYING: u32 = 300;

    #[test]
    fn what_is_kept_of_many_is_bounded_and_each_is_counted_once() {
        let mut all = Ended::default();
        let mut merging = Vec::new();
        for image in 0..10_000 {
            let comm = ["odd", "even"][image as usize % 2];
            let doubt = |attached: &Attached| [Doubt::None, Doubt::IfSilent][attached.image().0 as usize % 5 % 2];
            merging.extend(all.push(ended(image, comm), doubt, |image| image.0 < STAYING));
        }
        let apart: Vec<u32> = all.apart().map(|attached| attached.image().0).collect();
        let (staying, last_ones) = apart.split_at(STAYING as usize);
        assert!(staying.iter().copied().eq(0..STAYING), "{staying:?}");
        assert!((APART..APART + AT_ONCE).contains(&last_ones.len()) && last_ones.is_sorted(), "{last_ones:?}");
        let together = all.together();
        let facts: Vec<(&str, u32)> = together.iter().map(|process| (&*process.comm, process.image)).collect();
        assert_eq!(facts, [("odd", STAYING), ("even", STAYING + 1)]);
        assert_eq!(together.iter().map(|process| process.count).sum::<u64>() + apart.len() as u64, 10_000);
        let last = last_ones[0] - 1;
        assert_eq!(together.iter().map(|process| process.ended.unwrap().after.as_secs()).max(), Some(u64::from(last)));
        // The collector puts together the same ones.
        let from: Vec<u32> = merging.iter().flat_map(|merging| &merging.from).map(|image| image.0).collect();
        assert!(from.iter().copied().eq(STAYING..=last));
        assert!(merging.iter().all(|merging| merging.into == Image(STAYING + merging.from[0].0 % 2)));
        assert!(merging.iter().any(|merging| merging.is_unheard) && !merging.iter().all(|merging| merging.is_unheard));
    }

    #[test]
    fn however_many_programs_there_are_what_is_told_of_them_is_bounded() {
        let mut all = Ended::default();
        for image in 0..5_000 {
            all.push(ended(image, &format!("program {image}")), |_| Doubt::None, |_| false);
        }
        let together = all.together();
        assert_eq!(together.len(), MAX_GROUPS + 1);
        let others = together.last().unwrap();
        assert_eq!((&*others.comm, others.count), (OTHERS, 4_000 - MAX_GROUPS as u64), "{together:?}");
    }

    #[test]
    fn an_even_choice_of_times_is_kept() {
        let mut times = Times::default();
        (0..100_000).for_each(|time| times.extend(Some(Duration::from_millis(time))));
        let all: Vec<(Duration, u64)> = times.all().collect();
        assert!(all.len() <= MAX_TIMES + 1, "{}", all.len());
        assert_eq!(all.last(), Some(&(Duration::from_millis(99_999), 0)));
        let many = all.iter().map(|(_, count)| count).sum::<u64>();
        assert!(many.abs_diff(100_000) <= times.each, "{many}");
        let mean = all.iter().map(|(time, count)| time.as_millis() as u64 * count).sum::<u64>() / many;
        assert!(mean.abs_diff(50_000) <= times.each, "{mean}");
    }

    #[test]
    fn unexplained_memory_of_several_is_summed_and_the_rest_is_not() {
        let process = |image, unexplained| {
            let memory = Memory { fresh: 100 << 20, unexplained, ..Memory::default() };
            let process = Process::new(1, "a".to_owned(), "/bin/a".to_owned(), crate::profile::Language::C);
            Process { image, memory: Some(memory), ..process }
        };
        let mut together = HashMap::new();
        for (image, unexplained) in [(1, 0), (2, 50 << 20), (3, 1 << 20), (4, 60 << 20)] {
            add(&mut together, process(image, unexplained));
        }
        let memory = together.values().next().unwrap().memory.as_ref().unwrap();
        assert_eq!((memory.unexplained, memory.fresh), (110 << 20, 200 << 20));
        // What is little in each is not, of many.
        let mut together = HashMap::new();
        for image in 1..=60 {
            let memory = Memory { fresh: 8 << 20, unexplained: 7 << 20, ..Memory::default() };
            add(&mut together, Process { memory: Some(memory), ..process(image, 0) });
        }
        let memory = together.values().next().unwrap().memory.as_ref().unwrap();
        assert_eq!((memory.unexplained, memory.fresh, memory.is_explained()), (420 << 20, 480 << 20, false));
    }
}
