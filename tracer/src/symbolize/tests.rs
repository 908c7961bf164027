//! Symbolization of programs that are built here, with the compiler of the machine, and of this very process.

use std::{
    fs::{self, Permissions},
    io::{BufRead, BufReader, Write as _},
    os::unix::fs::{MetadataExt, PermissionsExt},
    path::Path,
    process::{Command, Stdio},
};

use object::{Object as _, ObjectSection as _, ObjectSymbol as _};

use super::*;
use crate::{
    files::root::{ProcessDirectory, Root},
    profile::Language,
    space::{address_space::AddressSpace, maps::Mapping},
};

const C: &str = r#"#include <stdio.h>
#include <stdlib.h>
void *volatile sink;
__attribute__((noinline)) void *allocate(size_t n) { return malloc(n); }
static inline __attribute__((always_inline)) void inner(size_t n) { sink = allocate(n); }
static inline __attribute__((always_inline)) void middle(size_t n) { inner(n + 1); }
__attribute__((noinline)) void outer(size_t n) { middle(n); sink = 0; }
int main(void) { outer(1); printf("%p\n", (void *)outer); fflush(stdout); return getchar(); }
"#;

const CPP: &str = r#"#include <stdexcept>
#include <vector>
namespace app {
template <class T> struct Cache {
  std::vector<T> entries;
  __attribute__((noinline)) void insert(T entry) { entries.push_back(entry); }
};
}
int main(int count, char **) {
  app::Cache<int> cache;
  cache.insert(count);
  if (count > 1000) throw std::runtime_error("many");
}
"#;

/// A program built from `source` by `compiler` with `options`, as `name` in `directory`.
fn build(directory: &Path, name: &str, source: &str, options: &[&str]) -> PathBuf {
    let (compiler, suffix) = if source == CPP { ("g++", "cc") } else { ("gcc", "c") };
    let code = directory.join(format!("{name}.{suffix}"));
    fs::write(&code, source).unwrap();
    let program = directory.join(name);
    run(Command::new(compiler).args(options).arg(&code).arg("-o").arg(&program));
    program
}

fn run(command: &mut Command) {
    assert!(command.status().unwrap().success(), "{command:?}");
}

/// A program as if it were mapped.
fn module(path: &Path) -> Arc<Module> {
    let metadata = fs::metadata(path).unwrap();
    let mapping = Mapping {
        start: 0,
        end: 1,
        executable: true,
        offset: 0,
        device: (rustix::fs::major(metadata.dev()), rustix::fs::minor(metadata.dev())),
        inode: metadata.ino(),
        path: path.to_str().unwrap().to_owned(),
        deleted: false,
    };
    let process = ProcessDirectory::open(std::process::id()).unwrap();
    let module = Module::open(&process, Some(&Arc::new(Root::own().unwrap())), &mapping);
    assert!(module.file().is_some());
    Arc::new(module)
}

/// Offsets in the file of every byte behind the first of function `name`.
fn offsets(program: &Path, name: &str) -> Vec<u64> {
    let data = fs::read(program).unwrap();
    let file = object::File::parse(&*data).unwrap();
    let symbol = file.symbols().chain(file.dynamic_symbols()).find(|symbol| symbol.name() == Ok(name)).unwrap();
    let opened = File::open(program).unwrap();
    let bytes = Bytes::new(&opened);
    let segments = Elf::parse(&bytes).unwrap().segments();
    let segment = segments.iter().find(|s| (s.address..s.address + s.size).contains(&symbol.address())).unwrap();
    let start = symbol.address() - segment.address + segment.offset;
    (start + 1..=start + symbol.size()).collect()
}

fn resolve(symbolizer: &mut Symbolizer, module: &Arc<Module>, offsets: &[u64]) -> Vec<Arc<[Frame]>> {
    let places: Vec<Place> =
        offsets.iter().map(|offset| Place::File(Location { module: Arc::clone(module), offset: *offset })).collect();
    let queries: Vec<Query<'_>> = places.iter().map(|place| Query { pid: 1, addr: 1, place }).collect();
    symbolizer.resolve(&queries)
}

