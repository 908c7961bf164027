//! An examination as text. Whatever has names from outside in it is shown as `report::visible` does.

use super::{
    examination::Examination,
    line::{Line, Section, Verdict},
};
use crate::report::visible;

/// Columns of the longest status.
const STATUS: usize = 10;

/// The lines of the report.
pub(super) fn lines(examination: &Examination) -> Vec<String> {
    let mut lines = vec![format!("Linux {}", visible(&examination.release))];
    for section in &examination.machine {
        lines.extend([String::new(), section.title.to_owned()]);
        section.lines.iter().for_each(|line| put(line, &mut lines));
    }
    if let Some(process) = &examination.process {
        lines.extend([String::new(), format!("process {} ({})", process.pid, visible(&process.comm))]);
        for section in &process.sections {
            lines.extend([String::new(), section.title.to_owned()]);
            section.lines.iter().for_each(|line| put(line, &mut lines));
        }
    }
    lines.push(String::new());
    lines.extend(conclusion(examination));
    lines
}

fn put(line: &Line, lines: &mut Vec<String>) {
    let Line { topic, status, found, needed_for, advice, details, .. } = line;
    let purpose = if needed_for.is_empty() { String::new() } else { format!(" ({needed_for})") };
    lines.push(format!("  {:STATUS$}  {}: {}{purpose}", status.word(), visible(topic), visible(found)));
    lines.extend(details.iter().map(|detail| format!("  {:STATUS$}    {}", "", visible(detail))));
    if !advice.is_empty() {
        lines.push(format!("  {:STATUS$}    -> {}", "", visible(advice)));
    }
}

/// What follows, and from what.
fn conclusion(examination: &Examination) -> Vec<String> {
    let verdict = examination.verdict();
    let mut lines = vec![words(verdict, examination.process.as_ref().map(|process| process.pid))];
    if verdict == Verdict::Complete {
        return lines;
    }
    // What is in the way first is in the way of the rest.
    let reasons = |section: &&Section| section.lines.iter().any(|line| line.verdict() == verdict);
    let Some(first) = examination.sections().find(reasons) else { return lines };
    let told = |line: &&Line| line.verdict() == verdict;
    let all = examination.sections().flat_map(|section| &section.lines).filter(told).count();
    let reasons: Vec<&Line> = match verdict {
        Verdict::Nothing => first.lines.iter().filter(told).collect(),
        _ => examination.sections().flat_map(|section| &section.lines).filter(told).collect(),
    };
    lines.extend(reasons.iter().map(|line| format!("  {}: {}", visible(&line.topic), visible(&line.found))));
    let more = all - reasons.len();
    lines.extend((more > 0).then(|| format!("  and {more} more, which may follow from that")));
    lines
}

fn words(verdict: Verdict, pid: Option<u32>) -> String {
    let what = pid.map_or("tracer".to_owned(), |pid| format!("tracer --pid {pid}"));
    match verdict {
        Verdict::Complete => format!("{what} will work"),
        Verdict::Incomplete => format!("{what} will work, but not see everything:"),
        Verdict::Nothing => format!("{what} will not work:"),
    }
}
