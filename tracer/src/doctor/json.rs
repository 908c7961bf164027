//! An examination as JSON. Names stay as they are, whatever is in them.

use serde_json::{Value, json};

use super::{
    examination::Examination,
    line::{Line, Section, Verdict},
    process::{File, Probed},
};
use crate::probe::outcomes::Way;

/// Version of the format. Readers ignore fields that they do not know, so only a change of meaning raises it.
const VERSION: u32 = 1;

/// The examination as one object.
pub(super) fn value(examination: &Examination) -> Value {
    json!({
        "format": "tracer-doctor",
        "version": VERSION,
        "verdict": word(examination.verdict()),
        "kernel": examination.release,
        "machine": sections(&examination.machine),
        "process": examination.process.as_ref().map(|process| json!({
            "pid": process.pid,
            "comm": process.comm,
            "checks": sections(&process.sections),
            "functions": process.functions.iter().map(function).collect::<Vec<_>>(),
            "files": process.files.iter().map(file).collect::<Vec<_>>(),
            "memory": process.memory.map(|usage| json!({
                "anonymous": usage.anonymous,
                "file": usage.file,
                "shared": usage.shared,
            })),
        })),
    })
}

fn function(probed: &Probed) -> Value {
    let outcome = probed.outcome.as_ref();
    json!({
        "file": probed.file,
        "function": probed.function,
        "offset": probed.offset,
        "instruction": probed.instruction,
        "cheap": probed.cheap,
        "outcome": outcome.map(|outcome| way(outcome.way)),
        "because": outcome.map(|outcome| &outcome.because).filter(|because| !because.is_empty()),
    })
}

/// As `--returns` has it.
fn way(way: Way) -> &'static str {
    match way {
        Way::Exits => "exits",
        Way::Returns => "ret",
        Way::Session => "session",
        Way::Link => "link",
    }
}

fn file(file: &File) -> Value {
    let names = file.names.as_ref();
    json!({
        "path": file.path,
        "code_bytes": file.code_bytes,
        "synthesized_bytes": file.synthesized_bytes,
        "uncovered_bytes": file.uncovered_bytes,
        "problem": file.problem,
        "build_id": names.and_then(|names| names.build_id.as_ref()),
        "symbols": names.map(|names| names.table),
        "debug_information": names.map(|names| names.debug_information),
        "debug_file": names.map(|names| names.separate),
        "go_table": names.map(|names| names.go),
    })
}

fn sections(sections: &[Section]) -> Vec<Value> {
    let line = |section: &Section, line: &Line| {
        json!({
            "section": section.title,
            "name": line.topic,
            "status": line.status.word(),
            "found": line.found,
            "needed_for": line.needed_for,
            "details": line.details,
            "advice": Some(&line.advice).filter(|advice| !advice.is_empty()),
            "effect": word(line.verdict()),
        })
    };
    sections.iter().flat_map(|section| section.lines.iter().map(move |one| line(section, one))).collect()
}

fn word(verdict: Verdict) -> &'static str {
    match verdict {
        Verdict::Complete => "complete",
        Verdict::Incomplete => "incomplete",
        Verdict::Nothing => "nothing",
    }
}
