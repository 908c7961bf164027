//! nginx: a master with a worker that allocates a pool for every request.

use std::{fs, io, path::Path, process::Command, thread};

use tempfile::TempDir;

use super::{Server, get};
use crate::{
    harness::{Run, free_port, program, require_root, scratch, wait_until, while_busy},
    live_stacks,
};

const REQUESTS: usize = 1000;
const PAGE: &str = "it works";

fn configuration(folder: &Path, port: u16) -> String {
    let folder = folder.display();
    let temporary: String = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
        .iter()
        .map(|kind| format!("    {kind}_temp_path {folder}/{kind};\n"))
        .collect();
    format!(
        "daemon off;\nworker_processes 1;\npid {folder}/pid;\nerror_log {folder}/error.log;\nevents {{}}\nhttp {{\n\
         {temporary}    access_log off;\n    server {{ listen 127.0.0.1:{port}; root {folder}/pages; }}\n}}\n"
    )
}

fn page(port: u16) -> io::Result<String> {
    get(port, "/page.txt")
}

fn is_page(answer: io::Result<String>) -> bool {
    answer.is_ok_and(|text| text.starts_with("HTTP/1.1 200") && text.ends_with(PAGE))
}

/// nginx with one worker, which serves a page.
struct Nginx {
    server: Server,
    port: u16,
    worker: u32,
    _folder: TempDir,
}

impl Nginx {
    fn start() -> Self {
        let folder = scratch();
        let port = free_port();
        let file = folder.path().join("nginx.conf");
        fs::write(&file, configuration(folder.path(), port)).unwrap();
        fs::create_dir(folder.path().join("pages")).unwrap();
        fs::write(folder.path().join("pages/page.txt"), PAGE).unwrap();
        let mut command = Command::new(program("nginx", "nginx-light"));
        command.arg("-p").arg(folder.path()).arg("-e").arg(folder.path().join("error.log")).arg("-c").arg(&file);
        let server = Server::start(&mut command);
        wait_until("nginx answers", || is_page(page(port)));
        let worker = *server.children().first().expect("nginx has a worker");
        Self { server, port, worker, _folder: folder }
    }
}

#[test]
fn nginx_is_traced_under_load_and_stays_well() {
    require_root();
    let mut nginx = Nginx::start();
    let (worker, port) = (nginx.worker, nginx.port);

    let tracer = Run::pid(worker).start();
    let clients: Vec<_> =
        (0..2).map(|_| thread::spawn(move || (0..REQUESTS / 2).filter(|_| is_page(page(port))).count())).collect();
    let served: usize = clients.into_iter().map(|client| client.join().unwrap()).sum();
    let report = tracer.stop().report(0);
    assert_eq!(served, REQUESTS, "every request is answered while nginx is traced");
    report.assert_nothing_lost("nginx");
    report.assert_complete("nginx");
    assert!(report.allocated().blocks >= REQUESTS as u64, "{}", report.json["totals"]);
    let pools =
        report.stacks.iter().filter(|stack| stack.functions.iter().any(|name| name.starts_with("ngx_"))).count();
    assert!(pools > 0, "no stack has a name of nginx's: {:#?}", report.stacks.first());
    // Requests end, and their pools with them.
    assert!(report.outstanding().bytes * 10 < report.allocated().bytes, "{}", report.json["totals"]);

    assert!(nginx.server.is_alive());
    assert_eq!(nginx.server.children(), [worker], "the worker was not replaced");
    assert!(is_page(page(port)));
}

#[test]
fn stacks_of_nginx_are_those_of_gimli_and_gdb() {
    require_root();
    let nginx = Nginx::start();
    while_busy(1, || assert!(is_page(page(nginx.port))), || live_stacks::check("nginx", nginx.worker, 5));
    assert_eq!(nginx.server.children(), [nginx.worker]);
}
