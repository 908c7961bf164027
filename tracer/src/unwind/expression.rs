//! The few shapes that DWARF expressions have in call frame information.

use gimli::{EndianSlice, Expression, LittleEndian, Operation, Register, UnitOffset};

/// An expression of a known shape.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Shape {
    /// Register + offset.
    Sum { register: Register, offset: i64 },
    /// The word at (register + before) + after.
    Deref { register: Register, before: i64, after: i64 },
    /// rsp + 8, and 8 more when the low four bits of rip are >= the threshold: binutils' PLT stubs, of which the first
    /// instructions push one more word.
    Plt { threshold: u8 },
}

/// Encoding that expressions are read with. None of its parts matters to the operations that are recognized.
const ENCODING: gimli::Encoding = gimli::Encoding { address_size: 8, format: gimli::Format::Dwarf32, version: 4 };

impl Shape {
    /// The shape of an expression, if it is a known one.
    pub(super) fn of(expression: &[u8]) -> Option<Self> {
        // breg7 8, breg16 0, lit15, and, lit<threshold>, ge, lit3, shl, plus
        if let [0x77, 8, 0x80, 0, 0x3f, 0x1a, literal @ 0x30..=0x4f, 0x2a, 0x33, 0x24, 0x22] = expression {
            return Some(Self::Plt { threshold: literal - 0x30 });
        }
        let mut operations = Expression(EndianSlice::new(expression, LittleEndian)).operations(ENCODING);
        let (register, before) = match operations.next().ok()?? {
            Operation::RegisterOffset { register, offset, base_type: UnitOffset(0) } => (register, offset),
            _ => return None,
        };
        match operations.next().ok()? {
            None => return Some(Self::Sum { register, offset: before }),
            Some(Operation::Deref { base_type: UnitOffset(0), size: 8, space: false }) => {}
            Some(_) => return None,
        }
        let after = match operations.next().ok()? {
            None => return Some(Self::Deref { register, before, after: 0 }),
            Some(Operation::PlusConstant { value }) => i64::try_from(value).ok()?,
            Some(_) => return None,
        };
        operations.next().ok()?.is_none().then_some(Self::Deref { register, before, after })
    }
}
