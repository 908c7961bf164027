//! Where the runtime of one version of Go keeps what: places of fields in its structures, and the words for what goroutines
//! wait for.
//!
//! `layouts.json` holds this per minor version, as [`Description`]s: what [`describe`](super::describe) says of a program
//! that a toolchain of that version built. `cargo xtask go-layouts` writes it.

use std::{collections::BTreeMap, sync::LazyLock};

use serde::{Deserialize, Serialize};

use super::bytes::u32_at;

const TABLE: &str = include_str!("layouts.json");

/// Largest structure of interest, bytes. Real ones stay below 1024, but `moduledata` and `g` grow.
const MAX_SIZE: u64 = 1 << 14;
/// Largest structure of the heap, bytes: an arena has 8192 spans, and a bit for each word before Go 1.22.
const MAX_HEAP: u64 = 1 << 24;

/// Structures that are looked at, and their fields.
pub(super) const STRUCTURES: [(&str, &[&str]); 16] = [
    (
        "runtime.g",
        &[
            "stack",
            "sched",
            "syscallsp",
            "syscallpc",
            "atomicstatus",
            "goid",
            "waitsince",
            "waitreason",
            "gopc",
            "startpc",
            "m",
            "gcAssistBytes",
            "waiting",
        ],
    ),
    ("runtime.stack", &["lo", "hi"]),
    ("runtime.gobuf", &["sp", "pc"]),
    ("runtime.moduledata", &["text", "etext", "gofunc"]),
    // The name was `func_` before Go 1.20.
    ("runtime.inlinedCall", &["funcID", "func_", "nameOff", "parentPc"]),
    // The heap, and the profile that the runtime may keep of it.
    ("runtime.m", &["p"]),
    ("runtime.p", &["mcache"]),
    ("runtime.mcache", &["alloc", "tiny", "tinyoffset"]),
    (
        "runtime.mspan",
        &["startAddr", "freeindex", "nelems", "allocCache", "allocBits", "elemsize", "spanclass", "sweepgen", "state"],
    ),
    ("runtime.mheap", &["sweepgen", "arenas"]),
    ("runtime.heapArena", &["spans"]),
    ("runtime.bucket", &["allnext", "size", "nstk"]),
    ("runtime.memRecord", &["active", "future"]),
    ("runtime.memRecordCycle", &["allocs", "frees"]),
    ("runtime.sudog", &["g", "elem", "waitlink", "c"]),
    (TRACEABLE, &["vu"]),
];

/// What pointers in a `sudog` are from Go 1.26 on. With it came that goroutines note the semaphores that they wait for.
pub(super) const TRACEABLE: &str = "runtime.maybeTraceablePtr";

/// The constants that say that a function is a wrapper that the compiler made: before Go 1.21, and from then on.
pub(super) const WRAPPERS: [&str; 2] = ["runtime.funcID_wrapper", "internal/abi.FuncIDWrapper"];

/// What is known of one version, in the form of the table.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Description {
    /// Version of the toolchain that it was taken from.
    pub version: String,
    /// By name, such as `runtime.g`.
    pub structures: BTreeMap<String, Structure>,
    /// `funcID` of wrappers.
    pub wrapper: u8,
    /// By number.
    pub wait_reasons: Vec<String>,
    /// Where functions of the runtime mention its variables.
    pub mentions: Vec<Mention>,
}

/// A structure.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Structure {
    /// Bytes.
    pub size: u64,
    /// Where each field begins, bytes.
    pub fields: BTreeMap<String, u64>,
}

/// An operand in a function of the runtime that is the address of a variable, counted so that it is found in other builds
/// too: see [`mentions`](super::mentions).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mention {
    /// Name of the function.
    pub function: String,
    /// How many operands relative to the instruction pointer it has.
    pub operands: usize,
    /// Which of them this one is, from 0.
    pub index: usize,
    /// What the instruction does.
    pub mnemonic: String,
    /// The variable.
    pub variable: String,
    /// Where in it the operand points, bytes.
    pub offset: u64,
}

