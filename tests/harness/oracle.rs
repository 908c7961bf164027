//! Unwinding by gimli, as debuggers do it: all registers, all rules, whole DWARF expressions, on a copy of a thread's stack.

use std::{collections::BTreeMap, fs, path::Path};

use gimli::{
    BaseAddresses, CfaRule, CieOrFde, DebugFrame, EhFrame, EndianSlice, EvaluationResult, Expression, LittleEndian,
    Location, Register, RegisterRule, UnwindContext, UnwindExpression, UnwindSection, Value,
};
use object::{Object as _, ObjectSection as _, ObjectSegment as _, SegmentFlags};
use tracer_ebpf::StackCopy;

type Bytes = EndianSlice<'static, LittleEndian>;

/// Numbers of registers in DWARF.
const RBP: usize = 6;
const RSP: usize = 7;
const RIP: usize = 16;

/// The mapping that the kernel makes for probes.
const TRAMPOLINES: &str = "[uprobes]";

/// How an unwinding ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// At a function that nobody called.
    Root,
    /// At code without unwind information.
    NoInformation,
    /// At memory that is not in the copy.
    BeyondCopy,
    /// After as many frames as were asked for.
    Deep,
    /// At something that makes no sense.
    Nonsense,
}

/// The executable mappings of a process, and what their files say of unwinding.
pub(crate) struct Oracle {
    pid: u32,
    mappings: Vec<Mapping>,
}

struct Mapping {
    start: u64,
    end: u64,
    /// What the start was linked for.
    linked: u64,
    /// `None` for generated code.
    file: Option<&'static Information>,
}

