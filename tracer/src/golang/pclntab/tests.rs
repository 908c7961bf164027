//! Tables as the linker writes them, and forged ones.

use super::*;
use crate::golang::layout::{self, Layout};

/// Parts of tables, as the linker writes them for Go 1.20 and newer.
#[derive(Default)]
struct Tables {
    names: Vec<u8>,
    files: Vec<u8>,
    units: Vec<u8>,
    values: Vec<u8>,
    functions: Vec<(u32, Vec<u8>)>,
}

impl Tables {
    fn name(&mut self, name: &str) -> u32 {
        let at = self.names.len() as u32;
        self.names.extend(name.bytes().chain([0]));
        at
    }

    /// A table of values, each with the length of the code that it is for.
    fn table(&mut self, steps: &[(i32, u8)]) -> u32 {
        if self.values.is_empty() {
            self.values.push(0); // no table is at 0
        }
        let at = self.values.len() as u32;
        let mut before = -1;
        for (value, length) in steps {
            let delta = value - before;
            let zigzag = ((delta << 1) ^ (delta >> 31)) as u32;
            assert!(zigzag < 0x4000);
            self.values.extend([zigzag as u8 | 0x80, (zigzag >> 7) as u8, *length]);
            before = *value;
        }
        self.values.push(0);
        at
    }

    /// A function with its tables of stack use, lines, and indexes into the inlining tree at 0.
    fn function(&mut self, entry: u32, name: &str, flags: u8, tables: [u32; 3]) {
        let (name, file) = (self.name(name), self.table(&[(0, 127)]));
        let [stack_use, lines, inlining] = tables;
        let mut function = Vec::new();
        for field in [entry, name, 0, 0, stack_use, file, lines, 3, 0, 1] {
            function.extend(field.to_le_bytes());
        }
        function.extend([0, flags, 0, 4]);
        for word in [0, 0, inlining, NO_FUNCDATA, NO_FUNCDATA, NO_FUNCDATA, 0] {
            function.extend(word.to_le_bytes());
        }
        self.functions.push((entry, function));
    }

    fn bytes(&self, end: u32) -> Vec<u8> {
        let mut table = Vec::new();
        let mut bodies = Vec::new();
        let first = ENTRY * self.functions.len() + 8;
        for (entry, function) in &self.functions {
            table.extend(entry.to_le_bytes());
            table.extend(((first + bodies.len()) as u32).to_le_bytes());
            bodies.extend(function);
        }
        table.extend(end.to_le_bytes());
        table.extend([0; 4]);
        let mut bytes = vec![0xf1, 0xff, 0xff, 0xff, 0, 0, 1, 8];
        let mut numbers = vec![self.functions.len(), 1, 0];
        let mut data: Vec<u8> = Vec::new();
        for part in [&self.names, &self.units, &self.files, &self.values, &[table, bodies].concat()] {
            numbers.push(HEADER + data.len());
            data.extend(part);
        }
        for number in numbers {
            bytes.extend((number as u64).to_le_bytes());
        }
        bytes.extend(data);
        bytes
    }
}

/// `main.outer` at 16 to 116, which `main.inner[...]` and in that `main.leaf` are inlined into; `runtime.goexit` behind it.
fn sample() -> (Vec<u8>, Vec<u8>) {
    let mut tables = Tables::default();
    tables.files.extend(b"/src/main.go\0");
    tables.units.extend(0_u32.to_le_bytes());
    let (inner, leaf) = (tables.name("main.inner[go.shape.int]"), tables.name("main.leaf"));
    let stack_use = tables.table(&[(0, 4), (24, 90), (0, 6)]);
    let lines = tables.table(&[(10, 20), (30, 20), (50, 30), (11, 30)]);
    let inlining = tables.table(&[(-1, 20), (0, 20), (1, 30), (-1, 30)]);
    tables.function(16, "main.outer", 0, [stack_use, lines, inlining]);
    tables.function(116, "runtime.goexit", TOP_FRAME, [0, 0, 0]);
    let node = |name: u32, parent: u32| [[7, 0, 0, 0], name.to_le_bytes(), parent.to_le_bytes(), [0; 4]].concat();
    (tables.bytes(132), [node(inner, 2), node(leaf, 22)].concat())
}

fn call() -> InlinedCall {
    let table = layout::table();
    Layout::try_from(&table[&22]).unwrap().inlined_call
}

fn frames(tables: &Pclntab, tree: &[u8], offset: u64) -> Vec<(String, Option<u32>, bool)> {
    let read = |at: u32, buffer: &mut [u8]| {
        buffer.copy_from_slice(tree.get(at as usize..)?.get(..buffer.len())?);
        Some(())
    };
    let Some(function) = tables.function(offset) else { return Vec::new() };
    let frames = tables.frames(function, offset, &call(), read);
    frames.into_iter().map(|frame| (frame.function, frame.line, frame.inlined)).collect()
}

