//! Servers of Debian that answer requests over TCP, and clients for them.

use std::{
    fs,
    io::{Read as _, Write as _},
    net::{Ipv4Addr, TcpStream},
    os::unix::process::CommandExt as _,
    path::Path,
};

use anyhow::{Result, ensure};

use crate::{
    http::{self, Connection},
    server::{Load, Server, Stock, bound, folder, free_port, installed},
};

/// Clients that ask at a time: enough for no worker to wait.
const CLIENTS: usize = 4;
/// Where Debian has them.
const APACHE_MODULES: &str = "/usr/lib/apache2/modules";

/// One worker, which allocates a pool for every request. Connections are kept: there is the least besides.
pub(crate) fn nginx() -> Result<Stock> {
    const REQUEST: &[u8] = b"GET /page.txt HTTP/1.1\r\nHost: localhost\r\n\r\n";
    let program = installed("nginx", "nginx-light")?;
    let (folder, port) = (folder()?, free_port()?);
    let path = folder.path().display();
    let temporary: String = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
        .iter()
        .map(|kind| format!("    {kind}_temp_path {path}/{kind};\n"))
        .collect();
    let configuration = format!(
        "daemon off;\nworker_processes 1;\npid {path}/pid;\nerror_log {path}/error.log;\nevents {{}}\nhttp {{\n\
         {temporary}    access_log off;\n    keepalive_requests 1000000000;\n\
         \x20   server {{ listen 127.0.0.1:{port}; root {path}/pages; }}\n}}\n"
    );
    let file = folder.path().join("nginx.conf");
    fs::write(&file, configuration)?;
    page(folder.path())?;
    let mut command = bound(&program, &[]);
    command.arg("-p").arg(folder.path()).arg("-e").arg(folder.path().join("error.log")).arg("-c").arg(&file);
    let answers = || Connection::open(port).and_then(|mut connection| connection.ask(REQUEST)).is_ok();
    let server = Server::start(&mut command, answers)?;
    let load = move |time| {
        http::rate(CLIENTS, time, || {
            let mut connection = Connection::open(port)?;
            Ok(move || connection.ask(REQUEST))
        })
    };
    Ok(Stock { server, loads: vec![("nginx, a small file", Box::new(load))], _folder: folder })
}

/// As many workers as Debian's configuration leaves there: none comes or goes, which takes this module seconds.
pub(crate) fn apache() -> Result<Stock> {
    let program = installed("apache2", "apache2-bin")?;
    let (folder, port) = (folder()?, free_port()?);
    let path = folder.path().display();
    let configuration = format!(
        "ServerRoot {path}\nServerName localhost\nListen 127.0.0.1:{port}\nPidFile {path}/pid\nErrorLog {path}/error.log\n\
         LoadModule mpm_prefork_module {APACHE_MODULES}/mod_mpm_prefork.so\n\
         LoadModule authz_core_module {APACHE_MODULES}/mod_authz_core.so\n\
         Mutex file:{path}\nStartServers 10\nMinSpareServers 5\nMaxSpareServers 10\nMaxConnectionsPerChild 0\n\
         DocumentRoot {path}/pages\n"
    );
    let file = folder.path().join("apache.conf");
    fs::write(&file, configuration)?;
    page(folder.path())?;
    let mut command = bound(&program, &[]);
    // At its end it signals the whole process group.
    command.arg("-f").arg(file).arg("-DFOREGROUND").process_group(0);
    let request = Request::get(port, "/page.txt");
    let server = Server::start(&mut command, || request.is_answered())?;
    Ok(Stock { server, loads: vec![("apache (prefork), a small file", request.load())], _folder: folder })
}

/// Workers that are replaced, with an allocator of their own (Zend's) on top of mmap.
pub(crate) fn php() -> Result<Stock> {
    const SCRIPT: &str = "<?php $all = []; for ($i = 0; $i < 200; $i++) { $one = new stdClass; \
        $one->name = str_repeat('x', $i); $all[] = $one; } echo 'it works ', count($all);";
    let program = installed("php-fpm8.2", "php8.2-fpm")?;
    let (folder, port) = (folder()?, free_port()?);
    let path = |name: &str| folder.path().join(name).display().to_string();
    fs::write(path("script.php"), SCRIPT)?;
    let configuration = format!(
        "[global]\nerror_log = {}\ndaemonize = no\n[www]\nuser = nobody\nlisten = 127.0.0.1:{port}\npm = static\n\
         pm.max_children = 2\npm.max_requests = 1000\n",
        path("log")
    );
    fs::write(path("fpm.conf"), configuration)?;
    let mut command = bound(&program, &[]);
    command.args(["--nodaemonize", "--fpm-config", &path("fpm.conf")]);
    let request = Request { port, text: fast_cgi(&path("script.php"))?, expected: "it works 200" };
    let server = Server::start(&mut command, || request.is_answered())?;
    Ok(Stock { server, loads: vec![("php-fpm, 200 objects", request.load())], _folder: folder })
}

