//! Which functions return: what follows a call that does not is no part of the function.

use hashbrown::HashMap;

use super::{
    budget::Budget,
    code::{Flow, Text, mark},
};

/// Index of no function.
const NOBODY: u32 = 0;

/// What is known of calls.
pub(super) struct Returns<'p> {
    no_return: &'p dyn Fn(u64) -> bool,
    /// By index in the code, to which function it was found to belong: index in `entries` + 1.
    owners: Vec<u32>,
    entries: Vec<u64>,
    /// Their numbers.
    numbers: HashMap<u64, u32>,
    /// What stubs that were called lead to.
    stubs: HashMap<u64, bool>,
}

/// What waits for a function to return.
enum Waiting {
    /// Code behind a call of it.
    Code(u32, u64),
    /// A function that ends by going on there.
    Function(u32),
}

/// The search among some functions.
#[derive(Default)]
struct Search {
    work: Vec<(u32, u64)>,
    waiting: HashMap<u32, Vec<Waiting>>,
    returning: Vec<u32>,
}

impl<'p> Returns<'p> {
    /// `no_return` knows functions by their names: it is given their addresses, and those of pointers to them.
    pub(super) fn new(text: &Text<'_>, no_return: &'p dyn Fn(u64) -> bool) -> Self {
        Self {
            no_return,
            owners: vec![NOBODY; text.len()],
            entries: Vec::new(),
            numbers: HashMap::new(),
            stubs: HashMap::new(),
        }
    }

    /// Whether a call of this function does not return, as far as is known.
    pub(super) fn is_endless<'d>(
        &mut self,
        text: &Text<'_>,
        loaded: &dyn Fn(u64) -> Option<&'d [u8]>,
        target: u64,
    ) -> bool {
        if (self.no_return)(target) {
            return true;
        }
        match text.at(target) {
            Some(at) => text.marks(at) & (mark::ENTRY | mark::RETURNS) == mark::ENTRY,
            None => *self
                .stubs
                .entry(target)
                .or_insert_with(|| stub_pointer(loaded, target).is_some_and(|pointer| (self.no_return)(pointer))),
        }
    }

    /// Whether what this pointer is bound to does not return.
    pub(super) fn is_endless_pointer(&self, pointer: u64) -> bool {
        (self.no_return)(pointer)
    }

    /// Finds what functions call, from these on; which of all return. What was found to be a function is returned.
    pub(super) fn follow<'d>(
        &mut self,
        text: &mut Text<'_>,
        loaded: &dyn Fn(u64) -> Option<&'d [u8]>,
        from: &[u64],
        budget: &mut Budget,
    ) -> Vec<u64> {
        let first = self.entries.len();
        let mut search = Search::default();
        for &entry in from {
            self.begin(text, entry, &mut search);
        }
        loop {
            while let Some(function) = search.returning.pop() {
                self.returns(text, function, &mut search);
            }
            match search.work.pop() {
                Some((function, address)) => self.walk(text, loaded, (function, address), &mut search, budget),
                None => break,
            }
        }
        self.entries[first..].to_vec()
    }

    fn begin(&mut self, text: &mut Text<'_>, entry: u64, search: &mut Search) {
        if text.add(entry, mark::ENTRY) {
            self.entries.push(entry);
            self.numbers.insert(entry, self.entries.len() as u32);
            search.work.push((self.entries.len() as u32, entry));
        }
    }

    fn entry(&self, function: u32) -> Option<u64> {
        self.entries.get((function as usize).checked_sub(1)?).copied()
    }

    /// A function returns, and so do calls of it.
    fn returns(&mut self, text: &mut Text<'_>, function: u32, search: &mut Search) {
        let Some(entry) = self.entry(function) else { return };
        if !text.add(entry, mark::RETURNS) {
            return;
        }
        for waiting in search.waiting.remove(&function).unwrap_or_default() {
            match waiting {
                Waiting::Code(owner, address) => search.work.push((owner, address)),
                Waiting::Function(function) => search.returning.push(function),
            }
        }
    }

    /// A function goes on in another one: it returns if that does.
    fn goes_on_in(&self, text: &Text<'_>, function: u32, other: u32, search: &mut Search) {
        if self.entry(other).is_some_and(|entry| text.is(entry, mark::RETURNS)) {
            search.returning.push(function);
        } else {
            search.waiting.entry(other).or_default().push(Waiting::Function(function));
        }
    }

    fn walk<'d>(
        &mut self,
        text: &mut Text<'_>,
        loaded: &dyn Fn(u64) -> Option<&'d [u8]>,
        (function, mut address): (u32, u64),
        search: &mut Search,
        budget: &mut Budget,
    ) {
        let entry = self.entry(function);
        loop {
            if !budget.take(1) {
                return search.returning.push(function);
            }
            let Some(at) = text.at(address) else { return search.returning.push(function) };
            let owner = self.owners[at];
            if owner == function {
                return;
            }
            if owner != NOBODY {
                return self.goes_on_in(text, function, owner, search);
            }
            if Some(address) != entry && text.marks(at) & mark::ENTRY != 0 {
                // Its own turn is yet to come.
                let Some(&other) = self.numbers.get(&address) else { return };
                return self.goes_on_in(text, function, other, search);
            }
            self.owners[at] = function;
            let Some((flow, length)) = text.flow(address) else { return };
            let next = address.wrapping_add(length);
            match flow {
                Flow::Next | Flow::Nothing => {}
                Flow::Branch(target) => search.work.push((function, target)),
                Flow::Jump(target) => {
                    address = target;
                    continue;
                }
                Flow::Return | Flow::JumpByPointer => return search.returning.push(function),
                Flow::Trap => return,
                Flow::Call(target) if target == next => {}
                Flow::Call(target) if text.contains(target) => {
                    if (self.no_return)(target) {
                        return;
                    }
                    self.begin(text, target, search);
                    if !text.is(target, mark::RETURNS) {
                        let Some(&callee) = self.numbers.get(&target) else { return };
                        search.waiting.entry(callee).or_default().push(Waiting::Code(function, next));
                        return;
                    }
                }
                Flow::Call(target) => {
                    if self.is_endless(text, loaded, target) {
                        return;
                    }
                }
                Flow::CallByPointer => {
                    if called_pointer(text, address).is_some_and(|pointer| (self.no_return)(pointer)) {
                        return;
                    }
                }
            }
            address = next;
        }
    }
}

