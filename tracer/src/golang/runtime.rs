//! The Go runtime of one process: where its executable is mapped, and where its variables are.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    sync::Arc,
};

use super::{
    Executable, Layout, ReadMemory, Unreadable,
    bytes::u64_at,
    executable::VARIABLES,
    mentions::{self, MAX_CODE},
    pclntab::{Function, Pclntab},
};
use crate::process::memory::Span;

/// Bytes of memory that are searched at once, and at most, for `moduledata`.
const CHUNK: u64 = 1 << 20;
const MAX_SEARCHED: u64 = 512 << 20;

/// What the file of a Go runtime is to its process; paths as the process sees them: hostile text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Home {
    /// Its executable.
    Executable,
    /// A library with a runtime of its own (`-buildmode=c-shared`).
    Library(Arc<str>),
    /// Code for the executable's runtime (`-buildmode=plugin`): the runtime in this file is dead.
    Plugin(Arc<str>),
}

/// A runtime of a process. Addresses are those in the process.
pub struct Runtime {
    /// What its file is.
    pub home: Home,
    /// Its executable.
    pub executable: Executable,
    /// What is added to addresses as linked.
    pub bias: u64,
    /// First byte of Go code, and behind the last.
    pub text: (u64, u64),
    /// Where functions' data begins.
    gofunc: u64,
    /// Addresses of those of [`VARIABLES`](super::executable::VARIABLES) that were found.
    variables: BTreeMap<String, u64>,
}

impl Runtime {
    /// Finds the runtime in the memory of a process whose program begins at the address `entry`.
    ///
    /// # Errors
    /// Something that is needed cannot be found, or memory cannot be read.
    pub fn attach(executable: Executable, entry: u64, memory: &ReadMemory<'_>) -> Result<Self, Unreadable> {
        let bias = entry.wrapping_sub(executable.entry);
        Self::attach_at(executable, bias, Home::Executable, memory)
    }

    /// The same for a file that is loaded `bias` bytes behind where it was linked for.
    ///
    /// # Errors
    /// Something that is needed cannot be found, or memory cannot be read.
    pub fn attach_at(
        executable: Executable,
        bias: u64,
        home: Home,
        memory: &ReadMemory<'_>,
    ) -> Result<Self, Unreadable> {
        let moduledata = find_moduledata(&executable, bias, memory)?.ok_or(Unreadable::NoModuledata)?;
        let layout = executable.layout.moduledata;
        let word = |at| u64_at(&moduledata, at).ok_or(Unreadable::NoModuledata);
        let text = (word(layout.text)?, word(layout.text_end)?);
        let gofunc = word(layout.gofunc)?;
        let mut runtime = Self { home, executable, bias, text, gofunc, variables: BTreeMap::new() };
        let mut variables = runtime.executable.variables.clone();
        if variables.len() < VARIABLES.len() {
            variables.extend(runtime.voted_variables());
        }
        runtime.variables = variables.into_iter().map(|(name, address)| (name, address.wrapping_add(bias))).collect();
        Ok(runtime)
    }

    /// Of no process: with this layout, these tables, and its variables in consecutive words from the address `variables` on.
    #[doc(hidden)]
    pub fn made_up(layout: Layout, tables: Pclntab, variables: u64) -> io::Result<Self> {
        let names = VARIABLES.into_iter().map(str::to_owned);
        let variables = names.zip((0..).map(|index| variables.wrapping_add(8 * index))).collect();
        let executable = Executable::made_up(layout, tables)?;
        Ok(Self { home: Home::Executable, executable, bias: 0, text: (0, u64::from(u32::MAX)), gofunc: 0, variables })
    }

    /// Path of the library that it is in; `None` for the executable.
    pub fn library(&self) -> Option<&Arc<str>> {
        match &self.home {
            Home::Executable => None,
            Home::Library(path) | Home::Plugin(path) => Some(path),
        }
    }

    /// Where a variable of the runtime is, one of [`VARIABLES`](super::executable::VARIABLES).
    ///
    /// # Errors
    /// It could not be found in an executable without symbols.
    pub(super) fn variable(&self, name: &str) -> Result<u64, Unreadable> {
        let missing = || Unreadable::NoVariable { name: name.to_owned(), version: self.executable.version.to_string() };
        self.variables.get(name).copied().ok_or_else(missing)
    }

