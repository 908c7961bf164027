//! Takes files for code of which nothing is known, and compares the rules that come from it with what their unwind information says.

use std::{fs::File, io::Write as _, path::Path};

use iced_x86::{Decoder, DecoderOptions, FlowControl, Instruction};
use tracer_ebpf::unwind::{fp, rule};

use super::*;
use crate::{
    files::elf::Bytes,
    unwind::{Reason, Sections, compile, fixture::build},
    unwinder::tests::rule_of,
};

/// What came of a comparison: of bytes of code, or of calls.
#[derive(Debug, Default)]
struct Outcome {
    compared: u64,
    equal: u64,
    wrong: u64,
    none: u64,
}

impl Outcome {
    fn add(&mut self, count: u64, agree: Option<bool>) {
        self.compared += count;
        match agree {
            Some(true) => self.equal += count,
            Some(false) => self.wrong += count,
            None => self.none += count,
        }
    }
}

/// Whether a rule leads to the same caller as the true one; `None` where there is none, or one goes by the stack pointer and the other by
/// the frame pointer.
fn agrees(given: u64, truth: u64) -> Option<bool> {
    if given as u8 != truth as u8 {
        return None;
    }
    // What was saved may be in its register still.
    let is_saved = |rule: u64| (rule >> 8) as u8 == fp::AT_CFA;
    let same_place = is_saved(given) != is_saved(truth) || (given >> 16) as u16 == (truth >> 16) as u16;
    Some(given >> 32 == truth >> 32 && same_place)
}

fn is_compared(truth: u64) -> bool {
    [kind::SP, kind::FP].contains(&(truth as u8)) && Reason::of(truth).is_none()
}

/// All bytes of a file, its calls, and those of them whose rule is wrong.
fn compare(path: &Path) -> (Outcome, Outcome, Vec<u64>) {
    let file = File::open(path).unwrap();
    let bytes = Bytes::new(&file);
    let elf = Elf::parse(&bytes).unwrap();
    let sections = Sections {
        eh_frame: elf.section_at(".eh_frame", 64 << 20),
        text_address: elf.section_at(".text", 0).map_or(0, |(_, address)| address),
        ..Sections::default()
    };
    let truth = compile(&sections).unwrap();
    let mut given = Table::default();
    let code = code(&elf, &mut given);
    describe(&elf, code, &mut given);
    let (mut all, mut calls, mut wrong) = (Outcome::default(), Outcome::default(), Vec::new());
    for code in elf.code() {
        let bytes = elf.loaded_range(code.address, code.size).unwrap();
        let mut decoder = Decoder::with_ip(64, bytes, code.address, DecoderOptions::NONE);
        let mut instruction = Instruction::default();
        while decoder.can_decode() {
            decoder.decode_out(&mut instruction);
            let (given, truth) = (given.rule_at(instruction.ip()), truth.rule_at(instruction.ip()));
            if !is_compared(truth) {
                continue;
            }
            all.add(instruction.len() as u64, agrees(given, truth));
            if [FlowControl::Call, FlowControl::IndirectCall].contains(&instruction.flow_control()) {
                calls.add(1, agrees(given, truth));
                if agrees(given, truth) == Some(false) {
                    wrong.push(instruction.ip());
                }
            }
        }
    }
    (all, calls, wrong)
}

/// At calls, which is where callers are, there is nothing to tell them apart; between them it is the unwind information that is
/// wrong in some functions in assembler (`__mpn_mul_1` pushes two registers that it says nothing of).
#[test]
fn rules_from_code_are_those_of_unwind_information() {
    let mut files = 0;
    for name in ["libc.so.6", "libm.so.6", "libgmp.so.10", "libsqlite3.so.0", "libcrypto.so.3"] {
        let path = Path::new("/usr/lib/x86_64-linux-gnu").join(name);
        if !path.exists() {
            writeln!(std::io::stderr(), "{name} is not installed: not compared").unwrap();
            continue;
        }
        files += 1;
        let (all, calls, wrong) = compare(&path);
        assert!(wrong.is_empty(), "{name}: {wrong:x?}");
        assert!(all.wrong * 1000 < all.compared, "{name}: {all:?}");
        assert!(
            all.equal * 10 > all.compared * 8 && calls.equal * 10 > calls.compared * 8,
            "{name}: {all:?}, {calls:?}"
        );
    }
    assert!(files > 0);
}