/// The table: what is known of each minor version of Go, by its number.
pub(super) fn table() -> &'static BTreeMap<u32, Description> {
    static READ: LazyLock<BTreeMap<u32, Description>> = LazyLock::new(|| {
        // A test sees to it that it can be read.
        serde_json::from_str(TABLE).unwrap_or_default()
    });
    &READ
}

/// Where the runtime of a minor version of Go keeps what, if that is known.
pub fn known(minor: u32) -> Option<Layout> {
    Layout::try_from(table().get(&minor)?).ok()
}

/// Where things are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layout {
    /// `runtime.g`.
    pub g: G,
    /// `runtime.sudog`; `None` when it is not as it is known.
    pub sudog: Option<Sudog>,
    /// `runtime.moduledata`.
    pub moduledata: Moduledata,
    /// `runtime.inlinedCall`.
    pub inlined_call: InlinedCall,
    /// `funcID` of wrappers.
    pub wrapper: u8,
    /// By number.
    pub wait_reasons: Vec<String>,
    /// The heap and the profile of it; `Err` names what is not known.
    pub heap: Result<Heap, String>,
}

/// Where the structures of the heap keep what. Offsets in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Heap {
    /// `g.m`, `m.p`, `p.mcache`: from a goroutine to the cache that it allocates from.
    pub cache_of_g: (usize, usize, usize),
    /// `g.gcAssistBytes`.
    pub assist: usize,
    /// `alloc`, `tiny` and `tinyoffset` in `mcache`.
    pub mcache: (usize, usize, usize),
    /// `mspan`.
    pub span: Span,
    /// `mheap_.sweepgen` and `mheap_.arenas`.
    pub mheap: (usize, usize),
    /// `heapArena.spans`.
    pub arena_spans: usize,
    /// `bucket` and what follows it.
    pub bucket: Bucket,
}

/// `runtime.mspan`. Offsets in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    /// `startAddr`: its first byte.
    pub start: usize,
    /// `freeindex`: objects from here on may be free.
    pub free_index: usize,
    /// `nelems`: how many objects it has.
    pub elements: usize,
    /// `allocCache`.
    pub cache: usize,
    /// `allocBits`: address of a bit for each object, set for those that the last sweep left.
    pub bits: usize,
    /// `elemsize`: bytes of an object.
    pub element_size: usize,
    /// `spanclass`, 8 bits.
    pub class: usize,
    /// `sweepgen`, 32 bits.
    pub sweepgen: usize,
    /// `state`, 8 bits.
    pub state: usize,
    /// Whether `freeindex` and `nelems` have 64 bits, not 16.
    pub wide: bool,
    /// Bytes up to the end of the last of these.
    pub size: usize,
}

/// `runtime.bucket`, which the addresses of a stack and a `memRecord` follow. Offsets in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bucket {
    /// `allnext`: the next in the list.
    pub next: usize,
    /// `size`: bytes of an object.
    pub size: usize,
    /// `nstk`: how many addresses follow.
    pub frames: usize,
    /// Bytes of a bucket itself.
    pub len: usize,
    /// `memRecord.active`, which is published, and `memRecord.future`, which is held back: [`FUTURES`](super::heap::FUTURES)
    /// of it.
    pub cycles: (usize, usize),
    /// Bytes of a `memRecord`.
    pub record_len: usize,
    /// `memRecordCycle.allocs` and `memRecordCycle.frees`.
    pub counts: (usize, usize),
    /// Bytes of a `memRecordCycle`.
    pub cycle_len: usize,
}

