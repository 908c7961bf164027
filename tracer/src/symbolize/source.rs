//! One ELF file that is asked for names: a module, or its debug file.
//!
//! The work is done by blazesym. It checks what it reads, but not everything: so a file whose headers promise the
//! impossible is asked for its symbol table only, a panic ends the use of its debug information, and so does taking too
//! much time.

use std::{
    fs::File,
    time::{Duration, Instant},
};

use blazesym::symbolize::{CodeInfo, Input, Sym, Symbolized, Symbolizer, source};

use super::{
    copy::copy,
    demangle::{demangle, is_mangled},
    guard::guarded,
    nesting::is_shallow,
    work::Work,
};
use crate::files::{
    elf::{Bytes, Elf},
    opener::reopen_path,
};

/// Time that the debug information of one file may take in all. Gigabytes take a few seconds.
const MAX_TIME: Duration = Duration::from_secs(30);
/// Addresses that are asked for at once; the time is looked at in between.
const BATCH: usize = 256;
/// Most `.debug_info` of a file that is not trusted, bytes: it is read into memory to be looked at.
const MAX_DEBUG_INFORMATION: u64 = 1 << 30;
/// Deepest inlining that is shown.
const MAX_INLINED: usize = 128;
/// Longest path of a source file that is shown, bytes.
const MAX_PATH: usize = 4096;

/// A function at an address.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Function {
    /// Its demangled name.
    pub(super) name: Option<String>,
    /// Path of the source file.
    pub(super) file: Option<String>,
    /// Line in it.
    pub(super) line: Option<u32>,
}

/// A file and what has been read of it.
pub(super) struct Source {
    symbolizer: Symbolizer,
    source: source::Elf,
    spent: Duration,
    failed: bool,
    /// What `source` is a path of: blazesym knows files by path, and that of an open file is the number of its
    /// descriptor.
    _copy: File,
}

impl Source {
    /// A source that reads `file`; `trusted` when only the administrator can have written it. `None` when it is no ELF file,
    /// an odd one, or too large for what is left of `work`. `name` is what the reader of the report knows it by.
    pub(super) fn new(file: &File, name: &str, trusted: bool, work: &mut Work) -> Option<Self> {
        let copy = copy(file, name, work)
            .inspect_err(|error| tracing::debug!(path = name.escape_debug().to_string(), "no symbols: {error}"))
            .ok()?;
        let debug_information = readable_debug_information(&copy.file, trusted)?;
        let mut source = source::Elf::new(reopen_path(&copy.file));
        source.debug_syms = debug_information && copy.with_debug_information;
        Some(Self { symbolizer: symbolizer(), source, spent: Duration::ZERO, failed: false, _copy: copy.file })
    }

    /// The functions at `addresses` (as linked), outermost first and then those inlined into it; empty where there is none.
    pub(super) fn functions(&mut self, addresses: &[u64]) -> Vec<Vec<Function>> {
        addresses.chunks(BATCH).flat_map(|batch| self.batch(batch)).collect()
    }

    fn batch(&mut self, addresses: &[u64]) -> Vec<Vec<Function>> {
        while !self.failed {
            let start = Instant::now();
            let answer = guarded("blazesym", || ask(&self.symbolizer, &self.source, addresses));
            self.spent += start.elapsed();
            if let Some(Ok(functions)) = answer {
                if self.source.debug_syms && self.spent > MAX_TIME {
                    tracing::debug!("debug information takes too long: {:?}", self.spent);
                    self.source.debug_syms = false;
                }
                return functions;
            }
            if let Some(Err(error)) = answer {
                tracing::debug!("cannot read symbols: {}", error.to_string().escape_debug());
            }
            // Whatever state it is in after a panic, it is not used again.
            self.symbolizer = symbolizer();
            self.failed = !std::mem::take(&mut self.source.debug_syms);
        }
        vec![Vec::new(); addresses.len()]
    }
}

