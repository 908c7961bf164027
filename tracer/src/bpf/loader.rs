//! Loading the BPF object that is embedded in this binary.

use std::os::fd::{AsFd, BorrowedFd};

use aya::{
    Ebpf, EbpfLoader, Pod,
    maps::{Array, Map, MapData},
};
use aya_log::EbpfLogger;
use tracer_ebpf::{
    ReturnInstances, TaskFields,
    unwind::{KernelMappings, epoch},
};

use super::{
    copies::StackCopies,
    costs::Costs,
    events::{Events, LostBeginnings, Newcomers},
    golang::GoMaps,
    kernel_types::{Layouts, LockPoints},
    load_error::LoadError,
    multi::{self, Multi},
    object::{Object, PRODUCT},
    queue::{Queue, SLOT},
    removal::Remover,
    shared_array::SharedArray,
    spacing::set_spacing,
    tables::{CodeChanges, Tables},
    tracepoints::{attach_changes, load_identify},
};
use crate::unwind::{PAGE_SHARDS, ROW_SHARDS};

/// What the programs are told before they are loaded.
#[derive(Clone, Copy, Debug)]
pub struct Config {
    /// Size of the queue and the ring buffer together, bytes: a power of two of at least a page.
    pub buffer_size: u32,
    /// Smallest and largest allocation to record, bytes, inclusive.
    pub sizes: (u64, u64),
    /// Whether diagnostics of the programs are wanted.
    pub diagnostics: bool,
    /// Whether to attach by perf events, as on old kernels, even where the kernel has uprobe-multi links.
    pub perf_events: bool,
    /// Most memory that stacks which end at unknown files may take until they are unwound, bytes; 0: they stay as they are.
    pub rests: u64,
    /// Most threads whose calls are followed at a time.
    pub threads: u32,
    /// Which allocations of C, C++ and Rust are recorded; `None`: all.
    pub samples: Option<Samples>,
}

/// That some allocations are recorded.
#[derive(Clone, Copy, Debug)]
pub struct Samples {
    /// Mean of bytes between two of them.
    pub mean: u64,
    /// Most of them that are held at a time.
    pub room: u32,
}

#[repr(transparent)]
#[derive(Clone, Copy)]
struct ReturnInstancesValue(ReturnInstances);

// SAFETY: integers only, no padding (the ABI asserts the size), any bytes are a value.
unsafe impl Pod for ReturnInstancesValue {}

#[repr(transparent)]
#[derive(Clone, Copy)]
struct TaskFieldsValue(TaskFields);

// SAFETY: as above.
unsafe impl Pod for TaskFieldsValue {}

#[repr(transparent)]
#[derive(Clone, Copy)]
struct KernelMappingsValue(KernelMappings);

// SAFETY: as above.
unsafe impl Pod for KernelMappingsValue {}

impl Config {
    /// For programs whose records nobody reads.
    pub fn smallest() -> Self {
        Self {
            buffer_size: PAGE,
            sizes: (0, u64::MAX),
            diagnostics: false,
            perf_events: false,
            rests: 0,
            threads: 1 << 10,
            samples: None,
        }
    }
}

/// The loaded object.
pub struct Programs {
    pub(super) ebpf: Ebpf,
    /// Where the kernel has uprobe-multi links.
    pub(super) multi: Option<Multi>,
    pub(super) remover: Remover,
    samples: bool,
    /// Slots of the queue.
    slots: u32,
    logger: Option<EbpfLogger<&'static dyn log::Log>>,
    /// By what changes of mappings can be recorded, if they can.
    pub(super) remappings: Option<LockPoints>,
    /// Whether the program `placed` is attached.
    pub(super) placed: bool,
}

/// Buffers of at least this size are not full before the reader comes by itself, bytes. It comes every 10 ms where there is something to
/// read, in which time a thread that does nothing but allocate writes about 300 kB ([`FILLED`](super::events::FILLED)).
const NO_WAKEUP: u32 = 16 << 20;

/// Size of a ring buffer that nothing is sent through, bytes.
const PAGE: u32 = 4096;

impl Programs {
    /// Loads the object: maps are made, programs verified by the kernel, nothing is attached.
    ///
    /// # Errors
    /// See [`LoadError`].
    pub fn load(config: Config) -> Result<Self, LoadError> {
        Self::load_object(PRODUCT, config)
    }

