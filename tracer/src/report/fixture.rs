//! Hand-made profiles for the tests of all formats, and the check against goldens.

use std::{
    fs,
    ops::Range,
    path::PathBuf,
    sync::Arc,
    time::{Duration, SystemTime},
};

use super::{By, Format, Options, Value, write};
use crate::profile::{
    Container, Cost, End, Filters, Frame, Frames, GoroutineGroup, GoroutineGrowth, Growth, Heap, Kind, Language,
    Memory, Mode, Module, Place, Process, Profile, Rate, SeenHeap, StackEntry, Trend, UnwindTable, Values, WaitsOn,
    quality::{Collections, Quality, Truncation},
};

/// What most tests ask for.
pub(super) const OPTIONS: Options = Options { top: 10, value: Value::Bytes, by: By::Program };

/// Characters that do something where they are shown, and text that means something in one of the formats.
pub(super) const HOSTILE: &str =
    "a\nb\r\u{1b}[2J\u{9b}31m\0\u{7f}\u{202e}\u{2066}\u{2028}\u{ffff};<script>alert('x')</script>]]>&\"-- 12";

/// A profile with what an ordinary one has: inlined and unknown frames, a stack that is freed and one without bytes.
pub(super) fn profile() -> Profile {
    let main = frame("main", "/usr/bin/leaky", Some(("src/main.c", 7)));
    let serve = frame("serve(int)", "/usr/bin/leaky", Some(("src/server.c", 120)));
    let accept = Frame { inlined: true, ..frame("accept_one", "/usr/bin/leaky", Some(("src/server.c", 88))) };
    let start = unknown(Some("/usr/lib/x86_64-linux-gnu/libc.so.6"), 0x271c9);
    let xml_new = frame("xmlNewNode", "/usr/lib/x86_64-linux-gnu/libxml2.so.2", None);
    let jitted = unknown(None, 0x7f00_1234_5678);

    let sessions = entry(&[&start, &main, &serve, &accept], (1_048_576, 1_024), (4_194_304, 4_096), 55_240);
    let nodes = entry(&[&start, &main, &xml_new], (524_288, 2), (524_288, 2), 1_000);
    let zero_sized = entry(&[&start, &jitted], (0, 3), (0, 3), 30_000);
    let freed = entry(&[&start, &main], (0, 0), (4_096, 1), 0);
    Profile {
        kind: Kind::Heap,
        started: SystemTime::UNIX_EPOCH + Duration::from_millis(1_767_323_045_250),
        duration: Duration::from_millis(60_500),
        mode: Mode::Exact,
        filters: Filters::default(),
        processes: vec![target(4711, "leaky", "/usr/bin/leaky")],
        stacks: vec![
            StackEntry { growth: growth(Trend::Growing, 17_920.0, 256.0), ..sessions },
            StackEntry { growth: growth(Trend::Steady, 12.5, 40.0), ..nodes },
            zero_sized,
            freed,
        ],
        mappings: None,
        goroutines: Vec::new(),
        goroutine_growth: None,
        quality: Quality { unmatched_frees: 17, recorded_events: 5_000, ..Quality::default() },
        cost: Some(Cost {
            hits: 1_234_567,
            go: Duration::ZERO,
            probes: Duration::from_millis(850),
            own: Duration::from_millis(150),
            processes: Duration::from_millis(20_850),
        }),
        unwind_tables: vec![UnwindTable {
            path: "/usr/bin/leaky".to_owned(),
            rows: 1_200,
            bytes: 5_632,
            build_time: Duration::from_micros(1_250),
            code_bytes: 65_536,
            uncovered_bytes: 48,
            synthesized_bytes: 96,
            problem: None,
        }],
        modules: vec![
            module("/usr/bin/leaky", Some("0123456789abcdef"), 0x1000..0x1_1000),
            module("/usr/lib/x86_64-linux-gnu/libc.so.6", Some("c0ffee"), 0x2_6000..0x17_b000),
            module("/usr/lib/x86_64-linux-gnu/libxml2.so.2", None, 0x1000..0xf000),
        ],
    }
}

