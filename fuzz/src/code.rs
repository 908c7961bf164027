//! Machine code: which instruction to probe, and where a function returns.

use tracer::probe::{
    returns::{Bound, returns},
    site,
};

use crate::input::take;

/// Where the code begins.
const BASE: u64 = 0x1000;

/// The input is the number of arguments, where in the code the function is, and the code.
pub fn run(data: &[u8]) {
    let ([arguments, low, high], text) = take(data);
    let from = |address: u64| text.get(usize::try_from(address.checked_sub(BASE)?).ok()?..);

    let entry = BASE + u64::from(u16::from_le_bytes([low, high]));
    let function = from(entry).unwrap_or_default();
    let site = site::choose(function, usize::from(arguments));
    assert!(site.offset == 0 || site.offset < function.len().min(site::WINDOW) as u64);
    assert!(!site.emulated || !function.is_empty());

    let bound = |slot: u64| match slot % 4 {
        0 => Bound::NoReturn,
        1 => Bound::Elsewhere,
        _ => Bound::Here(slot.wrapping_add(slot >> 3)),
    };
    let found = returns(entry, from, bound, |address| address % 64 == 0);
    let found = found.addresses;
    assert!(found.len() <= 64);
    for (index, address) in found.iter().enumerate() {
        assert!(!found[..index].contains(address), "each is probed once");
        let code = from(*address).expect("a return is in the code");
        // An instruction is at most 15 bytes long; its prefixes come before the opcode.
        assert!(code.iter().take(15).any(|byte| [0xc2, 0xc3, 0xca, 0xcb, 0xcf].contains(byte) || *byte == 0x0f));
    }
}