    /// The same with another object, such as that of the programs that tests compare with.
    ///
    /// # Errors
    /// See [`LoadError`].
    pub fn load_object(object: &Object<[u8]>, config: Config) -> Result<Self, LoadError> {
        let object = object.bytes();
        if object.is_empty() {
            return Err(LoadError::NoObject);
        }
        // Half of it is for the queue.
        let half = (config.buffer_size / 2).max(PAGE);
        let slots = half / SLOT;
        let wakeup = if half < NO_WAKEUP { u64::from(half) / 4 } else { 0 };
        let (min, max) = config.sizes;
        let log_level: u8 = if config.diagnostics { aya_log::Level::Debug as u8 } else { 0 };
        let Layouts { return_instances, task_fields, mappings, lock } = Layouts::read();
        let remappings = lock.filter(|_| mappings.is_some_and(|mappings| mappings.mm_tree != 0));
        let lock_argument = lock.map_or(1, |lock| lock.writes);
        let mappings = KernelMappingsValue(mappings.ok_or(LoadError::NoTypes)?);
        let (return_instances, task_fields) = (ReturnInstancesValue(return_instances), TaskFieldsValue(task_fields));
        let samples = u64::from(config.samples.is_some());
        let mut ebpf = EbpfLoader::new()
            .override_global("WAKEUP_BYTES", &wakeup, true)
            .override_global("QUEUE_SLOTS", &u64::from(slots), true)
            .override_global("MIN_SIZE", &min, true)
            .override_global("MAX_SIZE", &max, true)
            .override_global("REST_LIMIT", &config.rests, true)
            .override_global("SAMPLES", &samples, true)
            .override_global("RETURN_INSTANCES", &return_instances, true)
            .override_global("TASK_FIELDS", &task_fields, true)
            .override_global("KERNEL_MAPPINGS", &mappings, true)
            .override_global("LOCK_ARGUMENT", &lock_argument, true)
            .override_global(aya_log::LEVEL, &log_level, false)
            .map_max_entries("EVENTS", half)
            .map_max_entries("QUEUE", slots)
            .map_max_entries("STACK_COPIES", StackCopies::BUFFER)
            .map_max_entries("SAMPLED", config.samples.map_or(1, |samples| samples.room.max(1)))
            .map_max_entries("THREADS", config.threads)
            .map_max_entries("PAGES", PAGE_SHARDS as u32)
            .map_max_entries("ROWS", ROW_SHARDS as u32)
            .load(object)?;
        if let Some(Samples { mean, .. }) = config.samples {
            let map = ebpf.map_mut("SPACING").ok_or_else(|| LoadError::Mismatch("no map SPACING".to_owned()))?;
            set_spacing(&mut Array::try_from(map)?, mean)?;
        }
        // Before a map is taken out.
        let multi = if !config.perf_events && multi::uses_multi_here() {
            let failed =
                |error| tracing::warn!("probes will cost more than they need to: no uprobe-multi links: {error}");
            Multi::load(object, &ebpf).map_err(failed).ok()
        } else {
            None
        };
        let logger = if config.diagnostics {
            EbpfLogger::init(&mut ebpf).map_err(|error| tracing::debug!("no diagnostics from BPF: {error}")).ok()
        } else {
            None
        };
        Ok(Self {
            ebpf,
            multi,
            remover: Remover::default(),
            samples: config.samples.is_some(),
            slots,
            logger,
            remappings,
            placed: false,
        })
    }

    /// Whether probes are uprobe-multi links.
    pub fn has_multi(&self) -> bool {
        self.multi.is_some()
    }

    /// Whether the kernel lets the entry of a function decide whether its return is probed.
    pub fn has_sessions(&self) -> bool {
        self.has_multi()
    }

    /// Whether only some allocations are recorded.
    pub fn samples(&self) -> bool {
        self.samples
    }

    /// Takes the maps that the reading side owns. Once only.
    ///
    /// # Errors
    /// [`LoadError::Mismatch`] when a map is not there (any more), [`LoadError::Map`] when it cannot be opened.
    pub fn events(&mut self) -> Result<Events, LoadError> {
        let mut take =
            |name: &str| self.ebpf.take_map(name).ok_or_else(|| LoadError::Mismatch(format!("no map {name}")));
        let mut hash_map = |name: &str| match take(name)? {
            Map::HashMap(map) => Ok(map),
            _ => Err(LoadError::Mismatch(format!("{name} is no hash map"))),
        };
        let (lost_frees, targets) = (hash_map("LOST_FREES")?, hash_map("TARGETS")?);
        let array = |map| match map {
            Map::Array(map) => Ok(map),
            _ => Err(LoadError::Mismatch("the queue is no array".to_owned())),
        };
        let targets_fd = targets.fd().as_fd().try_clone_to_owned().map_err(aya::maps::MapError::from)?;
        let (queue, positions) = (array(take("QUEUE")?)?, array(take("POSITIONS")?)?);
        let shared = Queue::map(queue.fd().as_fd(), self.slots, positions.fd().as_fd()).map_err(LoadError::Memory)?;
        Ok(Events::new(
            (shared, (queue, positions), take("EVENTS")?.try_into()?),
            (take("LOSS")?.try_into()?, take("UNSEEN")?.try_into()?),
            lost_frees,
            (Map::HashMap(targets).try_into()?, targets_fd),
            take("TARGETS_EPOCH")?.try_into()?,
            (take("SENT_STACKS")?.try_into()?, take("STACKS_EPOCH")?.try_into()?),
            (take("PAUSED")?.try_into()?, take("SAMPLED")?.try_into()?),
        ))
    }

