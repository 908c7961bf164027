//! Stacks and goroutines, saved.

use serde::{Serialize, Serializer, ser::SerializeMap as _};

use super::saved::Saved;
use crate::profile::{Frame, Frames, GoroutineGroup, StackEntry, WaitsOn};

impl Serialize for Saved<'_, StackEntry> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut object = serializer.serialize_map(None)?;
        object.serialize_entry("pid", &self.0.pid)?;
        object.serialize_entry("image", &self.0.image)?;
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
        if let Some(estimate) = &self.0.estimate {
            object.serialize_entry("samples", &estimate.samples)?;
            object.serialize_entry("standard_error_bytes", &estimate.standard_error())?;
        }
        object.serialize_entry("oldest_seconds", &self.0.oldest.map(|oldest| oldest.as_secs_f64()))?;
        let rate = self.0.growth.and_then(|growth| growth.rate);
        object.serialize_entry("trend", &self.0.growth.map(|growth| growth.trend.name()))?;
        object.serialize_entry("growth_bytes_per_second", &rate.map(|rate| rate.per_second))?;
        object.serialize_entry("growth_error", &rate.map(|rate| rate.error))?;
        if let Some((bytes, blocks)) = self.0.at_end {
            object.serialize_entry("at_end_bytes", &bytes)?;
            object.serialize_entry("at_end_blocks", &blocks)?;
        }
        if let Some(reason) = self.0.truncated {
            object.serialize_entry("truncated", reason.name())?;
        }
        if self.0.holders > 1 {
            object.serialize_entry("holding_processes", &self.0.holders)?;
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
        if let Some(reason) = group.truncated {
            object.serialize_entry("truncated", reason.name())?;
        }
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