/// Three processes, two of one program, each with the stacks of [`profile`] and in a place of its own.
pub(super) fn three_processes() -> Profile {
    let one = profile();
    let mut profile = one.clone();
    profile.processes[0].place = Place { cgroup: Some("/system.slice/leaky.service".into()), container: None };
    let container = Container { runtime: "docker".to_owned(), id: "3f4a".to_owned(), name: Some("web".to_owned()) };
    let in_container = Place { cgroup: Some("/docker/3f4a".into()), container: Some(container.into()) };
    for (pid, exe, place) in [(5000, "/usr/bin/leaky", in_container), (5001, "/usr/bin/other", Place::default())] {
        let image = pid;
        profile.processes.push(Process { pid, image, exe: exe.to_owned(), place, ..one.processes[0].clone() });
        profile.stacks.extend(one.stacks.iter().map(|stack| StackEntry { pid, image, ..stack.clone() }));
    }
    profile
}

/// So many processes: of three large programs and of many small ones, in containers, many of them ended; with notes of each.
pub(super) fn crowd(number: u32) -> Profile {
    let one = profile();
    let mut profile = Profile { processes: Vec::new(), stacks: Vec::new(), ..one.clone() };
    for image in 1..=number {
        let name = match image % 10 {
            0..=4 => "postgres".to_owned(),
            5..=7 => "worker".to_owned(),
            8 => "sh".to_owned(),
            _ => format!("tool-{}", image % 500),
        };
        let pid = 1_000 + image % 4_000;
        let id = format!("{:012x}{:052x}", 0xabc_def0_0000_u64 + u64::from(image % 40), 0);
        let container = Container { runtime: "docker".to_owned(), id: id.clone(), name: None };
        let place = Place { cgroup: Some(format!("/docker/{id}").into()), container: Some(container.into()) };
        let memory = Memory {
            anonymous_begin: 1 << 20,
            anonymous_end: (1 << 20) + (u64::from(image) << 10),
            fresh: u64::from(image) << 10,
            file: 3 << 20,
            ..Memory::default()
        };
        let ended = (image % 10 > 5).then_some(End { after: Duration::from_secs(1), signal: None });
        profile.processes.push(Process {
            image,
            place,
            ended,
            memory: Some(memory).filter(|_| ended.is_none() && image % 50 != 0),
            ..target(pid, &name, &format!("/usr/bin/{name}"))
        });
        for stack in &one.stacks {
            let mut stack = StackEntry { pid, image, ..stack.clone() };
            if ended.is_some() {
                stack.at_end = Some((stack.values.outstanding_bytes, stack.values.outstanding_blocks));
                (stack.values.outstanding_bytes, stack.values.outstanding_blocks) = (0, 0);
                (stack.growth, stack.oldest) = (None, None);
            }
            profile.stacks.push(stack);
        }
        profile.quality.notes.push(format!("process {pid} became another program; the first 3 ms were not recorded"));
    }
    profile
}

/// [`profile`] with everything in it freed.
pub(super) fn nothing_outstanding() -> Profile {
    let mut profile = profile();
    for stack in &mut profile.stacks {
        stack.values.freed_blocks = stack.values.allocated_blocks;
        (stack.values.outstanding_bytes, stack.values.outstanding_blocks) = (0, 0);
        (stack.oldest, stack.growth) = (None, None);
    }
    profile
}

/// [`profile`] with two processes and with [`HOSTILE`] text wherever text can be.
pub(super) fn hostile() -> Profile {
    let mut profile = profile();
    profile.processes = vec![target(4711, HOSTILE, HOSTILE), target(4712, "# sh", "")];
    let text = || Some(HOSTILE.to_owned());
    let symbol = Some(HOSTILE.into());
    let named =
        Frame { function: text(), symbol, file: text(), line: Some(1), module: text(), offset: 16, inlined: true };
    let unnamed = Frame { function: None, file: None, ..named.clone() };
    let long = frame(&"Ns<".repeat(5_000), "/usr/bin/leaky", None);
    let frames = [&named, &unnamed, &long, &named];
    profile.stacks = vec![entry(&frames, (8_192, 2), (8_192, 2), 1_000), entry(&[&named], (100, 1), (100, 1), 1_000)];
    (profile.stacks[1].pid, profile.stacks[1].image) = (4712, 4712);
    profile.quality = everything_missing();
    profile.quality.notes.push(HOSTILE.to_owned());
    let reversed = Range { start: 5, end: 1 };
    profile.modules = vec![module(HOSTILE, Some(HOSTILE), 0..u64::MAX), module("", None, reversed)];
    profile.unwind_tables[0].path = HOSTILE.to_owned();
    profile.unwind_tables[0].problem = text();
    profile
}

