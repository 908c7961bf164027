//! Amounts, times and quality in words, for the reports that people read.

use std::time::Duration;

use nix::sys::signal::Signal;

use super::{
    escape::{shorten, visible},
    filters,
    groups::MemorySum,
    name,
    numbers::{count, duration, exact_size, number, rate, size, with_error},
};
use crate::profile::{
    Area, Cost, End, Growth, Heap, Kind, Memory, Mode, Profile, Reason, Runtime, Trend, WaitsOn,
    quality::{Collections, Gap, Missing, Quality},
};

/// Most characters of the name of a library.
const LONGEST_FILE: usize = 60;

/// How a process ended, to follow its name.
pub(super) fn end(end: End) -> String {
    let killed = end.signal.map(|number| match Signal::try_from(i32::from(number)) {
        Ok(signal) => format!(", by {signal}"),
        Err(_) => format!(", by signal {number}"),
    });
    format!(", ended after {}{}", duration(end.after), killed.unwrap_or_default())
}

/// How held bytes change.
pub(super) fn growth(growth: Option<Growth>) -> String {
    let Some(Growth { trend, rate }) = growth else { return "growth unknown".to_owned() };
    let rate = rate.filter(|rate| rate.per_second.is_finite() && rate.error.is_finite());
    match (trend, rate) {
        (Trend::Growing, Some(rate)) => format!("growing {}", with_error(rate)),
        (Trend::Shrinking, Some(rate)) => format!("shrinking {}", with_error(rate)),
        (Trend::TooEarly, Some(rate)) if rate.per_second > 0.0 => {
            format!("too early to tell ({} so far)", with_error(rate))
        }
        (Trend::Steady, _) => "steady".to_owned(),
        _ => "too early to tell".to_owned(),
    }
}

/// How fast goroutines become more; `per_second` as in [`GoroutineGrowth`](crate::profile::GoroutineGrowth).
pub(super) fn goroutine_growth(per_second: Option<f64>) -> String {
    match per_second {
        Some(more) if more >= 0.05 => format!("growing {}/s", rate(more)),
        Some(less) if less <= -0.05 => format!("shrinking {}/s", rate(-less)),
        Some(rate) if rate.is_finite() => "steady".to_owned(),
        _ => "growth unknown".to_owned(),
    }
}

/// What `count` goroutines that wait for `reason` wait on.
pub(super) fn waits_on(waits_on: WaitsOn, reason: &str, count: u64) -> String {
    let (one, several) = match reason {
        _ if reason.starts_with("chan ") || reason.starts_with("select") => ("channel", "channels"),
        _ if reason.starts_with("sync.Mutex.") || reason.starts_with("sync.RWMutex.") => ("mutex", "mutexes"),
        "sync.WaitGroup.Wait" => ("wait group", "wait groups"),
        "sync.Cond.Wait" => ("condition", "conditions"),
        _ => ("object", "objects"),
    };
    match waits_on {
        WaitsOn::One(address) if count == 1 => format!("on the {one} at {address:#x}"),
        WaitsOn::One(address) => format!("all on one {one} ({address:#x})"),
        WaitsOn::Several(objects) => format!("on {} different {several}", number(objects)),
    }
}

/// What a profile is about.
pub(super) fn kind(kind: Kind) -> &'static str {
    match kind {
        Kind::Heap => "heap",
        Kind::Goroutines => "goroutines",
    }
}

/// How the numbers came about, in a few words. `every`: whether every allocation of these sizes was recorded where they are counted.
fn meaning(mode: Mode, every: bool, sizes: &str) -> String {
    let words = match mode {
        Mode::Exact if every => return format!("every allocation{sizes} was recorded"),
        Mode::Exact => "what was recorded is counted; what was not is told under quality",
        Mode::Sampled => "some allocations were recorded, the numbers are estimates",
        Mode::GoBuckets => "the Go runtime's own heap profile, the numbers are its estimates",
        Mode::Snapshot => "read from memory while the process ran",
    };
    words.to_owned()
}

