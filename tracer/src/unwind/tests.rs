//! The oracle: for real files, what a packed rule does to a frame is what gimli's interpretation of the same unwind
//! information does to it, for every row at its first two addresses and its last, and at random addresses.
//!
//! Not rules are compared but frames: the oracle evaluates whole DWARF expressions on invented registers and memory.

use std::{collections::BTreeMap, path::Path};

use gimli::{
    BaseAddresses, CfaRule, CieOrFde, EhFrame, EndianSlice, EvaluationResult, FrameDescriptionEntry, LittleEndian,
    Location, Register, RegisterRule, UnwindContext, UnwindExpression, UnwindSection as _, UnwindTableRow, Value,
    X86_64,
};

use super::{
    Packed, Placed, Reason, Registers, Step, Table,
    fixture::{Binary, Random, file_named_by, mapped},
    step,
};

type Bytes<'a> = EndianSlice<'a, LittleEndian>;
type Fde<'a> = FrameDescriptionEntry<Bytes<'a>>;

/// Gaps shorter than this may be bridged.
const PADDING: u64 = 16;

/// Memory in which every word holds an address further up the stack.
fn memory(address: u64) -> u64 {
    let mut random = Random(address | 1);
    STACK + 0x1_0000_0000 + (random.next() & 0xff_ffff_fff8)
}

/// Where the invented stack is.
const STACK: u64 = 0x7f00_0000_0000;

/// A file under test.
struct Oracle<'a> {
    section: EhFrame<Bytes<'a>>,
    bases: BaseAddresses,
    table: Table,
    packed: Packed,
    placed: Placed,
}

/// How many addresses were compared, and with what result.
#[derive(Debug, Default)]
struct Outcome {
    same: usize,
    /// The rule is unsupported.
    unsupported: usize,
    /// Several functions claim the address.
    ambiguous: usize,
    different: Vec<String>,
}

impl<'a> Oracle<'a> {
    fn new(binary: &'a Binary) -> Self {
        let sections = binary.sections();
        let (bytes, address) = sections.eh_frame.unwrap();
        let bases = BaseAddresses::default().set_eh_frame(address).set_text(sections.text_address);
        let table = binary.table();
        let mut packed = Packed::default();
        let placed = packed.add(&table).unwrap();
        Self { section: EhFrame::new(bytes, LittleEndian), bases, table, packed, placed }
    }

    fn functions(&self) -> Vec<Fde<'a>> {
        let mut entries = self.section.entries(&self.bases);
        let mut functions = Vec::new();
        while let Some(entry) = entries.next().unwrap() {
            if let CieOrFde::Fde(partial) = entry {
                functions.push(partial.parse(EhFrame::cie_from_offset).unwrap());
                // Compilers describe functions of no instruction, too.
                functions.pop_if(|fde| fde.len() == 0);
            }
        }
        functions
    }

    /// Compares one in `stride` functions at every row, and all gaps between functions.
    fn compare(&self, stride: usize) -> Outcome {
        let functions = self.functions();
        let mut outcome = Outcome::default();
        let mut starts: BTreeMap<u64, usize> = BTreeMap::new();
        for (index, fde) in functions.iter().enumerate() {
            starts.entry(fde.initial_address()).or_insert(index);
        }
        let mut context = UnwindContext::new();
        for (index, fde) in functions.iter().enumerate().step_by(stride) {
            let mut rows = fde.rows(&self.section, &self.bases, &mut context).unwrap();
            while let Some(row) = rows.next_row().unwrap() {
                let end = row.end_address().min(fde.end_address());
                let start = row.start_address();
                for pc in [start, start + 1, end - 1].into_iter().filter(|pc| (start..end).contains(pc)) {
                    if starts.range(..=pc).next_back().map(|start| *start.1) != Some(index) {
                        outcome.ambiguous += 1;
                        continue;
                    }
                    self.check(pc, fde, row, &mut outcome);
                }
            }
        }
        self.check_gaps(&functions, &starts);
        outcome
    }

    /// Between functions there is no rule, unless it is padding.
    fn check_gaps(&self, functions: &[Fde<'_>], starts: &BTreeMap<u64, usize>) {
        let mut end = 0;
        for (start, index) in starts {
            if start.saturating_sub(end) >= PADDING {
                for pc in [end, start - 1] {
                    assert_eq!(self.packed.rule_at(&self.placed, pc), 0, "{pc:#x} is in no function");
                }
            }
            end = functions[*index].end_address();
        }
        assert_eq!(self.packed.rule_at(&self.placed, end), 0);
    }

    /// Compares at random addresses, each looked up by gimli from the beginning of the section.
    fn sample(&self, count: usize) -> Outcome {
        let mut random = Random(7);
        let mut outcome = Outcome::default();
        let mut context = UnwindContext::new();
        let (first, last) = (self.table.rows()[0].0, self.table.rows()[self.table.rows().len() - 1].0);
        for _ in 0..count {
            let pc = first + random.next() % (last - first);
            let Ok(fde) = self.section.fde_for_address(&self.bases, pc, EhFrame::cie_from_offset) else { continue };
            let row = self
                .section
                .unwind_info_for_address(&self.bases, &mut context, pc, EhFrame::cie_from_offset)
                .unwrap()
                .clone();
            self.check(pc, &fde, &row, &mut outcome);
        }
        outcome
    }

    fn check(&self, pc: u64, fde: &Fde<'_>, row: &UnwindTableRow<usize>, outcome: &mut Outcome) {
        let rule = self.packed.rule_at(&self.placed, pc);
        assert_eq!(rule, self.table.rule_at(pc), "{pc:#x}");
        if Reason::of(rule).is_some() {
            outcome.unsupported += 1;
            return;
        }
        let frame = Registers { pc, sp: STACK, fp: STACK + 0x200, exact: true };
        let ours = step(rule, frame, |address| Some(memory(address)));
        let theirs = self.caller(frame, fde, row);
        if theirs == Some(ours) {
            outcome.same += 1;
        } else {
            outcome.different.push(format!("{pc:#x}: rule {rule:#x} gives {ours:x?}, gimli {theirs:x?}"));
        }
    }

    /// The caller by gimli; `None` when other registers decide.
    fn caller(&self, frame: Registers, fde: &Fde<'_>, row: &UnwindTableRow<usize>) -> Option<Step> {
        let value = |register: Register| match register {
            X86_64::RSP => Some(frame.sp),
            X86_64::RBP => Some(frame.fp),
            X86_64::RA => Some(frame.pc),
            _ => None,
        };
        let evaluate = |expression: &UnwindExpression<usize>, cfa: Option<u64>| {
            evaluate(expression.get(&self.section).unwrap(), fde.cie().encoding(), cfa, value)
        };
        let cfa = match row.cfa() {
            CfaRule::RegisterAndOffset { register, offset } => value(*register)?.wrapping_add_signed(*offset),
            CfaRule::Expression(expression) => evaluate(expression, None)?,
        };
        let restore = |register: Register, default: Option<u64>| match row.register(register) {
            None => default,
            Some(RegisterRule::Undefined | RegisterRule::SameValue) => value(register),
            Some(RegisterRule::Offset(offset)) => Some(memory(cfa.wrapping_add_signed(offset))),
            Some(RegisterRule::ValOffset(offset)) => Some(cfa.wrapping_add_signed(offset)),
            Some(RegisterRule::Register(other)) => value(other),
            Some(RegisterRule::Expression(expression)) => evaluate(&expression, Some(cfa)).map(memory),
            Some(RegisterRule::ValExpression(expression)) => evaluate(&expression, Some(cfa)),
            Some(_) => None,
        };
        if row.register(X86_64::RA) == Some(RegisterRule::Undefined) {
            return Some(Step::Root);
        }
        Some(Step::Caller(Registers {
            pc: restore(X86_64::RA, None)?,
            sp: restore(X86_64::RSP, Some(cfa))?,
            fp: restore(X86_64::RBP, Some(frame.fp))?,
            exact: fde.is_signal_trampoline(),
        }))
    }
}

