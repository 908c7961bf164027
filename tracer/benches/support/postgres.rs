//! PostgreSQL under pgbench: on connections that are kept, and with a connection, and so a process, for each transaction.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};

use crate::server::{Load, Server, Stock, bound, folder};

/// It refuses to run as root; its package made this user.
const USER: &str = "postgres";

pub(crate) fn start() -> Result<Stock> {
    let folder = folder()?;
    let (path, data) = (folder.path().to_owned(), folder.path().join("data"));
    let programs = Programs::find(&path)?;
    run(Command::new("chown").arg(USER).arg(&path))?;
    run(programs.command("initdb").args(["--no-sync", "--auth", "trust", "--pgdata"]).arg(&data))?;
    let mut command = programs.command("postgres");
    // What comes by itself would be measured, too.
    command.arg("-D").arg(&data).arg("-k").arg(&path).args(["-c", "listen_addresses="]);
    command.args(["-c", "fsync=off", "-c", "autovacuum=off"]);
    let server = Server::start(&mut command, || run(&mut programs.client("pg_isready")).is_ok())?;
    run(programs.client("pgbench").args(["-i", "-q", "-s", "1"]))?;
    let load = |options: &'static [&'static str]| -> Load {
        let programs = programs.clone();
        Box::new(move |time| programs.transactions(options, time))
    };
    let loads = vec![("postgres, pgbench -S", load(&["-S"])), ("postgres, pgbench -S -C", load(&["-S", "-C"]))];
    Ok(Stock { server, loads, _folder: folder })
}

/// Its programs, and where its socket is.
#[derive(Clone)]
struct Programs {
    binaries: PathBuf,
    socket: PathBuf,
}

impl Programs {
    /// Those of the newest version that has all.
    fn find(socket: &Path) -> Result<Self> {
        let versions = fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
        let mut found: Vec<PathBuf> = versions.map(|version| version.path().join("bin")).collect();
        found.retain(|folder| ["postgres", "pgbench"].iter().all(|name| folder.join(name).exists()));
        found.sort();
        let binaries = found.pop().context("it is not installed (apt-get install postgresql postgresql-contrib)")?;
        Ok(Self { binaries, socket: socket.to_owned() })
    }

    fn command(&self, name: &str) -> Command {
        let user = ["--reuid", USER, "--regid", USER, "--clear-groups"];
        let mut command = bound(&self.binaries.join(name), &user);
        command.current_dir("/");
        command
    }

    fn client(&self, name: &str) -> Command {
        let mut command = self.command(name);
        command.arg("-h").arg(&self.socket);
        command
    }

    /// Transactions a second of two clients.
    fn transactions(&self, options: &[&str], time: Duration) -> Result<f64> {
        let seconds = time.as_secs().to_string();
        let said = run(self.client("pgbench").args(["-n", "-c", "2", "-T", &seconds]).args(options))?;
        ensure!(said.contains("number of failed transactions: 0"), "transactions have failed: {said}");
        let rate = said.lines().find_map(|line| line.strip_prefix("tps = ")).and_then(|line| line.split(' ').next());
        rate.with_context(|| format!("no rate: {said}"))?.parse().context("no number")
    }
}

/// Runs a program to its end: what it said.
fn run(command: &mut Command) -> Result<String> {
    let output = command.stdin(Stdio::null()).output()?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{command:?}: {}\n{said}", output.status);
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
