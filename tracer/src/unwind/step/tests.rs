//! Tests of steps: each kind of rule on a made-up stack, and whole stacks of live processes up to their root.

use std::{
    fs::{self, File},
    os::unix::fs::FileExt as _,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::Duration,
};

use tracer_ebpf::unwind::rule;

use super::*;
use crate::unwind::{
    Packed, Placed,
    fixture::{Binary, build},
};

/// Where the made-up stack begins; word `n` is at `SP + 8 * n`.
const SP: u64 = 0x7000;
const STACK: [u64; 24] = {
    let mut words = [0; 24];
    let mut word = 0;
    while word < 24 {
        words[word] = 0x100 + word as u64;
        word += 1;
    }
    words[5] = SP + 88; // an address on the stack, to be followed
    words[7] = 0; // a return address of nowhere
    words
};

fn read(address: u64) -> Option<u64> {
    STACK.get(usize::try_from(address.checked_sub(SP)? / 8).ok()?).copied()
}

fn halves(before: i16, after: i16) -> i32 {
    i32::from(before as u16) | i32::from(after) << 16
}

#[test]
fn every_kind_of_rule_finds_its_caller() {
    let frame = Registers { pc: 0x4005, sp: SP, fp: SP + 64, exact: true };
    let to = |pc, sp, fp| Step::Caller(Registers { pc, sp, fp, exact: false });
    let check = |name: &str, rule, frame, expected| assert_eq!(step(rule, frame, read), expected, "{name}");
    check("sp", rule(kind::SP, fp::SAME, 0, 8), frame, to(0x100, SP + 8, SP + 64));
    check("sp, fp below", rule(kind::SP, fp::AT_CFA, -16, 24), frame, to(0x102, SP + 24, 0x101));
    check("fp", rule(kind::FP, fp::AT_CFA, -16, 16), frame, to(0x109, SP + 80, 0x108));
    check("fp, fp at fp", rule(kind::FP, fp::AT_FP, -8, 16), frame, to(0x109, SP + 80, 0));
    check("frame pointers", rule(kind::FRAME_POINTERS, 0, 0, 0), frame, to(0x109, SP + 80, 0x108));
    check("Go", rule(kind::GO, 0, 0, 0), frame, to(0x109, SP + 80, 0x108));
    check(
        "Go, from another stack",
        rule(kind::GO, 0, 0, 0),
        Registers { sp: SP + 1024, ..frame },
        to(0x109, SP + 80, 0x108),
    );
    let elsewhere = Registers { sp: SP + 1024, ..frame };
    check("fp, another stack", rule(kind::SWITCHED, fp::AT_CFA, -16, 16), elsewhere, to(0x109, SP + 80, 0x108));
    let deref = rule(kind::DEREF_FP, fp::AT_FP, 0, halves(-24, 0));
    check("deref fp, another stack", deref, elsewhere, to(0x10a, SP + 88, 0x108));
    let deref = rule(kind::DEREF_SP, fp::SAME, 0, halves(0, 0));
    let above = Registers { sp: SP + 40, fp: 0x108, ..frame };
    check("deref sp", deref, above, to(0x10a, SP + 88, 0x108));
    let interrupted = Registers { pc: 0x100, sp: SP + 8, fp: SP + 64, exact: true };
    check("sp, interrupted", rule(kind::SP, fp::EXACT, 0, 8), frame, Step::Caller(interrupted));
    let interrupted = Registers { pc: 0x102, sp: SP + 24, fp: 0x101, exact: true };
    check("sp, fp, interrupted", rule(kind::SP, fp::AT_CFA | fp::EXACT, -16, 24), frame, Step::Caller(interrupted));
    let outermost = Registers { fp: 0, ..frame };
    check("Go, outermost", rule(kind::GO, 0, 0, 0), outermost, Step::Root);
    check("deref fp", rule(kind::DEREF_FP, fp::AT_FP, 0, halves(-24, 0)), frame, to(0x10a, SP + 88, 0x108));
    check("deref sp", rule(kind::DEREF_SP, fp::AT_CFA, -24, halves(40, 8)), frame, to(0x10b, SP + 96, 0x109));
    check("stub's start", rule(kind::PLT, 0, 0, 11), frame, to(0x100, SP + 8, SP + 64));
    check("stub's end", rule(kind::PLT, 0, 0, 11), Registers { pc: 0x400b, ..frame }, to(0x101, SP + 16, SP + 64));
    let interrupted = Registers { pc: 0x115, sp: 0x114, fp: 0x10f, exact: true };
    check("signal", rule(kind::SIGNAL, 0, 0, 0), frame, Step::Caller(interrupted));
    check("stop", rule(kind::STOP, 0, 0, 0), frame, Step::Root);
    check("interrupted where stacks are made", rule(kind::MADE, 0, 0, 8), frame, to(0x100, SP + 8, SP + 64));
    check("made stack", rule(kind::MADE, 0, 0, 8), Registers { exact: false, ..frame }, Step::Made);
    check("no frame and no frame pointer", rule(kind::SP, 0, 0, 0), outermost, Step::Root);
    check("called from nowhere", rule(kind::SP, 0, 0, 64), frame, Step::Root);
}

