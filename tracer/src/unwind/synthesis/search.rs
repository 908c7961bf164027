//! Which functions there are: first those that are certain, then what may be some.

use std::ops::Range;

use hashbrown::{HashMap, HashSet};
use tracer_ebpf::unwind::{fp, kind, rule};

use super::{
    budget::Budget,
    callers::Callers,
    code::{Flow, Reader, Text, Undescribed, mark},
    effects::Effects,
    function::Program,
    parts::{Function, Parts},
    returns::Returns,
};

/// Most bytes of code that are looked at in one file.
pub const MAX_CODE: usize = 8 << 20;
/// Steps for a byte of code, and besides. Usual are one or less for a byte.
const STEPS: (u64, u64) = (4, 1 << 16);
/// How often functions are looked for in what is left.
const TURNS: usize = 6;
/// Returns that take arguments off the stack, from which on the file is one in which functions do that. In C there is none.
const POPPING: usize = 3;

/// Nothing was said of a byte.
const FREE: u16 = 0;
/// Different things were.
const CONTRADICTED: u16 = 1;
/// It is code, and how to unwind there is not known.
const UNKNOWN: u16 = 2;

/// Rules that code gives.
#[derive(Debug, Default)]
pub struct Synthesized {
    /// From which address on which rule holds. Addresses go up, neighbours differ, the last row says that there is none.
    pub rows: Vec<(u64, u64)>,
    /// Functions that were found and made sense.
    pub functions: usize,
}

/// Finds the rules that hold in code that nothing describes. Time and memory are bounded by multiples of the code's size;
/// what is above [`MAX_CODE`] is not looked at.
pub fn synthesize(undescribed: &Undescribed<'_>) -> Synthesized {
    let mut room = MAX_CODE;
    let within = undescribed.code.iter().take_while(|(_, bytes)| {
        let fits = room.checked_sub(bytes.len());
        room = fits.unwrap_or(0);
        fits.is_some()
    });
    let code: Vec<(u64, &[u8])> = within.copied().collect();
    let mut text = Text::new(&code);
    for &pointer in &undescribed.pointers {
        text.add(pointer, mark::POINTED);
    }
    let no_return: HashSet<u64> = undescribed.no_return.iter().copied().collect();
    let no_return = |address: u64| no_return.contains(&address);
    let base = undescribed.code.first().map_or(0, |(address, _)| *address);
    let (per_byte, besides) = STEPS;
    let search = Search {
        claims: vec![FREE; text.len()],
        rules: vec![0; usize::from(UNKNOWN) + 1],
        numbers: HashMap::new(),
        entry: undescribed.entry.clone(),
        functions: 0,
        callers: Callers::default(),
        program: Program {
            returns: Returns::new(&text, &no_return),
            has_caller: undescribed.has_caller,
            effects: Effects::new(base),
            loaded: undescribed.loaded,
            is_fixed: undescribed.is_fixed,
            pops: false,
            budget: Budget::new(per_byte * text.len() as u64 + besides),
            parts: Parts::new(text.len()),
            reader: Reader::new(),
            text,
        },
    };
    search.run(&undescribed.functions)
}

struct Search<'a, 'p> {
    program: Program<'a, 'p>,
    /// What was said of each byte: number of a rule, or one of the above.
    claims: Vec<u16>,
    rules: Vec<u64>,
    numbers: HashMap<u64, u16>,
    entry: Range<u64>,
    functions: usize,
    callers: Callers,
}

impl<'a, 'p> Search<'a, 'p> {
    fn run(mut self, functions: &[u64]) -> Synthesized {
        let mut certain: Vec<u64> = functions.to_vec();
        certain.push(self.entry.start);
        let mut found = self.certain(&certain);
        let mut popping: Vec<u64> = found.iter().flat_map(|function| function.popping.iter().copied()).collect();
        popping.sort_unstable();
        popping.dedup();
        if popping.len() >= POPPING {
            self.program.pops = true;
            found = found.iter().map(|function| self.program.analyze(function.entry, true)).collect();
        }
        self.callers.learn_calls(&found);
        self.callers.learn(&found, &self.program.text);
        found.iter().for_each(|function| self.take(function));
        for _ in 0..TURNS {
            let before = self.functions;
            self.try_pointers();
            self.try_gaps();
            if self.functions == before || self.program.budget.is_spent() {
                break;
            }
        }
        self.finish()
    }