/// Where memory comes from.
pub(super) fn heap(heap: &Heap) -> String {
    match heap {
        Heap::Native => "C heap".to_owned(),
        Heap::Go => "Go heap".to_owned(),
        Heap::GoLibrary(path) => format!("Go heap of {}", file_name(path)),
    }
}

/// What tracing has cost, of what the processes would have used without.
pub(super) fn cost(cost: &Cost) -> String {
    let Cost { hits, probes, own, processes, .. } = cost;
    let share = cost.share().map_or(String::new(), |share| format!("about {:.1}%: ", 100.0 * share));
    // Probes on files are hit by all who map them.
    let others = if probes > processes { ", in other processes, too" } else { "" };
    let [probes, own, processes] = [probes, own, processes].map(Duration::as_secs_f64);
    let hits = count(*hits, "probe hit");
    format!("{share}{hits} took {probes:.2} s{others}, tracer {own:.2} s; processes used {processes:.2} s")
}

/// How the memory of a process grew, and how much of that is explained.
pub(super) fn memory(memory: &Memory) -> String {
    let grew = grew(memory.grew());
    let mut words = format!(
        "anonymous memory {}, {grew}; recorded and held: {}",
        size(memory.anonymous_end),
        size(memory.recorded)
    );
    if memory.large_goroutine_stacks() > 0 {
        words.push_str(&format!("; stacks of goroutines: {}", size(memory.large_goroutine_stacks())));
    }
    if !memory.is_explained() {
        words.push_str(&format!("; not explained: {}", size(memory.unexplained)));
        // The growth is what has come less what has gone.
        if memory.unexplained > u64::try_from(memory.grew()).unwrap_or(0) {
            words.push_str(&format!(" of {} that have come, while other memory was given back", size(memory.fresh)));
        }
        if memory.by_stacks > 0 {
            words.push_str(&format!(
                ", {} of it in what stacks of the program have mapped (M1 and on)",
                size(memory.by_stacks)
            ));
        }
    }
    if let Some(at) = memory.as_of {
        words.push_str(&format!(" (as of {}, before it ended)", duration(at)));
    }
    words
}

/// How the memory of several processes grew, and of how many that is not known.
pub(super) fn memory_of_several(sum: &MemorySum) -> String {
    let MemorySum { processes, unread, anonymous, grew, file, shared } = *sum;
    let unread = match unread {
        0 => String::new(),
        unread => format!("memory of {} could not be read", count(unread, "process")),
    };
    if processes == 0 {
        return unread;
    }
    let with_files = size(anonymous.saturating_add(file).saturating_add(shared));
    let grew = self::grew(grew);
    let words = format!("anonymous memory {}, {grew}; with files and what is shared {with_files}", size(anonymous));
    if unread.is_empty() { words } else { format!("{words}; {unread}") }
}

fn grew(bytes: i64) -> String {
    match bytes {
        0 => "did not grow".to_owned(),
        1.. => format!("grew by {}", size(bytes.unsigned_abs())),
        _ => format!("shrank by {}", size(bytes.unsigned_abs())),
    }
}

