//! Frames of single functions, looked up where they are needed: a table of the whole file would take longer.

use std::ops::Range;

use gimli::{BaseAddresses, EhFrame, LittleEndian};

use super::{
    Sections,
    entries::{Cies, Entries, Function},
    program::Machine,
};

/// Where the functions of a file are, and what its `.eh_frame` says about them.
pub struct Frames<'a> {
    section: EhFrame<super::program::Bytes<'a>>,
    bytes: &'a [u8],
    bases: BaseAddresses,
    /// Where each function begins and ends, and where its entry is in the section; in order.
    functions: Vec<(u64, u64, usize)>,
}

impl<'a> Frames<'a> {
    /// Reads where the functions are: time is proportional to the size of the section. What cannot be read is left out.
    pub fn of(sections: &Sections<'a>) -> Self {
        let (bytes, address) = sections.eh_frame.unwrap_or_default();
        let mut bases = BaseAddresses::default().set_text(sections.text_address).set_eh_frame(address);
        if let Some(got) = sections.got_address {
            bases = bases.set_got(got);
        }
        let mut section = EhFrame::new(bytes, LittleEndian);
        section.set_address_size(8);
        let mut cies = Cies::default();
        let mut functions: Vec<(u64, u64, usize)> = Entries::new(&section, bytes, &bases, &mut cies)
            .filter_map(|entry| {
                let Function { fde, at, .. } = entry.ok()?;
                let start = fde.initial_address();
                let end = start.checked_add(fde.len()).filter(|end| *end > start)?;
                Some((start, end, at))
            })
            .collect();
        functions.sort_unstable();
        Self { section, bytes, bases, functions }
    }

    /// The function that an address is in, as far as one entry describes it.
    pub fn function(&self, address: u64) -> Option<Range<u64>> {
        self.entry(address).map(|(start, end, _)| start..end)
    }

    fn entry(&self, address: u64) -> Option<(u64, u64, usize)> {
        let after = self.functions.partition_point(|(start, ..)| *start <= address);
        let function = *self.functions.get(after.checked_sub(1)?)?;
        (address < function.1).then_some(function)
    }

    /// The rule that holds at an address ([`tracer_ebpf::unwind::rule`]); `None` where nothing is said, or it cannot be read.
    pub fn rule_at(&self, address: u64) -> Option<u64> {
        let (start, end, at) = self.entry(address)?;
        let mut cies = Cies::default();
        let entry = Entries::new(&self.section, self.bytes, &self.bases, &mut cies).entry(at)?;
        let Function { fde, initial, .. } = entry.ok()?;
        let (initial, cie) = (initial?, fde.cie());
        let mut found = None;
        let instructions = fde.instructions(&self.section, &self.bases);
        Machine::default().run(&initial, cie, instructions, start..end, |from, state| {
            if from <= address {
                found = state.map(|state| state.rule(self.bytes, cie));
            }
        });
        found
    }
}
