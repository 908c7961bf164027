//! What was written, decoded and compared with the profile that it was made of.

use std::{
    collections::HashSet,
    io::Read as _,
    ops::Range,
    time::{Duration, SystemTime},
};

use flate2::read::GzDecoder;

use super::{message::ValueType, *};
use crate::{
    profile::{Frame, JIT, Language, Module, Process},
    report::{Format, fixture, words},
};

const LEAKY: &str = "/usr/bin/leaky";
const LIBC: &str = "/usr/lib/x86_64-linux-gnu/libc.so.6";

/// A decoded profile.
struct Read(message::Profile);

/// A frame of a sample as a reader shows it, leaf first: function, file and line; of one without a name the address.
#[derive(Debug, PartialEq)]
enum Shown {
    Line(String, String, i64),
    Address(u64),
}

impl Read {
    /// Writes and decodes a profile, and checks what holds for all of them.
    #[track_caller]
    fn new(profile: &Profile) -> Self {
        let mut bytes = Vec::new();
        crate::report::write(Format::Pprof, profile, &fixture::OPTIONS, &mut bytes).unwrap();
        let mut unpacked = Vec::new();
        GzDecoder::new(&*bytes).read_to_end(&mut unpacked).unwrap();
        let read = Self(message::Profile::decode(&*unpacked).unwrap());
        read.check_references();
        read.check_places();
        read.check_totals(profile);
        read
    }

    fn check_references(&self) {
        let Self(read) = self;
        let distinct: HashSet<&String> = read.string_table.iter().collect();
        assert_eq!((distinct.len(), &*read.string_table[0]), (read.string_table.len(), ""));
        for text in &read.string_table {
            assert_eq!(visible(text), *text);
        }
        for (index, function) in read.function.iter().enumerate() {
            assert_eq!(function.id, index as u64 + 1);
            assert!(!self.text(function.name).is_empty());
        }
        for (index, location) in read.location.iter().enumerate() {
            assert_eq!(location.id, index as u64 + 1);
            assert!(location.line.iter().all(|line| (1..=read.function.len() as u64).contains(&line.function_id)));
        }
        for sample in &read.sample {
            assert!(!sample.location_id.is_empty());
            assert!(sample.location_id.iter().all(|id| (1..=read.location.len() as u64).contains(id)));
            assert_eq!(sample.value.len(), read.sample_type.len());
            assert!(sample.label.iter().all(|label| label.key != 0 && (label.str != 0) != (label.num != 0)));
        }
        let functions: HashSet<_> = read.function.iter().map(|function| (function.name, function.filename)).collect();
        assert_eq!(functions.len(), read.function.len(), "each function once");
    }

    /// That mappings lie apart, and hold the addresses that refer to them.
    fn check_places(&self) {
        let Self(read) = self;
        let mut ranges: Vec<_> = read.mapping.iter().map(|m| (m.memory_start, m.memory_limit)).collect();
        ranges.sort_unstable();
        assert!(ranges.iter().all(|range| range.0 <= range.1));
        assert!(ranges.is_sorted_by(|a, b| a.1 < b.0 || a.1 == u64::MAX), "{ranges:x?}");
        for (index, mapping) in read.mapping.iter().enumerate() {
            assert_eq!(mapping.id, index as u64 + 1);
            assert!(mapping.filename != 0);
            assert!(mapping.memory_start.is_multiple_of(4096) && mapping.file_offset.is_multiple_of(4096));
        }
        for location in read.location.iter().filter(|location| location.mapping_id != 0) {
            let mapping = read.mapping[location.mapping_id as usize - 1];
            assert!((mapping.memory_start..mapping.memory_limit).contains(&location.address), "{location:x?}");
            assert!(mapping.has_functions || location.line.is_empty());
        }
    }

    fn check_totals(&self, profile: &Profile) {
        let sum = |index: usize| -> i64 { self.0.sample.iter().map(|sample| sample.value[index]).sum() };
        let sums: Vec<u64> = (0..self.0.sample_type.len()).map(|index| sum(index) as u64).collect();
        let totals = profile.totals();
        match profile.kind {
            Kind::Heap => assert_eq!(
                sums,
                [totals.outstanding_blocks, totals.outstanding_bytes, totals.allocated_blocks, totals.allocated_bytes]
                    .map(|total| total.min(i64::MAX as u64))
            ),
            Kind::Goroutines => assert_eq!(sums, [profile.goroutine_count()]),
        }
    }

    fn text(&self, id: i64) -> &str {
        &self.0.string_table[usize::try_from(id).unwrap()]
    }

