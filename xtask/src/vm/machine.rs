//! A virtual machine that boots a kernel, runs the tests and ends.

use std::{
    env,
    ffi::OsString,
    fs,
    io::ErrorKind,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};

use super::guest::STATUS;
use crate::command;

/// Longest time for all tests: some three times what they take on a machine with nothing else to do.
const PATIENCE: Duration = Duration::from_secs(1500);

/// Emulated, since virtual machines seldom let others run inside them. The two processors take turns on one thread:
/// emulators before QEMU 8.1 run code that another thread is changing, and kernels change their own code (an `int3` from
/// nowhere is how that ends).
const EMULATOR: &[&str] = &[
    "-accel",
    "tcg,thread=single",
    "-cpu",
    "max",
    "-smp",
    "2",
    "-machine",
    "q35",
    "-m",
    "2048",
    "-display",
    "none",
    "-vga",
    "none",
    "-monitor",
    "none",
    "-nic",
    "none",
    "-no-reboot",
];

/// Ends at a panic. The rest is about speed: guards against attacks, and a fifth level of page tables, cost an emulator
/// much.
const KERNEL_ARGUMENTS: &str = "console=ttyS0 panic=-1 mitigations=off init_on_alloc=0 no5lvl";

/// How much of the kernel's messages is shown when it did not run the tests.
const LAST_LINES: usize = 40;

/// What is booted, and where its output goes.
pub(super) struct Machine<'a> {
    /// Root of the unpacked emulator.
    pub(super) emulator: &'a Path,
    pub(super) kernel: &'a Path,
    pub(super) archive: &'a Path,
    /// Folder for the files of output.
    pub(super) folder: &'a Path,
}

/// What came of it.
pub(super) struct Ran {
    /// What the tests printed, or the kernel instead.
    pub(super) output: String,
    /// Seconds of the guest's clock at which the tests began.
    pub(super) boot: Option<f64>,
    pub(super) duration: Duration,
    pub(super) passed: bool,
}

/// An emulator that ends with this program's interest in it.
struct Emulator(Child);

impl Drop for Emulator {
    fn drop(&mut self) {
        // It may have ended already; then there is nothing to do.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Machine<'_> {
    /// Boots, waits for the end, reads what was printed. `name` begins the names of the files of output.
    pub(super) fn run(&self, name: &str) -> Result<Ran> {
        let [console, tests] = ["console", "tests"].map(|what| self.folder.join(format!("{name}.{what}")));
        for file in [&console, &tests] {
            forget(file)?;
        }
        let began = Instant::now();
        let child = self.command(&console, &tests)?.spawn().context("cannot start the emulator")?;
        let in_time = wait(Emulator(child), began + PATIENCE)?;
        let [console, tests] = [console, tests].map(|file| text(&file));
        Ok(judge(&console, &tests, in_time, began.elapsed()))
    }

    fn command(&self, console: &Path, tests: &Path) -> Result<Command> {
        let at = |path: &str| self.emulator.join(path);
        let mut emulator = command::program(at("usr/bin/qemu-system-x86_64"));
        let libraries = ["usr/lib", "lib"].map(|folder| at(folder).join("x86_64-linux-gnu"));
        let libraries = env::join_paths(libraries).context("the target directory has a colon in its path")?;
        emulator.env("LD_LIBRARY_PATH", libraries).args(EMULATOR);
        for folder in ["usr/share/qemu", "usr/share/seabios"] {
            emulator.arg("-L").arg(at(folder));
        }
        for file in [console, tests] {
            emulator.arg("-serial").arg(serial(file));
        }
        emulator.arg("-kernel").arg(self.kernel).arg("-initrd").arg(self.archive).args(["-append", KERNEL_ARGUMENTS]);
        emulator.stdin(Stdio::null());
        Ok(emulator)
    }
}

fn serial(file: &Path) -> OsString {
    let mut option = OsString::from("file:");
    option.push(file);
    option
}

/// Whether it ended before the deadline; one that did not is killed.
fn wait(mut emulator: Emulator, deadline: Instant) -> Result<bool> {
    while Instant::now() < deadline {
        if let Some(status) = emulator.0.try_wait().context("cannot wait for the emulator")? {
            if !status.success() {
                bail!("the emulator failed: {status}");
            }
            return Ok(true);
        }
        thread::sleep(Duration::from_millis(100));
    }
    Ok(false)
}

fn judge(console: &str, tests: &str, in_time: bool, duration: Duration) -> Ran {
    let status = tests.lines().find_map(|line| line.strip_prefix(STATUS));
    let passed = status.is_some_and(|status| status.trim() == "0") && in_time;
    let mut output: String =
        tests.lines().filter(|line| !line.starts_with(STATUS)).map(|line| format!("{line}\n")).collect();
    if status.is_none() {
        let lines: Vec<&str> = console.lines().collect();
        let last = lines[lines.len().saturating_sub(LAST_LINES)..].join("\n");
        let how = if in_time { "the machine stopped".to_owned() } else { format!("not done within {PATIENCE:?}") };
        output = format!("{output}{how} before the tests ended; the kernel's last words:\n{last}\n");
    }
    Ran { output, boot: boot_seconds(console), duration, passed }
}

/// The time in the message with which the kernel starts the first process.
fn boot_seconds(console: &str) -> Option<f64> {
    let line = console.lines().find(|line| line.contains("Run /init as init process"))?;
    line.split(['[', ']']).nth(1)?.trim().parse().ok()
}

fn forget(file: &PathBuf) -> Result<()> {
    match fs::remove_file(file) {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot remove {}", file.display()))
        }
        _ => Ok(()),
    }
}

/// What a serial port got; a machine that did not come far has not written anything.
fn text(file: &Path) -> String {
    String::from_utf8_lossy(&fs::read(file).unwrap_or_default()).replace('\r', "")
}

#[cfg(test)]
mod tests {
    use super::*;

    const CONSOLE: &str =
        "[    0.000000] Linux version 6.1\n[    3.419981] Run /init as init process\n[    4.0] Oops\n";

    fn judged(tests: &str, in_time: bool) -> Ran {
        judge(CONSOLE, tests, in_time, Duration::ZERO)
    }

    #[test]
    fn only_a_status_of_zero_is_a_success() {
        let ran = judged(&format!("test a ... ok\n{STATUS} 0\n"), true);
        assert!(ran.passed);
        assert_eq!((ran.output.as_str(), ran.boot), ("test a ... ok\n", Some(3.419981)));
        assert!(!judged(&format!("test a ... FAILED\n{STATUS} 101\n"), true).passed);
    }

    #[test]
    fn a_machine_that_stops_says_why() {
        let ran = judged("test a ... ", true);
        assert!(!ran.passed && ran.output.contains("Oops") && ran.output.contains("stopped"), "{}", ran.output);
        let ran = judged("", false);
        assert!(!ran.passed && ran.output.contains("not done within"), "{}", ran.output);
    }
}
