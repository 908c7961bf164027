//! Who is traced, told from what /proc says of processes. [`Selection`] is pure; [`processes`] and [`names`] read.

pub mod containers;
pub mod folders;
mod globs;
mod invalid;
pub mod names;
pub mod processes;

pub use self::invalid::Invalid;
use self::{
    containers::Container,
    globs::{Glob, Names, Paths},
};
use crate::process::cgroups::{self, Membership};

/// What processes must be to be traced: something of each kind that is given, and nothing that is excluded.
#[derive(Clone, Debug, Default)]
pub struct Selection {
    /// Ids.
    pub pids: Vec<u32>,
    comms: Vec<Glob<Names>>,
    exes: Vec<Glob<Paths>>,
    cgroups: Vec<String>,
    containers: Vec<String>,
    users: Vec<u32>,
    excluded: Vec<Glob<Names>>,
}

/// What is known of a process. All texts are hostile.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Facts {
    /// Its id.
    pub pid: u32,
    /// Its name, 15 bytes at most.
    pub comm: String,
    /// Path of its executable; `None` when that may not be known.
    pub exe: Option<String>,
    /// Its cgroups.
    pub cgroups: Vec<Membership>,
    /// Its effective user.
    pub user: Option<u32>,
}

/// What of processes decides whether they fit, beside their names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Asked {
    /// The path of the executable.
    pub exe: bool,
    /// The cgroups.
    pub cgroups: bool,
    /// The effective user.
    pub user: bool,
}

/// Where cgroups are mounted, with the hierarchy in the next part of the path where there are several.
const CGROUP_MOUNT: &str = "/sys/fs/cgroup";

impl Selection {
    /// Whether anything but ids is given.
    pub fn is_more_than_pids(&self) -> bool {
        let Self { pids: _, comms, exes, cgroups, containers, users, excluded } = self;
        !(comms.is_empty()
            && exes.is_empty()
            && cgroups.is_empty()
            && containers.is_empty()
            && users.is_empty()
            && excluded.is_empty())
    }

    /// Whether nothing says who is to be traced, only who is not.
    pub fn only_excludes(&self) -> bool {
        self.pids.is_empty() && !Self { excluded: Vec::new(), ..self.clone() }.is_more_than_pids()
    }

    /// Also processes whose name fits.
    ///
    /// # Errors
    /// Not a pattern.
    pub fn add_comm(&mut self, pattern: &str) -> Result<(), Invalid> {
        self.comms.push(Glob::names(pattern)?);
        Ok(())
    }

    /// None of the processes whose name fits.
    ///
    /// # Errors
    /// Not a pattern.
    pub fn exclude_comm(&mut self, pattern: &str) -> Result<(), Invalid> {
        self.excluded.push(Glob::names(pattern)?);
        Ok(())
    }

    /// Also processes whose executable fits: its path, or its file name where the pattern has no slash.
    ///
    /// # Errors
    /// Not a pattern.
    pub fn add_exe(&mut self, pattern: &str) -> Result<(), Invalid> {
        self.exes.push(Glob::paths(pattern)?);
        Ok(())
    }

    /// Also processes in this cgroup, and those below it.
    ///
    /// # Errors
    /// Not a path of one.
    pub fn add_cgroup(&mut self, path: &str) -> Result<(), Invalid> {
        let invalid = || Invalid::Cgroup(path.to_owned());
        if !path.starts_with('/') || path.split('/').any(|part| part == "." || part == "..") {
            return Err(invalid());
        }
        self.cgroups.push(path.to_owned());
        Ok(())
    }

    /// Also processes of the container with this id, or the begin of one, or with this name.
    ///
    /// # Errors
    /// Empty.
    pub fn add_container(&mut self, id_or_name: &str) -> Result<(), Invalid> {
        if id_or_name.is_empty() {
            return Err(Invalid::Empty);
        }
        self.containers.push(id_or_name.to_owned());
        Ok(())
    }