/// A goroutine's descriptor. Offsets in bytes; those of structures in it are added up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct G {
    /// `stack.lo`, and `stack.hi`, which is behind the last byte of the stack.
    pub stack: (usize, usize),
    /// `sched.sp` and `sched.pc`: where it goes on when it runs again.
    pub sched: (usize, usize),
    /// `syscallsp` and `syscallpc`: where it called the system, or C.
    pub syscall: (usize, usize),
    /// `atomicstatus`, 32 bits.
    pub status: usize,
    /// `goid`.
    pub id: usize,
    /// `waitsince`.
    pub wait_since: usize,
    /// `waitreason`, 8 bits.
    pub wait_reason: usize,
    /// `gopc`: behind the `go` statement that created it.
    pub go_pc: usize,
    /// `startpc`: the function that it began with.
    pub start_pc: usize,
    /// `waiting`: the first `sudog` of those that it waits with. Not looked at without [`Layout::sudog`].
    pub waiting: usize,
    /// Bytes up to the end of the last of these.
    pub size: usize,
}

/// What binds a goroutine to something that it waits for. Offsets in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sudog {
    /// `g`: the goroutine.
    pub g: usize,
    /// `c`: the channel, if it is one.
    pub channel: usize,
    /// `elem`: without a channel, the semaphore. `None` before Go 1.26.
    pub semaphore: Option<usize>,
    /// `waitlink`: with a channel, the next one of the same goroutine.
    pub next: usize,
    /// Bytes up to the end of the last of these.
    pub size: usize,
}

/// What the runtime knows of the executable. Offsets in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Moduledata {
    /// First byte of the code.
    pub text: usize,
    /// Behind its last byte.
    pub text_end: usize,
    /// Where functions' data, such as inlining trees, begins.
    pub gofunc: usize,
    /// Bytes up to the end of the last of these.
    pub size: usize,
}

/// A node of an inlining tree. Offsets in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InlinedCall {
    /// `funcID`, 8 bits.
    id: usize,
    /// Name, as an offset into the names, 32 bits.
    name: usize,
    /// `parentPc`, 32 bits.
    parent: usize,
    /// Bytes of a node.
    pub size: usize,
}

/// A decoded node.
pub(super) struct Inlined {
    pub(super) id: u8,
    pub(super) name: u32,
    /// An instruction of the calling function, from the begin of the function that all are inlined into.
    pub(super) parent: u32,
}

impl InlinedCall {
    pub(super) fn decode(&self, record: &[u8]) -> Option<Inlined> {
        let id = *record.get(self.id)?;
        Some(Inlined { id, name: u32_at(record, self.name)?, parent: u32_at(record, self.parent)? })
    }
}

impl Layout {
    /// From structures as they are described. `Err` names what is missing, or makes no sense.
    ///
    /// # Errors
    /// A field that is not there.
    pub fn new(
        structures: &BTreeMap<String, Structure>,
        wrapper: u8,
        wait_reasons: Vec<String>,
    ) -> Result<Self, String> {
        let find = |structure: &str, field: &str| field_of(structures, structure, field);
        let within = |outer: &str, structure: &str, first: &str, second: &str| -> Result<_, String> {
            let begin = find("runtime.g", outer)?;
            Ok((begin + find(structure, first)?, begin + find(structure, second)?))
        };
        let of_g = |field: &str| find("runtime.g", field);
        let sudog = sudog(structures, &find).ok();
        let mut g = G {
            stack: within("stack", "runtime.stack", "lo", "hi")?,
            sched: within("sched", "runtime.gobuf", "sp", "pc")?,
            syscall: (of_g("syscallsp")?, of_g("syscallpc")?),
            status: of_g("atomicstatus")?,
            id: of_g("goid")?,
            wait_since: of_g("waitsince")?,
            wait_reason: of_g("waitreason")?,
            go_pc: of_g("gopc")?,
            start_pc: of_g("startpc")?,
            waiting: of_g("waiting").unwrap_or(0),
            size: 0,
        };
        let last = [g.stack.0, g.stack.1, g.sched.0, g.sched.1, g.syscall.0, g.syscall.1, g.status, g.id, g.wait_since]
            .into_iter()
            .chain([g.wait_reason, g.go_pc, g.start_pc, g.waiting]);
        g.size = last.max().unwrap_or(0) + 8;
        let of_module = |field: &str| find("runtime.moduledata", field);
        let (text, text_end, gofunc) = (of_module("text")?, of_module("etext")?, of_module("gofunc")?);
        let moduledata = Moduledata { text, text_end, gofunc, size: text.max(text_end).max(gofunc) + 8 };
        let of_call = |field: &str| find("runtime.inlinedCall", field);
        let size = structures.get("runtime.inlinedCall").map_or(0, |structure| structure.size);
        let inlined_call = InlinedCall {
            id: of_call("funcID")?,
            name: of_call("nameOff").or_else(|_| of_call("func_"))?,
            parent: of_call("parentPc")?,
            size: usize::try_from(size).ok().filter(|size| (1..=256).contains(size)).ok_or("runtime.inlinedCall")?,
        };
        let heap = Heap::new(structures);
        Ok(Self { g, sudog, moduledata, inlined_call, wrapper, wait_reasons, heap })
    }

