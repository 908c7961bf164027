//! Names of functions as the source has them. Hostile text: a mangled name of a hundred bytes can stand for gigabytes.

use std::fmt::{self, Write};

use cpp_demangle::{DemangleOptions, Symbol};

/// Longest name that is shown, bytes. What is longer is cut off, or left mangled.
const MAX_NAME: usize = 16 << 10;

/// The readable form of the name of a symbol or of a DWARF linkage name. Hashes of Rust and versions of the dynamic linker
/// are left out.
pub fn demangle(name: &str) -> String {
    let name = bounded(name);
    if (name.starts_with("_R") || has_rust_hash(name))
        && let Ok(demangled) = rustc_demangle::try_demangle(name)
        && let Some(demangled) = print(|out| write!(out, "{demangled:#}"))
    {
        return demangled;
    }
    if name.starts_with("_Z")
        && let Ok(symbol) = Symbol::new(name)
        && let Some(demangled) = print(|out| symbol.structured_demangle(out, &DemangleOptions::default()))
    {
        return demangled;
    }
    without_version(name).to_owned()
}

/// Whether the name of a symbol says more than the bare name of the function.
pub(super) fn is_mangled(name: &str) -> bool {
    name.starts_with("_Z") || name.starts_with("_R")
}

/// Whether it ends like Rust's legacy names: `17h`, 16 hexadecimal digits, `E`, and perhaps a suffix of LLVM's. C++ names
/// are mangled in the same way otherwise.
fn has_rust_hash(name: &str) -> bool {
    let name = name.split_once(".llvm.").map_or(name, |(name, _)| name);
    let hash = name.strip_suffix('E').and_then(|name| name.get(name.len().checked_sub(19)?..));
    hash.and_then(|hash| hash.strip_prefix("17h")).is_some_and(|hash| hash.bytes().all(|b| b.is_ascii_hexdigit()))
}

/// `malloc@@GLIBC_2.2.5` without what follows the name.
fn without_version(name: &str) -> &str {
    match name.split_once('@') {
        Some((name, _)) if !name.is_empty() => name,
        _ => name,
    }
}

fn bounded(name: &str) -> &str {
    &name[..name.floor_char_boundary(MAX_NAME)]
}

/// Text that takes only so much.
struct Out(String);

impl Write for Out {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        if self.0.len() + text.len() > MAX_NAME {
            return Err(fmt::Error);
        }
        self.0.push_str(text);
        Ok(())
    }
}

fn print(f: impl FnOnce(&mut Out) -> fmt::Result) -> Option<String> {
    let mut out = Out(String::new());
    f(&mut out).ok().map(|()| out.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_every_language() {
        for (mangled, expected) in [
            ("main", "main"),
            ("", ""),
            ("malloc@@GLIBC_2.2.5", "malloc"),
            ("realloc@GLIBC_2.2.5", "realloc"),
            ("@odd", "@odd"),
            ("_ZN6tracer4main17h0123456789abcdefE", "tracer::main"),
            ("_ZN6tracer4main17h0123456789abcdefE.llvm.123456", "tracer::main"),
            (
                "_ZN4core3ops8function6FnOnce40call_once$u7b$$u7b$vtable.shim$u7d$$u7d$17h0123456789abcdefE",
                "core::ops::function::FnOnce::call_once{{vtable.shim}}",
            ),
            ("_RNvCskwGfYPst2Cb_3foo16example_function", "foo::example_function"),
            ("_RNvC_not_really", "_RNvC_not_really"),
            ("_ZNSt6vectorIiSaIiEE9push_backERKi", "std::vector<int, std::allocator<int> >::push_back(int const&)"),
            ("_ZL3barv.part.0", "bar() [clone .part.0]"),
            ("_ZN3foo3barE", "foo::bar"),
            ("_Z", "_Z"),
            ("_Zgarbage", "_Zgarbage"),
            ("main.main", "main.main"),
        ] {
            assert_eq!(demangle(mangled), expected, "{mangled}");
        }
    }

    #[test]
    fn bombs_stay_small() {
        // Every pair holds the one before it twice: 2^60 names in the end.
        let mut bomb = "_Z1fSt4pairIiiE".to_owned();
        let digits = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ";
        let reference = |index: usize| match index {
            0 => "S_".to_owned(),
            n if n <= 36 => format!("S{}_", digits[n - 1] as char),
            n => format!("S{}{}_", digits[(n - 1) / 36] as char, digits[(n - 1) % 36] as char),
        };
        for index in 1..60 {
            bomb.push_str(&format!("S_I{0}{0}E", reference(index)));
        }
        assert_eq!(demangle(&bomb), bomb, "left as it is");
        assert!(demangle(&"x".repeat(1 << 20)).len() <= MAX_NAME);
        assert!(demangle(&format!("_Z1f{}", "P".repeat(15_000))).len() <= MAX_NAME);
        assert!(demangle(&format!("_R{}", "NvB_".repeat(4_000))).len() <= MAX_NAME);
    }
}
