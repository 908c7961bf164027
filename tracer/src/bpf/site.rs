//! Where programs go to, and in which order.

/// Where a program goes to, and what it is told there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Site {
    /// Of the instruction in the file, bytes.
    pub offset: u64,
    /// What the program gets from `bpf_get_attach_cookie`.
    pub cookie: u64,
}

/// For programs that ask for no cookie.
impl From<u64> for Site {
    fn from(offset: u64) -> Self {
        Self { offset, cookie: 0 }
    }
}

/// In which order programs are attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// As they are given: the process may be recorded meanwhile.
    InTurn,
    /// In any, several at a time where that is faster.
    AtOnce,
}

/// A program by name, and where it goes.
pub type Placed = (&'static str, Vec<Site>);
