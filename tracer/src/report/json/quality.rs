//! Quality and cost, saved.

use std::collections::BTreeMap;

use serde::{Serialize, Serializer, ser::SerializeMap as _};

use super::{super::words, saved::Saved};
use crate::profile::{
    Cost,
    quality::{Collections, Gap, Quality},
};

impl Serialize for Saved<'_, Quality> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let quality = self.0;
        let mut object = serializer.serialize_map(None)?;
        object.serialize_entry("complete", &quality.complete())?;
        object.serialize_entry("gaps", &Saved(&*quality.gaps()))?;
        object.serialize_entry("lost_allocs", &quality.lost_allocs)?;
        object.serialize_entry("lost_frees", &quality.lost_frees)?;
        object.serialize_entry("unmatched_frees", &quality.unmatched_frees)?;
        object.serialize_entry("inherited_frees", &quality.inherited_frees)?;
        object.serialize_entry("truncated_stacks", &quality.truncated_stacks())?;
        let reasons: BTreeMap<&str, u64> = quality.truncated.iter().map(|(reason, n)| (reason.name(), *n)).collect();
        object.serialize_entry("truncated_by_reason", &reasons)?;
        object.serialize_entry("uncertain_bytes", &quality.uncertain_bytes)?;
        object.serialize_entry("sampling", &quality.sampling.as_ref().map(Saved))?;
        object.serialize_entry("cycles", &quality.cycles)?;
        object.serialize_entry("missed_cycles", &quality.missed_cycles)?;
        let collections: Vec<_> = quality.collections.iter().map(Saved).collect();
        object.serialize_entry("collections", &collections)?;
        object.serialize_entry("uncollected_heaps", &quality.uncollected_heaps)?;
        object.serialize_entry("undecided_samples", &quality.undecided_samples)?;
        object.serialize_entry("unresolved_samples", &quality.unresolved_samples)?;
        if quality.lost_remappings > 0 {
            object.serialize_entry("lost_remappings", &quality.lost_remappings)?;
        }
        if quality.undecided_events > 0 {
            object.serialize_entry("undecided_events", &quality.undecided_events)?;
        }
        object.serialize_entry("notes", &quality.notes)?;
        object.end()
    }
}

impl Serialize for Saved<'_, Gap> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut object = serializer.serialize_map(None)?;
        object.serialize_entry("what", self.0.what.name())?;
        object.serialize_entry("amount", &self.0.amount)?;
        object.serialize_entry("of", &(self.0.of > 0).then_some(self.0.of))?;
        object.serialize_entry("beyond_threshold", &self.0.is_beyond_threshold())?;
        object.serialize_entry("words", &words::gap(self.0))?;
        object.end()
    }
}

impl Serialize for Saved<'_, Collections> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut object = serializer.serialize_map(None)?;
        object.serialize_entry("pid", &self.0.pid)?;
        if let Some(library) = self.0.library.as_deref() {
            object.serialize_entry("library", library)?;
        }
        object.serialize_entry("at_begin", &self.0.at_begin)?;
        object.serialize_entry("at_end", &self.0.at_end)?;
        object.end()
    }
}

impl Serialize for Saved<'_, Cost> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut object = serializer.serialize_map(None)?;
        object.serialize_entry("probe_hits", &self.0.hits)?;
        object.serialize_entry("probe_seconds", &self.0.probes.as_secs_f64())?;
        object.serialize_entry("tracer_seconds", &self.0.own.as_secs_f64())?;
        object.serialize_entry("process_seconds", &self.0.processes.as_secs_f64())?;
        object.serialize_entry("share", &self.0.share())?;
        object.end()
    }
}
