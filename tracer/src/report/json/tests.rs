//! What is saved, field by field.

use std::time::Duration;

use serde_json::{Value as Json, json};

use super::*;
use crate::{
    profile::{Area, Estimate, Memory, Parent, Reason, Runtime, quality::Truncation},
    report::{Format, Options, fixture},
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
fn estimates_have_their_error() {
    let mut profile = fixture::profile();
    profile.stacks[0].estimate = Some(Estimate { samples: 3, variance: 192.0 });
    let saved = saved(&profile);
    let stack =
        |nth: usize| (saved["stacks"][nth]["samples"].as_u64(), saved["stacks"][nth]["standard_error_bytes"].as_f64());
    assert_eq!((stack(0), stack(1)), ((Some(3), Some(16.0)), (None, None)));
}

#[test]
fn stacks_that_are_cut_say_why() {
    let mut profile = fixture::profile();
    profile.stacks[1].truncated = Some(Truncation::NoRule);
    let saved = saved(&profile);
    let stacks = saved["stacks"].as_array().unwrap();
    let cut: Vec<Option<&str>> = stacks.iter().map(|stack| stack.get("truncated")?.as_str()).collect();
    assert_eq!(cut, [None, Some("no_rule"), None, None]);
}

#[test]
fn fields_are_those_of_the_format_and_no_others() {
    let mut profile = fixture::profile();
    profile.stacks.truncate(1);
    profile.modules.truncate(1);
    profile.stacks[0].frames = profile.stacks[0].frames.iter().take(1).cloned().collect::<Vec<_>>().into();
    profile.stacks[0].uncertain_bytes = 512;
    let mut saved = saved(&profile);
    let targets = saved.as_object_mut().unwrap().remove("targets");
    assert_eq!(targets.as_ref(), Some(&saved["processes"]));
    assert_eq!(
        saved,
        json!({
            "format": "tracer-profile", "version": 1, "kind": "heap", "mode": "exact",
            "started": "2026-01-02T03:04:05.25Z", "duration_seconds": 60.5,
            "processes": [{"pid": 4711, "image": 4711, "comm": "leaky", "exe": "/usr/bin/leaky", "language": "C++",
                "cgroup": null, "container": null,
                "heaps": [{"kind": "native", "mode": "exact", "sampling": null}],
                "memory": null, "parent_pid": null, "parent_image": null, "started_after_seconds": null,
                "ended_after_seconds": null, "ended_by_signal": null,
                "quality": {"silent": false, "unseen_spans": 0, "truncated_stacks": 0, "uncertain_bytes": 0}}],
            "filters": {"min_age_seconds": 0.0, "min_size": 0, "max_size": null, "younger_bytes": null, "younger_blocks": null},
            "by": "program",
            "groups": [{"comm": "leaky", "exe": "/usr/bin/leaky", "programs": 1,
                "live_processes": 1, "ended_processes": 0, "images": [4711],
                "totals": {
                    "outstanding_bytes": 1_048_576, "outstanding_blocks": 1_024,
                    "allocated_bytes": 4_194_304, "allocated_blocks": 4_096, "freed_blocks": 3_072,
                },
                "at_end_bytes": 0, "at_end_blocks": 0,
                "memory": {"processes": 0, "unread_processes": 1, "anonymous": 0, "grew": 0, "file": 0, "shared": 0}}],
            "totals": {
                "outstanding_bytes": 1_048_576, "outstanding_blocks": 1_024,
                "allocated_bytes": 4_194_304, "allocated_blocks": 4_096, "freed_blocks": 3_072,
            },
            "stacks": [{
                "pid": 4711, "image": 4711, "heap": "native",
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
            "cost": {
                "probe_hits": 1_234_567, "probe_seconds": 0.85, "tracer_seconds": 0.15, "process_seconds": 20.85,
                "share": 0.05,
            },
            "unwind_tables": [{
                "file": "/usr/bin/leaky", "rows": 1_200, "bytes": 5_632, "build_seconds": 0.00125,
                "code_bytes": 65_536, "uncovered_bytes": 48, "synthesized_bytes": 96, "problem": null,
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
    assert_eq!(saved["processes"][0]["comm"], fixture::HOSTILE);
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
        Reason::UntoldInGo(9),
        Reason::Allocator("jemalloc", "/lib/x.so".to_owned()),
        Reason::Shadow("ThreadSanitizer", "/srv/app".to_owned()),
        Reason::Runtime(Runtime::V8),
        Reason::Children(3),
    ];
    profile.processes[0].memory = Some(Memory {
        anonymous_begin: 200 << 20,
        anonymous_end: 100 << 20,
        file: 5,
        shared: 6,
        recorded: 7,
        fresh: 100 << 20,
        unexplained: 90 << 20,
        by_stacks: 80 << 20,
        in_go: 0,
        goroutine_stacks: 8,
        is_partial: false,
        is_counted: false,
        reasons,
        as_of: Some(Duration::from_millis(1_500)),
    });
    let mut partial = profile.clone();
    partial.processes[0].memory.as_mut().unwrap().is_partial = true;
    let unknown = &saved(&partial)["processes"][0]["memory"];
    assert_eq!((&unknown["unexplained"], &unknown["explained"]), (&Json::Null, &Json::Null));
    let mut memory = saved(&profile)["processes"][0]["memory"].take();
    for reason in memory["reasons"].as_array_mut().unwrap() {
        assert!(reason.as_object_mut().unwrap().remove("words").unwrap().is_string());
    }
    assert_eq!(
        memory,
        json!({
            "anonymous_begin": 209_715_200, "anonymous_end": 104_857_600, "file": 5, "shared": 6,
            "grew": -104_857_600, "recorded": 7, "fresh": 104_857_600, "unexplained": 94_371_840, "mapped_by_stacks": 83_886_080, "explained": false,
            "goroutine_stacks": 8,
            "reasons": [
                {"kind": "mmap", "bytes": 94_371_840},
                {"kind": "go_untold", "bytes": 9},
                {"kind": "allocator", "name": "jemalloc", "file": "/lib/x.so"},
                {"kind": "shadow", "name": "ThreadSanitizer", "file": "/srv/app"},
                {"kind": "runtime", "name": "V8"},
                {"kind": "children", "number": 3},
            ],
            "as_of_seconds": 1.5,
        })
    );
}

#[test]
fn processes_have_their_places_and_groups_are_those_asked_for() {
    let mut profile = fixture::three_processes();
    profile.processes[2].parent = Some(Parent { pid: 4711, image: 4711 });
    profile.processes[2].started = Some(Duration::from_millis(500));
    let json = |by| -> Json {
        let options = Options { by, ..fixture::OPTIONS };
        serde_json::from_str(&fixture::rendered(Format::Json, &profile, &options)).unwrap()
    };
    let by_container = json(By::Container);
    let processes = &by_container["processes"];
    assert_eq!(processes[0]["cgroup"], "/system.slice/leaky.service");
    let web = json!({"runtime": "docker", "id": "3f4a", "name": "web"});
    assert_eq!(processes[1]["container"], web);
    assert_eq!((&processes[2]["parent_image"], &processes[2]["started_after_seconds"]), (&4711.into(), &0.5.into()));
    let groups = by_container["groups"].as_array().unwrap();
    let facts: Vec<_> =
        groups.iter().map(|group| json!([group["container"], group["known"], group["images"]])).collect();
    assert_eq!(json!(facts), json!([[null, true, [4711]], [web, true, [5000]], [null, false, [5001]]]));
    let by_cgroup = json(By::Cgroup);
    assert_eq!((&by_cgroup["by"], &by_cgroup["groups"][2]["cgroup"]), (&"cgroup".into(), &Json::Null));
    assert_eq!(json(By::Process)["groups"].as_array().unwrap().len(), 3);
    assert_eq!(json(By::Program)["groups"].as_array().unwrap().len(), 2);
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
    let cut = gaps.as_array().unwrap().iter().find(|gap| gap["what"] == "truncated_stacks").unwrap();
    assert_eq!((&cut["amount"], &cut["of"]), (&5.into(), &Json::Null), "nobody counts what they are of");
    assert_eq!(
        saved,
        json!({
            "complete": false, "gaps": null, "lost_allocs": 1, "lost_frees": 2, "unmatched_frees": 6,
            "inherited_frees": 0,
            "truncated_stacks": 5, "truncated_by_reason": {"depth": 2, "no_rule": 3}, "uncertain_bytes": 4_096,
            "sampling": null, "cycles": 90, "missed_cycles": 9,
            "collections": [{"pid": 4711, "at_begin": 5, "at_end": 17}], "uncollected_heaps": 1, "undecided_samples": 10, "unresolved_samples": 11, "lost_remappings": 14, "undecided_events": 16,
            "notes": ["the first note"],
        })
    );
}

#[test]
fn a_time_that_no_calendar_knows_is_an_error() {
    let mut profile = fixture::profile();
    profile.started = SystemTime::UNIX_EPOCH + Duration::from_secs(1 << 50);
    assert_eq!(write(&profile, By::Program, &mut Vec::new()).unwrap_err().kind(), io::ErrorKind::InvalidData);
}