#[test]
fn what_cannot_be_followed_stops_with_its_reason() {
    let frame = Registers { pc: 0x4000, sp: SP, fp: SP + 64, exact: false };
    let check = |rule, frame, stop| assert_eq!(step(rule, frame, read), Step::Stopped(stop), "{rule:#x}");
    check(rule(kind::NONE, 0, 0, 0), frame, Stop::NoRule);
    check(rule(kind::UNSUPPORTED, 0, 0, 0), frame, Stop::Unsupported);
    check(rule(200, 0, 0, 0), frame, Stop::Unsupported);
    check(rule(kind::SP, 0, 0, 0), frame, Stop::BadMemory); // does not go up
    check(rule(kind::SP, 0, 0, -8), frame, Stop::BadMemory);
    check(rule(kind::SP, 0, 0, 12), frame, Stop::BadMemory); // no place for a word
    check(rule(kind::SP, 0, 0, 0x1000), frame, Stop::BadMemory); // beyond the stack
    check(rule(kind::SP, fp::AT_CFA, 0x1000, 8), frame, Stop::BadMemory);
    check(rule(kind::FP, 0, 0, 16), Registers { fp: u64::MAX - 7, ..frame }, Stop::BadMemory);
    check(rule(kind::SP, 0, 0, 16), Registers { sp: u64::MAX - 7, ..frame }, Stop::BadMemory);
    check(rule(kind::DEREF_SP, 0, 0, halves(-8, 0)), frame, Stop::BadMemory);
    check(rule(kind::SIGNAL, 0, 0, 0), Registers { sp: SP + 64, ..frame }, Stop::BadMemory);
    check(rule(kind::FRAME_POINTERS, 0, 0, 0), Registers { sp: SP + 1024, ..frame }, Stop::BadMemory);
    check(rule(kind::FP, fp::AT_CFA, -16, 16), Registers { sp: SP + 1024, ..frame }, Stop::BadMemory);
    // The same frame again is no other stack.
    check(rule(kind::DEREF_FP, 0, 0, halves(-24, 0)), Registers { sp: SP + 88, ..frame }, Stop::BadMemory);
    // Generated code that uses the frame pointer for something else leads to words that are no frames.
    check(rule(kind::FRAME_POINTERS, 0, 0, 0), Registers { fp: 0, ..frame }, Stop::NoRule);
    check(rule(kind::FRAME_POINTERS, 0, 0, 0), Registers { fp: SP + 48, ..frame }, Stop::NoRule);
    check(rule(kind::GO, 0, 0, 0), Registers { fp: SP + 1, ..frame }, Stop::BadMemory);
}

#[test]
fn a_return_address_belongs_to_the_call_before_it() {
    let frame = Registers { pc: 0x4000, sp: 0, fp: 0, exact: false };
    assert_eq!((frame.place(), Registers { exact: true, ..frame }.place()), (0x4000, 0x4001));
    assert_eq!((frame.code(), Registers { exact: true, ..frame }.code()), (0x3fff, 0x4000));
}

/// Blocks in pause() below a known chain: in the main thread, in a signal handler, or in a second thread.
const CHAIN: &str = r#"
#include <alloca.h>
#include <pthread.h>
#include <signal.h>
#include <string.h>
#include <unistd.h>
#define KEEP __attribute__((noinline, noclone))
volatile int sink;
KEEP void blocked(void) { pause(); sink++; }
/* Saves every register, the frame pointer included. */
KEEP void saver(int n) {
    __asm__ volatile("" ::: "rbx", "rbp", "r12", "r13", "r14", "r15");
    if (n) saver(n - 1); else blocked();
    sink++;
}
KEEP void handler(int signal) { saver(signal & 1); sink++; }
KEEP void interrupted(void) { kill(getpid(), SIGUSR1); sink++; }
KEEP void dynamic(int n, int how) {
    char *buffer = alloca(n);
    memset(buffer, n, n);
    if (how) interrupted(); else saver(3);
    sink += buffer[n - 1];
}
KEEP void realigned(int n, int how, int a, int b, int c, int d, int e, int on_stack) {
    char buffer[256] __attribute__((aligned(64)));
    memset(buffer, n, sizeof buffer);
    dynamic(n + on_stack, how);
    sink += buffer[n];
}
KEEP void *thread_main(void *none) { realigned(100, 0, 1, 2, 3, 4, 5, 6); sink++; return none; }
int main(int count, char **arguments) {
    (void)arguments;
    signal(SIGUSR1, handler);
    if (count == 3) {
        pthread_t thread;
        pthread_create(&thread, 0, thread_main, 0);
        pthread_join(thread, 0);
    } else {
        realigned(count + 40, count == 2, 1, 2, 3, 4, 5, 6);
    }
    return sink;
}
"#;

/// Ends the process with the test.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A file that a process maps to be executed.
struct Code {
    start: u64,
    end: u64,
    /// What to add to an address to get the one that the file was linked for.
    bias: u64,
    binary: Binary,
    placed: Placed,
}

