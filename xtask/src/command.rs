//! Running other programs: what they inherit, what is printed, what an error says.

use std::{
    env,
    ffi::{OsStr, OsString},
    fs,
    path::{Path, PathBuf},
    process::{Command, ExitStatus, Stdio},
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result, bail};

/// Pause after the first failure of something that uses the network.
pub(crate) const NETWORK_PAUSE: Duration = Duration::from_secs(5);

/// What `cargo run` sets for xtask itself. A cargo that we start must not take it for the user's wish.
const SET_BY_CARGO: &[&str] = &[
    "CARGO",
    "CARGO_BIN_NAME",
    "CARGO_CRATE_NAME",
    "CARGO_MANIFEST_DIR",
    "CARGO_MANIFEST_PATH",
    "CARGO_PRIMARY_PACKAGE",
    "OUT_DIR",
];

/// A program with the environment that the user gave to `cargo xtask`.
pub(crate) fn program(name: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new(name);
    for (name, _) in env::vars_os() {
        let name_text = name.to_string_lossy();
        if SET_BY_CARGO.contains(&name_text.as_ref()) || name_text.starts_with("CARGO_PKG_") {
            command.env_remove(&name);
        }
    }
    if let Some(paths) = env::var_os("LD_LIBRARY_PATH") {
        match without_folders(&paths, &cargo_library_folders()) {
            Some(paths) => command.env("LD_LIBRARY_PATH", paths),
            None => command.env_remove("LD_LIBRARY_PATH"),
        };
    }
    command
}

