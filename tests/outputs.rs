//! Reports that cannot be written: each is named, and none is left that is not whole.

use std::{
    fs,
    fs::File,
    os::unix::{fs::OpenOptionsExt as _, process::ExitStatusExt as _},
    path::Path,
    process::{Command, Stdio},
};

use nix::sys::signal::Signal;

use crate::harness::{Outcome, Run, Target, compiled, require_root, scratch};

const FAILED: i32 = 1;

/// Traces a program of thousands of stacks. `script` is what a shell does as root of a mount namespace of its own, for which
/// `$DISK` is a file system of 256 KiB, and `trace` traces with what follows as options.
fn traced(script: &str) -> (Outcome, tempfile::TempDir) {
    require_root();
    let folder = scratch();
    let disk = folder.path().join("disk");
    fs::create_dir(&disk).unwrap();
    let mut target = Target::start(&compiled("deep"));
    let prologue = format!(
        "mount -t tmpfs -o size=256k none {disk} || exit; DISK={disk}; KEPT={kept}; tracer=$0; pid=$1; \
         trace() {{ \"$tracer\" --pid $pid --duration 2s \"$@\"; }}",
        disk = disk.display(),
        kept = folder.path().display(),
    );
    let script = format!("{prologue}; {script}");
    let run = Run::through("unshare", &["-m", "sh", "-c", &script], Run::tracer()).args([target.pid().to_string()]);
    let running = run.start();
    target.ask("begin");
    (running.outcome(), folder)
}

fn files(listing: &Path) -> Vec<String> {
    fs::read_to_string(listing).unwrap().lines().map(str::to_owned).collect()
}

/// Some fit, some do not.
#[test]
fn a_full_disk() {
    let (outcome, folder) = traced(
        "echo old >$DISK/old.json; chmod 640 $DISK/old.json; echo old >$DISK/old.txt; ln -s old.txt $DISK/link.txt; \
         trace -o $DISK/new.json -o $DISK/old.json -o $DISK/new.txt -o $DISK/new.svg -o $DISK/link.txt; status=$?; \
         ls -A $DISK >$KEPT/files; stat -c %a $DISK/old.json >$KEPT/mode; cp $DISK/*.txt $DISK/old.json $KEPT; exit $status",
    );
    assert_eq!(outcome.code(), Some(FAILED), "{}", outcome.stderr);
    for (name, whole) in
        [("new.json", false), ("old.json", false), ("new.svg", false), ("new.txt", true), ("link.txt", true)]
    {
        let told =
            if whole { format!("wrote {}/disk/{name}", folder.path().display()) } else { format!("/disk/{name}: ") };
        assert!(outcome.stderr.contains(&told), "{name}: {}", outcome.stderr);
    }
    assert!(outcome.stderr.matches("No space left on device").count() == 3, "{}", outcome.stderr);
    assert_eq!(files(&folder.path().join("files")), ["link.txt", "new.txt", "old.json", "old.txt"]);
    assert_eq!(fs::read_to_string(folder.path().join("old.json")).unwrap(), "old\n");
    assert_eq!(fs::read_to_string(folder.path().join("mode")).unwrap(), "640\n");
    // The link was followed.
    assert!(fs::read_to_string(folder.path().join("old.txt")).unwrap().starts_with("heap profile"));
}

/// What another file system is mounted on, or belongs to a folder that takes no files, is changed in its place: only if it fits.
#[test]
fn a_full_disk_without_room_beside() {
    let (outcome, folder) = traced(
        "echo old >$DISK/old; cd $DISK/..; touch mounted.json mounted.txt; mount --bind $DISK/old mounted.json; \
         head -c 10000 /dev/zero >$DISK/text; mount --bind $DISK/text mounted.txt; \
         trace -o mounted.json -o mounted.txt; status=$?; \
         ls -A . >$KEPT/files; cp mounted.json $KEPT/json; cp mounted.txt $KEPT/text; exit $status",
    );
    assert_eq!(outcome.code(), Some(FAILED), "{}", outcome.stderr);
    assert!(outcome.stderr.contains("cannot write mounted.json: No space left"), "{}", outcome.stderr);
    assert_eq!(files(&folder.path().join("files")), ["disk", "files", "mounted.json", "mounted.txt"]);
    assert_eq!(fs::read_to_string(folder.path().join("json")).unwrap(), "old\n");
    let text = fs::read_to_string(folder.path().join("text")).unwrap();
    assert!(text.starts_with("heap profile") && !text.contains('\0') && text.ends_with('\n'), "{text:?}");
}

/// The trace goes on, and the file is written.
#[test]
fn short_reports_that_cannot_be_printed() {
    let (outcome, folder) = traced("trace --interval 200ms -o $KEPT/out.json -v >/dev/full");
    assert_eq!(outcome.code(), Some(FAILED), "{}", outcome.stderr);
    for words in [
        "cannot print a short report: No space left on device (os error 28); the trace goes on",
        "cannot write to the standard output: No space left",
        "; cannot print a short report: No space left",
    ] {
        assert!(outcome.stderr.contains(words), "no {words:?} in {}", outcome.stderr);
    }
    let report = fs::read_to_string(folder.path().join("out.json")).unwrap();
    assert!(report.trim_end().ends_with('}'), "{report:.300}");
}