/// The value of an expression; `None` when it depends on unknown registers.
fn evaluate(
    expression: gimli::Expression<Bytes<'_>>,
    encoding: gimli::Encoding,
    initial: Option<u64>,
    value: impl Fn(Register) -> Option<u64>,
) -> Option<u64> {
    let mut evaluation = expression.evaluation(encoding);
    if let Some(initial) = initial {
        evaluation.set_initial_value(initial);
    }
    let mut result = evaluation.evaluate().unwrap();
    loop {
        result = match result {
            EvaluationResult::Complete => break,
            EvaluationResult::RequiresRegister { register, .. } => {
                evaluation.resume_with_register(Value::Generic(value(register)?)).unwrap()
            }
            EvaluationResult::RequiresMemory { address, .. } => {
                evaluation.resume_with_memory(Value::Generic(memory(address))).unwrap()
            }
            other => panic!("{other:?}"),
        };
    }
    match evaluation.as_result()[0].location {
        Location::Address { address } => Some(address),
        ref other => panic!("{other:?}"),
    }
}

/// All functions of smaller files, and about as many of larger ones.
fn check(path: &Path) {
    let binary = Binary::load(path);
    let oracle = Oracle::new(&binary);
    let stride = oracle.table.stats.functions.div_ceil(5000);
    let (every, sampled) = (oracle.compare(stride), oracle.sample(40));
    for outcome in [&every, &sampled] {
        assert!(outcome.different.is_empty(), "{}: {:#?}", path.display(), outcome.different);
        assert_eq!(outcome.ambiguous, 0);
    }
    assert!(every.same > 1000, "{}: {every:?}", path.display());
    assert!(every.unsupported * 200 < every.same, "{}: {every:?}", path.display());
}

#[test]
fn a_part_of_the_code_gets_another_rule_and_the_rest_keeps_its_own() {
    let rows = vec![(0x100, 1), (0x200, 2), (0x300, 3), (0x400, 0)];
    for (from, to) in
        [(0x210, 0x220), (0x200, 0x300), (0x180, 0x330), (0x100, 0x400), (0, 0x80), (0x3f0, 0x480), (0x250, 0x250)]
    {
        let before = Table::of(rows.clone());
        let mut table = before.clone();
        table.replace(from..to, 9);
        for at in (0..0x500).step_by(0x10) {
            let expected = if (from..to).contains(&at) { 9 } else { before.rule_at(at) };
            assert_eq!(table.rule_at(at), expected, "at {at:#x} of {from:#x}..{to:#x}");
        }
        assert!(table.rows().windows(2).all(|pair| pair[0].0 < pair[1].0 && pair[0].1 != pair[1].1), "{table:?}");
    }
}

#[test]
fn libc_is_unwound_as_gimli_does() {
    check(&mapped("libc.so"));
}

#[test]
fn the_cpp_runtime_is_unwound_as_gimli_does() {
    check(&file_named_by("gcc", &["-print-file-name=libstdc++.so.6"]));
}

#[test]
fn python_is_unwound_as_gimli_does() {
    // Some builds have the interpreter in a library.
    let program = "import sys
mapped = [line.split()[-1] for line in open('/proc/self/maps') if 'libpython' in line]
print((mapped + [sys.executable])[0])";
    check(&file_named_by("python3", &["-c", program]));
}

#[test]
fn rust_is_unwound_as_gimli_does() {
    check(&std::env::current_exe().unwrap());
}