    /// Analyses functions, and what they call.
    fn certain(&mut self, entries: &[u64]) -> Vec<Function> {
        let mut found: Vec<Function> = Vec::new();
        let mut entries = self.follow(entries);
        while !entries.is_empty() && !self.program.budget.is_spent() {
            let first = found.len();
            for &entry in &entries {
                found.push(self.program.analyze(entry, true));
            }
            // What is called from where only a table of jumps leads.
            let calls: Vec<u64> = found[first..].iter().flat_map(|function| function.calls.iter().copied()).collect();
            entries = self.follow(&calls);
            // What was taken for a part of a function may be one of its own.
            let mut starts = entries.clone();
            starts.sort_unstable();
            for function in &mut found {
                if !entries.is_empty()
                    && self.program.budget.take((function.pieces.len() * entries.len()) as u64)
                    && function.goes_over(&starts)
                {
                    *function = self.program.analyze(function.entry, true);
                }
            }
        }
        found
    }

    fn follow(&mut self, entries: &[u64]) -> Vec<u64> {
        let Program { text, returns, loaded, budget, .. } = &mut self.program;
        returns.follow(text, *loaded, entries, budget)
    }

    fn number(&mut self, rule: Option<u64>) -> u16 {
        let Some(rule) = rule else { return UNKNOWN };
        if let Some(number) = self.numbers.get(&rule) {
            return *number;
        }
        let Ok(number) = u16::try_from(self.rules.len()) else { return UNKNOWN };
        self.rules.push(rule);
        self.numbers.insert(rule, number);
        number
    }

    /// Books what a function says.
    fn take(&mut self, function: &Function) {
        let has_caller = function.entry == self.entry.start || self.callers.has(function.entry);
        if function.pieces.is_empty() || !has_caller {
            return;
        }
        self.functions += 1;
        for &pointer in &function.pointers {
            self.program.text.add(pointer, mark::POINTED);
        }
        for piece in &function.pieces {
            let number = self.number(piece.rule);
            let Some(at) = self.program.text.at(piece.address) else { continue };
            // Where the program begins there is no caller.
            let outermost = if function.entry == self.entry.start && self.entry.contains(&piece.address) {
                (self.entry.end - piece.address).min(piece.length.into()) as usize
            } else {
                0
            };
            let stop = self.number((outermost > 0).then_some(rule(kind::STOP, fp::SAME, 0, 0)));
            let length = (piece.length as usize).min(self.claims.len() - at);
            let (first, others) = self.claims[at..at + length].split_at_mut(outermost.min(length));
            claim(first, stop);
            claim(others, number);
        }
    }

    /// Whether a function says something else than was said before.
    fn contradicts(&mut self, function: &Function) -> bool {
        function.pieces.iter().any(|piece| {
            let number = self.number(piece.rule);
            let Some(at) = self.program.text.at(piece.address) else { return true };
            let mut claims = self.claims.iter().skip(at).take(piece.length as usize);
            claims.any(|claim| ![FREE, number].contains(claim))
        })
    }

    fn is_free(&self, address: u64) -> bool {
        self.program.text.at(address).is_some_and(|at| self.claims[at] == FREE)
    }

    /// Looks at code that pointers lead to, or what may be calls.
    fn try_pointers(&mut self) {
        let mut starts = Vec::new();
        let text = &self.program.text;
        for (address, length, first) in text.ranges() {
            let mut from = first;
            while let Some(at) = text.next(from..first + length, mark::POINTED | mark::CALLED) {
                starts.push(address + (at - first) as u64);
                from = at + 1;
            }
        }
        for start in starts {
            self.try_start(start);
        }
    }

