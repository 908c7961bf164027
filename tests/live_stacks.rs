//! Stacks of live processes, one by one: as the BPF side finds them, as gimli's interpretation of the same unwind information
//! finds them on a copy of the stack, and, for some, as gdb does.
#![expect(clippy::print_stdout, reason = "figures of what was compared")]

use std::collections::HashSet;

use tracer::{bpf::Config, space::address_space::AddressSpace, unwinder::Unwinder};
use tracer_ebpf::{MAX_FRAMES, StackCopy, end};

use crate::harness::{
    Copies, End, Oracle, Target, alone, compiled, executable_mappings, load_compared, program, require_root, scratch,
    slowness, while_busy,
};

/// Stacks of each process that are compared with gimli's, and with gdb's.
const STACKS: usize = 3000;
const WITH_GDB: usize = 4;
/// Looks at stacks until there are enough, at most this many times as often.
const PATIENCE: usize = 10;

/// What came of a comparison.
#[derive(Debug, Default)]
struct Tally {
    compared: usize,
    /// Only as far as the copy of the stack goes.
    in_part: usize,
    at_root: usize,
    /// Cut, because mappings were being changed, or a file was not known yet.
    busy: usize,
    distinct: HashSet<Vec<u64>>,
    deepest: usize,
}

impl Tally {
    /// Whether the stack could be compared.
    fn take(&mut self, what: &str, oracle: &Oracle, copy: &StackCopy) -> bool {
        let found = addresses(copy);
        let (expected, expected_end) = oracle.unwind(copy, MAX_FRAMES);
        if [end::BUSY, end::UNKNOWN_FILE].contains(&copy.head.end) && expected.starts_with(found) {
            // Another thread has changed the mappings at that very moment, or the file is being read still, which is told.
            self.busy += 1;
            return false;
        }
        let ends: &[u32] = match expected_end {
            End::Root => &[end::ROOT],
            End::NoInformation => &[end::NO_RULE, end::NO_MAPPING],
            End::Deep => &[end::DEPTH, end::ROOT],
            End::BeyondCopy => &[],
            End::Nonsense => panic!("{what}: gimli cannot unwind {found:#x?}, but as far as {expected:#x?}"),
        };
        if expected_end == End::BeyondCopy {
            self.in_part += 1;
            assert!(found.starts_with(&expected), "{what}: found {found:#x?}, expected {expected:#x?} and more");
        } else {
            assert_eq!(found, expected, "{what}: ended {}, {:#x?}", copy.head.end, &copy.registers);
            assert!(ends.contains(&copy.head.end), "{what}: ended {}, expected {expected_end:?}", copy.head.end);
        }
        self.compared += 1;
        self.at_root += usize::from(copy.head.end == end::ROOT);
        self.deepest = self.deepest.max(found.len());
        self.distinct.insert(found.to_vec());
        true
    }
}

fn addresses(copy: &StackCopy) -> &[u64] {
    &copy.addresses[..copy.head.frames as usize]
}

/// Compares stacks of a process that is busy allocating.
pub(crate) fn check(what: &str, pid: u32, distinct: usize) {
    let mut copies = Copies::start(pid);
    // Probes that are stepped over get a mapping of their own.
    let mappings = || executable_mappings(pid).lines().filter(|line| !line.contains("[uprobes]")).collect::<String>();
    let before = mappings();
    let oracle = Oracle::new(pid);
    let mut tally = Tally::default();
    let wanted = STACKS / slowness() as usize;
    for _ in 0..PATIENCE * wanted {
        if tally.compared >= wanted && tally.distinct.len() >= distinct {
            break;
        }
        let _ = tally.take(what, &oracle, &copies.next());
    }
    for _ in 0..WITH_GDB {
        let (copy, frames) = copies.next_with_gdb();
        if !tally.take(what, &oracle, &copy) {
            continue;
        }
        let found = addresses(&copy);
        // It may have come a call or two further into the allocator before it stopped.
        let inside = frames.len().saturating_sub(found.len()).min(2);
        // gdb does not see past a return slot that a probe has taken.
        match frames.iter().position(|caller| oracle.is_trampoline(*caller)) {
            Some(hidden) => assert!(
                (0..=hidden.min(2)).any(|inside| found.starts_with(&frames[inside..hidden])),
                "{what}: {found:#x?}, gdb says {frames:#x?}"
            ),
            None => assert_eq!(found, &frames[inside..], "{what}: what gdb says"),
        }
    }
    assert_eq!(before, mappings(), "{what}: its libraries changed meanwhile");
    println!(
        "{what}: {} stacks are the same ({} of them as far as was copied), {} with gdb, {} distinct, up to {} frames",
        tally.compared,
        tally.in_part,
        WITH_GDB,
        tally.distinct.len(),
        tally.deepest
    );
    assert!(tally.in_part * 100 <= tally.compared, "{what}: {} cut", tally.in_part);
    assert!(tally.busy <= 1 + tally.compared / 1000, "{what}: {} cut for changes of mappings", tally.busy);
    assert!(tally.at_root * 1000 >= tally.compared * 999, "{what}: {} of {}", tally.at_root, tally.compared);
    assert!(tally.distinct.len() >= distinct, "{what}: only {} distinct", tally.distinct.len());
}

