//! JSON, the saved form: everything that a profile holds, to be read back.
//!
//! One object on one line. Its fields are the format's definition, so they are spelled out here and do not follow the
//! names of the types in [`profile`](crate::profile). Names stay as they are, whatever is in them.

mod filters;
mod mapped;
mod processes;
mod quality;
mod saved;
mod stacks;
#[cfg(test)]
mod tests;

use std::{
    collections::BTreeMap,
    io::{self, Write},
    time::SystemTime,
};

use jiff::Timestamp;
use serde::{Serialize, Serializer, ser::SerializeMap as _};

use self::{processes::Groups, saved::Saved};
use super::{groups, index::Index, options::By, words};
use crate::profile::{Kind, Profile};

/// Version of the format. Readers ignore fields that they do not know, so only a change of meaning raises it.
const VERSION: u32 = 1;

/// Writes the profile, stack by stack.
pub(super) fn write(profile: &Profile, by: By, out: &mut impl Write) -> io::Result<()> {
    let started = rfc3339(profile.started)?;
    serde_json::to_writer(&mut *out, &SavedProfile { profile, by, started })?;
    writeln!(out)
}

fn rfc3339(time: SystemTime) -> io::Result<String> {
    let time = Timestamp::try_from(time).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
    Ok(time.to_string())
}

struct SavedProfile<'a> {
    profile: &'a Profile,
    by: By,
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
        object.serialize_entry("processes", &Saved(&*profile.processes))?;
        // Their name before there could be thousands of them: readers of this version know it.
        object.serialize_entry("targets", &Saved(&*profile.processes))?;
        match profile.kind {
            Kind::Heap => {
                let groups = groups::groups(profile, &Index::new(profile), self.by);
                object.serialize_entry("filters", &Saved(&profile.filters))?;
                object.serialize_entry("by", self.by.name())?;
                object.serialize_entry("groups", &Groups(self.by, &groups))?;
                object.serialize_entry("totals", &Saved(&profile.totals()))?;
                object.serialize_entry("stacks", &Saved(&*profile.stacks))?;
                if let Some(mappings) = &profile.mappings {
                    object.serialize_entry("mappings", &Saved(mappings))?;
                }
                object.serialize_entry("goroutines", &Saved(&*profile.goroutines))?;
                object.serialize_entry("quality", &Saved(&profile.quality))?;
                if let Some(cost) = &profile.cost {
                    object.serialize_entry("cost", &Saved(cost))?;
                }
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
