//! What the kernel says of a process's memory, beside what was recorded of it: how much of it a profile explains.

use std::time::Duration;

/// Unexplained memory that is not worth a word, bytes.
const LITTLE: u64 = 8 << 20;

/// The same of several processes together, of each of which it is little; and of one of those: some is in each.
const LITTLE_OF_ALL: u64 = 64 << 20;
const LITTLE_OF_EACH: u64 = 2 << 20;

/// Memory of one process, as it grew while it was traced. Bytes; anonymous memory includes what is swapped out.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Memory {
    /// Anonymous memory when recording began.
    pub anonymous_begin: u64,
    /// Anonymous memory at the end.
    pub anonymous_end: u64,
    /// Pages of mapped files at the end.
    pub file: u64,
    /// Pages of shared memory at the end.
    pub shared: u64,
    /// What was recorded and not freed. More than the growth where it was not touched, or lies where other memory was.
    pub recorded: u64,
    /// Memory that became resident, whatever went elsewhere: at least the growth.
    pub fresh: u64,
    /// The part of `fresh` in which no recorded block has ever been.
    pub unexplained: u64,
    /// Of that, what lies in what the program has mapped itself, by stacks that are told.
    pub by_stacks: u64,
    /// What has come to Go heaps that are followed, as long as nobody has said how much of it those
    /// [explain](Self::explain_go).
    pub in_go: u64,
    /// The part of `fresh` that stacks of goroutines took.
    pub goroutine_stacks: u64,
    /// Whether not all sizes were recorded, so that nobody knows how much is explained: `unexplained` says nothing.
    pub is_partial: bool,
    /// Whether only the kernel's counters are known of it, so that what was freed and kept is not explained.
    pub is_counted: bool,
    /// What the unexplained part may be, likeliest first; children also where nothing was recorded.
    pub reasons: Vec<Reason>,
    /// When the process was looked at last, if it was gone at the end: time since tracing began.
    pub as_of: Option<Duration>,
}

impl Memory {
    /// By how much anonymous memory grew; negative when it shrank.
    pub fn grew(&self) -> i64 {
        let [begin, end] =
            [self.anonymous_begin, self.anonymous_end].map(|bytes| i64::try_from(bytes).unwrap_or(i64::MAX));
        end - begin
    }

    /// That of two processes together.
    pub fn sum(one: Self, two: Self) -> Self {
        Self {
            anonymous_begin: one.anonymous_begin.saturating_add(two.anonymous_begin),
            anonymous_end: one.anonymous_end.saturating_add(two.anonymous_end),
            file: one.file.saturating_add(two.file),
            shared: one.shared.saturating_add(two.shared),
            recorded: one.recorded.saturating_add(two.recorded),
            fresh: one.fresh.saturating_add(two.fresh),
            unexplained: one.unexplained.saturating_add(two.unexplained),
            by_stacks: one.by_stacks.saturating_add(two.by_stacks),
            in_go: one.in_go.saturating_add(two.in_go),
            goroutine_stacks: one.goroutine_stacks.saturating_add(two.goroutine_stacks),
            is_partial: one.is_partial || two.is_partial,
            is_counted: one.is_counted || two.is_counted,
            // Of which it may be much or little.
            reasons: if one.reasons == two.reasons { one.reasons } else { Vec::new() },
            as_of: one.as_of.max(two.as_of),
        }
    }

    /// Takes into account what its Go heaps explain: `allocated` bytes that are told in the report, freed or not, since the garbage
    /// collector keeps what it frees, and stacks of goroutines. Whether more has come to the heaps than that, by more than is worth no
    /// word.
    pub fn explain_go(&mut self, allocated: u64, stacks: u64) -> bool {
        let in_go = std::mem::take(&mut self.in_go);
        self.goroutine_stacks = stacks.min(in_go);
        let rest = in_go - self.goroutine_stacks;
        let rest = rest.saturating_sub(allocated);
        // Of sizes that are left out nothing is known.
        if rest > 0 && !self.is_partial {
            self.unexplained = self.unexplained.saturating_add(rest);
            if !self.is_explained() {
                self.reasons.insert(0, Reason::UntoldInGo(rest));
            }
        }
        rest > LITTLE
    }

    /// What the stacks of goroutines took, bytes; 0 where it is worth no word.
    pub fn large_goroutine_stacks(&self) -> u64 {
        if self.goroutine_stacks > LITTLE { self.goroutine_stacks } else { 0 }
    }

    /// Whether recorded blocks explain the growth: 80 % of it, or all but 8 MiB.
    pub fn is_explained(&self) -> bool {
        self.unexplained <= LITTLE || self.unexplained <= self.fresh / 5
    }

    /// Whether so little has come that what is not explained of it is worth a word only together with that of others.
    fn is_judged_with_others(&self) -> bool {
        self.fresh / 5 <= LITTLE && self.is_explained() && !self.is_counted
    }

