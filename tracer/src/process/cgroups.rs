//! Cgroups of processes, and the folders that the kernel shows them by: `/proc/PID/cgroup` (`proc_cgroup_show` in the kernel's
//! kernel/cgroup/cgroup.c) and the mounts in `/proc/self/mountinfo`. Both versions, also side by side.

use std::path::PathBuf;

use super::mounts::{Mount, mounts};

/// The cgroup of a process in one hierarchy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Membership {
    /// Controllers of the hierarchy, or its name (`name=systemd`); none: that of version 2.
    pub controllers: Vec<String>,
    /// Path in the hierarchy, which begins with a slash: chosen by who made the cgroup.
    pub path: String,
}

impl Membership {
    /// Whether the hierarchy is that of version 2.
    pub fn is_v2(&self) -> bool {
        self.controllers.is_empty()
    }

    /// Folders that its hierarchy, of version 1, may be mounted at beside others: all controllers, and each.
    pub fn folders(&self) -> Vec<String> {
        let all = self.controllers.join(",");
        let each = self.controllers.iter().map(|name| name.strip_prefix("name=").unwrap_or(name).to_owned());
        std::iter::once(all).chain(each).collect()
    }

    /// Whether the hierarchy has this controller.
    pub fn has(&self, controller: &str) -> bool {
        self.controllers.iter().any(|own| own == controller)
    }
}

/// The lines of `/proc/PID/cgroup`. What makes no sense is skipped.
pub fn parse(text: &str) -> Vec<Membership> {
    let line = |line: &str| {
        let mut fields = line.splitn(3, ':').skip(1);
        let (controllers, path) = (fields.next()?, fields.next()?);
        let controllers = controllers.split(',').filter(|name| !name.is_empty()).map(str::to_owned).collect();
        path.starts_with('/').then(|| Membership { controllers, path: path.to_owned() })
    };
    text.lines().filter_map(line).collect()
}

/// Path of the cgroup whose memory is counted: that of the memory controller of version 1 where there is one, else of version 2.
pub fn of_memory(memberships: &[Membership]) -> Option<&Membership> {
    let v1 = memberships.iter().find(|membership| membership.has("memory"));
    v1.or_else(|| memberships.iter().find(|membership| membership.is_v2()))
}

/// Whether `path` is `ancestor` or a descendant of it.
pub fn is_within(path: &str, ancestor: &str) -> bool {
    let ancestor = ancestor.trim_end_matches('/');
    path.strip_prefix(ancestor).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

/// `path` and the paths of all cgroups above it, the root (`/`) last.
pub fn ancestors(path: &str) -> impl Iterator<Item = &str> {
    let path = path.trim_end_matches('/');
    std::iter::successors(Some(path), |path| path.rsplit_once('/').map(|(above, _)| above))
        .map(|path| if path.is_empty() { "/" } else { path })
}

/// A hierarchy that is mounted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hierarchy {
    /// Its controllers and name; none: version 2.
    controllers: Vec<String>,
    /// Where it is mounted.
    pub mounted_at: PathBuf,
    /// The cgroup that is seen there.
    root: String,
}

impl Hierarchy {
    /// Whether it is that of version 2.
    pub fn is_v2(&self) -> bool {
        self.controllers.is_empty()
    }

    /// Whether it has this controller, by itself: of version 1.
    pub fn has(&self, controller: &str) -> bool {
        self.controllers.iter().any(|own| own == controller)
    }

    /// Membership in its cgroup whose folder is `below` where it is mounted, which begins with a slash.
    pub fn membership(&self, below: &str) -> Membership {
        let path = format!("{}{}", self.root.trim_end_matches('/'), below);
        let path = if path.len() > 1 { path.trim_end_matches('/').to_owned() } else { path };
        Membership { controllers: self.controllers.clone(), path }
    }

    /// Whether all of it is seen where it is mounted.
    pub fn is_whole(&self) -> bool {
        self.root == "/"
    }