/// Frames as `function:line`, those that are inlined with a `+`.
fn summary(frames: &[Frame]) -> Vec<String> {
    let mark = |frame: &Frame| if frame.inlined { "+" } else { "" };
    let name = |frame: &Frame| frame.function.clone().unwrap_or_default();
    frames.iter().map(|frame| format!("{}{}:{}", mark(frame), name(frame), frame.line.unwrap_or(0))).collect()
}

/// Checks that the inlined call in `outer` comes out whole, with its file, in the program whose debug information is
/// elsewhere or in itself.
fn check_inlined(symbolizer: &mut Symbolizer, program: &Path, offsets: &[u64]) {
    let module = module(program);
    let frames = resolve(symbolizer, &module, offsets);
    let whole = frames.iter().zip(offsets).find(|(frames, _)| summary(frames) == ["outer:7", "+middle:6", "+inner:5"]);
    let (frames, offset) =
        whole.unwrap_or_else(|| panic!("{:?}", frames.iter().map(|f| summary(f)).collect::<Vec<_>>()));
    for frame in frames.iter() {
        assert!(frame.file.as_ref().unwrap().starts_with(program.parent().unwrap().to_str().unwrap()), "{frame:?}");
        assert!(frame.file.as_ref().unwrap().ends_with(".c"));
        assert_eq!((frame.module.as_deref(), frame.offset), (program.to_str(), *offset));
    }
}

#[test]
fn inlined_functions_files_and_lines() {
    let directory = tempfile::tempdir().unwrap();
    for options in [&["-O2", "-g"][..], &["-O2", "-g", "-static"], &["-O2", "-g", "-no-pie"], &["-O2", "-g", "-gz"]] {
        let program = build(directory.path(), "program", C, options);
        // Of the administrator, and of everybody.
        for mode in [0o755, 0o777] {
            fs::set_permissions(&program, Permissions::from_mode(mode)).unwrap();
            check_inlined(&mut Symbolizer::new(), &program, &offsets(&program, "outer"));
        }
    }
}

/// What a signal returns to has no call before it, and no function. A call may be the last of a function whose name nobody knows.
#[test]
fn functions_that_nothing_calls_are_named_at_their_begin() {
    let directory = tempfile::tempdir().unwrap();
    let function = |name: &str| format!(".globl {name}\n.type {name}, @function\n{name}: ret\n.size {name}, 1\n");
    let (after_nop, after_call) = (function("after_nop"), function("after_call"));
    let code =
        format!("asm(R\"(.text\n nop\n nop\n{after_nop} call after_nop\n{after_call})\");\nint main(void) {{}}\n");
    let program = build(directory.path(), "program", &code, &["-O1", "-shared", "-nostartfiles"]);
    let begin = |name| [offsets(&program, name)[0] - 1];
    let name = |name| summary(&resolve(&mut Symbolizer::new(), &module(&program), &begin(name))[0]);
    assert_eq!((name("after_nop"), name("after_call")), (vec!["after_nop:0".to_owned()], vec![":0".to_owned()]));
}

#[test]
fn debug_files_are_found_by_build_id() {
    let directory = tempfile::tempdir().unwrap();
    let program = build(directory.path(), "program", C, &["-O2", "-g", "-Wl,--build-id"]);
    let offsets = offsets(&program, "outer");
    let id = module(&program).build_id().unwrap().to_vec();
    let debug = directory.path().join("debug");
    let hexadecimal: String = id.iter().map(|byte| format!("{byte:02x}")).collect();
    let folder = debug.join(".build-id").join(&hexadecimal[..2]);
    fs::create_dir_all(&folder).unwrap();
    let debug_file = folder.join(format!("{}.debug", &hexadecimal[2..]));
    run(Command::new("objcopy").arg("--only-keep-debug").arg(&program).arg(&debug_file));
    run(Command::new("strip").arg(&program));

    let bare = resolve(&mut Symbolizer::new(), &module(&program), &offsets[..1]);
    let expected = Frame { module: program.to_str().map(str::to_owned), offset: offsets[0], ..Frame::default() };
    assert_eq!(*bare[0], [expected], "without the debug file there is nothing");
    check_inlined(&mut Symbolizer::with_debug_directories(vec![debug.clone()]), &program, &offsets);

    // That of another build is not taken.
    let other = build(directory.path(), "other", &C.replace("n + 1", "n + 2"), &["-O2", "-g", "-Wl,--build-id"]);
    fs::copy(&other, &debug_file).unwrap();
    let frames = resolve(&mut Symbolizer::with_debug_directories(vec![debug]), &module(&program), &offsets[..1]);
    assert_eq!(summary(&frames[0]), [":0"]);
}

