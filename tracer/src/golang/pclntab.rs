//! pclntab: the tables by which the Go runtime itself finds functions, lines, and the size of frames. They are in every
//! Go executable, stripped or not.
//!
//! The format is that of Go 1.18 and newer: `pcHeader`, `_func` and `inlinedCall` in the runtime's `symtab.go`,
//! `runtime2.go` and `symtabinl.go`, and `internal/abi/symtab.go`. Code offsets count from the begin of the text, which
//! only `moduledata` tells. All of it may be forged, so every place is checked and the work is bounded.

use std::{
    borrow::Cow,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use super::{
    bytes::{u32_at, u64_at},
    layout::InlinedCall,
};

/// `pcHeader.magic` of Go 1.20 and newer.
const START_LINES: u32 = 0xffff_fff1;
/// How tables of Go 1.18 and 1.19, and of 1.20 and newer, begin: magic, padding, instruction unit of x86, pointers of 64
/// bits.
pub(super) const HEADERS: [[u8; 8]; 2] = [[0xf0, 0xff, 0xff, 0xff, 0, 0, 1, 8], [0xf1, 0xff, 0xff, 0xff, 0, 0, 1, 8]];
/// Size of `pcHeader`, bytes.
const HEADER: usize = 72;
/// Size of an entry of the table of functions, bytes.
const ENTRY: usize = 8;
/// `_func.funcdata` that says there is none.
const NO_FUNCDATA: u32 = u32::MAX;
/// PCDATA_InlTreeIndex and FUNCDATA_InlTree.
const INLINE_INDEX: usize = 2;
const INLINE_TREE: usize = 3;
/// abi.FuncFlagTopFrame and abi.FuncFlagSPWrite.
const TOP_FRAME: u8 = 1;
const WRITES_SP: u8 = 2;

/// Longest name that is taken, bytes.
const MAX_NAME: usize = 1 << 16;
/// Deepest inlining that is followed.
const MAX_INLINING: usize = 128;
/// Most inlined calls of one function that are looked at together, and what each counts in steps.
const MAX_INLINED: usize = 1 << 16;
const INLINED_STEPS: u64 = 16;
/// Steps through tables of all look-ups together, but for those of looks: some seconds.
const MAX_STEPS: u64 = 1 << 31;
/// Steps that each look at what runs may take in any case: half a second. A look at thousands of goroutines takes some millions.
const LOOK_STEPS: u64 = 1 << 26;

/// The tables of one executable.
pub struct Pclntab {
    bytes: Arc<[u8]>,
    functions: usize,
    names: usize,
    units: usize,
    files: usize,
    values: usize,
    table: usize,
    /// Whether `_func` has the field `startLine`.
    start_lines: bool,
    /// Steps that look-ups may still take.
    steps: AtomicU64,
}

/// One function in the text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Function {
    /// First byte of its code, from the begin of the text.
    pub entry: u32,
    /// `_func` in the bytes.
    at: usize,
}

/// A function, or one that was inlined into another, and the line in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogicalFrame {
    /// Name, as the runtime prints it. Hostile text.
    pub function: String,
    /// The whole name, where that is another one: with the type arguments of a generic function. Hostile text.
    pub symbol: Option<Box<str>>,
    /// Source file: hostile text. `None` when it is not known.
    pub file: Option<String>,
    /// Line in it.
    pub line: Option<u32>,
    /// What the runtime knows of it: `funcID`, whose numbers depend on the version.
    pub id: u8,
    /// Whether it was inlined into the next one.
    pub inlined: bool,
}

