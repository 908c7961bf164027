//! `.eh_frame` and `.debug_frame`: the tables that come of them are in order, and say what gimli's own reading says.

use gimli::{
    BaseAddresses, CfaRule, CieOrFde, DebugFrame, EhFrame, EndianSlice, FrameDescriptionEntry, LittleEndian,
    RegisterRule, UnwindContext, UnwindSection, UnwindTableRow, X86_64,
};
use tracer::unwind::{Packed, Reason, Registers, Sections, Table, compile, step};
use tracer_ebpf::unwind::{MAX_RULES, fp, kind};

use crate::input::take;

type Bytes<'a> = EndianSlice<'a, LittleEndian>;
type Fde<'a> = FrameDescriptionEntry<Bytes<'a>>;

/// Where the sections are.
const ADDRESS: u64 = 0x40_0000;
const TEXT: u64 = 0x1000;
const GOT: u64 = 0x60_0000;

/// The input is a byte that says which section it is, and the section.
pub fn run(data: &[u8]) {
    let ([debug], bytes) = take(data);
    let (mut sections, section) =
        (Sections { text_address: TEXT, got_address: Some(GOT), ..Sections::default() }, Some((bytes, ADDRESS)));
    if debug % 2 == 1 {
        sections.debug_frame = section;
    } else {
        sections.eh_frame = section;
    }
    let Ok(mut table) = compile(&sections) else { return };
    in_order(&table, bytes.len());
    let bases = BaseAddresses::default().set_text(TEXT).set_got(GOT).set_eh_frame(ADDRESS);
    if debug % 2 == 1 {
        let mut section = DebugFrame::new(bytes, LittleEndian);
        section.set_address_size(8);
        compare(&table, &section, &bases, true);
    } else {
        let mut section = EhFrame::new(bytes, LittleEndian);
        section.set_address_size(8);
        compare(&table, &section, &bases, false);
    }
    packed_alike(&table);
    let entry = table.rows().first().map_or(0, |row| row.0 ^ 0x10);
    table.mark_entry(entry..entry.saturating_add(0x20));
    in_order(&table, bytes.len());
    table.bridge(|gap| gap.start.is_multiple_of(2));
    in_order(&table, bytes.len());
}

/// Addresses go up, neighbours differ, the end is told; there are not more rows than the section has bytes for.
fn in_order(table: &Table, section: usize) {
    let rows = table.rows();
    assert!(rows.is_sorted_by(|a, b| a.0 < b.0));
    assert!(rows.last().is_none_or(|last| last.1 as u8 == kind::NONE));
    assert!(rows.len() <= section + 2, "{} rows of {section} bytes", rows.len());
    let stats = &table.stats;
    assert!(stats.functions + stats.unreadable + stats.dropped <= section / 4);
    assert!(stats.unsupported_bytes <= stats.code_bytes.saturating_add(16 * stats.functions as u64));
}

/// In the layout of the BPF programs the same rules hold, and none of them leads a step astray.
fn packed_alike(table: &Table) {
    let mut packed = Packed::default();
    let Ok(placed) = packed.add(table) else { return };
    let stack = |addr: u64| (!addr.is_multiple_of(3)).then_some(addr.wrapping_mul(0x9e37_79b9_7f4a_7c15));
    for (address, rule) in table.rows() {
        for near in [address.wrapping_sub(1), *address, address.wrapping_add(1)] {
            assert_eq!(packed.rule_at(&placed, near), table.rule_at(near), "{near:#x}");
        }
        for sp in [0, 0x7ff0_0000_0000, u64::MAX - 7] {
            step(*rule, Registers { pc: *address, sp, fp: sp ^ 0x1230, exact: true }, stack);
        }
    }
    if !table.rows().is_empty() {
        let changes = packed.changed();
        assert!(changes.pages.len() <= 16 && changes.rows.len() <= 192);
        assert!(changes.rules.is_none_or(|rules| rules.len() == MAX_RULES));
    }
}

/// Compares the rows of every function, if gimli reads all of them and none reaches into another.
fn compare<'a, S>(table: &Table, section: &S, bases: &BaseAddresses, tombstones: bool)
where
    S: UnwindSection<Bytes<'a>>,
    S::Offset: gimli::UnwindOffset<usize>,
{
    let mut functions: Vec<Fde<'a>> = Vec::new();
    let mut entries = section.entries(bases);
    while let Ok(Some(entry)) = entries.next() {
        if let CieOrFde::Fde(partial) = entry
            && let Ok(fde) = partial.parse(S::cie_from_offset)
            && fde.len() > 0
            && !(tombstones && fde.initial_address() == 0)
        {
            functions.push(fde);
        }
    }
    let stats = &table.stats;
    if stats.overlapping + stats.unreadable + stats.dropped > 0 || stats.functions != functions.len() {
        return;
    }
    let mut context = UnwindContext::new();
    for fde in &functions {
        let Ok(mut rows) = fde.rows(section, bases, &mut context) else { continue };
        let end = fde.end_address();
        while let Ok(Some(row)) = rows.next_row() {
            let row_end = row.end_address().min(end);
            if row.start_address() < row_end && row.start_address() >= fde.initial_address() {
                for address in [row.start_address(), row_end - 1] {
                    same(table.rule_at(address), address, fde, row);
                }
            }
        }
    }
}

/// Whether a rule says what gimli's row says. Rules that are unsupported may stand for anything.
fn same(rule: u64, address: u64, fde: &Fde<'_>, row: &UnwindTableRow<usize>) {
    if Reason::of(rule).is_some() {
        return;
    }
    let (kind, fp_kind) = (rule as u8, (rule >> 8) as u8);
    let (fp_offset, offset) = (i64::from((rule >> 16) as i16), i64::from((rule >> 32) as i32));
    let root = row.register(X86_64::RA) == Some(RegisterRule::Undefined);
    assert_eq!(kind == kind::STOP, root, "{address:#x}: rule {rule:#x}, gimli {row:?}");
    if root {
        return;
    }
    let is_exact = kind == kind::SIGNAL || fp_kind & fp::EXACT != 0;
    assert_eq!(is_exact, fde.is_signal_trampoline(), "{address:#x}: rule {rule:#x}, gimli {row:?}");
    if kind == kind::SIGNAL {
        return;
    }
    assert_eq!(row.register(X86_64::RA), Some(RegisterRule::Offset(-8)), "{address:#x}: rule {rule:#x}");
    let frame = match row.cfa() {
        CfaRule::RegisterAndOffset { register: X86_64::RSP, offset: at } => kind == kind::SP && offset == *at,
        CfaRule::RegisterAndOffset { register: X86_64::RBP, offset: at } => kind == kind::FP && offset == *at,
        CfaRule::RegisterAndOffset { .. } => false,
        CfaRule::Expression(_) => [kind::SP, kind::FP, kind::PLT, kind::DEREF_FP, kind::DEREF_SP].contains(&kind),
    };
    assert!(frame, "{address:#x}: rule {rule:#x}, gimli {row:?}");
    let fp_kind = fp_kind & !fp::EXACT;
    let frame_pointer = match row.register(X86_64::RBP) {
        None | Some(RegisterRule::Undefined | RegisterRule::SameValue) => fp_kind == fp::SAME,
        Some(RegisterRule::Offset(at)) => fp_kind == fp::AT_CFA && fp_offset == at,
        Some(RegisterRule::Expression(_)) => fp_kind == fp::AT_FP,
        Some(_) => false,
    };
    assert!(frame_pointer, "{address:#x}: rule {rule:#x}, gimli {row:?}");
}