/// For the profile: nothing of files that were not asked.
#[test]
fn files_are_described_once_they_are_asked() {
    let directory = tempfile::tempdir().unwrap();
    let with_id = build(directory.path(), "a", C, &["-Wl,--build-id=0x00c0ffee"]);
    let without = build(directory.path(), "b", C, &["-Wl,--build-id=none"]);
    let mut symbolizer = Symbolizer::new();
    assert_eq!(symbolizer.modules(), []);
    let vdso = Arc::new(Module::special("[vdso]"));
    for module in [module(&without), module(&with_id), vdso, module(&with_id)] {
        resolve(&mut symbolizer, &module, &[0x1000]);
    }
    let [a, b] = &symbolizer.modules()[..] else { panic!("{:?}", symbolizer.modules()) };
    let ids = [(a.path.as_str(), a.build_id.as_deref()), (&b.path, b.build_id.as_deref())];
    assert_eq!(ids, [(with_id.to_str().unwrap(), Some("00c0ffee")), (without.to_str().unwrap(), None)]);
    let bytes = fs::read(&with_id).unwrap();
    let text = object::File::parse(&*bytes).unwrap().section_by_name(".text").unwrap().file_range().unwrap();
    assert!(a.code.len() == 1 && a.code[0].contains(&text.0) && a.code[0].end >= text.0 + text.1, "{a:x?}");
}

#[test]
fn debug_files_are_found_by_link() {
    let directory = tempfile::tempdir().unwrap();
    let program = build(directory.path(), "program", C, &["-O2", "-g", "-Wl,--build-id=none"]);
    let offsets = offsets(&program, "outer");
    let beside = directory.path().join("program.debug");
    run(Command::new("objcopy").arg("--only-keep-debug").arg(&program).arg(&beside));
    run(Command::new("strip").arg(&program));
    let link = format!("--add-gnu-debuglink={}", beside.display());
    run(Command::new("objcopy").arg(link).arg(&program));
    check_inlined(&mut Symbolizer::new(), &program, &offsets);

    let relative: PathBuf = directory.path().components().skip(1).collect();
    let folder = directory.path().join("debug").join(relative);
    fs::create_dir_all(&folder).unwrap();
    fs::rename(&beside, folder.join("program.debug")).unwrap();
    let directories = vec![directory.path().join("debug")];
    check_inlined(&mut Symbolizer::with_debug_directories(directories), &program, &offsets);

    // A changed file is not taken, and a pipe that nobody writes to is not waited for.
    fs::write(&beside, fs::read("/proc/self/exe").unwrap()).unwrap();
    let frames = resolve(&mut Symbolizer::new(), &module(&program), &offsets[..1]);
    assert_eq!(summary(&frames[0]), [":0"]);
    fs::remove_file(&beside).unwrap();
    run(Command::new("mkfifo").arg(&beside));
    let frames = resolve(&mut Symbolizer::new(), &module(&program), &offsets[..1]);
    assert_eq!(summary(&frames[0]), [":0"]);
}

#[test]
fn stripped_libraries_have_dynamic_symbols() {
    let directory = tempfile::tempdir().unwrap();
    let library = build(directory.path(), "library.so", C, &["-O2", "-shared", "-fPIC"]);
    run(Command::new("strip").arg(&library));
    let frames = resolve(&mut Symbolizer::new(), &module(&library), &offsets(&library, "outer"));
    assert!(frames.iter().all(|frames| summary(frames) == ["outer:0"]), "{frames:?}");
}