impl Pclntab {
    /// Takes the tables. `None` when they make no sense.
    pub fn parse(bytes: impl Into<Arc<[u8]>>) -> Option<Self> {
        let bytes = bytes.into();
        let magic = u32_at(&bytes, 0)?;
        if !HEADERS.iter().any(|header| bytes.starts_with(header)) {
            return None;
        }
        let number = |index: usize| usize::try_from(u64_at(&bytes, 8 + 8 * index)?).ok();
        let place = |index: usize| number(index).filter(|at| (HEADER..bytes.len()).contains(at));
        let functions = number(0)?;
        let (names, units, files, values, table) = (place(3)?, place(4)?, place(5)?, place(6)?, place(7)?);
        // One more entry than functions: it ends the last one.
        let end = functions.checked_mul(ENTRY)?.checked_add(table)?.checked_add(4)?;
        if functions == 0 || end > bytes.len() {
            return None;
        }
        let start_lines = magic == START_LINES;
        let steps = AtomicU64::new(MAX_STEPS);
        Some(Self { functions, names, units, files, values, table, start_lines, steps, bytes })
    }

    /// More steps may be taken: of a look, or of a report, each of which may take so many.
    pub fn allow_a_look(&self) {
        self.steps.fetch_max(LOOK_STEPS, Ordering::Relaxed);
    }

    /// Where the names are, bytes from the begin: what the second word of `moduledata` points to.
    pub fn names_at(&self) -> u64 {
        self.names as u64
    }

    /// The function that the code at `offset` in the text belongs to.
    pub fn function(&self, offset: u64) -> Option<Function> {
        let offset = u32::try_from(offset).ok()?;
        let (mut low, mut high) = (0, self.functions);
        while low < high {
            let middle = low + (high - low) / 2;
            if self.entry(middle)? <= offset { low = middle + 1 } else { high = middle }
        }
        let index = low.checked_sub(1)?;
        // The linker ends the table with the end of the text.
        if index + 1 == self.functions && self.entry(self.functions)? <= offset {
            return None;
        }
        self.function_at(index)
    }

    /// The function of this name, and how many bytes of code it has.
    pub fn function_named(&self, name: &str) -> Option<(Function, u32)> {
        let (_, function, size) = self.functions().find(|(other, ..)| other == name)?;
        Some((function, size))
    }

    /// All functions, with their names and how many bytes of code they have.
    pub fn functions(&self) -> impl Iterator<Item = (Cow<'_, str>, Function, u32)> {
        (0..self.functions).filter_map(|index| {
            let function = self.function_at(index)?;
            let size = self.entry(index + 1)?.checked_sub(function.entry)?;
            Some((self.name(function)?, function, size))
        })
    }