/// What is known of a file, and its executable segments: offset in the file, address, size.
type File = (&'static Information, Vec<(u64, u64, u64)>);

/// Unwind information of a file. Leaked: a test has few files.
struct Information {
    /// Where each section's functions begin.
    eh_frame: Section<EhFrame<Bytes>>,
    debug_frame: Section<DebugFrame<Bytes>>,
    bases: BaseAddresses,
    entry: u64,
}

struct Section<S> {
    section: S,
    /// Offset of the description by the function's first address, with the address behind its last.
    functions: BTreeMap<u64, (u64, usize)>,
}

/// Registers in a frame; `None`: not known.
type Registers = [Option<u64>; 17];

impl Oracle {
    /// Reads the mappings of process `pid` and their files.
    pub(crate) fn new(pid: u32) -> Self {
        let maps = executable_mappings(pid);
        let mut files: BTreeMap<String, Option<File>> = BTreeMap::new();
        let mut mappings = Vec::new();
        for line in maps.lines().filter(|line| !line.contains(TRAMPOLINES)) {
            let fields: Vec<&str> = line.split_whitespace().collect();
            let hex = |text| u64::from_str_radix(text, 16).unwrap();
            let (start, end) = fields[0].split_once('-').unwrap();
            let (start, end, offset) = (hex(start), hex(end), hex(fields[2]));
            let mut mapping = Mapping { start, end, linked: start, file: None };
            if let Some(path) = fields.get(5).filter(|path| path.starts_with('/')) {
                let file = files.entry((*path).to_owned()).or_insert_with(|| Information::read(Path::new(path)));
                let (information, code) = file.as_ref().unwrap_or_else(|| panic!("{path} is no ELF file"));
                let segment =
                    code.iter().find(|(from, _, size)| (from & !0xfff..from + size).contains(&offset)).unwrap();
                mapping.linked = segment.1.wrapping_add(offset).wrapping_sub(segment.0);
                mapping.file = Some(information);
            }
            mappings.push(mapping);
        }
        Self { pid, mappings }
    }

    /// Whether an address is the one that the kernel puts into the return slots of functions whose returns are probed.
    pub(crate) fn is_trampoline(&self, addr: u64) -> bool {
        if self.mappings.iter().any(|mapping| (mapping.start..mapping.end).contains(&addr)) {
            return false;
        }
        let maps = executable_mappings(self.pid);
        let page = maps.lines().find(|line| line.contains(TRAMPOLINES)).and_then(|line| line.split('-').next());
        page.is_some_and(|start| u64::from_str_radix(start, 16) == Ok(addr))
    }

    /// Return addresses of the callers of the function at whose entry the copy was made, leaf first, and how that ended.
    /// Where a probe has taken one away, what was found there instead is believed; if it is wrong, so is what follows.
    pub(crate) fn unwind(&self, copy: &StackCopy, most: usize) -> (Vec<u64>, End) {
        let memory = |addr: u64| -> Option<u64> {
            let at = usize::try_from(addr.checked_sub(copy.start)?).ok()?;
            let end = at.checked_add(8).filter(|end| *end <= copy.len as usize)?;
            Some(u64::from_le_bytes(copy.memory[at..end].try_into().unwrap()))
        };
        let mut registers: Registers = copy.registers.map(Some);
        // The first instruction of the allocator has not been executed: the return address is on top.
        let sp = registers[RSP].unwrap();
        let Some(caller) = memory(sp) else { return (Vec::new(), End::BeyondCopy) };
        (registers[RIP], registers[RSP]) = (Some(caller), Some(sp + 8));
        let (mut found, mut is_return) = (Vec::new(), true);
        while found.len() < most {
            let Some(mut pc) = registers[RIP].filter(|pc| *pc != 0) else { return (found, End::Root) };
            if self.is_trampoline(pc)
                && let Some(instead) = copy.addresses[..copy.head.frames as usize].get(found.len())
            {
                pc = *instead;
                registers[RIP] = Some(pc);
            }
            found.push(pc);
            match self.caller(&registers, pc - u64::from(is_return), &memory) {
                Ok((caller, signal)) => (registers, is_return) = (caller, !signal),
                Err(end) => return (found, end),
            }
        }
        (found, End::Deep)
    }

    /// Registers in the calling frame, and whether this one is of a signal.
    fn caller(
        &self,
        registers: &Registers,
        at: u64,
        memory: &dyn Fn(u64) -> Option<u64>,
    ) -> Result<(Registers, bool), End> {
        let mapping = self.mappings.iter().find(|mapping| (mapping.start..mapping.end).contains(&at));
        let mapping = mapping.ok_or(End::NoInformation)?;
        let linked = at - mapping.start + mapping.linked;
        let Some(file) = mapping.file else { return by_frame_pointer(registers, memory) };
        if let Some(caller) = file.eh_frame.step(&file.bases, linked, registers, memory) {
            return caller;
        }
        if let Some(caller) = file.debug_frame.step(&file.bases, linked, registers, memory) {
            return caller;
        }
        if file.is_start(linked) {
            return Err(End::Root);
        }
        if file.eh_frame.functions.is_empty() && file.debug_frame.functions.is_empty() {
            return by_frame_pointer(registers, memory);
        }
        Err(End::NoInformation)
    }
}

/// Executable mappings of a process, a line each as /proc/PID/maps has them.
pub(crate) fn executable_mappings(pid: u32) -> String {
    let maps = fs::read_to_string(format!("/proc/{pid}/maps")).unwrap();
    maps.lines()
        .filter(|line| line.split_whitespace().nth(1).unwrap().contains('x'))
        .map(|line| format!("{line}\n"))
        .collect()
}

fn by_frame_pointer(registers: &Registers, memory: &dyn Fn(u64) -> Option<u64>) -> Result<(Registers, bool), End> {
    let fp = registers[RBP].ok_or(End::Nonsense)?;
    let mut caller = *registers;
    caller[RBP] = Some(memory(fp).ok_or(End::BeyondCopy)?);
    caller[RIP] = Some(memory(fp.wrapping_add(8)).ok_or(End::BeyondCopy)?);
    caller[RSP] = Some(fp.wrapping_add(16));
    Ok((caller, false))
}

impl Information {
    /// That of a file; `None` when it is no ELF file.
    fn read(path: &Path) -> Option<File> {
        let data: &'static [u8] = Box::leak(fs::read(path).ok()?.into_boxed_slice());
        let file = object::File::parse(data).ok()?;
        let section = |name: &str| -> (&'static [u8], u64) {
            let Some(section) = file.section_by_name(name) else { return (&[], 0) };
            let data = section.uncompressed_data().map(|data| data.into_owned()).unwrap_or_default();
            (Box::leak(data.into_boxed_slice()), section.address())
        };
        let ((eh_frame, address), (debug_frame, _)) = (section(".eh_frame"), section(".debug_frame"));
        let mut bases = BaseAddresses::default().set_eh_frame(address).set_text(section(".text").1);
        bases = bases.set_got(section(".got").1);
        let executable = |flags: SegmentFlags| matches!(flags, SegmentFlags::Elf { p_flags, .. } if p_flags.0 & 1 != 0);
        let code = file.segments().filter(|segment| executable(segment.flags()));
        let code = code.map(|segment| (segment.file_range().0, segment.address(), segment.size())).collect();
        let mut debug_frame = DebugFrame::new(debug_frame, LittleEndian);
        debug_frame.set_address_size(8);
        let information = Self {
            eh_frame: Section::new(EhFrame::new(eh_frame, LittleEndian), &bases),
            debug_frame: Section::new(debug_frame, &bases),
            bases,
            entry: file.entry(),
        };
        Some((Box::leak(Box::new(information)), code))
    }

    /// Whether `linked` is in the code that the kernel starts, and that is not described.
    fn is_start(&self, linked: u64) -> bool {
        let described = |from: u64| self.eh_frame.functions.range(from..=linked).next().is_some();
        self.entry != 0 && self.entry <= linked && !described(self.entry)
    }
}

impl<S: UnwindSection<Bytes>> Section<S>
where
    S::Offset: gimli::UnwindOffset<usize>,
{
    fn new(section: S, bases: &BaseAddresses) -> Self {
        let mut functions = BTreeMap::new();
        let mut entries = section.entries(bases);
        while let Ok(Some(entry)) = entries.next() {
            if let CieOrFde::Fde(partial) = entry {
                let offset = partial.offset();
                let fde = partial.parse(S::cie_from_offset).unwrap();
                if fde.len() > 0 {
                    functions.entry(fde.initial_address()).or_insert((fde.end_address(), offset));
                }
            }
        }
        Self { section, functions }
    }

    /// `None` when no function that is described is there.
    fn step(
        &self,
        bases: &BaseAddresses,
        at: u64,
        registers: &Registers,
        memory: &dyn Fn(u64) -> Option<u64>,
    ) -> Option<Result<(Registers, bool), End>> {
        let (_, (end, offset)) = self.functions.range(..=at).next_back()?;
        if at >= *end {
            return None;
        }
        let fde = self.section.fde_from_offset(bases, S::Offset::from(*offset), S::cie_from_offset).ok()?;
        let mut context = UnwindContext::new();
        let row = fde.unwind_info_for_address(&self.section, bases, &mut context, at).ok()?;
        let expression = |expression: &UnwindExpression<usize>, stack: Option<u64>| {
            let expression = expression.get(&self.section).map_err(|_| End::Nonsense)?;
            evaluate(expression, fde.cie().encoding(), registers, memory, stack)
        };
        let cfa = match row.cfa() {
            CfaRule::RegisterAndOffset { register, offset } => registers
                .get(usize::from(register.0))
                .copied()
                .flatten()
                .map(|value| value.wrapping_add_signed(*offset))
                .ok_or(End::Nonsense),
            CfaRule::Expression(rule) => expression(rule, None),
        };
        let cfa = match cfa {
            Ok(cfa) => cfa,
            Err(end) => return Some(Err(end)),
        };
        let mut caller = *registers;
        caller[RSP] = Some(cfa);
        for (number, value) in caller.iter_mut().enumerate() {
            let read = |addr: u64| memory(addr).ok_or(End::BeyondCopy);
            let rule = row.register(Register(number as u16));
            let found = match rule {
                // What nothing is said of is kept.
                None if number != RIP => Ok(*value),
                Some(RegisterRule::SameValue) => Ok(*value),
                Some(RegisterRule::Undefined) => Ok(None),
                Some(RegisterRule::Offset(offset)) => read(cfa.wrapping_add_signed(offset)).map(Some),
                Some(RegisterRule::ValOffset(offset)) => Ok(Some(cfa.wrapping_add_signed(offset))),
                Some(RegisterRule::Register(register)) => Ok(registers.get(usize::from(register.0)).copied().flatten()),
                Some(RegisterRule::Expression(rule)) => expression(&rule, Some(cfa)).and_then(read).map(Some),
                Some(RegisterRule::ValExpression(rule)) => expression(&rule, Some(cfa)).map(Some),
                _ => Err(End::Nonsense),
            };
            match found {
                Ok(found) => *value = found,
                Err(end) => return Some(Err(end)),
            }
        }
        Some(Ok((caller, fde.is_signal_trampoline())))
    }
}

fn evaluate(
    expression: Expression<Bytes>,
    encoding: gimli::Encoding,
    registers: &Registers,
    memory: &dyn Fn(u64) -> Option<u64>,
    stack: Option<u64>,
) -> Result<u64, End> {
    let mut evaluation = expression.evaluation(encoding);
    if let Some(value) = stack {
        evaluation.set_initial_value(value);
    }
    let mut result = evaluation.evaluate();
    loop {
        result = match result.map_err(|_| End::Nonsense)? {
            EvaluationResult::Complete => break,
            EvaluationResult::RequiresRegister { register, .. } => {
                let value = registers.get(usize::from(register.0)).copied().flatten().ok_or(End::Nonsense)?;
                evaluation.resume_with_register(Value::Generic(value))
            }
            EvaluationResult::RequiresMemory { address, size, .. } => {
                let word = memory(address).ok_or(End::BeyondCopy)?;
                let bits = 8 * u32::from(size.min(8));
                let value = if bits == 64 { word } else { word & ((1 << bits) - 1) };
                evaluation.resume_with_memory(Value::Generic(value))
            }
            _ => return Err(End::Nonsense),
        };
    }
    match evaluation.as_result().first().map(|piece| piece.location) {
        Some(Location::Address { address }) => Ok(address),
        Some(Location::Value { value: Value::Generic(value) }) => Ok(value),
        Some(Location::Register { register }) => registers[usize::from(register.0)].ok_or(End::Nonsense),
        _ => Err(End::Nonsense),
    }
}
