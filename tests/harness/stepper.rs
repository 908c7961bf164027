//! Stops a program where the kernel's probes would stop it, and checks every call of its allocator: it passes exactly one
//! instruction that knows its outcome, and what is read there is what the call returns.

use std::{
    collections::{BTreeMap, HashMap},
    fs,
    io::Write as _,
    path::Path,
    process::{Child, Command, Stdio},
};

use nix::{
    libc::user_regs_struct,
    sys::{
        ptrace,
        signal::Signal,
        wait::{WaitStatus, waitpid},
    },
    unistd::Pid,
};
use tracer::probe::{
    exits::{Exits, Tells},
    family::Shape,
    resolve::Function,
};
use tracer_ebpf::exit::{self, Packed};

/// Most that is complained about; one fault makes many.
const MAX_FAULTS: usize = 20;

/// What was seen of one function.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Calls {
    /// Calls that returned.
    pub(crate) returned: usize,
    /// Of those, the ones that gave out no block.
    pub(crate) failed: usize,
    /// Instructions with a probe for exits that they passed.
    pub(crate) passed: usize,
    /// Of those, the ones that are stepped.
    pub(crate) stepped: usize,
}

/// What was seen of all.
#[derive(Debug, Default)]
pub(crate) struct Checked {
    /// By function.
    pub(crate) calls: BTreeMap<String, Calls>,
    /// What was wrong, in words.
    pub(crate) faults: Vec<String>,
}

/// Runs a program whose allocator is in `file`, with the names of the functions as its arguments. It reads a byte from its
/// input, then comes to an `int3`; what follows is checked. Functions whose exits are not proven are left out.
pub(crate) fn check(mut command: Command, file: &Path, functions: &[Function]) -> Checked {
    command.args(functions.iter().map(|function| &function.name));
    let mut child = command.stdin(Stdio::piped()).spawn().expect("the program is there");
    let mut checked = Checked::default();
    if let Err(error) = follow(&mut child, file, functions, &mut checked) {
        checked.faults.push(format!("cannot follow it: {error}"));
    }
    let _ = child.kill();
    let _ = child.wait();
    checked
}

/// A call that runs.
struct Running {
    function: usize,
    /// Where its return address is, and that.
    slot: u64,
    caller: u64,
    /// First argument.
    first: u64,
    outcomes: Vec<u64>,
}

struct Probes<'a> {
    functions: &'a [Function],
    /// By address, the number of the function.
    entries: HashMap<u64, usize>,
    /// By address, cookie and whether it is emulated.
    exits: HashMap<u64, (u64, bool)>,
}

fn follow(child: &mut Child, file: &Path, functions: &[Function], checked: &mut Checked) -> nix::Result<()> {
    let pid = Pid::from_raw(child.id().cast_signed());
    ptrace::attach(pid)?;
    waitpid(pid, None)?;
    child.stdin.as_mut().and_then(|input| input.write_all(b"x").ok());
    ptrace::cont(pid, None)?;
    loop {
        match waitpid(pid, None)? {
            WaitStatus::Stopped(_, Signal::SIGTRAP) => break,
            WaitStatus::Stopped(_, signal) => ptrace::cont(pid, Some(signal).filter(|s| *s != Signal::SIGSTOP))?,
            other => {
                checked.faults.push(format!("ended before it began: {other:?}"));
                return Ok(());
            }
        }
    }
    let probes = Probes::new(pid, file, functions);
    let mut stops = Stops(HashMap::new());
    for address in probes.entries.keys().chain(probes.exits.keys()) {
        stops.set(pid, *address)?;
    }
    let mut call: Option<Running> = None;
    while checked.faults.len() <= MAX_FAULTS {
        ptrace::cont(pid, None)?;
        match waitpid(pid, None)? {
            WaitStatus::Stopped(_, Signal::SIGTRAP) => {}
            WaitStatus::Exited(_, 0) => break,
            other => {
                checked.faults.push(format!("ended in the middle: {other:?}"));
                break;
            }
        }
        let mut regs = ptrace::getregs(pid)?;
        // The instruction that stops has one byte.
        regs.rip -= 1;
        ptrace::setregs(pid, regs)?;
        probes.look(pid, &regs, &mut call, checked)?;
        if let Some(call) = &call {
            stops.set(pid, call.caller)?;
        }
        stops.pass(pid, regs.rip)?;
    }
    Ok(())
}