    /// Takes the maps of unwinding tables, and has changes of mappings counted from now on. Once only.
    ///
    /// # Errors
    /// [`LoadError::Mismatch`] when a map is not there (any more), [`LoadError::Program`] when the kernel refuses a program.
    pub fn tables(&mut self) -> Result<(Tables, CodeChanges), LoadError> {
        let identify = load_identify(&mut self.ebpf)?;
        let (changes, placed) = attach_changes(&mut self.ebpf)?;
        self.placed = placed;
        let mut take =
            |name: &str| self.ebpf.take_map(name).ok_or_else(|| LoadError::Mismatch(format!("no map {name}")));
        let mut large = |name: &str| match take(name)? {
            Map::Array(map) => Ok(map),
            _ => Err(LoadError::Mismatch(format!("{name} is no array"))),
        };
        let (pages, rows, rules) = (large("PAGES")?, large("ROWS")?, large("RULES")?);
        let epochs = large("EPOCHS")?;
        let shared = || SharedArray::map(epochs.fd().as_fd(), epoch::ALL as usize).map_err(LoadError::Memory);
        let counts = shared()?;
        let code_changes = CodeChanges::new(shared()?, take("APPEARED")?, changes)?;
        let mut epochs: Array<MapData, u64> = Map::Array(epochs).try_into()?;
        epochs.set(epoch::CHANGES, changes, 0)?;
        let (files, numbers) = (take("TABLES")?.try_into()?, take("FILES")?.try_into()?);
        let rests = take("RESTS")?.try_into()?;
        let tables =
            Tables { pages, rows, rules, files, numbers, epochs, counts, rests, identify, changes, files_changed: 0 };
        Ok((tables, code_changes))
    }

    /// Takes the map in which the programs count their runs. Once only.
    ///
    /// # Errors
    /// [`LoadError::Mismatch`] when it is not there (any more), [`LoadError::Map`] when it cannot be opened.
    pub fn costs(&mut self) -> Result<Costs, LoadError> {
        let map = self.ebpf.take_map("COSTS").ok_or_else(|| LoadError::Mismatch("no map COSTS".to_owned()))?;
        Ok(Costs::new(map.try_into()?))
    }

    /// Takes the map of beginnings that found the ring buffer full. Once only.
    ///
    /// # Errors
    /// [`LoadError::Mismatch`] when it is not there (any more), [`LoadError::Map`] when it cannot be opened.
    pub fn lost_beginnings(&mut self) -> Result<LostBeginnings, LoadError> {
        let map = self.ebpf.take_map("LOST_BEGINNINGS");
        Ok(LostBeginnings::new(
            map.ok_or_else(|| LoadError::Mismatch("no map LOST_BEGINNINGS".to_owned()))?.try_into()?,
        ))
    }

    /// Takes the maps that sampling of Go programs needs. Once only.
    ///
    /// # Errors
    /// [`LoadError::Mismatch`] when a map is not there (any more), [`LoadError::Map`] when it cannot be opened.
    pub fn go_maps(&mut self) -> Result<GoMaps, LoadError> {
        let mut take =
            |name: &str| self.ebpf.take_map(name).ok_or_else(|| LoadError::Mismatch(format!("no map {name}")));
        Ok(GoMaps { runtimes: take("GO_RUNTIMES")?.try_into()?, spacing: take("SPACING")?.try_into()? })
    }

    /// The map by which the programs are told what to do with processes that become other programs and are not traced. Once only.
    ///
    /// # Errors
    /// [`LoadError::Mismatch`] when it is not there (any more), [`LoadError::Map`] when it cannot be opened.
    pub fn newcomers(&mut self) -> Result<Newcomers, LoadError> {
        let map = self.ebpf.take_map("NEWCOMERS").ok_or_else(|| LoadError::Mismatch("no map NEWCOMERS".to_owned()))?;
        Ok(Newcomers(map.try_into()?))
    }

    /// The map EXEC_STOPS, whose memory those share who continue what was stopped at an exec.
    ///
    /// # Errors
    /// [`LoadError::Mismatch`] when it is not there.
    pub fn exec_stops(&self) -> Result<BorrowedFd<'_>, LoadError> {
        match self.ebpf.map("EXEC_STOPS") {
            Some(Map::Array(map)) => Ok(map.fd().as_fd()),
            _ => Err(LoadError::Mismatch("no map EXEC_STOPS".to_owned())),
        }
    }

    /// Takes the copies of stacks that the program `copy_entry` makes, which the product's object has not. Once only.
    ///
    /// # Errors
    /// [`LoadError::Mismatch`] when a map is not there (any more), [`LoadError::Map`] when it cannot be opened.
    pub fn stack_copies(&mut self) -> Result<StackCopies, LoadError> {
        let mut take =
            |name: &str| self.ebpf.take_map(name).ok_or_else(|| LoadError::Mismatch(format!("no map {name}")));
        Ok(StackCopies { ring: take("STACK_COPIES")?.try_into()?, stops: take("STOPS")?.try_into()? })
    }

    /// Passes diagnostics that the programs have written since the last call on to `tracing`.
    pub fn pass_diagnostics(&mut self) {
        if let Some(logger) = &mut self.logger {
            logger.flush();
        }
    }
}
