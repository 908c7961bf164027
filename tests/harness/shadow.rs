//! Runs a program instruction by instruction, keeps the truth about its callers from its calls and returns, and compares with it what
//! the rules of unwinding say.

use std::{collections::HashMap, fs, fs::File};

use nix::{
    libc::user_regs_struct,
    sys::{
        ptrace,
        wait::{WaitStatus, waitpid},
    },
    unistd::Pid,
};
use tracer::{
    unwind::{Registers, Step, Table, step},
    unwinder::{compile_file, linked_address},
};

use super::target::Target;

/// Most instructions that are run.
const MAX_STEPS: usize = 400_000;
/// Most that is complained about.
const MAX_FAULTS: usize = 20;

/// What was seen in one file.
#[derive(Debug, Default)]
pub(crate) struct Seen {
    /// Instructions whose caller was known.
    pub(crate) steps: usize,
    /// Of those, the ones that no rule said a caller of.
    pub(crate) without_rule: usize,
    /// The same for calls.
    pub(crate) calls: usize,
    pub(crate) calls_without_rule: usize,
}

/// What was seen of all, by the path of the file.
#[derive(Debug, Default)]
pub(crate) struct Shadow {
    pub(crate) files: HashMap<String, Seen>,
    pub(crate) faults: Vec<String>,
}

/// A mapping of code, and the rules that hold there.
struct Code {
    start: u64,
    end: u64,
    /// What to take from an address to get that which it was linked for.
    bias: u64,
    path: String,
    table: Table,
}

/// A call that runs.
struct Call {
    /// Where its return address is, and that.
    slot: u64,
    caller: u64,
    frame_pointer: u64,
}

/// Tells a program to go on, and follows it until it reads its next order.
pub(crate) fn follow(target: &mut Target, order: &str) -> Shadow {
    let pid = Pid::from_raw(target.pid().cast_signed());
    let mut shadow = Shadow::default();
    ptrace::attach(pid).expect("it runs");
    waitpid(pid, None).expect("it stops");
    let code = mapped(pid);
    target.say(order);
    if let Err(error) = run(pid, &code, &mut shadow) {
        shadow.faults.push(format!("cannot follow it: {error}"));
    }
    ptrace::detach(pid, None).expect("it goes on");
    shadow
}

fn run(pid: Pid, code: &[Code], shadow: &mut Shadow) -> nix::Result<()> {
    let mut calls: Vec<Call> = Vec::new();
    let mut heard = false;
    for _ in 0..MAX_STEPS {
        let regs = ptrace::getregs(pid)?;
        let bytes = word(pid, regs.rip)?.to_le_bytes();
        // The order is read first, byte by byte.
        let reads = bytes.starts_with(&[0x0f, 0x05]) && regs.rax == 0 && regs.rdi == 0;
        if reads && heard || shadow.faults.len() > MAX_FAULTS {
            return Ok(());
        }
        heard |= !calls.is_empty() && bytes.starts_with(&[0x0f, 0x05]) && regs.rax == 1;
        let length = call_length(&bytes);
        compare(pid, code, &regs, calls.last(), length.is_some(), shadow)?;
        ptrace::step(pid, None)?;
        match waitpid(pid, None)? {
            WaitStatus::Stopped(..) => {}
            other => {
                shadow.faults.push(format!("ended in the middle: {other:?}"));
                return Ok(());
            }
        }
        let after = ptrace::getregs(pid)?;
        calls.truncate(calls.iter().rposition(|call| call.slot >= after.rsp).map_or(0, |last| last + 1));
        let caller = regs.rip + length.unwrap_or(0);
        if length.is_some() && after.rsp == regs.rsp - 8 && word(pid, after.rsp)? == caller {
            calls.push(Call { slot: after.rsp, caller, frame_pointer: regs.rbp });
        }
    }
    Ok(())
}

/// Length of a call; `None` where there is none.
fn call_length(bytes: &[u8]) -> Option<u64> {
    let instruction = iced_x86::Decoder::new(64, bytes, iced_x86::DecoderOptions::NONE).decode();
    let is_call = instruction.is_call_near() || instruction.is_call_near_indirect();
    is_call.then_some(instruction.len() as u64)
}

fn compare(
    pid: Pid,
    code: &[Code],
    regs: &user_regs_struct,
    call: Option<&Call>,
    calls: bool,
    shadow: &mut Shadow,
) -> nix::Result<()> {
    let (Some(call), Some(code)) = (call, code.iter().find(|code| (code.start..code.end).contains(&regs.rip))) else {
        return Ok(());
    };
    let seen = shadow.files.entry(code.path.clone()).or_default();
    seen.steps += 1;
    seen.calls += usize::from(calls);
    let rule = code.table.rule_at(regs.rip.wrapping_sub(code.bias));
    let frame = Registers { pc: regs.rip, sp: regs.rsp, fp: regs.rbp, exact: true };
    let wrong = match step(rule, frame, |address| word(pid, address).ok()) {
        Step::Stopped(_) => {
            seen.without_rule += 1;
            seen.calls_without_rule += usize::from(calls);
            return Ok(());
        }
        Step::Caller(caller) => (caller.pc, caller.sp, caller.fp) != (call.caller, call.slot + 8, call.frame_pointer),
        Step::Root | Step::Made => true,
    };
    if wrong {
        let (path, at) = (&code.path, regs.rip.wrapping_sub(code.bias));
        shadow.faults.push(format!("{path}: {at:#x}: {rule:#x}, slot {:#x}, {regs:x?}", call.slot));
    }
    Ok(())
}

/// All files whose code is mapped.
fn mapped(pid: Pid) -> Vec<Code> {
    let text = fs::read_to_string(format!("/proc/{pid}/maps")).expect("it runs");
    let code = text.lines().filter_map(|line| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let path = fields.get(5).filter(|path| path.starts_with('/') && fields[1].contains('x'))?;
        let (start, end) = fields[0].split_once('-')?;
        let [start, end, offset] =
            [start, end, fields[2]].map(|number| u64::from_str_radix(number, 16).expect("a number"));
        let (segments, table) = compile_file(&File::open(path).ok()?).ok()?;
        let bias = start.wrapping_sub(linked_address(&segments, offset)?);
        Some(Code { start, end, bias, path: (*path).to_owned(), table })
    });
    code.collect()
}

fn word(pid: Pid, address: u64) -> nix::Result<u64> {
    ptrace::read(pid, address as ptrace::AddressType).map(i64::cast_unsigned)
}
