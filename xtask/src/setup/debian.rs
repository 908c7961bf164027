//! Debian's packages: which are missing, and their installation without starting the services in them.

use std::{collections::BTreeSet, process::Stdio};

use anyhow::{Result, bail};

use crate::command::{self, NETWORK_PAUSE};

/// Runs as root with the packages as arguments. Servers must not be started: a policy says so while apt runs, and the
/// trap puts back what was there before, also after a failure or Ctrl-C. A policy that a killed run left behind is
/// known by its mark and not saved over the machine's own.
const INSTALL: &str = r#"
set -eu
policy=/usr/sbin/policy-rc.d
saved=$policy.before-tracer
mark='written by cargo xtask setup'
restore() { rm -f "$policy"; if [ -e "$saved" ]; then mv "$saved" "$policy"; fi; }
trap restore EXIT
trap 'exit 130' HUP INT TERM
if [ -e "$policy" ] && ! grep -q "$mark" "$policy"; then mv "$policy" "$saved"; fi
printf '#!/bin/sh\n# %s\nexit 101\n' "$mark" > "$policy"
chmod 755 "$policy"
export DEBIAN_FRONTEND=noninteractive
apt-get install -y -qq --no-install-recommends -o DPkg::Lock::Timeout=300 -o Dpkg::Use-Pty=0 "$@"
"#;

/// Those of the wanted packages that are not installed. Where there is no dpkg, nothing is known and none is named.
pub(super) fn missing(wanted: &[&str]) -> Result<Vec<String>> {
    let Some(dpkg_query) = command::find("dpkg-query") else {
        println!("setup: not a Debian system; please see to it that these are there: {}", wanted.join(" "));
        return Ok(Vec::new());
    };
    // dpkg-query fails when it does not know a package, and lists the others all the same.
    let query = ["-W", "-f=${db:Status-Status} ${Package}\n"];
    let listing = command::output(command::program(dpkg_query).args(query).args(wanted))?;
    Ok(not_installed(wanted, &listing))
}

/// Those of the packages that this system's repositories do not have, after bringing apt's lists up to date if need be.
pub(super) fn unavailable(packages: &[String]) -> Result<Vec<String>> {
    if without_candidate(packages)?.is_empty() {
        return Ok(Vec::new());
    }
    update()?;
    without_candidate(packages)
}

/// Installs packages that are available.
pub(super) fn install(packages: &[String]) -> Result<()> {
    println!("setup: installing Debian packages: {}", packages.join(" "));
    let mut install = command::as_root("sh")?;
    install.args(["-c", INSTALL, "setup"]).args(packages).stdin(Stdio::null());
    command::with_retries("installation of packages", NETWORK_PAUSE, |attempt| {
        if attempt > 1 {
            // The lists may name versions that the mirror has replaced.
            update()?;
        }
        let status = install.status()?;
        if !status.success() {
            bail!("apt-get install: {status}");
        }
        Ok(())
    })
}

/// Brings apt's lists up to date. A failure is only told: a foreign repository may be down, and whether the packages
/// can be had shows when they are asked for.
pub(super) fn update() -> Result<()> {
    println!("setup: apt-get update");
    let status = command::as_root("apt-get")?.args(["update", "-qq"]).stdin(Stdio::null()).status()?;
    if !status.success() {
        println!("setup: apt-get update had failures; going on with the lists that are there");
    }
    Ok(())
}

fn without_candidate(packages: &[String]) -> Result<Vec<String>> {
    let mut policy = command::program("apt-cache");
    let listing = command::output(policy.env("LC_ALL", "C").arg("policy").args(packages))?;
    let known = with_candidate(&listing);
    Ok(packages.iter().filter(|package| !known.contains(package.as_str())).cloned().collect())
}

/// From lines of `STATUS PACKAGE`.
fn not_installed(wanted: &[&str], listing: &str) -> Vec<String> {
    let installed: BTreeSet<&str> = listing.lines().filter_map(|line| line.strip_prefix("installed ")).collect();
    wanted.iter().filter(|package| !installed.contains(*package)).map(|package| (*package).to_owned()).collect()
}

/// Packages for which `apt-cache policy` names a version that can be installed.
fn with_candidate(policy: &str) -> BTreeSet<&str> {
    let mut known = BTreeSet::new();
    let mut package = "";
    for line in policy.lines() {
        if let Some(name) = line.strip_suffix(':').filter(|name| !name.starts_with(' ')) {
            package = name;
        } else if line.trim().strip_prefix("Candidate: ").is_some_and(|version| version != "(none)") {
            known.insert(package);
        }
    }
    known
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn packages_that_are_not_fully_installed_are_missing() {
        let listing = "installed gdb\nconfig-files g++\nnot-installed python3\n";
        assert_eq!(not_installed(&["gdb", "g++", "python3", "bpftrace"], listing), ["g++", "python3", "bpftrace"]);
        assert!(not_installed(&["gdb"], listing).is_empty());
    }

    #[test]
    fn only_packages_with_a_version_can_be_installed() {
        let policy = "gdb:\n  Installed: (none)\n  Candidate: 13.1-3\n  Version table:\n     13.1-3 500\n        \
                      500 mirror/debian bookworm/main amd64 Packages\nvirtual:\n  Installed: (none)\n  Candidate: \
                      (none)\n  Version table:\n";
        assert_eq!(with_candidate(policy), BTreeSet::from(["gdb"]));
        assert!(with_candidate("").is_empty());
    }

    #[test]
    fn the_installing_script_restores_the_machines_own_policy() {
        let folder = tempfile::tempdir().unwrap();
        let policy = folder.path().join("policy-rc.d");
        let script = INSTALL
            .replace("/usr/sbin/policy-rc.d", policy.to_str().unwrap())
            .replace("apt-get install", "cat \"$policy\" && false");
        let run = || command::output(command::program("sh").args(["-c", &script, "setup"])).unwrap();

        assert!(run().contains("exit 101"));
        assert!(!policy.exists(), "there was none before");

        fs::write(&policy, "own").unwrap();
        assert!(run().contains("exit 101"));
        assert_eq!(fs::read_to_string(&policy).unwrap(), "own");

        // A run that was killed left its policy, and the machine's own saved beside it.
        fs::rename(&policy, folder.path().join("policy-rc.d.before-tracer")).unwrap();
        fs::write(&policy, "# written by cargo xtask setup").unwrap();
        assert!(run().contains("exit 101"));
        assert_eq!(fs::read_to_string(&policy).unwrap(), "own");
    }
}
