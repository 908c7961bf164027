//! pprof's format, gzipped: what `go tool pprof` and its kin open.
//!
//! The types of samples are those of Go's own profiles. Every name is made safe, because pprof prints them as they are.

mod locations;
mod mappings;
mod message;
mod strings;
#[cfg(test)]
mod tests;

use std::io::{self, Write};

use flate2::{Compression, write::GzEncoder};
use jiff::Timestamp;
use prost::Message as _;

use self::{
    locations::Locations,
    message::{Label, Sample},
    strings::Strings,
};
use super::{
    escape::visible,
    head,
    index::Index,
    name,
    options::{Options, Value},
};
use crate::profile::{Frames, GoroutineGroup, Kind, MappedStack, Mappings, Process, Profile, StackEntry};

/// Types of the samples of a heap profile, and their units.
const HEAP: &[(&str, &str)] =
    &[("inuse_objects", "count"), ("inuse_space", "bytes"), ("alloc_objects", "count"), ("alloc_space", "bytes")];
/// What pprof shows of a heap profile unless it is told otherwise.
const HEAP_DEFAULT: &str = "inuse_space";
/// The unit that allocations would be sampled by.
const HEAP_PERIOD: (&str, &str) = ("space", "bytes");
/// The same of a goroutine profile.
const GOROUTINES: &[(&str, &str)] = &[("goroutine", "count")];

/// The same of what programs have mapped themselves, and what pprof shows of it.
const MAPPED: &[(&str, &str)] = &[("mapped_ranges", "count"), ("mapped_space", "bytes"), ("mapped_resident", "bytes")];
const MAPPED_DEFAULT: &str = "mapped_space";

/// Writes the profile.
pub(super) fn write(profile: &Profile, options: &Options, out: &mut impl Write) -> io::Result<()> {
    let bytes = Writer::new(profile, options.value).message(options)?.encode_to_vec();
    let mut gzip = GzEncoder::new(out, Compression::default());
    gzip.write_all(&bytes)?;
    gzip.finish()?;
    Ok(())
}

/// What samples refer to, and how much of each type there is room for.
struct Writer<'a> {
    profile: &'a Profile,
    index: Index<'a>,
    strings: Strings,
    locations: Locations<'a>,
    /// Values are signed, and are added up by readers.
    room: Vec<i64>,
}

impl<'a> Writer<'a> {
    fn new(profile: &'a Profile, value: Value) -> Self {
        let room = vec![i64::MAX; types(profile.kind, value).len()];
        let (strings, locations) = (Strings::new(), Locations::new(profile));
        Self { profile, index: Index::new(profile), strings, locations, room }
    }

    fn message(mut self, options: &Options) -> io::Result<message::Profile> {
        let profile = self.profile;
        let sample = match profile.kind {
            Kind::Heap if options.value == Value::Mapped => {
                let stacks = profile.mappings.iter().flat_map(Mappings::own);
                stacks.filter_map(|stack| self.of_mapped(stack)).collect()
            }
            Kind::Heap => profile.stacks.iter().filter_map(|entry| self.of_stack(entry)).collect(),
            Kind::Goroutines => profile.goroutines.iter().filter_map(|group| self.of_goroutines(group)).collect(),
        };
        let types = types(profile.kind, options.value);
        let (default, period) = match profile.kind {
            Kind::Heap if options.value == Value::Mapped => (MAPPED_DEFAULT, HEAP_PERIOD),
            Kind::Heap => (HEAP_DEFAULT, HEAP_PERIOD),
            Kind::Goroutines => (GOROUTINES[0].0, GOROUTINES[0]),
        };
        let sample_type = types.iter().map(|type_| self.strings.value_type(*type_)).collect();
        let period_type = Some(self.strings.value_type(period));
        let default_sample_type = self.strings.id(default);
        let comment = comments(profile, &self.index, options)?.iter().map(|line| self.strings.id(line)).collect();
        let (mapping, location, function) = self.locations.finish(&mut self.strings);
        Ok(message::Profile {
            sample_type,
            sample,
            mapping,
            location,
            function,
            string_table: self.strings.texts,
            time_nanos: nanoseconds(profile)?,
            duration_nanos: i64::try_from(profile.duration.as_nanos()).unwrap_or(i64::MAX),
            period_type,
            period: period_of(profile),
            comment,
            default_sample_type,
        })
    }