/// A process's code and the tables for it.
struct Process {
    packed: Packed,
    code: Vec<Code>,
    memory: File,
}

impl Process {
    fn open(pid: u32) -> Self {
        let mut packed = Packed::default();
        let mut code = Vec::new();
        for line in fs::read_to_string(format!("/proc/{pid}/maps")).unwrap().lines() {
            let fields: Vec<&str> = line.split_whitespace().collect();
            let [range, "r-xp", offset, _, _, path] = fields[..] else { continue };
            if !path.starts_with('/') {
                continue;
            }
            let (start, end) = range.split_once('-').unwrap();
            let (start, end, offset) = (hex(start), hex(end), hex(offset));
            let binary = Binary::load(Path::new(path));
            let placed = packed.add(&binary.table()).unwrap();
            let segment = binary.code.iter().find(|(at, _, size)| (at & !0xfff..at + size).contains(&offset)).unwrap();
            let bias = segment.1.wrapping_add(offset).wrapping_sub(segment.0).wrapping_sub(start);
            code.push(Code { start, end, bias, binary, placed });
        }
        Self { packed, code, memory: File::open(format!("/proc/{pid}/mem")).unwrap() }
    }

    /// Functions of the program itself, innermost first, and how the stack ended.
    fn unwind(&self, mut frame: Registers) -> (Vec<String>, Step) {
        let mut functions = Vec::new();
        for _ in 0..64 {
            let pc = frame.code();
            let code = self.code.iter().find(|code| (code.start..code.end).contains(&pc)).expect("no mapping");
            let linked = pc.wrapping_add(code.bias);
            functions.extend(code.binary.function(linked).map(str::to_owned));
            let rule = self.packed.rule_at(&code.placed, linked);
            match step(rule, frame, |address| self.word(address)) {
                Step::Caller(caller) => frame = caller,
                end => return (functions, end),
            }
        }
        panic!("no end: {functions:?}");
    }

    fn word(&self, address: u64) -> Option<u64> {
        let mut word = [0; 8];
        self.memory.read_exact_at(&mut word, address).ok()?;
        Some(u64::from_le_bytes(word))
    }
}

fn hex(text: &str) -> u64 {
    u64::from_str_radix(text.trim_start_matches("0x"), 16).unwrap()
}

/// The registers of the thread that is blocked in pause(); its frame pointer is not known.
fn blocked(pid: u32) -> Registers {
    for _ in 0..500 {
        for task in fs::read_dir(format!("/proc/{pid}/task")).unwrap() {
            let state = fs::read_to_string(task.unwrap().path().join("syscall")).unwrap_or_default();
            let fields: Vec<&str> = state.split_whitespace().collect();
            // The number of the system call, six arguments, stack pointer, instruction pointer.
            if let ["34", .., sp, pc] = fields[..] {
                return Registers { pc: hex(pc), sp: hex(sp), fp: 0, exact: true };
            }
        }
        thread::sleep(Duration::from_millis(10));
    }
    panic!("process {pid} does not come to rest");
}

fn chain_program(folder: &Path, options: &[&str]) -> PathBuf {
    let program = folder.join("chain");
    let options = [&["-O2", "-fomit-frame-pointer", "-fno-optimize-sibling-calls", "-w", "-pthread"], options].concat();
    build(&folder.join("chain.c"), CHAIN, &options, &program);
    program
}

/// Runs the program with `arguments` and compares its stack, of which functions of libraries are left out unless they
/// are in `expected`.
fn check_chain(options: &[&str], arguments: &[&str], expected: &[&str]) {
    let folder = tempfile::tempdir().unwrap();
    let mut command = Command::new(chain_program(folder.path(), options));
    let child = Running(command.args(arguments).stdin(Stdio::null()).spawn().unwrap());
    let registers = blocked(child.0.id());
    let (functions, end) = Process::open(child.0.id()).unwind(registers);
    assert_eq!(end, Step::Root, "{functions:?}");
    let own: Vec<&str> = functions.iter().map(String::as_str).filter(|name| expected.contains(name)).collect();
    assert_eq!(own, expected, "{functions:?}");
}

const INNER: [&str; 7] = ["blocked", "saver", "saver", "saver", "saver", "dynamic", "realigned"];

#[test]
fn stacks_of_the_main_thread_reach_the_root() {
    let expected = [&INNER[..], &["main", "_start"]].concat();
    check_chain(&[], &[], &expected);
    check_chain(&["-static"], &[], &expected);
}

#[test]
fn stacks_of_threads_reach_the_root() {
    let expected = [&INNER[..], &["thread_main"]].concat();
    check_chain(&[], &["in", "thread"], &expected);
}

#[test]
fn stacks_through_signal_frames_reach_the_root() {
    // SIGUSR1 is 10.
    let expected = ["blocked", "saver", "handler", "kill", "interrupted", "dynamic", "realigned", "main", "_start"];
    check_chain(&[], &["interrupted"], &expected);
}