    /// Whether something is not explained that may be worth a word, by itself or together with that of others.
    pub fn may_be_told(&self) -> bool {
        !self.is_explained() || self.is_judged_with_others() && self.unexplained > LITTLE_OF_EACH
    }
}

/// New memory of several processes that is not explained.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Unexplained {
    /// Bytes that are not explained.
    pub bytes: u64,
    /// New memory of those processes: the base of the former.
    pub fresh: u64,
    /// The part of `bytes` that is of processes of each of which it is little.
    pub scattered: u64,
    /// How many processes that are.
    pub processes: u64,
}

impl Unexplained {
    /// Of memories, and of how many processes each is. Those of each of which it is little are judged by what it is together.
    pub fn of<'a>(memories: impl Iterator<Item = (&'a Memory, u64)>) -> Self {
        let (mut told, mut small) = (Self::default(), Self::default());
        for (memory, processes) in memories {
            // Several that have ended are one; what was explained of them is left out.
            let is_little = processes > 1 && memory.unexplained / processes <= LITTLE;
            if !memory.is_explained() && !is_little {
                told.bytes = told.bytes.saturating_add(memory.unexplained);
                told.fresh = told.fresh.saturating_add(memory.fresh);
            } else if memory.is_judged_with_others() || is_little {
                small.fresh = small.fresh.saturating_add(memory.fresh);
                if memory.may_be_told() {
                    small.bytes = small.bytes.saturating_add(memory.unexplained);
                    small.processes += processes;
                }
            }
        }
        if small.bytes > LITTLE_OF_ALL && small.bytes > small.fresh / 5 {
            told.bytes = told.bytes.saturating_add(small.bytes);
            told.fresh = told.fresh.saturating_add(small.fresh);
            (told.scattered, told.processes) = (small.bytes, small.processes);
        }
        told
    }
}

/// Something seen in a process that may explain memory which was not recorded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reason {
    /// Memory of one kind grew by so many bytes.
    Grown(Area, u64),
    /// Go heaps that are followed grew by so many bytes more than what was allocated there, as far as is told, and than goroutine stacks.
    UntoldInGo(u64),
    /// The file holds an allocator that is not probed: the allocator's name, and the file's path, hostile text.
    Allocator(&'static str, String),
    /// The file mentions what keeps a shadow of the program's memory: its name, and the file's path, hostile text.
    Shadow(&'static str, String),
    /// The process runs on a runtime that manages memory itself.
    Runtime(Runtime),
    /// It has so many children, which are processes of their own.
    Children(u64),
}

/// A kind of memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Area {
    /// Mapped by the process itself since recording began (mmap).
    Mapped,
    /// Mapped before recording began, and written to since.
    FromBefore,
    /// From its parent, which forked it while it was recorded, and written to since.
    Inherited,
    /// The program break.
    Break,
    /// Stacks of threads.
    Stacks,
    /// Private pages of mapped files.
    Files,
    /// Where Go has its heap.
    Go,
}

impl Area {
    /// Its name in saved profiles.
    pub fn name(self) -> &'static str {
        match self {
            Self::Mapped => "mmap",
            Self::FromBefore => "mapped_before",
            Self::Inherited => "inherited",
            Self::Break => "brk",
            Self::Stacks => "thread_stacks",
            Self::Files => "mapped_files",
            Self::Go => "go_heap",
        }
    }
}

/// A runtime that manages memory itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Runtime {
    /// CPython.
    Python,
    /// Java's.
    Jvm,
    /// V8, of Node.js.
    V8,
    /// PHP.
    Php,
    /// .NET.
    DotNet,
    /// Ruby.
    Ruby,
    /// Erlang's and Elixir's.
    Beam,
}

impl Runtime {
    /// The runtime that the file at `path` belongs to, by its name.
    pub fn of_file(path: &str) -> Option<Self> {
        let name = std::path::Path::new(path).file_name()?.to_str()?;
        let begins = |starts: &[&str]| starts.iter().any(|start| name.starts_with(start));
        Some(match name {
            "node" | "nodejs" => Self::V8,
            "beam.smp" => Self::Beam,
            "python" => Self::Python,
            "ruby" => Self::Ruby,
            _ if begins(&["libpython2", "libpython3", "python2", "python3"]) => Self::Python,
            _ if begins(&["libjvm.so"]) => Self::Jvm,
            _ if begins(&["libnode.so"]) => Self::V8,
            _ if begins(&["php", "libphp"]) => Self::Php,
            _ if begins(&["libcoreclr.so"]) => Self::DotNet,
            _ if begins(&["libruby"]) => Self::Ruby,
            _ => return None,
        })
    }

    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Python => "CPython",
            Self::Jvm => "JVM",
            Self::V8 => "V8",
            Self::Php => "PHP",
            Self::DotNet => ".NET",
            Self::Ruby => "Ruby",
            Self::Beam => "BEAM",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn most_of_the_growth_is_to_be_explained() {
        const MIB: u64 = 1 << 20;
        for (fresh, unexplained, explained) in [
            (0, 0, true),
            (8 * MIB, 8 * MIB, true),
            (8 * MIB + 1, 8 * MIB + 1, false),
            (100 * MIB, 20 * MIB, true),
            (100 * MIB, 20 * MIB + 1, false),
            (40 * MIB, 8 * MIB + 1, false),
            (u64::MAX, u64::MAX, false),
        ] {
            let memory = Memory { fresh, unexplained, ..Memory::default() };
            assert_eq!(memory.is_explained(), explained, "{unexplained} of {fresh}");
        }
    }

