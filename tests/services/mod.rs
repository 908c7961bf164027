//! Stock servers of Debian, and services in Go, under load: they are traced, they do their work meanwhile, and nothing of the tracer stays.

mod apache;
mod go;
mod gunicorn;
mod nginx;
mod php;
mod postgres;
mod python;
mod redis;

use std::{
    io::{self, Read as _, Write as _},
    net::{Ipv4Addr, TcpStream},
    process::{Child, Command, Stdio},
    thread,
};

use crate::harness::Report;

/// A server that ends with its test.
struct Server(Child);

impl Server {
    fn start(command: &mut Command) -> Self {
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        Self(command.spawn().unwrap_or_else(|error| panic!("{command:?}: {error}")))
    }

    fn pid(&self) -> u32 {
        self.0.id()
    }

    fn is_alive(&mut self) -> bool {
        self.0.try_wait().unwrap().is_none()
    }

    /// Ids of the processes that it started and that live.
    fn children(&self) -> Vec<u32> {
        let pid = self.pid();
        let children = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
        children.split_whitespace().map(|pid| pid.parse().unwrap()).collect()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // SIGTERM first: servers with children must end those.
        let pid = nix::unistd::Pid::from_raw(self.pid() as i32);
        let _ = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM);
        for _ in 0..100 {
            if !self.is_alive() {
                return;
            }
            thread::sleep(std::time::Duration::from_millis(50));
        }
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// What a server on this port answers, with its head.
fn get(port: u16, path: &str) -> io::Result<String> {
    let mut connection = TcpStream::connect((Ipv4Addr::LOCALHOST, port))?;
    write!(connection, "GET {path} HTTP/1.0\r\n\r\n")?;
    let mut answer = String::new();
    connection.read_to_string(&mut answer)?;
    Ok(answer)
}

/// Checks a report of a server that has forked workers and replaced some: all are one group of this name, nothing was lost, and stacks
/// that all of them have are told once.
#[track_caller]
fn check_workers(report: &Report, name: &str, at_least: u64) {
    report.assert_nothing_lost(name);
    let groups = report.json["groups"].as_array().unwrap();
    let group = groups.iter().find(|group| group["comm"] == name).unwrap_or_else(|| panic!("no {name}: {groups:?}"));
    let (live, ended) = (group["live_processes"].as_u64().unwrap(), group["ended_processes"].as_u64().unwrap());
    assert!(live + ended >= at_least && ended > 0, "workers were replaced: {group}");
    let images = group["images"].as_array().unwrap();
    let held: u64 =
        report.stacks.iter().filter(|stack| images.contains(&stack.image.into())).map(|s| s.held.bytes).sum();
    assert_eq!(group["totals"]["outstanding_bytes"], held, "{group}");
    let processes = report.json["processes"].as_array().unwrap();
    let of_them = processes.iter().filter(|process| process["comm"] == name);
    assert_eq!(of_them.count() as u64, live + ended, "{group}");
}

/// Runs a load generator to its end and returns what it printed.
fn load(command: &mut Command) -> String {
    let output = command.stdin(Stdio::null()).output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {}\n{said}", output.status);
    String::from_utf8_lossy(&output.stdout).into_owned()
}
