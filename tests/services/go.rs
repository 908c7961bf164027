//! Services in Go, as their makers release them: what their own profiles say of heap and goroutines is what the tracer says.
//!
//! `cargo xtask test` builds the first two, `cargo xtask test --go-services` all of them.

use std::{
    collections::BTreeMap,
    fs,
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::{Ipv4Addr, TcpStream},
    path::{Path, PathBuf},
    process::Command,
};

use serde_json::Value;
use tempfile::TempDir;

use super::Server;
use crate::harness::{
    Run, Usage, by_function, deviation, free_port, read_heap_profile, reported_usages, require_root, scratch,
    wait_until,
};

const PROGRAMS: &str = concat!(env!("CARGO_TARGET_TMPDIR"), "/../go/services");

/// Bytes between samples of a runtime, unless it is told otherwise.
const DEFAULT_RATE: i64 = 512 * 1024;

/// Connections that a load keeps.
const CONNECTIONS: usize = 200;

/// What a service needs to be started, and how work is made for it.
struct Kind {
    name: &'static str,
    /// Arguments for a folder of its own, the port that it serves, and the one of its profiles.
    arguments: fn(&Path, u16, u16) -> Vec<String>,
    /// Whether its profiles are on the port that it serves.
    one_port: bool,
    /// Whether it can be asked.
    is_up: fn(u16) -> bool,
    /// Makes work, and keeps connections.
    load: fn(u16) -> Vec<TcpStream>,
}

const NATS: Kind = Kind {
    name: "nats-server",
    arguments: |_, port, profiles| words(&format!("-a 127.0.0.1 -p {port} --profile {profiles}")),
    one_port: false,
    is_up: |port| TcpStream::connect((Ipv4Addr::LOCALHOST, port)).is_ok(),
    load: subscribe,
};

const CADDY: Kind = Kind {
    name: "caddy",
    arguments: |folder, port, profiles| {
        let file = folder.join("caddy.json");
        let routes = r#"[{"handle":[{"handler":"static_response","body":"{http.request.uri.path} works"}]}]"#;
        let configuration = format!(
            r#"{{"admin":{{"listen":"127.0.0.1:{profiles}"}},"apps":{{"http":{{"servers":{{"main":{{
            "listen":["127.0.0.1:{port}"],"automatic_https":{{"disable":true}},"routes":{routes}}}}}}}}}}}"#
        );
        fs::write(&file, configuration).unwrap();
        words(&format!("run --config {}", file.display()))
    },
    one_port: false,
    is_up: |port| get(port, "/x").ends_with("/x works"),
    load: |port| keep_asking(port, "GET", "/some/page", ""),
};

const ETCD: Kind = Kind {
    name: "etcd",
    arguments: |folder, port, peers| {
        words(&format!(
            "--data-dir {}/data --enable-pprof --listen-client-urls http://127.0.0.1:{port} --advertise-client-urls \
             http://127.0.0.1:{port} --listen-peer-urls http://127.0.0.1:{peers} --initial-advertise-peer-urls \
             http://127.0.0.1:{peers} --initial-cluster default=http://127.0.0.1:{peers}",
            folder.display()
        ))
    },
    one_port: true,
    is_up: |port| get(port, "/health").contains("true"),
    // The key and the value are in base 64.
    load: |port| keep_asking(port, "POST", "/v3/kv/put", r#"{"key":"a2V5","value":"dmFsdWU="}"#),
};

const PROMETHEUS: Kind = Kind {
    name: "prometheus",
    arguments: |folder, port, _| {
        let file = folder.join("prometheus.yml");
        let configuration = format!(
            "global:\n  scrape_interval: 1s\nscrape_configs:\n  - job_name: own\n    static_configs:\n      - targets: \
             ['127.0.0.1:{port}']\n"
        );
        fs::write(&file, configuration).unwrap();
        words(&format!(
            "--config.file={} --storage.tsdb.path={}/data --web.listen-address=127.0.0.1:{port}",
            file.display(),
            folder.display()
        ))
    },
    one_port: true,
    is_up: |port| get(port, "/-/ready").starts_with("HTTP/1.0 200"),
    load: |port| keep_asking(port, "GET", "/api/v1/query?query=rate(go_memstats_alloc_bytes_total[1m])", ""),
};

fn words(line: &str) -> Vec<String> {
    line.split(' ').map(str::to_owned).collect()
}

/// One request, on a connection of its own; what cannot be had is an answer without text.
fn get(port: u16, path: &str) -> String {
    let mut answer = Vec::new();
    if let Ok(mut connection) = TcpStream::connect((Ipv4Addr::LOCALHOST, port)) {
        let _ = write!(connection, "GET {path} HTTP/1.0\r\nHost: 127.0.0.1:{port}\r\n\r\n");
        let _ = connection.read_to_end(&mut answer);
    }
    String::from_utf8_lossy(&answer).into_owned()
}

/// Some requests on each of many connections, which stay open.
fn keep_asking(port: u16, method: &str, path: &str, body: &str) -> Vec<TcpStream> {
    let ask = |_| {
        let mut connection = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).unwrap();
        let mut answers = BufReader::new(connection.try_clone().unwrap());
        // In one piece, or the service waits for the rest of each.
        let length = body.len();
        let request =
            format!("{method} {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nContent-Length: {length}\r\n\r\n{body}");
        for _ in 0..20 {
            connection.write_all(request.as_bytes()).unwrap();
            read_answer(&mut answers);
        }
        connection
    };
    (0..CONNECTIONS).map(ask).collect()
}