    /// Looks at where code begins of which nothing is said.
    fn try_gaps(&mut self) {
        let ranges: Vec<(u64, usize, usize)> = self.program.text.ranges().collect();
        for (address, length, first) in ranges {
            let mut at = 0;
            while let Some(free) = self.next_free(first + at..first + length)
                && !self.program.budget.is_spent()
            {
                at = free - first;
                let mut start = address + at as u64;
                while self.is_free(start)
                    && let Some((Flow::Nothing | Flow::Trap, size)) = self.program.text.flow(start)
                    && !self.is_mark(start)
                {
                    start += size;
                }
                if self.is_free(start) && (start.is_multiple_of(16) || self.is_mark(start)) {
                    self.try_start(start);
                }
                // What is free on from there was looked at.
                at = ((start - address) as usize).max(at + 1);
                let taken = |claims: &[u16]| claims.iter().position(|claim| *claim != FREE);
                at +=
                    self.claims.get(first + at - 1..first + length).and_then(taken).unwrap_or(length).saturating_sub(1);
            }
        }
    }

    /// The first of these bytes that nothing was said of.
    fn next_free(&self, among: Range<usize>) -> Option<usize> {
        let found = self.claims.get(among.clone())?.iter().position(|claim| *claim == FREE)?;
        Some(among.start + found)
    }

    /// Whether `endbr64` is there.
    fn is_mark(&self, address: u64) -> bool {
        let code = self.program.text.from(address);
        code.is_some_and(|(bytes, _)| bytes.starts_with(&[0xf3, 0x0f, 0x1e, 0xfa]))
    }

    fn try_start(&mut self, start: u64) {
        let text = &mut self.program.text;
        let may_be = !text.is(start, mark::ENTRY | mark::TRIED) && text.is_instruction(start);
        if !may_be || self.program.budget.is_spent() || !self.is_free(start) {
            return;
        }
        let text = &mut self.program.text;
        text.add(start, mark::TRIED);
        text.add(start, mark::ENTRY);
        let function = self.program.analyze(start, false);
        let is_sound = !function.pieces.is_empty() && !self.contradicts(&function);
        if is_sound {
            self.callers.learn(std::slice::from_ref(&function), &self.program.text);
        }
        if !is_sound || !self.callers.has(start) {
            self.program.text.remove(start, mark::ENTRY);
            return;
        }
        self.program.text.add(start, mark::RETURNS);
        self.take(&function);
        // What it calls is as certain as it is.
        self.callers.learn_calls([&function]);
        let mut found = self.certain(&function.calls);
        found.retain(|called| !self.contradicts(called));
        self.callers.learn_calls(&found);
        self.callers.learn(&found, &self.program.text);
        for called in found {
            if !self.contradicts(&called) {
                self.take(&called);
            }
        }
    }

    fn finish(self) -> Synthesized {
        let none = rule(kind::NONE, fp::SAME, 0, 0);
        let mut rows: Vec<(u64, u64)> = Vec::new();
        let mut push = |address: u64, rule: u64| {
            rows.pop_if(|last| last.0 == address);
            if rows.last().map_or(none, |last| last.1) != rule {
                rows.push((address, rule));
            }
        };
        for (address, length, first) in self.program.text.ranges() {
            let (mut before, mut at) = (none, 0);
            let claims = &self.claims[first..first + length];
            while let Some(&claim) = claims.get(at) {
                // Of bytes of which the same is said the first one tells, but of those behind a function each for itself.
                let (rule, next) = match claim {
                    FREE if before != none => {
                        (if self.is_padding(address + at as u64) { before } else { none }, at + 1)
                    }
                    claim => {
                        let same = claims[at..].iter().position(|other| *other != claim);
                        (self.rules[usize::from(claim)], same.map_or(length, |same| at + same))
                    }
                };
                if rule != before {
                    push(address + at as u64, rule);
                }
                (before, at) = (rule, next);
            }
            push(address + length as u64, none);
        }
        Synthesized { rows, functions: self.functions }
    }

    /// Whether nothing but padding is between here and the next function.
    fn is_padding(&self, mut address: u64) -> bool {
        let end = address.saturating_add(16);
        while address < end && self.is_free(address) {
            match self.program.text.flow(address) {
                Some((Flow::Nothing | Flow::Trap, size)) => address += size,
                _ => return false,
            }
        }
        address < end && self.program.text.contains(address)
    }
}

/// Says the same of some bytes.
fn claim(claims: &mut [u16], number: u16) {
    for claim in claims {
        *claim = if *claim == FREE || *claim == number { number } else { CONTRADICTED };
    }
}
