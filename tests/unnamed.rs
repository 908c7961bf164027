//! Allocators that no name in their file tells of: named on the command line, or by symbols that lie elsewhere.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use object::{Object as _, ObjectSection as _, ObjectSegment as _, ObjectSymbol as _};

use crate::harness::{Held, Report, Run, Target, compiled, preloadable, require_root};

/// Functions of the allocator, and the names that it has given them.
const NAMES: [(&str, &str); 10] = [
    ("malloc", "pool_get"),
    ("calloc", "pool_get_some"),
    ("realloc", "pool_resize"),
    ("reallocarray", "pool_resize_some"),
    ("free", "pool_put"),
    ("memalign", "pool_get_at"),
    ("posix_memalign", "pool_tell"),
    ("aligned_alloc", "pool_get_aligned"),
    ("malloc", "pool_get_page"),
    ("malloc", "pool_get_pages"),
];

/// Has the family do what it does, and compares the sums with the truth: every allocation and free once.
#[track_caller]
fn check(what: &str, program: &Path, options: &[String]) {
    require_root();
    let mut target = Target::start_with(program, &[], &[]);
    let tracer = Run::pid(target.pid()).args(options).start();
    let truth = target.ask("begin");
    let report = tracer.stop().report(0);
    report.assert_nothing_lost(what);
    let allocated = Held { bytes: truth.fact("allocated_bytes"), blocks: truth.fact("allocated_blocks") };
    assert_eq!(report.allocated(), allocated, "{what}");
    assert_eq!(report.quality("unmatched_frees"), truth.fact("unmatched_frees"), "{what}");
}

fn run(program: &str, arguments: &[&str], files: &[&Path]) {
    let mut command = Command::new(program);
    let status = command.args(arguments).args(files).status().unwrap();
    assert!(status.success(), "{command:?}: {status}");
}

/// A program without its table of symbols.
fn stripped(program: &Path, folder: &Path) -> PathBuf {
    let path = folder.join("stripped");
    run("objcopy", &["--strip-all"], &[program, &path]);
    path
}

fn file_name(path: &Path) -> &str {
    path.file_name().unwrap().to_str().unwrap()
}

/// Where functions of these names begin in a file.
fn offsets<'a>(program: &Path, names: impl Iterator<Item = &'a str>) -> Vec<u64> {
    let data = fs::read(program).unwrap();
    let elf = object::File::parse(&*data).unwrap();
    let offset = |name: &str| {
        let symbol = elf.symbols().find(|symbol| symbol.name() == Ok(name)).unwrap_or_else(|| panic!("no {name}"));
        let address = symbol.address();
        let inside = |segment: &object::Segment<'_, '_>| {
            let offset = address.checked_sub(segment.address()).filter(|offset| *offset < segment.size())?;
            Some(segment.file_range().0 + offset)
        };
        elf.segments().find_map(|segment| inside(&segment)).unwrap()
    };
    names.map(offset).collect()
}

#[test]
fn functions_that_are_named() {
    let program = compiled("family, unknown names");
    let file = file_name(&program);
    let options: Vec<String> = NAMES.iter().map(|(shape, name)| format!("--symbol={shape}={file}:{name}")).collect();
    check("names", &program, &options);
}

#[test]
fn functions_at_offsets_of_a_stripped_file() {
    let folder = tempfile::tempdir().unwrap();
    let program = compiled("family, unknown names");
    let stripped = stripped(&program, folder.path());
    let offsets = offsets(&program, NAMES.iter().map(|(_, name)| *name));
    let path = stripped.to_str().unwrap();
    let options = NAMES.iter().zip(offsets).map(|((shape, _), at)| format!("--symbol={shape}={path}:{at:#x}"));
    check("offsets", &stripped, &options.collect::<Vec<_>>());
}

/// What cannot be is refused, before anything is probed.
#[test]
fn functions_that_are_not_there() {
    require_root();
    let program = compiled("family, unknown names");
    let (target, file) = (Target::start(&program), file_name(&program));
    let begin = offsets(&program, ["pool_get"].into_iter())[0];
    for (place, hint) in [
        ("pool_ge".to_owned(), "pool_get"),
        (format!("{:#x}", begin + 1), "no function begins at that offset"),
        ("0x10".to_owned(), "has no code"),
        ("0x7fffffffff".to_owned(), "has no code"),
    ] {
        let outcome = Run::pid(target.pid()).args([format!("--symbol=malloc={file}:{place}")]).finish();
        assert_eq!(outcome.code(), Some(1), "{place}: {}", outcome.stderr);
        assert!(outcome.stderr.contains(hint), "{place}: {}", outcome.stderr);
    }
    let tracer = Run::pid(target.pid()).args(["--symbol=malloc=libnone.so:f"]).start();
    let outcome = tracer.stop();
    assert!(outcome.stderr.contains("no file libnone.so is mapped"), "{}", outcome.stderr);
    outcome.report(3).assert_gap("unseen_spans", 1);
}

