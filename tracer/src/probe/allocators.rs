//! The catalogue: names of allocator functions and how each takes its arguments. Data; a new name is one line.

/// How a function takes its arguments and gives its result.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Shape {
    /// `f(size) -> block`, further arguments ignored.
    Malloc,
    /// The same, but it may throw instead of returning.
    New,
    /// `f(count, size) -> block`.
    Calloc,
    /// `f(alignment, size) -> block`.
    Memalign,
    /// `f(&block, alignment, size) -> 0 on success`.
    PosixMemalign,
    /// `f(block, size) -> block`.
    Realloc,
    /// `f(block, count, size) -> block`.
    Reallocarray,
    /// `f(block)`, further arguments ignored.
    Free,
}

impl Shape {
    /// How many of the leading integer arguments are read.
    pub fn arguments(self) -> usize {
        match self {
            Self::Malloc | Self::New | Self::Free => 1,
            Self::Calloc | Self::Memalign | Self::Realloc => 2,
            Self::PosixMemalign | Self::Reallocarray => 3,
        }
    }
}

/// Functions that are looked for in the file that the process takes `malloc` from.
pub const CATALOGUE: &[(&str, Shape)] = &[
    // ISO C, POSIX, BSD and GNU.
    ("malloc", Shape::Malloc),
    ("calloc", Shape::Calloc),
    ("realloc", Shape::Realloc),
    ("reallocarray", Shape::Reallocarray),
    ("free", Shape::Free),
    ("cfree", Shape::Free),
    ("memalign", Shape::Memalign),
    ("posix_memalign", Shape::PosixMemalign),
    ("aligned_alloc", Shape::Memalign),
    ("valloc", Shape::Malloc),
    ("pvalloc", Shape::Malloc),
    ("free_sized", Shape::Free),
    ("free_aligned_sized", Shape::Free),
    // C++ (Itanium ABI), where the allocator brings its own: jemalloc, tcmalloc, mimalloc.
    ("_Znwm", Shape::New),
    ("_Znam", Shape::New),
    ("_ZnwmRKSt9nothrow_t", Shape::Malloc),
    ("_ZnamRKSt9nothrow_t", Shape::Malloc),
    ("_ZnwmSt11align_val_t", Shape::New),
    ("_ZnamSt11align_val_t", Shape::New),
    ("_ZnwmSt11align_val_tRKSt9nothrow_t", Shape::Malloc),
    ("_ZnamSt11align_val_tRKSt9nothrow_t", Shape::Malloc),
    ("_ZdlPv", Shape::Free),
    ("_ZdaPv", Shape::Free),
    ("_ZdlPvm", Shape::Free),
    ("_ZdaPvm", Shape::Free),
    ("_ZdlPvRKSt9nothrow_t", Shape::Free),
    ("_ZdaPvRKSt9nothrow_t", Shape::Free),
    ("_ZdlPvSt11align_val_t", Shape::Free),
    ("_ZdaPvSt11align_val_t", Shape::Free),
    ("_ZdlPvmSt11align_val_t", Shape::Free),
    ("_ZdaPvmSt11align_val_t", Shape::Free),
    ("_ZdlPvSt11align_val_tRKSt9nothrow_t", Shape::Free),
    ("_ZdaPvSt11align_val_tRKSt9nothrow_t", Shape::Free),
    // jemalloc's extended interface.
    ("mallocx", Shape::Malloc),
    ("rallocx", Shape::Realloc),
    ("dallocx", Shape::Free),
    ("sdallocx", Shape::Free),
    // mimalloc's and tcmalloc's own names, which programs may call directly.
    ("mi_malloc", Shape::Malloc),
    ("mi_new", Shape::New),
    ("mi_new_aligned", Shape::New),
    ("mi_new_nothrow", Shape::Malloc),
    ("mi_new_aligned_nothrow", Shape::Malloc),
    ("mi_zalloc", Shape::Malloc),
    ("mi_calloc", Shape::Calloc),
    ("mi_realloc", Shape::Realloc),
    ("mi_free", Shape::Free),
    ("tc_malloc", Shape::Malloc),
    ("tc_calloc", Shape::Calloc),
    ("tc_realloc", Shape::Realloc),
    ("tc_free", Shape::Free),
    ("tc_memalign", Shape::Memalign),
    ("tc_posix_memalign", Shape::PosixMemalign),
    ("tc_valloc", Shape::Malloc),
    ("tc_pvalloc", Shape::Malloc),
    ("tc_new", Shape::New),
    ("tc_newarray", Shape::New),
    ("tc_new_nothrow", Shape::Malloc),
    ("tc_newarray_nothrow", Shape::Malloc),
    ("tc_delete", Shape::Free),
    ("tc_deletearray", Shape::Free),
    ("tc_delete_sized", Shape::Free),
    ("tc_deletearray_sized", Shape::Free),
];

/// Shape of a function in the catalogue.
pub fn shape(name: &str) -> Option<Shape> {
    CATALOGUE.iter().find(|(known, _)| *known == name).map(|(_, shape)| *shape)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique() {
        for (index, (name, _)) in CATALOGUE.iter().enumerate() {
            assert!(!CATALOGUE[..index].iter().any(|(other, _)| other == name), "{name} twice");
        }
        assert_eq!(shape("posix_memalign"), Some(Shape::PosixMemalign));
        assert_eq!(shape("mallocate"), None);
    }
}