    /// Whether it is the one that `membership` is of.
    pub fn is_of(&self, membership: &Membership) -> bool {
        match membership.controllers.first() {
            None => self.is_v2(),
            Some(first) => self.controllers.contains(first),
        }
    }

    /// Folder of the cgroup `path`; `None` when it is not seen from here.
    pub fn folder(&self, path: &str) -> Option<PathBuf> {
        if !is_within(path, &self.root) || path.split('/').any(|part| part == "..") {
            return None;
        }
        let inside = path[self.root.trim_end_matches('/').len()..].trim_start_matches('/');
        Some(self.mounted_at.join(inside))
    }
}

/// The hierarchies in the text of `/proc/self/mountinfo`.
pub fn hierarchies(mountinfo: &str) -> Vec<Hierarchy> {
    let hierarchy = |mount: Mount<'_>| {
        let controllers = match mount.kind {
            "cgroup2" => Vec::new(),
            "cgroup" => {
                mount.options.split(',').filter(|name| !["rw", "ro"].contains(name)).map(str::to_owned).collect()
            }
            _ => return None,
        };
        Some(Hierarchy { controllers, mounted_at: mount.at.into(), root: mount.root })
    };
    mounts(mountinfo).filter_map(hierarchy).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memberships_of_both_versions() {
        let text = "5:cpu,memory:/a/b\n1:name=systemd:/x:y\n0::/c.slice\nnonsense\n7:pids:none\n";
        let memberships = parse(text);
        let paths: Vec<&str> = memberships.iter().map(|membership| &*membership.path).collect();
        assert_eq!(paths, ["/a/b", "/x:y", "/c.slice"]);
        assert_eq!(of_memory(&memberships).unwrap().path, "/a/b");
        assert_eq!(of_memory(&memberships[1..]).unwrap().path, "/c.slice");
        assert_eq!(of_memory(&memberships[1..2]), None);
    }

    #[test]
    fn descendants_and_ancestors() {
        for (path, ancestor, within) in [
            ("/a/b", "/a", true),
            ("/a/b", "/a/", true),
            ("/a", "/a", true),
            ("/ab", "/a", false),
            ("/a", "/a/b", false),
            ("/a", "/", true),
            ("/", "/", true),
        ] {
            assert_eq!(is_within(path, ancestor), within, "{path} in {ancestor}");
        }
        let all = |path| ancestors(path).collect::<Vec<_>>();
        assert_eq!(all("/a.slice/b c"), ["/a.slice/b c", "/a.slice", "/"]);
        assert_eq!(all("/"), ["/"]);
    }

    #[test]
    fn mounts_are_found_and_folders_in_them() {
        let text = "\
31 23 0:27 / /sys/fs/cgroup/memory rw,nosuid shared:12 - cgroup cgroup rw,memory
32 23 0:28 /docker/ab /sys/fs/cgroup/cpu\\040x rw - cgroup cgroup rw,cpu,cpuacct
33 23 0:29 / /sys/fs/cgroup/unified rw shared:9 master:2 - cgroup2 cgroup2 rw,nsdelegate
34 23 0:30 / /proc rw - proc proc rw
";
        let hierarchies = hierarchies(text);
        let folder = |index: usize, path| hierarchies[index].folder(path).map(|path| path.display().to_string());
        assert_eq!(hierarchies.len(), 3);
        assert_eq!(folder(0, "/a/b").as_deref(), Some("/sys/fs/cgroup/memory/a/b"));
        assert_eq!(folder(0, "/").as_deref(), Some("/sys/fs/cgroup/memory/"));
        assert_eq!(folder(0, "/../x"), None);
        assert_eq!(folder(1, "/docker/ab/c").as_deref(), Some("/sys/fs/cgroup/cpu x/c"));
        assert_eq!(folder(1, "/other"), None);
        let of = |text| hierarchies.iter().position(|hierarchy| hierarchy.is_of(&parse(text)[0]));
        assert_eq!(
            [of("4:memory:/"), of("3:cpu,cpuacct:/"), of("0::/"), of("9:pids:/")],
            [Some(0), Some(1), Some(2), None]
        );
    }
}