fn growth(trend: Trend, per_second: f64, error: f64) -> Option<Growth> {
    Some(Growth { trend, rate: Some(Rate { per_second, error }) })
}

/// Goroutines that wait, one that runs, and one without a stack.
pub(super) fn goroutines() -> Profile {
    let frame = |function: &str, file: &str, line| frame(function, "/srv/gateway", Some((file, line)));
    let park = frame("runtime.gopark", "runtime/proc.go", 398);
    let receive = frame("runtime.chanrecv1", "runtime/chan.go", 442);
    let next = Frame { inlined: true, ..frame("main.next", "gateway/queue.go", 31) };
    let work = frame("main.work", "gateway/queue.go", 58);
    let (main, serve) = (frame("main.main", "gateway/main.go", 19), frame("main.serve", "gateway/main.go", 77));
    let group = |count, state, frames: &[&Frame]| GoroutineGroup {
        pid: 4711,
        library: None,
        frames: frames.iter().map(|&frame| Arc::from([frame.clone()])).collect(),
        count,
        state,
        wait_reason: None,
        longest_wait: None,
        created_by: Some(serve.clone()),
        waits_on: None,
        growth: None,
        suspected_leak: false,
        truncated: None,
    };
    let waiting = GoroutineGroup {
        wait_reason: Some("chan receive".to_owned()),
        longest_wait: Some(Duration::from_secs(3_723)),
        waits_on: Some(WaitsOn::Several(12_345)),
        ..group(12_345, "waiting", &[&work, &next, &receive, &park])
    };
    let first = GoroutineGroup { created_by: None, ..group(1, "syscall", &[&main]) };
    let mut profile = profile();
    profile.kind = Kind::Goroutines;
    profile.mode = Mode::Snapshot;
    profile.processes =
        vec![Process { language: Language::Go, heaps: Vec::new(), ..target(4711, "gateway", "/srv/gateway") }];
    profile.stacks.clear();
    profile.unwind_tables.clear();
    profile.modules = vec![module("/srv/gateway", Some("action/main"), 0x1000..0x20_1000)];
    profile.goroutines = vec![waiting, group(2, "running", &[&work]), first, group(1, "runnable", &[])];
    profile.quality = Quality { notes: vec!["2 goroutines ran".to_owned()], ..Quality::default() };
    profile
}

/// [`profile`] of a Go process that leaks goroutines: two groups suspected, one that grows, others that do not, and one gone.
pub(super) fn leaking_goroutines() -> Profile {
    let Profile { goroutines, processes, .. } = goroutines();
    let grown = |group: &GoroutineGroup, count, first, per_second, only_grows| GoroutineGroup {
        count,
        growth: Some(GoroutineGrowth { first, per_second, only_grows }),
        ..group.clone()
    };
    let [waiting, running, first, runnable] = &goroutines[..] else { unreachable!() };
    let leak = GoroutineGroup { suspected_leak: true, ..grown(waiting, 12_345, 45, Some(203.5), true) };
    let shared = GoroutineGroup {
        waits_on: Some(WaitsOn::One(0xc000_1c00c0)),
        suspected_leak: true,
        ..grown(waiting, 700, 0, None, true)
    };
    let reading = GoroutineGroup { wait_reason: Some("IO wait".to_owned()), waits_on: None, ..waiting.clone() };
    let groups = vec![
        leak,
        shared,
        grown(&reading, 60, 20, Some(0.5), true),
        grown(first, 1, 1, Some(0.0), false),
        grown(runnable, 1, 0, Some(0.1), false),
        grown(running, 0, 8, Some(-0.1), false),
    ];
    Profile { processes, goroutines: groups, goroutine_growth: Some(204.0), ..profile() }
}

/// [`goroutines`] with [`HOSTILE`] text wherever text can be.
pub(super) fn hostile_goroutines() -> Profile {
    let mut profile = goroutines();
    let named = hostile().stacks[0].frames.clone();
    profile.processes = vec![target(4711, HOSTILE, HOSTILE), target(4712, "", "")];
    profile.processes.iter_mut().for_each(|target| target.heaps.clear());
    for group in &mut profile.goroutines {
        group.wait_reason = Some(HOSTILE.to_owned());
        group.created_by = named.iter().next().cloned();
        group.frames = Frames::clone(&named);
    }
    profile
}