#[test]
fn names_of_cpp_are_demangled() {
    let directory = tempfile::tempdir().unwrap();
    for options in [&["-O1", "-g"][..], &["-O1"]] {
        let program = build(directory.path(), "program", CPP, options);
        let offsets = offsets(&program, "_ZN3app5CacheIiE6insertEi");
        let frames = resolve(&mut Symbolizer::new(), &module(&program), &offsets);
        for frames in &frames {
            assert_eq!(frames[0].function.as_deref(), Some("app::Cache<int>::insert(int)"));
            assert!(!frames[0].inlined && frames[1..].iter().all(|frame| frame.inlined));
        }
        assert_eq!(options.len() > 1, frames.iter().any(|frames| frames.len() > 1), "vector::push_back is inlined");
    }
}

#[inline(never)]
fn landmark() -> u64 {
    std::hint::black_box(landmark as fn() -> u64 as usize as u64 + 1)
}

#[test]
fn this_process() {
    let mut space = AddressSpace::new(std::process::id());
    space.refresh().unwrap();
    let libc = libc_function();
    let (here, there) = (space.locate(landmark()), space.locate(libc));
    let nowhere = space.locate(8);
    let frames = Symbolizer::new().resolve(&[
        Query { pid: 1, addr: landmark(), place: &here },
        Query { pid: 1, addr: libc, place: &there },
        Query { pid: 1, addr: 8, place: &nowhere },
    ]);
    let own = frames[0].first().unwrap();
    assert!(own.function.as_ref().unwrap().ends_with("symbolize::tests::landmark"), "{own:?}");
    assert!(own.file.as_ref().unwrap().ends_with("symbolize/tests.rs"), "{own:?}");
    assert!(frames[1][0].function.is_some() && frames[1][0].module.as_ref().unwrap().contains("libc"));
    assert_eq!(*frames[2], [Frame { offset: 8, ..Frame::default() }]);
}

/// An address in an exported function of libc, from the mappings of this process and the file's symbols.
fn libc_function() -> u64 {
    let mut space = AddressSpace::new(std::process::id());
    space.refresh().unwrap();
    let is_libc = |module: &Arc<Module>| module.path().contains("/libc.so") || module.path().contains("/libc-");
    let (module, start) = space.executable_files().find(|(module, _)| is_libc(module)).unwrap();
    let Place::File(location) = space.locate(start + 1) else { panic!("no libc") };
    start + 1 + offsets(Path::new(module.path()), "malloc")[0] - location.offset
}

#[test]
fn a_process_that_has_exited() {
    let directory = tempfile::tempdir().unwrap();
    let program = build(directory.path(), "program", C, &["-O2", "-g"]);
    let mut child = Command::new(&program).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
    let outer = u64::from_str_radix(line.trim().strip_prefix("0x").unwrap(), 16).unwrap();
    let mut space = AddressSpace::new(child.id());
    space.refresh().unwrap();
    let place = space.locate(outer + 1);
    child.kill().unwrap();
    child.wait().unwrap();
    fs::remove_file(&program).unwrap();
    drop(space);
    let frames = Symbolizer::new().resolve(&[Query { pid: child.id(), addr: outer + 1, place: &place }]);
    assert_eq!(frames[0][0].function.as_deref(), Some("outer"));
    assert!(frames[0][0].file.is_some());
}

#[test]
fn generated_code_has_names_from_the_perf_map() {
    let mut child = Command::new("sleep").arg("1000").spawn().unwrap();
    let process = Arc::new(ProcessDirectory::open(child.id()).unwrap());
    let place = Place::Jit(Some(Arc::new(PerfMap::new(process))));
    let query = |addr| Query { pid: 1, addr, place: &place };
    let mut symbolizer = Symbolizer::new();
    let named = |frames: &[Arc<[Frame]>]| frames.iter().map(|f| f[0].function.clone()).collect::<Vec<_>>();
    assert_eq!(named(&symbolizer.resolve(&[query(0x1010)])), [None], "there is no map yet");
    let path = format!("/tmp/perf-{}.map", child.id());
    fs::write(&path, "1000 10 LazyCompile:~f /app.js:1\n").unwrap();
    let frames = symbolizer.resolve(&[query(0x1000), query(0x1010), query(0x1011)]);
    assert_eq!(named(&frames), [None, Some("LazyCompile:~f /app.js:1".to_owned()), None]);
    assert_eq!((frames[1][0].module.as_deref(), frames[1][0].offset), (Some("[jit]"), 0x1010));
    // An earlier image of the same process, which has ended: the name is not its.
    let ended = Query { pid: 1, addr: 0x1010, place: &Place::Jit(None) };
    assert_eq!(named(&symbolizer.resolve(&[ended])), [None]);
    fs::remove_file(&path).unwrap();
    child.kill().unwrap();
    child.wait().unwrap();
}