    /// What a goroutine waits for; empty when it does not say.
    pub fn wait_reason(&self, number: u8) -> &str {
        self.wait_reasons.get(usize::from(number)).map_or("", String::as_str)
    }
}

impl Heap {
    fn new(structures: &BTreeMap<String, Structure>) -> Result<Self, String> {
        let find = |structure: &str, field: &str| field_of(structures, structure, field);
        let len = |name: &str| {
            let len = structures.get(name).and_then(|structure| usize::try_from(structure.size).ok());
            len.filter(|len| (8..=1024).contains(len) && len.is_multiple_of(8)).ok_or_else(|| name.to_owned())
        };
        let of_span = |field: &str| find("runtime.mspan", field);
        let (free_index, elements) = (of_span("freeindex")?, of_span("nelems")?);
        let mut span = Span {
            start: of_span("startAddr")?,
            free_index,
            elements,
            cache: of_span("allocCache")?,
            bits: of_span("allocBits")?,
            element_size: of_span("elemsize")?,
            class: of_span("spanclass")?,
            sweepgen: of_span("sweepgen")?,
            state: of_span("state")?,
            wide: free_index.abs_diff(elements) >= 8,
            size: 0,
        };
        let fields = [span.start, span.free_index, span.elements, span.cache, span.bits, span.element_size, span.class];
        span.size = fields.into_iter().chain([span.sweepgen, span.state]).max().unwrap_or(0) + 8;
        let bucket = Bucket {
            next: find("runtime.bucket", "allnext")?,
            size: find("runtime.bucket", "size")?,
            frames: find("runtime.bucket", "nstk")?,
            len: len("runtime.bucket")?,
            cycles: (find("runtime.memRecord", "active")?, find("runtime.memRecord", "future")?),
            record_len: len("runtime.memRecord")?,
            counts: (find("runtime.memRecordCycle", "allocs")?, find("runtime.memRecordCycle", "frees")?),
            cycle_len: len("runtime.memRecordCycle")?,
        };
        Ok(Self {
            cache_of_g: (find("runtime.g", "m")?, find("runtime.m", "p")?, find("runtime.p", "mcache")?),
            assist: find("runtime.g", "gcAssistBytes")?,
            mcache: (
                find("runtime.mcache", "alloc")?,
                find("runtime.mcache", "tiny")?,
                find("runtime.mcache", "tinyoffset")?,
            ),
            span,
            mheap: (find("runtime.mheap", "sweepgen")?, find("runtime.mheap", "arenas")?),
            arena_spans: find("runtime.heapArena", "spans")?,
            bucket,
        })
    }
}

/// Where a field of a structure begins. `Err` names it when that is not known, or makes no sense.
fn field_of(structures: &BTreeMap<String, Structure>, structure: &str, field: &str) -> Result<usize, String> {
    // The heap is one large structure.
    let max = if structure == "runtime.mheap" || structure == "runtime.heapArena" { MAX_HEAP } else { MAX_SIZE };
    let at = structures.get(structure).and_then(|structure| structure.fields.get(field).copied());
    let sane = at.filter(|at| *at < max).and_then(|at| usize::try_from(at).ok());
    sane.ok_or_else(|| format!("{structure}.{field}"))
}

