//! JSON, the saved form: everything that a profile holds, to be read back.
//!
//! One object on one line. Its fields are the format's definition, so they are spelled out here and do not follow the
//! names of the types in [`profile`](crate::profile). Names stay as they are, whatever is in them.

use std::{
    collections::BTreeMap,
    io::{self, Write},
    time::SystemTime,
};

use jiff::Timestamp;
use serde::{Serialize, Serializer, ser::SerializeMap as _};

use super::words;
use crate::{
    profile::{
        Frame, Frames, GoroutineGroup, Kind, Memory, Module, Profile, Reason, SeenHeap, StackEntry, Target,
        UnwindTable, Values, WaitsOn,
    },
    quality::{Collections, Gap, Quality, Sampling},
};

/// Version of the format. Readers ignore fields that they do not know, so only a change of meaning raises it.
const VERSION: u32 = 1;

/// Writes the profile, stack by stack.
pub(super) fn write(profile: &Profile, out: &mut impl Write) -> io::Result<()> {
    let started = rfc3339(profile.started)?;
    serde_json::to_writer(&mut *out, &SavedProfile { profile, started })?;
    writeln!(out)
}

fn rfc3339(time: SystemTime) -> io::Result<String> {
    let time = Timestamp::try_from(time).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
    Ok(time.to_string())
}

struct SavedProfile<'a> {
    profile: &'a Profile,
    started: String,
}

impl Serialize for SavedProfile<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let profile = self.profile;
        let mut object = serializer.serialize_map(None)?;
        object.serialize_entry("format", "tracer-profile")?;
        object.serialize_entry("version", &VERSION)?;
        object.serialize_entry("kind", words::kind(profile.kind))?;
        object.serialize_entry("started", &self.started)?;
        object.serialize_entry("duration_seconds", &profile.duration.as_secs_f64())?;
        object.serialize_entry("mode", words::mode(profile.mode))?;
        object.serialize_entry("targets", &Saved(&*profile.targets))?;
        match profile.kind {
            Kind::Heap => {
                object.serialize_entry("totals", &Saved(&profile.totals()))?;
                object.serialize_entry("stacks", &Saved(&*profile.stacks))?;
                object.serialize_entry("goroutines", &Saved(&*profile.goroutines))?;
                object.serialize_entry("quality", &Saved(&profile.quality))?;
                object.serialize_entry("unwind_tables", &Saved(&*profile.unwind_tables))?;
                object.serialize_entry("modules", &Saved(&*profile.modules))?;
            }
            Kind::Goroutines => {
                object.serialize_entry("totals", &BTreeMap::from([("goroutines", profile.goroutine_count())]))?;
                object.serialize_entry("stacks", &Saved(&*profile.goroutines))?;
                object.serialize_entry("quality", &Saved(&profile.quality))?;
                object.serialize_entry("modules", &Saved(&*profile.modules))?;
            }
        }
        object.end()
    }
}

/// Part of a profile in its saved form.
struct Saved<'a, T: ?Sized>(&'a T);

impl<'a, T> Serialize for Saved<'a, [T]>
where
    Saved<'a, T>: Serialize,
{
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(self.0.iter().map(Saved))
    }
}

impl Serialize for Saved<'_, Target> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut object = serializer.serialize_map(None)?;
        object.serialize_entry("pid", &self.0.pid)?;
        object.serialize_entry("comm", &self.0.comm)?;
        object.serialize_entry("exe", &self.0.exe)?;
        object.serialize_entry("language", self.0.language.name())?;
        object.serialize_entry("heaps", &Saved(&*self.0.heaps))?;
        object.serialize_entry("memory", &self.0.memory.as_ref().map(Saved))?;
        object.serialize_entry("parent_pid", &self.0.parent)?;
        object.serialize_entry("ended_after_seconds", &self.0.ended.map(|end| end.after.as_secs_f64()))?;
        object.serialize_entry("ended_by_signal", &self.0.ended.and_then(|end| end.signal))?;
        object.end()
    }
}

