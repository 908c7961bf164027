//! Servers that end with the bench, with all that they have started.

use std::{
    fs, io,
    net::{Ipv4Addr, TcpListener},
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use tempfile::TempDir;

/// How long a server may take to begin.
const PATIENCE: Duration = Duration::from_secs(20);

/// Requests a second that a server answers in such a time.
pub(crate) type Load = Box<dyn Fn(Duration) -> Result<f64>>;

/// A server, and what it is asked, by name.
pub(crate) struct Stock {
    pub(crate) server: Server,
    pub(crate) loads: Vec<(&'static str, Load)>,
    /// The server ends before its files do.
    pub(crate) _folder: TempDir,
}

/// The first of its processes; it ends with this.
pub(crate) struct Server(Child);

impl Server {
    /// Starts it and waits until it answers.
    pub(crate) fn start(command: &mut Command, answers: impl Fn() -> bool) -> Result<Self> {
        let command = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let mut server = Self(command.spawn()?);
        let begin = Instant::now();
        while !answers() {
            if let Some(status) = server.0.try_wait()? {
                bail!("it has ended at once: {status}");
            }
            ensure!(begin.elapsed() < PATIENCE, "it does not answer");
            thread::sleep(Duration::from_millis(50));
        }
        Ok(server)
    }

    pub(crate) fn pid(&self) -> u32 {
        self.0.id()
    }

    /// Ids of its workers that live, by commas.
    pub(crate) fn workers(&self) -> Result<String> {
        let pid = self.pid();
        let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"))?;
        Ok(children.split_whitespace().collect::<Vec<_>>().join(","))
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // SIGTERM first: it must end its workers.
        let _ = kill(Pid::from_raw(self.pid() as i32), Signal::SIGTERM);
        for _ in 0..100 {
            if !matches!(self.0.try_wait(), Ok(None)) {
                return;
            }
            thread::sleep(Duration::from_millis(50));
        }
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// What runs a program that ends also when the bench is killed.
pub(crate) fn bound(program: &Path, options: &[&str]) -> Command {
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "TERM"]).args(options).arg(program);
    command
}

/// Where Debian's package has put its program.
pub(crate) fn installed(name: &str, package: &str) -> Result<PathBuf> {
    let found = ["/usr/sbin", "/usr/bin"].iter().map(|folder| Path::new(folder).join(name)).find(|path| path.exists());
    found.with_context(|| format!("{name} is not installed (apt-get install {package})"))
}

/// A folder that other users may look into, as servers become others.
pub(crate) fn folder() -> io::Result<TempDir> {
    let folder = tempfile::tempdir()?;
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755))?;
    Ok(folder)
}

/// A port on which nobody listens.
pub(crate) fn free_port() -> io::Result<u16> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port())
}
