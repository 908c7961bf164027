//! Go's tables of functions, trees of inlined calls, and build information.

use std::sync::LazyLock;

use tracer::golang::{BuildInfo, Layout, Pclntab, build_info, known_layout};

use crate::input::take;

/// Functions that are asked about: each may take as many steps as there are bytes, for every inlined call.
const ASKED: usize = 4;
/// Inlined calls that are followed, and the function that they are in.
const MOST_FRAMES: usize = 129;

static LAYOUT: LazyLock<Layout> = LazyLock::new(|| known_layout(27).expect("a known version"));

/// The input is where the tables begin in it, a place in the code, the tree, and the tables.
pub fn run(data: &[u8]) {
    if let BuildInfo::Version(version) = build_info(data) {
        // What is not UTF-8 takes up to three times as much when it is replaced.
        assert!(version.text.len() <= 3 * 256 && version.text.len() <= 3 * data.len());
    }
    let ([low, high, place @ ..], rest) = take::<6>(data);
    let (tree, tables) = rest.split_at(usize::from(u16::from_le_bytes([low, high])).min(rest.len()));
    let Some(tables) = Pclntab::parse(tables.to_vec()) else { return };
    ask(&tables, tree, u32::from_le_bytes(place).into());
    ask(&tables, tree, u64::MAX);
    for (name, function, size) in tables.functions().take(ASKED) {
        assert!(name.len() <= 3 * data.len());
        let begin = u64::from(function.entry);
        assert!(begin + u64::from(size) <= u64::from(u32::MAX));
        for offset in [begin, begin + u64::from(size / 2)] {
            ask(&tables, tree, offset);
        }
    }
    if let Some((function, _)) = tables.function_named("main.main") {
        assert_eq!(tables.name(function).as_deref(), Some("main.main"));
    }
}

fn ask(tables: &Pclntab, tree: &[u8], offset: u64) {
    let Some(function) = tables.function(offset) else { return };
    assert!(u64::from(function.entry) <= offset);
    tables.name(function);
    tables.stack_use(function, offset);
    tables.is_root(function);
    tables.writes_stack_pointer(function);
    let read = |at: u32, buffer: &mut [u8]| {
        buffer.copy_from_slice(tree.get(at as usize..)?.get(..buffer.len())?);
        Some(())
    };
    let inlined = tables.inlined(function, &LAYOUT.inlined_call, read, |name| name.len() > 1);
    assert!(inlined.is_none_or(|inlined| inlined.len() * LAYOUT.inlined_call.size <= tree.len()));
    let frames = tables.frames(function, offset, &LAYOUT.inlined_call, read);
    assert!((1..=MOST_FRAMES).contains(&frames.len()));
    let (last, inlined) = frames.split_last().expect("one at least");
    assert!(!last.inlined && inlined.iter().all(|frame| frame.inlined));
    assert!(frames.iter().all(|frame| frame.line.is_some() == frame.file.is_some()));
}