/// Reads an answer with a length, or in chunks.
fn read_answer(answers: &mut BufReader<TcpStream>) {
    let mut line = || {
        let mut line = String::new();
        assert!(answers.read_line(&mut line).unwrap() > 0, "the service has closed its connection");
        line.trim_end().to_ascii_lowercase()
    };
    let status = line();
    assert!(status.contains(" 200"), "{status}");
    let head: Vec<String> = std::iter::repeat_with(&mut line).take_while(|line| !line.is_empty()).collect();
    let length = head.iter().find_map(|line| line.strip_prefix("content-length: ")?.parse().ok());
    match length {
        Some(length) => answers.read_exact(&mut vec![0; length]).unwrap(),
        None => loop {
            let mut line = String::new();
            answers.read_line(&mut line).unwrap();
            let length = usize::from_str_radix(line.trim_end(), 16).unwrap_or_else(|_| panic!("no chunk: {line:?}"));
            answers.read_exact(&mut vec![0; length + 2]).unwrap();
            if length == 0 {
                return;
            }
        },
    }
}

/// Subscribers with many subjects each, and messages for some of them.
fn subscribe(port: u16) -> Vec<TcpStream> {
    let connect = |client| {
        let mut connection = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).unwrap();
        let mut answers = BufReader::new(connection.try_clone().unwrap());
        let mut orders = r#"CONNECT {"verbose":false,"echo":false}"#.to_owned() + "\r\n";
        for subject in 0..100 {
            orders += &format!("SUB subject.{client}.{subject} {subject}\r\n");
            orders += &format!("PUB subject.{}.{subject} 5\r\nhello\r\n", (client + 1) % CONNECTIONS);
        }
        connection.write_all((orders + "PING\r\n").as_bytes()).unwrap();
        let mut line = String::new();
        while !line.starts_with("PONG") {
            line.clear();
            assert!(answers.read_line(&mut line).unwrap() > 0, "the service has closed its connection");
            assert!(!line.starts_with("-ERR"), "{line}");
        }
        connection
    };
    (0..CONNECTIONS).map(connect).collect()
}

/// A service that runs.
struct Service {
    server: Server,
    port: u16,
    profiles: u16,
    kind: &'static Kind,
    _folder: TempDir,
}

impl Service {
    fn start(kind: &'static Kind, environment: &[(&str, &str)]) -> Self {
        let folder = scratch();
        let program = PathBuf::from(PROGRAMS).join(kind.name);
        assert!(program.exists(), "{} is missing: `cargo xtask test --go-services` builds it", program.display());
        let (port, other) = (free_port(), free_port());
        let mut command = Command::new(program);
        command.args((kind.arguments)(folder.path(), port, other)).envs(environment.iter().copied());
        command.current_dir(folder.path()).env("HOME", folder.path()).env_remove("XDG_DATA_HOME");
        let server = Server::start(&mut command);
        wait_until(kind.name, || (kind.is_up)(port));
        Self { server, port, profiles: if kind.one_port { port } else { other }, kind, _folder: folder }
    }

