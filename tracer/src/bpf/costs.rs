//! What the programs count of their own runs.

use aya::{
    Pod,
    maps::{MapData, MapError, PerCpuArray},
};
use tracer_ebpf::cost::{self, Cost};

#[repr(transparent)]
#[derive(Clone, Copy)]
pub(super) struct CostValue(Cost);

// SAFETY: integers only, no padding, any bytes are a value.
unsafe impl Pod for CostValue {}

/// How often programs of each kind have run, and how long some of those runs took.
pub struct Costs(PerCpuArray<MapData, CostValue>);

impl Costs {
    pub(super) fn new(map: PerCpuArray<MapData, CostValue>) -> Self {
        Self(map)
    }

    /// So far, by [`cost`], of all processors together.
    ///
    /// # Errors
    /// When the map cannot be read.
    pub fn read(&self) -> Result<Vec<Cost>, MapError> {
        let sum = |kind| {
            let values = self.0.get(&kind, 0)?;
            let sum = values.iter().fold(Cost::default(), |sum, CostValue(cost)| Cost {
                runs: sum.runs.wrapping_add(cost.runs),
                timed: sum.timed.wrapping_add(cost.timed),
                time: sum.time.wrapping_add(cost.time),
                stepped: sum.stepped.wrapping_add(cost.stepped),
                ..Cost::default()
            });
            Ok(sum)
        };
        (0..cost::KINDS).map(sum).collect()
    }
}