    fn values(&self) -> Vec<&[i64]> {
        self.0.sample.iter().map(|sample| &*sample.value).collect()
    }

    fn location(&self, id: u64) -> &message::Location {
        &self.0.location[id as usize - 1]
    }

    fn stack(&self, sample: usize) -> Vec<Shown> {
        let locations = self.0.sample[sample].location_id.iter().map(|id| self.location(*id));
        let shown = locations.flat_map(|location| match &*location.line {
            [] => vec![Shown::Address(location.address)],
            lines => lines.iter().map(|line| self.shown(line)).collect(),
        });
        shown.collect()
    }

    fn shown(&self, line: &message::Line) -> Shown {
        let function = self.0.function[line.function_id as usize - 1];
        Shown::Line(self.text(function.name).to_owned(), self.text(function.filename).to_owned(), line.line)
    }

    fn labels(&self, sample: usize) -> Vec<String> {
        let labels = self.0.sample[sample].label.iter();
        labels
            .map(|label| match label.str {
                0 => format!("{}={}", self.text(label.key), label.num),
                text => format!("{}={:?}", self.text(label.key), self.text(text)),
            })
            .collect()
    }

    fn types(&self) -> Vec<String> {
        self.0.sample_type.iter().map(|type_| self.value_type(*type_)).collect()
    }

