//! Apache with the prefork module: a parent whose workers each serve one connection at a time, and are replaced.

use std::{fs, os::unix::process::CommandExt as _, path::Path, process::Command, thread};

use super::{Server, check_workers, get};
use crate::harness::{Run, free_port, program, require_root, scratch, wait_until};

const REQUESTS: usize = 300;
const PAGE: &str = "it works";
/// Where Debian has them.
const MODULES: &str = "/usr/lib/apache2/modules";

fn configuration(folder: &Path, port: u16) -> String {
    let folder = folder.display();
    format!(
        "ServerRoot {folder}\nServerName localhost\nListen 127.0.0.1:{port}\nPidFile {folder}/pid\nErrorLog {folder}/error.log\n\
         LoadModule mpm_prefork_module {MODULES}/mod_mpm_prefork.so\nLoadModule authz_core_module {MODULES}/mod_authz_core.so\n\
         Mutex file:{folder}\nStartServers 3\nMinSpareServers 1\nMaxSpareServers 4\nMaxConnectionsPerChild 50\n\
         DocumentRoot {folder}/pages\n"
    )
}

#[test]
fn apache_is_traced_with_workers_that_are_replaced() {
    require_root();
    let (folder, port) = (scratch(), free_port());
    let file = folder.path().join("apache.conf");
    fs::write(&file, configuration(folder.path(), port)).unwrap();
    fs::create_dir(folder.path().join("pages")).unwrap();
    fs::write(folder.path().join("pages/page.txt"), PAGE).unwrap();
    let mut command = Command::new(program("apache2", "apache2-bin"));
    // At its end it signals the whole process group.
    command.arg("-f").arg(file).arg("-DFOREGROUND").process_group(0);
    let mut server = Server::start(&mut command);
    let is_page = || get(port, "/page.txt").is_ok_and(|text| text.starts_with("HTTP/1.1 200") && text.ends_with(PAGE));
    wait_until("apache answers", is_page);
    let tracer = Run::pid(server.pid()).args(["--scope", "file"]).start();
    let clients: Vec<_> = (0..2).map(|_| thread::spawn(move || served(port))).collect();
    let served: usize = clients.into_iter().map(|client| client.join().unwrap()).sum();
    assert_eq!(served, REQUESTS, "every request is answered while apache is traced");
    let report = tracer.stop().report(0);
    // The parent, and workers in the place of those that have served fifty; the three that were there before are not traced.
    check_workers(&report, "apache2", 1 + (REQUESTS / 50 - 3) as u64);
    assert!(report.stacks.iter().any(|stack| stack.has("ap_run_mpm")), "{:#?}", report.stacks.first());
    report.assert_complete("apache");
    assert!(server.is_alive() && is_page());
}

/// How many of half of the requests were answered.
fn served(port: u16) -> usize {
    (0..REQUESTS / 2).filter(|_| get(port, "/page.txt").is_ok_and(|text| text.ends_with(PAGE))).count()
}