/// Workers in Python that are replaced.
pub(crate) fn gunicorn() -> Result<Stock> {
    const APPLICATION: &str = r#"
import json

def app(environ, start):
    page = json.dumps([{"id": n, "name": "entry %d" % n, "on": True} for n in range(200)]).encode()
    start("200 OK", [("Content-Type", "application/json"), ("Content-Length", str(len(page)))])
    return [page]
"#;
    let program = installed("gunicorn", "gunicorn")?;
    let (folder, port) = (folder()?, free_port()?);
    fs::write(folder.path().join("pages.py"), APPLICATION)?;
    let mut command = bound(&program, &[]);
    command.args(["--workers", "2", "--max-requests", "1000", "--bind"]).arg(format!("127.0.0.1:{port}"));
    command.arg("--chdir").arg(folder.path()).arg("pages:app");
    let request = Request::get(port, "/");
    let server = Server::start(&mut command, || request.is_answered())?;
    Ok(Stock { server, loads: vec![("gunicorn, a page of 9 KB as JSON", request.load())], _folder: folder })
}

/// The small file.
fn page(folder: &Path) -> Result<()> {
    fs::create_dir(folder.join("pages"))?;
    Ok(fs::write(folder.join("pages/page.txt"), "it works\n".repeat(100))?)
}

/// What is asked by a connection of its own, which the server closes, and what is in the answer.
struct Request {
    port: u16,
    text: Vec<u8>,
    expected: &'static str,
}

impl Request {
    fn get(port: u16, path: &str) -> Self {
        Self { port, text: format!("GET {path} HTTP/1.0\r\n\r\n").into_bytes(), expected: " 200 OK" }
    }

    /// Asks once. `answer` is room that is used again: probes on the C library's allocator are then not the client's to pay.
    fn ask(&self, answer: &mut Vec<u8>) -> Result<()> {
        let mut connection = TcpStream::connect((Ipv4Addr::LOCALHOST, self.port))?;
        connection.set_read_timeout(Some(http::PATIENCE))?;
        connection.write_all(&self.text)?;
        answer.clear();
        connection.read_to_end(answer)?;
        let is_answered = answer.windows(self.expected.len()).any(|part| part == self.expected.as_bytes());
        ensure!(is_answered, "an answer that is none: {}", String::from_utf8_lossy(answer));
        Ok(())
    }

    fn is_answered(&self) -> bool {
        self.ask(&mut Vec::new()).is_ok()
    }

    fn load(self) -> Load {
        Box::new(move |time| {
            let request = &self;
            http::rate(CLIENTS, time, move || {
                let mut answer = Vec::new();
                Ok(move || request.ask(&mut answer))
            })
        })
    }
}

/// A request of FastCGI for a script: begin, as a responder; parameters and their end; no input.
fn fast_cgi(script: &str) -> Result<Vec<u8>> {
    let mut parameters = Vec::new();
    for (name, value) in [("REQUEST_METHOD", "GET"), ("SCRIPT_FILENAME", script), ("SCRIPT_NAME", "/")] {
        // Lengths below 128 are one byte (specification, 3.4).
        ensure!(value.len() < 128, "too long: {value}");
        parameters.extend([name.len() as u8, value.len() as u8]);
        parameters.extend([name, value].concat().bytes());
    }
    // Records (3.3).
    let record = |kind: u8, content: &[u8]| -> Result<Vec<u8>> {
        let [high, low] = u16::try_from(content.len())?.to_be_bytes();
        Ok([&[1, kind, 0, 1, high, low, 0, 0], content].concat())
    };
    let records = [record(1, &[0, 1, 0, 0, 0, 0, 0, 0])?, record(4, &parameters)?, record(4, &[])?, record(5, &[])?];
    Ok(records.concat())
}