#[test]
fn corrupt_files_do_no_harm() {
    let directory = tempfile::tempdir().unwrap();
    let program = build(directory.path(), "program", C, &["-O2", "-g"]);
    let compressed = build(directory.path(), "compressed", C, &["-O2", "-g", "-gz"]);
    let path = directory.path().join("corrupt");
    let mut random = 0x2545_f491_4f6c_dd1d_u64;
    let mut next = || {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        random
    };
    for program in [program, compressed] {
        let whole = fs::read(&program).unwrap();
        let offsets = offsets(&program, "outer");
        for round in 0..300_usize {
            let mut bytes = whole.clone();
            match round % 3 {
                0 => bytes.truncate(next() as usize % whole.len()),
                // The headers, which all else depends on.
                1 => bytes[next() as usize % 64] = next() as u8,
                _ => (0..200).for_each(|_| bytes[next() as usize % whole.len()] = next() as u8),
            }
            // The section headers are at the end.
            if round % 6 == 5 {
                (0..8).for_each(|_| bytes[whole.len() - 1 - next() as usize % (38 * 64)] = next() as u8);
            }
            fs::write(&path, &bytes).unwrap();
            fs::set_permissions(&path, Permissions::from_mode(if round % 2 == 0 { 0o644 } else { 0o666 })).unwrap();
            let module = module(&path);
            language(&module);
            module.build_id();
            let frames = resolve(&mut Symbolizer::new(), &module, &offsets);
            assert!(frames.iter().zip(&offsets).all(|(frames, offset)| frames[0].offset == *offset));
        }
    }
}

/// What shrinks after it was opened, while it is asked: a mapping of it would be a signal.
#[test]
fn files_that_shrink_do_no_harm() {
    let directory = tempfile::tempdir().unwrap();
    let program = build(directory.path(), "program", C, &["-O2", "-g"]);
    let (outer, allocate) = (offsets(&program, "outer"), offsets(&program, "allocate"));
    let module = module(&program);
    let mut symbolizer = Symbolizer::new();
    assert_eq!(resolve(&mut symbolizer, &module, &outer[..1])[0][0].function.as_deref(), Some("outer"));
    let file = fs::OpenOptions::new().write(true).open(&program).unwrap();
    file.set_len(1).unwrap();
    assert_eq!(summary(&resolve(&mut symbolizer, &module, &allocate[..1])[0]), [":0"]);
    // Nor does what has shrunk before.
    let frames = resolve(&mut Symbolizer::new(), &module, &outer[..1]);
    assert_eq!(summary(&frames[0]), [":0"]);
}

#[test]
fn promises_of_gigabytes_are_not_believed() {
    let directory = tempfile::tempdir().unwrap();
    let program = build(directory.path(), "program", C, &["-O2", "-g", "-gz"]);
    let mut bytes = fs::read(&program).unwrap();
    let file = object::File::parse(&*bytes).unwrap();
    let (start, _) = file.section_by_name(".debug_info").unwrap().file_range().unwrap();
    // ch_size of Elf64_Chdr. Memory of that size is refused, and that would end the program.
    let size = start as usize + 8..start as usize + 16;
    bytes[size].copy_from_slice(&(1_u64 << 46).to_le_bytes());
    fs::write(&program, &bytes).unwrap();
    let frames = resolve(&mut Symbolizer::new(), &module(&program), &offsets(&program, "outer"));
    assert!(frames.iter().all(|frames| summary(frames) == ["outer:0"]));
}