impl Serialize for Saved<'_, Memory> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let memory = self.0;
        let mut object = serializer.serialize_map(None)?;
        object.serialize_entry("anonymous_begin", &memory.anonymous_begin)?;
        object.serialize_entry("anonymous_end", &memory.anonymous_end)?;
        object.serialize_entry("file", &memory.file)?;
        object.serialize_entry("shared", &memory.shared)?;
        object.serialize_entry("grew", &memory.grew())?;
        object.serialize_entry("recorded", &memory.recorded)?;
        object.serialize_entry("fresh", &memory.fresh)?;
        object.serialize_entry("unexplained", &memory.unexplained)?;
        object.serialize_entry("explained", &memory.is_explained())?;
        object.serialize_entry("reasons", &Saved(&*memory.reasons))?;
        object.serialize_entry("as_of_seconds", &memory.as_of.map(|at| at.as_secs_f64()))?;
        object.end()
    }
}

impl Serialize for Saved<'_, Reason> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut object = serializer.serialize_map(None)?;
        match self.0 {
            Reason::Grown(area, bytes) => {
                object.serialize_entry("kind", area.name())?;
                object.serialize_entry("bytes", bytes)?;
            }
            Reason::Allocator(name, file) => {
                object.serialize_entry("kind", "allocator")?;
                object.serialize_entry("name", name)?;
                object.serialize_entry("file", file)?;
            }
            Reason::Runtime(runtime) => {
                object.serialize_entry("kind", "runtime")?;
                object.serialize_entry("name", runtime.name())?;
            }
            Reason::Children(number) => {
                object.serialize_entry("kind", "children")?;
                object.serialize_entry("number", number)?;
            }
        }
        object.serialize_entry("words", &words::reason(self.0))?;
        object.end()
    }
}

impl Serialize for Saved<'_, SeenHeap> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut object = serializer.serialize_map(None)?;
        object.serialize_entry("kind", self.0.heap.name())?;
        if let Some(library) = self.0.heap.library() {
            object.serialize_entry("library", library)?;
        }
        object.serialize_entry("mode", words::mode(self.0.mode))?;
        object.serialize_entry("sampling", &self.0.sampling.as_ref().map(Saved))?;
        object.end()
    }
}

impl Serialize for Saved<'_, Gap> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut object = serializer.serialize_map(None)?;
        object.serialize_entry("what", self.0.what.name())?;
        object.serialize_entry("amount", &self.0.amount)?;
        object.serialize_entry("of", &self.0.of)?;
        object.serialize_entry("beyond_threshold", &self.0.is_beyond_threshold())?;
        object.serialize_entry("words", &words::gap(self.0))?;
        object.end()
    }
}

impl Serialize for Saved<'_, Values> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut object = serializer.serialize_map(None)?;
        object.serialize_entry("outstanding_bytes", &self.0.outstanding_bytes)?;
        object.serialize_entry("outstanding_blocks", &self.0.outstanding_blocks)?;
        object.serialize_entry("allocated_bytes", &self.0.allocated_bytes)?;
        object.serialize_entry("allocated_blocks", &self.0.allocated_blocks)?;
        object.serialize_entry("freed_blocks", &self.0.freed_blocks)?;
        object.end()
    }
}