/// Addresses at which the program is stopped, and the words that were there.
struct Stops(HashMap<u64, i64>);

impl Stops {
    fn set(&mut self, pid: Pid, address: u64) -> nix::Result<()> {
        if self.0.contains_key(&address) {
            return Ok(());
        }
        self.0.insert(address, ptrace::read(pid, address as ptrace::AddressType)? & 0xff);
        write_byte(pid, address, 0xcc)
    }

    /// Runs the instruction that was there.
    fn pass(&self, pid: Pid, address: u64) -> nix::Result<()> {
        let Some(byte) = self.0.get(&address) else { return Ok(()) };
        write_byte(pid, address, *byte)?;
        ptrace::step(pid, None)?;
        waitpid(pid, None)?;
        write_byte(pid, address, 0xcc)
    }
}

fn write_byte(pid: Pid, address: u64, byte: i64) -> nix::Result<()> {
    let at = address as ptrace::AddressType;
    let word = ptrace::read(pid, at)?;
    ptrace::write(pid, at, word & !0xff | byte)
}

impl<'a> Probes<'a> {
    fn new(pid: Pid, file: &Path, functions: &'a [Function]) -> Self {
        let (base, at) = mapped(pid, file);
        let (mut entries, mut exits) = (HashMap::new(), HashMap::new());
        for (number, function) in functions.iter().enumerate() {
            entries.insert(at(function.file_offset), number);
            let Some(Exits::Proven(sites, _)) = &function.exits else { continue };
            for site in sites {
                let cookie = site.exit.pack().expect("it fits");
                let before = exits.insert(base + site.address, (cookie, site.emulated));
                assert!(before.is_none_or(|before| before.0 == cookie), "{:#x} says two things", site.address);
            }
        }
        Self { functions, entries, exits }
    }

    /// Looks at the state of the program before an instruction.
    fn look(
        &self,
        pid: Pid,
        regs: &user_regs_struct,
        call: &mut Option<Running>,
        checked: &mut Checked,
    ) -> nix::Result<()> {
        if let Some(ended) = call.take_if(|call| regs.rsp > call.slot) {
            if regs.rip == ended.caller && regs.rsp == ended.slot + 8 {
                self.compare(pid, regs, &ended, checked)?;
            } else {
                checked.faults.push(format!("{} was left by another way", self.functions[ended.function].name));
            }
        }
        if let (Some((cookie, emulated)), Some(call)) = (self.exits.get(&regs.rip), call.as_mut())
            && exit::return_slot(*cookie, regs.rsp, regs.rbp) == call.slot
        {
            let calls = checked.calls.entry(self.functions[call.function].name.clone()).or_default();
            calls.passed += 1;
            calls.stepped += usize::from(!emulated);
            call.outcomes.extend(self.outcome(pid, regs, call, exit::place(*cookie, regs.eflags), checked)?);
        }
        if let Some(&function) = self.entries.get(&regs.rip) {
            self.enter(pid, regs, function, call, checked)?;
        }
        Ok(())
    }

