//! One file's call frame information, compiled.

use std::ops::Range;

use gimli::{BaseAddresses, DebugFrame, EhFrame, LittleEndian, UnwindSection};
use thiserror::Error;

use super::{
    entries::{Cies, Entries, Function},
    program::{Bytes, Machine, State},
    rule::{Reason, unsupported},
    table::{Collector, Table},
};

/// What a file says about unwinding: sections as bytes, and addresses as the file was linked for.
#[derive(Clone, Copy, Debug, Default)]
pub struct Sections<'a> {
    /// `.eh_frame` and its address.
    pub eh_frame: Option<(&'a [u8], u64)>,
    /// `.debug_frame` and its address. It holds for what `.eh_frame` says nothing of.
    pub debug_frame: Option<(&'a [u8], u64)>,
    /// Address of `.text`, which pointers may be relative to.
    pub text_address: u64,
    /// Address of `.got`, which pointers may be relative to.
    pub got_address: Option<u64>,
    /// Where the file has code: ranges that go up and share nothing; `None`: anywhere.
    pub code: Option<&'a [Range<u64>]>,
}

/// Why there is no table.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum UnwindError {
    /// Neither section is there.
    #[error("it has no unwind information (neither .eh_frame nor .debug_frame)")]
    NoSection,
    /// The sections hold nothing.
    #[error("its unwind information describes no function")]
    Empty,
    /// What the sections hold cannot be read.
    #[error("none of the {entries} entries of its unwind information can be read: the file may be damaged")]
    Unreadable {
        /// Entries that were tried.
        entries: usize,
    },
}

/// Compiles one file's table. Time and memory are bounded by multiples of the sections' sizes. What cannot be read or
/// expressed is left out or marked [`UNSUPPORTED`](tracer_ebpf::unwind::kind::UNSUPPORTED), and counted in
/// [`Table::stats`]; the rest stands.
///
/// # Errors
/// Not one function could be read.
pub fn compile(sections: &Sections<'_>) -> Result<Table, UnwindError> {
    if sections.eh_frame.is_none() && sections.debug_frame.is_none() {
        return Err(UnwindError::NoSection);
    }
    let mut bases = BaseAddresses::default().set_text(sections.text_address);
    if let Some(got) = sections.got_address {
        bases = bases.set_got(got);
    }
    // The code that holds an address ends there.
    let code_end = |address: u64| {
        let Some(code) = sections.code else { return Some(u64::MAX) };
        let at = code.partition_point(|code| code.end <= address);
        code.get(at).filter(|code| code.start <= address).map(|code| code.end)
    };
    let room_for = |section: Option<(&[u8], u64)>| Collector::of(section.map_or(0, |(bytes, _)| bytes.len()));
    let mut loaded = room_for(sections.eh_frame);
    if let Some((bytes, address)) = sections.eh_frame {
        let mut section = EhFrame::new(bytes, LittleEndian);
        section.set_address_size(8);
        collect(&section, bytes, &bases.clone().set_eh_frame(address), false, code_end, &mut loaded);
    }
    let mut beside = room_for(sections.debug_frame);
    if let Some((bytes, address)) = sections.debug_frame {
        let mut section = DebugFrame::new(bytes, LittleEndian);
        section.set_address_size(8);
        collect(&section, bytes, &bases.set_eh_frame(address), true, code_end, &mut beside);
    }
    match (loaded.is_empty(), beside.is_empty(), loaded.unreadable() + beside.unreadable()) {
        // That it is of no use is told with what is made of the code.
        (true, true, _) if loaded.outside() + beside.outside() > 0 => Ok(joined(loaded, beside)),
        (true, true, 0) => Err(UnwindError::Empty),
        (true, true, entries) => Err(UnwindError::Unreadable { entries }),
        (true, false, _) if loaded.outside() == 0 => Ok(beside.finish()),
        (false, true, _) if beside.outside() == 0 => Ok(loaded.finish()),
        _ => Ok(joined(loaded, beside)),
    }
}

/// The table of both sections.
fn joined(loaded: Collector, beside: Collector) -> Table {
    let mut table = loaded.finish();
    table.join(&beside.finish());
    table
}

/// Takes in every function that the section describes. `tombstones`: whether functions that the linker dropped are still
/// in it, at addresses that are none (.eh_frame is edited by linkers, .debug_frame is not).
fn collect<'a, S: UnwindSection<Bytes<'a>>>(
    section: &S,
    bytes: &'a [u8],
    bases: &BaseAddresses,
    tombstones: bool,
    code_end: impl Fn(u64) -> Option<u64>,
    collector: &mut Collector,
) {
    let mut cies = Cies::default();
    let mut machine = Machine::default();
    for entry in Entries::new(section, bytes, bases, &mut cies) {
        let Ok(Function { fde, initial, .. }) = entry else {
            collector.count_unreadable();
            continue;
        };
        let start = fde.initial_address();
        let Some(end) = start.checked_add(fde.len()) else {
            collector.count_unreadable();
            continue;
        };
        if start == end || (tombstones && start == 0) {
            continue;
        }
        let Some(code_end) = code_end(start) else {
            collector.count_outside();
            continue;
        };
        // What goes on where no code is holds as far as there is some.
        let end = end.min(code_end);
        let Some(mut rows) = collector.function(start, end) else { continue };
        let Some(initial) = initial else {
            rows.push(start, unsupported(Reason::Malformed));
            continue;
        };
        let cie = fde.cie();
        let rule = |state: &State| state.rule(bytes, cie);
        machine.run(&initial, cie, fde.instructions(section, bases), start..end, |address, state| {
            rows.push(address, state.map_or_else(|| unsupported(Reason::Malformed), rule))
        });
    }
}

#[cfg(test)]
mod tests;
