//! A page as JSON: one object on one line. Names stay as they are, whatever is in them.

use std::io;

use jiff::Timestamp;
use serde::Serialize;
use serde_json::{Value, json};

use super::{
    describe::Tracing,
    page::{Page, Row},
    ranking::{Growth, Sort},
};
use crate::profile::Language;

/// Version of the format. Readers ignore fields that they do not know, so only a change of meaning raises it.
const VERSION: u32 = 1;

#[derive(Serialize)]
struct Saved {
    format: &'static str,
    version: u32,
    time: String,
    interval_seconds: f64,
    sort: &'static str,
    process_count: usize,
    kernel_thread_count: usize,
    machine: Value,
    processes: Vec<Value>,
    notes: Vec<String>,
}

/// The page as one line.
///
/// # Errors
/// `InvalidData` when the time of the page is none that a calendar knows.
pub(super) fn line(page: &Page) -> io::Result<String> {
    let time = Timestamp::try_from(page.time).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
    let saved = Saved {
        format: "tracer-top",
        version: VERSION,
        time: time.to_string(),
        interval_seconds: page.seconds,
        sort: match page.sort {
            Sort::Growth => "growth",
            Sort::Resident => "rss",
        },
        process_count: page.processes,
        kernel_thread_count: page.kernel_threads,
        machine: json!({
            "total": page.machine.total,
            "available": page.machine.available,
            "swapped": page.machine.swapped,
        }),
        processes: page.rows.iter().map(process).collect(),
        notes: page.notes.clone(),
    };
    Ok(serde_json::to_string(&saved)?)
}

fn process(row: &Row) -> Value {
    let sample = &row.ranked.sample;
    let description = &row.description;
    let growth = row.ranked.growth;
    json!({
        "pid": sample.id.pid,
        "start_time": sample.id.start_time,
        "comm": sample.comm,
        "exe": description.exe,
        "rss": sample.resident,
        "anonymous": sample.anonymous,
        "swapped": sample.swapped,
        "grew": growth.map(|growth| growth.bytes),
        "seconds": growth.map(|growth| growth.seconds),
        "growth_per_second": growth.map(Growth::per_second),
        "cgroup": row.cgroup,
        "container": row.container.as_ref().map(|(runtime, id)| json!({
            "runtime": Some(runtime).filter(|runtime| !runtime.is_empty()),
            "id": id,
        })),
        "limit": row.limit.as_ref().map(|limit| json!({
            "cgroup": limit.cgroup,
            "bytes": limit.bytes,
            "used": limit.used,
            "growth_per_second": limit.growth,
            "reached_in_seconds": limit.reached().map(|span| span.as_secs_f64()),
        })),
        "allocator": description.allocator,
        "language": description.language.map(Language::name),
        "tracing": word(description.tracing),
        "runtime": match description.tracing {
            Tracing::Partly(runtime) => Some(runtime.name()),
            _ => None,
        },
    })
}

fn word(tracing: Tracing) -> &'static str {
    match tracing {
        Tracing::Exact => "exact",
        Tracing::Partly(_) => "malloc-only",
        Tracing::GoSampled => "go-sampled",
        Tracing::NoAllocator => "no-allocator",
        Tracing::Not64Bit => "not-64-bit",
        Tracing::Forbidden => "forbidden",
        Tracing::Unreadable => "unreadable",
        Tracing::Pending => "pending",
        Tracing::Ended => "ended",
    }
}