    fn load(&self) -> Vec<TcpStream> {
        (self.kind.load)(self.port)
    }

    /// One of its own profiles, as text.
    fn profile(&self, what: &str) -> String {
        let answer = get(self.profiles, &format!("/debug/pprof/{what}"));
        let (head, body) = answer.split_once("\r\n\r\n").unwrap_or_else(|| panic!("no {what}: {answer:.500}"));
        assert!(head.contains(" 200"), "{what}: {head}");
        body.to_owned()
    }

    /// Its heap, after it has collected its garbage.
    fn heap(&self) -> BTreeMap<String, Usage> {
        for _ in 0..2 {
            self.profile("heap?debug=1&gc=1");
        }
        by_function(&read_heap_profile(&self.profile("heap?debug=1&gc=1")))
    }

    fn goroutines(&self) -> u64 {
        let profile = self.profile("goroutine?debug=1");
        let total =
            profile.lines().next().and_then(|line| line.strip_prefix("goroutine profile: total ")?.parse().ok());
        total.unwrap_or_else(|| panic!("no goroutines: {profile:.500}"))
    }

    #[track_caller]
    fn assert_well(mut self) {
        assert!(self.server.is_alive(), "{} has died", self.kind.name);
        assert!((self.kind.is_up)(self.port), "{} answers no more", self.kind.name);
    }
}

/// The functions that have most of something.
fn top_ten(functions: &BTreeMap<String, Usage>, most: fn(&Usage) -> i64) -> Vec<(&String, &Usage)> {
    let mut functions: Vec<_> = functions.iter().filter(|(_, usage)| most(usage) > 0).collect();
    functions.sort_by_key(|(_, usage)| std::cmp::Reverse(most(usage)));
    functions.truncate(10);
    functions
}

/// The runtime's own buckets, which a service with profiles has: the same as it shows itself.
fn check_buckets(kind: &'static Kind) {
    require_root();
    let service = Service::start(kind, &[]);
    let tracer = Run::pid(service.server.pid()).args(["--go-heap", "auto"]).start();
    let connections = service.load();
    let truth = service.heap();
    let report = tracer.stop().report(0);
    assert_eq!(report.json["mode"], "go-buckets", "{}", kind.name);
    let reported = by_function(&reported_usages(&report));
    let top = top_ten(&truth, |usage| usage.held_bytes);
    assert!(top.len() >= 3, "{}: not much of a profile: {top:?}", kind.name);
    for (function, usage) in top {
        let held = reported.get(function).copied().unwrap_or_default().held_bytes;
        // One sample more or less, of what it has done since.
        let near = (held - usage.held_bytes).abs() <= (usage.held_bytes / 10).max(DEFAULT_RATE + 1024);
        assert!(near, "{}: {function} holds {} bytes, reported {held}", kind.name, usage.held_bytes);
    }
    let sum = |functions: &BTreeMap<String, Usage>| -> i64 { functions.values().map(|usage| usage.held_bytes).sum() };
    let (all, ours) = (sum(&truth), sum(&reported));
    assert!((all - ours).abs() <= (all / 10).max(2 * DEFAULT_RATE), "{}: {all} bytes, reported {ours}", kind.name);
    drop(connections);
    service.assert_well();
}

