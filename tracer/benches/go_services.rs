//! What a service in Go feels of being traced: requests that a fully busy Caddy answers, and the pauses of its garbage
//! collector, alone, while its own profile is read, and while its allocations are sampled.
#![expect(clippy::print_stdout, reason = "figures are what a bench is for")]

#[path = "support/http.rs"]
mod http;
#[path = "support/median.rs"]
mod median;
#[path = "support/tracing.rs"]
mod tracing;

use std::{
    fs,
    net::{Ipv4Addr, TcpListener},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};
use http::Connection;
use median::median;
use tracing::Tracing;

/// Times that every way is measured, in turns, and how long each time.
const TURNS: usize = 5;
const MEASURE: Duration = Duration::from_secs(5);
/// Connections that ask all the time.
const CONNECTIONS: usize = 8;
/// What is asked.
const REQUEST: &[u8] = b"GET /some/page HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n";
/// How long the service may take to begin.
const PATIENCE: Duration = Duration::from_secs(20);

/// The service, which `cargo xtask test` builds.
const SERVICE: &str = concat!(env!("CARGO_TARGET_TMPDIR"), "/../go/services/caddy");

fn main() -> Result<()> {
    if !rustix::process::geteuid().is_root() {
        println!("go_services: NOT RUN, it needs root to attach probes");
        return Ok(());
    }
    if !Path::new(SERVICE).exists() {
        println!("go_services: NOT RUN, there is no service: `cargo xtask test` builds it");
        return Ok(());
    }
    let folder = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("go-services-bench");
    fs::create_dir_all(&folder)?;
    let mut service = Service::start(&folder)?;
    let result = compare(&service);
    service.end();
    result
}

fn compare(service: &Service) -> Result<()> {
    // Warm.
    service.measure()?;
    let ways =
        [("alone", None), ("its own profile is read", Some("auto")), ("allocations are sampled", Some("sample"))];
    let mut measured: Vec<Vec<Measured>> = vec![Vec::new(); ways.len()];
    for _ in 0..TURNS {
        for ((_, way), measured) in ways.iter().zip(&mut measured) {
            let tracing = way
                .map(|way| Tracing::start(service.child.id(), ["--go-heap", way]))
                .transpose()?
                .map(|(tracing, _)| tracing);
            measured.push(service.measure()?);
            tracing.map(Tracing::stop).transpose()?;
        }
    }
    let of = |measured: &[Measured], what: fn(&Measured) -> f64| median(measured.iter().map(what).collect());
    let alone = of(&measured[0], |one| one.requests);
    println!("Caddy, {CONNECTIONS} connections      requests/s   of those alone   median and longest pause, ms");
    for ((name, _), measured) in ways.iter().zip(&measured) {
        let requests = of(measured, |one| one.requests);
        println!(
            "{name:<26} {requests:>10.0} {:>16.2} {:>16.3} {:>8.2}",
            requests / alone,
            of(measured, |one| one.pause),
            of(measured, |one| one.longest)
        );
    }
    Ok(())
}

/// What was seen in one time.
#[derive(Clone, Copy)]
struct Measured {
    /// A second.
    requests: f64,
    /// Of the garbage collector, median and longest, milliseconds.
    pause: f64,
    longest: f64,
}

struct Service {
    child: Child,
    port: u16,
    /// What it says of its garbage collections.
    log: PathBuf,
}

impl Service {
    fn start(folder: &Path) -> Result<Self> {
        let port = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port();
        let (configuration, log) = (folder.join("caddy.json"), folder.join("caddy.log"));
        fs::write(
            &configuration,
            format!(
                r#"{{"admin":{{"disabled":true}},"apps":{{"http":{{"servers":{{"main":{{"listen":["127.0.0.1:{port}"],
                "automatic_https":{{"disable":true}},"routes":[{{"handle":[{{"handler":"templates"}},
                {{"handler":"static_response","body":"{{{{ now | date \"2006\" }}}} {{http.request.uri}} works"}}]}}]}}}}}}}}}}"#
            ),
        )?;
        let mut command = Command::new(SERVICE);
        command.arg("run").arg("--config").arg(&configuration).env("HOME", folder).env("GODEBUG", "gctrace=1");
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(fs::File::create(&log)?).spawn()?;
        let service = Self { child, port, log };
        let begin = Instant::now();
        while service.connect().and_then(|mut connection| connection.ask(REQUEST)).is_err() {
            ensure!(begin.elapsed() < PATIENCE, "the service does not answer: see {}", service.log.display());
            thread::sleep(Duration::from_millis(50));
        }
        Ok(service)
    }

    fn connect(&self) -> Result<Connection> {
        Connection::open(self.port)
    }

    fn measure(&self) -> Result<Measured> {
        let before = fs::metadata(&self.log)?.len();
        let requests = http::rate(CONNECTIONS, MEASURE, || {
            let mut connection = self.connect()?;
            Ok(move || connection.ask(REQUEST))
        })?;
        let log = fs::read(&self.log)?;
        let said = String::from_utf8_lossy(log.get(before as usize..).unwrap_or_default()).into_owned();
        let pauses: Vec<f64> = said.lines().filter_map(pause).collect();
        ensure!(!pauses.is_empty(), "no garbage was collected");
        let longest = pauses.iter().copied().fold(0.0, f64::max);
        Ok(Measured { requests, pause: median(pauses), longest })
    }

    fn end(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Both pauses of a cycle, milliseconds, from the runtime's line: `gc 5 @0.1s 2%: 0.02+1.1+0.003 ms clock, ...`.
fn pause(line: &str) -> Option<f64> {
    let clock = line.strip_prefix("gc ")?.split_once("%: ")?.1.split_once(" ms clock")?.0;
    let mut parts = clock.split('+').map(str::parse::<f64>);
    let (begin, _, end) = (parts.next()?.ok()?, parts.next()?, parts.next()?.ok()?);
    Some(begin + end)
}