    /// Where in the executable as linked a function's code is.
    pub(super) fn address(&self, function: Function) -> Option<u64> {
        self.text.0.wrapping_sub(self.bias).checked_add(u64::from(function.entry))
    }

    /// The same, and the code itself, up to `limit` bytes.
    pub(super) fn code(&self, function: Function, size: u32, limit: u32) -> Option<(u64, Vec<u8>)> {
        let address = self.address(function)?;
        let mut code = vec![0; size.min(limit) as usize];
        self.executable.read(address, &mut code)?;
        Some((address, code))
    }

    /// Where in the text code is, bytes; `None` for what is no Go code.
    pub fn text_offset(&self, pc: u64) -> Option<u64> {
        (self.text.0..self.text.1).contains(&pc).then(|| pc - self.text.0)
    }

    /// Fills `buffer` with what is `offset` bytes behind the begin of functions' data.
    pub fn read_function_data(&self, offset: u32, buffer: &mut [u8]) -> Option<()> {
        let address = self.gofunc.wrapping_sub(self.bias).checked_add(u64::from(offset))?;
        self.executable.read(address, buffer)
    }

    /// Where the file mentions the variables, as linked.
    fn voted_variables(&self) -> BTreeMap<String, u64> {
        let mentions = &self.executable.mentions;
        let wanted: BTreeSet<&str> = mentions.iter().map(|mention| &*mention.function).collect();
        let functions = self.executable.tables.functions();
        let voters: BTreeMap<String, (Function, u32)> = functions
            .filter(|(name, ..)| wanted.contains(&**name))
            .map(|(name, function, size)| (name.into_owned(), (function, size)))
            .collect();
        let code = |name: &str| {
            let (function, size) = voters.get(name)?;
            let (address, code) = self.code(*function, *size, MAX_CODE)?;
            Some((code, address))
        };
        mentions::vote(mentions, code)
    }
}

/// The bytes of `moduledata`: the one place in the data that begins with the addresses of pclntab and of the names in it.
fn find_moduledata(executable: &Executable, bias: u64, memory: &ReadMemory<'_>) -> Result<Option<Vec<u8>>, Unreadable> {
    let tables = executable.tables_at.wrapping_add(bias);
    let names = tables.wrapping_add(executable.tables.names_at());
    let mut left = MAX_SEARCHED;
    // What can be written comes last in a file, and holds it.
    for segment in executable.segments.iter().rev().filter(|segment| !segment.executable) {
        let mut at = 0;
        while at < segment.size && left > 0 {
            let addr = segment.address.wrapping_add(bias).wrapping_add(at);
            // One word more, so that a pair is not cut in two.
            let chunk = read(memory, addr, (CHUNK + 8).min(segment.size - at))?.unwrap_or_default();
            for (index, _) in chunk.chunks_exact(8).enumerate().filter(|(_, word)| **word == tables.to_le_bytes()) {
                let found = addr + 8 * index as u64;
                if u64_at(&chunk, 8 * index + 8) == Some(names)
                    && let Some(moduledata) = read(memory, found, executable.layout.moduledata.size as u64)?
                    && is_sane(&moduledata, executable, bias)
                {
                    return Ok(Some(moduledata));
                }
            }
            at += CHUNK;
            left = left.saturating_sub(CHUNK);
        }
    }
    Ok(None)
}

/// Whether the code that it tells of is code of the executable.
fn is_sane(moduledata: &[u8], executable: &Executable, bias: u64) -> bool {
    let layout = executable.layout.moduledata;
    let (Some(text), Some(end)) = (u64_at(moduledata, layout.text), u64_at(moduledata, layout.text_end)) else {
        return false;
    };
    let linked = text.wrapping_sub(bias);
    let mut code = executable.segments.iter().filter(|segment| segment.executable);
    text < end && code.any(|code| linked.checked_sub(code.address).is_some_and(|inside| inside < code.size))
}

fn read(memory: &ReadMemory<'_>, addr: u64, len: u64) -> Result<Option<Vec<u8>>, Unreadable> {
    let mut bytes = vec![0; len as usize];
    let readable = memory(&[Span { addr, len: bytes.len() }], &mut bytes)?;
    Ok((readable == [true]).then_some(bytes))
}
