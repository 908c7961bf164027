//! Tests of the compiler: every kind of rule from assembled code, what is left out, and hostile sections.

use tracer_ebpf::unwind::{fp, kind, rule};

use super::*;
use crate::unwind::{
    Packed, Reason,
    fixture::{Binary, Frames, Random, USUAL, assemble, mapped},
};

/// One function for each kind; a label stands where a rule is looked up.
const EVERY_KIND: &str = r#"
.macro fun name
    \name: .cfi_startproc
    nop
.endm
.macro end
    nop
    .cfi_endproc
    .skip 16, 0x90
.endm
.text
fun plain
    .cfi_def_cfa_offset 32
    plain_grown: nop
    .cfi_escape 0x2e, 0x10
    plain_arguments: nop
end
fun pushed
    .cfi_def_cfa_offset 16
    .cfi_offset rbp, -16
    pushed_saved: nop
    .cfi_def_cfa_register rbp
    pushed_set: nop
    .cfi_remember_state
    .cfi_restore rbp
    .cfi_def_cfa rsp, 8
    pushed_popped: nop
    .cfi_restore_state
    pushed_again: nop
end
fun realigned
    .cfi_escape 0x0f, 3, 0x76, 0x78, 6
    .cfi_escape 0x10, 6, 2, 0x76, 0
    realigned_set: nop
    .cfi_escape 0x0f, 5, 0x76, 0x70, 6, 0x23, 8
    realigned_above: nop
    .cfi_escape 0x0e, 48
    realigned_pushed: nop
end
fun stashed
    .cfi_escape 0x0f, 6, 0x77, 0xb8, 0, 6, 0x23, 8
    .cfi_offset rbp, -24
    stashed_set: nop
end
fun stub
    .cfi_escape 0x0f, 11, 0x77, 8, 0x80, 0, 0x3f, 0x1a, 0x3b, 0x2a, 0x33, 0x24, 0x22
    stub_set: nop
end
fun outermost
    .cfi_undefined rip
    outermost_set: nop
end
fun trampoline
    .cfi_signal_frame
    .cfi_escape 0x0f, 4, 0x77, 0xa0, 1, 6
    .cfi_escape 0x10, 6, 3, 0x77, 0xf8, 0
    .cfi_escape 0x10, 16, 3, 0x77, 0xa8, 1
    trampoline_set: nop
end
fun other_trampoline
    .cfi_signal_frame
    .cfi_def_cfa_offset 16
    .cfi_offset rbp, -16
    other_trampoline_saved: nop
    .cfi_escape 0x10, 16, 3, 0x77, 0xa8, 1
    other_trampoline_elsewhere: nop
end
fun return_address
    .cfi_offset rip, -16
    return_address_deep: nop
    .cfi_register rip, rdi
    return_address_register: nop
end
fun frame_pointer
    .cfi_register rbp, r8
    frame_pointer_register: nop
    .cfi_escape 0x10, 6, 2, 0x77, 0
    frame_pointer_expression: nop
end
fun frame
    .cfi_def_cfa r10, 0
    frame_register: nop
    .cfi_escape 0x0f, 1, 0x30
    frame_expression: nop
    .cfi_def_cfa rsp, 0x7fffffff
    frame_large: nop
    .cfi_def_cfa_offset 0x80000000
    frame_too_large: nop
    .cfi_def_cfa rsp, 8
    .cfi_offset rbp, -32768
    frame_far: nop
    .cfi_offset rbp, -32776
    frame_too_far: nop
    .cfi_escape 0x0f, 5, 0x76, 0x80, 0x80, 0x02, 6
    frame_deref_too_far: nop
end
fun unknown_instruction
    .cfi_def_cfa_offset 24
    unknown_instruction_before: nop
    .cfi_escape 0x3f
    unknown_instruction_after: nop
end
fun unmatched
    .cfi_escape 0x0b
