//! Code that some process runs otherwise than its file has it: patched by itself (hooks of allocators, hot patches), or by a debugger.
//!
//! The kernel puts its breakpoint wherever the file is mapped, whatever is there, and then has the instruction of the file run. In a
//! process that has another one there, that ends it. So what is altered anywhere is not probed.

use std::{
    fs,
    io::BufReader,
    os::unix::fs::FileExt as _,
    time::{Duration, Instant},
};

use hashbrown::HashSet;
use iced_x86::{Decoder, DecoderOptions};
use rustix::fs::{major, minor};

use crate::{
    event::Pid,
    files::{
        module::{Identity, Module},
        root::ProcessDirectory,
    },
    probe::resolve::Function,
    process::memory::{Span, read_spans},
    space::maps,
};

/// Longest instruction of x86-64, bytes.
const LONGEST: usize = 15;
/// The breakpoint (`int3`): of a probe that is there already, or of a debugger. The kernel knows what to do with either.
const BREAKPOINT: u8 = 0xcc;
/// A nop of five bytes, which kernels from 6.18 on replace by a call of theirs when it is probed; and how that begins.
const NOP: [u8; 5] = [0x0f, 0x1f, 0x44, 0x00, 0x00];
const CALL: u8 = 0xe8;

/// For how long what processes have mapped is believed: as long as the files of one of them are probed, about; and how many times as
/// long as it took to read that.
const FRESH: Duration = Duration::from_secs(1);
const WORTH: u32 = 50;
/// Most mappings of a file in one process that are compared. Nobody has as many but to harm.
const MAX_MAPPINGS: usize = 64;
/// Bytes of a page, and of what the kernel tells of one in `pagemap` (proc(5)); which of that says that it is there, is swapped, is a file's.
const PAGE: u64 = 4096;
const ENTRY: usize = 8;
const PRESENT: u64 = 1 << 63;
const SWAPPED: u64 = 1 << 62;
const OF_FILE: u64 = 1 << 61;

/// Device and inode of a file, as the kernel prints them of mappings: not everywhere as it tells them of the file.
pub(super) type Printed = HashSet<((u32, u32), u64)>;

/// A part of a file that is mapped as code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Code {
    file: ((u32, u32), u64),
    start: u64,
    end: u64,
    /// Offset in the file, bytes.
    offset: u64,
}

/// What all processes of the machine have mapped as code.
#[derive(Default)]
pub(super) struct Machine {
    processes: Vec<(Pid, Vec<Code>)>,
    /// Until when that is believed.
    fresh_until: Option<Instant>,
}

/// A function whose code is not that of the file in a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Altered {
    /// Its number among those that were asked for.
    pub function: usize,
    /// The process.
    pub pid: Pid,
}

/// An instruction of a function, as the file has it.
struct Original {
    function: usize,
    offset: u64,
    bytes: [u8; LONGEST],
    length: usize,
}

impl Machine {
    /// Which of these functions of a file, which is printed as `files`, are altered in process `pid`, or in any other.
    pub(super) fn altered(
        &mut self,
        pid: Pid,
        files: &Printed,
        module: &Module,
        functions: &[Function],
    ) -> Vec<Altered> {
        let originals = originals(module, functions);
        let mut altered = altered_in(pid, &code(pid), files, &originals);
        let begin = Instant::now();
        if self.fresh_until.is_none_or(|until| until < begin) {
            let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
            let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
            self.processes = pids.map(|pid| (pid, code(pid))).filter(|(_, code)| !code.is_empty()).collect();
            self.fresh_until = Some(Instant::now() + FRESH.max(begin.elapsed() * WORTH));
        }
        for (other, code) in self.processes.iter().filter(|(other, _)| *other != pid) {
            altered.extend(altered_in(*other, code, files, &originals));
        }
        altered
    }
}

/// Which of these functions of a file are altered in process `pid`.
pub fn altered(pid: Pid, module: &Module, functions: &[Function]) -> Vec<Altered> {
    altered_in(pid, &code(pid), &printed(pid, module), &originals(module, functions))
}

/// What a process has mapped as code of files, as far as it can be read.
fn code(pid: Pid) -> Vec<Code> {
    let mappings = read(pid, |mapping| mapping.executable && mapping.inode != 0);
    let code = |mapping: maps::Mapping| {
        let maps::Mapping { device, inode, start, end, offset, .. } = mapping;
        Code { file: (device, inode), start, end, offset }
    };
    mappings.into_iter().map(code).collect()
}

/// How the kernel prints a file that process `pid` has mapped; nothing where it has not.
pub(super) fn printed(pid: Pid, module: &Module) -> Printed {
    let is_it = |mapping: &maps::Mapping| match module.identity() {
        // Another one may have had the path.
        Identity::File { device, inode } if mapping.device == (major(*device), minor(*device)) => {
            mapping.inode == *inode
        }
        _ => mapping.path == module.path(),
    };
    let mappings = read(pid, |mapping| mapping.executable && mapping.inode != 0 && is_it(mapping));
    mappings.into_iter().map(|mapping| (mapping.device, mapping.inode)).collect()
}

