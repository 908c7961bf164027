//! Debian's packages that are used without being installed: downloaded, and unpacked into a folder.
//!
//! For kernels and an emulator, which are to change nothing on the machine.

use std::{
    fs,
    io::ErrorKind,
    path::{Path, PathBuf},
    process::Stdio,
};

use anyhow::{Context as _, Result, bail};

use super::debian;
use crate::command::{self, NETWORK_PAUSE};

/// The package with the highest version in its name, of those whose whole name the regular expression matches.
pub(crate) fn newest(pattern: &str) -> Result<Option<String>> {
    let search = || -> Result<Option<String>> {
        let mut search = command::program("apt-cache");
        let listing = command::output(search.args(["search", "--names-only", &format!("^{pattern}$")]))?;
        let names = listing.lines().filter_map(|line| line.split_whitespace().next());
        Ok(names.max_by_key(|name| numbers(name)).map(str::to_owned))
    };
    match search()? {
        Some(name) => Ok(Some(name)),
        None => {
            debian::update()?;
            search()
        }
    }
}

/// Unpacks packages into `folder`, unless it is there. What they depend on is not looked at.
pub(crate) fn unpack(packages: &[String], folder: &Path) -> Result<()> {
    if folder.exists() {
        return Ok(());
    }
    println!("setup: unpacking Debian packages into {}: {}", folder.display(), packages.join(" "));
    let part = part_of(folder);
    remove(&part)?;
    let (downloads, root) = (part.join("downloads"), part.join("root"));
    for folder in [&downloads, &root] {
        fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
    }
    download(packages, &downloads)?;
    for file in fs::read_dir(&downloads).with_context(|| format!("cannot read {}", downloads.display()))? {
        let file = file?.path();
        let status = command::program("dpkg-deb").arg("--extract").arg(&file).arg(&root).status();
        if !status.context("cannot run dpkg-deb")?.success() {
            bail!("dpkg-deb cannot unpack {}", file.display());
        }
    }
    // By rename: a run that is killed leaves nothing that looks complete.
    fs::rename(&root, folder).with_context(|| format!("cannot make {}", folder.display()))?;
    remove(&part)
}

/// The same, with those packages that they depend on and that are not installed.
pub(crate) fn unpack_with_dependencies(packages: &[&str], folder: &Path) -> Result<()> {
    if folder.exists() {
        return Ok(());
    }
    let mut all: Vec<String> = packages.iter().map(|package| (*package).to_owned()).collect();
    let unavailable = debian::unavailable(&all)?;
    if !unavailable.is_empty() {
        bail!("no package {} in this system's repositories", unavailable.join(", "));
    }
    let mut simulation = command::program("apt-get");
    simulation.args(["--simulate", "-qq", "--no-install-recommends", "install"]).args(packages).env("LC_ALL", "C");
    all.extend(to_install(&command::output(&mut simulation)?));
    all.sort();
    all.dedup();
    unpack(&all, folder)
}

fn download(packages: &[String], folder: &Path) -> Result<()> {
    command::with_retries("download of packages", NETWORK_PAUSE, |attempt| {
        if attempt > 1 {
            // The lists may name versions that the mirror has replaced.
            debian::update()?;
        }
        let mut download = command::program("apt-get");
        // As this user: apt's own may not write here.
        download.args(["-qq", "-o", "APT::Sandbox::User=root", "download"]).args(packages);
        let status = download.current_dir(folder).stdin(Stdio::null()).status().context("cannot run apt-get")?;
        if !status.success() {
            bail!("apt-get download: {status}");
        }
        Ok(())
    })
}

fn part_of(folder: &Path) -> PathBuf {
    let mut name = folder.as_os_str().to_owned();
    name.push(".part");
    name.into()
}

fn remove(folder: &Path) -> Result<()> {
    match fs::remove_dir_all(folder) {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot remove {}", folder.display()))
        }
        _ => Ok(()),
    }
}

/// Names of packages in the lines `Inst NAME ...` of a simulated installation.
fn to_install(simulation: &str) -> impl Iterator<Item = String> {
    simulation.lines().filter_map(|line| Some(line.strip_prefix("Inst ")?.split_whitespace().next()?.to_owned()))
}

/// All numbers in a name, by which versions of the same kernel are in order.
fn numbers(name: &str) -> Vec<u64> {
    name.split(|c: char| !c.is_ascii_digit()).filter_map(|digits| digits.parse().ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_in_names_are_in_order() {
        let mut names =
            ["image-6.1.0-9-amd64", "image-6.1.0-48-amd64", "image-6.12.9+deb12-amd64", "image-6.1.0-5-amd64"];
        names.sort_by_key(|name| numbers(name));
        assert_eq!(
            names,
            ["image-6.1.0-5-amd64", "image-6.1.0-9-amd64", "image-6.1.0-48-amd64", "image-6.12.9+deb12-amd64"]
        );
    }

    #[test]
    fn what_a_simulation_would_install_is_found() {
        let simulation = "NOTE: a simulation\nInst libaio1 (0.3 Debian:12 [amd64])\nInst gdb [1] (2 Debian:12 [amd64])\n\
                          Conf libaio1 (0.3 Debian:12 [amd64])\n";
        assert_eq!(to_install(simulation).collect::<Vec<_>>(), ["libaio1", "gdb"]);
    }
}