/// A function with a million functions inlined into one another, a byte each.
const DEEP: &str = r#"asm(
  ".section .debug_abbrev,\"\",@progbits\n"
  ".byte 1, 0x11, 1, 0x10, 0x17, 0x11, 1, 0x12, 7, 0, 0\n"
  ".byte 2, 0x2e, 1, 3, 8, 0x11, 1, 0x12, 7, 0, 0\n"
  ".byte 3, 0x1d, 1, 0, 0\n"
  ".byte 0\n"
  ".section .debug_info,\"\",@progbits\n"
  ".long 3f - 2f\n"
  "2: .short 4\n"
  ".long 0\n"
  ".byte 8, 1\n"
  ".long 0\n"
  ".quad outer, 9f - outer\n"
  ".byte 2\n"
  ".string \"outer\"\n"
  ".quad outer, 9f - outer\n"
  ".fill 1000000, 1, 3\n"
  "3:\n"
  ".text\n"
  ".globl outer\n"
  ".type outer, @function\n"
  "outer: .file 1 \"deep.c\"\n"
  ".loc 1 1\n"
  "ret\n"
  "9: .size outer, . - outer\n"
);
int main(void) { return 0; }
"#;

#[test]
fn deep_nesting_does_not_end_the_program() {
    let directory = tempfile::tempdir().unwrap();
    let program = build(directory.path(), "program", DEEP, &["-O2"]);
    // Everybody could have written that.
    fs::set_permissions(&program, Permissions::from_mode(0o777)).unwrap();
    let frames = resolve(&mut Symbolizer::new(), &module(&program), &offsets(&program, "outer"));
    assert_eq!(summary(&frames[0]), ["outer:0"], "the symbol, and nothing of the debug information");
}

#[test]
fn languages() {
    let directory = tempfile::tempdir().unwrap();
    let c = build(directory.path(), "c", C, &["-O1"]);
    let cpp = build(directory.path(), "cpp", CPP, &["-O1"]);
    let cpp_static = build(directory.path(), "cpp-static", CPP, &["-O1", "-static"]);
    let go = directory.path().join("go");
    run(Command::new("objcopy").arg(format!("--add-section=.go.buildinfo={}", cpp.display())).arg(&c).arg(&go));
    let rust = directory.path().join("rust");
    fs::copy("/proc/self/exe", &rust).unwrap();
    for (program, expected) in [
        (c, Language::C),
        (cpp, Language::Cpp),
        (cpp_static, Language::Cpp),
        (go, Language::Go),
        (rust, Language::Rust),
    ] {
        assert_eq!(language(&module(&program)), expected, "{}", program.display());
        run(Command::new("strip").arg(&program));
        assert_eq!(language(&module(&program)), expected, "stripped {}", program.display());
    }
    let without_comment = directory.path().join("rust");
    run(Command::new("objcopy").arg("--remove-section=.comment").arg(&without_comment));
    assert_eq!(language(&module(&without_comment)), Language::Rust);
    assert_eq!(language(&Module::special("[vdso]")), Language::C);
}

/// What is in it now is not what ran; what was named before holds.
#[test]
fn a_file_that_was_written_to_names_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("program");
    fs::copy(std::env::current_exe().unwrap(), &path).unwrap();
    let module = module(&path);
    let offsets = offsets(&path, "main");
    let mut symbolizer = Symbolizer::with_debug_directories(Vec::new());
    let named = |frames: &[Arc<[Frame]>]| frames.iter().map(|frames| frames[0].function.is_some()).collect::<Vec<_>>();
    assert_eq!(named(&resolve(&mut symbolizer, &module, &offsets[..1])), [true]);
    assert_eq!(symbolizer.rewritten(), 0);
    fs::OpenOptions::new().append(true).open(&path).unwrap().write_all(b"more").unwrap();
    for _ in 0..2 {
        assert_eq!(named(&resolve(&mut symbolizer, &module, &offsets[..2])), [true, false]);
    }
    assert_eq!((symbolizer.rewritten(), symbolizer.notes().len()), (1, 1));
    assert!(symbolizer.notes()[0].contains("was written to"), "{:?}", symbolizer.notes());
}
