//! Processes in containers, made by hand: cgroups of both versions, namespaces, roots of their own, an overlay; and other C libraries.

use std::{
    fs,
    io::{Read as _, Write as _},
    path::Path,
    process::{Child, Command, Stdio},
    time::Duration,
};

use tempfile::TempDir;

use crate::{
    children::{reported, told},
    harness::{Cgroup, Held, Report, Run, compiled, copy_program, require_root, scratch, skipped, wait_until},
};

/// Namespaces of users, processes and mounts.
const NAMESPACES: [&str; 6] = ["unshare", "--user", "--map-root-user", "--pid", "--fork", "--mount"];

/// A process that forks others once it is told to, in surroundings of its own.
struct Contained {
    /// What was started, which may be a parent of it.
    outer: Child,
    /// The process, as it is seen from outside.
    pid: u32,
    _folder: TempDir,
}

impl Contained {
    /// Starts `command` in a folder, with its path in place of `FOLDER`, and waits until it has become `/tree`; or why that cannot be.
    fn start(folder: TempDir, command: &[&str]) -> Result<Self, String> {
        let path = folder.path().to_str().unwrap();
        let arguments: Vec<String> = command.iter().map(|argument| argument.replace("FOLDER", path)).collect();
        let mut outer = Command::new(&arguments[0]);
        outer.args(&arguments[1..]).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut outer = outer.spawn().map_err(|error| format!("cannot run {}: {error}", arguments[0]))?;
        let mut pid = None;
        wait_until("the process is there, or has ended", || {
            pid = tree_below(outer.id());
            pid.is_some() || outer.try_wait().unwrap().is_some()
        });
        let Some(pid) = pid else {
            let mut said = String::new();
            outer.stderr.take().unwrap().read_to_string(&mut said).unwrap();
            return Err(format!("{}: {}", arguments.join(" "), said.trim()));
        };
        Ok(Self { outer, pid, _folder: folder })
    }

    /// Traces it by these options, has it do its work, and checks that every process is exact. What it is told by its files and its place is
    /// in the report that comes back.
    fn check(mut self, what: &str, options: &[&str]) -> Report {
        let running = Run::bare().with_json().args(options).args(["--scope", "file"]).start();
        self.outer.stdin.take().unwrap().write_all(b"\n").unwrap();
        let output = self.outer.wait_with_output().unwrap();
        let report = running.stop().report(0);
        report.assert_nothing_lost(what);
        // In its namespace it has another id.
        let values = |all: std::collections::BTreeMap<u32, Held>| {
            let mut values: Vec<(u64, u64)> = all.into_values().map(|held| (held.bytes, held.blocks)).collect();
            values.sort_unstable();
            values
        };
        let truth = values(told(&String::from_utf8_lossy(&output.stdout)));
        assert_eq!((truth.len(), &values(reported(&report))), (5, &truth), "{what}");
        assert!(report.stacks.iter().any(|stack| stack.has("hold") && stack.has("main")), "{what}: no names");
        report
    }
}

/// The process that has become `tree`, of these and their children.
fn tree_below(pid: u32) -> Option<u32> {
    let text = |name: &str| fs::read_to_string(format!("/proc/{pid}/{name}")).unwrap_or_default();
    // It waits for its input: all that it maps is there.
    if text("comm") == "tree\n" && text("wchan").contains("pipe_read") {
        return Some(pid);
    }
    let children = text(&format!("task/{pid}/children"));
    children.split_whitespace().find_map(|child| tree_below(child.parse().unwrap()))
}

/// A folder that holds a root with `/tree` and what it needs, and folders for an overlay.
fn with_root() -> TempDir {
    let folder = scratch();
    let program = compiled("tree");
    let root = folder.path().join("root");
    let copy = |from: &Path, to: &str| {
        let to = root.join(to.trim_start_matches('/'));
        fs::create_dir_all(to.parent().unwrap()).unwrap();
        copy_program(from, &to);
    };
    copy(&program, "/tree");
    let libraries = Command::new("ldd").arg(&program).output().unwrap().stdout;
    let libraries = String::from_utf8(libraries).unwrap();
    for library in libraries.split_whitespace().filter(|word| word.starts_with('/')) {
        copy(Path::new(library), library);
    }
    for name in ["upper", "work", "merged"] {
        fs::create_dir(folder.path().join(name)).unwrap();
    }
    folder
}