impl Serialize for Saved<'_, StackEntry> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut object = serializer.serialize_map(None)?;
        object.serialize_entry("pid", &self.0.pid)?;
        object.serialize_entry("heap", self.0.heap.name())?;
        if let Some(library) = self.0.heap.library() {
            object.serialize_entry("library", library)?;
        }
        object.serialize_entry("frames", &Saved(&self.0.frames))?;
        object.serialize_entry("outstanding_bytes", &self.0.values.outstanding_bytes)?;
        object.serialize_entry("outstanding_blocks", &self.0.values.outstanding_blocks)?;
        object.serialize_entry("allocated_bytes", &self.0.values.allocated_bytes)?;
        object.serialize_entry("allocated_blocks", &self.0.values.allocated_blocks)?;
        object.serialize_entry("uncertain_bytes", &self.0.uncertain_bytes)?;
        object.serialize_entry("oldest_seconds", &self.0.oldest.map(|oldest| oldest.as_secs_f64()))?;
        let rate = self.0.growth.and_then(|growth| growth.rate);
        object.serialize_entry("trend", &self.0.growth.map(|growth| growth.trend.name()))?;
        object.serialize_entry("growth_bytes_per_second", &rate.map(|rate| rate.per_second))?;
        object.serialize_entry("growth_error", &rate.map(|rate| rate.error))?;
        if let Some((bytes, blocks)) = self.0.at_end {
            object.serialize_entry("at_end_bytes", &bytes)?;
            object.serialize_entry("at_end_blocks", &blocks)?;
        }
        object.end()
    }
}

impl Serialize for Saved<'_, GoroutineGroup> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let group = self.0;
        let mut object = serializer.serialize_map(None)?;
        object.serialize_entry("pid", &group.pid)?;
        if let Some(library) = group.library.as_deref() {
            object.serialize_entry("library", library)?;
        }
        object.serialize_entry("frames", &Saved(&group.frames))?;
        object.serialize_entry("goroutines", &group.count)?;
        object.serialize_entry("state", group.state)?;
        object.serialize_entry("wait_reason", &group.wait_reason)?;
        object.serialize_entry("longest_wait_seconds", &group.longest_wait.map(|wait| wait.as_secs_f64()))?;
        object.serialize_entry("created_by", &group.created_by.as_ref().map(Saved))?;
        object.serialize_entry("waits_on", &group.waits_on.as_ref().map(Saved))?;
        object.serialize_entry("suspected_leak", &group.suspected_leak)?;
        if let Some(growth) = group.growth {
            object.serialize_entry("first_count", &growth.first)?;
            object.serialize_entry("growth_per_second", &growth.per_second)?;
            object.serialize_entry("only_grows", &growth.only_grows)?;
        }
        object.end()
    }
}

impl Serialize for Saved<'_, WaitsOn> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let (objects, address) = match *self.0 {
            WaitsOn::One(address) => (1, Some(address)),
            WaitsOn::Several(objects) => (objects, None),
        };
        let mut object = serializer.serialize_map(None)?;
        object.serialize_entry("objects", &objects)?;
        object.serialize_entry("address", &address)?;
        object.end()
    }
}

impl Serialize for Saved<'_, Frames> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(self.0.iter().map(Saved))
    }
}

impl Serialize for Saved<'_, Frame> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut object = serializer.serialize_map(None)?;
        object.serialize_entry("function", &self.0.function)?;
        object.serialize_entry("file", &self.0.file)?;
        object.serialize_entry("line", &self.0.line)?;
        object.serialize_entry("module", &self.0.module)?;
        object.serialize_entry("offset", &self.0.offset)?;
        object.serialize_entry("inlined", &self.0.inlined)?;
        object.end()
    }
}

impl Serialize for Saved<'_, UnwindTable> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let table = self.0;
        let mut object = serializer.serialize_map(None)?;
        object.serialize_entry("file", &table.path)?;
        object.serialize_entry("rows", &table.rows)?;
        object.serialize_entry("bytes", &table.bytes)?;
        object.serialize_entry("build_seconds", &table.build_time.as_secs_f64())?;
        object.serialize_entry("code_bytes", &table.code_bytes)?;
        object.serialize_entry("uncovered_bytes", &table.uncovered_bytes)?;
        object.serialize_entry("problem", &table.problem)?;
        object.end()
    }
}

