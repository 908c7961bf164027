//! What may have taken memory that was not recorded: other allocators in the mapped files, runtimes that manage memory
//! themselves, children. Files are looked at only where there is something to explain, within bounds of bytes and of time.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use hashbrown::HashSet;

use crate::{
    files::module::Module,
    probe::hidden::{self, Proof, THREAD_SANITIZER},
    profile::{Reason, Runtime},
    space::address_space::AddressSpace,
};

/// Bytes of files that are looked at, and time for it.
const MAX_BYTES: u64 = 1 << 30;
const MAX_TIME: Duration = Duration::from_secs(3);
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
    let begin = Instant::now();
    let mut budget = MAX_BYTES;
    let mut may_read = |bytes: u64| {
        let may = budget > 0 && begin.elapsed() < MAX_TIME;
        budget = budget.saturating_sub(bytes);
        may
    };
    let mut found: Vec<Reason> = Vec::new();
    for module in files.iter().filter(|module| module.is_elf()) {
        let Some(file) = module.file() else { continue };
        let names = hidden::allocators(file, Proof::Mention, &mut may_read);
        found.extend(names.into_iter().map(|name| {
            let path = module.path().to_owned();
            if name == THREAD_SANITIZER { Reason::Shadow(name, path) } else { Reason::Allocator(name, path) }
        }));
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

    #[test]
    fn allocators_are_told_with_their_files() {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(b"\x7fELF..mimalloc: warning\0<jemalloc>: \0ThreadSanitizer: ").unwrap();
        let module = Arc::new(Module::of_file("/lib/x.so", file).unwrap());
        let path = || "/lib/x.so".to_owned();
        let [one, two] = ["mimalloc", "jemalloc"].map(|name| Reason::Allocator(name, path()));
        assert_eq!(allocators(&[module]), [one, two, Reason::Shadow(THREAD_SANITIZER, path())]);
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