fn read(pid: Pid, keep: impl Fn(&maps::Mapping) -> bool) -> Vec<maps::Mapping> {
    let text = ProcessDirectory::with_memory(pid).and_then(|process| process.file("maps"));
    text.and_then(|text| maps::read(BufReader::new(text), keep)).unwrap_or_default()
}

/// All instructions at which the functions may be probed, however outcomes are seen.
fn originals(module: &Module, functions: &[Function]) -> Vec<Original> {
    let Some(file) = module.file() else { return Vec::new() };
    let original = |function: usize, offset: u64| {
        let mut bytes = [0; LONGEST];
        let read = file.read_at(&mut bytes, offset).ok()?;
        let length = Decoder::new(64, &bytes[..read], DecoderOptions::NONE).decode().len();
        (length > 0).then_some(Original { function, offset, bytes, length })
    };
    let of_one = |(number, function): (usize, &Function)| {
        let exits = function.exit_places.iter().map(|(offset, _)| *offset);
        let all = exits.chain(function.returns.offsets.iter().copied()).chain([function.file_offset]);
        all.filter_map(|offset| original(number, offset)).collect::<Vec<Original>>()
    };
    functions.iter().enumerate().flat_map(of_one).collect()
}

fn altered_in(pid: Pid, code: &[Code], files: &Printed, originals: &[Original]) -> Vec<Altered> {
    let mut places: Vec<(&Original, Span)> = Vec::new();
    for code in code.iter().filter(|code| files.contains(&code.file)).take(MAX_MAPPINGS) {
        for original in originals {
            let inside = original.offset.checked_sub(code.offset);
            // What goes on in another mapping is not looked at.
            let inside = inside.filter(|inside| inside + original.length as u64 <= code.end - code.start);
            places.extend(inside.map(|inside| (original, Span { addr: code.start + inside, len: original.length })));
        }
    }
    // What is a page of the file is as the file is, and may have to be read from a file system that does not answer.
    let pages = |span: &Span| [span.addr / PAGE, (span.addr + span.len as u64 - 1) / PAGE];
    let own = own_pages(pid, places.iter().flat_map(|(_, span)| pages(span)).collect());
    places.retain(|(_, span)| pages(span).iter().any(|page| own.contains(page)));
    let spans: Vec<Span> = places.iter().map(|(_, span)| *span).collect();
    let mut memory = vec![0; spans.iter().map(|span| span.len).sum()];
    // Without the right to read it, or when it has ended: nothing is known.
    let Ok(readable) = read_spans(pid, &spans, &mut memory) else { return Vec::new() };
    let mut memory = &memory[..];
    let mut altered = Vec::new();
    for ((original, span), is_readable) in places.iter().zip(readable) {
        let (here, rest) = memory.split_at(span.len);
        memory = rest;
        if is_readable && !is_original(&original.bytes[..original.length], here) {
            altered.push(Altered { function: original.function, pid });
        }
    }
    altered.dedup();
    altered
}

/// Which of these pages are process `pid`'s own, as copies of the file's are that were written to. By their numbers.
fn own_pages(pid: Pid, mut pages: HashSet<u64>) -> HashSet<u64> {
    let pagemap = ProcessDirectory::with_memory(pid).and_then(|process| process.file("pagemap")).ok();
    let is_own = |page: &u64| {
        let mut entry = [0; ENTRY];
        let read = pagemap.as_ref().map(|pagemap| pagemap.read_exact_at(&mut entry, page * ENTRY as u64));
        let entry = u64::from_ne_bytes(entry);
        matches!(read, Some(Ok(()))) && (entry & PRESENT != 0 && entry & OF_FILE == 0 || entry & SWAPPED != 0)
    };
    pages.retain(is_own);
    pages
}

/// Whether what is in memory is the instruction of the file, probed or not.
fn is_original(original: &[u8], here: &[u8]) -> bool {
    let is_probed = is_probed(original[0], here[0]);
    here == original || is_probed && (here[1..] == original[1..] || original == NOP)
}

/// Whether an instruction that begins with `here` in memory and with `original` in its file has a probe.
pub(super) fn is_probed(original: u8, here: u8) -> bool {
    here == BREAKPOINT || here == CALL && original == NOP[0]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_probe_alters_nothing() {
        let push = [0x41, 0x57];
        for (here, is_same) in
            [([0x41, 0x57], true), ([0xcc, 0x57], true), ([0xe9, 0x57], false), ([0xcc, 0x56], false)]
        {
            assert_eq!(is_original(&push, &here), is_same, "{here:x?}");
        }
        for (here, is_same) in
            [([0xe8, 1, 2, 3, 4], true), ([0xcc, 0x1f, 0x44, 0, 0], true), ([0xe9, 1, 2, 3, 4], false)]
        {
            assert_eq!(is_original(&NOP, &here), is_same, "{here:x?}");
        }
    }
}
