//! Manners of the tracer as a launcher: signals, what a command inherits, and that no command is left stopped.

use std::{
    fs::{self, OpenOptions},
    io::{BufRead as _, BufReader, Write as _},
    os::{
        fd::OwnedFd,
        unix::{fs::OpenOptionsExt as _, process::ExitStatusExt as _},
    },
    process::{Command, Stdio},
    thread,
    time::Duration,
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use rustix::process::{PidfdFlags, pidfd_open, pidfd_send_signal};

use crate::harness::{
    Run, Running, Target, compiled, require_root, scratch, slowness, wait_until, with_default_signals,
};

/// State of a process as ps(1) shows it, `-` when it is gone.
fn state(pid: u32) -> char {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(") ").and_then(|(_, fields)| fields.chars().next()).unwrap_or('-')
}

/// Whether a process goes on: it waits for something or has something to do, and is neither stopped nor at its end.
fn goes_on(pid: u32) -> bool {
    matches!(state(pid), 'S' | 'R' | 'D')
}

/// Whether a process handles a signal.
fn handles(pid: u32, signal: Signal) -> bool {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let caught = status.lines().find_map(|line| line.strip_prefix("SigCgt:")).unwrap();
    u64::from_str_radix(caught.trim(), 16).unwrap() & 1 << (signal as i32 - 1) != 0
}

fn signal(pid: u32, signal: Signal) {
    // It may have ended.
    let _ = kill(Pid::from_raw(pid as i32), signal);
}

/// A command, killed when a killed tracer leaves it.
struct Left(u32, OwnedFd);

impl Left {
    /// That of a tracer.
    fn by(tracer: &Running) -> Self {
        let pid = rustix::process::Pid::from_raw(tracer.traced() as i32).unwrap();
        Self(tracer.traced(), pidfd_open(pid, PidfdFlags::empty()).unwrap())
    }
}

impl Drop for Left {
    fn drop(&mut self) {
        // It may have ended, and its id be another's.
        let _ = pidfd_send_signal(&self.1, rustix::process::Signal::KILL);
    }
}

/// Launches a shell that becomes another program, and stops the tracer, so that it cannot see to that.
fn stopped_at_its_exec() -> (Running, Left) {
    require_root();
    let running = Run::launch(&[], ["sh", "-c", "sleep 1; exec sleep 60"]).start();
    let command = Left::by(&running);
    wait_until("let run", || state(command.0) == 'S');
    running.signal(Signal::SIGSTOP);
    wait_until("stopped at its exec", || state(command.0) == 'T');
    (running, command)
}

#[test]
fn a_tracer_that_is_killed_leaves_its_command_running() {
    let (running, command) = stopped_at_its_exec();
    running.signal(Signal::SIGKILL);
    wait_until("continued", || state(command.0) == 'S');
    assert_eq!(fs::read_to_string(format!("/proc/{}/comm", command.0)).unwrap(), "sleep\n");
}

/// Whoever stopped it will continue it.
#[test]
fn a_tracer_that_is_killed_leaves_a_stop_that_is_not_its_own() {
    require_root();
    let running = Run::launch(&[], ["sleep", "60"]).start();
    let command = Left::by(&running);
    wait_until("let run", || state(command.0) == 'S');
    signal(command.0, Signal::SIGSTOP);
    wait_until("stopped", || state(command.0) == 'T');
    running.signal(Signal::SIGKILL);
    wait_until("reparented", || {
        let status = fs::read_to_string(format!("/proc/{}/status", command.0)).unwrap();
        !status.contains(&format!("PPid:\t{}\n", running.pid()))
    });
    // Time for the guardian to do what it must not.
    thread::sleep(Duration::from_millis(300) * slowness());
    assert_eq!(state(command.0), 'T');
}

/// The records of its execs do not fit into the buffer, which nobody empties: nobody would come to continue it.
#[test]
fn a_command_whose_execs_are_lost_is_not_stopped() {
    require_root();
    let program = compiled("execs");
    let options = ["--buffer-size", "4KiB"];
    let running = Run::launch(&options, [program.to_str().unwrap(), "20"]).start();
    let command = Left::by(&running);
    wait_until("let run", || state(command.0) == 'S');
    running.signal(Signal::SIGSTOP);
    wait_until("at its end", || state(command.0) == 'Z');
    running.signal(Signal::SIGCONT);
    let report = running.outcome().report(7);
    assert!(report.gaps().iter().any(|gap| gap == "unfollowed_processes"), "{}", report.json["quality"]);
    assert_eq!(report.json["quality"]["complete"], false);
}

/// Each signal that is sent to tracer reaches the command once, in the trace and after it.
#[test]
fn signals_reach_the_command() {
    require_root();
    let program = compiled("signals");
    for options in [&[][..], &["--duration", "300ms"]] {
        let mut running = Run::launch(options, [&program]).start();
        if !options.is_empty() {
            running.wait_for_line("wrote ");
        }
        wait_until("its handlers are set", || handles(running.traced(), Signal::SIGWINCH));
        let signals = [
            Signal::SIGHUP,
            Signal::SIGINT,
            Signal::SIGQUIT,
            Signal::SIGUSR1,
            Signal::SIGUSR2,
            Signal::SIGWINCH,
            Signal::SIGTERM,
        ];
        let mut expected = "ready\n".to_owned();
        for signal in signals {
            running.signal(signal);
            expected += &format!("got {:02}\n", signal as i32);
            // One after the other.
            thread::sleep(Duration::from_millis(150) * slowness());
        }
        let outcome = running.outcome();
        assert_eq!(outcome.code(), Some(9), "{}", outcome.stderr);
        let got: String =
            outcome.stdout.split_inclusive('\n').filter(|l| l.starts_with("got") || *l == "ready\n").collect();
        assert_eq!(got, expected, "{options:?}");
    }
}

/// A terminal sends Ctrl-C to all of the process group.
#[test]
fn ctrl_c_is_one_signal() {
    require_root();
    let folder = scratch();
    // In the place of the shell that script(1) runs it with: Ctrl-\ ends that one, if it waits, and with it the terminal.
    let command = format!(
        "exec {} -q -o {}/report.txt -- {}",
        Run::tracer().display(),
        folder.path().display(),
        compiled("signals").display()
    );
    let mut script = Command::new("script");
    script.args(["-qec", &command, "/dev/null"]).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut script = with_default_signals(&mut script).spawn().unwrap();
    let mut lines = BufReader::new(script.stdout.take().unwrap()).lines().map(|line| line.unwrap());
    assert!(lines.any(|line| line.trim_end() == "ready"), "the command did not begin");
    let mut keyboard = script.stdin.take().unwrap();
    let mut shown = Vec::new();
    for (key, sign) in [(b"\x03", "got 02"), (b"\x1c", "got 03")] {
        keyboard.write_all(key).unwrap();
        let has_it = |line: String| {
            shown.push(line);
            shown.last().is_some_and(|line| line.trim_end().ends_with(sign))
        };
        assert!(lines.any(has_it), "no {sign}: {shown:#?}");
        // Time for a second one to come, which must not.
        thread::sleep(Duration::from_millis(300) * slowness());
    }
    let tracer = fs::read_dir("/proc").unwrap().find_map(|process| {
        let pid = process.unwrap().file_name().to_str()?.parse::<u32>().ok()?;
        let line = fs::read_to_string(format!("/proc/{pid}/cmdline")).ok()?;
        let name = fs::read_to_string(format!("/proc/{pid}/comm")).ok()?;
        (name == "tracer\n" && line.contains(folder.path().to_str()?)).then_some(pid)
    });
    signal(tracer.unwrap(), Signal::SIGTERM);
    shown.extend(lines);
    let got: Vec<&str> = shown.iter().filter_map(|line| Some(line[line.find("got ")?..].trim_end())).collect();
    let status = script.wait().unwrap();
    assert_eq!(got, ["got 02", "got 03", "got 15"], "{shown:#?}\ntracer: {tracer:?}, {status}");
    assert_eq!(status.code(), Some(9));
}

/// Tracer stops with its command, and goes on with it.
#[test]
fn a_stopped_job_is_stopped_as_a_whole() {
    require_root();
    let running = Run::launch(&[], ["sleep", "60"]).job().start();
    let (tracer, command) = (running.pid(), running.traced());
    running.signal(Signal::SIGTSTP);
    wait_until("both stopped", || state(command) == 'T' && state(tracer) == 'T');
    running.signal(Signal::SIGCONT);
    wait_until("both go on", || goes_on(command) && goes_on(tracer));
    running.signal(Signal::SIGTERM);
    let outcome = running.outcome();
    assert_eq!(outcome.code(), Some(128 + Signal::SIGTERM as i32), "{}", outcome.stderr);
}

/// What a command gets from whoever launches it: ignored and blocked signals (of the first 32; the C library has the others to
/// itself), mask, limits, open files and closed ones, process group.
#[test]
fn a_command_inherits_what_tracer_was_started_with() {
    require_root();
    let wrapper = r#"trap '' HUP USR1 PIPE CHLD TTOU; ulimit -Sn 200; umask 027; "$@" 3</etc/passwd <&-"#;
    let tell = "grep -E '^(Sig(Blk|Ign)|Umask|NoNewPrivs)' /proc/$$/status | \
                sed -E 's/^(Sig...:.).{8}/\\1/'; ulimit -a; ls -l /proc/$$/fd | sed -E 's/.* ([0-9]+ -> )/\\1/; s/pipe:.*/pipe/'; \
                [ $(ps -o pgid= $$) = $(ps -o pgid= $PPID) ] && echo one group";
    let mut bare = Command::new("sh");
    bare.args(["-c", wrapper, "sh", "sh", "-c", tell]).stdin(Stdio::null());
    let bare = with_default_signals(&mut bare).output().unwrap();
    let bare = String::from_utf8(bare.stdout).unwrap();
    assert!(bare.contains("one group") && bare.contains("3 -> /etc/passwd") && !bare.contains("\n0 -> /"), "{bare}");
    let run = Run::through("sh", &["-c", wrapper, "sh"], Run::tracer());
    let outcome = run.with_json().args(["-q", "--", "sh", "-c", tell]).finish();
    // Its standard error is one here, and the shell has them open at times.
    let same =
        |text: &str| text.lines().filter(|line| !line.ends_with(" -> pipe")).map(str::to_owned).collect::<Vec<_>>();
    assert_eq!(same(&outcome.stdout), same(&bare));
}

/// As tracer is about to start its command, a signal ends it, as SIGTERM does then; later it is the command's.
#[test]
fn no_signal_is_lost_while_a_launch_begins() {
    require_root();
    for sent in [Signal::SIGUSR1, Signal::SIGUSR2] {
        let folder = scratch();
        let report = folder.path().join("report.json");
        let mut tracer = Command::new(Run::tracer());
        tracer.args(["-q", "-o", report.to_str().unwrap(), "--", "sleep", "30"]);
        let mut tracer = with_default_signals(&mut tracer).spawn().unwrap();
        // Until it reads them.
        let status = format!("/proc/{}/status", tracer.id());
        let blocks = |text: String| {
            let mask = text.lines().find_map(|line| line.strip_prefix("SigBlk:")).map(str::trim);
            mask.and_then(|mask| u64::from_str_radix(mask, 16).ok())
                .is_some_and(|mask| mask & 1 << (sent as i32 - 1) != 0)
        };
        wait_until("reads signals", || fs::read_to_string(&status).is_ok_and(blocks));
        signal(tracer.id(), sent);
        let status = tracer.wait().unwrap();
        // The command has died of it, or tracer.
        assert!(status.signal() == Some(sent as i32) || status.code() == Some(128 + sent as i32), "{sent}: {status}");
        if status.signal().is_some() {
            assert!(!report.exists(), "{sent}: an empty report");
        }
    }
}

/// Under nohup it goes on; and what ends it, ends it.
#[test]
fn a_signal_that_was_ignored_stays_so() {
    require_root();
    let run = Run::through("sh", &["-c", "trap '' HUP; exec \"$@\"", "sh"], Run::tracer());
    let running = run.with_json().args(["--", "sleep", "60"]).start();
    running.signal(Signal::SIGHUP);
    thread::sleep(Duration::from_millis(300) * slowness());
    for pid in [running.pid(), running.traced()] {
        assert!(goes_on(pid), "{pid} is in state {}", state(pid));
    }
    running.signal(Signal::SIGTERM);
    let outcome = running.outcome();
    assert_eq!(outcome.code(), Some(128 + Signal::SIGTERM as i32), "{}", outcome.stderr);
}

/// The report goes to a FIFO that nobody reads.
#[test]
fn a_second_signal_ends_a_tracer_whose_report_hangs() {
    require_root();
    let folder = scratch();
    let fifo = folder.path().join("report.json");
    assert!(Command::new("mkfifo").arg(&fifo).status().unwrap().success());
    let mut full = OpenOptions::new().read(true).write(true).custom_flags(0o4000).open(&fifo).unwrap();
    while full.write(&[0; 4096]).is_ok() {}
    let target = Target::start(&compiled("fork"));
    let running = Run::bare().args(["-q", "--pid", &target.pid().to_string(), "-o", fifo.to_str().unwrap()]).start();
    running.signal(Signal::SIGINT);
    thread::sleep(Duration::from_secs(1) * slowness());
    assert!(goes_on(running.pid()), "it waits for a reader");
    running.signal(Signal::SIGINT);
    let outcome = running.outcome();
    assert_eq!(outcome.status.signal(), Some(Signal::SIGINT as i32), "{}", outcome.stderr);
}

/// A command that ignores what it is told: the second time, tracer reports and leaves it.
#[test]
fn a_second_signal_leaves_a_command_that_does_not_end() {
    require_root();
    let running = Run::launch(&[], ["sh", "-c", "trap '' TERM; exec sleep 60 >/dev/null 2>&1"]).start();
    let command = Left::by(&running);
    for _ in 0..2 {
        thread::sleep(Duration::from_millis(500) * slowness());
        running.signal(Signal::SIGTERM);
    }
    let outcome = running.outcome();
    assert_eq!(outcome.code(), Some(128 + Signal::SIGTERM as i32), "{}", outcome.stderr);
    assert!(outcome.has_report());
    assert!(goes_on(command.0), "it is in state {}", state(command.0));
}

/// `tracer --interval ... | head`
#[test]
fn the_end_of_who_reads_is_the_end_of_the_trace() {
    require_root();
    let target = Target::start(&compiled("fork"));
    let run = Run::through("sh", &["-c", "\"$@\" | head -n 1", "sh"], Run::tracer());
    let outcome = run.with_json().args(["--pid", &target.pid().to_string(), "--interval", "200ms"]).finish();
    assert!(outcome.has_report(), "{}", outcome.stderr);
}