/// The pointer that a call by a pointer at a fixed place reads.
fn called_pointer(text: &Text<'_>, address: u64) -> Option<u64> {
    let (bytes, _) = text.from(address)?;
    rip_relative(bytes, address, 0x15)
}

/// `ff /n` by a pointer beside the code.
fn rip_relative(bytes: &[u8], address: u64, operand: u8) -> Option<u64> {
    let (&[0xff, modrm], rest) = bytes.split_first_chunk()? else { return None };
    let displacement = i32::from_le_bytes(*rest.first_chunk()?);
    (modrm == operand).then(|| address.wrapping_add(6).wrapping_add_signed(displacement.into()))
}

/// Whether a stub begins there.
pub(super) fn is_stub<'d>(loaded: &dyn Fn(u64) -> Option<&'d [u8]>, address: u64) -> bool {
    stub_pointer(loaded, address).is_some()
}

/// The pointer that a stub (of a PLT) jumps by.
fn stub_pointer<'d>(loaded: &dyn Fn(u64) -> Option<&'d [u8]>, stub: u64) -> Option<u64> {
    let mut bytes = loaded(stub)?;
    let mut address = stub;
    for prefix in [&[0xf3, 0x0f, 0x1e, 0xfa][..], &[0xf2]] {
        if let Some(rest) = bytes.strip_prefix(prefix) {
            address = address.wrapping_add(prefix.len() as u64);
            bytes = rest;
        }
    }
    rip_relative(bytes, address, 0x25)
}
