//! What a process has mapped since the last look at it when it ends, or the trace does: it is searched then, and told if it had no probes.

use tracer_ebpf::unwind::FileKey;

use super::{
    Attached,
    find::{Allocator, Allocators, OwnAllocator, file_name},
    loaded::MOST,
};
use crate::{bpf, files::module::Module, report::visible};

impl Attached {
    /// The process has mapped code of a file, at `time`: nanoseconds of CLOCK_MONOTONIC.
    pub fn has_loaded(&mut self, file: FileKey, time: u64) {
        let files = &self.loaded.files;
        if self.was_found(&file) || files.iter().any(|(known, _)| *known == file) {
            return;
        }
        if files.len() == MOST {
            let mut files = std::mem::take(&mut self.loaded.files);
            files.retain(|(file, _)| !self.was_found(file));
            if files.len() == MOST {
                files.pop_front();
            }
            self.loaded.files = files;
        }
        self.loaded.files.push_back((file, time));
    }

    /// Files that it has mapped which no look at it has found.
    pub fn not_searched(&self) -> Vec<FileKey> {
        if self.is_unknown() {
            return Vec::new();
        }
        let files = self.loaded.files.iter().map(|(file, _)| *file);
        files.filter(|file| !self.was_found(file)).collect()
    }

    /// A file has this allocator. If the process has mapped it, and it had no probes, that is told. `covered_since`: since when all of some have
    /// probes for everybody, nanoseconds of CLOCK_MONOTONIC.
    pub fn was_searched(
        &mut self,
        file: &FileKey,
        own: &OwnAllocator,
        covered_since: impl Fn(&Allocators) -> Option<u64>,
    ) {
        if self.is_unknown() || self.was_found(file) {
            return;
        }
        let Some(at) = self.loaded.files.iter().position(|(known, _)| known == file) else { return };
        let time = self.loaded.files[at].1;
        let path = match own {
            OwnAllocator::None => return,
            OwnAllocator::Hidden => "a file with an allocator of its own".to_owned(),
            OwnAllocator::Known(own) => {
                let had_probes = |allocator: &Allocator| self.had_probes(&allocator.module);
                if own.files().iter().all(had_probes) || covered_since(own).is_some_and(|since| since <= time) {
                    return;
                }
                own.paths().next().map_or_else(String::new, |path| visible(path).to_string())
            }
        };
        self.loaded.files.remove(at);
        self.was_unseen(format!(
            "process {} has loaded {path} while it was traced, and tracer had not found that when the process or the trace ended: what it \
             allocated by that is not recorded",
            self.pid
        ));
    }

    /// Whether nobody has looked at it, so that more than this is not known of it.
    fn is_unknown(&self) -> bool {
        self.life.was_not_looked_at() || !self.life.is_settled() && !self.is_over()
    }

    /// Whether a file was there at the last look at the mappings.
    fn was_found(&self, file: &FileKey) -> bool {
        self.code_files.contains(&(bpf::device_of(file), file.inode))
    }

    /// Whether a file had probes in this process, or needs none. It is known by its length and when it was written: file systems that are made of others
    /// tell other numbers of their files than the kernel has.
    fn had_probes(&self, module: &Module) -> bool {
        let mut now = self.allocators.iter().flat_map(Allocators::files).map(|allocator| allocator.module.version());
        // As in `candidates` in `find.rs`.
        file_name(module.path()).starts_with("ld-linux")
            || now.any(|version| version == module.version())
            || self.loaded.probed.contains(&module.version())
    }
}

#[cfg(test)]
mod tests {
    use std::{fs::File, time::Duration};

    use super::{super::Returns, *};
    use crate::{
        attach::allocators,
        control::lifecycle::Life,
        event::Image,
        profile::{Language, Process},
    };

    fn file(inode: u64) -> FileKey {
        FileKey { inode, device: 8 << 20 | 1, generation: 7 }
    }

    fn attached() -> Attached {
        let process = Process::new(1, "a".to_owned(), "/bin/a".to_owned(), Language::C);
        Attached::new(Image(1), process, Life::recorded(1), None, Returns::default())
    }

    fn nobody(_: &Allocators) -> Option<u64> {
        None
    }

    #[test]
    fn what_no_look_has_found_is_searched_and_told_once() {
        let mut attached = attached();
        attached.code_files.insert(((8, 1), 5));
        for inode in [5, 6, 7, 6] {
            attached.has_loaded(file(inode), 9);
        }
        assert_eq!(attached.not_searched(), [file(6), file(7)]);
        attached.has_ended(Duration::ZERO);
        assert_eq!(attached.not_searched(), [file(6), file(7)], "also when it has ended");
        for (inode, own, unseen) in [
            (6, OwnAllocator::None, 0),
            (5, OwnAllocator::Hidden, 0),
            (8, OwnAllocator::Hidden, 0),
            (7, OwnAllocator::Hidden, 1),
            (7, OwnAllocator::Hidden, 1),
        ] {
            attached.was_searched(&file(inode), &own, nobody);
            assert_eq!(attached.target().quality.unseen_spans, unseen, "{inode}");
        }
    }

    #[test]
    fn what_had_probes_is_not_told() {
        let own = || allocators(std::process::id()).unwrap().unwrap();
        let known = OwnAllocator::Known(own());
        let told = |prepare: &dyn Fn(&mut Attached), covered: Option<u64>| {
            let mut attached = attached();
            attached.has_loaded(file(6), 9);
            prepare(&mut attached);
            attached.was_searched(&file(6), &known, |_| covered);
            attached.target().quality.unseen_spans
        };
        assert_eq!(told(&|_| {}, None), 1);
        assert_eq!((told(&|_| {}, Some(9)), told(&|_| {}, Some(10))), (0, 1), "for everybody, by then");
        let has = |attached: &mut Attached| attached.allocators = Some(own());
        assert_eq!(told(&has, None), 0);
        let had = |attached: &mut Attached| {
            has(attached);
            attached.loaded.keep_what_was_probed(attached.allocators.take().as_ref());
        };
        assert_eq!(told(&had, None), 0, "nothing else is kept of it");
        let begins = |attached: &mut Attached| attached.life = Life::newcomer(1, 1, false, false, super::super::now());
        assert_eq!(told(&begins, None), 0, "of what nobody has looked at, more is not known");
    }

    /// It is known by other numbers where the file system is made of others.
    #[test]
    fn a_file_is_known_by_its_version() {
        let path = std::env::current_exe().unwrap();
        let module = || Module::of_file("/a", File::open(&path).unwrap()).unwrap();
        let mut attached = attached();
        assert!(!attached.had_probes(&module()));
        attached.loaded.probed.push(module().version());
        assert!(attached.had_probes(&module()));
    }

    #[test]
    fn the_latest_of_many_are_kept() {
        let mut attached = attached();
        (0..1000).for_each(|inode| attached.has_loaded(file(inode), inode));
        let kept = attached.not_searched();
        assert_eq!((kept.len(), kept.last()), (MOST, Some(&file(999))));
    }
}