    /// Also processes of this user.
    pub fn add_user(&mut self, user: u32) {
        self.users.push(user);
    }

    /// Cgroups that are wanted.
    pub fn cgroups(&self) -> &[String] {
        &self.cgroups
    }

    /// Containers that are wanted by name or id.
    pub fn containers(&self) -> &[String] {
        &self.containers
    }

    /// What decides, beside names.
    pub fn asked(&self) -> Asked {
        Asked {
            exe: !self.exes.is_empty(),
            cgroups: !(self.cgroups.is_empty() && self.containers.is_empty()),
            user: !self.users.is_empty(),
        }
    }

    /// Whether a process of this name may be selected.
    pub fn has_name(&self, comm: &str) -> bool {
        (self.comms.is_empty() || self.comms.iter().any(|glob| glob.fits(comm))) && !self.excludes(comm)
    }

    /// Whether a process is selected. `names`: what containers are called.
    pub fn fits(&self, process: &Facts, names: &names::Names) -> bool {
        let any = |none: bool, fits: &dyn Fn() -> bool| none || fits();
        let exe = process.exe.as_deref().unwrap_or_default();
        let in_cgroup = |wanted: &String| process.cgroups.iter().any(|membership| is_in(membership, wanted));
        let in_container = |wanted: &String| {
            process.cgroups.iter().any(|membership| {
                Container::all(&membership.path).any(|container| {
                    container.id == wanted
                        || containers::is_begin_of(wanted, container.id)
                        || names.is_called(container.id, wanted)
                }) || names.is_in_pod(&membership.path, wanted)
            })
        };
        any(self.pids.is_empty(), &|| self.pids.contains(&process.pid))
            && self.has_name(&process.comm)
            && any(self.exes.is_empty(), &|| self.exes.iter().any(|glob| glob.fits(exe)))
            && any(self.users.is_empty(), &|| process.user.is_some_and(|user| self.users.contains(&user)))
            && any(self.cgroups.is_empty(), &|| self.cgroups.iter().any(in_cgroup))
            && any(self.containers.is_empty(), &|| self.containers.iter().any(in_container))
    }

    /// The same of a process of which no user, no executable or no cgroup may be known: `None` where that would decide.
    pub fn would_fit(&self, process: &Facts, names: &names::Names) -> Option<bool> {
        if self.fits(process, names) {
            return Some(true);
        }
        let mut known = self.clone();
        if process.user.is_none() {
            known.users.clear();
        }
        if process.exe.is_none() {
            known.exes.clear();
        }
        if process.cgroups.is_empty() {
            known.cgroups.clear();
            known.containers.clear();
        }
        if known.fits(process, names) { None } else { Some(false) }
    }

    /// Whether no process of this name is traced, whatever else it is and whoever has started it.
    pub fn excludes(&self, comm: &str) -> bool {
        self.excluded.iter().any(|glob| glob.fits(comm))
    }
}

/// Whether a process is in a cgroup, which is told by its path in the hierarchy or in the file system.
fn is_in(membership: &Membership, wanted: &str) -> bool {
    let Some(below) = wanted.strip_prefix(CGROUP_MOUNT).filter(|below| below.is_empty() || below.starts_with('/'))
    else {
        return cgroups::is_within(&membership.path, wanted);
    };
    // A hierarchy that is mounted beside others has a folder for itself.
    let folders = if membership.is_v2() { vec!["unified".to_owned()] } else { membership.folders() };
    let inside = folders.iter().find_map(|folder| {
        let rest = below.strip_prefix('/')?.strip_prefix(&**folder)?;
        (rest.is_empty() || rest.starts_with('/')).then_some(rest)
    });
    match inside {
        Some(inside) => cgroups::is_within(&membership.path, inside),
        None => membership.is_v2() && cgroups::is_within(&membership.path, below),
    }
}

#[cfg(test)]
mod tests;
