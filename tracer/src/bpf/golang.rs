//! What the BPF programs must know to sample the allocations of Go programs.

use aya::{
    Pod,
    maps::{Array, HashMap, MapData, MapError},
};
use tracer_ebpf::golang::Runtime;

use super::spacing::set_spacing;

#[repr(transparent)]
#[derive(Clone, Copy)]
pub(super) struct RuntimeValue(Runtime);

// SAFETY: integers only, no padding (the ABI asserts the size), any bytes are a value.
unsafe impl Pod for RuntimeValue {}

/// The maps of runtimes and of distances between samples.
pub struct GoMaps {
    pub(super) runtimes: HashMap<MapData, u64, RuntimeValue>,
    pub(super) spacing: Array<MapData, u64>,
}

impl GoMaps {
    /// Says how a runtime of a process is laid out. To be done before its allocations are probed.
    ///
    /// # Errors
    /// When the map is full: more than 4096 runtimes.
    pub fn set_runtime(&mut self, pid: u32, runtime: Runtime) -> Result<(), MapError> {
        self.runtimes.insert(u64::from(pid) << 32 | u64::from(runtime.number), RuntimeValue(runtime), 0)
    }

    /// A runtime is sampled no more.
    pub fn forget_runtime(&mut self, pid: u32, number: u8) {
        // Only those that are sampled are there.
        let _ = self.runtimes.remove(&(u64::from(pid) << 32 | u64::from(number)));
    }

    /// Has objects sampled every `mean` bytes: distances are exponentially distributed. To be done before anything is probed.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn set_mean(&mut self, mean: u64) -> Result<(), MapError> {
        set_spacing(&mut self.spacing, mean)
    }
}