    fn enter(
        &self,
        pid: Pid,
        regs: &user_regs_struct,
        function: usize,
        call: &mut Option<Running>,
        checked: &mut Checked,
    ) -> nix::Result<()> {
        let name = &self.functions[function].name;
        if let Some(outer) = call.as_ref().filter(|outer| !outer.outcomes.is_empty()) {
            checked
                .faults
                .push(format!("{} calls {name} after its outcome was known", self.functions[outer.function].name));
        }
        // One that is jumped to takes the place of the one that jumps; others are a part of it.
        if call.as_ref().is_some_and(|outer| outer.slot != regs.rsp) {
            return Ok(());
        }
        let Some(Exits::Proven(..)) = self.functions[function].exits else { return Ok(()) };
        let caller = word(pid, regs.rsp)?;
        *call = Some(Running { function, slot: regs.rsp, caller, first: regs.rdi, outcomes: Vec::new() });
        Ok(())
    }

    /// What a call's outcome is said to be: the block, or 0.
    fn outcome(
        &self,
        pid: Pid,
        regs: &user_regs_struct,
        call: &Running,
        Packed { kind, register, displacement }: Packed,
        checked: &mut Checked,
    ) -> nix::Result<Option<u64>> {
        let said = match kind {
            exit::REGISTER => general(regs, register).wrapping_add(displacement),
            exit::CONSTANT => displacement,
            exit::STACK => word(pid, regs.rsp.wrapping_add(displacement))?,
            exit::UNKNOWN => return Ok(None),
            other => {
                checked.faults.push(format!("a place of kind {other}"));
                return Ok(None);
            }
        };
        if !matches!(self.functions[call.function].exits, Some(Exits::Proven(_, Tells::Status))) {
            return Ok(Some(said));
        }
        if said as u32 == 0 { word(pid, call.first).map(Some) } else { Ok(Some(0)) }
    }

    fn compare(&self, pid: Pid, regs: &user_regs_struct, call: &Running, checked: &mut Checked) -> nix::Result<()> {
        let Function { name, shape, .. } = &self.functions[call.function];
        let real = match shape {
            Shape::PosixMemalign if regs.rax as u32 != 0 => 0,
            Shape::PosixMemalign => word(pid, call.first)?,
            _ => regs.rax,
        };
        let calls = checked.calls.entry(name.clone()).or_default();
        calls.returned += 1;
        calls.failed += usize::from(real == 0);
        if call.outcomes != [real] {
            checked.faults.push(format!("{name} returned {real:#x}, seen was {:#x?}", call.outcomes));
        }
        Ok(())
    }
}

/// Where a file is mapped: what its address 0 became, and the addresses of offsets in its code.
fn mapped(pid: Pid, file: &Path) -> (u64, impl Fn(u64) -> u64) {
    let file = fs::canonicalize(file).expect("the file is there");
    let text = fs::read_to_string(format!("/proc/{pid}/maps")).expect("it runs");
    let mut base = u64::MAX;
    let mut code = Vec::new();
    for line in text.lines().filter(|line| line.ends_with(&*file.to_string_lossy())) {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let (start, _) = fields[0].split_once('-').expect("a range");
        let [start, offset] = [start, fields[2]].map(|number| u64::from_str_radix(number, 16).expect("a number"));
        base = base.min(start);
        if fields[1].contains('x') {
            code.push((offset, start));
        }
    }
    assert!(!code.is_empty(), "{} is not mapped: {text}", file.display());
    let at = move |offset: u64| {
        let (from, start) = code.iter().rev().find(|(from, _)| *from <= offset).expect("code");
        start + (offset - from)
    };
    (base, at)
}

fn word(pid: Pid, address: u64) -> nix::Result<u64> {
    ptrace::read(pid, address as ptrace::AddressType).map(i64::cast_unsigned)
}

fn general(regs: &user_regs_struct, number: u64) -> u64 {
    let all = [
        regs.rax, regs.rcx, regs.rdx, regs.rbx, regs.rsp, regs.rbp, regs.rsi, regs.rdi, regs.r8, regs.r9, regs.r10,
        regs.r11, regs.r12, regs.r13, regs.r14, regs.r15,
    ];
    all[number as usize & 15]
}
