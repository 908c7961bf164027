//! Machine code, call frame information and pointers: where the outcomes of calls are known.

use tracer::{
    probe::{
        exits::{Analysis, Exits, Image, Known, Pointer, exits},
        family::Shape,
    },
    unwind::{Frames, Sections},
};
use tracer_ebpf::exit::{self, Exit, Outcome, Packed, Place};

use crate::input::take;

/// Where the code begins, and where the call frame information lies.
const BASE: u64 = 0x1000;
const FRAMES: u64 = 0x40_0000;

/// The input is what kinds of functions there are, where in the code they begin, how long the call frame information is,
/// that, and the code.
pub fn run(data: &[u8]) {
    let ([kinds, length], rest) = take(data);
    let ([first, second], rest) = take(rest);
    let (frames, text) = rest.split_at(rest.len().min(usize::from(length)));
    let code = |address: u64| text.get(usize::try_from(address.checked_sub(BASE)?).ok()?..);
    let entries = [BASE + u64::from(first), BASE + 4 * u64::from(second)];
    let frames = Frames::of(&Sections { eh_frame: Some((frames, FRAMES)), ..Sections::default() });
    let mut analysis = Analysis::new(Image {
        code: &code,
        pointer: &|slot| match slot % 5 {
            0 => Pointer::Known(Known::NoReturn),
            1 => Pointer::Known(Known::ReturnsFirst),
            2 => Pointer::Elsewhere,
            _ => Pointer::Here(slot.wrapping_add(slot >> 3)),
        },
        known: &|address| (address % 61 == 0).then_some(Known::NoReturn),
        family: &entries,
        entries: &entries,
        frames: &frames,
    });
    let mut said: Vec<(u64, Exit)> = Vec::new();
    for (entry, kind) in entries.into_iter().zip([kinds & 1, kinds >> 1 & 1]) {
        let shape = if kind == 0 { Shape::Malloc } else { Shape::PosixMemalign };
        let Exits::Proven(sites, _) = exits(&mut analysis, entry, shape) else { continue };
        for site in sites {
            assert!(code(site.address).is_some_and(|code| !code.is_empty()), "a probe outside of the file");
            assert!(!entries.contains(&site.address), "an entry that is an exit");
            unpacks(site.exit);
            let other = said.iter().find(|(address, _)| *address == site.address);
            assert!(other.is_none_or(|(_, exit)| *exit == site.exit), "one probe, two meanings");
            said.push((site.address, site.exit));
        }
    }
}

/// A cookie says what was packed into it.
fn unpacks(exit: Exit) {
    let cookie = exit.pack().expect("it fits");
    let (sp, fp) = (1 << 40, 1 << 41);
    let base = if exit.frame.from_frame_pointer { fp } else { sp };
    assert_eq!(exit::return_slot(cookie, sp, fp), base + u64::from(exit.frame.offset) - 8);
    assert!(exit.frame.offset >= 8, "a return address below the stack pointer");
    for flags in [0, 0xfff] {
        let place = match exit.outcome {
            Outcome::One(place) => place,
            Outcome::Branch { condition, taken, not_taken } => {
                assert!(taken != not_taken, "no choice");
                if exit::jumps(condition.into(), flags) { taken } else { not_taken }
            }
        };
        let signed = |displacement: i16| i64::from(displacement).cast_unsigned();
        let (kind, register, displacement) = match place {
            Place::Unknown => (exit::UNKNOWN, 0, 0),
            Place::Register { register, displacement } => (exit::REGISTER, register.into(), signed(displacement)),
            Place::Constant(value) => (exit::CONSTANT, 0, signed(value)),
            Place::Stack(displacement) => (exit::STACK, 0, signed(displacement)),
        };
        assert_eq!(exit::place(cookie, flags), Packed { kind, register, displacement });
    }
}