fn check_program(what: &str, distinct: usize) {
    require_root();
    let mut target = Target::start(&compiled(what));
    target.say("begin");
    check(what, target.pid(), distinct);
    assert!(target.is_alive());
}

/// Threads that map and unmap all the time, more than there are processors: some lose theirs in the middle of that.
const MAPPERS: usize = 4;
/// How often each file is asked for its number beside them.
const ASKED: usize = 50;
const PAGE: usize = 4096;

/// What a file is known by is found by mapping it, which other threads of tracer must not be in the way of: its stacks would be cut.
#[test]
fn numbers_of_files_are_found_while_other_threads_map() {
    require_root();
    let _turn = alone();
    let mut programs = load_compared(Config { buffer_size: 1 << 20, ..Config::smallest() });
    let unwinder = Unwinder::new(programs.tables().unwrap().0);
    let mut space = AddressSpace::new(std::process::id());
    space.refresh().unwrap();
    let modules: Vec<_> =
        space.code().filter_map(|(_, module)| module).filter(|module| module.file().is_some()).take(3).collect();
    assert!(!modules.is_empty());
    let map = || {
        // SAFETY: a mapping of its own, which nobody reads or writes.
        unsafe {
            let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
            let address = libc::mmap(std::ptr::null_mut(), PAGE, libc::PROT_READ, flags, -1, 0);
            assert_ne!(address, libc::MAP_FAILED);
            assert_eq!(libc::munmap(address, PAGE), 0);
        }
    };
    while_busy(MAPPERS, map, || {
        for module in modules {
            let numbers: HashSet<_> = (0..ASKED).map(|_| unwinder.number_of(module)).collect();
            assert!(numbers.len() == 1 && !numbers.contains(&None), "{}: {numbers:?}", module.path());
        }
    });
}

#[test]
fn of_cpp_with_exceptions_callbacks_and_threads() {
    check_program("busy, C++", 50);
}

#[test]
fn of_rust() {
    check_program("busy, Rust", 30);
}

/// Generators, comparators, regular expressions, exceptions, recursion: the interpreter calls itself through C.
const PYTHON: &str = r#"
import json, re, sys

def deep(depth):
    if depth == 0:
        return sorted(range(50), key=lambda n: str(n))
    return [deep(depth - 1)]

class Odd:
    def __init__(self, n): self.n = n
    def __lt__(self, other): return str(self.n) < str(other.n)
    def __repr__(self): return "%d" % self.n

print("waiting", flush=True)
sys.stdin.readline()
n = 0
while True:
    n += 1
    deep(n % 40)
    json.loads(json.dumps({"a": [1.5, "x" * 100, {"b": None}] * 5}))
    sorted([Odd(i * 7919 % 101) for i in range(30)])
    re.sub("a(b+)c", lambda match: match.group(1).upper() * 3, "abbbc" * 10)
    try:
        int("nonsense")
    except ValueError as error:
        str(error)
    sum(len(repr(Odd(i))) for i in range(20))
"#;

#[test]
fn of_python() {
    require_root();
    let folder = scratch();
    let script = folder.path().join("busy.py");
    std::fs::write(&script, PYTHON).unwrap();
    let python = program("python3", "python3");
    let mut target = Target::start_with(&python, &[script.to_str().unwrap()], &[("PYTHONMALLOC", "malloc")]);
    target.say("begin");
    check("python3", target.pid(), 60);
    assert!(target.is_alive());
}