    /// `None` when the stack has held nothing since tracing began.
    fn of_stack(&mut self, entry: &'a StackEntry) -> Option<Sample> {
        let values = entry.values;
        let values =
            [values.outstanding_blocks, values.outstanding_bytes, values.allocated_blocks, values.allocated_bytes];
        values.iter().any(|value| *value > 0).then(|| {
            let mut label = self.labels_of_process(self.index.of_stack(entry), entry.pid);
            if self.index.has_several_heaps {
                label.push(self.strings.label("heap", entry.heap.name()));
            }
            Sample { location_id: self.stack(&entry.frames), value: self.values(&values), label }
        })
    }

    /// `None` when it holds nothing.
    fn of_mapped(&mut self, stack: &'a MappedStack) -> Option<Sample> {
        let values = [stack.values.ranges, stack.values.bytes, stack.resident.unwrap_or(0)];
        (stack.values.bytes > 0).then(|| {
            let mut label = self.labels_of_process(self.index.of_image(stack.image), stack.pid);
            label.push(self.strings.label("mapped", stack.kind.name()));
            Sample { location_id: self.stack(&stack.frames), value: self.values(&values), label }
        })
    }

    fn of_goroutines(&mut self, group: &'a GoroutineGroup) -> Option<Sample> {
        (group.count > 0).then(|| {
            let process = self.index.of_pid(group.pid);
            let mut label = self.labels_of_process(process, group.pid);
            label.push(self.strings.label("state", group.state));
            if let Some(reason) = group.wait_reason.as_deref().filter(|reason| !reason.is_empty()) {
                label.push(self.strings.label("wait_reason", &visible(reason)));
            }
            Sample { location_id: self.stack(&group.frames), value: self.values(&[group.count]), label }
        })
    }

    /// Leaf first.
    fn stack(&mut self, frames: &'a Frames) -> Vec<u64> {
        let addresses = frames.addresses().rev().filter(|frames| !frames.is_empty());
        let stack: Vec<u64> = addresses.map(|frames| self.locations.id(frames, &mut self.strings)).collect();
        if stack.is_empty() { vec![self.locations.no_stack(&mut self.strings)] } else { stack }
    }

    /// The values as far as there is room for them: a sum is never more than a reader can hold.
    fn values(&mut self, values: &[u64]) -> Vec<i64> {
        let fitting = values.iter().zip(&mut self.room).map(|(value, room)| {
            let value = i64::try_from(*value).unwrap_or(i64::MAX).min(*room);
            *room -= value;
            value
        });
        fitting.collect()
    }

    fn labels_of_process(&mut self, process: Option<&Process>, pid: u32) -> Vec<Label> {
        let mut labels = vec![self.strings.label("comm", &name::process(process, pid))];
        // Several have none in common.
        if process.is_none_or(|process| process.count == 1) {
            let pid_label = Label { key: self.strings.id("pid"), num: i64::from(pid), ..Label::default() };
            labels.insert(0, pid_label);
        }
        let Some(Process { place, .. }) = process else { return labels };
        if let Some(cgroup) = &place.cgroup {
            labels.push(self.strings.label("cgroup", &visible(cgroup)));
        }
        if let Some(container) = &place.container {
            labels.push(self.strings.label("container", &name::container(container)));
        }
        labels
    }
}

fn types(kind: Kind, value: Value) -> &'static [(&'static str, &'static str)] {
    match kind {
        Kind::Heap if value == Value::Mapped => MAPPED,
        Kind::Heap => HEAP,
        Kind::Goroutines => GOROUTINES,
    }
}

/// How many units of the period's type come by from one sample to the next, on average.
fn period_of(profile: &Profile) -> i64 {
    profile.quality.sampling.as_ref().map_or(1, |sampling| i64::try_from(sampling.mean_bytes).unwrap_or(i64::MAX))
}

fn nanoseconds(profile: &Profile) -> io::Result<i64> {
    let invalid = |error: String| io::Error::new(io::ErrorKind::InvalidData, error);
    let started = Timestamp::try_from(profile.started).map_err(|error| invalid(error.to_string()))?;
    i64::try_from(started.as_nanosecond()).map_err(|_| invalid(format!("pprof knows no time such as {started}")))
}

/// What the head of the text report says and nothing else here does: `go tool pprof -comments`.
fn comments(profile: &Profile, index: &Index<'_>, options: &Options) -> io::Result<Vec<String>> {
    let mut text = Vec::new();
    head::write_processes(profile, index, options.by, &mut text)?;
    head::write_modes(profile, &mut text)?;
    head::write_memory(profile, &mut text)?;
    head::write_quality(&profile.quality, &mut text)?;
    Ok(String::from_utf8_lossy(&text).lines().map(|line| line.trim().to_owned()).collect())
}
