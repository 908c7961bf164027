//! What may have taken memory that was not recorded: other allocators in the mapped files, runtimes that manage memory
//! themselves, children. Files are looked at only where there is something to explain, within bounds of bytes and of time.

use std::{
    os::unix::fs::FileExt as _,
    sync::Arc,
    time::{Duration, Instant},
};

use aho_corasick::AhoCorasick;
use hashbrown::HashSet;

use crate::{
    files::module::Module,
    profile::{Reason, Runtime},
    space::address_space::AddressSpace,
};

/// Allocators, each by a text that its code has in it, stripped or not: a name that it exports, or what it says when it fails.
const ALLOCATORS: [(&[u8], &str); 16] = [
    (b"<jemalloc>", "jemalloc"),
    (b"_rjem_", "jemalloc"),
    (b"je_mallocx", "jemalloc"),
    (b"mimalloc: ", "mimalloc"),
    (b"mi_malloc", "mimalloc"),
    (b"tc_malloc", "tcmalloc"),
    (b"TCMALLOC_", "tcmalloc"),
    (b"rpmalloc", "rpmalloc"),
    (b"snmalloc", "snmalloc"),
    (b"scalable_malloc\0", "tbbmalloc"),
    (b"PartitionAlloc", "PartitionAlloc"),
    (b"partition_alloc", "PartitionAlloc"),
    (b"Scudo ERROR", "Scudo"),
    (b"bmalloc", "bmalloc"),
    (b"dlmalloc\0", "dlmalloc"),
    (b"nedmalloc", "nedmalloc"),
];
/// Length of the longest of those texts: two parts of a file share so much, so that one that begins a part is in the part before.
const OVERLAP: u64 = 16;

/// Bytes of files that are looked at, and time for it.
const MAX_BYTES: u64 = 1 << 30;
const MAX_TIME: Duration = Duration::from_secs(3);
/// Bytes that are looked at in one go.
const PART: usize = 1 << 20;
/// Threads whose children are counted.
const MAX_THREADS: usize = 256;
/// Environment variable that has CPython allocate everything by malloc.
const PYTHON_BY_MALLOC: &[u8] = b"PYTHONMALLOC=malloc";

/// What there is in process `pid`.
pub fn look(pid: u32) -> Vec<Reason> {
    let mut space = AddressSpace::new(pid);
    if let Err(error) = space.refresh() {
        tracing::debug!("cannot look for what takes memory in {pid}: {error}");
        return Vec::new();
    }
    let mut known = HashSet::new();
    let mut files: Vec<Arc<Module>> = space.executable_files().map(|(module, _)| module).collect();
    files.retain(|file| known.insert(file.identity().clone()));
    let mut runtimes: Vec<Runtime> = Vec::new();
    for runtime in files.iter().filter_map(|file| Runtime::of_file(file.path())) {
        let by_malloc = runtime == Runtime::Python && python_uses_malloc(pid);
        if !by_malloc && !runtimes.contains(&runtime) {
            runtimes.push(runtime);
        }
    }
    let mut reasons = allocators(&files);
    reasons.extend(runtimes.into_iter().map(Reason::Runtime));
    reasons
}

fn allocators(files: &[Arc<Module>]) -> Vec<Reason> {
    let Ok(texts) = AhoCorasick::new(ALLOCATORS.map(|(text, _)| text)) else { return Vec::new() };
    let begin = Instant::now();
    let mut budget = MAX_BYTES;
    let mut part = vec![0; PART];
    let mut found: Vec<Reason> = Vec::new();
    for module in files.iter().filter(|module| module.is_elf()) {
        let Some(file) = module.file() else { continue };
        let mut at = 0;
        while budget > 0 && begin.elapsed() < MAX_TIME {
            let Ok(read @ 1..) = file.read_at(&mut part, at) else { break };
            for text in texts.find_iter(&part[..read]) {
                let begins_word = match text.start().checked_sub(1) {
                    Some(before) => !part[before].is_ascii_lowercase(),
                    None => at == 0,
                };
                // Python's allocator is in obmalloc.c.
                if !begins_word {
                    continue;
                }
                let reason = Reason::Allocator(ALLOCATORS[text.pattern().as_usize()].1, module.path().to_owned());
                if !found.contains(&reason) {
                    found.push(reason);
                }
            }
            if read as u64 <= OVERLAP {
                break;
            }
            at += read as u64 - OVERLAP;
            budget = budget.saturating_sub(read as u64);
        }
    }
    found
}

fn python_uses_malloc(pid: u32) -> bool {
    let environment = std::fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
    environment.split(|byte| *byte == 0).any(|variable| variable.starts_with(PYTHON_BY_MALLOC))
}

/// The children that a process has now.
pub(super) fn children(pid: u32) -> Vec<u32> {
    let Ok(threads) = std::fs::read_dir(format!("/proc/{pid}/task")) else { return Vec::new() };
    let of_thread = |thread: std::fs::DirEntry| {
        let children = std::fs::read_to_string(thread.path().join("children")).unwrap_or_default();
        children.split_whitespace().filter_map(|pid| pid.parse().ok()).collect::<Vec<_>>()
    };
    threads.flatten().take(MAX_THREADS).flat_map(of_thread).collect()
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    fn module(content: &[u8]) -> Arc<Module> {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(b"\x7fELF").unwrap();
        file.write_all(content).unwrap();
        Arc::new(Module::of_file("/lib/x.so", file).unwrap())
    }

    #[test]
    fn an_allocator_is_found_wherever_it_lies() {
        for at in [0, PART - 4 - 5, PART - 4 - 1, 3 * PART] {
            let mut content = vec![b'.'; at];
            content.extend(b"mimalloc: warning\0<jemalloc>: \0<jemalloc>");
            let found = allocators(&[module(&content)]);
            let both = ["mimalloc", "jemalloc"].map(|name| Reason::Allocator(name, "/lib/x.so".to_owned()));
            assert_eq!(found, both, "at {at}");
        }
        assert!(ALLOCATORS.iter().all(|(text, _)| text.len() as u64 <= OVERLAP));
    }

    #[test]
    fn parts_of_other_words_are_no_allocators() {
        assert_eq!(allocators(&[module(b"malloc calloc free jemalloc ../Objects/obmalloc.c")]), []);
        for at in 0..20 {
            let mut content = vec![b'.'; PART - 4 - at];
            content.extend(b"Objects/obmalloc.c");
            assert_eq!(allocators(&[module(&content)]), [], "{at} bytes before the end of a part");
            let mut content = vec![b'.'; PART - 4 - at];
            content.extend(b"_ZN7bmalloc3api");
            assert_eq!(allocators(&[module(&content)]), [Reason::Allocator("bmalloc", "/lib/x.so".to_owned())], "{at}");
        }
    }

    #[test]
    fn runtimes_are_known_by_their_files() {
        for (path, expected) in [
            ("/usr/bin/python3.11", Some(Runtime::Python)),
            ("/opt/lib/libpython3.12.so.1.0", Some(Runtime::Python)),
            ("/usr/lib/jvm/java-17/lib/server/libjvm.so", Some(Runtime::Jvm)),
            ("/usr/bin/node", Some(Runtime::V8)),
            ("/usr/sbin/php-fpm8.2", Some(Runtime::Php)),
            ("/usr/bin/redis-server", None),
            ("/usr/bin/nodejs-not", None),
            ("", None),
        ] {
            assert_eq!(Runtime::of_file(path), expected, "{path}");
        }
    }

    #[test]
    fn children_are_found() {
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        assert!(children(std::process::id()).contains(&child.id()));
        child.kill().unwrap();
        child.wait().unwrap();
    }
}
