//! `tracer top`: which process grows? No probes and no BPF: only what /proc says.
//!
//! Readings of all processes are compared ([`reading`], [`ranking`]); of those that are shown it is found out what they are
//! ([`describe`]) and which limit they run into ([`limits`]).

pub mod describe;
mod json;
pub mod limits;
pub mod page;
pub mod ranking;
pub mod reading;
mod screen;
pub mod table;

use std::{
    io::{self, IsTerminal as _, Write as _},
    sync::mpsc,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};

use self::{
    describe::{Describer, PATIENCE},
    limits::Limits,
    page::Page,
    reading::Reading,
    screen::Screen,
};
use crate::{
    config::TopConfig,
    exit::Exit,
    files::opener,
    memory::{Memory, default_bound},
    signals::{Signals, Stage},
};

/// Lines of a screen that hold no process: the heading, the names of the columns, and notes.
const OTHER_LINES: usize = 5;
/// Longest time that a screen waits for what processes are: it shows what is known, and the rest the next time.
const GLANCE: Duration = Duration::from_millis(200);

enum Input {
    /// The end is asked for.
    End,
    /// A key.
    Key(u8),
}

/// Shows processes as `config` says.
///
/// # Errors
/// They cannot be seen, or nothing can be written.
pub fn run(config: &TopConfig) -> Result<Exit> {
    let (inputs, input) = mpsc::channel();
    let ends = inputs.clone();
    let signals = Signals::start(false, move |_| drop(ends.send(Input::End))).context("cannot watch for signals")?;
    signals.enter(Stage::Tracing);
    opener::start(Memory::within(default_bound(), 0).for_copies());
    let mut describer = Describer::start().context("cannot start a thread")?;
    let mut limits = Limits::new();
    let live = !config.once && !config.json && io::stdout().is_terminal();
    let screen = live.then(|| {
        Screen::open(move |key| {
            // Keys that have come to an end end nothing: Ctrl-C does.
            if let Some(key) = key {
                let _ = inputs.send(Input::Key(key));
            }
        })
    });
    let take = |before: Option<&Reading>| Reading::take(before).context("cannot read /proc");
    let mut before = take(None)?;
    limits.update(&before, &before);
    if let Some(screen) = &screen {
        screen.draw(&[format!("looking at {} processes for {:?}; q ends", before.processes.len(), config.interval)])?;
    }
    loop {
        if ends_before(&input, Instant::now() + config.interval) {
            return Ok(Exit::Complete);
        }
        let now = take(Some(&before))?;
        let top = match &screen {
            Some(_) => config.top.min(screen::height().saturating_sub(OTHER_LINES).max(1)),
            None => config.top,
        };
        let patience = if live { GLANCE } else { PATIENCE };
        let deadline = Instant::now() + patience;
        let page = Page::new((&before, &now), (config.sort, top), &mut limits, &mut describer, deadline);
        let shown = match &screen {
            Some(screen) => screen.draw(&table::lines(&page)),
            None if config.json => json::line(&page).and_then(|line| print(&line)),
            None => print(&table::lines(&page).join("\n")),
        };
        match shown {
            // Nobody reads any more (`tracer top --json | head`), or the terminal is gone.
            Err(error)
                if error.kind() == io::ErrorKind::BrokenPipe || (live && error.raw_os_error() == Some(libc::EIO)) =>
            {
                return Ok(Exit::Complete);
            }
            shown => shown.context("cannot write to the standard output")?,
        }
        if config.once || !(live || config.json) {
            return Ok(Exit::Complete);
        }
        before = now;
    }
}

/// Waits until `end`. Whether the end of all was asked for before.
fn ends_before(input: &mpsc::Receiver<Input>, end: Instant) -> bool {
    loop {
        match input.recv_timeout(end.saturating_duration_since(Instant::now())) {
            Ok(Input::End | Input::Key(b'q' | b'Q')) => return true,
            Ok(Input::Key(_)) => {}
            Err(mpsc::RecvTimeoutError::Timeout) => return false,
            // The thread that reads signals has ended with a bug.
            Err(mpsc::RecvTimeoutError::Disconnected) => return true,
        }
    }
}

fn print(text: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    writeln!(out, "{text}")?;
    out.flush()
}