/// A quality with every count set, each to another number.
pub(super) fn everything_missing() -> Quality {
    Quality {
        all_samples: 0,
        lost_allocs: 1,
        refused_allocs: 0,
        refused_samples: 7,
        lost_frees: 2,
        lost_moments: 4,
        unfollowed_processes: 3,
        undecided_events: 16,
        inherited_frees: 0,
        unmatched_frees: 6,
        missed_frees: 3,
        lost_remappings: 14,
        recorded_remappings: 1_016,
        rewritten_files: 15,
        truncated: [(Truncation::Depth, 2), (Truncation::NoRule, 3)].into(),
        uncertain_bytes: 4_096,
        unknown_stack_bytes: 77,
        untracked_calls: 8,
        unknown_records: 1,
        sampling: None,
        missed_cycles: 9,
        cycles: 90,
        collections: vec![Collections { pid: 4711, library: None, at_begin: 5, at_end: 17, own_profile: false }],
        uncollected_heaps: 1,
        undecided_samples: 10,
        unresolved_samples: 11,
        unexplained_bytes: 50 << 20,
        fresh_bytes: 60 << 20,
        unseen_spans: 12,
        unseen_heaps: 13,
        silent_targets: 1,
        targets: 2,
        recorded_events: 1_000,
        outstanding_bytes: 10_000,
        notes: Vec::new(),
    }
}

/// What the profile looks like in a format.
pub(super) fn rendered(format: Format, profile: &Profile, options: &Options) -> String {
    let mut out = Vec::new();
    write(format, profile, options, &mut out).unwrap();
    String::from_utf8(out).unwrap()
}

/// Compares `actual` with the golden file; with `BLESS=1` in the environment writes it instead.
pub(super) fn check_golden(file: &str, actual: &str) {
    let path = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/data")).join(file);
    if std::env::var_os("BLESS").is_some_and(|value| value == "1") {
        fs::write(&path, actual).unwrap();
    }
    let golden = fs::read_to_string(&path).unwrap_or_default();
    assert!(golden == actual, "{file} differs; BLESS=1 cargo test rewrites it. Now it is:\n{actual}");
}

fn target(pid: u32, comm: &str, exe: &str) -> Process {
    let native = SeenHeap { heap: Heap::Native, mode: Mode::Exact, sampling: None };
    let process = Process::new(pid, comm.to_owned(), exe.to_owned(), Language::Cpp);
    Process { image: pid, heaps: vec![native], ..process }
}

fn module(path: &str, build_id: Option<&str>, code: Range<u64>) -> Module {
    Module { path: path.to_owned(), build_id: build_id.map(str::to_owned), code: vec![code] }
}

pub(super) fn frame(function: &str, module: &str, source: Option<(&str, u32)>) -> Frame {
    Frame {
        function: Some(function.to_owned()),
        file: source.map(|(file, _)| file.to_owned()),
        line: source.map(|(_, line)| line),
        ..unknown(Some(module), 0x1139)
    }
}

fn unknown(module: Option<&str>, offset: u64) -> Frame {
    Frame { module: module.map(str::to_owned), offset, ..Frame::default() }
}

/// A stack of pid 4711 with (bytes, blocks) outstanding and allocated.
pub(super) fn entry(frames: &[&Frame], outstanding: (u64, u64), allocated: (u64, u64), oldest_ms: u64) -> StackEntry {
    StackEntry {
        heap: Heap::Native,
        pid: 4711,
        image: 4711,
        frames: frames.iter().map(|&frame| Arc::from([frame.clone()])).collect(),
        values: Values {
            outstanding_bytes: outstanding.0,
            outstanding_blocks: outstanding.1,
            allocated_bytes: allocated.0,
            allocated_blocks: allocated.1,
            freed_blocks: allocated.1 - outstanding.1,
        },
        uncertain_bytes: 0,
        oldest: (outstanding.1 > 0).then_some(Duration::from_millis(oldest_ms)),
        estimate: None,
        growth: None,
        at_end: None,
        holders: u64::from(outstanding.1 > 0),
        truncated: None,
    }
}