end
fun last
    .cfi_endproc
    end_of_last: nop
"#;

fn unsupported_rule(reason: Reason) -> u64 {
    rule(kind::UNSUPPORTED, 0, 0, reason as i32)
}

fn check_every_kind(binary: &Binary) {
    let table = binary.table();
    let unsupported = unsupported_rule;
    let sp = |offset| rule(kind::SP, fp::SAME, 0, offset);
    let halves = |before: i16, after: i16| i32::from(before as u16) | i32::from(after) << 16;
    for (label, expected) in [
        ("plain", sp(8)),
        ("plain_grown", sp(32)),
        ("plain_arguments", sp(32)),
        ("pushed_saved", rule(kind::SP, fp::AT_CFA, -16, 16)),
        ("pushed_set", rule(kind::FP, fp::AT_CFA, -16, 16)),
        ("pushed_popped", sp(8)),
        ("pushed_again", rule(kind::FP, fp::AT_CFA, -16, 16)),
        ("realigned_set", rule(kind::DEREF_FP, fp::AT_FP, 0, halves(-8, 0))),
        ("realigned_above", rule(kind::DEREF_FP, fp::AT_FP, 0, halves(-16, 8))),
        ("realigned_pushed", rule(kind::DEREF_FP, fp::AT_FP, 0, halves(-16, 8))),
        ("stashed_set", rule(kind::DEREF_SP, fp::AT_CFA, -24, halves(56, 8))),
        ("stub_set", rule(kind::PLT, fp::SAME, 0, 11)),
        ("outermost_set", rule(kind::STOP, 0, 0, 0)),
        ("trampoline_set", rule(kind::SIGNAL, 0, 0, 0)),
        ("other_trampoline", rule(kind::SP, fp::EXACT, 0, 8)),
        ("other_trampoline_saved", rule(kind::SP, fp::AT_CFA | fp::EXACT, -16, 16)),
        ("other_trampoline_elsewhere", unsupported(Reason::SignalFrame)),
        ("return_address_deep", unsupported(Reason::ReturnAddress)),
        ("return_address_register", unsupported(Reason::ReturnAddress)),
        ("frame_pointer_register", unsupported(Reason::FramePointer)),
        ("frame_pointer_expression", unsupported(Reason::FramePointer)),
        ("frame_register", unsupported(Reason::CfaRegister)),
        ("frame_expression", unsupported(Reason::CfaExpression)),
        ("frame_large", sp(i32::MAX)),
        ("frame_too_large", unsupported(Reason::Offset)),
        ("frame_far", rule(kind::SP, fp::AT_CFA, i16::MIN, 8)),
        ("frame_too_far", unsupported(Reason::Offset)),
        ("frame_deref_too_far", unsupported(Reason::Offset)),
        ("unknown_instruction", sp(8)),
        ("unknown_instruction_before", sp(24)),
        ("unknown_instruction_after", unsupported(Reason::Malformed)),
        ("unmatched", sp(8)),
        ("last", sp(8)),
        ("end_of_last", 0),
    ] {
        let found = table.rule_at(binary.address(label));
        assert_eq!(found, expected, "{label}: {found:#x}, expected {expected:#x}");
    }
    // The address after a label still belongs to it; the byte before a function does not.
    assert_eq!(table.rule_at(binary.address("unmatched") + 1), unsupported(Reason::Malformed));
    assert_eq!(table.rule_at(binary.address("last") - 1), 0);
    assert_eq!(table.rule_at(binary.address("plain") - 1), 0);
}

#[test]
fn every_kind_of_rule_is_recognized() {
    check_every_kind(&assemble(EVERY_KIND));
}