/// What unexplained memory may be, and what to do.
pub(super) fn reason(reason: &Reason) -> String {
    match reason {
        Reason::Grown(area, bytes) => {
            let what = match area {
                Area::Mapped => "mapped by the process itself (mmap): another allocator, or buffers of its own",
                Area::FromBefore => {
                    "mapped before recording began, and written to since: launch it with `tracer -- CMD`"
                }
                Area::Inherited => "in what it has from its parent, and has written to since",
                Area::Break => "from the program break (brk): an allocator that is not probed",
                Area::Stacks => "stacks of threads",
                Area::Files => "private pages of mapped files",
                Area::Go => "the heap of Go, which is not followed: see --go-heap",
            };
            format!("{} {what}", size(*bytes))
        }
        Reason::UntoldInGo(bytes) => format!(
            "{} in the heap of Go that no allocation told here explains: allocated since its own profile was published last (a \
             garbage collection does that), or arenas",
            size(*bytes)
        ),
        Reason::Allocator(name, path) => {
            format!("{name} in {} is not probed: what it gives is not seen", visible(path))
        }
        Reason::Shadow(name, path) => {
            format!(
                "{name} in {} may keep a shadow of the program's memory (`go build -race`, -fsanitize=thread)",
                visible(path)
            )
        }
        Reason::Runtime(runtime) => match runtime {
            Runtime::Python => {
                "CPython gives small objects from arenas of its own: start it with PYTHONMALLOC=malloc".to_owned()
            }
            Runtime::Jvm => "the JVM has a heap of its own: see `jcmd PID GC.class_histogram`".to_owned(),
            Runtime::V8 => "V8 has a heap of its own: see node's --heapsnapshot-signal".to_owned(),
            Runtime::Php => "PHP has an allocator of its own: start it with USE_ZEND_ALLOC=0".to_owned(),
            Runtime::DotNet => ".NET has a heap of its own: see dotnet-gcdump".to_owned(),
            Runtime::Ruby => "Ruby has a heap of its own: see ObjectSpace.dump_all".to_owned(),
            Runtime::Beam => "the BEAM has allocators of its own: start it with +Mea min".to_owned(),
        },
        Reason::Children(many) => {
            let children = if *many == 1 { "child".to_owned() } else { format!("{} children", number(*many)) };
            format!("what its {children} allocated is not seen: trace them with --pid")
        }
    }
}

/// The last part of a path, short and without what could do harm.
pub(super) fn file_name(path: &str) -> String {
    shorten(visible(path.rsplit('/').next().unwrap_or(path)), LONGEST_FILE).into_owned()
}

/// The processes, in one line: `leaky (pid 4711) and 2 more`.
pub(super) fn targets(profile: &Profile) -> String {
    match profile.processes.as_slice() {
        [] => "no process".to_owned(),
        [only] => format!("{} (pid {})", name::comm(&only.comm), only.pid),
        [first, ..] => {
            format!("{} (pid {}) and {} more", name::comm(&first.comm), first.pid, profile.process_count() - 1)
        }
    }
}

/// How the numbers came about, in one word.
pub(super) fn mode(mode: Mode) -> &'static str {
    match mode {
        Mode::Exact => "exact",
        Mode::Sampled => "sampled",
        Mode::GoBuckets => "go-buckets",
        Mode::Snapshot => "snapshot",
    }
}

/// How often a garbage collector of Go has come.
pub(super) fn collections(collections: &Collections) -> String {
    let while_traced = format!("{} while traced", number(collections.while_traced()));
    match collections.at_end {
        0 if collections.own_profile => "none since the program began".to_owned(),
        last if collections.own_profile => format!(
            "{while_traced}; the numbers are as of number {} of {}, or of the last if the program asked for that",
            number(last - 1),
            number(last)
        ),
        _ => while_traced,
    }
}

/// How the numbers of each heap came about, a line for each way.
pub(super) fn modes(profile: &Profile) -> Vec<String> {
    let every = profile.quality.has_every_allocation();
    let mut ways: Vec<(&Heap, Mode)> =
        profile.processes.iter().flat_map(|target| &target.heaps).map(|seen| (&seen.heap, seen.mode)).collect();
    ways.sort_unstable();
    ways.dedup();
    let sizes = filters::sizes(&profile.filters);
    let words = |mode| format!("{}: {}", self::mode(mode), meaning(mode, every, &sizes));
    match ways.as_slice() {
        [] => vec![words(profile.mode)],
        [(_, only)] => vec![words(*only)],
        several => several.iter().map(|(heap, mode)| format!("{} {}", self::heap(heap), words(*mode))).collect(),
    }
}

