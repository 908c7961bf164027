//! A page as a table for people. All that processes and files are called is hostile: it is shown as `report::visible` does.

use std::{borrow::Cow, time::Duration};

use super::{
    describe::Tracing,
    limits::Limit,
    page::{Page, Row},
    ranking::{Growth, Sort},
};
use crate::{
    profile::{Language, Runtime},
    report::{number, shorten, size, visible},
    select::containers::Container,
};

/// Most characters of a program's and of a cgroup's name.
const LONGEST: usize = 28;

/// Names of the columns, and whether what is in them stands at their right.
const COLUMNS: [(&str, bool); 9] = [
    ("pid", true),
    ("program", false),
    ("rss", true),
    ("growth", true),
    ("limit", false),
    ("cgroup", false),
    ("allocator", false),
    ("language", false),
    ("can be traced", false),
];

/// The lines of a page.
pub fn lines(page: &Page) -> Vec<String> {
    let mut lines = vec![heading(page), String::new()];
    let rows: Vec<[String; COLUMNS.len()]> = page.rows.iter().map(cells).collect();
    let names = COLUMNS.map(|(name, _)| name.to_owned());
    let all = || std::iter::once(&names).chain(&rows);
    let widths: Vec<usize> =
        (0..COLUMNS.len()).map(|column| all().map(|row| row[column].chars().count()).max().unwrap_or(0)).collect();
    lines.extend(all().map(|row| {
        let cells = row.iter().zip(&widths).zip(COLUMNS).map(|((cell, width), (_, right))| {
            if right { format!("{cell:>width$}") } else { format!("{cell:<width$}") }
        });
        cells.collect::<Vec<_>>().join("  ").trim_end().to_owned()
    }));
    if rows.is_empty() {
        let none = if page.processes > 0 { "none is shown (--top)" } else { "no process can be seen" };
        lines.push(none.to_owned());
    }
    lines.extend(page.notes.iter().map(|note| format!("note: {note}")));
    lines
}

fn heading(page: &Page) -> String {
    let Page { machine, .. } = page;
    let sort = match page.sort {
        Sort::Growth => "growth of anonymous memory",
        Sort::Resident => "resident memory",
    };
    let swapped = if machine.swapped > 0 { format!(", {} swapped out", size(machine.swapped)) } else { String::new() };
    format!(
        "{} processes over {:.1}s by {sort}; {} of {} available{swapped}",
        number(page.processes as u64),
        page.seconds,
        size(machine.available),
        size(machine.total)
    )
}

fn cells(row: &Row) -> [String; COLUMNS.len()] {
    let sample = &row.ranked.sample;
    let description = &row.description;
    [
        sample.id.pid.to_string(),
        short(&sample.comm),
        size(sample.resident),
        row.ranked.growth.map_or("new".to_owned(), growth),
        row.limit.as_ref().map_or_else(String::new, limit),
        cgroup(row),
        description.allocator.as_deref().map_or_else(String::new, short),
        description.language.map_or("", Language::name).to_owned(),
        tracing(description.tracing).to_owned(),
    ]
}

/// Hostile text in one cell.
fn short(text: &str) -> String {
    shorten(Cow::Owned(visible(text).into_owned()), LONGEST).into_owned()
}

fn growth(growth: Growth) -> String {
    let rate = growth.per_second();
    let sign = if rate < 0.0 { "-" } else { "+" };
    if growth.bytes == 0 { "0".to_owned() } else { format!("{sign}{}/s", size(rate.abs().round() as u64)) }
}

fn limit(limit: &Limit) -> String {
    let percent = limit.used as f64 * 100.0 / limit.bytes.max(1) as f64;
    let reached = limit.reached().map_or_else(String::new, |span| format!(", limit in {}", roughly(span)));
    format!("{percent:.0}% of {}{reached}", size(limit.bytes))
}

/// A time span in its two largest units.
fn roughly(span: Duration) -> String {
    let seconds = span.as_secs();
    let (days, hours, minutes) = (seconds / 86400, seconds / 3600 % 24, seconds / 60 % 60);
    match (days, hours, minutes) {
        (0, 0, 0) => format!("{seconds} s"),
        (0, 0, _) => format!("{minutes} min {} s", seconds % 60),
        (0, ..) => format!("{hours} h {minutes} min"),
        _ => format!("{days} d {hours} h"),
    }
}

/// The container or the innermost cgroup.
fn cgroup(row: &Row) -> String {
    if let Some((runtime, id)) = &row.container {
        let id = short(Container { runtime, id }.short());
        return if runtime.is_empty() { id } else { format!("{} {id}", short(runtime)) };
    }
    let path = row.cgroup.as_deref().unwrap_or_default();
    match path.rsplit('/').next() {
        Some("") | None => path.to_owned(),
        Some(name) => short(name),
    }
}