/// A program whose start brings `.eh_frame`, and whose own functions have `.debug_frame` only.
#[test]
fn debug_frame_holds_for_what_eh_frame_leaves_out() {
    let text = |sections: &str, offset: u32, more: &str| {
        assemble(&format!(
            "{sections}\n.text\nfirst: .cfi_startproc\nnop\n.cfi_def_cfa_offset {offset}\nset: nop\n.cfi_endproc\n.skip 64, 0x90\n{more}"
        ))
    };
    let second = "second: .cfi_startproc\nnop\n.cfi_def_cfa_offset 48\nchanged: nop\n.cfi_endproc";
    let (loaded, beside) = (text("", 32, ""), text(".cfi_sections .debug_frame", 64, second));
    let sections = Sections { debug_frame: beside.section(".debug_frame"), ..loaded.sections() };
    let table = compile(&sections).unwrap();
    assert_eq!(loaded.address("set"), beside.address("set"));
    assert_eq!(table.rule_at(loaded.address("set")), rule(kind::SP, fp::SAME, 0, 32));
    assert_eq!(table.rule_at(beside.address("changed")), rule(kind::SP, fp::SAME, 0, 48));
    assert_eq!(table.stats.functions, 3);
}

#[test]
fn debug_frame_says_the_same() {
    let binary = assemble(&format!(".cfi_sections .debug_frame\n{EVERY_KIND}"));
    assert!(binary.sections().eh_frame.is_none_or(|(bytes, _)| bytes.is_empty()));
    check_every_kind(&binary);
}

#[test]
fn statistics_count_what_is_there() {
    let binary = assemble(EVERY_KIND);
    let stats = binary.table().stats;
    assert_eq!((stats.functions, stats.unreadable, stats.overlapping, stats.dropped), (14, 0, 0, 0));
    // From the first label to the last, without the gaps of 16 bytes.
    assert_eq!(stats.code_bytes, binary.address("end_of_last") - binary.address("plain") - 13 * 16);
    let counted: Vec<(Reason, usize)> = stats.unsupported().collect();
    let expected = [
        (Reason::ReturnAddress, 1),
        (Reason::FramePointer, 1),
        (Reason::CfaRegister, 1),
        (Reason::CfaExpression, 1),
        (Reason::Offset, 2),
        (Reason::SignalFrame, 1),
        (Reason::Malformed, 2),
    ];
    assert_eq!(counted, expected);
    assert_eq!(stats.unsupported_rows(), 9);
    assert!((1..stats.code_bytes).contains(&stats.unsupported_bytes));
}

#[test]
fn short_gaps_are_bridged_where_they_are_padding_and_equal_neighbours_merged() {
    let frames = Frames::default().cie(USUAL).fde(0x1000, 0x11, &[]).fde(0x1020, 0x10, &[]).fde(0x1040, 0x10, &[]);
    let mut table = compile(&frames.sections()).unwrap();
    let sp = rule(kind::SP, 0, 0, 8);
    let exact = [(0x1000, sp), (0x1011, 0), (0x1020, sp), (0x1030, 0), (0x1040, sp), (0x1050, 0)];
    assert_eq!(table.rows(), exact);
    table.bridge(|_| false);
    assert_eq!(table.rows(), exact, "a function of somebody's own may be there");
    let mut asked = Vec::new();
    table.bridge(|gap| {
        asked.push(gap);
        true
    });
    assert_eq!(asked, [Range { start: 0x1011, end: 0x1020 }]);
    assert_eq!(table.rows(), [(0x1000, sp), (0x1030, 0), (0x1040, sp), (0x1050, 0)]);
}

#[test]
fn where_functions_overlap_the_later_start_holds_and_of_equal_ones_the_first() {
    let frames = Frames::default()
        .cie(USUAL)
        .fde(0x2000, 0x100, &[0x0e, 32])
        .fde(0x1000, 0x100, &[0x0e, 16])
        .fde(0x1080, 0x100, &[0x0e, 24])
        .fde(0x1000, 0x200, &[0x0e, 48]);
    let table = compile(&frames.sections()).unwrap();
    let sp = |offset| rule(kind::SP, 0, 0, offset);
    assert_eq!(table.rows(), [(0x1000, sp(16)), (0x1080, sp(24)), (0x1180, 0), (0x2000, sp(32)), (0x2100, 0)]);
    assert_eq!((table.stats.functions, table.stats.overlapping), (3, 2));
}

