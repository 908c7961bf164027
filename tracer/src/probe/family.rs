//! What is to be known of an allocator, and in which ways functions take their arguments: the terms of the catalogue.

/// How a function takes its arguments and gives its result.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Shape {
    /// `f(size) -> block`, further arguments ignored.
    Malloc,
    /// The same, but it may throw instead of returning.
    New,
    /// `f(size in words) -> block`.
    MallocWords,
    /// `f(heap, size in words) -> block`.
    MallocWordsInHeap,
    /// `f(count, size) -> block`.
    Calloc,
    /// The same, but it may throw instead of returning.
    NewArray,
    /// `f(alignment, size) -> block`; or of a heap in the place of the alignment.
    Memalign,
    /// `f(heap, size) -> block`, but it may throw instead of returning.
    NewInHeap,
    /// `f(heap, count, size) -> block`.
    CallocInHeap,
    /// The same, but it may throw instead of returning.
    NewArrayInHeap,
    /// `f(heap, alignment, size) -> block`.
    MemalignInHeap,
    /// `f(heap, alignment, count, size) -> block`.
    AlignedCallocInHeap,
    /// `f(&block, alignment, size) -> 0 on success`.
    PosixMemalign,
    /// `f(block, size) -> block`.
    Realloc,
    /// The same, but it may throw instead of returning.
    Renew,
    /// `f(block, count, size) -> block`.
    Reallocarray,
    /// The same, but it may throw instead of returning.
    RenewArray,
    /// `f(block, size, how much more would be taken) -> bytes of the block`, which stays where it is, and as it was if these are less.
    Resize,
    /// `f(block, alignment, size) -> block`.
    Realign,
    /// `f(block, old size, alignment, size) -> block`, or with the middle two the other way round.
    ReallocFrom,
    /// `f(heap, block, size) -> block`.
    ReallocInHeap,
    /// `f(heap, block, count, size) -> block`.
    ReallocarrayInHeap,
    /// `f(heap, block, alignment, size) -> block`.
    RealignInHeap,
    /// `f(string) -> block`, a copy of it.
    Duplicate,
    /// `f(string, most) -> block`, a copy of so much of it.
    DuplicateSome,
    /// `f(heap, string) -> block`.
    DuplicateInHeap,
    /// `f(heap, string, most) -> block`.
    DuplicateSomeInHeap,
    /// `f(block)`, further arguments ignored.
    Free,
    /// `f(heap, block)`, further arguments ignored.
    FreeInHeap,
    /// `f(heap)`, which ends all blocks in it.
    EndHeap,
    /// `f(name, ...)`, which does so if that is what the name stands for.
    EndNamedHeap,
    /// `f(numbers, count, asked, _, set, ...)`, the same with numbers in the place of the name.
    EndNumberedHeap,
}

/// Which arguments of a function are what, from 1 on; 0: none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Arguments {
    /// The block that is given back, or where the new one is stored.
    pub block: u8,
    /// How many elements.
    pub count: u8,
    /// Bytes, of each element where there is a count.
    pub size: u8,
    /// The string that is copied: its length tells the bytes.
    pub string: u8,
    /// How much of that at most: the argument behind it.
    pub most: u8,
}

impl Shape {
    /// Which argument is what.
    pub fn arguments(self) -> Arguments {
        let (block, count, size) = match self {
            Self::Malloc | Self::MallocWords | Self::New => (0, 0, 1),
            Self::Calloc | Self::NewArray => (0, 1, 2),
            Self::Memalign | Self::MallocWordsInHeap | Self::NewInHeap => (0, 0, 2),
            Self::CallocInHeap | Self::NewArrayInHeap => (0, 2, 3),
            Self::MemalignInHeap => (0, 0, 3),
            Self::AlignedCallocInHeap => (0, 3, 4),
            Self::PosixMemalign | Self::Realign => (1, 0, 3),
            Self::Realloc | Self::Renew | Self::Resize => (1, 0, 2),
            Self::Reallocarray | Self::RenewArray => (1, 2, 3),
            Self::ReallocFrom => (1, 0, 4),
            Self::ReallocInHeap => (2, 0, 3),
            Self::ReallocarrayInHeap => (2, 3, 4),
            Self::RealignInHeap => (2, 0, 4),
            Self::Free => (1, 0, 0),
            Self::FreeInHeap => (2, 0, 0),
            Self::EndHeap | Self::EndNamedHeap | Self::EndNumberedHeap => (0, 0, 0),
            Self::Duplicate | Self::DuplicateSome | Self::DuplicateInHeap | Self::DuplicateSomeInHeap => (0, 0, 0),
        };
        let (string, most) = match self {
            Self::Duplicate => (1, 0),
            Self::DuplicateSome => (1, 2),
            Self::DuplicateInHeap => (2, 0),
            Self::DuplicateSomeInHeap => (2, 3),
            _ => (0, 0),
        };
        Arguments { block, count, size, string, most }
    }

    /// How many of the leading integer arguments are read.
    pub fn read(self) -> usize {
        match self {
            Self::EndNamedHeap => return 1,
            Self::EndNumberedHeap => return 5,
            Self::Resize => return 3,
            _ => {}
        }
        let Arguments { block, count, size, string, most } = self.arguments();
        usize::from(block.max(count).max(size).max(string).max(most))
    }

    /// Whether it frees, and allocates nothing.
    pub fn frees(self) -> bool {
        matches!(self, Self::Free | Self::FreeInHeap | Self::EndHeap | Self::EndNamedHeap | Self::EndNumberedHeap)
    }

    /// Whether the result is a status, and the block is stored where an argument says.
    pub fn stores(self) -> bool {
        self == Self::PosixMemalign
    }

    /// Whether it may throw instead of returning.
    pub fn throws(self) -> bool {
        matches!(
            self,
            Self::New | Self::NewArray | Self::NewInHeap | Self::NewArrayInHeap | Self::Renew | Self::RenewArray
        )
    }
}

/// When the functions of a family are taken for what their names say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Evidence {
    /// Always: nobody else has such names.
    Names,
    /// Where the file has so many functions of the family with the same prefix, or more.
    Several(usize),
    /// Where the file exports them, beside one of those that nobody does without; or has functions by all these names.
    ExportOr(&'static [&'static str]),
    /// Where the file has functions by all these names.
    All(&'static [&'static str]),
    /// Where they do not end in a `malloc` of another file: there they are seen as calls of that.
    NoImport,
    /// Where no other allocator is behind them, in this file or another one.
    NothingBehind,
    /// The same, of functions of the C library's that the file exports beside one of those that nobody does without.
    ExportAndNothingBehind,
}

/// The functions of one allocator, or of one interface that several have.
#[derive(Debug)]
pub struct Family {
    /// What people call it.
    pub name: &'static str,
    /// What stands before the names, one of these.
    pub prefixes: &'static [&'static str],
    /// When they are taken for what they seem.
    pub evidence: Evidence,
    /// Whether it is known what its functions call: no code of the program's but by hooks.
    pub is_known: bool,
    /// Its functions.
    pub functions: &'static [(&'static str, Shape)],
}
