//! What each part of a profile looks like when it is saved, and is not looked into further.

use serde::{Serialize, Serializer, ser::SerializeMap as _};

use crate::profile::{Module, UnwindTable, Values, quality::Sampling};

/// Part of a profile in its saved form.
pub(super) struct Saved<'a, T: ?Sized>(pub(super) &'a T);

impl<'a, T> Serialize for Saved<'a, [T]>
where
    Saved<'a, T>: Serialize,
{
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(self.0.iter().map(Saved))
    }
}

impl Serialize for Saved<'_, Values> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut object = serializer.serialize_map(None)?;
        object.serialize_entry("outstanding_bytes", &self.0.outstanding_bytes)?;
        object.serialize_entry("outstanding_blocks", &self.0.outstanding_blocks)?;
        object.serialize_entry("allocated_bytes", &self.0.allocated_bytes)?;
        object.serialize_entry("allocated_blocks", &self.0.allocated_blocks)?;
        object.serialize_entry("freed_blocks", &self.0.freed_blocks)?;
        object.end()
    }
}

impl Serialize for Saved<'_, UnwindTable> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let table = self.0;
        let mut object = serializer.serialize_map(None)?;
        object.serialize_entry("file", &table.path)?;
        object.serialize_entry("rows", &table.rows)?;
        object.serialize_entry("bytes", &table.bytes)?;
        object.serialize_entry("build_seconds", &table.build_time.as_secs_f64())?;
        object.serialize_entry("code_bytes", &table.code_bytes)?;
        object.serialize_entry("uncovered_bytes", &table.uncovered_bytes)?;
        object.serialize_entry("synthesized_bytes", &table.synthesized_bytes)?;
        object.serialize_entry("problem", &table.problem)?;
        object.end()
    }
}

impl Serialize for Saved<'_, Module> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut object = serializer.serialize_map(None)?;
        object.serialize_entry("file", &self.0.path)?;
        object.serialize_entry("build_id", &self.0.build_id)?;
        let code: Vec<_> = self.0.code.iter().map(|part| (part.start, part.end)).collect();
        object.serialize_entry("code", &code)?;
        object.end()
    }
}

impl Serialize for Saved<'_, Sampling> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut object = serializer.serialize_map(None)?;
        object.serialize_entry("mean_bytes", &self.0.mean_bytes)?;
        object.serialize_entry("samples", &self.0.samples)?;
        object.serialize_entry("relative_error", &self.0.relative_error)?;
        object.end()
    }
}