#[test]
fn what_cannot_be_read_does_not_hide_the_rest() {
    let frames = Frames::default()
        .cie(USUAL)
        .fde(0x1000, 0x10, &[])
        .entry(&[]) // an end mark between two objects
        .fde(0x2000, 0x10, &[])
        .entry(&[0, 0, 0, 0, 9]) // of an unknown version
        .entry(&[1, 2]) // too short
        .entry(&[0xff; 32]) // points before the section
        .fde(u64::MAX - 4, 0x10, &[]) // beyond all addresses
        .fde(0x4000, 0, &[]) // empty
        .fde(0x3000, 0x10, &[]);
    let table = compile(&frames.sections()).unwrap();
    let starts: Vec<u64> = table.rows().iter().filter(|row| row.1 != 0).map(|row| row.0).collect();
    assert_eq!(starts, [0x1000, 0x2000, 0x3000]);
    assert_eq!(table.stats.unreadable, 3);
}

#[test]
fn locations_may_be_set_but_never_go_back() {
    let set = |address: u64| [&[1], address.to_le_bytes().as_slice(), &[0x0e, 16]].concat();
    let frames = Frames::default().cie(USUAL).fde(0x1000, 0x10, &set(0x1008)).fde(0x2000, 0x10, &set(0x1fff));
    let table = compile(&frames.sections()).unwrap();
    let sp = |offset| rule(kind::SP, 0, 0, offset);
    let malformed = unsupported_rule(Reason::Malformed);
    assert_eq!(table.rows(), [(0x1000, sp(8)), (0x1008, sp(16)), (0x1010, 0), (0x2000, malformed), (0x2010, 0)]);
}

#[test]
fn errors_say_what_is_wrong() {
    let check = |sections: Sections<'_>, expected| assert_eq!(compile(&sections), Err(expected));
    check(Sections::default(), UnwindError::NoSection);
    check(Sections { eh_frame: Some((&[], 0)), ..Sections::default() }, UnwindError::Empty);
    check(Frames::default().cie(USUAL).sections(), UnwindError::Empty);
    let broken = Frames::default().cie(&[]).entry(&[9; 20]).entry(&[8; 20]);
    check(broken.sections(), UnwindError::Unreadable { entries: 2 });
}

/// One entry of nonsense leaves all others, and what it would have hidden is open to others.
#[test]
#[expect(clippy::single_range_in_vec_init, reason = "ranges are what is meant")]
fn what_is_described_outside_of_the_code_is_left_out() {
    let far = 0x40_1130_0000_0000;
    let frames = Frames::default().cie(USUAL).fde(0x1000, 0x10, &[]).fde(far, 0x10, &[]).fde(0x1ff8, 0x10, &[]);
    let code = [0x1000..0x2000];
    let given = Sections { code: Some(&code), ..frames.sections() };
    let table = compile(&given).unwrap();
    let usual = rule(kind::SP, 0, 0, 8);
    assert_eq!(table.rows(), [(0x1000, usual), (0x1010, 0), (0x1ff8, usual), (0x2000, 0)], "what begins in it counts");
    assert_eq!((table.stats.functions, table.stats.outside), (2, 1));
    assert!(table.stats.problem().is_some_and(|problem| problem.starts_with("1 entries")));
    let ranges = [0x800..0x900, 0x1000..0x1010, 0x1ff0..0x1ff8, 0x1ff9..0x3000];
    let parts = compile(&Sections { code: Some(&ranges), ..frames.sections() }).unwrap();
    assert_eq!((parts.rows(), parts.stats.outside), (&[(0x1000, usual), (0x1010, 0)][..], 2), "between two of them");
    assert!(Packed::default().add(&table).is_ok());
    assert!(Packed::default().add(&compile(&frames.sections()).unwrap()).is_err(), "what it is about");
    let all = Frames::default().cie(USUAL).fde(far, 0x10, &[]);
    let table = compile(&Sections { code: Some(&code), ..all.sections() }).unwrap();
    assert_eq!((table.rows().len(), table.stats.outside), (0, 1));
}

