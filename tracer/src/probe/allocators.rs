//! What is known of a function by its name: whose it is, and how it takes its arguments.

use std::sync::OnceLock;

use hashbrown::HashMap;

use super::{
    catalogue::FAMILIES,
    family::{Family, Shape},
};

/// Families by their index in the catalogue.
pub type FamilyIndex = usize;

/// A name of the catalogue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Known {
    /// Whose it is.
    pub family: FamilyIndex,
    /// How the function takes its arguments.
    pub shape: Shape,
    /// The name in the catalogue: without the family's prefix.
    pub function: &'static str,
}

/// Longest name that is looked at, bytes; without what compilers add.
pub const LONGEST: usize = 80;

/// What is known by a name.
pub fn known(name: &[u8]) -> Option<Known> {
    let name = plain(rust_name(name).unwrap_or(name));
    if name.len() > LONGEST {
        return None;
    }
    static NAMES: OnceLock<HashMap<Vec<u8>, Known>> = OnceLock::new();
    let names = NAMES.get_or_init(|| {
        let mut names = HashMap::new();
        for (family, Family { prefixes, functions, .. }) in FAMILIES.iter().enumerate() {
            for (prefix, (name, shape)) in prefixes.iter().flat_map(|prefix| functions.iter().map(move |f| (prefix, f)))
            {
                let known = Known { family, shape: *shape, function: name };
                // What several have is that of the first.
                names.entry([prefix.as_bytes(), name.as_bytes()].concat()).or_insert(known);
            }
        }
        names
    });
    names.get(name).copied()
}

/// A name without what a compiler adds to that of a function which it has made local and has not changed.
fn plain(name: &[u8]) -> &[u8] {
    let end = [&b".lto_priv."[..], b".llvm."].iter().find_map(|mark| find(name, mark));
    &name[..end.unwrap_or(name.len())]
}

/// The name that a function was cloned from whose arguments the compiler may have changed.
pub fn cloned_from(name: &[u8]) -> Option<&[u8]> {
    let end = [&b".part."[..], b".isra.", b".constprop."].iter().filter_map(|mark| find(name, mark)).min()?;
    Some(&name[..end])
}

fn find(name: &[u8], part: &[u8]) -> Option<usize> {
    name.windows(part.len()).position(|window| window == part)
}

/// The name of one of the functions that Rust's compiler makes for its allocator, as it was before it was mangled:
/// `_RNvCs…_7___rustc12___rust_alloc` is `__rust_alloc`.
fn rust_name(name: &[u8]) -> Option<&[u8]> {
    let crate_name = &b"_7___rustc"[..];
    let after = name.strip_prefix(b"_RNvCs")?;
    let length = &after[find(after, crate_name)? + crate_name.len()..];
    let digits = length.iter().take_while(|byte| byte.is_ascii_digit()).count();
    length[digits..].strip_prefix(b"_")
}

/// Prefix of a name that jemalloc alone has, and which of those names it is.
pub fn jemalloc_prefix(name: &[u8]) -> Option<(&[u8], usize)> {
    const OWN: [&[u8]; 8] =
        [b"sdallocx", b"mallocx", b"rallocx", b"xallocx", b"sallocx", b"dallocx", b"nallocx", b"mallctl"];
    OWN.iter().enumerate().find_map(|(index, own)| Some((name.strip_suffix(*own)?, index)))
}

/// The family of jemalloc, by whose prefix its functions are known.
pub fn jemalloc() -> FamilyIndex {
    FAMILIES.iter().position(|family| family.name == "jemalloc").unwrap_or_default()
}

/// The family of functions that the command line names.
pub fn asked_for() -> FamilyIndex {
    FAMILIES.iter().position(|family| family.prefixes.is_empty()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shape(name: &str) -> Option<(&'static str, Shape)> {
        known(name.as_bytes()).map(|known| (FAMILIES[known.family].name, known.shape))
    }

    #[test]
    fn names_tell() {
        for (name, expected) in [
            ("posix_memalign", Some(("malloc", Shape::PosixMemalign))),
            ("mallocate", None),
            ("je_malloc", Some(("jemalloc", Shape::Malloc))),
            ("_rjem_sdallocx", Some(("jemalloc", Shape::Free))),
            ("xmalloc", None),
            ("mallocx", Some(("jemalloc", Shape::Malloc))),
            ("mi_heap_calloc", Some(("mimalloc", Shape::CallocInHeap))),
            ("sn_rust_realloc", Some(("snmalloc", Shape::ReallocFrom))),
            ("__rust_alloc", Some(("Rust", Shape::Malloc))),
            ("_RNvCsfLfy6EI15iL_7___rustc14___rust_realloc", Some(("Rust", Shape::ReallocFrom))),
            ("_RNvCsfLfy6EI15iL_7___rustc26___rust_alloc_error_handler", None),
            ("_RNvCs", None),
            ("malloc.lto_priv.0", Some(("malloc", Shape::Malloc))),
            ("je_free.llvm.1234567", Some(("jemalloc", Shape::Free))),
            ("malloc.cold", None),
            ("malloc.part.0", None),
            ("", None),
        ] {
            assert_eq!(shape(name), expected, "{name}");
        }
        assert_eq!(cloned_from(b"je_malloc.constprop.0.isra.0"), Some(&b"je_malloc"[..]));
        assert_eq!(cloned_from(b"malloc.cold"), None);
        assert_eq!(jemalloc_prefix(b"fancy_mallocx"), Some((&b"fancy_"[..], 1)));
        assert_eq!(jemalloc_prefix(b"sdallocx"), Some((&b""[..], 0)));
        assert_eq!(jemalloc_prefix(b"malloc"), None);
        assert_eq!(FAMILIES[jemalloc()].name, "jemalloc");
    }

    #[test]
    fn a_family_has_each_name_once() {
        for family in FAMILIES {
            for (index, (name, _)) in family.functions.iter().enumerate() {
                assert!(!family.functions[..index].iter().any(|(other, _)| other == name), "{name} twice");
            }
        }
    }
}
