//! The dynamic loader's list of loaded objects: the order in which it looks symbols up.
//!
//! The auxiliary vector leads to the executable's program headers, those to its dynamic section, its DT_DEBUG entry to the
//! loader's `r_debug`, and that to the list (System V gABI, and glibc's and musl's <link.h>). All of it is the target's
//! memory: hostile, so every loop is bounded.

use std::{fs, io};

use crate::process::{memory::Memory, stat::shown_by};

const AT_PHDR: u64 = 3;
const AT_PHNUM: u64 = 5;
const AT_ENTRY: u64 = 9;
const PT_DYNAMIC: u32 = 2;
const PT_PHDR: u32 = 6;
const DT_NULL: u64 = 0;
const DT_DEBUG: u64 = 21;
/// Size of an `Elf64_Phdr`, bytes.
const PHDR_SIZE: u64 = 56;
/// More than any real list.
pub const MAX_OBJECTS: usize = 16_384;

/// The auxiliary vector: what the kernel told the program at its start.
pub struct Auxv(Vec<(u64, u64)>);

impl Auxv {
    /// Reads that of process `pid`.
    ///
    /// # Errors
    /// No such process, or no right to read it.
    pub fn read(pid: u32) -> io::Result<Self> {
        Ok(Self::parse(&fs::read(format!("/proc/{}/auxv", shown_by(pid)))?))
    }

    /// The pairs of words in `bytes`; a part of one at the end is left out.
    pub fn parse(bytes: &[u8]) -> Self {
        let words: Vec<u64> =
            bytes.chunks_exact(8).filter_map(|word| word.try_into().ok()).map(u64::from_ne_bytes).collect();
        Self(words.chunks_exact(2).map(|pair| (pair[0], pair[1])).collect())
    }

    fn get(&self, key: u64) -> Option<u64> {
        self.0.iter().find(|(other, _)| *other == key).map(|(_, value)| *value)
    }

    /// Address of the program's first instruction, after the loader's.
    pub fn entry(&self) -> Option<u64> {
        self.get(AT_ENTRY)
    }
}

/// For each object in look-up order, executable first, an address that lies in it (its dynamic section). `None` for a
/// static executable, or before the loader has set its list up.
///
/// # Errors
/// No such process, no right to read it, or a list that leads out of its memory.
pub fn search_order(pid: u32) -> io::Result<Option<Vec<u64>>> {
    let auxv = Auxv::read(pid)?;
    let memory = Memory::open(pid)?;
    search_order_in(&auxv, |addr| memory.word(addr))
}

/// Whether the loader of process `pid` is done, but for what is opened later.
pub fn is_loaded(pid: u32) -> bool {
    let is_loaded = || {
        let memory = Memory::open(pid)?;
        let debug = debug(&Auxv::read(pid)?, |addr| memory.word(addr))?;
        // Its state lies behind the head of the list and an address; it is 0 when the list is as it should be.
        let state = debug.map(|debug| memory.word(debug.wrapping_add(24))).transpose()?;
        Ok::<bool, io::Error>(state.is_some_and(|state| state as u32 == 0))
    };
    is_loaded().unwrap_or(false)
}

/// The same of any memory: `word` reads the 64-bit word at an address. At most [`MAX_OBJECTS`] objects.
///
/// # Errors
/// Those of `word`.
pub fn search_order_in(auxv: &Auxv, word: impl Fn(u64) -> io::Result<u64>) -> io::Result<Option<Vec<u64>>> {
    let Some(debug) = debug(auxv, &word)? else { return Ok(None) };
    let mut order = Vec::new();
    // struct r_debug: int version, padding, then the head of the list.
    let mut object = word(debug.wrapping_add(8))?;
    while object != 0 && order.len() < MAX_OBJECTS {
        // struct link_map: l_addr, l_name, l_ld, l_next.
        order.push(word(object.wrapping_add(16))?);
        object = word(object.wrapping_add(24))?;
    }
    Ok((!order.is_empty()).then_some(order))
}

/// Address of the loader's `r_debug`.
fn debug(auxv: &Auxv, word: impl Fn(u64) -> io::Result<u64>) -> io::Result<Option<u64>> {
    let (Some(headers), Some(count)) = (auxv.get(AT_PHDR), auxv.get(AT_PHNUM)) else { return Ok(None) };
    let Some(dynamic) = dynamic_section(&word, headers, count)? else { return Ok(None) };
    debug_pointer(&word, dynamic)
}

/// Address of the executable's dynamic section.
fn dynamic_section(word: impl Fn(u64) -> io::Result<u64>, headers: u64, count: u64) -> io::Result<Option<u64>> {
    let (mut base, mut dynamic) = (0u64, None);
    for index in 0..count.min(1024) {
        let at = headers.wrapping_add(index * PHDR_SIZE);
        let address = word(at.wrapping_add(16))?;
        match word(at)? as u32 {
            PT_PHDR => base = headers.wrapping_sub(address),
            PT_DYNAMIC => dynamic = Some(address),
            _ => {}
        }
    }
    Ok(dynamic.map(|address| base.wrapping_add(address)))
}

fn debug_pointer(word: impl Fn(u64) -> io::Result<u64>, dynamic: u64) -> io::Result<Option<u64>> {
    for index in 0..1024 {
        let at = dynamic.wrapping_add(index * 16);
        match word(at)? {
            DT_NULL => break,
            DT_DEBUG => return Ok(Some(word(at.wrapping_add(8))?).filter(|pointer| *pointer != 0)),
            _ => {}
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_has_libc_in_its_order() {
        assert!(is_loaded(std::process::id()));
        let order = search_order(std::process::id()).unwrap().unwrap();
        let maps = fs::read_to_string("/proc/self/maps").unwrap();
        let holds = |addr: u64, name: &str| {
            maps.lines().any(|line| {
                let range = line.split_whitespace().next().unwrap().split_once('-').unwrap();
                let (start, end) =
                    (u64::from_str_radix(range.0, 16).unwrap(), u64::from_str_radix(range.1, 16).unwrap());
                (start..end).contains(&addr) && line.contains(name)
            })
        };
        let exe = fs::read_link("/proc/self/exe").unwrap();
        assert!(holds(order[0], exe.to_str().unwrap()), "the executable is first");
        assert!(order.iter().any(|addr| holds(*addr, "libc.so")), "libc is in it");
    }
}