/// By samples, against a profile of the service that has more of them.
fn check_samples(kind: &'static Kind) {
    const MEAN: f64 = 32.0 * 1024.0;
    const RATE: f64 = 4096.0;
    require_root();
    let service = Service::start(kind, &[("GODEBUG", "memprofilerate=4096")]);
    let before = service.heap();
    let tracer = Run::pid(service.server.pid()).args(["--go-heap", "sample"]).start();
    let connections = service.load();
    let after = service.heap();
    let outcome = tracer.stop();
    let report = outcome.report(0);
    assert_eq!(report.json["mode"], "sampled", "{}", kind.name);
    let reported = by_function(&reported_usages(&report));
    let of =
        |functions: &BTreeMap<String, Usage>, function: &String| functions.get(function).copied().unwrap_or_default();
    let during: BTreeMap<String, Usage> =
        after.iter().map(|(function, usage)| (function.clone(), *usage - of(&before, function))).collect();
    let tolerance = |bytes: i64, blocks: i64| {
        let (bytes, blocks) = (bytes.max(0) as f64, blocks.max(1) as f64);
        let ours = deviation(bytes, blocks, MEAN).powi(2) + deviation(bytes, blocks, RATE).powi(2);
        // One sample, however small what it shows, stands for more than the mean.
        (bytes / 10.0).max(4.0 * ours.sqrt()).max(2.0 * MEAN) as i64
    };
    // Objects that share blocks are not counted alike.
    let top: Vec<_> = top_ten(&during, |usage| usage.allocated_bytes)
        .into_iter()
        .filter(|(_, usage)| usage.allocated_bytes > 24 * usage.allocated_blocks)
        .collect();
    assert!(top.len() >= 5, "{}: not much of a load: {top:?}", kind.name);
    let mut wrong = String::new();
    for (function, usage) in top {
        let ours = of(&reported, function);
        let (allocated, blocks) = (usage.allocated_bytes, usage.allocated_blocks);
        if (ours.allocated_bytes - allocated).abs() > tolerance(allocated, blocks) {
            wrong += &format!("  {function}: allocated {allocated} bytes, reported {}\n", ours.allocated_bytes);
        }
        let (then, now) = (of(&before, function).held_bytes, of(&after, function).held_bytes);
        let slack = tolerance(now, of(&after, function).held_blocks);
        if ours.held_bytes > now + slack || ours.held_bytes < now - then - slack {
            wrong += &format!("  {function}: held {then} bytes before, {now} after, reported {}\n", ours.held_bytes);
        }
    }
    assert!(wrong.is_empty(), "{}:\n{wrong}", kind.name);
    drop(connections);
    service.assert_well();
}

/// Under load and at rest, all goroutines are counted.
fn check_goroutines(kind: &'static Kind) {
    require_root();
    let service = Service::start(kind, &[]);
    let connections = service.load();
    let mut seen = Vec::new();
    for _ in 0..5 {
        // Those of the profile's own connection come and go.
        let before = service.goroutines();
        let outcome = Run::bare().args(["goroutines", "--pid", &service.server.pid().to_string()]).with_json().finish();
        let after = service.goroutines();
        assert_eq!(outcome.code(), Some(0), "{}: {}", kind.name, outcome.stderr);
        let json: Value = serde_json::from_str(&outcome.file("out.json")).unwrap();
        let total = json["totals"]["goroutines"].as_u64().unwrap();
        if (before.min(after).saturating_sub(5)..=before.max(after) + 5).contains(&total) {
            assert!(total > 10, "{}: {total} goroutines", kind.name);
            drop(connections);
            return service.assert_well();
        }
        seen.push((before, total, after));
    }
    panic!("{}: goroutines before, reported, after: {seen:?}", kind.name);
}

#[test]
fn nats_from_its_buckets() {
    check_buckets(&NATS);
}

#[test]
fn nats_by_samples() {
    check_samples(&NATS);
}

#[test]
fn goroutines_of_nats() {
    check_goroutines(&NATS);
}

#[test]
fn caddy_from_its_buckets() {
    check_buckets(&CADDY);
}

#[test]
fn caddy_by_samples() {
    check_samples(&CADDY);
}

#[test]
fn goroutines_of_caddy() {
    check_goroutines(&CADDY);
}

#[test]
#[ignore = "builds for minutes: cargo xtask test --go-services"]
fn etcd_in_every_mode() {
    check_buckets(&ETCD);
    check_samples(&ETCD);
    check_goroutines(&ETCD);
}

#[test]
#[ignore = "builds for minutes: cargo xtask test --go-services"]
fn prometheus_in_every_mode() {
    check_buckets(&PROMETHEUS);
    check_samples(&PROMETHEUS);
    check_goroutines(&PROMETHEUS);
}