/// Not an error of the whole: without it all else can still be read.
fn sudog(
    structures: &BTreeMap<String, Structure>,
    find: &dyn Fn(&str, &str) -> Result<usize, String>,
) -> Result<Sudog, String> {
    find("runtime.g", "waiting")?;
    let of_sudog = |field: &str| find("runtime.sudog", field);
    let traceable = structures.contains_key(TRACEABLE);
    let value = if traceable { find(TRACEABLE, "vu")? } else { 0 };
    let channel = of_sudog("c")? + value;
    let semaphore = if traceable { Some(of_sudog("elem")? + value) } else { None };
    let (g, next) = (of_sudog("g")?, of_sudog("waitlink")?);
    let size = g.max(channel).max(semaphore.unwrap_or(0)).max(next) + 8;
    Ok(Sudog { g, channel, semaphore, next, size })
}

impl TryFrom<&Description> for Layout {
    type Error = String;

    fn try_from(description: &Description) -> Result<Self, String> {
        Self::new(&description.structures, description.wrapper, description.wait_reasons.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_has_all_versions_from_19_on() {
        let table: BTreeMap<u32, Description> = serde_json::from_str(TABLE).unwrap();
        let minors: Vec<u32> = table.keys().copied().collect();
        assert_eq!(minors, Vec::from_iter(19..=27));
        for (minor, description) in &table {
            assert!(description.version.starts_with(&format!("go1.{minor}.")), "{minor}");
            let layout = Layout::try_from(description).unwrap();
            assert!(layout.g.size <= 512 && layout.moduledata.size <= 1024, "{minor}");
            assert!(layout.heap.is_ok(), "{minor}: {:?}", layout.heap);
            assert!(layout.wait_reasons.iter().any(|reason| reason == "chan receive"), "{minor}");
            let sudog = layout.sudog.unwrap();
            assert!(sudog.size <= 160, "{minor}");
            assert_eq!(sudog.semaphore.is_some(), *minor >= 26, "{minor}");
            for variable in super::super::executable::VARIABLES {
                let mentions = description.mentions.iter().filter(|mention| mention.variable == variable);
                assert!(mentions.count() >= 2, "{minor}: too few votes for {variable}");
            }
        }
    }

    #[test]
    fn what_is_missing_or_makes_no_sense_is_named() {
        let known = &table()[&27];
        let new = |structures: &BTreeMap<String, Structure>| Layout::new(structures, 23, Vec::new());
        assert!(new(&known.structures).is_ok_and(|layout| layout.heap.is_ok()));
        for (structure, fields) in &known.structures {
            for field in fields.fields.keys() {
                // What only the heap needs is missed there only.
                let missing = |structures: &BTreeMap<String, Structure>| new(structures).and_then(|layout| layout.heap);
                let mut structures = known.structures.clone();
                let fields = &mut structures.get_mut(structure).unwrap().fields;
                fields.remove(field);
                if structure == "runtime.sudog" || structure == TRACEABLE || field == "waiting" {
                    let without = new(&structures).unwrap().sudog;
                    assert_eq!(without, None, "{structure}.{field}");
                    continue;
                }
                let name = missing(&structures).unwrap_err();
                assert!(name.starts_with(structure), "{name}");
                structures.get_mut(structure).unwrap().fields.insert(field.clone(), u64::MAX);
                assert_eq!(missing(&structures).unwrap_err(), name);
            }
        }
        assert!(new(&BTreeMap::new()).is_err());
    }

    #[test]
    fn reasons_that_are_not_known_are_empty() {
        let layout = Layout::try_from(&table()[&22]).unwrap();
        assert_eq!((layout.wait_reason(0), layout.wait_reason(255)), ("", ""));
        assert!((0..=255).any(|number| layout.wait_reason(number) == "select (no cases)"));
    }
}
