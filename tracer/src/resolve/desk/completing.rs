//! Completing stacks that met a file too early, as soon as it is known.

use std::{sync::Arc, time::Instant};

use tracer_ebpf::end;

use super::{
    super::{
        reader::Reading,
        resolved::Resolved,
        rests::{Code, Outcome, Rule},
    },
    Desk,
};
use crate::files::module::Module;

/// Most stacks that are unwound before others are heard.
const MAX_UNWOUND: usize = 1 << 10;

impl Desk {
    /// The mappings of a process were read, for its stacks to be unwound.
    pub(super) fn has_read(&mut self, reading: Reading) {
        let Reading { image, found } = reading;
        let code = found.map(|space| {
            let mappings = space.code();
            let code = mappings.map(|(mapping, module)| Code {
                range: mapping.start..mapping.end,
                offset: mapping.offset,
                number: module.and_then(|module| self.number(module)),
            });
            code.collect()
        });
        self.rests.has_read(image, code);
    }

    /// The number of a file, which is compiled if it is not known.
    fn number(&mut self, module: &Arc<Module>) -> Option<u32> {
        module.file()?;
        self.want(Arc::clone(module));
        self.numbers.get(module.identity()).copied()
    }

    /// Unwinds stacks that ended at files which are known by now.
    pub(super) fn unwind(&mut self) {
        for _ in 0..MAX_UNWOUND {
            let Some((cut, known)) = self.rests.next() else { break };
            let rule = |number: u32, code: &Code, offset: u64| match self.known.get(&number) {
                None => Rule::NotYet,
                Some(Some(module)) if module.file().is_none() => Rule::Never,
                Some(_) => Rule::At(self.unwinder.rule_at(number, code.offset, offset)),
            };
            let unprovable = || Outcome::Done(Vec::new(), end::UNKNOWN_FILE);
            let outcome = known.as_ref().map_or_else(unprovable, |known| cut.unwind(known, rule));
            match outcome {
                Outcome::Wants(number) => self.rests.put_back(cut, number),
                Outcome::Done(places, end) => {
                    let cut = match known {
                        Some(known) if end == end::NO_MAPPING => self.rests.again(cut, &known),
                        _ => Some(cut),
                    };
                    let Some(cut) = cut else { continue };
                    self.rests.done(&cut);
                    (self.tell)(Resolved::Unwound { stack: cut.stack, places, end });
                }
            }
        }
        let tell = &mut self.tell;
        self.rests.give_up(Instant::now(), |stack| tell(Resolved::stays_cut(stack)));
        while let Some(unread) = self.rests.next_unread() {
            // It ends after the desk.
            let _ = self.reader.send(unread);
        }
        let given = self.room.given();
        if given != self.given {
            self.given = given;
            self.unwinder.set_rests_done(given);
        }
    }
}
