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

/// How often programs of each kind have run, and how long some of those runs took; how long processes ran that have ended.
pub struct Costs {
    map: PerCpuArray<MapData, CostValue>,
    /// See [`Self::know_ended`].
    know_ended: bool,
}

impl Costs {
    pub(super) fn new(map: PerCpuArray<MapData, CostValue>, know_ended: bool) -> Self {
        Self { map, know_ended }
    }

    /// Whether it is known what processes have used that ended: the kernel's types tell where to look for that.
    pub fn know_ended(&self) -> bool {
        self.know_ended
    }

    /// So far, by [`cost`], of all processors together; last what [`cost::ENDED`] is about.
    ///
    /// # Errors
    /// When the map cannot be read.
    pub fn read(&self) -> Result<Vec<Cost>, MapError> {
        let sum = |kind| {
            let values = self.map.get(&kind, 0)?;
            let sum = values.iter().fold(Cost::default(), |sum, CostValue(cost)| Cost {
                runs: sum.runs.wrapping_add(cost.runs),
                timed: sum.timed.wrapping_add(cost.timed),
                time: sum.time.wrapping_add(cost.time),
                begun: 0,
            });
            Ok(sum)
        };
        (0..=cost::ENDED).map(sum).collect()
    }
}
