//! The reports of made-up examinations, against goldens.

use std::path::Path;

use super::{
    Examination, json,
    line::{Line, Need, Section, Verdict},
    process::{File, Probed, Process},
    text,
};
use crate::{
    probe::outcomes::{Choice, Way},
    space::memory_map::Usage,
    symbolize::Names,
};

/// An examination with a line of each kind, and hostile names.
fn examination() -> Examination {
    let line = |topic: &str, need| Line::new(topic, need, "a purpose");
    Examination {
        release: "6.1.0\u{1b}[2J".to_owned(),
        machine: vec![
            Section {
                title: "rights",
                lines: vec![
                    line("CAP_BPF", Need::Required).works("there"),
                    line("CAP_SYS_ADMIN", Need::Required).not_needed("not there"),
                ],
            },
            Section {
                title: "probes",
                lines: vec![
                    line("uprobe sessions", Need::Optional).degraded("this kernel has none", "nothing"),
                    line("the maple tree", Need::ForCompleteness).degraded("another one", "tell somebody"),
                ],
            },
        ],
        process: Some(Process {
            pid: 4711,
            comm: "evil\n\u{202e}name".to_owned(),
            sections: vec![Section {
                title: "allocators",
                lines: vec![
                    Line::new("/srv/\u{1b}]0;x\u{7}lib.so", Need::Required, "")
                        .works("glibc")
                        .with_details(vec!["malloc\u{1b} at 0x1000: push r12 (cheap)".to_owned()]),
                ],
            }],
            functions: vec![Probed {
                file: "/srv/lib.so".to_owned(),
                function: "malloc".to_owned(),
                offset: 0x1000,
                instruction: "push r12".to_owned(),
                cheap: true,
                outcome: Some(Choice { way: Way::Exits, because: String::new() }),
            }],
            files: vec![File {
                path: "/srv/lib.so".to_owned(),
                code_bytes: 1000,
                synthesized_bytes: 20,
                uncovered_bytes: 10,
                left_out: None,
                problem: None,
                names: Some(Names { table: true, ..Names::default() }),
            }],
            memory: Some(Usage { anonymous: 1 << 20, file: 4096, shared: 0 }),
        }),
    }
}

fn check(file: &str, actual: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/data").join(file);
    if std::env::var_os("BLESS").is_some_and(|value| value == "1") {
        std::fs::write(&path, actual).unwrap();
    }
    let golden = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(golden == actual, "{file} differs; BLESS=1 cargo test rewrites it. Now it is:\n{actual}");
}

#[test]
fn golden_report() {
    let lines = text::lines(&examination());
    assert!(lines.iter().all(|line| !line.chars().any(char::is_control)), "{lines:?}");
    check("doctor.txt", &format!("{}\n", lines.join("\n")));
    check("doctor.json", &format!("{:#}\n", json::value(&examination())));
}

#[test]
fn what_is_in_the_way_is_told_last() {
    let mut examination = examination();
    assert_eq!(examination.verdict(), Verdict::Incomplete);
    examination.process = None;
    examination.machine.truncate(1);
    assert_eq!(text::lines(&examination).last().map(String::as_str), Some("tracer will work"));
    let lost = |topic: &str| Line::new(topic, Need::Required, "").missing("no", "do something");
    examination.machine[0].lines.push(lost("CAP_PERFMON"));
    examination.machine.push(Section { title: "BPF", lines: vec![lost("BPF maps"), lost("BPF programs")] });
    let lines = text::lines(&examination);
    let end: Vec<&str> = lines.iter().rev().take(3).rev().map(String::as_str).collect();
    assert_eq!(end, ["tracer will not work:", "  CAP_PERFMON: no", "  and 2 more, which may follow from that"]);
}
