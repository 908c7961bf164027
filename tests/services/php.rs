//! php-fpm: a parent with workers that have an allocator of their own (Zend's), and are replaced.

use std::{
    fs, io,
    io::{Read as _, Write as _},
    net::{Ipv4Addr, TcpStream},
    process::Command,
};

use super::{Server, check_workers};
use crate::harness::{Run, free_port, program, require_root, scratch, wait_until};

const REQUESTS: usize = 120;
const SCRIPT: &str =
    "<?php $all = []; for ($i = 0; $i < 1000; $i++) $all[] = str_repeat('x', $i); echo 'it works ', count($all);";

/// A record of FastCGI (specification, 3.3).
fn record(kind: u8, content: &[u8]) -> Vec<u8> {
    let length = u16::try_from(content.len()).unwrap().to_be_bytes();
    [&[1, kind, 0, 1, length[0], length[1], 0, 0], content].concat()
}

/// What php-fpm answers to a request for a script.
fn ask(port: u16, script: &str) -> io::Result<String> {
    let mut connection = TcpStream::connect((Ipv4Addr::LOCALHOST, port))?;
    let parameter =
        |name: &str, value: &str| [&[name.len() as u8, value.len() as u8], name.as_bytes(), value.as_bytes()].concat();
    let parameters =
        [parameter("REQUEST_METHOD", "GET"), parameter("SCRIPT_FILENAME", script), parameter("SCRIPT_NAME", "/")];
    // Begin, as a responder; parameters and their end; no input.
    let request =
        [record(1, &[0, 1, 0, 0, 0, 0, 0, 0]), record(4, &parameters.concat()), record(4, &[]), record(5, &[])];
    connection.write_all(&request.concat())?;
    let mut answer = Vec::new();
    connection.read_to_end(&mut answer)?;
    Ok(String::from_utf8_lossy(&answer).into_owned())
}

#[test]
fn php_fpm_is_traced_with_workers_that_are_replaced() {
    require_root();
    let (folder, port) = (scratch(), free_port());
    let path = |name: &str| folder.path().join(name).display().to_string();
    fs::write(path("script.php"), SCRIPT).unwrap();
    let configuration = format!(
        "[global]\nerror_log = {}\ndaemonize = no\n[www]\nuser = nobody\nlisten = 127.0.0.1:{port}\npm = static\n\
         pm.max_children = 2\npm.max_requests = 20\n",
        path("log")
    );
    fs::write(path("fpm.conf"), configuration).unwrap();
    let mut command = Command::new(program("php-fpm8.2", "php8.2-fpm"));
    command.args(["--nodaemonize", "--fpm-config", &path("fpm.conf")]);
    // Zend's allocator takes memory by mmap; without it every value is a block.
    let mut server = Server::start(command.env("USE_ZEND_ALLOC", "0"));
    let script = path("script.php");
    let is_page = || ask(port, &script).is_ok_and(|text| text.contains("it works 1000"));
    wait_until("php-fpm answers", is_page);

    // The two workers that run already are not traced; after twenty requests each, others take their places.
    let tracer = Run::pid(server.pid()).args(["--scope", "file"]).start();
    assert_eq!((0..REQUESTS).filter(|_| is_page()).count(), REQUESTS);
    let report = tracer.stop().report(0);
    check_workers(&report, "php-fpm8.2", 3);
    assert!(report.stacks.iter().any(|stack| stack.has("php_execute_script")), "{:#?}", report.stacks.first());
    // A request ends, and what it had with it.
    assert!(report.outstanding().bytes * 2 < report.allocated().bytes, "{}", report.json["totals"]);
    assert!(server.is_alive() && is_page());
}