/// Whether the debug information in `file` can be given to blazesym. `None` when it is no ELF file, or
/// an odd one.
///
/// Files that only the administrator can have written are `trusted`: then a look that takes seconds for the largest is
/// left out. Links to debug files are never for blazesym to follow: it opens what they name, wherever that is, and
/// waits for a pipe.
fn readable_debug_information(file: &File, trusted: bool) -> Option<bool> {
    let bytes = Bytes::new(file);
    // blazesym neither looks at the byte order nor at the size of section headers: what is found harmless must be what it
    // reads.
    let elf = Elf::parse(&bytes).ok().filter(Elf::is_sound)?;
    let readable = elf.is_runnable() && !elf.has_section(".gnu_debuglink") && elf.unpacks_sanely();
    Some(readable && (trusted || is_harmless(&elf)))
}

fn is_harmless(elf: &Elf<'_>) -> bool {
    if elf.has_section(".gnu_debugaltlink") || elf.has_section(".debug_sup") {
        return false;
    }
    if !elf.has_section(".debug_info") {
        return true;
    }
    let unpacked = |section| elf.unpacked(section, MAX_DEBUG_INFORMATION);
    let sections = (unpacked(".debug_info"), unpacked(".debug_abbrev"));
    let (Some(info), Some(abbreviations)) = sections else { return false };
    guarded("gimli", || is_shallow(&info, &abbreviations)).unwrap_or(false)
}

fn symbolizer() -> Symbolizer {
    Symbolizer::builder()
        .enable_auto_reload(false)
        .enable_code_info(true)
        .enable_inlined_fns(true)
        // Unbounded; done here.
        .enable_demangling(false)
        .build()
}

fn ask(symbolizer: &Symbolizer, source: &source::Elf, addresses: &[u64]) -> blazesym::Result<Vec<Vec<Function>>> {
    let mut functions: Vec<Vec<Function>> = Vec::with_capacity(addresses.len());
    let mut plain = Vec::new();
    for answer in symbols(symbolizer, source, addresses)?.iter().take(addresses.len()) {
        if source.debug_syms && answer.as_sym().is_some_and(|symbol| !is_mangled(&symbol.name)) {
            plain.push(functions.len());
        }
        functions.push(answer.as_sym().map(chain).unwrap_or_default());
    }
    functions.resize(addresses.len(), Vec::new());
    // Debug information that is cut down to line tables has a function's bare name, without the path to it.
    let mut table = source.clone();
    table.debug_syms = false;
    let again: Vec<u64> = plain.iter().map(|index| addresses[*index]).collect();
    for (index, answer) in plain.into_iter().zip(symbols(symbolizer, &table, &again)?) {
        if let (Some(symbol), Some(outermost)) = (answer.as_sym(), functions[index].first_mut())
            && is_mangled(&symbol.name)
        {
            outermost.name = Some(demangle(&symbol.name));
        }
    }
    Ok(functions)
}

fn symbols<'a>(
    symbolizer: &'a Symbolizer,
    source: &source::Elf,
    addresses: &[u64],
) -> blazesym::Result<Vec<Symbolized<'a>>> {
    if addresses.is_empty() {
        return Ok(Vec::new());
    }
    symbolizer.symbolize(&source::Source::Elf(source.clone()), Input::VirtOffset(addresses))
}

/// A symbol and what is inlined into it, outermost first.
fn chain(symbol: &Sym<'_>) -> Vec<Function> {
    let inlined = symbol.inlined.iter().take(MAX_INLINED).map(|inner| (&*inner.name, inner.code_info.as_ref()));
    std::iter::once((&*symbol.name, symbol.code_info.as_deref())).chain(inlined).map(function).collect()
}

fn function((name, code): (&str, Option<&CodeInfo<'_>>)) -> Function {
    let path = code.map(|code| code.to_path().to_string_lossy().into_owned());
    Function {
        name: (!name.is_empty()).then(|| demangle(name)),
        file: path.filter(|path| !path.is_empty()).map(|mut path| {
            path.truncate(path.floor_char_boundary(MAX_PATH));
            path
        }),
        line: code.and_then(|code| code.line).filter(|line| *line > 0),
    }
}
