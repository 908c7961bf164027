//! The Go runtime of one process: where its executable is mapped, and where its variables are.

use super::{
    Executable, ReadMemory, Unreadable,
    bytes::u64_at,
    mentions::{self, MAX_CODE},
};
use crate::process::memory::Span;

/// Bytes of memory that are searched at once, and at most, for `moduledata`.
const CHUNK: u64 = 1 << 20;
const MAX_SEARCHED: u64 = 512 << 20;

/// The runtime of a process. Addresses are those in the process.
pub struct Runtime {
    /// Its executable.
    pub executable: Executable,
    /// What is added to addresses as linked.
    pub bias: u64,
    /// First byte of Go code, and behind the last.
    pub text: (u64, u64),
    /// Where functions' data begins.
    gofunc: u64,
    /// Address of each of [`VARIABLES`](super::executable::VARIABLES).
    pub variables: [u64; 2],
}

impl Runtime {
    /// Finds the runtime in the memory of a process whose program begins at the address `entry`.
    ///
    /// # Errors
    /// Something that is needed cannot be found, or memory cannot be read.
    pub fn attach(executable: Executable, entry: u64, memory: &ReadMemory<'_>) -> Result<Self, Unreadable> {
        let bias = entry.wrapping_sub(executable.entry);
        let moduledata = find_moduledata(&executable, bias, memory)?.ok_or(Unreadable::NoModuledata)?;
        let layout = executable.layout.moduledata;
        let word = |at| u64_at(&moduledata, at).ok_or(Unreadable::NoModuledata);
        let text = (word(layout.text)?, word(layout.text_end)?);
        let gofunc = word(layout.gofunc)?;
        let mut runtime = Self { executable, bias, text, gofunc, variables: [0; 2] };
        let variables = match runtime.executable.variables {
            Some(variables) => Some(variables),
            None => runtime.voted_variables(),
        };
        let version = || runtime.executable.version.to_string();
        runtime.variables = variables.ok_or_else(|| Unreadable::NoVariables { version: version() })?;
        for variable in &mut runtime.variables {
            *variable = variable.wrapping_add(bias);
        }
        Ok(runtime)
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
    fn voted_variables(&self) -> Option<[u64; 2]> {
        let text = self.text.0.wrapping_sub(self.bias);
        let code = |function: &str| {
            let (function, size) = self.executable.tables.function_named(function)?;
            let address = text.checked_add(u64::from(function.entry))?;
            let mut code = vec![0; size.min(MAX_CODE) as usize];
            self.executable.read(address, &mut code)?;
            Some((code, address))
        };
        let found = mentions::vote(&self.executable.mentions, code);
        let [length, list] = super::executable::VARIABLES.map(|name| found.get(name).copied());
        Some([length?, list?])
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
