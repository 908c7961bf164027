//! PostgreSQL: one process for each client, contexts of memory on top of malloc.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use super::{Server, check_workers, load};
use crate::{
    harness::{Run, alone, program, require_root, scratch, wait_until},
    live_stacks,
};

/// It refuses to run as root; its package made this user.
const USER: &str = "postgres";

fn installed(name: &str) -> PathBuf {
    let versions = fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    let mut found: Vec<PathBuf> = versions.map(|version| version.path().join("bin").join(name)).collect();
    found.retain(|path| path.exists());
    found.sort();
    found.pop().unwrap_or_else(|| panic!("{name} is missing: apt-get install postgresql"))
}

fn as_user(name: &str) -> Command {
    let mut command = Command::new(program("setpriv", "util-linux"));
    command.args(["--reuid", USER, "--regid", USER, "--clear-groups"]).arg(installed(name)).current_dir("/");
    command
}

struct Postgres {
    server: Server,
    folder: tempfile::TempDir,
}

impl Postgres {
    fn start() -> Self {
        let folder = scratch();
        load(Command::new("chown").arg(USER).arg(folder.path()));
        let data = folder.path().join("data");
        load(as_user("initdb").args(["--no-sync", "--auth", "trust", "--pgdata"]).arg(&data));
        let mut command = as_user("postgres");
        command.arg("-D").arg(&data).arg("-k").arg(folder.path()).args(["-c", "listen_addresses=", "-c", "fsync=off"]);
        let postgres = Self { server: Server::start(&mut command), folder };
        wait_until("postgres answers", || {
            let ready = postgres.client("pg_isready").stdout(Stdio::null()).status();
            ready.is_ok_and(|status| status.success())
        });
        postgres
    }

    fn client(&self, name: &str) -> Command {
        let mut command = as_user(name);
        command.arg("-h").arg(self.folder.path());
        command
    }

    fn query(&self, query: &str) -> String {
        load(self.client("psql").args(["-Atc", query])).trim().to_owned()
    }

    /// Process of the server that works for a client of this name, once there are two: pgbench looks around alone first.
    fn backend(&self, application: &str) -> Option<u32> {
        let query = format!(
            "select max(pid) from pg_stat_activity where application_name = '{application}' having count(*) = 2"
        );
        self.query(&query).parse().ok()
    }

    /// pgbench at work for so many seconds, and the backend of one of its clients.
    fn under_load(&self, seconds: &str) -> (Child, u32) {
        load(self.client("pgbench").args(["-i", "-q", "-s", "1"]));
        let mut command = self.client("pgbench");
        let clients = command.args(["-n", "-c", "2", "-T", seconds]).stdout(Stdio::piped()).stderr(Stdio::null());
        let clients = clients.spawn().unwrap();
        let mut backend = None;
        wait_until("pgbench is connected", || {
            backend = self.backend("pgbench");
            backend.is_some()
        });
        (clients, backend.unwrap())
    }
}

#[test]
fn a_postgres_backend_is_traced_under_load_and_stays_well() {
    require_root();
    let _turn = alone();
    let mut postgres = Postgres::start();
    let (mut clients, backend) = postgres.under_load("6");
    // Ends with the backend.
    let tracer = Run::pid(backend).start();
    let outcome = tracer.outcome();
    let mut said = String::new();
    std::io::Read::read_to_string(clients.stdout.as_mut().unwrap(), &mut said).unwrap();
    assert!(clients.wait().unwrap().success(), "{said}");
    assert!(said.contains("number of failed transactions: 0"), "{said}");

    let report = outcome.report(0);
    report.assert_nothing_lost("postgres");
    report.assert_complete("postgres");
    assert!(report.allocated().blocks > 100, "{}", report.json["totals"]);
    // Debian's binary is stripped: what it exports has names.
    let named = report.stacks.iter().filter(|stack| stack.has("_start") && stack.has("PostgresMain")).count();
    assert!(named > 0, "no stack goes through the main loop: {:#?}", report.stacks.first());
    assert!(is_in(&report.json["processes"][0]["exe"], &installed("postgres")));
    assert_eq!(postgres.query("select count(*) from pgbench_accounts"), "100000");
    assert!(postgres.server.is_alive());
}

/// A client that connects anew for each transaction: a process of the server's for each, which ends with it.
#[test]
fn postgres_is_traced_with_a_process_for_each_connection() {
    require_root();
    let mut postgres = Postgres::start();
    load(postgres.client("pgbench").args(["-i", "-q", "-s", "1"]));
    let tracer = Run::pid(postgres.server.pid()).args(["--scope", "file"]).start();
    load(postgres.client("pgbench").args(["-n", "-C", "-c", "2", "-t", "20"]));
    let report = tracer.stop().report(0);
    check_workers(&report, "postgres", 1 + 2 * 20);
    let named = report.stacks.iter().filter(|stack| stack.has("_start") && stack.has("PostgresMain")).count();
    assert!(named > 0, "no stack goes through the main loop: {:#?}", report.stacks.first());
    assert!(postgres.server.is_alive());
}

#[test]
fn stacks_of_postgres_are_those_of_gimli_and_gdb() {
    require_root();
    let _turn = alone();
    let mut postgres = Postgres::start();
    let (mut clients, backend) = postgres.under_load("300");
    live_stacks::check("postgres", backend, 5);
    clients.kill().unwrap();
    clients.wait().unwrap();
    assert!(postgres.server.is_alive());
}

fn is_in(json: &serde_json::Value, path: &Path) -> bool {
    json.as_str().is_some_and(|exe| Path::new(exe) == path)
}