impl Serialize for Saved<'_, Module> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut object = serializer.serialize_map(None)?;
        object.serialize_entry("file", &self.0.path)?;
        object.serialize_entry("build_id", &self.0.build_id)?;
        let code: Vec<_> = self.0.code.iter().map(|part| (part.start, part.end)).collect();
        object.serialize_entry("code", &code)?;
        object.end()
    }
}

impl Serialize for Saved<'_, Quality> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let quality = self.0;
        let mut object = serializer.serialize_map(None)?;
        object.serialize_entry("complete", &quality.complete())?;
        object.serialize_entry("gaps", &Saved(&*quality.gaps()))?;
        object.serialize_entry("lost_allocs", &quality.lost_allocs)?;
        object.serialize_entry("lost_frees", &quality.lost_frees)?;
        object.serialize_entry("unmatched_frees", &quality.unmatched_frees)?;
        object.serialize_entry("inherited_frees", &quality.inherited_frees)?;
        object.serialize_entry("truncated_stacks", &quality.truncated_stacks())?;
        let reasons: BTreeMap<&str, u64> = quality.truncated.iter().map(|(reason, n)| (reason.name(), *n)).collect();
        object.serialize_entry("truncated_by_reason", &reasons)?;
        object.serialize_entry("uncertain_bytes", &quality.uncertain_bytes)?;
        object.serialize_entry("sampling", &quality.sampling.as_ref().map(Saved))?;
        object.serialize_entry("cycles", &quality.cycles)?;
        object.serialize_entry("missed_cycles", &quality.missed_cycles)?;
        let collections: Vec<_> = quality.collections.iter().map(Saved).collect();
        object.serialize_entry("collections", &collections)?;
        object.serialize_entry("uncollected_heaps", &quality.uncollected_heaps)?;
        object.serialize_entry("undecided_samples", &quality.undecided_samples)?;
        object.serialize_entry("unresolved_samples", &quality.unresolved_samples)?;
        object.serialize_entry("notes", &quality.notes)?;
        object.end()
    }
}

impl Serialize for Saved<'_, Collections> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut object = serializer.serialize_map(None)?;
        object.serialize_entry("pid", &self.0.pid)?;
        if let Some(library) = self.0.library.as_deref() {
            object.serialize_entry("library", library)?;
        }
        object.serialize_entry("at_begin", &self.0.at_begin)?;
        object.serialize_entry("at_end", &self.0.at_end)?;
        object.end()
    }
}