/// The standard output by another name is the standard output: what was there stays, and nothing is written over it.
#[test]
fn the_standard_output_by_other_names() {
    let (outcome, folder) = traced(
        "echo old >$KEPT/all; trace -q -o /dev/stdout --format json >>$KEPT/all; status=$?; echo new >>$KEPT/all; \
         trace -q -o $KEPT/twice -o - --format json >$KEPT/twice 2>$KEPT/refused; echo $? >>$KEPT/refused; exit $status",
    );
    assert_ne!(outcome.code(), Some(FAILED), "{}", outcome.stderr);
    let all = fs::read_to_string(folder.path().join("all")).unwrap();
    let lines: Vec<&str> = all.lines().collect();
    let whole = |line: &str| line.starts_with('{') && line.ends_with('}');
    assert!(matches!(&lines[..], ["old", report, "new"] if whole(report)), "{all:.300}");
    let refused = fs::read_to_string(folder.path().join("refused")).unwrap();
    assert!(
        refused.contains("only one report can go to the standard output") && refused.ends_with("\n1\n"),
        "{refused}"
    );
    assert_eq!(fs::read_to_string(folder.path().join("twice")).unwrap(), "");
}

/// A report whose folder is removed meanwhile is not said to be written, and is not lost. The folder has changed when it was tried whether
/// the report can be made.
#[test]
fn a_folder_that_is_removed_meanwhile() {
    let (outcome, folder) = traced(
        "mkdir $KEPT/gone; touch -d @0 $KEPT/gone; \
         (for i in $(seq 600); do [ $(stat -c %Y $KEPT/gone) != 0 ] && break; sleep 0.1; done; rm -r $KEPT/gone) & \
         trace -q -o $KEPT/gone/out.json >$KEPT/text; status=$?; wait; exit $status",
    );
    assert_eq!(outcome.code(), Some(FAILED), "{}", outcome.stderr);
    assert!(outcome.stderr.contains("/gone/out.json: it, or the folder"), "{}", outcome.stderr);
    assert!(fs::read_to_string(folder.path().join("text")).unwrap().starts_with("heap profile"));
}

/// The status of a command that fails says more than that a report could not be written.
#[test]
fn the_command_decides_the_status_where_a_report_fails() {
    require_root();
    let run = Run::bare().args(["-q", "-o", "/dev/full", "--format", "json", "--", "sh", "-c", "exit 7"]);
    let outcome = run.finish();
    assert_eq!(outcome.code(), Some(7), "{}", outcome.stderr);
    assert!(outcome.stderr.contains("cannot write /dev/full: No space left"), "{}", outcome.stderr);
}

/// One that somebody reads gets the report, one that nobody reads is refused before anything is traced.
#[test]
fn named_pipes() {
    require_root();
    let folder = scratch();
    let pipe = folder.path().join("pipe.json");
    assert!(Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    let target = Target::start(&compiled("deep"));
    let run = || Run::pid(target.pid()).args(["-q", "--duration", "1s", "-o", pipe.to_str().unwrap()]);
    let outcome = run().finish();
    assert_eq!(outcome.code(), Some(FAILED), "{}", outcome.stderr);
    assert!(outcome.stderr.contains("a named pipe that nobody reads"), "{}", outcome.stderr);
    assert!(!outcome.stderr.contains("tracing"), "{}", outcome.stderr);

    let reader = Command::new("cat").arg(&pipe).stdout(Stdio::piped()).spawn().unwrap();
    // Until it has opened the pipe. Whoever is the last to close it ends what it reads.
    let held = loop {
        if let Ok(held) = File::options().write(true).custom_flags(0o4000).open(&pipe) {
            break held;
        }
    };
    let tracer = run().start();
    drop(held);
    let outcome = tracer.outcome();
    let report = reader.wait_with_output().unwrap().stdout;
    assert!(report.ends_with(b"}\n"), "{}: {:.300}", outcome.stderr, String::from_utf8_lossy(&report));
}

/// However tracer ends before there is a report, there is none: no empty one.
#[test]
fn a_tracer_that_is_ended_leaves_no_empty_report() {
    require_root();
    let target = Target::start(&compiled("deep"));
    for signal in [Signal::SIGUSR1, Signal::SIGUSR2, Signal::SIGQUIT, Signal::SIGKILL] {
        let folder = scratch();
        let report = folder.path().join("report.json");
        let pid = target.pid().to_string();
        let running = Run::bare().args(["--pid", &pid, "-o", report.to_str().unwrap()]).start();
        running.signal(signal);
        let outcome = running.outcome();
        assert_eq!(outcome.status.signal(), Some(signal as i32), "{}", outcome.stderr);
        let left: Vec<_> = fs::read_dir(folder.path()).unwrap().flatten().map(|entry| entry.file_name()).collect();
        assert!(left.is_empty(), "{signal}: {left:?}");
    }
}

#[test]
fn a_standard_error_that_nobody_reads() {
    require_root();
    let folder = scratch();
    let report = folder.path().join("report.json");
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    // What is told at every step finds nobody, from the first line on.
    let mut tracer = Command::new(Run::tracer());
    tracer.args(["-v", "-o", report.to_str().unwrap(), "--", "true"]).stdout(Stdio::null()).stderr(writer);
    let status = tracer.status().unwrap();
    assert_ne!(status.code(), Some(101), "it panicked");
    assert!(report.exists(), "{status}");
}