/// Names that are not of functions: a place inside of one, and a number.
#[test]
fn names_that_are_no_functions() {
    require_root();
    let folder = tempfile::tempdir().unwrap();
    let program = folder.path().join("labels");
    let original = compiled("family, unknown names");
    let inside = format!("--add-symbol=inside=.text:{:#x}", offset_in_text(&original, "pool_get") + 1);
    run("objcopy", &[&inside, "--add-symbol=number=0x10,function"], &[&original, &program]);
    let target = Target::start(&program);
    for (name, hint) in [("inside", "no function begins"), ("number", "stands for no code of the file's")] {
        let outcome = Run::pid(target.pid()).args([format!("--symbol=malloc=labels:{name}")]).finish();
        assert_eq!(outcome.code(), Some(1), "{name}: {}", outcome.stderr);
        assert!(outcome.stderr.contains(hint), "{name}: {}", outcome.stderr);
    }
}

/// Where a function begins, from the begin of the section of code on.
fn offset_in_text(program: &Path, name: &str) -> u64 {
    let data = fs::read(program).unwrap();
    let elf = object::File::parse(&*data).unwrap();
    let symbol = elf.symbols().find(|symbol| symbol.name() == Ok(name)).unwrap();
    symbol.address() - elf.section_by_name(".text").unwrap().address()
}

/// A program that has the name of the file, and not the function: that is told, and what else it allocates with is traced.
#[test]
fn a_child_without_the_function() {
    require_root();
    let folder = tempfile::tempdir().unwrap();
    let [first, second] = ["first", "second"].map(|folder_name| {
        let own = folder.path().join(folder_name);
        fs::create_dir(&own).unwrap();
        own.join("server")
    });
    fs::copy(compiled("family, unknown names"), &first).unwrap();
    fs::copy(compiled("copies"), &second).unwrap();
    let (first, second) = (first.display(), second.display());
    let script = format!("{first} </dev/null; (sleep 1; echo begin; sleep 1) | {second}");
    let outcome = Run::launch(&["--symbol=malloc=server:pool_get"], ["sh", "-c", &script]).finish();
    let told = format!("{second}: --symbol malloc=server:pool_get: the file has no function of that name");
    assert!(outcome.stderr.contains(&told), "{}", outcome.stderr);
    let report = Report::parse(&outcome.file("out.json"));
    assert!(!report.is_complete(), "{}", outcome.stderr);
    assert!(report.stacks.iter().any(|stack| stack.has("of_strdup")), "{}", outcome.stderr);
}

/// Symbols that were stripped from a file are in another one beside it, or packed in it.
#[test]
fn symbols_that_lie_elsewhere() {
    let folder = tempfile::tempdir().unwrap();
    let program = compiled("family, prefixed allocator");
    let (debug, packed) = (folder.path().join("symbols.debug"), folder.path().join("packed.xz"));
    run("objcopy", &["--only-keep-debug"], &[&program, &debug]);
    let linked = folder.path().join("linked");
    let link = format!("--add-gnu-debuglink={}", debug.to_str().unwrap());
    run("objcopy", &["--strip-all", &link], &[&program, &linked]);
    check("debug file", &linked, &[]);

    run("sh", &["-c", "xz --stdout \"$0\" > \"$1\""], &[&debug, &packed]);
    fs::remove_file(&debug).unwrap();
    let mini = folder.path().join("mini");
    let section = format!(".gnu_debugdata={}", packed.to_str().unwrap());
    run("objcopy", &["--strip-all", "--add-section", &section], &[&program, &mini]);
    check("MiniDebugInfo", &mini, &[]);
}

/// A program that ends all blocks of a heap at once is not said to hold them for certain.
#[test]
fn what_no_probe_tells_is_told() {
    require_root();
    let _ = preloadable("mimalloc");
    let mut target = Target::start(&compiled("heap_destroy"));
    let tracer = Run::pid(target.pid()).start();
    let _ = target.ask("begin");
    let outcome = tracer.stop();
    let report = outcome.report(3);
    report.assert_gap("unseen_spans", 1);
    assert_eq!(report.uncertain_bytes("fill_heap"), 10_000);
    assert!(outcome.stderr.contains("ended all blocks of a heap at once"), "{}", outcome.stderr);
}

/// Whoever has such a function and does not call it is told nothing.
#[test]
fn arenas_that_are_reset() {
    require_root();
    let _ = preloadable("jemalloc");
    for (way, resets) in [("look", false), ("reset", true), ("destroy", true), ("numbers", true), ("purge", false)] {
        let mut target = Target::start_with(&compiled("arenas"), &[way], &[]);
        let tracer = Run::pid(target.pid()).start();
        let truth = target.ask("begin");
        let report = tracer.stop().report(if resets { 3 } else { 0 });
        let held = report.below("fill_arena");
        assert_eq!(held, Held { bytes: 10_000, blocks: 10 }, "{way}");
        assert_eq!(report.uncertain_bytes("fill_arena"), if resets { 10_000 } else { 0 }, "{way}");
        assert_eq!(report.below("fill_later"), truth.held["fill_later"], "{way}");
        assert_eq!(report.uncertain_bytes("fill_later"), 0, "{way}");
    }
}

/// The loader needs no section headers, and neither do probes.
#[test]
fn symbols_without_section_headers() {
    let folder = tempfile::tempdir().unwrap();
    let mut data = fs::read(compiled("family, own allocator")).unwrap();
    // e_shoff; e_shnum and e_shstrndx.
    data[40..48].fill(0);
    data[60..64].fill(0);
    let program = folder.path().join("bare");
    fs::write(&program, data).unwrap();
    run("chmod", &["+x"], &[&program]);
    check("no section headers", &program, &[]);
}
