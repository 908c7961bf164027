//! Allocators that show by what their code says, where no symbol tells them: in stripped files.

use std::{fs::File, os::unix::fs::FileExt as _};

use aho_corasick::AhoCorasick;

/// What keeps a shadow of a program's memory, which takes memory as an allocator does.
pub const THREAD_SANITIZER: &str = "ThreadSanitizer";

/// Allocators, each by a text that its code has in it, stripped or not: a name that it exports, or what it says when it fails.
const TEXTS: [(&[u8], &str, Proof); 17] = [
    (b"<jemalloc>", "jemalloc", Proof::Own),
    (b"_rjem_", "jemalloc", Proof::Own),
    (b"je_mallocx", "jemalloc", Proof::Mention),
    (b"mimalloc: ", "mimalloc", Proof::Own),
    (b"mi_malloc", "mimalloc", Proof::Mention),
    (b"tc_malloc", "tcmalloc", Proof::Mention),
    (b"TCMALLOC_", "tcmalloc", Proof::Mention),
    (b"rpmalloc", "rpmalloc", Proof::Mention),
    (b"snmalloc", "snmalloc", Proof::Mention),
    (b"scalable_malloc\0", "tbbmalloc", Proof::Mention),
    (b"PartitionAlloc", "PartitionAlloc", Proof::Mention),
    (b"partition_alloc", "PartitionAlloc", Proof::Mention),
    (b"Scudo ERROR", "Scudo", Proof::Own),
    (b"bmalloc", "bmalloc", Proof::Mention),
    (b"dlmalloc\0", "dlmalloc", Proof::Mention),
    (b"nedmalloc", "nedmalloc", Proof::Mention),
    (b"ThreadSanitizer:", THREAD_SANITIZER, Proof::Mention),
];
/// What CPython says: it has mimalloc in it from 3.13 on, and does not use it unless it is told to.
const CPYTHON: &[u8] = b"Py_Initialize";
/// Length of the longest of those texts: two parts of a file share so much, so that one that begins a part is in the part before.
const OVERLAP: u64 = 16;
/// Bytes that are looked at in one go.
const PART: usize = 1 << 20;

/// What a text says of the file that it is in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Proof {
    /// The file may speak of the allocator only.
    Mention,
    /// The allocator says it itself.
    Own,
}

/// Names of the allocators of which `file` has a text that proves at least so much, each once; `may_read` is asked before each
/// part, with its length at most (bytes).
pub fn allocators(file: &File, least: Proof, mut may_read: impl FnMut(u64) -> bool) -> Vec<&'static str> {
    let all = TEXTS.iter().map(|(text, ..)| *text).chain([CPYTHON]);
    let Ok(texts) = AhoCorasick::new(all) else { return Vec::new() };
    let mut is_cpython = false;
    let mut part = vec![0; PART];
    let mut found: Vec<&'static str> = Vec::new();
    let mut at = 0;
    while may_read(PART as u64) {
        let Ok(read @ 1..) = file.read_at(&mut part, at) else { break };
        for text in texts.find_iter(&part[..read]) {
            let begins_word = match text.start().checked_sub(1) {
                Some(before) => !part[before].is_ascii_lowercase(),
                None => at == 0,
            };
            let Some((_, name, proof)) = TEXTS.get(text.pattern().as_usize()) else {
                is_cpython = true;
                continue;
            };
            // Python's allocator is in obmalloc.c.
            if begins_word && *proof >= least && !found.contains(name) {
                found.push(name);
            }
        }
        if read as u64 <= OVERLAP {
            break;
        }
        at += read as u64 - OVERLAP;
    }
    if is_cpython && least == Proof::Own {
        found.retain(|name| *name != "mimalloc");
    }
    found
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    fn found(content: &[u8], least: Proof) -> Vec<&'static str> {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(content).unwrap();
        allocators(&file, least, |_| true)
    }

    #[test]
    fn an_allocator_is_found_wherever_it_lies() {
        for at in [0, PART - 5, PART - 1, 3 * PART] {
            let mut content = vec![b'.'; at];
            content.extend(b"mimalloc: warning\0<jemalloc>: \0<jemalloc>");
            assert_eq!(found(&content, Proof::Own), ["mimalloc", "jemalloc"], "at {at}");
        }
        assert!(TEXTS.iter().all(|(text, ..)| text.len() as u64 <= OVERLAP));
    }

    #[test]
    fn who_speaks_of_an_allocator_need_not_have_it() {
        let content = b"LD_PRELOAD one that has mi_malloc";
        assert_eq!(found(content, Proof::Mention), ["mimalloc"]);
        assert!(found(content, Proof::Own).is_empty());
        let python = b"mimalloc: warning\0Py_Initialize\0<jemalloc>";
        assert_eq!(found(python, Proof::Own), ["jemalloc"]);
    }

    #[test]
    fn what_keeps_a_shadow_is_no_allocator_to_be_probed() {
        let race = b"\0WARNING: ThreadSanitizer: %s\0";
        assert_eq!(found(race, Proof::Mention), [THREAD_SANITIZER]);
        assert!(found(race, Proof::Own).is_empty());
    }

    #[test]
    fn parts_of_other_words_are_no_allocators() {
        assert!(found(b"malloc calloc free jemalloc ../Objects/obmalloc.c", Proof::Mention).is_empty());
        for at in 0..20 {
            let mut content = vec![b'.'; PART - at];
            content.extend(b"Objects/obmalloc.c");
            assert!(found(&content, Proof::Mention).is_empty(), "{at} bytes before the end of a part");
            let mut content = vec![b'.'; PART - at];
            content.extend(b"_ZN7bmalloc3api");
            assert_eq!(found(&content, Proof::Mention), ["bmalloc"], "{at}");
        }
    }
}