/// Everything that is missing, most important first; empty when the profile is complete.
pub(super) fn missing(quality: &Quality) -> Vec<String> {
    quality.gaps().iter().map(gap).collect()
}

/// One way in which a profile is not complete.
pub(super) fn gap(gap: &Gap) -> String {
    let count = |thing| count(gap.amount, thing);
    match gap.what {
        Missing::AllAllocations if gap.amount == gap.of => {
            "no allocation was seen: trace for longer, or while it has work to do".to_owned()
        }
        Missing::AllAllocations => format!("no allocation of {} was seen", count("process")),
        Missing::Memory => {
            format!("{} of {} of new memory not explained (see memory)", exact_size(gap.amount), size(gap.of))
        }
        Missing::Spans => format!("{} in which nothing was recorded (the notes tell why)", count("time span")),
        Missing::Heaps => format!("{} not seen, or not in full (the notes tell why)", count("Go heap")),
        Missing::Processes => {
            format!(
                "{} not followed that traced ones started (too many at a time, a full ring buffer, or the memory of one that has ended)",
                count("process")
            )
        }
        Missing::Allocations => format!("{} lost (the ring buffer was full)", count("allocation")),
        Missing::Room => format!("{} not recorded (more blocks than --max-memory holds)", count("allocation")),
        Missing::SampleRoom => {
            format!(
                "{} not recorded (more are held than --max-memory has room for; a larger --sample makes them fewer)",
                count("sampled allocation")
            )
        }
        Missing::Frees => format!("{} lost (the ring buffer was full)", count("free")),
        Missing::Moments => {
            format!("{} of ends of threads and processes, or of libraries, lost (the ring buffer was full)", count("record"))
        }
        Missing::Certainty => format!("{} uncertain (a lost free may have ended them)", exact_size(gap.amount)),
        Missing::Samples => format!("{} whose address is not known", count("sampled object")),
        Missing::Ends => format!("{} that may have ended", count("sampled object")),
        Missing::Cycles => {
            format!("{} of {} not looked at in full", count("garbage collection"), number(gap.of))
        }
        Missing::AllCycles => {
            "no garbage collection has come while it was traced: what is told of the Go heap may be garbage by now, or leave out what has \
             come since the last one"
                .to_owned()
        }
        Missing::Roots => format!("{} cut before the root of the thread", count("stack")),
        Missing::UnseenFrees => {
            format!("{} missed (the address was handed out again, or what lies right below was freed)", count("free"))
        }
        Missing::Stacks => format!("{} held by stacks that are not known", exact_size(gap.amount)),
        Missing::Undecided => {
            format!("{} of processes that were over before it could be seen whether they fit", count("event"))
        }
        Missing::Calls => format!("{} into the allocator not followed", count("call")),
        Missing::Remappings => {
            format!("{} of mappings not recorded: what is told of mapped memory may be wrong", count("change"))
        }
        Missing::Files => {
            format!("{} written to after they had been mapped: no names, and stacks may be wrong", count("file"))
        }
        Missing::Records => format!("{} not understood (a bug in tracer)", count("record")),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::{
        profile::{Rate, SeenHeap},
        report::fixture,
    };

    #[test]
    fn growth_has_an_error_and_as_many_digits_as_that() {
        let of = |trend, per_second, error| growth(Some(Growth { trend, rate: Some(Rate { per_second, error }) }));
        for (per_second, error, text) in [
            (1_000_000.0, 11_800.0, "growing 977 ± 12 KiB/s"),
            (1_000_000.0, 1_000.0, "growing 976.6 ± 1.0 KiB/s"),
            (2.6 * 1_048_576.0, 10_000.0, "growing 2.600 ± 0.010 MiB/s"),
            (17_920.0, 0.0, "growing 17.500 ± 0.000 KiB/s"),
            (17_920.0, 0.001, "growing 17.500 ± 0.001 KiB/s"),
            (1_020.0, 990.0, "growing 1020 ± 990 bytes/s"),
            (0.5, 0.05, "growing 0.500 ± 0.050 bytes/s"),
        ] {
            assert_eq!(of(Trend::Growing, per_second, error), text);
        }
        assert_eq!(of(Trend::Shrinking, -2_048.0, 204.8), "shrinking 2.00 ± 0.20 KiB/s");
        assert_eq!(of(Trend::Steady, 2_048.0, 2_048.0), "steady");
        assert_eq!(of(Trend::TooEarly, 2_048.0, 1_024.0), "too early to tell (2.0 ± 1.0 KiB/s so far)");
        assert_eq!(of(Trend::TooEarly, -2_048.0, 1_024.0), "too early to tell");
        assert_eq!(of(Trend::TooEarly, f64::NAN, f64::INFINITY), "too early to tell");
        assert_eq!(growth(Some(Growth { trend: Trend::TooEarly, rate: None })), "too early to tell");
        assert_eq!(growth(None), "growth unknown");
    }

    #[test]
    fn goroutines_have_their_own_rates_and_objects() {
        for (rate, text) in [
            (Some(0.25), "growing 0.2/s"),
            (Some(12_345.6), "growing 12,346/s"),
            (Some(-3.0), "shrinking 3.0/s"),
            (Some(0.01), "steady"),
            (Some(f64::NAN), "growth unknown"),
            (None, "growth unknown"),
        ] {
            assert_eq!(goroutine_growth(rate), text);
        }
        for (object, reason, count, text) in [
            (WaitsOn::One(0xc0), "chan send", 9, "all on one channel (0xc0)"),
            (WaitsOn::One(0xc0), "select", 1, "on the channel at 0xc0"),
            (WaitsOn::Several(4_000), "chan receive", 4_000, "on 4,000 different channels"),
            (WaitsOn::Several(2), "sync.RWMutex.RLock", 9, "on 2 different mutexes"),
            (WaitsOn::One(0xc0), "sync.WaitGroup.Wait", 2, "all on one wait group (0xc0)"),
            (WaitsOn::One(0xc0), "sync.Cond.Wait", 2, "all on one condition (0xc0)"),
            (WaitsOn::One(0xc0), "semacquire", 2, "all on one object (0xc0)"),
        ] {
            assert_eq!(waits_on(object, reason, count), text);
        }
    }

    #[test]
    fn each_heap_has_its_own_mode_and_lost_allocations_are_not_called_recorded() {
        let mut profile = fixture::profile();
        assert_eq!(modes(&profile), ["exact: every allocation was recorded"]);
        profile.quality.lost_allocs = 1;
        assert_eq!(modes(&profile), ["exact: what was recorded is counted; what was not is told under quality"]);
        profile.quality.lost_allocs = 0;
        profile.filters.sizes = (1 << 30, u64::MAX);
        assert_eq!(modes(&profile), ["exact: every allocation of 1.00 GiB or more was recorded"]);
        profile.filters.sizes = (0, u64::MAX);
        let go = SeenHeap { heap: Heap::Go, mode: Mode::Sampled, sampling: None };
        profile.processes[0].heaps.insert(0, go);
        profile.processes.push(profile.processes[0].clone());
        assert_eq!(
            modes(&profile),
            [
                "C heap exact: every allocation was recorded",
                "Go heap sampled: some allocations were recorded, the numbers are estimates",
            ]
        );
    }

    #[test]
    fn memory_says_what_is_not_explained_and_what_that_may_be() {
        let mut memory = Memory {
            anonymous_begin: 10 << 20,
            anonymous_end: 110 << 20,
            recorded: 2 << 20,
            fresh: 100 << 20,
            unexplained: 98 << 20,
            as_of: Some(Duration::from_millis(2_500)),
            ..Memory::default()
        };
        assert_eq!(
            self::memory(&memory),
            "anonymous memory 110 MiB, grew by 100 MiB; recorded and held: 2.00 MiB; not explained: 98.0 MiB \
             (as of 2.5s, before it ended)"
        );
        (memory.fresh, memory.unexplained, memory.as_of) = (105 << 20, 102 << 20, None);
        assert!(self::memory(&memory).ends_with(
            "grew by 100 MiB; recorded and held: 2.00 MiB; not explained: 102 MiB of 105 MiB that have come, while other memory \
             was given back"
        ));
        memory.by_stacks = 90 << 20;
        assert!(
            self::memory(&memory)
                .ends_with("given back, 90.0 MiB of it in what stacks of the program have mapped (M1 and on)")
        );
        (memory.anonymous_end, memory.unexplained) = (9 << 20, 1 << 20);
        let words = self::memory(&memory);
        assert_eq!(words, "anonymous memory 9.00 MiB, shrank by 1.00 MiB; recorded and held: 2.00 MiB");
        memory.goroutine_stacks = 9 << 20;
        assert!(self::memory(&memory).ends_with("; recorded and held: 2.00 MiB; stacks of goroutines: 9.00 MiB"));
        let file = fixture::HOSTILE.to_owned();
        assert!(!reason(&Reason::Allocator("jemalloc", file.clone())).contains(|c: char| c.is_control()));
        let shadow = reason(&Reason::Shadow("ThreadSanitizer", file));
        assert!(shadow.contains(" may keep a shadow "), "it is only mentioned: {shadow}");
        assert!(shadow.contains("go build -race") && !shadow.contains(|c: char| c.is_control()), "{shadow}");
        assert_eq!(reason(&Reason::Grown(Area::Stacks, 3 << 20)), "3.00 MiB stacks of threads");
        assert!(
            !reason(&Reason::Grown(Area::Inherited, 1)).contains("before recording began"),
            "of one that was forked since"
        );
        assert!(reason(&Reason::Children(2)).contains("its 2 children allocated is not seen"));
        assert!(reason(&Reason::Runtime(Runtime::Python)).contains("PYTHONMALLOC=malloc"));
    }

    #[test]
    fn each_way_of_being_incomplete_is_said() {
        assert_eq!(missing(&Quality { unmatched_frees: 9, ..Quality::default() }), Vec::<String>::new());
        let all = missing(&fixture::everything_missing());
        assert_eq!(
            all,
            [
                "no allocation of 1 process was seen",
                "50.0 MiB (52,428,800 bytes) of 60.0 MiB of new memory not explained (see memory)",
                "12 time spans in which nothing was recorded (the notes tell why)",
                "13 Go heaps not seen, or not in full (the notes tell why)",
                "3 processes not followed that traced ones started (too many at a time, a full ring buffer, or the memory of one that has ended)",
                "1 allocation lost (the ring buffer was full)",
                "7 sampled allocations not recorded (more are held than --max-memory has room for; a larger --sample makes them fewer)",
                "2 frees lost (the ring buffer was full)",
                "4.00 KiB (4,096 bytes) uncertain (a lost free may have ended them)",
                "11 sampled objects whose address is not known",
                "10 sampled objects that may have ended",
                "no garbage collection has come while it was traced: what is told of the Go heap may be garbage by now, or leave out what has come \
                 since the last one",
                "5 stacks cut before the root of the thread",
                "15 files written to after they had been mapped: no names, and stacks may be wrong",
                "3 frees missed (the address was handed out again, or what lies right below was freed)",
                "77 bytes held by stacks that are not known",
                "8 calls into the allocator not followed",
                "16 events of processes that were over before it could be seen whether they fit",
                "4 records of ends of threads and processes, or of libraries, lost (the ring buffer was full)",
                "1 record not understood (a bug in tracer)",
                "14 changes of mappings not recorded: what is told of mapped memory may be wrong",
            ]
        );
    }
}
