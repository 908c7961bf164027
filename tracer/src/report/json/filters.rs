//! What a profile leaves out because it was asked to, saved.

use serde::{Serialize, Serializer, ser::SerializeMap as _};

use super::saved::Saved;
use crate::profile::Filters;

impl Serialize for Saved<'_, Filters> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let Filters { min_age, sizes: (least, most), younger } = *self.0;
        let mut object = serializer.serialize_map(None)?;
        object.serialize_entry("min_age_seconds", &min_age.as_secs_f64())?;
        object.serialize_entry("min_size", &least)?;
        object.serialize_entry("max_size", &Some(most).filter(|most| *most < u64::MAX))?;
        object.serialize_entry("younger_bytes", &younger.map(|(bytes, _)| bytes))?;
        object.serialize_entry("younger_blocks", &younger.map(|(_, blocks)| blocks))?;
        object.end()
    }
}