/// An id such as containers have.
fn id(digit: char) -> String {
    format!("{digit}{:063x}", std::process::id())
}

#[test]
fn roots_and_namespaces() {
    require_root();
    let overlay =
        "mount -t overlay overlay -o lowerdir=FOLDER/root,upperdir=FOLDER/upper,workdir=FOLDER/work FOLDER/merged";
    let in_overlay = format!("{overlay} && exec chroot FOLDER/merged /tree fork wait");
    let tree = ["FOLDER/root/tree", "fork", "wait"];
    for (what, command) in [
        ("chroot", vec!["chroot", "FOLDER/root", "/tree", "fork", "wait"]),
        ("namespaces of users, processes and mounts", [&NAMESPACES[..], &tree].concat()),
        ("an overlay", [&NAMESPACES[..], &["sh", "-c", &in_overlay]].concat()),
    ] {
        let contained = match Contained::start(with_root(), &command) {
            Ok(contained) => contained,
            Err(why) => {
                skipped(what, &why);
                continue;
            }
        };
        let pid = contained.pid.to_string();
        let report = contained.check(what, &["--pid", &pid]);
        report.assert_complete(what);
        assert_eq!(report.json["processes"].as_array().unwrap().len(), 5, "{what}");
    }
}

/// A layout as runtimes make it: namespaces, an overlay as the root, and a cgroup that carries the id.
#[test]
fn containers_by_their_ids() {
    require_root();
    let layout = "mount -t overlay overlay -o lowerdir=FOLDER/root,upperdir=FOLDER/upper,workdir=FOLDER/work FOLDER/merged \
                  && cd FOLDER/merged && mkdir old && pivot_root . old && exec /tree fork wait";
    type Make = fn(&str, u32) -> Result<Cgroup, String>;
    let memory: Make = |name, pid| Cgroup::with(name, 1 << 30, pid);
    for (digit, version, make) in [('a', "version of memory", memory), ('b', "version 2", Cgroup::of_version_2)] {
        let id = id(digit);
        let name = format!("docker-{id}.scope");
        let (path, short) = (format!("/{name}"), &id[..62]);
        for by in [["--container", short], ["--cgroup", &path]] {
            let what = format!("{} in a cgroup, {version}", by[0]);
            let contained = Contained::start(with_root(), &[&NAMESPACES[..], &["sh", "-c", layout]].concat());
            let made = contained.and_then(|contained| Ok((make(&name, contained.pid)?, contained)));
            let (cgroup, contained) = match made {
                Ok(made) => made,
                Err(why) => {
                    skipped(&what, &why);
                    continue;
                }
            };
            let report = contained.check(&what, &[by[0], by[1], "--by", "container"]);
            for process in report.json["processes"].as_array().unwrap() {
                assert_eq!((&process["exe"], &process["container"]["id"]), (&"/tree".into(), &(&*id).into()), "{what}");
                assert_eq!(process["container"]["runtime"], "docker", "{what}");
                if digit == 'a' {
                    assert_eq!(process["cgroup"], *path, "{what}");
                }
            }
            let groups = report.json["groups"].as_array().unwrap();
            assert_eq!((groups.len(), &groups[0]["ended_processes"]), (1, &5.into()), "{what}: {groups:?}");
            // It must be empty to be removed.
            std::thread::sleep(Duration::from_millis(10));
            drop(cgroup);
        }
    }
}

/// Their allocators are found, linked in either way.
#[test]
fn other_c_libraries() {
    require_root();
    for program in ["tree, musl", "tree, static musl", "tree, static"] {
        for way in ["fork", "spawn", "workers"] {
            let outcome = Run::launch(&[], [compiled(program).to_str().unwrap(), way]).finish();
            let truth = told(&outcome.stdout);
            let report = outcome.report(5);
            report.assert_nothing_lost(program);
            assert!(truth.len() > 3, "{program} {way}");
            assert_eq!(reported(&report), truth, "{program} {way}");
        }
    }
}