impl Serialize for Saved<'_, Sampling> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut object = serializer.serialize_map(None)?;
        object.serialize_entry("mean_bytes", &self.0.mean_bytes)?;
        object.serialize_entry("samples", &self.0.samples)?;
        object.serialize_entry("relative_error", &self.0.relative_error)?;
        object.end()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use serde_json::{Value as Json, json};

    use super::*;
    use crate::{
        profile::{Area, Runtime},
        report::{Format, fixture},
    };

    fn saved(profile: &Profile) -> Json {
        serde_json::from_str(&fixture::rendered(Format::Json, profile, &fixture::OPTIONS)).unwrap()
    }

    #[test]
    fn golden() {
        let text = fixture::rendered(Format::Json, &fixture::profile(), &fixture::OPTIONS);
        assert_eq!(text.matches('\n').count(), 1);
        fixture::check_golden("report_bytes.json", &text);
    }

    #[test]
    fn fields_are_those_of_the_format_and_no_others() {
        let mut profile = fixture::profile();
        profile.stacks.truncate(1);
        profile.modules.truncate(1);
        profile.stacks[0].frames = profile.stacks[0].frames.iter().take(1).cloned().collect::<Vec<_>>().into();
        profile.stacks[0].uncertain_bytes = 512;
        assert_eq!(
            saved(&profile),
            json!({
                "format": "tracer-profile", "version": 1, "kind": "heap", "mode": "exact",
                "started": "2026-01-02T03:04:05.25Z", "duration_seconds": 60.5,
                "targets": [{"pid": 4711, "comm": "leaky", "exe": "/usr/bin/leaky", "language": "C++",
                    "heaps": [{"kind": "native", "mode": "exact", "sampling": null}],
                    "memory": null, "parent_pid": null, "ended_after_seconds": null, "ended_by_signal": null}],
                "totals": {
                    "outstanding_bytes": 1_048_576, "outstanding_blocks": 1_024,
                    "allocated_bytes": 4_194_304, "allocated_blocks": 4_096, "freed_blocks": 3_072,
                },
                "stacks": [{
                    "pid": 4711, "heap": "native",
                    "frames": [{
                        "function": null, "file": null, "line": null,
                        "module": "/usr/lib/x86_64-linux-gnu/libc.so.6", "offset": 0x271c9, "inlined": false,
                    }],
                    "outstanding_bytes": 1_048_576, "outstanding_blocks": 1_024,
                    "allocated_bytes": 4_194_304, "allocated_blocks": 4_096,
                    "uncertain_bytes": 512, "oldest_seconds": 55.24,
                    "trend": "growing", "growth_bytes_per_second": 17_920.0, "growth_error": 256.0,
                }],
                "goroutines": [],
                "quality": {
                    "complete": true, "gaps": [], "lost_allocs": 0, "lost_frees": 0, "unmatched_frees": 17,
                    "inherited_frees": 0,
                    "truncated_stacks": 0, "truncated_by_reason": {}, "uncertain_bytes": 0, "sampling": null,
                    "cycles": 0, "missed_cycles": 0, "collections": [], "uncollected_heaps": 0, "undecided_samples": 0, "unresolved_samples": 0,
                    "notes": [],
                },
                "unwind_tables": [{
                    "file": "/usr/bin/leaky", "rows": 1_200, "bytes": 5_632, "build_seconds": 0.00125,
                    "code_bytes": 65_536, "uncovered_bytes": 48, "problem": null,
                }],
                "modules": [{
                    "file": "/usr/bin/leaky", "build_id": "0123456789abcdef",
                    "code": [[0x1000, 0x1_1000]],
                }],
            })
        );
    }

    #[test]
    fn goroutines_of_a_heap_tell_how_they_grew() {
        let mut profile = fixture::leaking_goroutines();
        profile.goroutines.truncate(2);
        for group in &mut profile.goroutines {
            (group.frames, group.created_by) = (Vec::new().into(), None);
        }
        let group = |count: u64| {
            json!({
                "pid": 4711, "frames": [], "goroutines": count, "state": "waiting", "created_by": null,
                "wait_reason": "chan receive", "longest_wait_seconds": 3723.0, "suspected_leak": true, "only_grows": true,
            })
        };
        let mut expected = [group(12_345), group(700)];
        for (expected, (objects, address, first, rate)) in expected
            .iter_mut()
            .zip([(12_345, json!(null), 45, json!(203.5)), (1, json!(0xc000_1c00c0_u64), 0, json!(null))])
        {
            expected["waits_on"] = json!({"objects": objects, "address": address});
            expected["first_count"] = json!(first);
            expected["growth_per_second"] = rate;
        }
        assert_eq!(saved(&profile)["goroutines"], json!(expected));
    }

    #[test]
    fn totals_are_the_sums_over_stacks() {
        for profile in [fixture::profile(), fixture::hostile(), fixture::nothing_outstanding()] {
            let saved = saved(&profile);
            let stacks = saved["stacks"].as_array().unwrap();
            assert_eq!(stacks.len(), profile.stacks.len(), "stacks that hold nothing are listed too");
            for field in ["outstanding_bytes", "outstanding_blocks", "allocated_bytes", "allocated_blocks"] {
                let sum: u64 = stacks.iter().map(|stack| stack[field].as_u64().unwrap()).sum();
                assert_eq!(saved["totals"][field], sum, "{field}");
            }
        }
    }

    #[test]
    fn frames_are_root_first_and_names_come_back_unchanged() {
        let profile = fixture::hostile();
        let saved = saved(&profile);
        assert_eq!(saved["targets"][0]["comm"], fixture::HOSTILE);
        for (stack, entry) in saved["stacks"].as_array().unwrap().iter().zip(&profile.stacks) {
            for (saved, frame) in stack["frames"].as_array().unwrap().iter().zip(entry.frames.iter()) {
                assert_eq!(saved["function"], json!(frame.function));
                assert_eq!(saved["file"], json!(frame.file));
                assert_eq!(saved["line"], json!(frame.line));
                assert_eq!(saved["inlined"], json!(frame.inlined));
            }
        }
    }

    #[test]
    fn memory_of_a_process_is_saved_with_its_reasons() {
        let mut profile = fixture::profile();
        let reasons = vec![
            Reason::Grown(Area::Mapped, 90 << 20),
            Reason::Allocator("jemalloc", "/lib/x.so".to_owned()),
            Reason::Runtime(Runtime::V8),
            Reason::Children(3),
        ];
        profile.targets[0].memory = Some(Memory {
            anonymous_begin: 200 << 20,
            anonymous_end: 100 << 20,
            file: 5,
            shared: 6,
            recorded: 7,
            fresh: 100 << 20,
            unexplained: 90 << 20,
            reasons,
            as_of: Some(Duration::from_millis(1_500)),
        });
        let mut memory = saved(&profile)["targets"][0]["memory"].take();
        for reason in memory["reasons"].as_array_mut().unwrap() {
            assert!(reason.as_object_mut().unwrap().remove("words").unwrap().is_string());
        }
        assert_eq!(
            memory,
            json!({
                "anonymous_begin": 209_715_200, "anonymous_end": 104_857_600, "file": 5, "shared": 6,
                "grew": -104_857_600, "recorded": 7, "fresh": 104_857_600, "unexplained": 94_371_840, "explained": false,
                "reasons": [
                    {"kind": "mmap", "bytes": 94_371_840},
                    {"kind": "allocator", "name": "jemalloc", "file": "/lib/x.so"},
                    {"kind": "runtime", "name": "V8"},
                    {"kind": "children", "number": 3},
                ],
                "as_of_seconds": 1.5,
            })
        );
    }

    #[test]
    fn each_gap_is_listed_with_its_words() {
        let mut profile = fixture::profile();
        profile.quality = fixture::everything_missing();
        profile.quality.notes.push("the first note".to_owned());
        let mut saved = saved(&profile)["quality"].take();
        let gaps = saved["gaps"].take();
        let words: Vec<&str> = gaps.as_array().unwrap().iter().map(|gap| gap["words"].as_str().unwrap()).collect();
        assert_eq!(words, words::missing(&profile.quality));
        assert_eq!(
            gaps[5],
            json!({
                "what": "lost_allocs", "amount": 1, "of": 1_016, "beyond_threshold": false,
                "words": "1 allocation lost (the ring buffer was full)",
            })
        );
        assert_eq!(
            saved,
            json!({
                "complete": false, "gaps": null, "lost_allocs": 1, "lost_frees": 2, "unmatched_frees": 6,
                "inherited_frees": 0,
                "truncated_stacks": 5, "truncated_by_reason": {"depth": 2, "no_rule": 3}, "uncertain_bytes": 4_096,
                "sampling": null, "cycles": 90, "missed_cycles": 9,
                "collections": [{"pid": 4711, "at_begin": 5, "at_end": 17}], "uncollected_heaps": 1, "undecided_samples": 10, "unresolved_samples": 11,
                "notes": ["the first note"],
            })
        );
    }

    #[test]
    fn a_time_that_no_calendar_knows_is_an_error() {
        let mut profile = fixture::profile();
        profile.started = SystemTime::UNIX_EPOCH + Duration::from_secs(1 << 50);
        assert_eq!(write(&profile, &mut Vec::new()).unwrap_err().kind(), io::ErrorKind::InvalidData);
    }
}
