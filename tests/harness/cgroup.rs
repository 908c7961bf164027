//! Cgroups that tests make, where they may.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

/// A cgroup made for a test, removed with it.
pub(crate) struct Cgroup(PathBuf);

impl Cgroup {
    /// One with a limit of so many bytes and this process in it; or why that cannot be.
    pub(crate) fn with(name: &str, limit: u64, pid: u32) -> Result<Self, String> {
        let v1 = Path::new("/sys/fs/cgroup/memory");
        let (folder, file) =
            if v1.is_dir() { (v1, "memory.limit_in_bytes") } else { (Path::new("/sys/fs/cgroup"), "memory.max") };
        let cgroup = Self(folder.join(name));
        let told = |what: &'static str| move |error: io::Error| format!("cannot {what}: {error}");
        fs::create_dir(&cgroup.0).map_err(told("make a cgroup"))?;
        let write = |file: &str, number: u64| fs::write(cgroup.0.join(file), number.to_string());
        write(file, limit).map_err(told("set a limit"))?;
        write("cgroup.procs", u64::from(pid)).map_err(told("move a process"))?;
        Ok(cgroup)
    }

    /// One of version 2 with this process in it; or why that cannot be.
    pub(crate) fn of_version_2(name: &str, pid: u32) -> Result<Self, String> {
        let mounted = ["/sys/fs/cgroup/unified", "/sys/fs/cgroup"].map(Path::new);
        let mounted = mounted.into_iter().find(|folder| folder.join("cgroup.subtree_control").exists());
        let cgroup = Self(mounted.ok_or("no hierarchy of version 2 is mounted")?.join(name));
        fs::create_dir(&cgroup.0).map_err(|error| format!("cannot make a cgroup: {error}"))?;
        let moved = fs::write(cgroup.0.join("cgroup.procs"), pid.to_string());
        moved.map_err(|error| format!("cannot move a process: {error}"))?;
        Ok(cgroup)
    }

    /// Its folder.
    pub(crate) fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        // It may not be there.
        let _ = fs::remove_dir(&self.0);
    }
}
