//! redis-server: jemalloc in a library, event loop, background threads.

use std::{
    io::{BufRead as _, BufReader, Write as _},
    net::{Ipv4Addr, TcpStream},
    process::Command,
};

use nix::sys::signal::Signal;
use tempfile::TempDir;

use super::{Server, load};
use crate::{
    harness::{Run, alone, free_port, probed_bytes, program, require_root, scratch, wait_until, while_busy},
    live_stacks,
};

struct Redis {
    server: Server,
    port: u16,
    _folder: TempDir,
}

impl Redis {
    fn start() -> Self {
        let folder = scratch();
        let port = free_port();
        let mut command = Command::new(program("redis-server", "redis-server"));
        command.args(["--bind", "127.0.0.1", "--save", "", "--appendonly", "no", "--port", &port.to_string()]);
        let server = Server::start(command.arg("--dir").arg(folder.path()));
        let redis = Self { server, port, _folder: folder };
        wait_until("redis answers", || redis.try_ask("PING").is_ok());
        redis
    }

    fn try_ask(&self, command: &str) -> std::io::Result<String> {
        let mut connection = TcpStream::connect((Ipv4Addr::LOCALHOST, self.port))?;
        write!(connection, "{command}\r\n")?;
        let mut answer = String::new();
        let mut lines = BufReader::new(connection);
        lines.read_line(&mut answer)?;
        if answer.starts_with('$') {
            // A string: its length came first.
            answer.clear();
            lines.read_line(&mut answer)?;
        }
        Ok(answer.trim_end().to_owned())
    }

    fn ask(&self, command: &str) -> String {
        self.try_ask(command).unwrap()
    }

    fn benchmark(&self) {
        let port = self.port.to_string();
        let mut command = Command::new(program("redis-benchmark", "redis-tools"));
        let said = load(command.args([
            "-p",
            &port,
            "-q",
            "-n",
            "20000",
            "-c",
            "20",
            "-r",
            "1000",
            "-t",
            "set,get,lpush,sadd",
        ]));
        assert!(said.contains("SET"), "{said}");
    }
}

#[test]
fn redis_is_traced_under_load_and_stays_well() {
    require_root();
    let _turn = alone();
    let mut redis = Redis::start();
    for key in 0..100 {
        assert_eq!(redis.ask(&format!("SET kept:{key} value-{key}")), "+OK");
    }
    let tracer = Run::pid(redis.server.pid()).start();
    redis.benchmark();
    for key in 0..100 {
        assert_eq!(redis.ask(&format!("SET new:{key} value-{key}")), "+OK");
    }
    let report = tracer.stop().report(0);
    report.assert_nothing_lost("redis");
    report.assert_complete("redis");
    assert!(report.allocated().blocks > 20_000, "{}", report.json["totals"]);
    assert!(report.outstanding().bytes > 10_000, "{}", report.json["totals"]);
    // Debian's binary is stripped: what it exports has names.
    let named =
        report.stacks.iter().filter(|stack| stack.has("_start") && stack.has("main") && stack.has("aeMain")).count();
    assert!(named > 0, "no stack goes through the event loop: {:#?}", report.stacks.first());

    assert!(redis.server.is_alive());
    assert_eq!(redis.ask("PING"), "+PONG");
    for key in 0..100 {
        assert_eq!(redis.ask(&format!("GET kept:{key}")), format!("value-{key}"));
        assert_eq!(redis.ask(&format!("GET new:{key}")), format!("value-{key}"));
    }
    wait_until("the probes are gone", || probed_bytes(redis.server.pid(), "libjemalloc") == 0);
}

#[test]
fn stacks_of_redis_are_those_of_gimli_and_gdb() {
    require_root();
    let _turn = alone();
    let mut redis = Redis::start();
    while_busy(1, || redis.benchmark(), || live_stacks::check("redis-server", redis.server.pid(), 5));
    assert!(redis.server.is_alive());
}

#[test]
fn a_killed_tracer_leaves_no_probe() {
    require_root();
    let _turn = alone();
    let mut redis = Redis::start();
    let tracer = Run::pid(redis.server.pid()).start();
    assert!(probed_bytes(redis.server.pid(), "libjemalloc") > 0, "probes are seen in the code while they are there");
    redis.benchmark();
    tracer.signal(Signal::SIGKILL);
    redis.benchmark();
    wait_until("the probes are gone", || probed_bytes(redis.server.pid(), "libjemalloc") == 0);
    redis.benchmark();
    assert!(redis.server.is_alive());
    assert_eq!(redis.ask("PING"), "+PONG");
}