/// Cargo, the one that started xtask.
pub(crate) fn cargo() -> Command {
    program(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
}

/// A program as root: directly, or through sudo. An error says what to install or do.
pub(crate) fn as_root(name: impl AsRef<OsStr>) -> Result<Command> {
    if is_root()? {
        return Ok(program(name));
    }
    let Some(sudo) = find("sudo") else {
        bail!("`{}` needs root and there is no sudo here: run `cargo xtask` as root", name.as_ref().display());
    };
    let mut command = program(sudo);
    command.arg(name);
    Ok(command)
}

/// Whether this process is root.
pub(crate) fn is_root() -> Result<bool> {
    let status = fs::read_to_string("/proc/self/status").context("cannot read /proc/self/status")?;
    Ok(effective_uid(&status) == Some(0))
}

/// Runs a program to its end; an error unless it succeeded.
pub(crate) fn run(command: &mut Command) -> Result<()> {
    let status = status(command)?;
    if !status.success() {
        bail!("`{}` failed: {status}", describe(command));
    }
    Ok(())
}

/// Runs a program to its end, for those whose exit status says more than yes or no.
pub(crate) fn status(command: &mut Command) -> Result<ExitStatus> {
    println!("$ {}", describe(command));
    command.status().with_context(|| format!("cannot run `{}`", describe(command)))
}

/// Runs a program and returns what it printed; an error unless it succeeded.
pub(crate) fn captured(command: &mut Command) -> Result<String> {
    let (success, printed) = printed(command)?;
    if !success {
        bail!("`{}` failed\n{printed}", describe(command));
    }
    Ok(printed)
}

/// Runs a program to its end and returns whether it succeeded and what it printed.
pub(crate) fn printed(command: &mut Command) -> Result<(bool, String)> {
    println!("$ {}", describe(command));
    let output = command.stdin(Stdio::null()).stderr(Stdio::inherit()).output();
    let output = output.with_context(|| format!("cannot run `{}`", describe(command)))?;
    Ok((output.status.success(), String::from_utf8_lossy(&output.stdout).into_owned()))
}

/// Runs a program silently and returns what it printed; its exit status is not looked at.
pub(crate) fn output(command: &mut Command) -> Result<String> {
    command.stdin(Stdio::null()).stderr(Stdio::null());
    let output = command.output().with_context(|| format!("cannot run `{}`", describe(command)))?;
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Tries up to three times, with a growing pause between: networks and mirrors fail for moments.
pub(crate) fn with_retries(what: &str, pause: Duration, mut attempt: impl FnMut(u32) -> Result<()>) -> Result<()> {
    let mut number = 1;
    loop {
        match attempt(number) {
            Ok(()) => return Ok(()),
            Err(error) if number < 3 => {
                println!("{what}: attempt {number} of 3 failed ({error:#}); trying again");
                thread::sleep(pause * number);
                number += 1;
            }
            Err(error) => return Err(error).with_context(|| format!("{what}: failed three times; is the network up?")),
        }
    }
}

/// Looks for a program on PATH and where cargo installs.
pub(crate) fn find(name: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path).chain([cargo_bin()]).map(|folder| folder.join(name)).find(|file| file.is_file())
}

/// PATH with cargo's folder of installed programs, which need not be on the user's.
pub(crate) fn path_with_cargo_bin() -> Result<OsString> {
    let path = env::var_os("PATH").unwrap_or_default();
    env::join_paths(env::split_paths(&path).chain([cargo_bin()])).context("PATH has an entry that cannot be kept")
}

/// Folder in the user's home, or where the variable says.
pub(crate) fn home_folder(variable: &str, default: &str) -> PathBuf {
    let home = || PathBuf::from(env::var_os("HOME").unwrap_or_default()).join(default);
    env::var_os(variable).map_or_else(home, PathBuf::from)
}

fn cargo_bin() -> PathBuf {
    home_folder("CARGO_HOME", ".cargo").join("bin")
}

/// The command as one would type it, without its environment.
fn describe(command: &Command) -> String {
    let program = Path::new(command.get_program()).file_name().unwrap_or(command.get_program());
    let words = [program].into_iter().chain(command.get_args());
    words.map(|word| word.to_string_lossy()).collect::<Vec<_>>().join(" ")
}

/// Where cargo and rustup put libraries, in front of all others: Debian's rustc and traced programs must not see them.
fn cargo_library_folders() -> Vec<PathBuf> {
    let own = env::current_exe().ok().and_then(|file| file.parent().map(Path::to_path_buf));
    own.into_iter().chain([home_folder("RUSTUP_HOME", ".rustup")]).collect()
}

/// A search path without what lies in the given folders; `None` when nothing is left.
fn without_folders(paths: &OsStr, folders: &[PathBuf]) -> Option<OsString> {
    let unwanted = |path: &Path| path.as_os_str().is_empty() || folders.iter().any(|folder| path.starts_with(folder));
    let kept = env::split_paths(paths).filter(|path| !unwanted(path));
    env::join_paths(kept).ok().filter(|paths| !paths.is_empty())
}

/// Second number of the `Uid:` line of /proc/PID/status (proc(5)): the effective user id.
fn effective_uid(status: &str) -> Option<u32> {
    let line = status.lines().find_map(|line| line.strip_prefix("Uid:"))?;
    line.split_whitespace().nth(1)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_effective_user_counts() {
        assert_eq!(effective_uid("Name:\tx\nUid:\t1000\t0\t0\t0\nGid:\t5\t5\t5\t5\n"), Some(0));
        assert_eq!(effective_uid("Uid:\t0\t1000\t0\t0\n"), Some(1000));
        assert_eq!(effective_uid("Name:\tx\n"), None);
    }

    #[test]
    fn library_paths_of_cargo_are_not_passed_on() {
        let folders = [PathBuf::from("/w/target/debug"), PathBuf::from("/h/.rustup")];
        let left = |paths: &str| without_folders(OsStr::new(paths), &folders);
        assert_eq!(left("/w/target/debug/deps:/w/target/debug:/h/.rustup/toolchains/stable/lib"), None);
        assert_eq!(left("/w/target/debug:/opt/own:"), Some("/opt/own".into()));
    }

    #[test]
    fn a_retry_can_succeed_and_the_third_failure_is_final() {
        for (fails, tried, succeeds) in [(0, 1, true), (2, 3, true), (9, 3, false)] {
            let mut number = 0;
            let result = with_retries("test", Duration::ZERO, |attempt| {
                number = attempt;
                if attempt <= fails { bail!("not yet") } else { Ok(()) }
            });
            assert_eq!((number, result.is_ok()), (tried, succeeds));
        }
    }

    #[test]
    fn commands_are_shown_as_typed() {
        assert_eq!(describe(Command::new("cc").args(["-O2", "a.c"])), "cc -O2 a.c");
    }
}
