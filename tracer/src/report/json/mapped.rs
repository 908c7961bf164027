//! Memory that programs have mapped themselves, saved.

use serde::{Serialize, Serializer, ser::SerializeMap as _};

use super::saved::Saved;
use crate::profile::{MappedStack, MappedValues, Mappings};

impl Serialize for Saved<'_, Mappings> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut object = serializer.serialize_map(None)?;
        for (name, by_allocator) in [("totals", false), ("by_allocators", true)] {
            let (values, resident) = self.0.totals(by_allocator);
            object.serialize_entry(name, &Totals { values, resident })?;
        }
        object.serialize_entry("stacks", &Saved(&*self.0.stacks))?;
        object.end()
    }
}

struct Totals {
    values: MappedValues,
    resident: Option<u64>,
}

impl Serialize for Totals {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut object = serializer.serialize_map(None)?;
        serialize_values::<S>(&mut object, &self.values, self.resident)?;
        object.end()
    }
}

fn serialize_values<S: Serializer>(
    object: &mut S::SerializeMap,
    values: &MappedValues,
    resident: Option<u64>,
) -> Result<(), S::Error> {
    object.serialize_entry("bytes", &values.bytes)?;
    object.serialize_entry("ranges", &values.ranges)?;
    object.serialize_entry("resident_bytes", &resident)?;
    object.serialize_entry("reserved_bytes", &values.reserved_bytes)?;
    object.serialize_entry("reserved_resident_bytes", &values.reserved_resident_bytes)?;
    object.serialize_entry("mapped_bytes", &values.mapped_bytes)?;
    object.serialize_entry("mapped_ranges", &values.mapped_ranges)
}

impl Serialize for Saved<'_, MappedStack> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let stack = self.0;
        let mut object = serializer.serialize_map(None)?;
        object.serialize_entry("pid", &stack.pid)?;
        object.serialize_entry("image", &stack.image)?;
        object.serialize_entry("kind", stack.kind.name())?;
        object.serialize_entry("by_allocator", &stack.by_allocator)?;
        object.serialize_entry("frames", &Saved(&stack.frames))?;
        serialize_values::<S>(&mut object, &stack.values, stack.resident)?;
        object.serialize_entry("oldest_seconds", &stack.oldest.map(|oldest| oldest.as_secs_f64()))?;
        object.end()
    }
}