    #[test]
    fn what_is_little_in_each_of_many_processes_is_summed() {
        const MIB: u64 = 1 << 20;
        let memory = |fresh, unexplained| Memory { fresh, unexplained, ..Memory::default() };
        let of = |all: &[(Memory, u64)]| Unexplained::of(all.iter().map(|(memory, processes)| (memory, *processes)));
        let one = |fresh, unexplained| (memory(fresh, unexplained), 1);
        let nothing = Unexplained::default();
        assert_eq!(of(&[]), nothing);
        let sum = Unexplained { bytes: 420 * MIB, fresh: 480 * MIB, scattered: 420 * MIB, processes: 60 };
        assert_eq!(of(&vec![one(8 * MIB, 7 * MIB); 60]), sum);
        assert_eq!(of(&[one(8 * MIB, 7 * MIB)]), nothing, "of one process it is little");
        assert_eq!(of(&vec![one(8 * MIB, 7 * MIB); 9]), nothing, "nor of a few");
        // Some is in each.
        assert_eq!(of(&vec![one(2 * MIB, 2 * MIB); 1000]), nothing);
        // 80 % of all is explained.
        let mut most = vec![one(40 * MIB, 0); 10];
        most.extend(vec![one(10 * MIB, 8 * MIB); 10]);
        assert_eq!(of(&most), nothing, "80 of 500 MiB");
        // A large one says nothing of small ones, and is judged by itself.
        let mut large = vec![one(1 << 40, MIB), one(100 * MIB, 90 * MIB), one(7 * MIB, 2 * MIB)];
        large.extend(vec![one(7 * MIB, 7 * MIB); 10]);
        let sum = Unexplained { bytes: 160 * MIB, fresh: 177 * MIB, scattered: 70 * MIB, processes: 10 };
        assert_eq!(of(&large), sum);
        // One that stands for several, of each of which it is little.
        let several = [(memory(90 * MIB, 80 * MIB), 20), one(6 * MIB, 6 * MIB)];
        let sum = Unexplained { bytes: 86 * MIB, fresh: 96 * MIB, scattered: 86 * MIB, processes: 21 };
        assert_eq!(of(&several), sum);
        assert_eq!(of(&[(memory(60 * MIB, 50 * MIB), 20)]), nothing);
        // What was freed and kept is not known of one of which only counters were read.
        let counted = Memory { is_counted: true, ..memory(8 * MIB, 7 * MIB) };
        assert_eq!(of(&vec![(counted, 1); 60]), nothing);
    }

    #[test]
    fn what_has_come_to_go_is_explained_by_what_was_allocated_and_by_goroutine_stacks() {
        const MIB: u64 = 1 << 20;
        // Allocated, stacks; what is not explained of 100 MiB, and the stacks that are named.
        for (allocated, stacks, unexplained, named) in [
            (0, 0, 100, 0),
            // What is freed and kept, or garbage, was allocated.
            (500, 0, 0, 0),
            (0, 150, 0, 100),
            (17, 83, 0, 83),
            (20, 40, 40, 40),
            (75, 5, 20, 0),
            (95, 0, 5, 0),
        ] {
            let mut memory = Memory { fresh: 100 * MIB, in_go: 100 * MIB, ..Memory::default() };
            assert_eq!(memory.explain_go(allocated * MIB, stacks * MIB), unexplained > 8, "{allocated} {stacks}");
            assert_eq!((memory.unexplained, memory.in_go), (unexplained * MIB, 0), "{allocated} {stacks}");
            assert_eq!(memory.large_goroutine_stacks(), named * MIB, "{allocated} {stacks}");
            let reasons: Vec<Reason> =
                [Reason::UntoldInGo(unexplained * MIB)].into_iter().filter(|_| unexplained > 20).collect();
            assert_eq!(memory.reasons, reasons, "{allocated} {stacks}");
        }
        let mut memory = Memory { fresh: 100 * MIB, in_go: 100 * MIB, is_partial: true, ..Memory::default() };
        assert!(memory.explain_go(0, 0) && memory.unexplained == 0, "of some sizes nothing is known");
    }

    #[test]
    fn growth_has_a_sign() {
        let memory = |anonymous_begin, anonymous_end| Memory { anonymous_begin, anonymous_end, ..Memory::default() };
        assert_eq!(memory(5, 9).grew(), 4);
        assert_eq!(memory(9, 5).grew(), -4);
        assert_eq!(memory(u64::MAX, 0).grew(), -i64::MAX);
    }
}