/// Between functions that are described, in assembler: a small one that is not, and padding.
#[test]
fn what_is_between_functions_has_their_rule_only_if_it_is_padding() {
    let described = |name: &str, offset: u32| {
        format!("{name}: .cfi_startproc\nnop\n.cfi_def_cfa_offset {offset}\n{name}_last: nop\n.cfi_endproc\n")
    };
    let text = [
        ".text\n".to_owned(),
        described("first", 32),
        "own: sub moved(%rip), %rsp\nown_end: ret\n".to_owned(),
        described("second", 48),
        "padding: .nops 9\nint3\n".to_owned(),
        described("third", 64),
        ".data\nmoved: .quad 24\n.section .note.GNU-stack, \"\", @progbits\n".to_owned(),
    ];
    let folder = tempfile::tempdir().unwrap();
    let output = folder.path().join("between.so");
    build(&folder.path().join("between.s"), &text.concat(), &["-shared", "-nostdlib"], &output);
    let rule_at = |symbol| rule_of(&output, symbol);
    let sp = |offset| rule(kind::SP, fp::SAME, 0, offset);
    assert_eq!([rule_at("first_last"), rule_at("own"), rule_at("own_end")], [sp(32), 0, 0]);
    assert_eq!([rule_at("second_last"), rule_at("padding"), rule_at("third")], [sp(48), sp(48), sp(8)]);
}

/// What follows code that is too much is looked at still.
#[test]
fn code_that_is_too_much_hides_nothing_else() {
    let text = format!(
        ".text\nfirst: .cfi_startproc\nnop\n.cfi_endproc\n.skip {}, 0x90\nsecond: .cfi_startproc\nnop\n.cfi_endproc\n\
         .balign 32, 0x90\n.globl small\n.type small, @function\nsmall: push %rbx\nmov %rdi, %rbx\n\
         inside: call *%rbx\npop %rbx\nret\n.size small, . - small\n.section .note.GNU-stack, \"\", @progbits\n",
        MAX_CODE + 16
    );
    let folder = tempfile::tempdir().unwrap();
    let output = folder.path().join("large.so");
    build(&folder.path().join("large.s"), &text, &["-shared", "-nostdlib"], &output);
    assert_eq!(rule_of(&output, "inside"), rule(kind::SP, fp::SAME, 0, 16));
    let (_, table) = super::super::compile_file(&File::open(&output).unwrap()).unwrap();
    assert!(table.stats.unseen_bytes > MAX_CODE as u64 && table.stats.problem().is_some());
}

/// As some compilers write it: unwind information that is of no place in the file. The code that it was meant for has rules of its own.
#[test]
fn unwind_information_of_other_addresses_hides_no_code() {
    let text = "\
        .text\n.globl small\n.type small, @function\nsmall: push %rbx\nmov %rdi, %rbx\n\
        .globl inside\ninside: call *%rbx\npop %rbx\nret\n.size small, . - small\n\
        .section .debug_frame, \"\", @progbits\n.Lcie: .long 1f - 0f\n0: .long 0xffffffff\n.byte 1, 0\n.uleb128 1\n.sleb128 -8\n\
        .byte 16, 0x0c, 7, 8, 0x90, 1\n.balign 8\n1: .long 3f - 2f\n2: .long .Lcie\n.quad 0x40113000000000, 16\n.balign 8\n3:\n\
        .section .note.GNU-stack, \"\", @progbits\n";
    let folder = tempfile::tempdir().unwrap();
    let output = folder.path().join("elsewhere.so");
    build(&folder.path().join("elsewhere.s"), text, &["-shared", "-nostdlib"], &output);
    assert_eq!(rule_of(&output, "inside"), rule(kind::SP, fp::SAME, 0, 16));
    let (_, table) = super::super::compile_file(&File::open(&output).unwrap()).unwrap();
    assert!(crate::unwind::Packed::default().add(&table).is_ok());
    assert_eq!(table.stats.outside, 1);
}

/// A library without sections, as they may be taken away.
#[test]
fn code_without_sections_is_found() {
    let mut bytes = std::fs::read("/usr/lib/x86_64-linux-gnu/libm.so.6").unwrap();
    // Offset, number and size of section headers.
    bytes[40..48].fill(0);
    bytes[60..64].fill(0);
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(&bytes).unwrap();
    let (segments, table) = super::super::compile_file(&file).unwrap();
    let covered = super::super::code_bytes(&segments) - super::super::uncovered_bytes(&segments, &table);
    assert!(covered * 2 > super::super::code_bytes(&segments), "{covered}");
    assert_eq!(table.stats.synthesized_bytes, covered);
}