/// In words, for people.
pub fn tracing(tracing: Tracing) -> &'static str {
    match tracing {
        Tracing::Exact => "exactly",
        Tracing::Partly(Runtime::Python) => "malloc, not objects of CPython",
        Tracing::Partly(Runtime::Jvm) => "malloc, not the heap of the JVM",
        Tracing::Partly(Runtime::V8) => "malloc, not the heap of V8",
        Tracing::Partly(Runtime::Php) => "malloc, not the heap of PHP",
        Tracing::Partly(Runtime::DotNet) => "malloc, not the heap of .NET",
        Tracing::Partly(Runtime::Ruby) => "malloc, not the heap of Ruby",
        Tracing::Partly(Runtime::Beam) => "malloc, not the heap of BEAM",
        Tracing::GoSampled => "Go, sampled",
        Tracing::NoAllocator => "no: no malloc found",
        Tracing::Not64Bit => "no: 32-bit",
        Tracing::Forbidden => "may not be looked at",
        Tracing::Unreadable => "unknown: not readable",
        Tracing::Pending => "...",
        Tracing::Ended => "no: ended",
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Instant, SystemTime};

    use super::*;
    use crate::top::{
        describe::Description,
        ranking::Ranked,
        reading::{Id, Machine, Sample},
    };

    fn row(pid: u32, comm: &str, growth: Option<i64>) -> Row {
        Row {
            ranked: Ranked {
                sample: Sample {
                    id: Id { pid, start_time: 1 },
                    comm: comm.to_owned(),
                    at: Instant::now(),
                    resident: 5 << 20,
                    anonymous: 3 << 20,
                    swapped: 0,
                    faults: 0,
                },
                growth: growth.map(|bytes| Growth { bytes, seconds: 2.0 }),
            },
            description: Description {
                exe: None,
                language: Some(Language::C),
                allocator: Some("glibc".to_owned()),
                tracing: Tracing::Exact,
            },
            cgroup: Some("/system.slice/a.service".to_owned()),
            container: None,
            limit: None,
        }
    }

    #[test]
    fn a_table_with_hostile_names() {
        let limit = Limit { cgroup: "/x".to_owned(), bytes: 8 << 20, used: 4 << 20, growth: 1024.0 };
        let container = Some(("docker".to_owned(), "a".repeat(64)));
        let page = Page {
            time: SystemTime::UNIX_EPOCH,
            seconds: 2.0,
            sort: Sort::Growth,
            processes: 1234,
            kernel_threads: 9,
            machine: Machine { total: 8 << 30, available: 2 << 30, swapped: 0 },
            rows: vec![
                Row { limit: Some(limit), container, ..row(7, "gateway", Some(2 << 20)) },
                row(4711, "\u{1b}[2J\nevil\u{202e}", Some(-4096)),
                row(8, "new one", None),
            ],
            notes: vec!["a note".to_owned()],
        };
        let expected = r"1,234 processes over 2.0s by growth of anonymous memory; 2.00 GiB of 8.00 GiB available

 pid  program                        rss       growth  limit                               cgroup               allocator  language  can be traced
   7  gateway                   5.00 MiB  +1.00 MiB/s  50% of 8.00 MiB, limit in 1 h 8 min  docker aaaaaaaaaaaa  glibc      C         exactly
4711  \u{1b}[2J\nevil\u{202e}   5.00 MiB  -2.00 KiB/s                                      a.service            glibc      C         exactly
   8  new one                   5.00 MiB          new                                      a.service            glibc      C         exactly
note: a note";
        let squeezed = |text: &str| text.split_whitespace().collect::<Vec<_>>().join(" ");
        let found = lines(&page);
        assert_eq!(squeezed(&found.join("\n")), squeezed(expected));
        assert!(found.iter().all(|line| !line.chars().any(char::is_control)), "{found:?}");
        let none = lines(&Page { rows: Vec::new(), ..page.clone() });
        assert_eq!(none[3..], ["none is shown (--top)", "note: a note"]);
        let unseen = lines(&Page { rows: Vec::new(), processes: 0, ..page.clone() });
        assert_eq!(unseen[3], "no process can be seen");
        let column = |line: &str| line.find("glibc");
        assert!(column(&found[3]).is_some() && column(&found[3]) == column(&found[4]), "{found:#?}");
    }

    #[test]
    fn time_spans_in_two_units() {
        for (seconds, text) in
            [(0, "0 s"), (59, "59 s"), (61, "1 min 1 s"), (11_400, "3 h 10 min"), (90_000, "1 d 1 h")]
        {
            assert_eq!(roughly(Duration::from_secs(seconds)), text);
        }
    }
}