    fn value_type(&self, type_: ValueType) -> String {
        format!("{}/{}", self.text(type_.r#type), self.text(type_.unit))
    }

    fn comments(&self) -> Vec<&str> {
        self.0.comment.iter().map(|id| self.text(*id)).collect()
    }

    /// The mapping of a file; where in it an address of that mapping is.
    fn mapping(&self, path: &str) -> message::Mapping {
        let mut found = self.0.mapping.iter().filter(|mapping| self.text(mapping.filename) == path);
        let mapping = *found.next().unwrap();
        assert_eq!(found.next(), None, "one mapping of {path}");
        mapping
    }
}

fn line(function: &str, file: &str, line: i64) -> Shown {
    Shown::Line(function.to_owned(), file.to_owned(), line)
}

/// What a stack is to be shown as, leaf first.
fn expected(frames: &Frames) -> Vec<Shown> {
    let text = |text: &Option<String>| visible(text.as_deref().unwrap_or_default()).into_owned();
    frames.iter().rev().map(|f| line(&name::frame(f), &text(&f.file), f.line.map_or(0, i64::from))).collect()
}

fn at(module: Option<&str>, offset: u64) -> Frame {
    Frame { module: module.map(str::to_owned), offset, ..Frame::default() }
}

/// A heap profile of one stack for each of `frames`.
fn profile_of(frames: &[&Frame]) -> Profile {
    let stacks = frames.iter().map(|frame| fixture::entry(&[frame], (1, 1), (1, 1), 0)).collect();
    Profile { stacks, ..fixture::profile() }
}

#[test]
fn the_head_tells_types_times_and_quality() {
    let mut profile = fixture::profile();
    let read = Read::new(&profile);
    assert_eq!(read.types(), ["inuse_objects/count", "inuse_space/bytes", "alloc_objects/count", "alloc_space/bytes"]);
    assert_eq!(read.text(read.0.default_sample_type), "inuse_space");
    assert_eq!((read.value_type(read.0.period_type.unwrap()), read.0.period), ("space/bytes".to_owned(), 1));
    assert_eq!((read.0.time_nanos, read.0.duration_nanos), (1_767_323_045_250_000_000, 60_500_000_000));

    let head = |comments: &[&str], profile: &Profile| {
        let text = fixture::rendered(Format::Text, profile, &fixture::OPTIONS);
        let lines: Vec<&str> = text.lines().take_while(|line| !line.is_empty()).map(str::trim).collect();
        assert!(comments.iter().all(|comment| lines.contains(comment)), "{comments:?} in {lines:?}");
    };
    head(&read.comments(), &profile);
    assert_eq!(
        read.comments()[..3],
        [
            "process      leaky (pid 4711) /usr/bin/leaky",
            "mode         exact: every allocation was recorded",
            "quality      complete",
        ]
    );
    profile.quality = fixture::everything_missing();
    profile.quality.notes.push(fixture::HOSTILE.to_owned());
    let read = Read::new(&profile);
    head(&read.comments(), &profile);
    assert!(read.comments().contains(&"quality      INCOMPLETE"));
    for words in words::missing(&profile.quality) {
        assert!(read.comments().contains(&&*format!("- {words}")), "{words}");
    }
}

#[test]
fn samples_are_the_stacks_leaf_first() {
    let profile = fixture::profile();
    let read = Read::new(&profile);
    assert_eq!(
        read.values(),
        [[1_024, 1_048_576, 4_096, 4_194_304], [2, 524_288, 2, 524_288], [3, 0, 3, 0], [0, 0, 1, 4_096],]
    );
    let start = read.mapping(LIBC).memory_start + 0x271c8 - 0x26000;
    assert_eq!(
        read.stack(0),
        [
            line("accept_one", "src/server.c", 88),
            line("serve(int)", "src/server.c", 120),
            line("main", "src/main.c", 7),
            Shown::Address(start),
        ]
    );
    assert_eq!(read.stack(1), [line("xmlNewNode", "", 0), line("main", "src/main.c", 7), Shown::Address(start)]);
    assert_eq!(read.stack(2), [Shown::Address(0x7f00_1234_5677), Shown::Address(start)]);
    for sample in 0..4 {
        assert_eq!(read.labels(sample), ["pid=4711", "comm=\"leaky\""]);
    }
}

#[test]
fn stacks_that_never_held_anything_are_left_out() {
    let mut profile = fixture::nothing_outstanding();
    assert_eq!(Read::new(&profile).0.sample.len(), 4, "what they allocated is there");
    profile.stacks[2].values = Default::default();
    let read = Read::new(&profile);
    assert_eq!(read.0.sample.len(), 3);
    assert!(read.0.sample.iter().all(|sample| sample.value[..2] == [0, 0] && sample.value[2] > 0));
    profile.stacks.clear();
    assert_eq!(Read::new(&profile).0.sample, []);
}

#[test]
fn inlined_functions_are_lines_of_one_location() {
    let mut profile = fixture::profile();
    let outer = fixture::frame("outer", LEAKY, Some(("a.c", 1)));
    let [middle, inner] = ["middle", "inner"].map(|name| Frame { inlined: true, ..fixture::frame(name, LEAKY, None) });
    let caller = Frame { offset: 0x2000, ..fixture::frame("caller", LEAKY, None) };
    profile.stacks.truncate(1);
    profile.stacks[0].frames = [[caller].into(), [outer, middle, inner].into()].into_iter().collect();
    let read = Read::new(&profile);
    let stack: Vec<usize> = read.0.sample[0].location_id.iter().map(|id| read.location(*id).line.len()).collect();
    assert_eq!(stack, [3, 1]);
    let lines = [line("inner", "", 0), line("middle", "", 0), line("outer", "a.c", 1), line("caller", "", 0)];
    assert_eq!(read.stack(0), lines);
}

#[test]
fn locations_and_functions_are_there_once() {
    let here = fixture::frame("f", LEAKY, Some(("a.c", 1)));
    let further = Frame { offset: here.offset + 8, line: Some(2), ..here.clone() };
    let elsewhere = Frame { file: Some("b.c".to_owned()), offset: here.offset + 16, ..here.clone() };
    let library = Frame { module: Some(LIBC.to_owned()), ..here.clone() };
    // Lists of their own, with the same in them.
    let read = Read::new(&profile_of(&[&here, &further, &here.clone(), &elsewhere, &library, &further.clone()]));
    let locations: Vec<u64> = read.0.sample.iter().map(|sample| sample.location_id[0]).collect();
    assert_eq!(locations, [1, 2, 1, 3, 4, 2]);
    let functions: Vec<u64> = read.0.location.iter().map(|location| location.line[0].function_id).collect();
    assert_eq!(functions, [1, 1, 2, 1], "one for each name and file");
    let places: HashSet<_> = read.0.location.iter().map(|location| (location.mapping_id, location.address)).collect();
    assert_eq!(places.len(), 4);
}

#[test]
fn mappings_lead_back_to_the_files() {
    let mut profile = fixture::profile();
    profile.stacks.push(fixture::entry(
        &[&at(Some("[vdso]"), 0x9a1), &at(Some(JIT), 0x7f12_3456_7890)],
        (1, 1),
        (1, 1),
        0,
    ));
    profile.modules[0].code.push(0x8_0123..0x9_0000);
    let high = fixture::frame("high", LEAKY, None);
    profile.stacks.push(fixture::entry(&[&Frame { offset: 0x8_2001, ..high }], (1, 1), (1, 1), 0));
    let read = Read::new(&profile);

    let files: Vec<_> = read.0.mapping.iter().map(|m| (read.text(m.filename), read.text(m.build_id))).collect();
    assert_eq!(files[0], (LEAKY, "0123456789abcdef"), "the main program comes first");
    assert_eq!(files.iter().filter(|file| **file == files[0]).count(), 2, "each part is a mapping");
    assert_eq!(read.text(read.mapping(LIBC).build_id), "c0ffee");
    assert_eq!(read.text(read.mapping("[vdso]").build_id), "");

    // By mapping: the offsets of the calls in the file.
    let mut offsets: Vec<(&str, u64)> = Vec::new();
    for location in read.0.location.iter().filter(|location| location.mapping_id != 0) {
        let mapping = read.0.mapping[location.mapping_id as usize - 1];
        offsets.push((read.text(mapping.filename), location.address - mapping.memory_start + mapping.file_offset));
    }
    offsets.sort_unstable();
    offsets.dedup();
    let xml = "/usr/lib/x86_64-linux-gnu/libxml2.so.2";
    let generated = 0x7f12_3456_788f;
    let expected =
        [(LEAKY, 0x1138), (LEAKY, 0x8_2000), (LIBC, 0x2_71c8), (xml, 0x1138), (JIT, 0x88f), ("[vdso]", 0x9a0)];
    assert_eq!(offsets, expected);
    assert!(read.0.location.iter().any(|location| location.mapping_id != 0 && location.address == generated));
    // Whole pages of the part that the file tells of; in what is no file, of the places that are there.
    let libc = read.mapping(LIBC);
    assert_eq!((libc.file_offset, libc.memory_limit - libc.memory_start), (0x2_6000, 0x15_5000));
    let vdso = read.mapping("[vdso]");
    assert_eq!((vdso.file_offset, vdso.memory_limit - vdso.memory_start), (0, 0x1000));
}

#[test]
fn mappings_tell_what_is_known_of_them() {
    let read = Read::new(&fixture::profile());
    let flags = |path| {
        let m = read.mapping(path);
        (m.has_functions, m.has_filenames, m.has_line_numbers, m.has_inline_frames)
    };
    assert_eq!(flags(LEAKY), (true, true, true, true));
    assert_eq!(flags(LIBC), (false, false, false, false));
    assert_eq!(flags("/usr/lib/x86_64-linux-gnu/libxml2.so.2"), (true, false, false, false));
    let named = fixture::frame("f", LIBC, Some(("libc.c", 1)));
    let m = Read::new(&profile_of(&[&named])).mapping(LIBC);
    assert_eq!((m.has_functions, m.has_filenames, m.has_line_numbers, m.has_inline_frames), (true, true, true, false));
}

/// A build id that may be another file's would be worse than none.
#[test]
fn files_that_share_a_path_are_not_told_apart() {
    let mut profile = fixture::profile();
    let replaced = Module { build_id: Some("another".to_owned()), ..profile.modules[0].clone() };
    profile.modules.push(replaced);
    let read = Read::new(&profile);
    assert_eq!(read.text(read.mapping(LEAKY).build_id), "");
    profile.modules.pop();
    profile.modules.push(profile.modules[0].clone());
    assert_ne!(Read::new(&profile).mapping(LEAKY).build_id, 0, "the same file, found twice");
}

#[test]
fn the_first_mapping_is_the_main_program_even_without_frames() {
    let mut profile = profile_of(&[&fixture::frame("f", LIBC, None)]);
    let first = |profile: &Profile| {
        let read = Read::new(profile);
        read.text(read.0.mapping[0].filename).to_owned()
    };
    assert_eq!(first(&profile), LEAKY);
    profile.modules.clear();
    assert_eq!(first(&profile), LEAKY);
    profile.processes.clear();
    assert_eq!(first(&profile), LIBC);
}

#[test]
fn one_without_a_name_but_with_a_file_is_named_by_its_place() {
    let frame = Frame { file: Some("gen.s".to_owned()), line: Some(3), ..at(Some(LEAKY), 0x1139) };
    let blank = Frame { function: Some(" ".to_owned()), ..at(Some(LEAKY), 0x2001) };
    let nowhere = at(Some(""), 0x5001);
    let read = Read::new(&profile_of(&[&frame, &blank, &nowhere]));
    assert_eq!(read.stack(0), [line("leaky+0x1139", "gen.s", 3)]);
    assert_eq!(read.stack(1), [Shown::Address(read.mapping(LEAKY).memory_start + 0x1000)]);
    assert_eq!(read.stack(2), [Shown::Address(0x5000)]);
}

#[test]
fn goroutines_are_counted_and_labelled() {
    let profile = fixture::goroutines();
    let read = Read::new(&profile);
    assert_eq!(read.types(), ["goroutine/count"]);
    assert_eq!(read.text(read.0.default_sample_type), "goroutine");
    assert_eq!((read.value_type(read.0.period_type.unwrap()), read.0.period), ("goroutine/count".to_owned(), 1));
    assert_eq!(read.values(), [[12_345], [2], [1], [1]]);
    for (sample, group) in profile.goroutines.iter().enumerate().take(3) {
        assert_eq!(read.stack(sample), expected(&group.frames));
    }
    assert_eq!(read.stack(3), [line("[no stack]", "", 0)]);
    let process = ["pid=4711", "comm=\"gateway\""];
    assert_eq!(read.labels(0)[..2], process);
    assert_eq!(read.labels(0)[2..], ["state=\"waiting\"", "wait_reason=\"chan receive\""]);
    assert_eq!(read.labels(1)[2..], ["state=\"running\""]);
    assert_eq!(read.labels(2)[2..], ["state=\"syscall\""]);
    // Their addresses are those of calls.
    let first = read.location(read.0.sample[0].location_id[0]);
    assert_eq!(first.address, read.mapping("/srv/gateway").memory_start + 0x139);
    assert_eq!(read.text(read.mapping("/srv/gateway").build_id), "action/main");
    assert!(read.comments().contains(&"mode         snapshot: read from memory while the process ran"));
    assert!(read.comments().contains(&"note         2 goroutines ran"));
}

#[test]
fn hostile_text_is_made_safe_and_breaks_nothing() {
    let profile = fixture::hostile();
    let read = Read::new(&profile);
    for (sample, entry) in profile.stacks.iter().enumerate() {
        for (shown, expected) in read.stack(sample).into_iter().zip(expected(&entry.frames)) {
            assert!(shown == expected || matches!(shown, Shown::Address(_)), "{shown:?}, not {expected:?}");
        }
    }
    assert_eq!(read.labels(1), ["pid=4712", "comm=\"# sh\""]);
    assert!(read.0.string_table.contains(&visible(fixture::HOSTILE).into_owned()));
    Read::new(&fixture::hostile_goroutines());

    let far = |offset| at(Some("/dev/shm/forged"), offset);
    let [first, last, middle] = [far(0), far(u64::MAX), far(1 << 63)];
    let mut profile =
        profile_of(&[&first, &last, &middle, &at(None, 0), &at(None, u64::MAX), &at(Some(JIT), u64::MAX)]);
    Read::new(&profile);
    let target = Process::new(1, String::new(), "/dev/shm/forged".to_owned(), Language::C);
    profile.processes.insert(0, target);
    let reversed = Range { start: u64::MAX, end: 0 };
    for code in [vec![reversed, u64::MAX - 1..u64::MAX], vec![0..1; 100_000], vec![0..u64::MAX; 3]] {
        profile.modules = vec![Module { path: "/dev/shm/forged".to_owned(), build_id: None, code }];
        Read::new(&profile);
    }
}

#[test]
fn samples_say_where_their_processes_were() {
    let read = Read::new(&fixture::three_processes());
    let labels: Vec<Vec<String>> = (0..12).step_by(4).map(|sample| read.labels(sample)).collect();
    assert_eq!(labels[0], ["pid=4711", "comm=\"leaky\"", "cgroup=\"/system.slice/leaky.service\""]);
    let inside = ["pid=5000", "comm=\"leaky\"", "cgroup=\"/docker/3f4a\"", "container=\"web (docker 3f4a)\""];
    assert_eq!(labels[1], inside);
    assert_eq!(labels[2], ["pid=5001", "comm=\"leaky\""]);
}

#[test]
fn sums_are_never_more_than_readers_hold() {
    let mut profile = profile_of(&[&at(None, 1), &at(None, 2), &at(None, 3)]);
    for stack in &mut profile.stacks {
        (stack.values.allocated_bytes, stack.values.outstanding_bytes) = (u64::MAX, 1 << 62);
    }
    let read = Read::new(&profile);
    let (max, part) = (i64::MAX, 1 << 62);
    assert_eq!(read.values(), [[1, part, 1, max], [1, part - 1, 1, 0], [1, 0, 1, 0]]);
}

#[test]
fn a_time_that_pprof_does_not_know_is_an_error() {
    for seconds in [1 << 50, 1 << 34] {
        let started = SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
        let profile = Profile { started, ..fixture::profile() };
        assert_eq!(write(&profile, &fixture::OPTIONS, &mut Vec::new()).unwrap_err().kind(), io::ErrorKind::InvalidData);
    }
}
