//! Which cgroups a process was in that is over, by the numbers of their folders: the BPF side has read those while it lived.

use std::{
    fs,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use hashbrown::HashMap;
use tracer_ebpf::Whose;

use crate::process::cgroups::{self, Hierarchy, Membership};

/// Most folders that are looked at.
const MAX_FOLDERS: usize = 1 << 14;
/// Least time between two looks for one that is not known, and how many times as long as a look took.
const PAUSE: Duration = Duration::from_millis(100);
const REST: u32 = 300;

/// The cgroups that there are: of version 2, and of the memory controller where that is of version 1.
#[derive(Default)]
pub struct Folders {
    trees: Vec<Tree>,
    /// Where other hierarchies are mounted: of what is in those nothing is known.
    others: Vec<PathBuf>,
    next: Option<Instant>,
}

/// One hierarchy.
struct Tree {
    hierarchy: Hierarchy,
    paths: HashMap<u64, String>,
}

impl Folders {
    /// The cgroups of a process, to tell whether it is in one of those that are `wanted`; none where that is not known.
    pub fn of(&mut self, whose: &Whose, wanted: &[String]) -> Vec<Membership> {
        if whose.cgroup == 0 && whose.of_memory == 0 {
            return Vec::new();
        }
        if self.next.is_none() {
            self.look();
        }
        if self.others.iter().any(|other| wanted.iter().any(|wanted| Path::new(wanted).starts_with(other))) {
            return Vec::new();
        }
        if let Some(found) = self.find(whose) {
            return found;
        }
        // It may be new.
        if self.next.is_none_or(|next| Instant::now() >= next) {
            self.look();
        }
        self.find(whose).unwrap_or_default()
    }

    fn find(&self, whose: &Whose) -> Option<Vec<Membership>> {
        let membership = |tree: &Tree| {
            let number = if tree.hierarchy.is_v2() { whose.cgroup } else { whose.of_memory };
            Some(tree.hierarchy.membership(tree.paths.get(&number)?))
        };
        self.trees.iter().map(membership).collect()
    }

    fn look(&mut self) {
        let begun = Instant::now();
        let text = fs::read("/proc/self/mountinfo").unwrap_or_default();
        let mut hierarchies = cgroups::hierarchies(&String::from_utf8_lossy(&text));
        // One that is mounted several times is read where most of it is seen.
        hierarchies.sort_by_key(|hierarchy| !hierarchy.is_whole());
        let told = [Hierarchy::is_v2, |hierarchy: &Hierarchy| hierarchy.has("memory")];
        let told = told.into_iter().filter_map(|is_told| hierarchies.iter().find(|hierarchy| is_told(hierarchy)));
        self.trees =
            told.map(|hierarchy| Tree { paths: paths(&hierarchy.mounted_at), hierarchy: hierarchy.clone() }).collect();
        let is_told = |hierarchy: &&Hierarchy| !(hierarchy.is_v2() || hierarchy.has("memory"));
        self.others = hierarchies.iter().filter(is_told).map(|hierarchy| hierarchy.mounted_at.clone()).collect();
        self.next = Some(Instant::now() + PAUSE.max(begun.elapsed() * REST));
    }
}

/// The paths of the folders below one, itself among them, by number.
fn paths(root: &Path) -> HashMap<u64, String> {
    let mut paths = HashMap::new();
    let mut todo: Vec<PathBuf> = vec![root.to_owned()];
    while let Some(folder) = todo.pop().filter(|_| paths.len() < MAX_FOLDERS) {
        let Ok(metadata) = fs::symlink_metadata(&folder) else { continue };
        let path = folder.strip_prefix(root).map(|path| format!("/{}", path.to_string_lossy()));
        paths.insert(metadata.ino(), path.unwrap_or_default());
        let entries = fs::read_dir(&folder).into_iter().flatten().flatten();
        todo.extend(
            entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())).map(|entry| entry.path()),
        );
    }
    paths
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folders_are_found_by_their_numbers() {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir_all(root.path().join("a.slice/b")).unwrap();
        fs::write(root.path().join("cgroup.procs"), "").unwrap();
        let paths = paths(root.path());
        let at = |path: &str| paths.get(&fs::metadata(root.path().join(path)).unwrap().ino()).map(String::as_str);
        assert_eq!(
            [at("."), at("a.slice"), at("a.slice/b"), at("cgroup.procs")],
            [Some("/"), Some("/a.slice"), Some("/a.slice/b"), None]
        );
    }

    #[test]
    fn a_cgroup_that_is_not_found_leaves_all_open() {
        let tree = |controllers: &str, known: u64| Tree {
            hierarchy: cgroups::hierarchies(&format!("1 1 0:1 / /m rw - {controllers}")).remove(0),
            paths: HashMap::from_iter([(known, "/x".to_owned())]),
        };
        let trees = vec![tree("cgroup cgroup rw,memory", 5), tree("cgroup2 cgroup2 rw", 6)];
        let folders = Folders { trees, ..Folders::default() };
        let of = |cgroup, of_memory| folders.find(&Whose { cgroup, of_memory, ..Whose::default() });
        let found = of(6, 5).unwrap();
        assert_eq!(
            found.iter().map(|one| (one.is_v2(), &*one.path)).collect::<Vec<_>>(),
            [(false, "/x"), (true, "/x")]
        );
        assert_eq!((of(6, 6), of(5, 5), of(0, 0)), (None, None, None));
    }

    #[test]
    fn what_lies_in_a_hierarchy_that_is_not_told_of_is_left_open() {
        let whose = Whose { cgroup: 1, of_memory: 1, ..Whose::default() };
        let next = Some(Instant::now() + Duration::from_secs(1000));
        let mut folders = Folders { others: vec!["/sys/fs/cgroup/cpu".into()], next, ..Folders::default() };
        assert_eq!(folders.of(&whose, &["/sys/fs/cgroup/cpu/x".to_owned()]), []);
        let root = "/sys/fs/cgroup/docker".to_owned();
        folders.trees.push(Tree {
            hierarchy: cgroups::hierarchies("1 1 0:1 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw").remove(0),
            paths: HashMap::from_iter([(1, "/docker".to_owned())]),
        });
        assert_eq!(folders.of(&whose, &[root]).len(), 1);
        assert_eq!(folders.of(&Whose::default(), &[]), []);
    }
}
