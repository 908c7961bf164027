//! How the outcomes of calls are to be seen.

use crate::probe::outcomes::Way;

/// How the outcomes of a process's calls are to be seen.
#[derive(Clone, Copy, Debug, Default)]
pub struct Returns {
    /// The way that was asked for by name.
    pub asked: Option<Way>,
    /// Whether other processes are traced as well.
    pub among_others: bool,
    /// Whether a return address had to be left alone: its threads change stacks inside of the allocator.
    pub declined: bool,
}

impl Returns {
    /// In the way that was asked for by name, if any was; `among_others`: other processes are traced as well.
    pub fn new(asked: Option<Way>, among_others: bool) -> Self {
        Self { asked, among_others, declined: false }
    }
}
