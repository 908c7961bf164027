//! An examination as JSON. Names stay as they are, whatever is in them.

use serde_json::{Value, json};

use super::{
    examination::Examination,
    line::{Line, Section, Verdict},
};

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
        })),
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
