//! Variables of the runtime in an executable without symbols: found by the instructions that mention them.
//!
//! Functions keep their names in pclntab. A function of the runtime that one toolchain compiled mentions its variables by
//! addresses relative to the instruction pointer, in an order that does not depend on the program or on where things
//! were linked. [`learn`] notes those operands in a program that has symbols, [`vote`] takes them from one that has none.
//! A function that was compiled to something else (another toolchain, race detector) has another number of operands or
//! other instructions, and has no vote; all others must agree.

use std::collections::{BTreeMap, BTreeSet};

use iced_x86::{Code, Decoder, DecoderOptions, Instruction};

use super::layout::Mention;

/// Longest function that is decoded, bytes.
pub(super) const MAX_CODE: u32 = 1 << 16;

/// An operand that is relative to the instruction pointer.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Operand {
    mnemonic: String,
    address: u64,
}

/// The operands of code that was linked for `address`, in the order of the code.
fn operands(code: &[u8], address: u64) -> Vec<Operand> {
    let mut decoder = Decoder::with_ip(64, code, address, DecoderOptions::NONE);
    let mut instruction = Instruction::default();
    let mut operands = Vec::new();
    while decoder.can_decode() {
        decoder.decode_out(&mut instruction);
        if instruction.code() != Code::INVALID && instruction.is_ip_rel_memory_operand() {
            let mnemonic = format!("{:?}", instruction.mnemonic()).to_ascii_lowercase();
            operands.push(Operand { mnemonic, address: instruction.ip_rel_memory_address() });
        }
    }
    operands
}

/// Notes where `code`, that of `function` linked for `address`, mentions `variables`: names with address and size.
pub(super) fn learn(function: &str, code: &[u8], address: u64, variables: &[(&str, u64, u64)]) -> Vec<Mention> {
    let operands = operands(code, address);
    let mentions = operands.iter().enumerate().filter_map(|(index, operand)| {
        let hit =
            |(_, begin, size): &&(&str, u64, u64)| (*begin..begin.saturating_add(*size)).contains(&operand.address);
        let (variable, begin, _) = variables.iter().find(hit)?;
        Some(Mention {
            function: function.to_owned(),
            operands: operands.len(),
            index,
            mnemonic: operand.mnemonic.clone(),
            variable: (*variable).to_owned(),
            offset: operand.address - begin,
        })
    });
    mentions.collect()
}

/// Address of each variable, when at least two operands say where it is and none contradicts. `code` gives a function's
/// code and the address that it was linked for.
pub(super) fn vote(mentions: &[Mention], code: impl Fn(&str) -> Option<(Vec<u8>, u64)>) -> BTreeMap<String, u64> {
    let mut votes: BTreeMap<&str, Vec<u64>> = BTreeMap::new();
    for function in mentions.iter().map(|mention| &*mention.function).collect::<BTreeSet<_>>() {
        let Some((code, address)) = code(function) else { continue };
        let operands = operands(&code, address);
        let own = || mentions.iter().filter(|mention| mention.function == function);
        let same = |mention: &Mention| {
            let operand = operands.get(mention.index);
            mention.operands == operands.len() && operand.is_some_and(|operand| operand.mnemonic == mention.mnemonic)
        };
        if !own().all(same) {
            continue;
        }
        for mention in own() {
            let address = operands[mention.index].address.wrapping_sub(mention.offset);
            votes.entry(&mention.variable).or_default().push(address);
        }
    }
    let agreed = votes.into_iter().filter(|(_, votes)| votes.len() >= 2 && votes.iter().all(|vote| *vote == votes[0]));
    agreed.map(|(variable, votes)| (variable.to_owned(), votes[0])).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const VARIABLES: [(&str, u64, u64); 2] = [("length", 0x9000, 8), ("list", 0x9100, 8)];

    /// `mov rax, [rip + x]; lea rcx, [rip + y]; ret`, linked for `address`.
    fn code(address: u64, first: u64, second: u64) -> Vec<u8> {
        let relative = |target: u64, next: u64| (target.wrapping_sub(next) as i32).to_le_bytes();
        let mut code = vec![0x48, 0x8b, 0x05];
        code.extend(relative(first, address + 7));
        code.extend([0x48, 0x8d, 0x0d]);
        code.extend(relative(second, address + 14));
        code.push(0xc3);
        code
    }

    fn learned() -> Vec<Mention> {
        let mut mentions = learn("a", &code(0x1000, 0x9000, 0x9104), 0x1000, &VARIABLES);
        mentions.extend(learn("b", &code(0x2000, 0x9104, 0x9000), 0x2000, &VARIABLES));
        mentions
    }

    #[test]
    fn operands_of_variables_are_learned() {
        let mentions = learned();
        let seen: Vec<_> =
            mentions.iter().map(|m| (&*m.function, m.index, &*m.mnemonic, &*m.variable, m.offset)).collect();
        assert_eq!(
            seen,
            [
                ("a", 0, "mov", "length", 0),
                ("a", 1, "lea", "list", 4),
                ("b", 0, "mov", "list", 4),
                ("b", 1, "lea", "length", 0)
            ]
        );
        assert!(mentions.iter().all(|mention| mention.operands == 2));
        assert!(learn("c", &code(0, 0x9008, 0x90ff), 0, &VARIABLES).is_empty());
    }

    /// Votes where `a` and `b` were linked elsewhere, with other code.
    fn vote_on(a: Option<Vec<u8>>, b: Option<Vec<u8>>) -> Vec<(String, u64)> {
        let code = |function: &str| match function {
            "a" => Some((a.clone()?, 0x50_1000)),
            _ => Some((b.clone()?, 0x50_2000)),
        };
        vote(&learned(), code).into_iter().collect()
    }

    #[test]
    fn votes_must_agree() {
        let found = [("length".to_owned(), 0x50_8000), ("list".to_owned(), 0x50_8800)];
        let a = || Some(code(0x50_1000, 0x50_8000, 0x50_8804));
        let b = || Some(code(0x50_2000, 0x50_8804, 0x50_8000));
        assert_eq!(vote_on(a(), b()), found);
        // One that contradicts takes its variable away, not the other.
        assert_eq!(vote_on(a(), Some(code(0x50_2000, 0x50_8804, 0x50_8008))), found[1..]);
        // One alone is not enough.
        assert_eq!(vote_on(a(), None), []);
        // A function that was compiled to something else has no vote.
        let mut other = b().unwrap();
        other.extend(code(0, 0, 0));
        assert_eq!(vote_on(a(), Some(other)), []);
        let mut other = b().unwrap();
        other[1] = 0x03;
        assert_eq!(vote_on(a(), Some(other)), []);
        assert_eq!(vote_on(Some(Vec::new()), Some(vec![0xff; 100])), []);
    }
}
