//! Executables that are forged, and memory that changes while it is read.

use std::{cell::RefCell, fs, io::Write as _};

use tracer::{
    golang::{Executable, Runtime, Symbols, read_goroutines},
    process::memory::{Span, read_spans},
    space::link_map::Auxv,
};

use crate::harness::{STOCK, Target, go_program, require_root};

/// A source of random numbers (xorshift) that is the same in every run.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 >> 11
    }

    /// Puts something that may mean something in the place of some bytes.
    fn forge(&mut self, bytes: &mut [u8]) {
        if bytes.is_empty() {
            return;
        }
        let at = self.next() as usize % bytes.len();
        let value = [0, 1, 8, 0x7f, 0x80, 0xff, u64::MAX, 1 << 47, self.next()][self.next() as usize % 9];
        for (byte, new) in bytes[at..].iter_mut().zip(value.to_le_bytes()).take(1 + self.next() as usize % 8) {
            *byte = new;
        }
    }
}

/// Opens a forged executable, and asks it everything that a reader would.
fn open(bytes: &[u8]) -> bool {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(bytes).unwrap();
    let Ok(executable) = Executable::open(file) else { return false };
    for (_, function, size) in executable.tables.functions().take(100) {
        let offset = u64::from(function.entry) + u64::from(size) / 2;
        executable.tables.stack_use(function, offset);
        executable.tables.frames(function, offset, &executable.layout.inlined_call, |_, _| None);
    }
    true
}

/// Forged where it hurts: headers, build information, pclntab, DWARF.
#[test]
fn forged_executables_do_no_harm() {
    for flags in [STOCK, &["-ldflags=-s -w"]] {
        let original = fs::read(go_program("goroutines", flags)).unwrap();
        assert!(open(&original));
        for length in [0, 4, 64, 1000, 4096, 100_000, original.len() / 2, original.len() - 1000] {
            open(&original[..length]);
        }
        let find = |bytes: &[u8]| original.windows(bytes.len()).position(|window| window == bytes).unwrap();
        let tables = find(&[0xff, 0xff, 0xff, 0, 0, 1, 8]) - 1;
        let info = find(b"\xff Go buildinf:");
        let places =
            [0..64, 64..1024, info..info + 64, tables..tables + 72, tables..tables + 500_000, 0..original.len()];
        let mut random = Random(0x9e37_79b9_7f4a_7c15);
        for place in places {
            for _ in 0..25 {
                let mut forged = original.clone();
                random.forge(&mut forged[place.clone()]);
                random.forge(&mut forged[place.clone()]);
                open(&forged);
            }
        }
    }
}

/// What is read of a process is not what it was, here and there: as it would be when it changes, or is hostile.
#[test]
fn memory_that_changes_does_no_harm() {
    require_root();
    for flags in [STOCK, &["-ldflags=-s -w"]] {
        let program = go_program("goroutines", flags);
        let target = Target::start_with(&program, &["300"], &[]);
        let pid = target.pid();
        let entry = Auxv::read(pid).unwrap().entry().unwrap();
        let (mut read, mut refused) = (0, 0);
        for rarity in [3, 10, 100, 1000, 10_000] {
            for seed in 1..=20 {
                let random = RefCell::new(Random(seed << 32 | 0x7f4a_7c15));
                let forging = |spans: &[Span], buffer: &mut [u8]| {
                    let mut readable = read_spans(pid, spans, buffer)?;
                    let mut random = random.borrow_mut();
                    let mut rest = buffer;
                    for (span, readable) in spans.iter().zip(&mut readable) {
                        let (bytes, behind) = rest.split_at_mut(span.len);
                        rest = behind;
                        if random.next().is_multiple_of(rarity) {
                            random.forge(bytes);
                        }
                        *readable &= !random.next().is_multiple_of(10 * rarity);
                    }
                    Ok(readable)
                };
                let executable = Executable::open(fs::File::open(&program).unwrap()).unwrap();
                let found = Runtime::attach(executable, entry, &forging)
                    .and_then(|runtime| Ok((read_goroutines(&runtime, &forging, &|| ())?, runtime)));
                let Ok((goroutines, runtime)) = found else {
                    refused += 1;
                    continue;
                };
                read += 1;
                let mut symbols = Symbols::new(&runtime, "program");
                let total: u64 = goroutines.groups.iter().map(|group| group.count).sum();
                assert!(total <= 1 << 24, "{total} goroutines");
                for group in &goroutines.groups {
                    assert!(symbols.stack(&group.calls).iter().count() < 100_000);
                }
            }
        }
        assert!(read > 10 && refused > 10, "{read} read, {refused} refused: not all kinds of harm were tried");
    }
}