    /// Name of a function, as the compiler calls it.
    pub fn name(&self, function: Function) -> Option<Cow<'_, str>> {
        self.name_at(self.name_offset(function)?)
    }

    /// Whether the function is not Go's: the linker knows its name, and nothing of its frame, its file and its lines.
    pub fn is_foreign(&self, function: Function) -> bool {
        [4, 5, 6].into_iter().all(|table| self.field(function, table) == Some(0))
    }

    /// Whether nothing calls the function: it is the root of a stack.
    pub fn is_root(&self, function: Function) -> bool {
        self.flags(function) & TOP_FRAME != 0
    }

    /// Whether the function sets the stack pointer in a way that no table can tell.
    pub fn writes_stack_pointer(&self, function: Function) -> bool {
        self.flags(function) & WRITES_SP != 0
    }

    /// How far below its return address the stack pointer is at `offset` in the text, bytes.
    pub fn stack_use(&self, function: Function, offset: u64) -> Option<u32> {
        u32::try_from(self.value(function, self.field(function, 4)?, offset)?).ok()
    }

    /// The frames at the code at `offset` in the text, the innermost inlined function first. `read` reads what lies so many
    /// bytes behind `moduledata.gofunc`.
    pub fn frames(
        &self,
        function: Function,
        offset: u64,
        call: &InlinedCall,
        read: impl Fn(u32, &mut [u8]) -> Option<()>,
    ) -> Vec<LogicalFrame> {
        let mut frames = Vec::new();
        let mut at = offset;
        let tree = self.inline_tree(function);
        while let (Some((indexes, tree)), true) = (tree, frames.len() < MAX_INLINING) {
            let Some(index) = self.value(function, indexes, at).and_then(|index| u32::try_from(index).ok()) else {
                break;
            };
            let mut record = vec![0; call.size];
            let start = u32::try_from(call.size).ok().and_then(|size| index.checked_mul(size)?.checked_add(tree));
            let Some(inlined) = start.and_then(|start| read(start, &mut record)).and_then(|()| call.decode(&record))
            else {
                break;
            };
            let name = usize::try_from(inlined.name).ok().and_then(|name| self.name_at(name));
            frames.push(self.frame(function, at, name, inlined.id, true));
            at = u64::from(function.entry) + u64::from(inlined.parent);
        }
        let id = self.bytes.get(function.at + self.id_at()).copied().unwrap_or(0);
        frames.push(self.frame(function, at, self.name(function), id, false));
        frames
    }

    /// Names of the functions that are inlined into this one, of those that are `wanted`, which is given a name and what is
    /// behind it. `read` as for [`frames`](Self::frames). `None` when it cannot be told.
    pub fn inlined(
        &self,
        function: Function,
        call: &InlinedCall,
        read: impl FnOnce(u32, &mut [u8]) -> Option<()>,
        wanted: impl Fn(&[u8]) -> bool,
    ) -> Option<Vec<Cow<'_, str>>> {
        let Some((indexes, tree)) = self.inline_tree(function) else { return Some(Vec::new()) };
        let mut last = -1;
        self.each_value(function, indexes, |value, _| {
            last = last.max(value);
            true
        })?;
        let nodes = usize::try_from(last.checked_add(1)?).ok().filter(|nodes| *nodes <= MAX_INLINED)?;
        self.take_steps(INLINED_STEPS * nodes as u64)?;
        let mut records = vec![0; nodes * call.size];
        read(tree, &mut records)?;
        let mut names = Vec::new();
        for record in records.chunks_exact(call.size) {
            let name = usize::try_from(call.decode(record)?.name).ok()?;
            if wanted(self.bytes.get(self.names.checked_add(name)?..)?) {
                let name = self.name_at(name)?;
                self.take_steps(name.len() as u64)?;
                names.push(name);
            }
        }
        Some(names)
    }

    fn frame(&self, function: Function, at: u64, name: Option<Cow<'_, str>>, id: u8, inlined: bool) -> LogicalFrame {
        let (file, line) = self.line(function, at).unzip();
        let function = name.as_deref().map_or_else(|| "?".to_owned(), printed);
        let symbol = name.filter(|name| *name != function).map(|name| name.into_owned().into_boxed_str());
        LogicalFrame { function, symbol, file, line, id, inlined }
    }

    fn line(&self, function: Function, offset: u64) -> Option<(String, u32)> {
        let line = self.value(function, self.field(function, 6)?, offset)?;
        let file = usize::try_from(self.value(function, self.field(function, 5)?, offset)?).ok()?;
        let index = file.checked_add(self.field(function, 8)? as usize)?;
        let name = u32_at(&self.bytes, index.checked_mul(4)?.checked_add(self.units)?)?;
        let file = self.text(self.files.checked_add(name as usize)?)?;
        Some((file.into_owned(), u32::try_from(line).ok()?))
    }

    /// Table of indexes into the inlining tree, and where the tree is behind `moduledata.gofunc`.
    fn inline_tree(&self, function: Function) -> Option<(u32, u32)> {
        let tables = self.field(function, 7)? as usize;
        let data = usize::from(*self.bytes.get(function.at + self.fixed() - 1)?);
        if tables <= INLINE_INDEX || data <= INLINE_TREE {
            return None;
        }
        let word = |index: usize| u32_at(&self.bytes, index.checked_mul(4)?.checked_add(function.at + self.fixed())?);
        let tree = word(tables.checked_add(INLINE_TREE)?)?;
        (tree != NO_FUNCDATA).then_some((word(INLINE_INDEX)?, tree))
    }

    /// The value of a table at `offset` in the text.
    fn value(&self, function: Function, table: u32, offset: u64) -> Option<i32> {
        let mut found = None;
        self.each_value(function, table, |value, end| {
            found = (offset < end).then_some(value);
            found.is_none()
        })?;
        found
    }

    /// Gives the values of a table, each with where in the text what it is for ends, as long as `take` wants more: deltas of
    /// the value and of the address, zigzag and plain varints. `None` when it cannot be read to its end.
    fn each_value(&self, function: Function, table: u32, mut take: impl FnMut(i32, u64) -> bool) -> Option<()> {
        if table == 0 {
            return Some(());
        }
        let mut at = self.values.checked_add(table as usize)?;
        let (mut address, mut value) = (u64::from(function.entry), -1_i32);
        loop {
            let delta = self.varint(&mut at)?;
            if delta == 0 && address != u64::from(function.entry) {
                return Some(());
            }
            value = value.wrapping_add((delta >> 1) as i32 ^ -((delta & 1) as i32));
            address = address.checked_add(u64::from(self.varint(&mut at)?))?;
            if !take(value, address) {
                return Some(());
            }
        }
    }

    fn varint(&self, at: &mut usize) -> Option<u32> {
        self.take_steps(1)?;
        let mut value = 0_u32;
        for shift in [0, 7, 14, 21, 28] {
            let byte = *self.bytes.get(*at)?;
            *at += 1;
            value |= u32::from(byte & 0x7f).wrapping_shl(shift);
            if byte & 0x80 == 0 {
                return Some(value);
            }
        }
        None
    }

    fn take_steps(&self, number: u64) -> Option<()> {
        // Two threads may use the same step: it is a bound, not a count.
        self.steps.store(self.steps.load(Ordering::Relaxed).checked_sub(number)?, Ordering::Relaxed);
        Some(())
    }

    /// Begin of the function with this index; of the one behind the last, the end of the text.
    fn entry(&self, index: usize) -> Option<u32> {
        u32_at(&self.bytes, self.table + index * ENTRY)
    }

    fn function_at(&self, index: usize) -> Option<Function> {
        let at = self.table.checked_add(u32_at(&self.bytes, self.table + index * ENTRY + 4)? as usize)?;
        let whole = at.checked_add(self.fixed())? <= self.bytes.len();
        Some(Function { entry: self.entry(index)?, at }).filter(|_| whole)
    }

    /// Field of `_func`, which begins with nine or ten of 32 bits.
    fn field(&self, function: Function, index: usize) -> Option<u32> {
        u32_at(&self.bytes, function.at + 4 * index)
    }

    fn name_offset(&self, function: Function) -> Option<usize> {
        self.field(function, 1).map(|offset| offset as usize)
    }

    fn name_at(&self, offset: usize) -> Option<Cow<'_, str>> {
        self.text(self.names.checked_add(offset)?)
    }

    /// Text up to its NUL.
    fn text(&self, at: usize) -> Option<Cow<'_, str>> {
        let rest = self.bytes.get(at..)?;
        let length = rest.iter().take(MAX_NAME).position(|byte| *byte == 0)?;
        Some(String::from_utf8_lossy(&rest[..length]))
    }

    /// Where `funcID` is in `_func`; `flag` is behind it.
    fn id_at(&self) -> usize {
        if self.start_lines { 40 } else { 36 }
    }

    fn flags(&self, function: Function) -> u8 {
        self.bytes.get(function.at + self.id_at() + 1).copied().unwrap_or(0)
    }

    /// Size of the part of `_func` that all functions have, bytes.
    fn fixed(&self) -> usize {
        self.id_at() + 4
    }
}

/// A name without the type arguments of a generic function, as the runtime prints it (`funcNameForPrint`).
fn printed(name: &str) -> String {
    match (name.find('['), name.rfind(']')) {
        (Some(open), Some(close)) if open < close => format!("{}[...]{}", &name[..open], &name[close + 1..]),
        _ => name.to_owned(),
    }
}

#[cfg(test)]
mod tests;