#[test]
fn functions_are_found_by_address_and_by_name() {
    let tables = Pclntab::parse(sample().0).unwrap();
    let name = |offset| tables.function(offset).and_then(|function| tables.name(function));
    for (offset, expected) in [(0, None), (15, None), (16, Some("main.outer")), (115, Some("main.outer"))] {
        assert_eq!(name(offset).as_deref(), expected, "{offset}");
    }
    for (offset, expected) in [(116, Some("runtime.goexit")), (131, Some("runtime.goexit")), (132, None)] {
        assert_eq!(name(offset).as_deref(), expected, "{offset}");
    }
    assert_eq!(tables.function(u64::MAX), None);
    let (outer, size) = tables.function_named("main.outer").unwrap();
    assert_eq!((outer.entry, size), (16, 100));
    assert_eq!(tables.function_named("main.oute"), None);
    assert!(!tables.is_root(outer) && tables.is_root(tables.function(120).unwrap()));
    assert!(!tables.writes_stack_pointer(outer));
}

#[test]
fn stack_use_is_that_of_the_instruction() {
    let tables = Pclntab::parse(sample().0).unwrap();
    let stack_use = |offset| tables.stack_use(tables.function(offset).unwrap(), offset);
    assert_eq!([16, 19, 20, 109, 110].map(stack_use), [Some(0), Some(0), Some(24), Some(24), Some(0)]);
    assert_eq!(stack_use(120), None);
}

#[test]
fn inlined_functions_are_frames() {
    let (bytes, tree) = sample();
    let tables = Pclntab::parse(bytes).unwrap();
    let frame = |name: &str, line, inlined| (name.to_owned(), Some(line), inlined);
    let (outer, inner) = (frame("main.outer", 10, false), frame("main.inner[...]", 30, true));
    assert_eq!(frames(&tables, &tree, 20), std::slice::from_ref(&outer));
    assert_eq!(frames(&tables, &tree, 40), [inner.clone(), outer.clone()]);
    assert_eq!(frames(&tables, &tree, 60), [frame("main.leaf", 50, true), inner, outer]);
    assert_eq!(frames(&tables, &tree, 90), [frame("main.outer", 11, false)]);
    assert_eq!(frames(&tables, &tree, 120), [("runtime.goexit".to_owned(), None, false)]);
    let inlined = |tree: &[u8], offset| {
        let read = |at: u32, buffer: &mut [u8]| {
            buffer.copy_from_slice(tree.get(at as usize..)?.get(..buffer.len())?);
            Some(())
        };
        tables.inlined(tables.function(offset).unwrap(), &call(), read, |name| !name.starts_with(b"main.inn"))
    };
    assert_eq!(inlined(&tree, 16).unwrap(), ["main.leaf"]);
    assert_eq!(inlined(&tree, 116).unwrap(), [""; 0]);
    assert_eq!(inlined(&tree[1..], 16), None);
    // A tree that is its own parent ends.
    let mut circle = tree;
    circle[8..12].copy_from_slice(&22_u32.to_le_bytes());
    assert_eq!(frames(&tables, &circle, 40).len(), MAX_INLINING + 1);
}

#[test]
fn names_are_printed_as_the_runtime_prints_them() {
    for (name, expected) in [
        ("main.f", "main.f"),
        ("main.f[go.shape.int]", "main.f[...]"),
        ("main.(*pair[go.shape.string,go.shape.[]uint8]).take", "main.(*pair[...]).take"),
        ("main.f][", "main.f]["),
        ("", ""),
    ] {
        assert_eq!(printed(name), expected);
    }
}

/// Everything that can be asked, of every place in the text.
fn ask_everything(bytes: Vec<u8>, tree: &[u8]) {
    let Some(tables) = Pclntab::parse(bytes) else { return };
    for offset in (0..140).step_by(9).chain([u64::from(u32::MAX), u64::MAX]) {
        frames(&tables, tree, offset);
        if let Some(function) = tables.function(offset) {
            tables.inlined(function, &call(), |_, _| Some(()), |_| true);
            tables.stack_use(function, offset);
            tables.is_root(function);
        }
    }
    tables.function_named("main.outer");
    assert!(tables.functions().take(1000).count() <= 1000);
}

#[test]
fn forged_tables_do_no_harm() {
    let (bytes, tree) = sample();
    for length in 0..bytes.len() {
        ask_everything(bytes[..length].to_vec(), &tree);
    }
    for length in 0..tree.len() {
        ask_everything(bytes.clone(), &tree[..length]);
    }
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut random = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state >> 20
    };
    for _ in 0..300 {
        let (mut forged, mut tree) = (bytes.clone(), tree.clone());
        for _ in 0..1 + random() % 4 {
            let at = random() as usize % forged.len();
            forged[at] = [0, 1, 0x7f, 0x80, 0xff, random() as u8][random() as usize % 6];
        }
        let at = random() as usize % tree.len();
        tree[at] = random() as u8;
        ask_everything(forged, &tree);
    }
}

#[test]
fn the_work_is_bounded() {
    let mut tables = Tables::default();
    tables.files.extend(b"x\0");
    tables.units.extend(0_u32.to_le_bytes());
    let long = tables.table(&[(0, 0); 1000]);
    tables.function(0, "f", 0, [long, long, long]);
    let tables = Pclntab::parse(tables.bytes(u32::MAX)).unwrap();
    tables.steps.store(500, Ordering::Relaxed);
    let function = tables.function(5).unwrap();
    assert_eq!(tables.stack_use(function, 5), None);
    assert_eq!(tables.steps.load(Ordering::Relaxed), 0);
    assert_eq!(tables.stack_use(function, 5), None, "and stays so");
    assert_eq!(tables.inlined(function, &call(), |_, _| Some(()), |_| true), None, "nor is nothing said to be inlined");
}