#[test]
fn a_function_with_too_many_rows_ends_unsupported() {
    // 0x41: one byte on; then 16 and 24 by turns.
    let rows: Vec<u8> =
        (0..70_000).flat_map(|row: u32| [0x41, 0x0e, if row.is_multiple_of(2) { 16 } else { 24 }]).collect();
    let frames = Frames::default().cie(USUAL).fde(0x1000, 80_000, &rows).fde(0x10_0000, 0x10, &[]);
    let table = compile(&frames.sections()).unwrap();
    assert_eq!(table.rule_at(0x1000 + 65_535), rule(kind::SP, 0, 0, 16));
    assert_eq!(table.rule_at(0x1000 + 65_536), unsupported_rule(Reason::TooLong));
    assert_eq!(table.rule_at(0x1000 + 79_999), unsupported_rule(Reason::TooLong));
    assert_eq!(table.rule_at(0x10_0000), rule(kind::SP, 0, 0, 8));
}

#[test]
fn common_parts_that_would_take_quadratic_time_are_refused() {
    let functions = 20_000;
    let mut frames = Frames::default().cie(&[0; 200_000]);
    for function in 0..functions {
        frames = frames.fde(0x1000 * (function + 1), 0x10, &[]);
    }
    assert_eq!(compile(&frames.sections()), Err(UnwindError::Unreadable { entries: functions as usize }));
}

/// Compiles what may be anything; the result is bounded by the size of the input and can be packed or is refused.
fn check_hostile(bytes: &[u8], address: u64) {
    for debug in [false, true] {
        let section = Some((bytes, address));
        let sections = if debug {
            Sections { debug_frame: section, ..Sections::default() }
        } else {
            Sections { eh_frame: section, ..Sections::default() }
        };
        let Ok(table) = compile(&sections) else { continue };
        assert!(table.rows().len() <= bytes.len());
        assert!(table.rows().is_sorted_by(|a, b| a.0 < b.0 && a.1 != b.1));
        let mut packed = Packed::default();
        let Ok(placed) = packed.add(&table) else { continue };
        for &(address, rule) in table.rows().iter().take(50) {
            assert_eq!(packed.rule_at(&placed, address), rule);
        }
    }
}

#[test]
fn hostile_sections_do_no_harm() {
    let libc = Binary::load(&mapped("libc.so"));
    let (bytes, address) = libc.section(".eh_frame").unwrap();
    let bytes = &bytes[..4096];
    check_hostile(bytes, address);
    for length in 0..bytes.len() {
        check_hostile(&bytes[..length], address);
    }
    let mut random = Random(1);
    for _ in 0..4000 {
        let mut bytes = bytes.to_vec();
        for _ in 0..=random.below(8) {
            let at = random.below(bytes.len());
            bytes[at] = match random.below(4) {
                0 => 0,
                1 => 0xff,
                2 => bytes[at] ^ 1 << random.below(8),
                _ => random.next() as u8,
            };
        }
        check_hostile(&bytes, address);
    }
    for _ in 0..1000 {
        let bytes: Vec<u8> = (0..random.below(512)).map(|_| random.next() as u8).collect();
        check_hostile(&bytes, random.next());
        // The same as instructions, so that they are run.
        let frames = Frames::default().cie(USUAL).fde(0x1000, 0x1_0000, &bytes).fde(0x10_0000, 0x1_0000, &bytes);
        check_hostile(&frames.bytes, 0);
    }
}
